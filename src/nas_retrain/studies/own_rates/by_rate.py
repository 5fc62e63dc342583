"""What a grid of accuracies by learning rate tells: each class's own best rate, what explains it, what a rule gains.

One code for the searches of our own records and for published tables. Everything is chosen by validation accuracies
and judged by test accuracies, which are the same where there is one accuracy only (see `accuracy_grid.AccuracyGrid`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from nas_retrain.benches.registry import Bench, Sizes
from nas_retrain.settings import Settings
from nas_retrain.statistics.accuracy_grid import AccuracyGrid, best_places, lean
from nas_retrain.statistics.means import reliability_of_mean
from nas_retrain.statistics.rankings import FEWEST, Floats, Integers, bootstrap_interval, rank_correlation
from nas_retrain.statistics.significance import holm
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.scaling import learning_rate_factor

PAPERS, BEST = "paper's rule", "best of all"
OWN, HINDSIGHT = "own rate", "own rate in hindsight"
MEASURED = ("gradient norm", "relative gradient")
"""What is measured at the first step, see `RunRecord`; all else is known from the graph."""


def describe_classes(grid: AccuracyGrid, settings: Settings, space: Bench) -> pd.DataFrame:
    """A row a class: cell, arch, own_rate, at_edge (whether that is an end of the grid), lean, and what its graph tells
    before training."""
    best = grid.own
    graphs = [space.graph_at(int(cell)) for cell in grid.cells]
    table = pd.DataFrame(
        {
            "cell": grid.cells,
            "arch": [space.arch_at(int(cell)) for cell in grid.cells],
            "own_rate": grid.rates[best],
            "at_edge": np.isin(best, (0, len(grid.rates) - 1)),
            "lean": lean(grid.rates, grid.valid.mean(2)),
        }
    )
    quantities = [_quantities(graph, settings, space) for graph in graphs]
    return pd.concat([table, pd.DataFrame(quantities)], axis=1)


def _quantities(graph: CellGraph, settings: Settings, space: Bench) -> dict[str, float]:
    """What the graph tells before training."""
    depths = graph.path_depths(settings.bench.depth_offset)
    live = graph.live.edges
    inner = graph.in_degrees[1:]
    return {
        PAPERS: learning_rate_factor(graph, space.base, depth_offset=settings.bench.depth_offset),
        "deepest path": max(depths),
        "mean path depth": sum(depth * paths for depth, paths in depths.items()) / depths.total(),
        "paths": depths.total(),
        "convolutions": len(graph.layers),
        "3x3 convolutions": sum(edge.operation.kernel_size == 3 for edge in graph.layers),
        "skips": sum(edge.operation.kind == "skip" for edge in live),
        "pools": sum(edge.operation.kind == "pool" for edge in live),
        "output's in-degree": graph.in_degrees[-1],
        "mean in-degree": sum(inner) / len(inner),
        "FLOPs": space.flops(graph, Sizes.of(settings)),
    }


def curves(grid: AccuracyGrid) -> pd.DataFrame:
    """See `findings.OwnRates`."""
    mean = grid.valid.mean(2)
    low, high = np.transpose([grid.mean_interval(by_seed) for by_seed in np.moveaxis(grid.valid, 1, 0)])
    best = grid.own
    return pd.DataFrame(
        {
            "learning_rate": grid.rates,
            "mean_accuracy": mean.mean(0),
            "accuracy_low": low,
            "accuracy_high": high,
            "share_best": np.bincount(best, minlength=len(grid.rates)) / len(best),
        }
    )


def explained(classes: pd.DataFrame, drawn: NDArray[np.int64]) -> pd.DataFrame:
    """See `findings.OwnRates`. drawn: resamples of the classes, (draws, classes)."""
    quantities = [name for name in classes.columns[classes.columns.get_loc(PAPERS) :] if classes[name].notna().all()]
    rows = []
    for name in quantities:
        x = classes[name].to_numpy(dtype=float)
        row: dict[str, object] = {"quantity": name}
        for target in ("own_rate", "lean"):
            y = classes[target].to_numpy()
            low, high = bootstrap_interval(rank_correlation(x[drawn], y[drawn]), len(classes))
            enough = len(classes) >= FEWEST and np.ptp(x) > 0 and np.ptp(y) > 0
            p_value = float(stats.spearmanr(x, y).pvalue) if enough else np.nan
            row |= {f"{target}_rho": float(rank_correlation(x, y)), f"{target}_low": low, f"{target}_high": high}
            row[f"{target}_p"] = p_value
        rows.append(row)
    table = pd.DataFrame(rows)
    for target in ("own_rate", "lean"):
        table[f"{target}_p"] = holm(table[f"{target}_p"].to_numpy())
    return table


def _reliability_of(by_seed: Floats) -> float:
    """The rank correlation of a perfect prediction with the mean over seeds, from (classes, seeds)."""
    seeds = by_seed.shape[1]
    pairs = [float(rank_correlation(by_seed[:, i], by_seed[:, j])) for i in range(seeds) for j in range(i)]
    single = float(np.mean(pairs)) if pairs else np.nan
    if not single > 0:
        return 0.0 if pairs else np.nan
    return float(np.sqrt(reliability_of_mean(single, seeds)))


def reliability(grid: AccuracyGrid) -> dict[str, float]:
    """The rank correlation that a perfect prediction of the own rate, or of the lean, would have with what was measured
    from so many seeds."""
    by_seed = np.stack([lean(grid.rates, seed) for seed in np.moveaxis(grid.valid, 2, 0)], 1)
    return {
        "own_rate": _reliability_of(np.log2(grid.rates)[grid.valid.argmax(1)]),
        "lean": _reliability_of(by_seed),
    }


def accuracy_at(rates: Floats, accuracy: Floats, log_rates: Floats, classes: Integers) -> Floats:
    """Accuracy, (classes, rates, seeds), of these classes at log2 rates, interpolated; outside the grid, that of its
    end: (classes, seeds)."""
    x = np.log2(rates)
    inside = np.clip(log_rates, x[0], x[-1])
    left = np.clip(np.searchsorted(x, inside) - 1, 0, len(x) - 2)
    share = ((inside - x[left]) / (x[left + 1] - x[left]))[:, None]
    found: Floats = (1 - share) * accuracy[classes, left] + share * accuracy[classes, left + 1]
    return found


def halves_of(number: int, seed: int) -> tuple[Integers, Integers]:
    """Two halves of so many classes, at random."""
    order = np.random.default_rng(seed).permutation(number)
    return np.sort(order[: number // 2]), np.sort(order[number // 2 :])


def rules(grid: AccuracyGrid, classes: pd.DataFrame, quantities: Sequence[str], seed: int) -> pd.DataFrame:
    """Rules of one line, log2 rate = a + b log2 quantity (of 1 + quantity, if it may be 0), each fitted on one half of
    the classes, at random, and judged on the other, both ways round. The paper's has b = 1, and only a is fitted.

    "best of all" picks the quantity that gains most on the half that it is fitted to. "own rate" is what each
    class's best rate gains, chosen with some of the seeds and judged with the others, which is less than the truth
    where the choice is noisy; "own rate in hindsight" judges the choice by the seeds that made it, which is more.
    """
    number = len(classes)
    halves = halves_of(number, seed)
    predicted: dict[str, Floats] = {name: np.full(number, np.nan) for name in (*quantities, BEST)}
    one_rate = np.full(number, np.nan)
    slopes: dict[str, list[float]] = {name: [] for name in predicted}
    picked = []
    for fitted, judged in (halves, halves[::-1]):
        one_rate[judged] = np.log2(grid.rates)[grid.valid[fitted].mean((0, 2)).argmax()]
        gains = {}
        for name in quantities:
            x = classes[name].to_numpy(dtype=float)
            x = np.log2(x) if (x > 0).all() else np.log2(1 + x)
            intercept, slope = _fit(grid, x, fitted, free=name != PAPERS)
            predicted[name][judged] = intercept + slope * x[judged]
            slopes[name].append(slope)
            gains[name] = float(accuracy_at(grid.rates, grid.valid, intercept + slope * x[fitted], fitted).mean())
        best = max((name for name in gains if name != PAPERS), key=lambda name: gains[name])
        picked.append(best)
        predicted[BEST][judged] = predicted[best][judged]
        slopes[BEST].append(slopes[best][-1])
    everyone = np.arange(number)
    reference = accuracy_at(grid.rates, grid.test, one_rate, everyone)
    own = np.log2(classes["own_rate"].to_numpy())
    rows = []
    for name, rates in predicted.items():
        by_half = [rank_correlation(rates[half], own[half]) for half in halves]
        gain = accuracy_at(grid.rates, grid.test, rates, everyone) - reference
        rows.append(
            {"rule": name, "rho": float(np.mean(by_half)), "slope": float(np.mean(slopes[name]))}
            | gained(grid, gain)
            | {"quantity": " and ".join(dict.fromkeys(picked)) if name == BEST else name}
        )
    for name, gain in ((OWN, own_gain(grid)), (HINDSIGHT, hindsight_gain(grid))):
        rows.append({"rule": name, "rho": np.nan, "slope": np.nan} | gained(grid, gain) | {"quantity": ""})
    return pd.DataFrame(rows)


SLOPES = np.linspace(-3, 3, 25)


def _fit(grid: AccuracyGrid, x: Floats, fitted: Integers, *, free: bool) -> tuple[float, float]:
    """Intercept and slope of the line of log2 rates that gives these classes the best mean accuracy."""
    centre = x[fitted].mean()
    mean = grid.valid.mean(2, keepdims=True)
    levels = np.linspace(np.log2(grid.rates[0]), np.log2(grid.rates[-1]), 31)
    best = (-np.inf, 0.0, 0.0)
    for slope in SLOPES if free else (1.0,):
        for level in levels:
            accuracy = float(accuracy_at(grid.rates, mean, level + slope * (x[fitted] - centre), fitted).mean())
            best = max(best, (accuracy, level - slope * centre, float(slope)))
    return best[1], best[2]


def hindsight_gain(grid: AccuracyGrid) -> Floats:
    """What each class gains at its own best rate over the best one rate for all, judged by the seeds that chose them:
    (classes, seeds)."""
    own = np.take_along_axis(grid.test, grid.valid.mean(2).argmax(1)[:, None, None], 1)[:, 0]
    gain: Floats = own - grid.test[:, grid.valid.mean((0, 2)).argmax()]
    return gain


def own_gain(grid: AccuracyGrid) -> Floats:
    """What each class gains at its own best rate over the best one rate for all, each chosen by some seeds and judged
    by the others: (classes, seeds that judge)."""
    if grid.seeds < 2:
        return np.full((len(grid), grid.seeds), np.nan)
    gains = []
    for seed in range(grid.seeds):
        judged = grid.test[:, :, seed]
        choosing = np.delete(grid.valid, seed, axis=2).mean(2)
        own = np.take_along_axis(judged, choosing.argmax(1)[:, None], 1)[:, 0]
        gains.append(own - judged[:, choosing.mean(0).argmax()])
    return np.stack(gains, axis=1)


def gained(grid: AccuracyGrid, gain: Floats) -> dict[str, float]:
    """The mean of gains by class and seed, (classes, seeds), and its interval."""
    low, high = grid.mean_interval(gain)
    return {"gain": float(gain.mean()), "gain_low": low, "gain_high": high}


def own_rate_intervals(grid: AccuracyGrid, draws: int, seed: int) -> pd.DataFrame:
    """How sure each class's own rate is: own_rate_low and own_rate_high, between which 95 % of the own rates are that
    other trainings would give, and certainty, the share of these that are the same rate. A row a class.

    Other trainings are drawn about the means that were seen, with twice the variance that seeds show at each rate, what
    they share set aside: once for the means seen, which are off the truth, and once for the new ones. That the best of
    noisy means looks better than it is, is not counted, so certainty is rather too high. All NaN where there is one
    seed.
    """
    if grid.seeds < 2:
        return pd.DataFrame(np.nan, range(len(grid)), ["own_rate_low", "own_rate_high", "certainty"])
    mean = grid.valid.mean(2)
    scatter = grid.valid - mean[:, :, None] - (grid.valid.mean(0) - mean.mean(0)[:, None])
    deviation = np.sqrt((scatter**2).mean((0, 2)) / (grid.seeds - 1))  # of a mean over seeds, by rate
    generator = np.random.default_rng(seed)
    spread = 2**0.5 * deviation
    drawn = np.stack([best_places(mean + spread * generator.standard_normal(mean.shape)) for _ in range(draws)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0, method="nearest").astype(int)
    return pd.DataFrame(
        {"own_rate_low": grid.rates[low], "own_rate_high": grid.rates[high], "certainty": (drawn == grid.own).mean(0)}
    )


def permuted_gains(
    grid: AccuracyGrid,
    factors: Mapping[str, Floats],
    classes: pd.DataFrame,
    drawn: NDArray[np.int64],
    seed: int,
    permutations: int,
) -> pd.DataFrame:
    """A row a rule: what its factors of the learning rate gain over one rate, with one scalar tuned, beside the same
    factors shuffled between classes.

    rate = scalar x factor, the scalar fitted by validation accuracy on one half of the classes and judged by test
    accuracy on the other, both ways, as the one rate is. permuted_gain: the mean over permutations, each with scalars
    of its own, and 95 % of them; p_value: how often shuffled factors gain as much, p_holm adjusted for the number of
    rules. rho: the rank correlation of a rule's factors with the own rates. factors: (classes,) by rule. drawn:
    resamples of the classes, (draws, classes).
    """
    halves = halves_of(len(grid), seed)
    x = np.log2(grid.rates)
    valid = grid.valid.mean(2, keepdims=True)
    own = np.log2(classes["own_rate"].to_numpy())
    reference = np.empty((len(grid), grid.seeds))
    for fitted, judged in (halves, halves[::-1]):
        reference[judged] = grid.test[judged, grid.valid[fitted].mean((0, 2)).argmax()]
    rows = []
    for name, factor in factors.items():
        distinct, kind = np.unique(np.log2(factor), return_inverse=True)
        levels = np.linspace(x[0] - distinct[-1], x[-1] - distinct[0], 8 * len(x))
        everyone = np.arange(len(grid))
        # Of each class with each factor at each scalar, so that a permutation only looks up: (classes, kinds, levels).
        tuned, truly = (
            np.stack(
                [
                    np.stack(
                        [accuracy_at(grid.rates, table, np.full(len(grid), level + one), everyone) for level in levels],
                        1,
                    )
                    for one in distinct
                ],
                1,
            )
            for table in (valid, grid.test)
        )

        def gain_of(kinds: Integers, tuned: Floats = tuned, truly: Floats = truly) -> Floats:
            gain = np.empty((len(grid), grid.seeds))
            for fitted, judged in (halves, halves[::-1]):
                level = tuned[fitted, kinds[fitted], :, 0].mean(0).argmax()
                gain[judged] = truly[judged, kinds[judged], level] - reference[judged]
            return gain

        generator = np.random.default_rng(seed)
        null = np.array([gain_of(generator.permutation(kind)).mean() for _ in range(permutations)])
        gain = gain_of(kind)
        low, high = np.quantile(null, [0.025, 0.975])
        rho_low, rho_high = bootstrap_interval(rank_correlation(factor[drawn], own[drawn]), len(grid))
        rows.append(
            {"rule": name, "rho": float(rank_correlation(factor, own)), "rho_low": rho_low, "rho_high": rho_high}
            | gained(grid, gain)
            | {"permuted_gain": float(null.mean()), "permuted_low": float(low), "permuted_high": float(high)}
            | {"p_value": (1 + int((null >= gain.mean() - 1e-12).sum())) / (1 + permutations)}
        )
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p_value"].to_numpy())
    return table
