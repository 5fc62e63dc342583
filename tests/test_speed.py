"""The measurement of training speed: every process takes part, with the threads it should have."""

from __future__ import annotations

import os

import pytest
import torch

from nas_retrain import speed
from tests.conftest import MakeSettings


def test_both_arrangements_are_measured_for_every_cell_and_repeat(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "REPEATS", 2)
    monkeypatch.setattr(speed, "SECONDS", 0.1)
    table = speed.measure_workers(make_settings("cells=sample:2"))
    assert len(table) == 4
    assert table["cell"].nunique() == 2
    assert (table[["one_process", "worker_processes"]] > 0).all(axis=None)
    assert table["ratio"].tolist() == pytest.approx((table["worker_processes"] / table["one_process"]).tolist())


def test_each_process_of_a_pool_has_its_threads_and_takes_one_task() -> None:
    number = os.cpu_count() or 1
    with speed._processes(number, 1, torch.device("cpu")) as pool:
        found = [task.result() for task in [pool.submit(who) for _ in range(number)]]
    assert {threads for _, threads in found} == {1}
    assert len({process for process, _ in found}) == number


def who() -> tuple[int, int]:
    speed._together.wait(timeout=120)
    return os.getpid(), torch.get_num_threads()
