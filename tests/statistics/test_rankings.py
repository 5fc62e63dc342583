"""Rankings against independent oracles: scipy's tau on resamples written out, and pairs counted one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.statistics import rankings

values = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=30)


@given(values)
def test_tau_is_the_pairs_counted_one_by_one(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    signs = [(np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in itertools.combinations(pairs, 2)]
    untied_x, untied_y = (sum(1 for sign in signs if sign[side]) for side in (0, 1))
    found = rankings.kendall_tau(x, y)
    if not untied_x or not untied_y:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(sum(a * b for a, b in signs) / (untied_x * untied_y) ** 0.5)


@given(st.integers(20, 700), st.integers(0, 10_000))
def test_a_resample_s_tau_is_scipys_on_the_resample_written_out(number: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.integers(0, number, number).astype(float)
    y = x + generator.integers(0, number, number)
    classes = generator.integers(0, max(1, number // 2), number)
    weights = rankings.bootstrap_weights(classes, 3, seed)
    found = rankings.bootstrap_taus(x, y, weights)
    order = np.argsort(-x, kind="stable")
    for row, count in enumerate(rankings.top_counts(x).values()):
        for draw in range(3):
            # Copies of one cell are tied with each other; scipy sees them as ties too.
            drawn = np.repeat(order[:count], weights[order[:count], draw].astype(int))
            assert found[row, draw] == pytest.approx(rankings.kendall_tau(x[drawn], y[drawn]), nan_ok=True, abs=1e-5)


@given(st.integers(2, 400), st.sampled_from([3, 30, 10_000]), st.integers(0, 10_000))
def test_the_top_s_taus_are_scipys_on_each_top(number: int, levels: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, levels, (2, number)).astype(float)
    y += generator.choice([0, 1, 10]) * x
    order = np.argsort(-x, kind="stable")
    found = rankings.top_taus(x, y)
    for tau, count in zip(found, rankings.top_counts(x).values(), strict=True):
        assert tau == pytest.approx(rankings.kendall_tau(x[order[:count]], y[order[:count]]), nan_ok=True)


def test_a_bootstrap_draws_whole_classes() -> None:
    classes = np.array([7, 7, 3, 9, 9, 9])
    weights = rankings.bootstrap_weights(classes, 50, 0)
    for number in (7, 3, 9):
        assert (np.ptp(weights[classes == number], axis=0) == 0).all()
    assert (weights[[0, 2, 3]].sum(axis=0) == 3).all()


def test_the_interval_covers_the_population_s_tau() -> None:
    """Samples of 200 cells from a normal population whose tau is known: 95 % intervals hold it about that often."""
    correlation, held, repeats = 0.6, 0, 100
    truth = 2 / np.pi * np.arcsin(correlation)
    generator = np.random.default_rng(1)
    for repeat in range(repeats):
        x, y = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], 200).T
        weights = rankings.bootstrap_weights(np.arange(200), 200, repeat)
        low, high = rankings.interval(rankings.bootstrap_taus(x, y, weights, (100,))[0])
        held += low <= truth <= high
    assert 88 <= held <= 100


def test_the_top_holds_every_cell_that_ties_with_its_last_one() -> None:
    accuracy = np.array([5.0, 9.0, 7.0, 7.0, 7.0, 1.0, 0.0, 2.0, 3.0, 4.0])
    assert rankings.top_counts(accuracy, (100, 50, 20, 10, 1)) == {100: 10, 50: 5, 20: 4, 10: 1, 1: 1}


@pytest.mark.parametrize("constant", [0, 1])
def test_tau_is_undefined_where_one_side_is_constant(constant: int) -> None:
    sides = [np.arange(5.0), np.arange(5.0)]
    sides[constant] = np.full(5, 3.0)
    assert np.isnan(rankings.top_taus(*sides)).all()
    resampled = rankings.bootstrap_taus(*sides, rankings.bootstrap_weights(np.arange(5), 20, 0))
    assert np.isnan(resampled).all()
    assert np.isnan(rankings.interval(resampled[0])).all()
