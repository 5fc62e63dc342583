"""The estimate before anything starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nas_retrain.benches.registry import Sizes
from nas_retrain.execution import cost
from nas_retrain.plan import plan
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.plan.test_plan import as_stored
from tests.strategies import NAS_BENCH_201

CPU = torch.device("cpu")


def test_counts_are_those_of_the_plan(make_settings: MakeSettings) -> None:
    settings = make_settings("cells=sample:5", "seeds=[1,2]")
    trainings = plan.recipe_trainings(settings, 1.0)
    found = cost.estimate(trainings, StoredRuns.of([]), settings, CPU)
    assert found is not None
    assert (found.trainings, found.epochs, found.images) == (20, 40, 40 * 600)
    assert len(found.seconds) == 20
    assert found.hours(workers=2) == pytest.approx(sum(found.seconds) / 2 / 3600)
    on_two_gpus = replace(found, devices=2)  # where one worker was measured alone on its GPU
    assert [on_two_gpus.hours(workers) * workers / found.hours(1) for workers in (1, 2)] == [1, 1]
    assert on_two_gpus.hours(6) == on_two_gpus.hours(2)
    assert 0 < found.slowest <= found.fastest


def test_stored_speeds_are_used_and_extrapolated_by_work(make_settings: MakeSettings) -> None:
    settings = make_settings("cells=sample:8", "seeds=[1]", "recipe=[benchmark]")
    trainings = plan.recipe_trainings(settings, None)
    network = settings.network

    def per_image(training: Training) -> float:  # an exactly linear machine
        sizes = Sizes(network.channels, network.cells_per_stage, classes=10, image_channels=1, image_size=8)
        return 1e-4 + 1e-9 * NAS_BENCH_201.flops(NAS_BENCH_201.graph_at(training.cell), sizes)

    stored = [
        replace(as_stored(training), cell=training.cell, images_per_second=1 / per_image(training), device="cpu")
        for training in trainings[:5]
    ]
    found = cost.estimate(trainings[5:], StoredRuns.of(stored), settings, None)
    assert found is not None
    assert "5 finished trainings" in found.measured_on
    images = settings.training.epochs * 600 + cost.EVALUATION_SHARE * 1197
    slowest_known = min(per_image(training) for training in trainings[:5])
    expected = [max(per_image(training), slowest_known) * images for training in trainings[5:]]
    assert found.seconds == pytest.approx(expected, rel=1e-6)


def test_without_records_or_a_device_the_cost_is_unknown(make_settings: MakeSettings) -> None:
    settings = make_settings("cells=sample:5", "recipe=[benchmark]")
    assert cost.estimate(plan.recipe_trainings(settings, None), StoredRuns.of([]), settings, None) is None


def test_nothing_to_train_costs_nothing(make_settings: MakeSettings) -> None:
    disconnected = next(cell for cell in range(15625) if not NAS_BENCH_201.graph_at(cell).connected)
    settings = make_settings(f"cells=[{disconnected}]")
    found = cost.estimate(plan.recipe_trainings(settings, 1.0), StoredRuns.of([]), settings, CPU)
    assert found is not None
    assert (found.trainings, found.hours(workers=2)) == (0, 0.0)


def test_speed_is_measured_on_one_thread_as_a_worker_trains(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measured(*_: object) -> float:
        seen.append(torch.get_num_threads())
        return 1e-3

    monkeypatch.setattr(cost, "seconds_per_image", measured)
    before = torch.get_num_threads()
    settings = make_settings("cells=sample:5")
    torch.set_num_threads(2)
    try:
        cost.estimate(plan.recipe_trainings(settings, 1.0), StoredRuns.of([]), settings, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_networks_that_are_not_trained_are_not_measured(make_settings: MakeSettings) -> None:
    """They have the fewest operations of all, and nothing leads through them."""
    disconnected = next(cell for cell in range(15625) if not NAS_BENCH_201.graph_at(cell).connected)
    settings = make_settings(f"cells=[{disconnected},0,1]", "seeds=[1]", "recipe=[benchmark]")
    trainings = plan.recipe_trainings(settings, None)
    found = cost.estimate(trainings, StoredRuns.of([]), settings, CPU)
    assert found is not None
    assert found.trainings == 2
    assert found.seconds[0] == 0.0
