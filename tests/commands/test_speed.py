"""The measurements of speed: every process takes part, with the threads it should have, and the summary adds up."""

from __future__ import annotations

import os

import pytest
import torch

from nas_retrain.commands import speed
from tests.conftest import MakeSettings


@pytest.mark.slow
def test_everything_is_measured_and_summed_up(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "REPEATS", 2)
    monkeypatch.setattr(speed, "SECONDS", 0.05)
    monkeypatch.setattr(speed, "AUGMENTED_IMAGES", 100)
    digits = make_settings("recipe=[benchmark]", "cells=sample:2")
    cells = speed.sample_of_cells(digits, 2)
    full = make_settings("dataset=cifar10", "training.batch_size=16", "recipe=[benchmark]", "cells=sample:2")
    steps, workers = speed.measure_steps(full, cells), speed.measure_workers(digits, cells)
    data, peaks = speed.measure_data(full), speed.measure_peaks(full)
    assert steps[["cell", "repeat"]].to_numpy().tolist() == [[cell, repeat] for cell in cells for repeat in range(2)]
    for table, number in ((steps, 4), (workers, 4), (data, 2), (peaks, 2)):
        assert len(table) == number
        assert (table.drop(columns=["repeat", "arch"], errors="ignore") > 0).all(axis=None)
    profile = speed.measure_profile(digits, cells)
    assert profile.drop(columns="cell").sum(axis=1).tolist() == pytest.approx([100, 100])
    assert (profile["convolution"] > 0).all()
    steps["fast"], steps["reference"], steps["reference_live"] = 6.0, 2.0, 3.0
    text = speed.summary(steps, workers, data, peaks, profile, full)
    assert "| training steps, over one module for each edge | 3.00 times (geometric mean; 3.00 to 3.00) |" in text
    assert "| the same, without edges that lead nowhere | 2.00 times" in text
    assert f"torch {torch.__version__}" in text


@pytest.mark.slow
def test_each_process_of_a_pool_has_its_threads_and_takes_one_task() -> None:
    number = os.cpu_count() or 1
    with speed._processes(number, 1, torch.device("cpu"), tuned=True) as pool:
        found = [task.result() for task in [pool.submit(who) for _ in range(number)]]
    assert {threads for _, threads in found} == {1}
    assert len({process for process, _ in found}) == number


def who() -> tuple[int, int]:
    speed._together.wait(timeout=120)
    return os.getpid(), torch.get_num_threads()
