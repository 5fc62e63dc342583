"""Intervals of means over network classes, which count what all classes have in common: the luck of their seeds.

Where trainings of different networks share the draws of a seed (see `seeding`), their errors share a part, and a mean
over however many classes still holds the mean of a few seeds' luck. Then seeds are crossed with classes, as in a
two-way random-effects layout: the value of class c with seed s is m + a_c + b_s + e_cs. The mean over C classes and S
seeds has the variance

    V = V_1 + V_2 = (variance of the classes' means over seeds) / C + (variance of b) / S.

The first part holds a and e, and is estimated from how the classes' means differ. The second one is estimated from how
the means of the single seeds differ, less what e gives to that; where nothing is left, it is 0. The interval is
Student's with Satterthwaite's degrees of freedom, V^2 / (V_1^2 / (C - 1) + V_2^2 / (S - 1)), so that two or three seeds
make it wide. Under this model it holds the truth in 90 to 97 % of cases with three seeds or more, and in at least 86 %
with two (the tests simulate it). Where each class has draws of its own, there is no second part.

Rankings: b moves no rank, so Kendall's tau does not see it. What a seed does to each network differently is independent
between classes, and resampling classes counts it. What is left, luck that favours a kind of network, is in `luck`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy

from nas_retrain.statistics.rankings import FEWEST, LEVEL, Floats, Integers


def mean_interval(values: Floats, classes: Integers, shared: Sequence[Floats] = ()) -> tuple[float, float]:
    """The 95 % interval of the mean of `values`; NaN for fewer than `rankings.FEWEST` classes.

    values: (cells,). classes: (cells,); cells of one class share results, so they are counted as one cluster. shared:
    tables (cells, seeds) of the parts of the values whose seeds are shared by all cells, NaN where there is no
    training; independent of each other. A part from which the seeds' luck cannot be estimated (see `countable`) is
    left out.
    """
    number = len(np.unique(classes))
    if number < FEWEST:
        return float("nan"), float("nan")
    variances, degrees = [_variance_of_mean(values, classes)], [number - 1]
    for table in shared:
        if countable(table):
            variances.append(_seed_variance(table, classes))
            degrees.append(table.shape[1] - 1)
    total = sum(variances)
    spread = sum(variance**2 / freedom for variance, freedom in zip(variances, degrees, strict=True))
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, total**2 / spread)) * total**0.5 if spread else 0.0
    mean = float(values.mean())
    return mean - half, mean + half


def countable(table: Floats) -> bool:
    """Whether the luck of shared seeds can be estimated from trainings, (cells, seeds): this takes two seeds,
    and enough cells that have them all."""
    return table.shape[1] > 1 and int(np.isfinite(table).all(1).sum()) >= FEWEST


def _variance_of_mean(values: Floats, classes: Integers) -> float:
    """Of the mean over cells, with classes as clusters."""
    numbers = np.unique(classes, return_inverse=True)[1]
    sums = np.bincount(numbers, values - values.mean())
    return float((sums**2).sum()) / len(values) ** 2 * len(sums) / (len(sums) - 1)


def _seed_variance(table: Floats, classes: Integers) -> float:
    """The part of the variance of the table's mean that all cells have in common.

    The seeds' variance comes from the cells that have every seed. Where cells lack some, a seed counts in the mean by
    its share of the trainings.
    """
    there = np.isfinite(table)
    whole = there.all(1)
    complete, clusters = table[whole], classes[whole]
    of_seeds = complete.mean(0)
    errors = complete - complete.mean(1, keepdims=True) - of_seeds + complete.mean()
    seeds: int = table.shape[1]
    of_errors = sum(_variance_of_mean(column, clusters) for column in errors.T) / (seeds - 1)
    any_there = there[there.any(1)]
    shares = (any_there / any_there.sum(1, keepdims=True)).mean(0)
    variance = max(0.0, float(of_seeds.var(ddof=1)) - float(of_errors))
    return variance * float(shares @ shares)


def reliability_of_mean(correlation: float, number: int) -> float:
    """The reliability of the mean of so many measurements of which any two correlate by this much: the share of its
    variance that is not noise (Spearman and Brown, 1910)."""
    return number * correlation / (1 + (number - 1) * correlation)
