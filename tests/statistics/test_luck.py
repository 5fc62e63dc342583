"""Intervals of tau hold it where shared seeds favour kinds of networks, and stay as they are where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from nas_retrain.statistics import luck, rankings
from nas_retrain.statistics.rankings import Comparison, Floats, Side
from tests.strategies import NAS_BENCH_201

CLASSES, SEEDS = 100, 3


def compared(generator: np.random.Generator, leaning: float, shift: float = 0.0, *, shared: bool = True) -> Comparison:
    """Two recipes with one true ranking. leaning: how far a seed favours deep networks; shift: or all of them."""
    truth, depth = generator.normal(size=(2, CLASSES, 1))
    sides = []
    for _ in range(2):
        by_seed = truth + 0.5 * generator.normal(size=(CLASSES, SEEDS)) + shift * generator.normal(size=SEEDS)
        by_seed += leaning * depth * generator.normal(size=SEEDS)
        places = np.arange(CLASSES)
        sides.append(Side("x", by_seed.mean(1), np.full(CLASSES, SEEDS), places, by_seed, (1, 2, 3), shared))
    return Comparison(NAS_BENCH_201, places, places, *sides)


def ends(comparison: Comparison) -> tuple[Floats, Floats]:
    """Tau with its interval, and the interval of the resampled classes alone."""
    row = rankings.agreement(comparison, 200, 0).iloc[0]
    weights = rankings.bootstrap_weights(comparison.classes, 200, 0)
    sides = comparison.first.accuracy, comparison.second.accuracy
    plain = rankings.interval(rankings.bootstrap_taus(*sides, weights, (100,))[0])
    return row[["kendall_tau", "tau_low", "tau_high"]].to_numpy(dtype=float), np.array(plain)


def coverage(leaning: float, repeats: int = 60) -> tuple[float, float]:
    """How often intervals hold the mean tau of such worlds: ours, and those of resampled classes alone."""
    generator = np.random.default_rng(3)
    pairs = [ends(compared(generator, leaning)) for _ in range(repeats)]
    mean = np.mean([row[0] for row, _ in pairs])
    ours = np.mean([row[1] <= mean <= row[2] for row, _ in pairs])
    plain = np.mean([low <= mean <= high for _, (low, high) in pairs])
    return float(ours), float(plain)


def test_luck_that_favours_a_kind_of_network_is_in_the_interval() -> None:
    """With three seeds not in full 95 %, but far oftener than in that of resampled classes."""
    ours, plain = coverage(0.6)
    assert plain < 0.55
    assert ours > 0.65


def test_independent_errors_widen_it_little() -> None:
    ours, plain = coverage(0.0, repeats=40)
    assert plain >= 0.85
    assert plain <= ours


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_shift_of_all_networks_changes_no_interval_of_tau(shift: float) -> None:
    base, moved = (
        ends(compared(np.random.default_rng(1), 0.5, amount))[0] - ends(compared(np.random.default_rng(1), 0.5))[0]
        for amount in (0.0, shift)
    )
    np.testing.assert_allclose(base, moved, atol=1e-9)


def test_nested_seeds_leave_the_resampled_interval_as_it_is() -> None:
    row, plain = ends(compared(np.random.default_rng(2), 1.0, shared=False))
    np.testing.assert_allclose(row[1:], plain)


def test_the_excess_is_that_of_a_linear_statistic() -> None:
    """The variance of a mean is known: a seed's luck over the number of seeds."""
    generator = np.random.default_rng(4)
    found = []
    for _ in range(200):
        by_seed = generator.normal(size=(50, 1)) + 0.5 * generator.normal(size=4) + generator.normal(size=(50, 4))
        ((part, degrees),) = luck.excess_variance(
            [by_seed], [(1, 2, 3, 4)], np.arange(50), lambda mean: np.array([mean.mean()])
        )
        assert degrees == 3
        found.append(part[0])
    assert np.mean(found) == pytest.approx(0.25 / 4, rel=0.2)


def test_one_seed_or_none_whole_tells_nothing() -> None:
    one = np.random.default_rng(0).normal(size=(20, 1))
    torn = np.where(np.arange(40).reshape(20, 2) % 2, np.nan, 1.0)
    for table, seeds in ((one, (1,)), (torn, (1, 2)), (np.tile(one, 2), ())):
        assert luck.excess_variance([table], [seeds], np.arange(20), lambda mean: mean[:1]) == []
    assert luck.widened(0.5, (0.4, 0.6), np.linspace(0.4, 0.6), 20, []) == (0.4, 0.6)
