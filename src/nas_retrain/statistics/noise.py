"""The noise ceiling: how far rankings agree when the networks are merely trained again.

Cells of one network class are the same network, so trainings of one class, be they seeds or members, are replicates,
and show how much one training scatters at each level of accuracy. With that, each side's distribution of true
accuracies is estimated (the observed one with the noise taken out), and both sides are drawn anew under the null
hypothesis that they share one true ranking. The tau of such draws is the ceiling; a tau below nearly all of them is
a change of ranking that training again does not explain.

Like is compared with like: each cell keeps its number of trainings, and cells that share a result share its noise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray
from tqdm import tqdm

from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.statistics.rankings import TOP_PERCENTS, Comparison, Floats, Integers, Side, top_taus

BIN_REPLICATES = 30
"""Degrees of freedom that a level of accuracy must have for a variance of its own."""

MOST_BINS = 20
GRID = 1000
"""Points of the grid on which a distribution of true accuracies is estimated."""

AGAIN, SHOWN = 50, 300
"""How many draws are used for a side's agreement with its own repetition, and for the moves and the selection. These
are only shown, and nothing is tested against them, so more draws would only cost time."""

SHAPES = 5
"""Polynomials by which a distribution of true accuracies may depart from the first guess, whose spread is right."""

PENALTY = 0.05
"""On their squared coefficients, against the logarithm of the likelihood: it only keeps them finite."""


@dataclass(frozen=True)
class NoiseLevel:
    """The variance of one training's accuracy at several levels of accuracy (rising), in points squared.

    degrees: degrees of freedom behind each variance. classes: network classes with replicates.
    """

    accuracy: Floats
    variance: Floats
    degrees: Integers
    classes: int

    def at(self, accuracy: Floats) -> Floats:
        """The variance at these accuracies, interpolated between levels and constant beyond them."""
        return np.interp(accuracy, self.accuracy, self.variance)

    @property
    def deviation(self) -> float:
        """The pooled standard deviation of one training, in points."""
        return float(np.sqrt(np.average(self.variance, weights=self.degrees)))


def noise_level(accuracies: Accuracies) -> NoiseLevel | None:
    """Estimate the noise from trainings of one class, by the accuracies' own; None if no class was trained twice.

    Replicates that all agree to the last digit are copies of one result, not trainings, and say nothing about noise.
    The cells without a path are left out: they are not trained, so chance is all that they show.
    """
    replicates = accuracies.runs[np.array(accuracies.bench.connected)[accuracies.runs["index"]]]
    classes = np.array(accuracies.classes)[replicates["index"]]
    grouped = replicates.groupby(classes)["accuracy"]
    table = pd.DataFrame({"mean": grouped.mean(), "degrees": grouped.size() - 1})
    table["squares"] = grouped.var() * table["degrees"]
    table = table[table["degrees"] > 0].sort_values("mean")
    if not table["squares"].any():
        return None
    total = int(table["degrees"].sum())
    bins = int(np.clip(total // BIN_REPLICATES, 1, MOST_BINS))
    place = np.minimum((table["degrees"].cumsum() - 1) * bins // total, bins - 1)
    pooled = (
        table.assign(weighted=table["mean"] * table["degrees"]).groupby(place)[["degrees", "squares", "weighted"]].sum()
    )
    return NoiseLevel(
        accuracy=(pooled["weighted"] / pooled["degrees"]).to_numpy(),
        variance=(pooled["squares"] / pooled["degrees"]).to_numpy(),
        degrees=pooled["degrees"].to_numpy(),
        classes=len(table),
    )


@dataclass(frozen=True)
class TrueAccuracies:
    """What one side's network classes may truly reach: a distribution on a grid, and each class's posterior on it.

    grid: (points,), rising. level: (points,), the share of classes truly below each point. posterior: cumulative
    over the grid, (classes, points).
    """

    grid: Floats
    level: Floats
    posterior: Floats

    def draw(self, generator: np.random.Generator) -> Floats:
        """One true accuracy for each class, anywhere between the grid's points."""
        count = len(self.posterior)
        point = np.minimum(_places(self.posterior, generator.random(count)), len(self.grid) - 1)
        width = np.gradient(self.grid)
        drawn: Floats = self.grid[point] + generator.uniform(-0.5, 0.5, count) * width[point]
        return drawn


def _places(rising: Floats, values: Floats) -> Integers:
    """For each row, (rows, points), how many of its points are below the row's value, (rows,), by bisection."""
    rows, points = rising.shape
    row, below = np.arange(rows), np.zeros(rows, dtype=np.int64)
    for step in 2 ** np.arange(points.bit_length())[::-1]:
        probe = below + step
        further = (probe <= points) & (rising[row, np.minimum(probe, points) - 1] < values)
        below = np.where(further, probe, below)
    return below


def true_accuracies(means: Floats, trainings: Floats, noise: NoiseLevel) -> TrueAccuracies:
    """Take the noise out of the distribution of class means, by maximum likelihood in a smooth family.

    means: (classes,), each the mean of so many `trainings`. The first guess is the distribution of the means, shrunk
    towards its centre until its spread is right; its density is multiplied by the exponential of a polynomial in the
    level, from 0 to 1 (Efron, Empirical Bayes deconvolution estimates, Biometrika 2016). So it can be skewed or end
    abruptly, and stays smooth. No such estimate is right for everything: see `Ceiling.p_values`.
    """
    variance = noise.at(means) / trainings
    kept = max(0.0, 1 - float(variance.mean()) / max(float(means.var()), 1e-12)) ** 0.5
    centre = float(means.mean())
    levels = np.linspace(0, 1, min(GRID, 4 * len(means)))
    start = centre + kept * (np.quantile(means, levels) - centre)
    ends = np.linspace(0, 4 * float(np.sqrt(variance).max()), 10) + 1e-6
    grid = np.unique(np.concatenate([start[0] - ends, start, start[-1] + ends]))
    spread = np.sqrt(np.maximum(noise.at(grid)[None, :] / trainings[:, None], 1e-6))
    logarithm = -0.5 * ((means[:, None] - grid[None, :]) / spread) ** 2 - np.log(spread)
    likelihood = np.exp(logarithm - logarithm.max(1, keepdims=True))
    shapes = np.polynomial.legendre.legvander(np.linspace(-1, 1, len(grid)), SHAPES)[:, 1:]

    def density(coefficients: Floats) -> Floats:
        exponent = shapes @ coefficients
        unnormalised = np.exp(exponent - exponent.max())
        found: Floats = unnormalised / unnormalised.sum()
        return found

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        weights = density(coefficients)
        marginal = likelihood @ weights
        expected = weights * (likelihood.T @ (1 / marginal) - len(means))
        penalty = PENALTY * coefficients
        return -float(np.log(marginal).sum()) + float(coefficients @ penalty), 2 * penalty - shapes.T @ expected

    weights = density(scipy.optimize.minimize(loss, np.zeros(SHAPES), jac=True, method="L-BFGS-B").x)
    posterior = np.cumsum(likelihood * weights, axis=1)
    return TrueAccuracies(grid, np.cumsum(weights) - weights / 2, posterior / posterior[:, -1:])


@dataclass(frozen=True)
class Retraining:
    """One draw of a comparison in which nothing changed but the noise. All are (cells,), in percent."""

    true_first: Floats
    first: Floats
    first_again: Floats
    second: Floats
    second_again: Floats


def retrainings(
    comparison: Comparison, first: NoiseLevel, second: NoiseLevel, draws: int, seed: int
) -> Iterator[Retraining]:
    """Draw both sides under the null hypothesis of one true ranking of the network classes.

    first, second: the noise of the sides. A class's true accuracy on the first side comes from its posterior; that on
    the second one is at the same level of the second side's distribution. Every result then gets the noise of as many
    trainings as it has. Cells without a path are chance on both sides, always.
    """
    generator = np.random.default_rng(seed)
    trained = np.array(comparison.bench.connected)[comparison.cells]
    classes, member = np.unique(comparison.classes[trained], return_inverse=True)
    one = true_accuracies(*_class_means(comparison.first, trained, member, len(classes)), first)
    other = true_accuracies(*_class_means(comparison.second, trained, member, len(classes)), second)

    def observe(side: Side, true: Floats, noise: NoiseLevel) -> Floats:
        seen = side.accuracy.copy()
        scatter = generator.standard_normal(int(side.unit.max()) + 1)[side.unit[trained]]
        seen[trained] = true + scatter * np.sqrt(noise.at(true) / side.trainings[trained])
        return seen

    for _ in range(draws):
        true = one.draw(generator)
        true_second = np.interp(np.interp(true, one.grid, one.level), other.level, other.grid)[member]
        true = true[member]
        everything = comparison.first.accuracy.copy()
        everything[trained] = true
        yield Retraining(
            true_first=everything,
            first=observe(comparison.first, true, first),
            first_again=observe(comparison.first, true, first),
            second=observe(comparison.second, true_second, second),
            second_again=observe(comparison.second, true_second, second),
        )


def _class_means(side: Side, trained: NDArray[np.bool_], member: Integers, classes: int) -> tuple[Floats, Floats]:
    """Each class's mean accuracy over its trainings, and how many these are; a shared result counts once."""
    _, once = np.unique(side.unit[trained], return_index=True)
    of_class, count = member[once], side.trainings[trained][once].astype(float)
    trainings = np.bincount(of_class, count, minlength=classes)
    sums = np.bincount(of_class, count * side.accuracy[trained][once], minlength=classes)
    return (sums / trainings).astype(np.float64), trainings.astype(np.float64)


@dataclass(frozen=True)
class Ceiling:
    """What training again would show, over draws of the null hypothesis.

    taus: (K, draws), between the sides. first_again, second_again: (K,), mean tau of one side with its own repetition.
    moves: (cells,), the standard deviation of a cell's change of rank. selection: (10,), by decile of the first side's
    observed accuracy, how far the true one lies above the observed one on average, in points.
    """

    taus: Floats
    first_again: Floats
    second_again: Floats
    moves: Floats
    selection: Floats

    def p_values(self, taus: Floats) -> Floats:
        """For each K, how likely training again gives a tau as low as these; NaN where it is undefined.

        At a nominal 5 % the test rejects a true null hypothesis in 2 to 8 % of cases where the true accuracies are
        normal, uniform or skewed to either side (the tests simulate it). Where very many networks are equally the best,
        within a fraction of the noise, it may reject in up to 20 % among the top 20 to 50 %: there p-values just below
        5 % prove nothing.
        """
        below = (self.taus <= taus[:, None] + 1e-12).sum(1)
        p = (1 + below) / (1 + self.taus.shape[1])
        return np.where(np.isfinite(taus) & np.isfinite(self.taus).all(1), p, np.nan)


def ceiling(
    comparison: Comparison,
    first: NoiseLevel | None,
    second: NoiseLevel | None,
    *,
    draws: int,
    seed: int,
    by: Literal["first", "second"] = "first",
    percents: tuple[int, ...] = TOP_PERCENTS,
) -> Ceiling | None:
    """The noise ceiling of a comparison. first, second: the noise of the sides. by: whose ranking says what the top K
    percent are.

    None where the noise of a side is unknown: noise that only one side tells is not lent to the other, since budgets
    and recipes differ in it.
    """
    if first is None or second is None:
        return None
    taus, moves, selection = [], [], []
    again: list[tuple[Floats, Floats]] = []
    samples = retrainings(comparison, first, second, draws, seed)
    bar = tqdm(samples, "training again", draws, leave=False, unit="draw", disable=not sys.stderr.isatty())
    for draw, sample in enumerate(bar):
        ranked, other = (sample.first, sample.second) if by == "first" else (sample.second, sample.first)
        taus.append(top_taus(ranked, other, percents))
        if draw < AGAIN:
            again.append(
                (
                    top_taus(sample.first, sample.first_again, percents),
                    top_taus(sample.second, sample.second_again, percents),
                )
            )
        if draw < SHOWN:
            moves.append(ranks(sample.second) - ranks(sample.first))
            shift = sample.true_first - sample.first
            selection.append([shift[part].mean() if len(part) else np.nan for part in by_decile(sample.first)])
    means = np.array(again).mean(0)
    return Ceiling(np.array(taus).T, means[0], means[1], np.array(moves).std(0), np.array(selection).mean(0))


def ranks(accuracy: Floats) -> Floats:
    """Ranks from 1, the best; ties share their mean."""
    found: Floats = scipy.stats.rankdata(-accuracy)
    return found


def by_decile(accuracy: Floats) -> list[Integers]:
    """The places of ten parts of equal size by `accuracy`, lowest first; a part is empty if there are too few."""
    return np.array_split(np.argsort(accuracy, kind="stable"), 10)
