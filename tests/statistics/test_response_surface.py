"""Response surfaces with planted truths: what is there is found, what is not is not, and intervals hold it."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nas_retrain.statistics.rankings import Floats
from nas_retrain.statistics.response_surface import (
    Curves,
    Estimate,
    Halves,
    Rules,
    chosen_by,
    over_null,
    pair_signs,
    share_beyond,
    sign_flip_p,
    tau_difference,
)

RATES = 0.00625 * 2.0 ** np.arange(9)


def surface(
    random: np.random.Generator, alpha: float, networks: int = 100, spread: float = 0.5, noise: float = 0.8
) -> tuple[Floats, Floats]:
    """Logarithms of factors, and accuracies (networks, rates): parabolas in the logarithm of the rate, each best where
    the rule to the power of alpha says, give or take what no rule knows."""
    factors = random.normal(0, spread, networks)
    best = math.log2(0.06) + alpha * factors + random.normal(0, 0.4, networks)
    accuracy = 70 + random.normal(0, 2, networks)[:, None] - 0.6 * (np.log2(RATES) - best[:, None]) ** 2
    return factors, accuracy + random.normal(0, noise, accuracy.shape)


def rules(accuracy: Floats, random: np.random.Generator, draws: int = 400) -> Rules:
    return Rules(Curves.of(RATES, accuracy), Halves.drawn(len(accuracy), draws, random))


def without_a_rule(seed: int, networks: int) -> tuple[Rules, Floats, np.random.Generator]:
    """Networks whose best rates do not go with their factors; the factors, and the generator as it stands then."""
    random = np.random.default_rng(seed)
    factors, accuracy = surface(random, alpha=0, networks=networks)
    return rules(accuracy, random, draws=1), factors, random


def expected_gain(alpha: float, exponent: float, spread: float = 0.5) -> float:
    """Of the exponent over one rate, both at the best scalar: 0.6 points times the variance that it takes away."""
    return 0.6 * spread**2 * (alpha**2 - (alpha - exponent) ** 2)


def test_parabolas_are_read_off_exactly_between_the_rates() -> None:
    best = np.log2([0.02, 0.055, 0.1])
    curves = Curves.of(RATES, -((np.log2(RATES) - best[:, None]) ** 2))
    at = np.log2([0.0301, 0.13, 0.077])
    assert curves.at(at) == pytest.approx(-((at - best) ** 2), abs=0.08)  # rounded to a 32nd of an octave
    assert curves.accuracy.max(1) == pytest.approx([0, 0, 0], abs=0.001)
    assert curves.at(np.full(3, 99.0)) == pytest.approx(curves.accuracy[:, -1])
    assert curves.outside(np.array([-99.0, 99.0, -3.0, -4.0])) == 0.5


@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_a_common_factor_changes_nothing(seed: int, common: float) -> None:
    random = np.random.default_rng(seed)
    factors, accuracy = surface(random, 0.5, networks=10)
    curves = Curves.of(RATES, accuracy)
    moved = curves.by_scalar(factors + common)
    # Rounding to points may differ by one.
    assert np.abs(moved - curves.by_scalar(factors)).max() <= np.abs(np.diff(curves.accuracy)).max() + 1e-9


def test_the_mean_over_permutations_is_that_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    factors, accuracy = surface(random, 1, networks=5)
    curves = Curves.of(RATES, accuracy)
    pairs = [curves.by_scalar(np.roll(factors, by)).mean(0) for by in range(5)]  # each factor once on each network
    assert curves.by_scalar_if_permuted(factors) == pytest.approx(np.mean(pairs, axis=0))


def test_no_network_is_judged_with_a_scalar_that_it_tuned() -> None:
    random = np.random.default_rng(1)
    halves = Halves.drawn(9, 5, random)
    table = random.normal(size=(9, 40))
    before = halves.judged(table)
    for network in range(9):
        spoilt = table.copy()
        spoilt[network] += 100 * random.normal(size=40)
        assert np.isin(halves.judged(spoilt)[network], spoilt[network, np.isin(table[network], before[network])])
    assert (halves.weights[:, halves.first].sum(1) == 4).all()
    assert (halves.weights[:, ~halves.first].sum(1) == 5).all()


def test_resamples_that_hold_each_network_once_are_the_value_itself() -> None:
    random = np.random.default_rng(2)
    halves = Halves.drawn(12, 3, random)
    once = Halves(halves.first, np.ones((1, 12), dtype=np.int64))
    table = random.normal(size=(12, 30))
    assert once.judged_means(table) == pytest.approx([once.judged(table).mean()])


def test_a_planted_exponent_is_found_and_an_absent_one_is_not() -> None:
    random = np.random.default_rng(3)
    factors, accuracy = surface(random, alpha=1, networks=200)
    with_rule = rules(accuracy, random)
    gain, null = with_rule.gain(factors), with_rule.gains_if_permuted(factors, 200, random)
    assert gain.ends[0] > 0
    assert share_beyond(gain.value, null) < 0.01
    assert with_rule.gain(-factors).ends[1] < 0
    factors, accuracy = surface(random, alpha=0, networks=200)
    without = rules(accuracy, random)
    gain, null = without.gain(factors), without.gains_if_permuted(factors, 200, random)
    assert gain.ends[1] < 0  # rates that are spread out for nothing cost accuracy
    assert share_beyond(gain.value, null) > 0.05


@pytest.mark.parametrize(("alpha", "exponent"), [(0.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_intervals_of_gains_hold_the_truth(alpha: float, exponent: float) -> None:
    truth, held, widths, number = expected_gain(alpha, exponent), 0, [], 150
    for seed in range(number):
        random = np.random.default_rng(seed)
        factors, accuracy = surface(random, alpha, networks=60)
        low, high = rules(accuracy, random, draws=300).gain(exponent * factors).ends
        held += low <= truth <= high
        widths.append(high - low)
    assert held / number >= 0.88
    assert np.mean(widths) < exponent * 0.7


def test_permutations_reject_no_more_than_they_should() -> None:
    rejected, number = 0, 150
    for seed in range(number):
        judged, factors, random = without_a_rule(1000 + seed, networks=40)
        rejected += share_beyond(judged.gain(factors).value, judged.gains_if_permuted(factors, 60, random)) <= 0.05
    assert rejected / number <= 0.1


def test_a_rule_over_its_null_is_not_told_from_a_permutation_of_few_networks() -> None:
    outside, number = 0, 150
    for seed in range(number):
        judged, factors, random = without_a_rule(2000 + seed, networks=14)
        null = judged.levels_if_permuted(factors, 100, random)
        own = judged.level(factors).value
        low, high = over_null(own, null).ends
        assert low <= over_null(own, null).value <= high or own < null.min() or own > null.max()
        outside += low > 0 or high < 0
    assert 0.01 <= outside / number <= 0.1
    planted, accuracy = surface(np.random.default_rng(1), alpha=1.5, networks=40, noise=0.1)
    judged = rules(accuracy, random, draws=1)
    assert over_null(judged.level(planted).value, judged.levels_if_permuted(planted, 100, random)).ends[0] > 0


def test_sign_flips_give_the_exact_p_value_of_few_differences() -> None:
    differences = np.array([0.3, 1.0, -0.2, 0.7, 0.4])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    exact = np.mean(np.abs(differences @ signs) >= abs(differences.sum()) - 1e-9)
    assert sign_flip_p(differences, 20_000, np.random.default_rng(0)) == pytest.approx(exact, abs=0.01)


def test_searches_choose_as_all_draws_of_seeds_do() -> None:
    losses = np.random.default_rng(5).normal([[1.0], [0.9], [1.1]], 0.2, (3, 6))
    losses[2, 0] = math.inf
    shares = np.zeros(3)
    for seeds in combinations(range(6), 3):
        shares[losses[:, seeds].mean(1).argmin()] += 1 / 20
    chosen = chosen_by(losses, 3, 20_000, np.random.default_rng(6))
    assert np.bincount(chosen, minlength=3) / 20_000 == pytest.approx(shares, abs=0.015)


def test_differences_of_tau_are_those_of_scipy() -> None:
    random = np.random.default_rng(7)
    truth, first, second = random.normal(size=(3, 30))
    first += truth
    drawn = random.integers(0, 30, (1, 30))
    weights = np.stack([np.ones(30, dtype=np.int64), np.bincount(drawn[0], minlength=30)])
    found = tau_difference(pair_signs(first, truth), pair_signs(second, truth), weights)
    expected = stats.kendalltau(first, truth).statistic - stats.kendalltau(second, truth).statistic
    assert found.value == pytest.approx(expected)
    assert found.draws[0] == pytest.approx(expected)
    pairs = [(i, j) for i in drawn[0] for j in drawn[0] if i != j]

    def tau(values: Floats, ordered: list[tuple[int, int]]) -> float:
        return float(
            sum(np.sign(values[i] - values[j]) * np.sign(truth[i] - truth[j]) for i, j in ordered) / len(ordered)
        )

    apart = 30**2 - (weights[1] ** 2).sum()
    assert len(pairs) == apart
    assert found.draws[1] == pytest.approx(tau(first, pairs) - tau(second, pairs))


def test_an_estimates_p_value_counts_the_other_side() -> None:
    assert Estimate(1.0, np.linspace(-0.05, 0.95, 100)).p == pytest.approx(2 * 6 / 101)
    assert Estimate(1.0, np.ones(99)).p == pytest.approx(0.02)
