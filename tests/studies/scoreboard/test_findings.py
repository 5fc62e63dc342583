"""The scoreboard on searches whose best rates are planted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from nas_retrain.benches import registry
from nas_retrain.plan.rate_search import GridPoint, GridSearch
from nas_retrain.settings import RuleSettings, ScoreboardSettings, Settings
from nas_retrain.studies.scoreboard.arms import Arms, arms
from nas_retrain.studies.scoreboard.findings import Searches, judge_rules
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import find
from tests.conftest import MakeSettings


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings("bench=201", "cells=sample:24", "analysis.bootstrap_draws=50", config="scoreboard")


def planted(found: Arms, best: Callable[[CellGraph], float]) -> dict[str, Searches]:
    """Searches, under every recipe, in which each network's loss is a parabola around its best rate."""
    settings = found.settings
    cells = (*found.cells, registry.of(settings.bench).base_cell)
    grids = {}
    for cell in cells:
        at = math.log(best(registry.graph_of(cell, settings)))
        losses = {rate: 0.5 + 0.1 * (math.log(rate) - at) ** 2 for rate in np.geomspace(0.005, 5, 31)}
        grids[cell] = GridSearch(tuple(GridPoint(rate, (loss, loss)) for rate, loss in losses.items()))
    shares = {cell: 1 / best(registry.graph_of(cell, settings)) for cell in cells}
    return dict.fromkeys(settings.recipes, Searches(grids, shares))


def judged(settings: Settings, best: Callable[[CellGraph], float]) -> pd.DataFrame:
    wanted = settings.scoreboard
    assert wanted is not None
    found = arms(settings, wanted)
    return judge_rules(found, planted(found, best), wanted).set_index("rule")


def test_a_rule_by_which_rates_were_planted_gains_what_they_allow(settings: Settings) -> None:
    size = registry.size_of(settings)
    rows = judged(settings, lambda graph: find("depth").decide(graph, size, "a cell").learning_rate)
    true = rows.loc["depth"]
    assert true["spearman"] > 0.98
    assert true["excess_loss"] < 0.002
    # The best that a rule can gain is the variance of the logarithms of the best rates, times the parabola's 0.1.
    rates = [
        find("depth").decide(registry.graph_of(cell, settings), size, "a cell").learning_rate
        for cell in arms(settings, settings.scoreboard).cells
    ]
    assert true["gain_over_one_rate"] == pytest.approx(0.1 * np.var(np.log(rates)), rel=0.25)
    assert true["gain_over_one_rate_low"] > 0
    assert true["gain_over_permuted_low"] > 0
    # Handed to the wrong networks, factors cost their own variance once more.
    assert true["gain_over_permuted"] == pytest.approx(0.2 * np.var(np.log(rates)), rel=0.3)
    assert rows.loc["one rate", "gain_over_one_rate"] == 0
    assert rows.loc["one rate", "gain_over_permuted"] == pytest.approx(0)
    assert rows.loc["measured", "gain_over_one_rate"] == pytest.approx(true["gain_over_one_rate"], rel=0.02)
    assert rows["gain_over_one_rate"].idxmax() in ("depth", "measured")


def test_where_one_rate_is_best_for_all_no_rule_gains(settings: Settings) -> None:
    rows = judged(settings, lambda _: 0.2)
    varying = rows.drop(["one rate", "He", "muP", "CompleteP", "measured"])
    assert (varying["gain_over_one_rate"] < 0).all()
    # The factors are no worse for their own networks than for others.
    assert varying["gain_over_permuted"].abs().max() < 0.02


def test_rules_that_decide_the_same_of_layers_share_their_searches(settings: Settings) -> None:
    wanted = settings.scoreboard
    assert wanted is not None
    found = arms(settings, wanted)
    by_rate = ("one rate", "depth", "effective depth", "measured")
    assert {found.searched_by[name] for name in by_rate} == {"grid_0"}
    layered = ("He", "the paper's, source", "the paper's, target", "muP", "CompleteP")
    assert len({found.searched_by[name] for name in layered}) == 5
    assert found.searched_by["the paper's, permuted"] == found.searched_by["the paper's, source"]
    assert set(found.settings.recipes) == set(found.searched_by.values())
    # A rule that is added changes no search of the others.
    more = wanted.model_copy(update={"rules": wanted.rules | {"mine": RuleSettings(rule="depth")}})
    assert isinstance(more, ScoreboardSettings)
    assert arms(settings, more).searched_by == found.searched_by | {"mine": "grid_0"}
