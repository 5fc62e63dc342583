"""How far two rankings of the same cells agree: Kendall's tau among the top K percent, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from nas_retrain.benches.registry import Bench
from nas_retrain.errors import NasRetrainError
from nas_retrain.statistics import luck
from nas_retrain.statistics.accuracies import Accuracies, per_cell

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOP_PERCENTS = (100, 90, 80, 70, 60, 50, 40, 30, 20, 10, 5, 1)
"""The K of the paper's figure 4."""

LEVEL = 0.95

FEWEST = 8
"""The fewest network classes that get an interval. Resamples of fewer are few and alike: where rankings agree well, the
percentile interval of Kendall's tau covers the truth in 87 % of cases with six classes, 77 % with five and 33 % with
three, where it can shrink to a point, but in 95 % with eight (the tests simulate it)."""

_BLOCK = 512


@dataclass(frozen=True)
class Side:
    """One set of accuracies, aligned with the cells of a comparison.

    accuracy: mean over the cell's trainings, percent. trainings: how many there are. unit: cells with the same
    number share one result, so they share its noise. by_seed: each training, (cells, seeds), NaN where there is none.
    seeds: what its columns are. shared: whether a seed's draws are the same for all cells (see `seeding`).
    """

    name: str
    accuracy: Floats
    trainings: Integers
    unit: Integers
    by_seed: Floats
    seeds: tuple[int, ...]
    shared: bool


@dataclass(frozen=True)
class Comparison:
    """Two sets of accuracies of the same cells.

    bench: whose cells they are. cells: their numbers, rising. classes: of each cell, see `common_classes`; cells of
    different ones share nothing. first, second: the sides; of a recipe and its control, the control is the first.
    """

    bench: Bench
    cells: Integers
    classes: Integers
    first: Side
    second: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both, in their order."""
        return self.first, self.second

    def __len__(self) -> int:
        return len(self.cells)


def compare(first: Accuracies, second: Accuracies) -> Comparison:
    """Put two sources side by side, on the cells that both have; raises NasRetrainError if there are fewer than two.

    A class's result stands for every member, by its side's own classes, as a published benchmark lists all cells.
    Where both sides hold results of classes, one cell stands for all that share the results of both.
    """
    cells, sides = align(first, second)
    if len(cells) < 2:
        raise NasRetrainError(
            f"{first.name} and {second.name} have {len(cells)} cell(s) in common; a comparison needs two."
        )
    return Comparison(first.bench, cells, common_classes(first, second)[cells], *sides)


def align(*sources: Accuracies) -> tuple[Integers, list[Side]]:
    """The official indices, rising, of the cells that all sources have, and the sources on these cells.

    Where all hold results of classes, only the first of the cells that share the results of all. Raises NasRetrainError
    if they are of different benchmarks.
    """
    if len({source.bench.name for source in sources}) > 1:
        of = ", ".join(f"{source.name} of {source.bench.title}" for source in sources)
        raise NasRetrainError(f"Cells of different benchmarks cannot be compared: {of}.")
    tables = [per_cell(source) for source in sources]
    cells = sorted(set.intersection(*(set(table.index) for table in tables)))
    if all(source.per_class for source in sources):
        units = pd.DataFrame({place: table.loc[cells, "unit"] for place, table in enumerate(tables)})
        cells = list(units.index[~units.duplicated()])
    chosen = np.array(cells, dtype=np.int64)
    return chosen, [on_cells(source, chosen) for source in sources]


def shared_parts(addends: Iterable[tuple[float, Side]]) -> list[Floats]:
    """The tables of shared seeds, as `means.mean_interval` takes them, of a signed sum of sides on the same cells.

    Sides with the same seeds make one table, since they may share draws, and luck that all of them have then falls out
    of a difference; every other set of seeds makes one more.
    """
    tables: dict[tuple[int, ...], Floats] = {}
    for sign, side in addends:
        if side.shared:
            tables[side.seeds] = tables.get(side.seeds, 0.0) + sign * side.by_seed
    return list(tables.values())


def common_classes(*sources: Accuracies) -> Integers:
    """For every cell of the benchmark, the class within which sources may share results: their own classes if these
    are the same, else the network classes, of which all others are parts."""
    maps = {source.classes for source in sources}
    return np.array(maps.pop() if len(maps) == 1 else sources[0].bench.training_classes(None))


def on_cells(accuracies: Accuracies, cells: Integers) -> Side:
    """A source on cells, official indices, all of which it has."""
    rows = per_cell(accuracies).loc[cells]
    unit = np.unique(rows["unit"].to_numpy(), return_inverse=True)[1]
    runs = accuracies.runs.assign(result=accuracies.results)
    by_seed = runs.pivot_table(index="result", columns="seed", values="accuracy")
    results = np.array(accuracies.classes)[cells] if accuracies.per_class else cells
    return Side(
        accuracies.name,
        rows["accuracy"].to_numpy(),
        rows["trainings"].to_numpy(),
        unit.astype(np.int64),
        by_seed.loc[results].to_numpy(),
        tuple(int(seed) for seed in by_seed.columns),
        accuracies.seeding == "shared",
    )


def top_counts(accuracy: Floats, percents: tuple[int, ...] = TOP_PERCENTS) -> dict[int, int]:
    """How many cells the top K percent are: the nearest whole number, and every cell that ties with the last one."""
    falling = -np.sort(-accuracy)
    counts = {}
    for percent in percents:
        last = max(1, round(len(falling) * percent / 100)) - 1
        counts[percent] = int(np.searchsorted(-falling, -falling[last], side="right"))
    return counts


def kendall_tau(x: Floats, y: Floats) -> float:
    """Kendall's tau-b; NaN for fewer than two cells and where one side is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(scipy.stats.kendalltau(x, y).statistic)


def top_taus(ranked: Floats, other: Floats, percents: tuple[int, ...] = TOP_PERCENTS) -> Floats:
    """Kendall's tau-b among the top K percent by `ranked`, for each K; NaN as in `kendall_tau`.

    The top are the first of one order, so one count of the pairs before each cell serves all K: O(cells^(4/3)).
    """
    order = np.lexsort((-other, -ranked))  # so that pairs tied by `ranked` are not discordant
    x, y = ranked[order], other[order]
    new_x, new_y = np.diff(x, prepend=np.inf) != 0, np.diff(y, prepend=np.inf) != 0
    by_y = np.argsort(y, kind="stable")
    tied_y = np.empty(len(y), dtype=np.int64)
    tied_y[by_y] = _since(np.diff(y[by_y], prepend=-np.inf) != 0)
    tied_x, tied_y, both = (np.cumsum(pairs) for pairs in (_since(new_x), tied_y, _since(new_x | new_y)))
    discordant = np.cumsum(_lower_before(y))
    last = np.array(list(top_counts(ranked, percents).values())) - 1
    pairs = last * (last + 1) / 2
    excess = pairs - tied_x[last] - tied_y[last] + both[last] - 2 * discordant[last]
    scale = np.sqrt((pairs - tied_x[last]) * (pairs - tied_y[last]))
    taus: Floats = np.divide(excess, scale, out=np.full(len(last), np.nan), where=scale > 0)
    return taus


def _lower_before(values: Floats) -> Integers:
    """How many of the values before each one are lower.

    Both places and ranks are cut into blocks. Whole blocks are counted from a table of blocks, and what shares a block
    with the value, by place or by rank, one by one. Blocks of about the number's cube root balance the two.
    """
    number = len(values)
    block = min(round(1.3 * number ** (1 / 3)) + 1, 255)
    blocks = -(-number // block)
    rank = np.arange(blocks * block, dtype=np.int32)  # what fills up the last block comes last and is highest
    rank[number - 1 - np.argsort(values[::-1], kind="stable")] = np.arange(number)  # of equal values the last is lowest
    place = np.argsort(rank).astype(np.int32)
    earlier = np.tri(block, k=-1, dtype=bool)

    def within(table: NDArray[np.int32]) -> Integers:
        lower = (table[:, None, :] < table[:, :, None]) & earlier
        counts: Integers = lower.view(np.uint8).sum(axis=2, dtype=np.uint8).astype(np.int64)  # a block is below 256
        return counts.ravel()

    by_place, by_rank = within(rank.reshape(blocks, block)), within((place // block).reshape(blocks, block))
    places, ranks = np.arange(blocks * block) // block, rank // block
    table = np.zeros((blocks + 1, blocks + 1), dtype=np.int64)
    table[1:, 1:] = np.bincount(places * blocks + ranks, minlength=blocks**2).reshape(blocks, blocks)
    lower: Integers = by_place + by_rank[rank] + table.cumsum(0).cumsum(1)[places, ranks]
    return lower[:number]


def _since(starts: NDArray[np.bool_]) -> Integers:
    """How far each place is from the last start, itself or before it."""
    places = np.arange(len(starts))
    found: Integers = places - np.maximum.accumulate(np.where(starts, places, 0))
    return found


def bootstrap_weights(classes: Integers, draws: int, seed: int) -> NDArray[np.float32]:
    """How often each cell is in each resample of the network classes: shape (cells, draws).

    Classes are drawn, not cells, since members of one class are the same network.
    """
    numbers = np.unique(classes, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    generator = np.random.default_rng(seed)
    weights = np.empty((count, draws), dtype=np.float32)
    for draw in range(draws):
        weights[:, draw] = np.bincount(generator.integers(0, count, count), minlength=count)
    return weights[numbers]


def bootstrap_taus(
    ranked: Floats, other: Floats, weights: NDArray[np.float32], percents: tuple[int, ...] = TOP_PERCENTS
) -> Floats:
    """Kendall's tau-b of every resample, for each K: shape (len(percents), draws); NaN where it is undefined.

    The top K percent are those of the whole set, resampled. A resample's tau is a quadratic form in its weights, so
    all resamples and all K come from one pass over the pairs of cells, sorted by `ranked`: O(cells^2 draws), as
    matrix products. A cell drawn twice is tied with itself in both rankings, which tau-b leaves out.
    """
    order = np.argsort(-ranked, kind="stable")
    x, y, weights = ranked[order], other[order], weights[order]
    counts = top_counts(ranked, percents)
    concordance = np.zeros(weights.shape[1])
    taus: dict[int, Floats] = {}
    first = 0
    for stop in sorted(set(counts.values())):
        while first < stop:
            end = min(first + _BLOCK, stop)
            signs = np.sign(x[first:end, None] - x[None, :end]).astype(np.float32)
            signs *= np.sign(y[first:end, None] - y[None, :end]).astype(np.float32)
            signs *= np.arange(end)[None, :] < np.arange(first, end)[:, None]  # each pair once
            concordance += np.einsum("id,id->d", signs @ weights[:end], weights[first:end], dtype=np.float64)
            first = end
        scale = np.sqrt(_untied(x[:stop], weights[:stop]) * _untied(y[:stop], weights[:stop]))
        taus[stop] = np.divide(concordance, scale, out=np.full(len(scale), np.nan), where=scale > 0)
    return np.array([taus[counts[percent]] for percent in percents])


def _untied(values: Floats, weights: NDArray[np.float32]) -> Floats:
    """The number of pairs with different values in each resample."""
    order = np.argsort(values, kind="stable")
    groups = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    sizes = np.add.reduceat(weights[order], groups, axis=0).astype(np.float64)
    untied: Floats = (sizes.sum(0) ** 2 - (sizes**2).sum(0)) / 2
    return untied


def interval(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of bootstrap draws; NaN where fewer than half of them are defined."""
    defined = draws[np.isfinite(draws)]
    if len(defined) == 0 or 2 * len(defined) < len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(draws: Floats, classes: int) -> tuple[float, float]:
    """`interval` of resamples of so many network classes; NaN if these are fewer than `FEWEST`."""
    return interval(draws) if classes >= FEWEST else (float("nan"), float("nan"))


def tau_interval(tau: float, draws: Floats, classes: int, excess: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The interval of a tau from resamples of so many classes, widened for shared seeds (see `luck`)."""
    ends = bootstrap_interval(draws, classes)
    low, high = luck.widened(tau, ends, draws, classes, excess)
    return max(low, -1.0), min(high, 1.0)


def tau_excess(ranked: Side, other: Side, classes: Integers, percents: tuple[int, ...]) -> list[tuple[Floats, int]]:
    """The variance of `top_taus` that comes from shared seeds, see `luck.excess_variance`."""
    sides = (ranked, other)
    return luck.excess_variance(
        [side.by_seed for side in sides],
        [side.seeds if side.shared else () for side in sides],
        classes,
        lambda x, y: top_taus(x, y, percents),
    )


def middle(draws: Floats, axis: int) -> Floats:
    """The ends of the middle 95 % of draws along an axis: (2, ...), without that axis."""
    ends: Floats = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=axis)
    return ends


def agreement(comparison: Comparison, draws: int, seed: int, by: Literal["first", "second"] = "first") -> pd.DataFrame:
    """One row a K: top_percent, cells, kendall_tau with its interval (of `FEWEST` classes or more), spearman,
    overlap and ties.

    by: which side's ranking says what the top K percent are. overlap: the share of them that are also among the
    other side's top cells of the same number. ties: the share of pairs among them that are tied on either side.
    """
    sides = comparison.sides
    ranked, other = sides if by == "first" else sides[::-1]
    x, y = ranked.accuracy, other.accuracy
    taus = bootstrap_taus(x, y, bootstrap_weights(comparison.classes, draws, seed))
    excess = tau_excess(ranked, other, comparison.classes, TOP_PERCENTS)
    order, rows = np.argsort(-x, kind="stable"), []
    for place, (percent, count) in enumerate(top_counts(x).items()):
        top, resampled = order[:count], taus[place]
        tau = kendall_tau(x[top], y[top])
        low, high = tau_interval(
            tau, resampled, len(np.unique(comparison.classes[top])), [(part[place], free) for part, free in excess]
        )
        rows.append(
            {
                "top_percent": percent,
                "cells": count,
                "kendall_tau": tau,
                "tau_low": low,
                "tau_high": high,
                "spearman": _spearman(x[top], y[top]),
                "overlap": float(np.isin(top, np.argsort(-y, kind="stable")[:count]).mean()),
                "ties": _tied_share(x[top], y[top]),
            }
        )
    return pd.DataFrame(rows)


def rank_correlation(x: Floats, y: Floats) -> Floats:
    """Spearman's correlation along the last axis; NaN where one side is constant."""
    ranks = [scipy.stats.rankdata(values, axis=-1) for values in (x, y)]
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    found: Floats = np.divide((a * b).sum(-1), scale, out=np.full(np.shape(scale), np.nan), where=scale > 0)
    return found


def _spearman(x: Floats, y: Floats) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(x, y).statistic)


def _tied_share(x: Floats, y: Floats) -> float:
    def pairs(*values: Floats) -> float:
        sizes = np.unique(np.column_stack(values), axis=0, return_counts=True)[1]
        return float((sizes * (sizes - 1) / 2).sum())

    everything = len(x) * (len(x) - 1) / 2
    return (pairs(x) + pairs(y) - pairs(x, y)) / everything if everything else 0.0
