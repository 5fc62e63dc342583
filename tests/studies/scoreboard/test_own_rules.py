"""Rules of one's own on the scoreboard: alone, doubled, in another order, and such as cannot be used."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

from nas_retrain.commands import scoreboard
from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import RuleSettings, ScoreboardSettings, Settings
from nas_retrain.studies.scoreboard.arms import arms, with_one_rate
from nas_retrain.studies.scoreboard.findings import judge_rules
from nas_retrain.studies.scoreboard.first_step import measure_slopes
from nas_retrain.theory.graph import CellGraph
from tests.conftest import MakeSettings
from tests.studies.scoreboard.test_findings import planted

RULES = """
from nas_retrain.theory.rule import Parametrisation


def halved(graph, size):
    return Parametrisation(0.5, variances={edge: 1.0 for edge in graph.layers})


def no_deep_ones(graph, size, *, most=2):
    if max(graph.path_depths()) > most:
        raise ValueError("it is too deep")
    return Parametrisation(0.5)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own rules.py"
    path.write_text(RULES)
    return str(path)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings("bench=201", "cells=sample:12", "analysis.bootstrap_draws=20", config="scoreboard")


def wanted(settings: Settings, **rules: str) -> ScoreboardSettings:
    assert settings.scoreboard is not None
    return settings.scoreboard.model_copy(
        update={"rules": {name: RuleSettings(rule=rule) for name, rule in rules.items()}}
    )


def best(graph: CellGraph) -> float:
    return 0.5 / max(graph.path_depths())


def test_rules_without_one_rate_are_compared_with_it_all_the_same(settings: Settings, own: str) -> None:
    alone = with_one_rate(wanted(settings, mine=f"{own}:halved", depth="depth"))
    assert list(alone.rules) == ["one rate", "mine", "depth"]
    found = arms(settings, alone)
    table = judge_rules(found, planted(found, best), alone).set_index("rule")
    assert list(table.index) == ["one rate", "mine", "depth"]
    assert table.loc["one rate", "gain_over_one_rate"] == table.loc["mine", "gain_over_one_rate"] == 0
    assert table.loc["depth", "gain_over_one_rate_low"] > 0
    # It may have another name and place.
    turned = wanted(settings, depth="depth", mine=f"{own}:halved", constant="one_rate")
    assert with_one_rate(turned) is turned
    found = arms(settings, turned)
    other = judge_rules(found, planted(found, best), turned).set_index("rule").rename({"constant": "one rate"})
    assert list(other.index) == ["depth", "mine", "one rate"]
    assert other["gain_over_one_rate"].to_dict() == table["gain_over_one_rate"].to_dict()
    taken = with_one_rate(wanted(settings, **{"one rate": "he"}))
    assert [rule.rule for rule in taken.rules.values()] == ["one_rate", "he"]


def test_a_rule_that_is_there_twice_is_searched_once(settings: Settings) -> None:
    twice = wanted(settings, constant="one_rate", one="he", other="he")
    found = arms(settings, twice)
    assert found.searched_by["one"] == found.searched_by["other"] != found.searched_by["constant"]
    table = judge_rules(found, planted(found, best), twice).set_index("rule")
    assert table.loc["one"].equals(table.loc["other"])


def test_a_folder_s_searches_keep_their_names_whatever_rules_are_asked_for(settings: Settings, own: str) -> None:
    assert settings.scoreboard is not None
    first = arms(settings, settings.scoreboard)
    known = {name: recipe.identity for name, recipe in first.settings.recipes.items()}
    rules = settings.scoreboard.rules
    mine = RuleSettings(rule=f"{own}:halved")
    for asked in (
        dict(reversed(rules.items())),
        {"mine": mine} | {name: rules[name] for name in ("one rate", "muP", "He")},
        {"mine": mine, "one rate": rules["one rate"]},
    ):
        found = arms(settings, settings.scoreboard.model_copy(update={"rules": asked}), known)
        for name in asked.keys() & rules.keys():
            assert found.settings.recipes[found.searched_by[name]].identity == known[first.searched_by[name]]
            assert found.searched_by[name] == first.searched_by[name]
        if "mine" in asked:
            assert found.searched_by["mine"] not in known


def test_a_rule_that_fails_for_one_network_names_it(settings: Settings, own: str) -> None:
    with pytest.raises(NasRetrainError, match=r"^rule .*own rules\.py:no_deep_ones for cell \|.*too deep"):
        arms(settings, wanted(settings, constant="one_rate", mine=f"{own}:no_deep_ones"))


def test_nothing_is_trained_if_a_rule_fails_in_the_last_part(
    make_settings: MakeSettings, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["cells=sample:12", f"+scoreboard.rules.mine.rule='{own}:no_deep_ones'"]
    asked = make_settings("bench=mlp", *given, config="scoreboard")
    parts = {"shallow": ("bench=mlp", "cells=[0]"), "deep": ("bench=mlp",)}
    assert asked.scoreboard is not None
    asked = asked.model_copy(update={"scoreboard": asked.scoreboard.model_copy(update={"parts": parts})})
    monkeypatch.setattr(sys, "argv", ["scoreboard", *given])
    monkeypatch.setattr(scoreboard, "retrain_here", lambda *_, **__: pytest.fail("something was trained"))
    with pytest.raises(NasRetrainError, match=r"too deep \(in part deep of the scoreboard\)\. Nothing was trained\.$"):
        scoreboard.scoreboard(asked)


def test_a_rule_that_fails_in_a_sweep_has_no_exponent_there_and_that_is_told(
    make_settings: MakeSettings, own: str
) -> None:
    settings = make_settings("bench=mlp", config="scoreboard")
    data = batches.load(settings.dataset, settings.data_dir, torch.device("cpu"))
    asked = wanted(settings, constant="one_rate", permuted="permuted")
    mine = RuleSettings(rule=f"{own}:no_deep_ones", parameters={"most": 4})
    asked = asked.model_copy(update={"rules": asked.rules | {"mine": mine}})
    with warnings.catch_warnings(record=True, action="always") as told:
        slopes = measure_slopes(settings, data, asked)
    assert any(re.match("mine has no exponent for depth: rule .*too deep", str(one.message)) for one in told)
    assert len({str(one.message).partition(":")[0] for one in told}) == len(told)
    assert {"depth", "width"} <= set(slopes["sweep"])
    there = set(zip(slopes["sweep"], slopes["rule"], strict=True))
    assert {("width", "constant"), ("width", "mine")} <= there
    assert ("depth", "mine") not in there
    assert "permuted" not in set(slopes["rule"])


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        (["scoreboard.rules=[depth,my_rules.py:mine]"], {"depth": "depth", "my_rules.py:mine": "my_rules.py:mine"}),
        (["scoreboard.rules=[my_module:mine]"], {"my_module:mine": "my_module:mine"}),
        (["~scoreboard.rules", "+scoreboard.rules.mine.rule=my_module:mine"], {"mine": "my_module:mine"}),
    ],
)
def test_rules_of_one_s_own_alone(make_settings: MakeSettings, given: list[str], rules: dict[str, str]) -> None:
    settings = make_settings("bench=mlp", *given, config="scoreboard")
    assert settings.scoreboard is not None
    assert {name: rule.rule for name, rule in settings.scoreboard.rules.items()} == rules
    assert list(with_one_rate(settings.scoreboard).rules) == ["one rate", *rules]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("scoreboard.rules=[depth,he,depth]", "scoreboard.rules: depth is listed more than once"),
        ("scoreboard.rules=[]", "scoreboard.rules: Value should have at least 1 item"),
        ("scoreboard.rules=[depth,3]", "scoreboard.rules: is a list, where each is the name of a rule"),
        ("scoreboard.rules=depth", "scoreboard.rules: Input should be a valid dictionary"),
        ("~scoreboard.rules", "scoreboard.rules: Field required"),
        ("scoreboard.parts=[mlp]", "scoreboard.parts does not take such a value"),
        ("+scoreboard.rules.mine.parameters={a: nan}", "scoreboard.rules.mine"),
    ],
)
def test_lists_of_rules_that_cannot_be_used_are_named(make_settings: MakeSettings, given: str, said: str) -> None:
    with pytest.raises(NasRetrainError) as error:
        make_settings("bench=mlp", given, config="scoreboard")
    assert said in str(error.value)
