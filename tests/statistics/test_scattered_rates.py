"""Fits to trainings at scattered rates: what was planted is found, and nothing where nothing was."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nas_retrain.benches.nas_bench_201 import jahs_bench
from nas_retrain.statistics.accuracy_grid import AccuracyGrid, lean
from nas_retrain.statistics.scattered_rates import PARTS, fitted_grid
from tests import published_tables
from tests.strategies import NAS_BENCH_201


def fitted(**world: float) -> tuple[AccuracyGrid, np.ndarray]:
    """The grid of a world of 60 networks with 40 trainings each, and the planted best rates."""
    table, best = published_tables.jahs_table(trainings=2400, cells=60, **world)
    long = jahs_bench.trainings(table, "")
    long["cell"] = np.array(NAS_BENCH_201.training_classes(None))[long["index"]]
    grid = fitted_grid(long, ("weight_decay", *jahs_bench.COVARIATES))
    return grid, np.array([best[cell] for cell in grid.cells])


def test_planted_best_rates_are_found() -> None:
    grid, best = fitted(slope=1.0, noise=1.0)
    assert grid.seeds == PARTS
    assert stats.spearmanr(lean(grid.rates, grid.valid.mean(2)), best).statistic > 0.9
    assert np.abs(np.log2(grid.rates)[grid.own] - best).mean() < 0.9  # the grid is wider than an octave


def test_few_trainings_are_drawn_to_the_common_curve() -> None:
    spread = []
    for noise in (1.0, 20.0):
        grid, _ = fitted(slope=0.5, noise=noise)
        spread.append(lean(grid.rates, grid.valid.mean(2)).std())
    assert spread[1] < 0.5 * spread[0]


def test_networks_that_do_not_differ_show_no_slopes_of_their_own() -> None:
    grid, _ = fitted(slope=0.0, noise=3.0)
    assert lean(grid.rates, grid.valid.reshape(len(grid), len(grid.rates), -1).mean(2)).std() < 0.05


def test_the_common_curve_is_that_of_least_squares() -> None:
    random = np.random.default_rng(0)
    rate = 2.0 ** random.uniform(-8, 0, 3000)
    accuracy = 70 - 0.4 * (np.log2(rate) + 4) ** 2
    frame = pd.DataFrame({"cell": random.integers(0, 30, 3000), "learning_rate": rate})
    grid = fitted_grid(frame.assign(valid=accuracy, test=accuracy), ())
    expected = 70 - 0.4 * (np.log2(grid.rates) + 4) ** 2
    assert grid.test == pytest.approx(np.broadcast_to(expected[None, :, None], grid.test.shape), abs=1e-3)
