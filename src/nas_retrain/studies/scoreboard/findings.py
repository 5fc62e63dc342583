"""How each rule does: how flat it keeps the first step, how well it predicts searched rates, and what it gains.

All losses are training losses in nats at the end of a search's epochs, interpolated between the rates of its grid; a
loss worse than chance's counts as chance's. A rule's scalar (its base rate) is tuned on one half of the networks and
judged on the other, both ways round, and so are those of its rivals (statistics.response_surface).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nas_retrain.benches import registry
from nas_retrain.plan.rate_search import GridSearch
from nas_retrain.settings import RuleSettings, ScoreboardSettings, Settings
from nas_retrain.statistics.rankings import Floats
from nas_retrain.statistics.response_surface import Curves, Estimate, Halves, Rules, over_null
from nas_retrain.studies.rate_prediction.findings import curve, judge
from nas_retrain.studies.scoreboard.arms import MEASURED, ONE_RATE, Arms
from nas_retrain.theory.rule import Peers, find


@dataclass(frozen=True)
class Searches:
    """What was found under one recipe, by cell: grids, and the gradient of the first step as a share of the weights."""

    grids: Mapping[int, GridSearch]
    shares: Mapping[int, float]


def factors_of(rule: RuleSettings, cells: Sequence[int], settings: Settings, shares: Mapping[int, float]) -> Floats:
    """The rule's factor of the learning rate of each network.

    shares: for a rule that goes by what was measured, the first gradient as a share of the weights, by cell: of these
    and of the base network.
    """
    graphs = [registry.graph_of(cell, settings) for cell in cells]
    parameters = dict(rule.parameters)
    if rule.rule == MEASURED and "shares" not in parameters:
        parameters["shares"] = {
            registry.graph_of(cell, settings).network_class: share for cell, share in shares.items()
        }
    size = registry.size_of(settings, Peers(tuple(graphs)))
    space, found = registry.of(settings.bench), find(rule.rule, parameters)
    names = map(space.arch_at, cells)
    return np.array([found.decide(graph, size, name).learning_rate for graph, name in zip(graphs, names, strict=True)])


def judge_rules(arms: Arms, found: Mapping[str, Searches], wanted: ScoreboardSettings) -> pd.DataFrame:
    """A row for each rule, with the columns of `rate_prediction.findings.judge` and

    gain_over_one_rate: mean loss of one rate for all networks less the rule's, both with their scalar tuned; ends from
    resamples of networks, in each of which the scalars are tuned anew.
    gain_over_permuted: mean loss of the rule's factors handed to the wrong networks, over permutations and each with
    its scalar tuned, less the rule's; ends from the same permutations, so that 0 is outside where fewer than 5 % of
    them stand out as much as the rule.

    found: by recipe, of all `arms.cells` and the base network. wanted: rules among which is `one_rate`.
    """
    settings = arms.settings
    base_cell = registry.of(settings.bench).base_cell
    random = np.random.default_rng(settings.analysis.seed)
    drawn = random.integers(0, len(arms.cells), (settings.analysis.bootstrap_draws, len(arms.cells)))
    halves = Halves.drawn(len(arms.cells), settings.analysis.bootstrap_draws, random)
    chance = math.log(settings.dataset.classes)
    one_rate: Estimate | None = None
    rows = {}
    # One rate for all comes first, with which the others are compared.
    for name, rule in sorted(wanted.rules.items(), key=lambda item: item[1].rule != ONE_RATE):
        searches = found[arms.searched_by[name]]
        grids = [searches.grids[cell] for cell in arms.cells]
        curves = [curve(grid, chance) for grid in grids]
        shares = {cell: searches.shares[cell] for cell in (*arms.cells, base_cell)}
        of_rule = factors_of(rule, arms.cells, settings, shares)
        table = pd.DataFrame(
            {
                "searched_rate": [grid.chosen.learning_rate for grid in grids],
                "predicted": searches.grids[base_cell].chosen.learning_rate * of_rule,
            }
        )
        rules = Rules(Curves.of(*_accuracies(curves)), halves)
        tuned = rules.level(np.log2(of_rule))
        one_rate = tuned if one_rate is None else one_rate
        null = rules.levels_if_permuted(np.log2(of_rule), wanted.permutations, random)
        shared = settings.seeding == "shared"
        row = {"rule": name} | judge(table, "predicted", curves, drawn, shared=shared) | {"tuned_loss": -tuned.value}
        row |= (tuned - one_rate).columns("gain_over_one_rate")
        row |= over_null(tuned.value, null).columns("gain_over_permuted")
        rows[name] = row
    return pd.DataFrame([rows[name] for name in wanted.rules])


def _accuracies(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The rates of the grid, and losses as what should be large, (networks, rates), the mean over seeds."""
    return np.exp(curves[0][0]), np.array([-losses.mean(1) for _, losses in curves])
