"""Accuracies of the same networks, each trained at every one of several learning rates with every one of some seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_retrain.statistics.means import mean_interval
from nas_retrain.statistics.rankings import Floats, Integers


@dataclass(frozen=True)
class AccuracyGrid:
    """Accuracies in percent by network class, learning rate and seed.

    cells: (classes,), one cell of each. rates: (rates,), rising. valid, test: (classes, rates, seeds); rates are chosen
    by `valid` and judged by `test`, which are equal where a source has one accuracy only. shared: whether a seed's
    draws are the same for all classes (see `seeding`).
    """

    cells: Integers
    rates: Floats
    valid: Floats
    test: Floats
    shared: bool

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return int(self.valid.shape[2])

    @property
    def own(self) -> Integers:
        """The place of each class's own best rate by its mean validation accuracy, (classes,)."""
        return best_places(self.valid.mean(2))

    @property
    def one_rate(self) -> int:
        """The place of the rate that is best for all classes on average."""
        return int(best_places(self.valid.mean((0, 2))[None])[0])

    def mean_interval(self, by_seed: Floats) -> tuple[float, float]:
        """The interval of the mean of values by class and seed, (classes, seeds)."""
        return mean_interval(by_seed.mean(1), self.cells, [by_seed] if self.shared else [])


def best_places(accuracy: Floats) -> Integers:
    """The place of the best rate in each row of (classes, rates); of equal ones the largest rate, as in the search."""
    places: Integers = accuracy.shape[1] - 1 - accuracy[:, ::-1].argmax(1)
    return places


def lean(rates: Floats, accuracy: Floats) -> Floats:
    """The slope of accuracy, (classes, rates), on log2 of the rate: positive where large rates do better."""
    x = np.log2(rates) - np.log2(rates).mean()
    slope: Floats = accuracy @ x / (x @ x)
    return slope
