"""How each rule does: how flat it keeps the first step, how well it predicts searched rates, and what it gains.

All losses are training losses in nats at the end of a search's epochs, interpolated between the rates of its grid in
their logarithm; a loss worse than chance's counts as chance's. A rule's scalar (its base rate) is tuned on one half of
the networks and judged on the other, both ways round, and so are those of its rivals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas_retrain.benches import registry
from nas_retrain.plan.rate_search import GridSearch
from nas_retrain.settings import RuleSettings, ScoreboardSettings, Settings
from nas_retrain.statistics.means import mean_interval
from nas_retrain.statistics.rankings import Floats
from nas_retrain.studies.rate_prediction.findings import curve, judge
from nas_retrain.studies.scoreboard.arms import MEASURED, ONE_RATE, Arms
from nas_retrain.theory.rule import Peers, find

SCALARS_PER_OCTAVE = 8
"""How finely a rule's scalar is tuned."""


@dataclass(frozen=True)
class Searches:
    """What was found under one recipe, by cell: grids, and the gradient of the first step as a share of the weights."""

    grids: Mapping[int, GridSearch]
    shares: Mapping[int, float]


def factors(rule: RuleSettings, cells: Sequence[int], settings: Settings, searches: Searches, base_cell: int) -> Floats:
    """The rule's factor of the learning rate of each network."""
    graphs = [registry.graph_of(cell, settings) for cell in cells]
    parameters = dict(rule.parameters)
    if rule.rule == MEASURED and "shares" not in parameters:
        parameters["shares"] = {
            registry.graph_of(cell, settings).network_class: searches.shares[cell] for cell in (*cells, base_cell)
        }
    size = registry.size_of(settings, Peers(tuple(graphs)))
    space, found = registry.of(settings.bench), find(rule.rule, parameters)
    names = map(space.arch_at, cells)
    return np.array([found.decide(graph, size, name).learning_rate for graph, name in zip(graphs, names, strict=True)])


def judge_rules(arms: Arms, found: Mapping[str, Searches], wanted: ScoreboardSettings) -> pd.DataFrame:
    """A row for each rule, with the columns of `rate_prediction.findings.judge` and

    gain_over_one_rate: mean loss of one rate for all networks less the rule's, both with their scalar tuned.
    gain_over_permuted: mean loss of the rule's factors handed to the wrong networks, over permutations and each with
    its scalar tuned, less the rule's. With 95 % intervals over networks.

    found: by recipe, of all `arms.cells` and the base network. wanted: rules among which is `one_rate`.
    """
    settings = arms.settings
    base_cell = registry.of(settings.bench).base_cell
    random = np.random.default_rng(settings.analysis.seed)
    drawn = random.integers(0, len(arms.cells), (settings.analysis.bootstrap_draws, len(arms.cells)))
    permutations = np.array([random.permutation(len(arms.cells)) for _ in range(wanted.permutations)])
    chance = math.log(settings.dataset.classes)
    one_rate: Floats | None = None
    rows = {}
    # One rate for all comes first, with which the others are compared.
    for name, rule in sorted(wanted.rules.items(), key=lambda item: item[1].rule != ONE_RATE):
        searches = found[arms.searched_by[name]]
        grids = [searches.grids[cell] for cell in arms.cells]
        curves = [curve(grid, chance) for grid in grids]
        of_rule = factors(rule, arms.cells, settings, searches, base_cell)
        table = pd.DataFrame(
            {
                "searched_rate": [grid.chosen.learning_rate for grid in grids],
                "predicted": searches.grids[base_cell].chosen.learning_rate * of_rule,
            }
        )
        losses = _losses(curves, of_rule)
        tuned = _tuned(losses, np.arange(len(of_rule)))
        permuted = np.mean([_tuned(losses, permutation) for permutation in permutations], axis=0)
        one_rate = tuned if one_rate is None else one_rate
        shared = settings.seeding == "shared"
        row = {"rule": name} | judge(table, "predicted", curves, drawn, shared=shared) | {"tuned_loss": tuned.mean()}
        for gain, rival in (("gain_over_one_rate", one_rate), ("gain_over_permuted", permuted)):
            ends = mean_interval(rival - tuned, np.arange(len(tuned)))
            row |= {gain: float((rival - tuned).mean()), f"{gain}_low": ends[0], f"{gain}_high": ends[1]}
        rows[name] = row
    return pd.DataFrame([rows[name] for name in wanted.rules])


def _losses(curves: Sequence[tuple[Floats, Floats]], of_rule: Floats) -> NDArray[np.float64]:
    """The mean loss over seeds of network i at scalar s times the factor of network j, in [i, j, s]."""
    grid, logs = curves[0][0], np.log(of_rule)
    ends = grid[0] - logs.max(), grid[-1] - logs.min()
    scalars = np.linspace(*ends, max(2, round((ends[1] - ends[0]) / math.log(2) * SCALARS_PER_OCTAVE)))
    rates = logs[:, None] + scalars
    return np.array([np.interp(rates, rates_of, losses.mean(1)) for rates_of, losses in curves])


def _tuned(losses: NDArray[np.float64], permutation: NDArray[np.int64]) -> Floats:
    """Each network's loss with another's factor and the scalar that is best for the half to which it does not belong.

    losses: see `_losses`. permutation: whose factor each network has.
    """
    own = losses[np.arange(len(losses)), permutation]
    halves = np.arange(len(own)) % 2
    found = np.empty(len(own))
    for half in (0, 1):
        best = own[halves != half].mean(0).argmin()
        found[halves == half] = own[halves == half, best]
    return found
