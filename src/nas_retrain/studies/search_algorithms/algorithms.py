"""Search algorithms replayed on a table of accuracies instead of trainings, many searches at once.

A search asks for one training after another and sees its accuracy; the cell with the highest accuracy seen so far is
its incumbent. Every training counts, that of a cell which comes up again too. All searches of an algorithm advance
together, each as a row of the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas_retrain.benches.registry import Bench
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import AlgorithmsSettings

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Space:
    """A search space: each of several edges takes one of equally many operations, and every combination is a cell.

    chosen: (cells, edges), the number of the operation on each edge; every combination once, in any order.
    """

    chosen: Integers
    operations: int

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return len(self.chosen)

    @property
    def edges(self) -> int:
        """How many edges a cell has."""
        return int(self.chosen.shape[1])

    @cached_property
    def _place_values(self) -> Integers:
        return self.operations ** np.arange(self.edges, dtype=np.int64)

    @cached_property
    def _cell_at(self) -> Integers:
        return np.argsort(self.chosen @ self._place_values)

    def find(self, chosen: Integers) -> Integers:
        """The cells that have these operations: (..., edges) to (...)."""
        cells: Integers = self._cell_at[chosen @ self._place_values]
        return cells

    @cached_property
    def neighbours(self) -> Integers:
        """The cells that differ in one edge: (cells, edges * (operations - 1))."""
        found = []
        for edge in range(self.edges):
            for shift in range(1, self.operations):
                other = self.chosen.copy()
                other[:, edge] = (other[:, edge] + shift) % self.operations
                found.append(self.find(other))
        return np.stack(found, axis=1)


def space_of(bench: Bench) -> Space:
    """A benchmark's cells by their numbers; raises NasRetrainError if they are not every combination of operations."""
    chosen = np.array([bench.chosen(cell) for cell in range(bench.size)], dtype=np.int64)
    operations = len(bench.drawing.options)
    if len(np.unique(chosen, axis=0)) < bench.size or bench.size != operations ** chosen.shape[1]:
        raise NasRetrainError(
            f"Searches need a benchmark whose cells are every combination of operations, which {bench.title} is not."
        )
    return Space(chosen, operations)


# Each algorithm takes `seen`, (searches, cells): the accuracy that a search sees if it trains a cell, in percent; and
# returns the cells that each search trained, in order: (searches, queries).
Algorithm = Callable[[Floats, Space, AlgorithmsSettings, np.random.Generator], Integers]


def random_search(seen: Floats, space: Space, settings: AlgorithmsSettings, generator: np.random.Generator) -> Integers:
    """Cells drawn independently, all equally likely."""
    return generator.integers(0, space.cells, (len(seen), settings.queries))


def regularised_evolution(
    seen: Floats, space: Space, settings: AlgorithmsSettings, generator: np.random.Generator
) -> Integers:
    """Regularised evolution (Real et al., AAAI 2019): the child of the best of a random tournament replaces the oldest.

    A child differs from its parent in one edge. The population is whatever was trained last.
    """
    search = np.arange(len(seen))
    queries = generator.integers(0, space.cells, (len(seen), settings.queries))
    for step in range(settings.population, settings.queries):
        entrant = generator.integers(step - settings.population, step, (len(seen), settings.tournament))
        cells = np.take_along_axis(queries, entrant, axis=1)
        parent = cells[search, seen[search[:, None], cells].argmax(1)]
        mutation = generator.integers(0, space.neighbours.shape[1], len(seen))
        queries[:, step] = space.neighbours[parent, mutation]
    return queries


def local_search(seen: Floats, space: Space, settings: AlgorithmsSettings, generator: np.random.Generator) -> Integers:
    """Hill climbing: untried neighbours in random order, moving to the first better one; from a random cell again
    when all neighbours were tried."""
    search = np.arange(len(seen))
    current = generator.integers(0, space.cells, len(seen))
    tried = np.zeros((len(seen), space.cells), dtype=bool)
    tried[search, current] = True
    queries = np.empty((len(seen), settings.queries), dtype=np.int64)
    queries[:, 0] = current
    for step in range(1, settings.queries):
        around = space.neighbours[current]
        untried = ~tried[search[:, None], around]
        stuck = ~untried.any(1)
        pick = np.where(untried, generator.random(around.shape), -1.0).argmax(1)
        query = np.where(stuck, generator.integers(0, space.cells, len(seen)), around[search, pick])
        moves = stuck | (seen[search, query] > seen[search, current])
        current = np.where(moves, query, current)
        tried[search, query] = True
        queries[:, step] = query
    return queries


def reinforce(seen: Floats, space: Space, settings: AlgorithmsSettings, generator: np.random.Generator) -> Integers:
    """REINFORCE (Williams, 1992): an independent categorical distribution on each edge, moved along the policy
    gradient of the accuracy in points above a running mean (decay 0.9)."""
    search, edge = np.arange(len(seen)), np.arange(space.edges)
    logits = np.zeros((len(seen), space.edges, space.operations))
    queries = np.empty((len(seen), settings.queries), dtype=np.int64)
    baseline = np.zeros(len(seen))
    for step in range(settings.queries):
        chosen = (logits + generator.gumbel(size=logits.shape)).argmax(2)
        queries[:, step] = space.find(chosen)
        reward = seen[search, queries[:, step]]
        baseline = 0.9 * baseline + 0.1 * reward if step else reward
        gradient = -np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
        gradient[search[:, None], edge, chosen] += 1
        logits += settings.learning_rate * (reward - baseline)[:, None, None] * gradient
        logits -= logits.max(2, keepdims=True)
    return queries


def tree_structured_parzen_estimator(
    seen: Floats, space: Space, settings: AlgorithmsSettings, generator: np.random.Generator
) -> Integers:
    """TPE (Bergstra et al., NeurIPS 2011), as in BOHB: of candidates drawn like the good cells seen, train the one
    that is likeliest among the good ones relative to the others.

    The good ones are the best `good_share` of what was trained. Edges are independent, and frequencies are smoothed
    as by `operation_frequencies`. Cells already trained are passed over while there are other candidates.
    """
    search, edge = np.arange(len(seen)), np.arange(space.edges)
    tally = np.zeros((len(seen), space.edges, space.operations))
    tried = np.zeros((len(seen), space.cells), dtype=bool)
    queries = generator.integers(0, space.cells, (len(seen), settings.queries))
    values = np.empty(queries.shape)
    for step in range(settings.queries):
        if step >= settings.startup:
            count = math.ceil(settings.good_share * step)
            best = np.argpartition(-values[:, :step], count - 1, axis=1)[:, :count]
            good = operation_counts(np.take_along_axis(queries, best, axis=1), space)
            likely, unlikely = operation_frequencies(good), operation_frequencies(tally - good)
            levels = generator.random((len(seen), settings.candidates, space.edges))
            chosen = np.zeros(levels.shape, dtype=np.int64)
            for bound in np.moveaxis(likely.cumsum(2)[..., :-1], 2, 0):
                chosen += levels > bound[:, None]
            cells = space.find(chosen)
            score = np.log(likely / unlikely).ravel()[_places(likely) + chosen].sum(2)
            score[tried[search[:, None], cells]] = -np.inf
            queries[:, step] = cells[search, score.argmax(1)]
        query = queries[:, step]
        values[:, step] = seen[search, query]
        tried[search, query] = True
        tally[search[:, None], edge, space.chosen[query]] += 1
    return queries


def operation_counts(cells: Integers, space: Space) -> Floats:
    """How often each operation is on each edge: (searches, cells) to (searches, edges, operations)."""
    counts = np.zeros((len(cells), space.edges, space.operations))
    place = (_places(counts) + space.chosen[cells]).ravel()
    return np.bincount(place, minlength=counts.size).reshape(counts.shape).astype(np.float64)


def _places(table: Floats) -> Integers:
    """Where each search's row of operations starts in the flat table: (searches, 1, edges)."""
    searches, edges, operations = table.shape
    return np.arange(0, table.size, operations).reshape(searches, 1, edges)


def operation_frequencies(counts: Floats) -> Floats:
    """Frequencies of operations, as if each had been seen once more (Laplace's rule); the shape is kept."""
    smoothed: Floats = (counts + 1) / (counts + 1).sum(-1, keepdims=True)
    return smoothed


ALGORITHMS: dict[str, Algorithm] = {
    "random search": random_search,
    "regularised evolution": regularised_evolution,
    "local search": local_search,
    "REINFORCE": reinforce,
    "TPE": tree_structured_parzen_estimator,
}


def incumbents(queries: Integers, seen: Floats) -> Integers:
    """The cell with the highest accuracy seen up to each query, the first of equal ones: (searches, queries)."""
    values = np.take_along_axis(seen, queries, axis=1)
    before = np.maximum.accumulate(values, axis=1)[:, :-1]
    better = np.concatenate([np.ones((len(queries), 1), dtype=bool), values[:, 1:] > before], axis=1)
    place = np.maximum.accumulate(np.where(better, np.arange(queries.shape[1]), 0), axis=1)
    return np.take_along_axis(queries, place, axis=1)
