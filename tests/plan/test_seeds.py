"""Seeds where they decide: the forecast against trainings drawn again, and plans that stop at the bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from nas_retrain.commands import retrain
from nas_retrain.plan import plan
from nas_retrain.plan.seeds import expected_tau
from nas_retrain.trainings.store import RunRecord, StoredRuns, read_runs
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.plan.test_plan import as_stored


@pytest.mark.parametrize("noise", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("seeds", [2, 5])
def test_the_forecast_is_the_mean_tau_of_trainings_drawn_again(noise: float, seeds: int) -> None:
    random = np.random.default_rng(0)
    forecasts, seen = [], []
    for _ in range(60):
        own = random.normal(80, 1, 200)
        first, second = (own[:, None] + random.normal(0, noise, (200, seeds)) for _ in range(2))
        forecasts.append(expected_tau(first))
        seen.append(kendalltau(first.mean(1), second.mean(1)).statistic)
    assert np.mean(forecasts) == pytest.approx(np.mean(seen), abs=0.02)


def test_equal_accuracies_promise_nothing() -> None:
    assert expected_tau(np.full((5, 2), 10.0)) == 0.0


def test_seeds_are_added_a_round_at_a_time_until_the_bound_and_for_each_recipe_alone(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings("cells=sample:6", "seeds=[1,2,3,4]", "dataset.base_rate=0.3", "enough_tau=0.9")
    everything = plan.recipe_trainings(settings, 0.3)

    def planned(stored: list[RunRecord]) -> dict[str, set[int]]:
        made = plan.make_plan(settings, StoredRuns.of(stored))
        return {
            recipe: {training.seed for training in made.recipes if training.recipe == recipe}
            for recipe in settings.recipes
        }

    def accuracy(training: Training) -> float:
        rank = sorted({each.cell for each in everything}).index(training.cell)
        noise = 0.01 if training.recipe == "benchmark" else 3.0
        return 50 + rank + noise * (-1) ** (training.seed + rank)

    def stored(seeds: set[int]) -> list[RunRecord]:
        return [
            replace(as_stored(training), test_accuracy=accuracy(training))
            for training in everything
            if training.seed in seeds
        ]

    assert planned([]) == {"benchmark": {1, 2}, "architecture_aware": {1, 2}}
    assert planned(stored({1})) == {"benchmark": {1, 2}, "architecture_aware": {1, 2}}
    assert planned(stored({1, 2})) == {"benchmark": {1, 2}, "architecture_aware": {1, 2, 3}}
    assert planned(stored({1, 2, 3})) == {"benchmark": {1, 2}, "architecture_aware": {1, 2, 3, 4}}
    made = plan.make_plan(settings, StoredRuns.of(stored({1, 2, 3, 4})))
    assert not [t for t in made.missing if t.recipe == "architecture_aware"]


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("noise", [1.5, 2.0])
def test_a_part_of_the_plan_has_the_seeds_that_the_whole_needs(
    make_settings: MakeSettings, noise: float, together: int
) -> None:
    """A few networks alone may seem settled where all together are not."""
    settings = make_settings(
        *("cells=sample:30", "seeds=[1,2,3]", "dataset.base_rate=0.3", "enough_tau=0.9"),
        f"launcher.together={together}",
    )
    random = np.random.default_rng(0)
    own = {cell: random.uniform(40, 60) for cell in plan.chosen_cells(settings)}
    stored = StoredRuns.of(
        replace(as_stored(training), test_accuracy=own[training.cell] + random.normal(0, noise))
        for training in plan.make_plan(settings, StoredRuns.of([])).missing
    )
    whole = plan.make_plan(settings, stored)
    assert {training.seed for training in whole.missing} == {3}
    for cells in ({cell} for cell in own):
        assert plan.make_plan(settings, stored, cells).groups == [g for g in whole.groups if g[0].cell in cells]
    for first in range(0, 30, 3):
        cells = set(list(own)[first : first + 3])
        assert plan.make_plan(settings, stored, cells).groups == [g for g in whole.groups if g[0].cell in cells]


@pytest.mark.slow
def test_a_run_goes_on_by_itself_from_round_to_round(make_settings: MakeSettings) -> None:
    settings = make_settings(
        "cells=sample:3", "seeds=[1,2,3]", "recipe=[benchmark]", "training.epochs=1", "enough_tau=0.999"
    )
    retrain.retrain(settings)
    assert len(read_runs(settings.results_dir).records) == 9
