"""Whose ranking is right? Each recipe against the networks at their own best learning rates.

That two rankings differ does not say which is better. The ranking of networks that each train at their own best rate
does; a rule for the rate stands in for it. Own rates are chosen on validation images and judged on the test set with
seeds of their own, so neither the choice nor a shared training counts as agreement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from nas_retrain.benches.registry import Space
from nas_retrain.purpose import RateSearch
from nas_retrain.rate_policy import Own
from nas_retrain.settings import AnalysisSettings, Settings
from nas_retrain.statistics import accuracies as benchmark
from nas_retrain.statistics import luck
from nas_retrain.statistics.means import mean_interval
from nas_retrain.statistics.noise import Ceiling, NoiseLevel, ceiling, noise_level
from nas_retrain.statistics.rankings import (
    FEWEST,
    Comparison,
    Floats,
    Integers,
    agreement,
    bootstrap_interval,
    bootstrap_taus,
    bootstrap_weights,
    compare,
    middle,
    shared_parts,
    top_taus,
)
from nas_retrain.studies.comparison.tables import holm
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.scaling import learning_rate_factor

TOP = (100, 50, 20)
"""The top K percent, by the accuracies at own rates, among which rankings are compared."""

PAPERS, BEST = "paper's rule", "best of all"
OWN, HINDSIGHT = "own rate", "own rate in hindsight"
MEASURED = ("gradient norm", "relative gradient")
"""What is measured at the first step, see `RunRecord`; all else is known from the graph."""


@dataclass(frozen=True)
class OwnRates:
    """What was found; every interval is 95 %, over network classes, and counts shared seeds (see `means` and
    `luck`).

    rankings: a row a recipe and K: Kendall's tau between its ranking and that at own rates, the noise ceiling, how
    often noise alone gives a tau as low, and by how much tau exceeds the control's.
    regret: a row a recipe: points of test accuracy below the own rate's, their mean and distribution over classes, and
    the mean of the first step's relative_gradient (see `RunRecord`).
    curves: a row a rate of the grid: the mean validation accuracy of all classes and how often it is the best rate.
    by_rate: each class's mean validation accuracy at each rate, (classes, rates), in percent.
    classes: a row a network class: its own rate, the lean (points per doubling of the rate) and what may explain them.
    explained: a row a quantity: rank correlations with the own rate and the lean, p-values adjusted for their number.
    rules: a row a rule for the rate: how it ranks classes that it was not fitted to, and the points of validation
    accuracy that it gains there over the best one rate for all.
    reliability: rank correlation that a perfect prediction of the own rate, or of the lean, would have with what was
    measured from so many seeds.
    """

    own: str
    control: str
    rankings: pd.DataFrame
    regret: pd.DataFrame
    curves: pd.DataFrame
    by_rate: Floats
    classes: pd.DataFrame
    explained: pd.DataFrame
    rules: pd.DataFrame
    reliability: dict[str, float]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        names = ("rankings", "regret", "curves", "classes", "explained", "rules")
        return {name: getattr(self, name) for name in names}


def own_recipe(settings: Settings) -> str | None:
    """The recipe with a rate for each network; None if there is none."""
    return next((name for name, recipe in settings.recipes.items() if isinstance(recipe.rate_policy, Own)), None)


def judge(frame: pd.DataFrame, own: str, settings: Settings, space: Space) -> OwnRates:
    """Compare all recipes with `own`.

    frame: records of the recipes and of own's search, with the columns of `RunRecord`. Recipes that do not have two
    classes in common with `own` are left out.
    """
    chosen = settings.analysis
    cells = set(frame.loc[frame["recipe"] == own, "cell"])
    shared = frame[frame["cell"].isin(cells)].groupby("recipe")["cell"].nunique()
    others = [name for name in settings.recipes if name != own and shared.get(name, 0) > 1]
    search = frame[frame["recipe"] == RateSearch(own, validated=True).recorded_as]
    grid = _validation_accuracies(search, 100 / settings.dataset.classes)
    classes = _classes(grid, frame[frame["recipe"] == chosen.control], settings, space)
    drawn = np.random.default_rng(chosen.seed).integers(0, len(classes), (chosen.bootstrap_draws, len(classes)))
    explained = _explained(classes, drawn)
    return OwnRates(
        own=own,
        control=chosen.control,
        rankings=_rankings(frame, own, others, chosen),
        regret=_regret(frame, own, others),
        curves=_curves(grid),
        by_rate=grid.accuracy.mean(2),
        classes=classes,
        explained=explained,
        rules=_rules(grid, classes, list(explained["quantity"]), chosen.seed),
        reliability={
            "own_rate": _reliability(np.log2(grid.rates)[grid.accuracy.argmax(1)]),
            "lean": _reliability(np.stack([_lean(grid.rates, seed) for seed in np.moveaxis(grid.accuracy, 2, 0)], 1)),
        },
    )


@dataclass(frozen=True)
class _Grid:
    """cells: (classes,). rates: (rates,), rising. accuracy: validation accuracy in percent, (classes, rates, seeds).
    shared: whether a seed's draws are the same for all classes."""

    cells: Integers
    rates: Floats
    accuracy: Floats
    shared: bool


def _validation_accuracies(search: pd.DataFrame, chance: float) -> _Grid:
    table = search.pivot_table(index="cell", columns=["learning_rate", "seed"], values="test_accuracy")
    whole = table.dropna().sort_index(axis=1)
    rates = np.unique(whole.columns.get_level_values(0))
    accuracy = whole.to_numpy().reshape(len(whole), len(rates), -1)
    shared = benchmark.seeding_of(search) == "shared"
    return _Grid(whole.index.to_numpy(), rates.astype(float), np.maximum(accuracy, chance), shared)


def _mean_interval(grid: _Grid, by_seed: Floats) -> tuple[float, float]:
    """The interval of the mean of values by class and seed of the search, (classes, seeds)."""
    return mean_interval(by_seed.mean(1), grid.cells, [by_seed] if grid.shared else [])


def _lean(rates: Floats, accuracy: Floats) -> Floats:
    """The slope of accuracy, (classes, rates), on log2 of the rate: positive where large rates do better."""
    x = np.log2(rates) - np.log2(rates).mean()
    slope: Floats = accuracy @ x / (x @ x)
    return slope


def _classes(grid: _Grid, stock: pd.DataFrame, settings: Settings, space: Space) -> pd.DataFrame:
    mean = grid.accuracy.mean(2)
    best = len(grid.rates) - 1 - mean[:, ::-1].argmax(1)  # of equal ones the largest rate, as in the search
    graphs = [space.graph_at(int(cell)) for cell in grid.cells]
    table = pd.DataFrame(
        {
            "cell": grid.cells,
            "arch": [space.arch_at(int(cell)) for cell in grid.cells],
            "own_rate": grid.rates[best],
            "at_edge": np.isin(best, (0, len(grid.rates) - 1)),
            "lean": _lean(grid.rates, mean),
        }
    )
    quantities = [_quantities(graph, settings, space) for graph in graphs]
    table = pd.concat([table, pd.DataFrame(quantities)], axis=1)
    measured = stock.groupby("cell")[["gradient_norm", "relative_gradient"]].mean().reindex(grid.cells)
    for name, column in zip(MEASURED, ("gradient_norm", "relative_gradient"), strict=True):
        table[name] = measured[column].to_numpy()
    return table


def _quantities(graph: CellGraph, settings: Settings, space: Space) -> dict[str, float]:
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
        "FLOPs": space.flops(graph, settings.network, settings.dataset),
    }


def _rankings(frame: pd.DataFrame, own: str, others: Sequence[str], chosen: AnalysisSettings) -> pd.DataFrame:
    right = benchmark.from_runs(frame[frame["recipe"] == own], own)
    tables, draws, sides = [], {}, {}
    for name in others:
        recipe = benchmark.from_runs(frame[frame["recipe"] == name], name)
        comparison = compare(right, recipe)
        sides[name] = comparison
        table = agreement(comparison, chosen.bootstrap_draws, chosen.seed)
        table = table[table["top_percent"].isin(TOP)].reset_index(drop=True)
        weights = bootstrap_weights(comparison.classes, chosen.bootstrap_draws, chosen.seed)
        draws[name] = bootstrap_taus(comparison.original.accuracy, comparison.retrained.accuracy, weights, TOP)
        again = _ceiling(comparison, noise_level(right), noise_level(recipe), chosen)
        table.insert(0, "recipe", name)
        table["tau_ceiling"] = np.nan if again is None else again.taus.mean(1)
        table["ceiling_low"], table["ceiling_high"] = (np.nan, np.nan) if again is None else middle(again.taus, axis=1)
        table["p_value"] = np.nan if again is None else again.p_values(table["kendall_tau"].to_numpy())
        tables.append(table)
    found = pd.concat(tables, ignore_index=True)
    found["p_holm"] = holm(found["p_value"].to_numpy())
    control = found[found["recipe"] == chosen.control].set_index("top_percent")["kendall_tau"]
    rows = [
        (tau - control.get(percent, np.nan), *_difference(draws, sides, name, percent, chosen.control, number))
        for name, percent, tau, number in found[["recipe", "top_percent", "kendall_tau", "cells"]].itertuples(
            index=False
        )
    ]
    found[["over_control", "over_control_low", "over_control_high"]] = rows
    return found.drop(columns=["spearman", "overlap", "ties"])


def _ceiling(
    comparison: Comparison, right: NoiseLevel | None, recipe: NoiseLevel | None, chosen: AnalysisSettings
) -> Ceiling | None:
    if right is None or recipe is None:
        return None
    return ceiling(comparison, right, recipe, draws=chosen.null_draws, seed=chosen.seed, percents=TOP)


def _difference(
    draws: Mapping[str, Floats],
    sides: Mapping[str, Comparison],
    recipe: str,
    percent: int,
    control: str,
    number: int,
) -> tuple[float, float]:
    """The interval of a recipe's tau less the control's, on the same resamples, with what `luck` adds."""
    if recipe == control or control not in draws:
        return np.nan, np.nan
    place, right = TOP.index(percent), sides[recipe].original
    resampled = draws[recipe][place] - draws[control][place]
    compared = (right, sides[recipe].retrained, sides[control].retrained)

    def differences(own: Floats, varied: Floats, fixed: Floats) -> Floats:
        return top_taus(own, varied, (percent,)) - top_taus(own, fixed, (percent,))

    excess = luck.excess_variance(
        [side.by_seed for side in compared],
        [side.seeds if side.shared else () for side in compared],
        sides[recipe].classes,
        differences,
    )
    return luck.widened(
        float(differences(*(side.accuracy for side in compared))[0]),
        bootstrap_interval(resampled, number),
        resampled,
        number,
        [(float(part[0]), free) for part, free in excess],
    )


def _regret(frame: pd.DataFrame, own: str, others: Sequence[str]) -> pd.DataFrame:
    right = benchmark.from_runs(frame[frame["recipe"] == own], own)
    gradients = frame[frame["cell"].isin(right.runs["index"])].groupby("recipe")["relative_gradient"].mean()
    rows = []
    for name in others:
        comparison = compare(right, benchmark.from_runs(frame[frame["recipe"] == name], name))
        regret = comparison.original.accuracy - comparison.retrained.accuracy
        shared = shared_parts([(1.0, comparison.original), (-1.0, comparison.retrained)])
        low, high = mean_interval(regret, comparison.classes, shared)
        spread = dict(zip((5, 25, 50, 75, 95), np.quantile(regret, [0.05, 0.25, 0.5, 0.75, 0.95]), strict=True))
        rows.append(
            {"recipe": name, "classes": len(regret), "mean_regret": regret.mean(), "regret_low": low}
            | {"regret_high": high, "share_better_at_own_rate": float((regret > 0).mean())}
            | {f"regret_{percent}_percent": value for percent, value in spread.items()}
            | {"relative_gradient": gradients[name]}
        )
    return pd.DataFrame(rows)


def _curves(grid: _Grid) -> pd.DataFrame:
    mean = grid.accuracy.mean(2)
    low, high = np.transpose([_mean_interval(grid, by_seed) for by_seed in np.moveaxis(grid.accuracy, 1, 0)])
    best = len(grid.rates) - 1 - mean[:, ::-1].argmax(1)
    return pd.DataFrame(
        {
            "learning_rate": grid.rates,
            "mean_accuracy": mean.mean(0),
            "accuracy_low": low,
            "accuracy_high": high,
            "share_best": np.bincount(best, minlength=len(grid.rates)) / len(best),
        }
    )


def _rank_correlation(x: Floats, y: Floats) -> Floats:
    """Spearman's correlation along the last axis; NaN where one side is constant."""
    ranks = [stats.rankdata(values, axis=-1) for values in (x, y)]
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    found: Floats = np.divide((a * b).sum(-1), scale, out=np.full(np.shape(scale), np.nan), where=scale > 0)
    return found


def _explained(classes: pd.DataFrame, drawn: NDArray[np.int64]) -> pd.DataFrame:
    quantities = [name for name in classes.columns[classes.columns.get_loc(PAPERS) :] if classes[name].notna().all()]
    rows = []
    for name in quantities:
        x = classes[name].to_numpy(dtype=float)
        row: dict[str, object] = {"quantity": name}
        for target in ("own_rate", "lean"):
            y = classes[target].to_numpy()
            low, high = bootstrap_interval(_rank_correlation(x[drawn], y[drawn]), len(classes))
            enough = len(classes) >= FEWEST and np.ptp(x) > 0 and np.ptp(y) > 0
            p_value = float(stats.spearmanr(x, y).pvalue) if enough else np.nan
            row |= {f"{target}_rho": float(_rank_correlation(x, y)), f"{target}_low": low, f"{target}_high": high}
            row[f"{target}_p"] = p_value
        rows.append(row)
    table = pd.DataFrame(rows)
    for target in ("own_rate", "lean"):
        table[f"{target}_p"] = holm(table[f"{target}_p"].to_numpy())
    return table


def _reliability(by_seed: Floats) -> float:
    """The rank correlation of a perfect prediction with the mean over seeds, from (classes, seeds)."""
    seeds = by_seed.shape[1]
    pairs = [float(_rank_correlation(by_seed[:, i], by_seed[:, j])) for i in range(seeds) for j in range(i)]
    single = float(np.mean(pairs)) if pairs else np.nan
    if not single > 0:
        return 0.0 if pairs else np.nan
    return float(np.sqrt(seeds * single / (1 + (seeds - 1) * single)))  # Spearman and Brown


def _accuracy_at(grid: _Grid, log_rates: Floats, classes: Integers) -> Floats:
    """Validation accuracy of these classes at log2 rates, interpolated; outside the grid, that of its end: (classes,
    seeds)."""
    x, accuracy = np.log2(grid.rates), grid.accuracy
    inside = np.clip(log_rates, x[0], x[-1])
    left = np.clip(np.searchsorted(x, inside) - 1, 0, len(x) - 2)
    share = ((inside - x[left]) / (x[left + 1] - x[left]))[:, None]
    found: Floats = (1 - share) * accuracy[classes, left] + share * accuracy[classes, left + 1]
    return found


def _rules(grid: _Grid, classes: pd.DataFrame, quantities: Sequence[str], seed: int) -> pd.DataFrame:
    """Rules of one line, log2 rate = a + b log2 quantity (of 1 + quantity, if it may be 0), each fitted on one half of
    the classes, at random, and judged on the other, both ways round. The paper's has b = 1, and only a is fitted.

    "best of all" picks the quantity that gains most on the half that it is fitted to. "own rate" is what each
    class's best rate gains, chosen with some of the seeds and judged with the others, which is less than the truth
    where the choice is noisy; "own rate in hindsight" judges the choice by the seeds that made it, which is more.
    """
    number = len(classes)
    order = np.random.default_rng(seed).permutation(number)
    halves = (np.sort(order[: number // 2]), np.sort(order[number // 2 :]))
    predicted: dict[str, Floats] = {name: np.full(number, np.nan) for name in (*quantities, BEST)}
    one_rate = np.full(number, np.nan)
    slopes: dict[str, list[float]] = {name: [] for name in predicted}
    picked = []
    for fitted, judged in (halves, halves[::-1]):
        one_rate[judged] = np.log2(grid.rates)[grid.accuracy[fitted].mean((0, 2)).argmax()]
        gains = {}
        for name in quantities:
            x = classes[name].to_numpy(dtype=float)
            x = np.log2(x) if (x > 0).all() else np.log2(1 + x)
            intercept, slope = _fit(grid, x, fitted, free=name != PAPERS)
            predicted[name][judged] = intercept + slope * x[judged]
            slopes[name].append(slope)
            gains[name] = float(_accuracy_at(grid, intercept + slope * x[fitted], fitted).mean())
        best = max((name for name in gains if name != PAPERS), key=lambda name: gains[name])
        picked.append(best)
        predicted[BEST][judged] = predicted[best][judged]
        slopes[BEST].append(slopes[best][-1])
    everyone = np.arange(number)
    reference = _accuracy_at(grid, one_rate, everyone)
    own = np.log2(classes["own_rate"].to_numpy())
    rows = []
    for name, rates in predicted.items():
        by_half = [_rank_correlation(rates[half], own[half]) for half in halves]
        gain = _accuracy_at(grid, rates, everyone) - reference
        rows.append(
            {"rule": name, "rho": float(np.mean(by_half)), "slope": float(np.mean(slopes[name]))}
            | _gained(grid, gain)
            | {"quantity": " and ".join(dict.fromkeys(picked)) if name == BEST else name}
        )
    mean = grid.accuracy.mean(2)
    best_of_class = np.take_along_axis(grid.accuracy, mean.argmax(1)[:, None, None], 1)[:, 0]
    hindsight = best_of_class - grid.accuracy[:, mean.mean(0).argmax()]
    for name, gain in ((OWN, _own_gain(grid)), (HINDSIGHT, hindsight)):
        rows.append({"rule": name, "rho": np.nan, "slope": np.nan} | _gained(grid, gain) | {"quantity": ""})
    return pd.DataFrame(rows)


SLOPES = np.linspace(-3, 3, 25)


def _fit(grid: _Grid, x: Floats, fitted: Integers, *, free: bool) -> tuple[float, float]:
    """Intercept and slope of the line of log2 rates that gives these classes the best mean accuracy."""
    centre = x[fitted].mean()
    levels = np.linspace(np.log2(grid.rates[0]), np.log2(grid.rates[-1]), 31)
    best = (-np.inf, 0.0, 0.0)
    for slope in SLOPES if free else (1.0,):
        for level in levels:
            accuracy = float(_accuracy_at(grid, level + slope * (x[fitted] - centre), fitted).mean())
            best = max(best, (accuracy, level - slope * centre, float(slope)))
    return best[1], best[2]


def _own_gain(grid: _Grid) -> Floats:
    """What each class gains at its own best rate over the best one rate for all, each chosen by some seeds and judged
    by the others: (classes, seeds that judge)."""
    seeds = grid.accuracy.shape[2]
    if seeds < 2:
        return np.full((len(grid.cells), seeds), np.nan)
    gains = []
    for seed in range(seeds):
        judged = grid.accuracy[:, :, seed]
        choosing = np.delete(grid.accuracy, seed, axis=2).mean(2)
        own = np.take_along_axis(judged, choosing.argmax(1)[:, None], 1)[:, 0]
        gains.append(own - judged[:, choosing.mean(0).argmax()])
    return np.stack(gains, axis=1)


def _gained(grid: _Grid, gain: Floats) -> dict[str, float]:
    low, high = _mean_interval(grid, gain)
    return {"gain": float(gain.mean()), "gain_low": low, "gain_high": high}
