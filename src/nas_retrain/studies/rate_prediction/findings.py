"""Does a rule predict the learning rate that a grid search finds? Rates, agreement and losses, network by network.

A rule turns a graph into a factor on the base network's searched rate. The paper's is one of several here: what it
leaves out, what it might do differently, and rules that know less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from nas_retrain.benches.registry import Bench
from nas_retrain.plan.rate_search import GridSearch
from nas_retrain.settings import BenchSettings, Settings
from nas_retrain.statistics.means import mean_interval, reliability_of_mean
from nas_retrain.statistics.rankings import Floats, bootstrap_interval
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.scaling import Initialisation, learning_rate_factor

Rule = Callable[[CellGraph], float]

ONE_RATE, DEEPEST, PATHS, PATHS_KERNEL = "one rate", "deepest path", "paths", "paths and kernel"
KERNEL_BY_PATH, STACKED = "paths, kernel by path", "paths of all stacked cells"

RULES = {
    ONE_RATE: "the base network's rate for every network",
    DEEPEST: "(depth of the deepest path)^(-3/2): what is known of chains (Jelassi et al. 2023)",
    PATHS: "the paper's eq. 8: (sum over paths of depth^3)^(-1/2)",
    PATHS_KERNEL: "the paper's eq. 9: the same, over the mean kernel size",
    KERNEL_BY_PATH: "(sum over paths of depth^3 x (mean kernel size of the path)^2)^(-1/2)",
    STACKED: "eq. 8 with the paths through all cells that are stacked, not through one",
}


@dataclass(frozen=True)
class Searched:
    """The grid search of one network under one initialisation (`scaling.Initialisation`)."""

    initialisation: Initialisation
    cell: int
    search: GridSearch


@dataclass(frozen=True)
class Verification:
    """What was found.

    rates: a row for each network and initialisation: the searched rate, the loss there, whether it is at the grid's
    edge, the standard deviation of log2 of the rate that each seed alone would choose, the size of the signal at the
    last vertex at the start over the base network's (NaN if not measured, or if the base network's is 0), and each
    rule's prediction.
    rules: a row for each initialisation and rule: correlations of predicted and searched rates with 95 % intervals
    over networks, the median distance in factors of two, and the mean training loss at the predicted rate, over what
    the best rate of the grid gives. ceiling: by initialisation, the correlation that a perfect prediction would have
    with rates searched with so many seeds, from how far the seeds agree among themselves; NaN where they do not.
    """

    rates: pd.DataFrame
    rules: pd.DataFrame
    ceiling: dict[Initialisation, float]

    def arms(self, main_rule: str) -> pd.DataFrame:
        """The rows of `rules` that are someone's way to set hyperparameters, by name.

        main_rule: what the paper's rule is in this space, see `main_rule`.
        """
        arms = {
            "He's initialisation, one rate": ("he", ONE_RATE),
            "muP, one rate": ("mup", ONE_RATE),
            "muP, depth only": ("mup", DEEPEST),
            "the paper's rules, in-degree of the source": ("source", main_rule),
            "the paper's rules, in-degree of the target": ("target", main_rule),
            "the paper's rules, in-degree of the source with dead edges counted": ("released", main_rule),
        }
        found = {name: self.judged(*key) for name, key in arms.items()}
        return pd.DataFrame([{"arm": name} | row for name, row in found.items() if row is not None])

    def networks(self, initialisation: str) -> int:
        """How many networks were searched with an initialisation, beside the base network."""
        return int((self.rates["initialisation"] == initialisation).sum())

    def judged(self, initialisation: str, rule: str) -> dict[str, float] | None:
        """The numbers of a row of `rules`; None if there is no such row."""
        rows = self.rules[(self.rules["initialisation"] == initialisation) & (self.rules["rule"] == rule)]
        if rows.empty:
            return None
        return {str(name): float(value) for name, value in rows.iloc[0].iloc[2:].items()}


def main_rule(space: Bench) -> str:
    """The paper's rule for the rate, as its experiments applied it: with the kernel factor or without it."""
    return PATHS_KERNEL if space.kernel_factor else PATHS


def rules_of(bench: BenchSettings, space: Bench, cells_per_stage: int) -> dict[str, Rule]:
    """The rules that differ in this space, each a factor that is 1 on the base network."""
    offset = bench.depth_offset
    paper = partial(learning_rate_factor, base=space.base, depth_offset=offset, base_kernel_size=bench.base_kernel_size)
    rules: dict[str, Rule] = {
        ONE_RATE: lambda _: 1.0,
        DEEPEST: lambda graph: (max(graph.path_depths(offset)) / max(space.base.path_depths(offset))) ** -1.5,
        PATHS: paper,
    }
    if space.kernels_differ:
        rules[PATHS_KERNEL] = partial(paper, kernel_factor=True)
        rules[KERNEL_BY_PATH] = lambda graph: _by_path(graph, offset, bench) / _by_path(space.base, offset, bench)
    if stages := space.stages:
        rules[STACKED] = lambda graph: (
            _stacked(graph, offset, cells_per_stage, stages) / _stacked(space.base, offset, cells_per_stage, stages)
        )
    return rules


def _by_path(graph: CellGraph, offset: int, bench: BenchSettings) -> float:
    """The sum over paths of depth^3 times the squared mean kernel size, to the power of -1/2."""
    paths: list[list[tuple[int, int]]] = [[] for _ in range(graph.vertices)]  # layers and sum of kernel sizes, by path
    paths[0] = [(0, 0)]
    for edge in sorted(graph.live.edges):
        counts = edge.operation.kind == "layer"
        for layers, kernels in paths[edge.source]:
            paths[edge.target].append((layers + counts, kernels + counts * edge.operation.kernel_size))
    total = sum(
        (offset + layers) ** 3 * (kernels / layers if layers else bench.base_kernel_size) ** 2
        for layers, kernels in paths[-1]
    )
    return float(total**-0.5)


def _stacked(graph: CellGraph, offset: int, cells_per_stage: int, stages: int) -> float:
    """The sum of cubed depths over paths through every cell and reduction block, to the power of -1/2."""
    depths = graph.path_depths(0)
    one_cell = np.bincount(list(depths), list(depths.values()))
    block = np.array([1.0, 0.0, 1.0])  # the shortcut, whose convolution no ReLU precedes, and a branch of two layers
    ways = np.array([1.0])
    for stage in range(stages):
        if stage:
            ways = np.convolve(ways, block)
        for _ in range(cells_per_stage):
            ways = np.convolve(ways, one_cell)
    return float((ways * (offset + np.arange(len(ways))) ** 3.0).sum() ** -0.5)


TOO_FEW = 3
"""So many networks have no correlation worth telling: of two or three it is near 1 or -1 by chance."""

LOUD = 4.0
"""A signal at the last vertex of so many times the base network's is no longer what the rules take it for."""


def without_loud(found: Verification, initialisation: Initialisation, rule: str) -> tuple[int, float]:
    """How many networks have a loud signal, and Pearson's correlation of predicted and searched rates without them; NaN
    of too few."""
    rates = found.rates[found.rates["initialisation"] == initialisation]
    quiet = rates[~(rates["signal"] > LOUD)]
    if len(quiet) <= TOO_FEW:
        return len(rates) - len(quiet), math.nan
    return len(rates) - len(quiet), _pearson(quiet[rule].to_numpy(), quiet["searched_rate"].to_numpy())


def slopes(coordinates: pd.DataFrame) -> pd.DataFrame:
    """How the last vertex's signal and its change go with each sweep of the coordinate check: exponents of power laws.

    A row for each sweep and arm: size_slope and change_slope, see `_exponent`. 0 is flat.
    """
    return slopes_by_sweep(coordinates[coordinates["last"]], "arm")


def slopes_by_sweep(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """How a signal and its change go with each sweep: exponents of power laws, 0 is flat.

    table: with the columns sweep, x, size, change and `by`. Returns a row for each sweep and value of `by`: size_slope
    and change_slope, see `_exponent`.
    """
    rows = []
    for (sweep, name), part in table.groupby(["sweep", by], sort=False):
        x, size, change = (part[column].to_numpy(dtype=float) for column in ("x", "size", "change"))
        rows.append({"sweep": sweep, by: name, "size_slope": _exponent(x, size), "change_slope": _exponent(x, change)})
    return pd.DataFrame(rows)


def _exponent(x: Floats, y: Floats) -> float:
    """The exponent of a power law y ~ x^exponent, by least squares on logarithms.

    NaN where there is none, since a value is 0 or not finite, or all x are the same.
    """
    if not (np.isfinite(y) & (y > 0)).all() or np.ptp(x) == 0:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def verify(
    searched: Iterable[Searched],
    settings: Settings,
    space: Bench,
    signals: Mapping[tuple[Initialisation, int], float] | None = None,
) -> Verification:
    """Compare every rule with the grid searches.

    The base network must be among them for each initialisation. It and networks that are the same have no part in what
    is found, since their prediction is their own searched rate.

    signals: the mean square of each network's last vertex at the start, if measured.
    """
    signals = signals or {}
    rules = rules_of(settings.bench, space, settings.network.cells_per_stage)
    chance = math.log(settings.dataset.classes)
    by_initialisation: dict[Initialisation, list[Searched]] = {}
    for one in searched:
        by_initialisation.setdefault(one.initialisation, []).append(one)
    rates, rows = [], []
    ceiling: dict[Initialisation, float] = {}
    random = np.random.default_rng(settings.analysis.seed)
    for initialisation, all_found in by_initialisation.items():
        base = next(one for one in all_found if one.cell == space.base_cell).search.chosen.learning_rate
        found = [one for one in all_found if space.graph_at(one.cell).network_class != space.base.network_class]
        graphs = [space.graph_at(one.cell) for one in found]
        factors = {name: np.array([rule(graph) for graph in graphs]) for name, rule in rules.items()}
        table = pd.DataFrame(
            {
                "initialisation": initialisation,
                "cell": [one.cell for one in found],
                "arch": [space.arch_at(one.cell) for one in found],
                "searched_rate": [one.search.chosen.learning_rate for one in found],
                "loss": [one.search.chosen.mean_loss for one in found],
                "at_edge": [one.search.at_edge for one in found],
                "signal": _over_base(
                    [signals.get((initialisation, one.cell), math.nan) for one in found],
                    signals.get((initialisation, space.base_cell), math.nan),
                ),
                "seeds_deviation": [float(np.std(np.log2(_rates_of_seeds(one.search)))) for one in found],
            }
            | {name: base * values for name, values in factors.items()}
        )
        rates.append(table)
        ceiling[initialisation] = _ceiling(found)
        curves = [curve(one.search, chance) for one in found]
        drawn = random.integers(0, len(found), (settings.analysis.bootstrap_draws, len(found)))
        for name in rules:
            shared = settings.seeding == "shared"
            rows.append(
                {"initialisation": initialisation, "rule": name} | judge(table, name, curves, drawn, shared=shared)
            )
    return Verification(pd.concat(rates, ignore_index=True), pd.DataFrame(rows), ceiling)


def _over_base(signals: Sequence[float], base: float) -> Floats:
    """Signals over the base network's; NaN where that is 0 or not finite."""
    return np.array(signals) / (base if 0 < base < math.inf else math.nan)


def judge(
    table: pd.DataFrame,
    rule: str,
    curves: Sequence[tuple[Floats, Floats]],
    drawn: NDArray[np.int64],
    *,
    shared: bool,
) -> dict[str, float]:
    """A row of `Verification.rules` for one rule, whose predictions are a column of `table` beside searched_rate.

    curves: of each network, see `curve`. drawn: resamples of networks, (draws, networks). shared: whether all networks
    have the same seeds.
    """
    searched, predicted = table["searched_rate"].to_numpy(), table[rule].to_numpy()
    by_seed = np.array(
        [
            [np.interp(math.log(rate), rates, losses) for losses in of_seeds.T]
            for rate, (rates, of_seeds) in zip(predicted, curves, strict=True)
        ]
    )
    excess = by_seed - np.array([losses[losses.mean(1).argmin()] for _, losses in curves])
    judged: dict[str, float] = {}
    statistics: dict[str, Callable[[Floats, Floats], float]] = {
        "pearson": _pearson,
        "pearson_log": lambda a, b: _pearson(np.log(a), np.log(b)),
        "spearman": lambda a, b: _pearson(stats.rankdata(a), stats.rankdata(b)),
    }
    for name, statistic in statistics.items():
        judged[name] = statistic(predicted, searched)
        resampled = np.array([statistic(predicted[draw], searched[draw]) for draw in drawn])
        judged |= _ends(name, bootstrap_interval(resampled, len(table)))
    distance = np.abs(np.log2(predicted / searched))
    judged["off_by_octaves"] = float(np.median(distance))
    judged |= _ends("off_by_octaves", bootstrap_interval(np.median(distance[drawn], axis=1), len(table)))
    judged["loss"] = float(by_seed.mean())
    judged["excess_loss"] = float(excess.mean())
    ends = mean_interval(excess.mean(1), np.arange(len(table)), [excess] if shared else [])
    return judged | _ends("excess_loss", ends)


def _ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _pearson(a: Floats, b: Floats) -> float:
    """Pearson's correlation; NaN where one side does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def curve(search: GridSearch, chance: float) -> tuple[Floats, Floats]:
    """Logarithms of the grid's rates, and each seed's losses, (rates, seeds), where a loss worse than chance's counts
    as that: a network that diverged is no worse than one that knows nothing."""
    losses = np.array([point.losses for point in search.grid])
    return np.log([point.learning_rate for point in search.grid]), np.minimum(losses, chance)


def _rates_of_seeds(search: GridSearch) -> Floats:
    """The rate that each seed alone would choose."""
    losses = np.array([point.losses for point in search.grid])[::-1]  # of equal losses the largest rate's
    rates = np.array([point.learning_rate for point in search.grid])[::-1]
    chosen: Floats = rates[losses.argmin(axis=0)]
    return chosen


def _ceiling(found: Sequence[Searched]) -> float:
    logs = np.log([_rates_of_seeds(one.search) for one in found])
    seeds = logs.shape[1]
    if seeds < 2 or len(found) < 3:
        return math.nan
    pairs = [_pearson(logs[:, i], logs[:, j]) for i in range(seeds) for j in range(i)]
    single = float(np.mean(pairs))
    if not single > 0:
        return math.nan
    return math.sqrt(reliability_of_mean(single, seeds))
