"""What networks reach at any learning rate, read off a grid of rates: each rule has its scalar tuned, judged fairly.

A rule gives each network a factor f. Its rates are m f, where the scalar m is free. Rules with different scalars say
nothing about each other, since one may just be smaller on average. So every rule has its scalar tuned: on one half of
the networks, and the accuracies that it gives the other half count, and the other way round. m is stated as the
geometric mean of the rates (factors are centred in the logarithm), so that it is within the grid for every rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import scipy

from nas_retrain.statistics.accuracy_grid import best_places
from nas_retrain.statistics.rankings import LEVEL, Floats, Integers

STEPS = 32
"""Points in an octave of the learning rate: neighbours differ by 2 %."""


@dataclass(frozen=True)
class Curves:
    """Accuracies in percent by network and learning rate, at points that lie evenly in the logarithm of the rate.

    lowest: the logarithm to base 2 of the first rate. accuracy: (networks, points).
    """

    lowest: float
    accuracy: Floats

    @classmethod
    def of(cls, rates: Floats, accuracy: Floats) -> Self:
        """Through accuracies at a grid of rates, (networks, rates), by Akima's cubics (1970).

        Straight lines, and cubics that keep the monotony between two rates, put every peak at a rate of the grid, which
        favours one rate for all that is one of them. Splines swing about the cliff where training diverges. Akima's go
        through parabolas exactly, and a jump bends them within two rates of it only.
        """
        x = np.log2(rates)
        fine = np.minimum(x[0] + np.arange(round((x[-1] - x[0]) * STEPS) + 1) / STEPS, x[-1])
        return cls(float(x[0]), _curves(x, accuracy, fine))

    def __len__(self) -> int:
        return len(self.accuracy)

    @property
    def logarithms(self) -> Floats:
        """The logarithms to base 2 of the rates of all points."""
        points: Floats = self.lowest + np.arange(self.accuracy.shape[1]) / STEPS
        return points

    def at(self, logarithms: Floats) -> Floats:
        """The accuracy of each network at a rate of its own, (networks,), given by its logarithm to base 2; beyond the
        grid, that at its end."""
        places = self._within(np.rint((logarithms - self.lowest) * STEPS).astype(int))
        found: Floats = self.accuracy[np.arange(len(self)), places]
        return found

    def outside(self, logarithms: Floats) -> float:
        """The share of rates that lie beyond the grid."""
        last = self.logarithms[-1]
        return float(np.mean((logarithms < self.lowest - 0.5 / STEPS) | (logarithms > last + 0.5 / STEPS)))

    def by_scalar(self, log_factors: Floats) -> Floats:
        """The accuracy of each network under a rule, (networks, points), by the rule's scalar at every point.

        log_factors: the logarithms to base 2 of the networks' factors, centred or not; their mean has no part in it.
        """
        shifts = np.rint((log_factors - log_factors.mean()) * STEPS).astype(int)
        places = self._within(np.arange(self.accuracy.shape[1]) + shifts[:, None])
        found: Floats = np.take_along_axis(self.accuracy, places, 1)
        return found

    def by_scalar_if_permuted(self, log_factors: Floats) -> Floats:
        """The mean over networks, (points,), that is expected if the rule's factors are handed out at random."""
        mean = np.broadcast_to(self.accuracy.mean(0), (len(log_factors), self.accuracy.shape[1]))
        found: Floats = Curves(self.lowest, mean).by_scalar(log_factors).mean(0)
        return found

    def _within(self, places: Integers) -> Integers:
        clipped: Integers = np.clip(places, 0, self.accuracy.shape[1] - 1)
        return clipped


def _curves(x: Floats, accuracy: Floats, fine: Floats) -> Floats:
    if len(x) < 4:  # too few for slopes on both sides
        return np.array([np.interp(fine, x, each) for each in accuracy])
    found: Floats = scipy.interpolate.Akima1DInterpolator(x, accuracy, axis=1)(fine)
    return found


@dataclass(frozen=True)
class Halves:
    """Two halves of the networks: what is tuned on one is judged on the other.

    first: which are of the first half, (networks,). weights: how often each network is drawn in each of some resamples
    within its half, (draws, networks).
    """

    first: Integers
    weights: Integers

    @classmethod
    def drawn(cls, networks: int, draws: int, random: np.random.Generator) -> Self:
        """Halves drawn at random, and resamples of each."""
        first = np.zeros(networks, dtype=bool)
        first[random.permutation(networks)[: networks // 2]] = True
        weights = np.zeros((draws, networks), dtype=np.int64)
        for half in (first, ~first):
            number = int(half.sum())
            weights[:, half] = random.multinomial(number, np.full(number, 1 / number), size=draws)
        return cls(first, weights)

    def judged(self, table: Floats) -> Floats:
        """Each network's accuracy, (networks,), at the scalar tuned on the other half.

        table: (networks, points), see `Curves.by_scalar`.
        """
        judged = np.empty(len(table))
        for tuning in (self.first, ~self.first):
            judged[~tuning] = table[~tuning, int(best_places(table[tuning].mean(0)[None])[0])]
        return judged

    def judged_means(self, table: Floats) -> Floats:
        """The mean of `judged` in each resample, (draws,), with the scalars tuned anew."""
        total = np.zeros(len(self.weights))
        for tuning in (self.first, ~self.first):
            best = best_places(self.weights[:, tuning] @ table[tuning])
            total += (self.weights[:, ~tuning] @ table[~tuning])[np.arange(len(best)), best]
        mean: Floats = total / len(table)
        return mean


@dataclass(frozen=True)
class Estimate:
    """A value, and its values in resamples or null draws."""

    value: float
    draws: Floats

    @classmethod
    def mean(cls, estimates: Sequence[Estimate]) -> Estimate:
        """The mean of several, of the same resamples."""
        return cls(float(np.mean([one.value for one in estimates])), np.mean([one.draws for one in estimates], axis=0))

    @classmethod
    def pooled(cls, estimates: Sequence[Estimate]) -> Estimate:
        """The mean of several, each with draws of its own."""
        return cls(float(np.mean([one.value for one in estimates])), np.concatenate([one.draws for one in estimates]))

    def columns(self, name: str) -> dict[str, float]:
        """The value and the ends of the 95 % interval, as tables have them: name, name_low and name_high."""
        low, high = self.ends
        return {name: self.value, f"{name}_low": low, f"{name}_high": high}

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two, of the same resamples."""
        return Estimate(self.value - other.value, self.draws - other.draws)

    @property
    def ends(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.within(LEVEL)

    def within(self, level: float) -> tuple[float, float]:
        """The interval that holds this share of the resamples."""
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Two-sided, of no effect: twice the share of resamples on the other side of 0, and no less than 2 in all."""
        beyond = min(int((self.draws <= 0).sum()), int((self.draws >= 0).sum()))
        return min(1.0, 2 * (beyond + 1) / (len(self.draws) + 1))


@dataclass(frozen=True)
class Rules:
    """Rules compared on one response surface, each with its scalar tuned."""

    curves: Curves
    halves: Halves

    @cached_property
    def one_rate(self) -> Floats:
        """The accuracies under one rate for all networks, by the rate."""
        return self.curves.by_scalar(np.zeros(len(self.curves)))

    @cached_property
    def _one_rate_level(self) -> Estimate:
        return self._level(self.one_rate)

    def _level(self, table: Floats) -> Estimate:
        return Estimate(float(self.halves.judged(table).mean()), self.halves.judged_means(table))

    def level(self, log_factors: Floats) -> Estimate:
        """The mean accuracy under a rule."""
        return self._level(self.curves.by_scalar(log_factors))

    def levels_if_permuted(self, log_factors: Floats, number: int, random: np.random.Generator) -> Floats:
        """The same with factors handed to the wrong networks, (number,): a value for each permutation."""
        return np.array(
            [self.halves.judged(self.curves.by_scalar(random.permutation(log_factors))).mean() for _ in range(number)]
        )

    def gain(self, log_factors: Floats) -> Estimate:
        """Points of accuracy that a rule gains over one rate for all."""
        return self.level(log_factors) - self._one_rate_level

    def gains_if_permuted(self, log_factors: Floats, number: int, random: np.random.Generator) -> Floats:
        """The same with factors handed to the wrong networks, (number,): a value for each permutation."""
        gains: Floats = self.levels_if_permuted(log_factors, number, random) - self._one_rate_level.value
        return gains


def over_null(value: float, null: Floats) -> Estimate:
    """By how much a value is larger than its null's draws are on average. Its 95 % interval holds 0 unless the value is
    among the most extreme 5 % of the null's draws."""
    draws = value - null
    return Estimate(float(draws.mean()), draws)


def share_beyond(value: float, null: Floats) -> float:
    """The one-sided p-value of a value among draws of a null: that it is so large by chance."""
    return (1 + int((null >= value).sum())) / (1 + len(null))


def sign_flip_p(differences: Floats, draws: int, random: np.random.Generator) -> float:
    """Two-sided p-value of a mean of independent differences, (networks,), that are symmetric about 0 by hypothesis."""
    observed, null = abs(differences.mean()), np.empty(draws)
    for start in range(0, draws, 1000):
        signs = random.integers(0, 2, (min(1000, draws - start), len(differences))) * 2 - 1
        null[start : start + len(signs)] = np.abs(signs @ differences) / len(differences)
    return (1 + int((null >= observed * (1 - 1e-12)).sum())) / (1 + draws)


def chosen_by(losses: Floats, seeds: int, draws: int, random: np.random.Generator) -> Integers:
    """Which rate a search with so many seeds chooses, in each draw of seeds without repeats, (draws,): that of the
    smallest mean loss, the largest of several.

    losses: (rates, seeds), infinite where training diverged; rates rising.
    """
    picked = np.array([random.permutation(losses.shape[1])[:seeds] for _ in range(draws)])
    return best_places(-losses[:, picked].mean(2).T)


def pair_signs(left: Floats, right: Floats) -> Floats:
    """For each two networks 1 where both rankings agree on which is better, -1 where they contradict each other, 0 in
    ties: (networks, networks). Their mean over pairs is Kendall's tau (without a correction for ties)."""
    signs: Floats = np.sign(np.subtract.outer(left, left)) * np.sign(np.subtract.outer(right, right))
    return signs


def tau_difference(first: Floats, second: Floats, weights: Integers) -> Estimate:
    """By how much one tau is larger than another.

    first, second: what `pair_signs` gives for each, on the same networks. weights: (draws, networks), how often a
    network is in each resample; pairs of a network with itself do not count.
    """
    difference = first - second
    number = len(difference)
    drawn = ((weights @ difference) * weights).sum(1)
    pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    return Estimate(float(difference.sum() / (number * (number - 1))), drawn / pairs)
