"""Searches of a pair of tables, judged by the table searched and by the other one; and of tables drawn again.

The tables drawn again follow the null hypothesis of `statistics.noise`: the cells have one true ranking, and only the
noise of training differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import AlgorithmsSettings
from nas_retrain.statistics.accuracies import Accuracies, per_cell
from nas_retrain.statistics.noise import NoiseLevel, retrainings
from nas_retrain.statistics.rankings import Comparison, Floats, Integers, common_classes, kendall_tau, on_cells
from nas_retrain.studies.search_algorithms import asked
from nas_retrain.studies.search_algorithms.algorithms import ALGORITHMS, Algorithm, Space, incumbents

MEASURES = ("final", "anytime")
"""A search's regret after its last training, and the mean of its regrets after each."""


def algorithms(settings: AlgorithmsSettings) -> dict[str, Algorithm]:
    """Those that are replayed, by their names: ours and, after them, those that the settings add.

    Raises NasRetrainError for one that cannot be found and for a name that comes up twice.
    """
    others = {asked.label(name): asked.algorithm(name) for name in settings.others}
    if len(others) < len(settings.others) or others.keys() & ALGORITHMS.keys():
        raise NasRetrainError(f"{asked.KEY}: two algorithms are called the same: {', '.join([*ALGORITHMS, *others])}.")
    return ALGORITHMS | others


@dataclass(frozen=True)
class Table:
    """What searches see and are judged by, in percent.

    accuracy: (cells,), mean over a cell's trainings. trainings: (cells, most), each one, filled up with NaN at the end.
    """

    accuracy: Floats
    trainings: Floats

    def seen(self, searches: int, generator: np.random.Generator) -> Floats:
        """What each search sees of each cell, (searches, cells): one of its trainings, all equally likely."""
        cells, most = self.trainings.shape
        if most == 1:
            return np.broadcast_to(self.accuracy, (searches, cells))
        count = np.isfinite(self.trainings).sum(1)
        seen: Floats = self.trainings[np.arange(cells), generator.integers(0, count, (searches, cells))]
        return seen

    def drawn_again(self, accuracy: Floats) -> Table:
        """A table with other means, whose trainings scatter about them as these do."""
        return Table(accuracy, self.trainings + (accuracy - self.accuracy)[:, None])


def table(accuracies: Accuracies) -> Table:
    """The accuracies by official index; raises NasRetrainError if a cell has none."""
    cells, there = accuracies.bench.size, len(per_cell(accuracies))
    if there < cells:
        raise NasRetrainError(
            f"{accuracies.name} has {there:,} of the {cells:,} cells, and a search may ask for any. Finish the "
            "retraining first, or give a table that has them all."
        )
    runs = accuracies.runs.assign(result=accuracies.results)
    runs["number"] = runs.groupby("result").cumcount()
    trainings = runs.set_index(["result", "number"])["accuracy"].unstack()
    if accuracies.per_class:
        trainings = trainings.loc[list(accuracies.classes)]
    values = trainings.to_numpy()
    return Table(np.nanmean(values, axis=1), values)


def play(table: Table, space: Space, settings: AlgorithmsSettings, generator: np.random.Generator) -> Integers:
    """Let every algorithm search a table: the incumbents, (algorithms, searches, queries)."""
    found, replayed = [], algorithms(settings)
    for algorithm, stream in zip(replayed.values(), generator.spawn(len(replayed)), strict=True):
        seen = table.seen(settings.searches, stream)
        found.append(incumbents(algorithm(seen, space, settings, stream), seen))
    return np.stack(found)


def play_both(
    tables: tuple[Table, Table], space: Space, settings: AlgorithmsSettings, generator: np.random.Generator
) -> tuple[Integers, Integers]:
    """`play` on each of two tables, with random numbers of its own."""
    one, other = generator.spawn(2)
    return play(tables[0], space, settings, one), play(tables[1], space, settings, other)


def regrets(cells: Integers, judge: Table) -> Floats:
    """How far cells are below the best one of the table that judges them, in points; the shape is kept."""
    below: Floats = judge.accuracy.max() - judge.accuracy[cells]
    return below


@dataclass(frozen=True)
class Outcome:
    """What the searches of a pair of tables came to: regrets in points.

    own: (measures, tables, algorithms, searches), judged by the table that was searched. other: (tables, algorithms,
    searches), the final cells judged by the other table. best: (tables,), the best cell of a table judged by the
    other one.
    """

    own: Floats
    other: Floats
    best: Floats

    @property
    def mean(self) -> Floats:
        """Mean regret: (measures, tables, algorithms)."""
        mean: Floats = self.own.mean(-1)
        return mean

    @property
    def tau(self) -> Floats:
        """Kendall's tau-b between the tables' rankings of the algorithms by mean regret: (measures,)."""
        return np.array([kendall_tau(one, other) for one, other in self.mean])

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every two algorithms by their places, the earlier one first."""
        return list(itertools.combinations(range(self.own.shape[2]), 2))

    @property
    def superiority(self) -> Floats:
        """How likely the first of two algorithms comes out better, a draw counting half: (measures, tables, pairs).

        How far apart accuracies are has no part in it, so that it can be compared between tables of different spread.
        """
        first, second = (self.own[:, :, [pair[end] for pair in self.pairs]] for end in (0, 1))
        wins = np.sign(second[..., None, :] - first[..., :, None]).mean((-2, -1))
        likely: Floats = (1 + wins) / 2
        return likely

    @property
    def change(self) -> Floats:
        """Superiority on the second table less that on the first: (measures, pairs)."""
        first, second = self.superiority.swapaxes(0, 1)
        difference: Floats = second - first
        return difference

    @property
    def cost(self) -> Floats:
        """What it costs to search a table and be judged by the other one, rather than to search that one: points,
        (tables, algorithms and, last, the choice of the best of all cells)."""
        searched = self.other.mean(-1) - self.mean[0, ::-1]
        return np.column_stack([searched, self.best])


def outcome(tables: tuple[Table, Table], found: tuple[Integers, Integers]) -> Outcome:
    """Judge the incumbents that `play` found on each of two tables."""
    own = [regrets(cells, table) for cells, table in zip(found, tables, strict=True)]
    others = tables[::-1]
    return Outcome(
        own=np.stack([np.stack([regret[..., -1], regret.mean(-1)]) for regret in own], axis=1),
        other=np.stack([regrets(cells[..., -1], judge) for cells, judge in zip(found, others, strict=True)]),
        best=np.stack(
            [regrets(np.array(table.accuracy.argmax()), judge) for table, judge in zip(tables, others, strict=True)]
        ),
    )


def training_again(
    accuracies: tuple[Accuracies, Accuracies],
    noise: tuple[NoiseLevel, NoiseLevel],
    space: Space,
    settings: AlgorithmsSettings,
    generator: np.random.Generator,
) -> Iterator[Outcome]:
    """Outcomes on `null_draws` pairs of tables that share one true ranking; each cell keeps its number of trainings."""
    tables = table(accuracies[0]), table(accuracies[1])
    sides = [on_cells(one, np.arange(space.cells)) for one in accuracies]
    comparison = Comparison(accuracies[0].bench, np.arange(space.cells), common_classes(*accuracies), *sides)
    samples = retrainings(comparison, *noise, settings.null_draws, settings.seed)
    for sample, stream in zip(samples, generator.spawn(settings.null_draws), strict=True):
        again = tables[0].drawn_again(sample.first), tables[1].drawn_again(sample.second)
        yield outcome(again, play_both(again, space, settings, stream))
