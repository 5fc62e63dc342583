"""Stages on a results folder as full as it gets stay within seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import results as speed_results
from nas_retrain.commands.command_line import compose
from nas_retrain.plan import plan
from nas_retrain.trainings.store import read_runs


def test_a_full_folder_has_a_record_of_all_that_is_planned_in_many_files(tmp_path: Path) -> None:
    settings = compose(*speed_results.overrides(tmp_path, "cells=sample:8"))
    assert speed_results.fill(settings, files=7) == 8 * 3 * 6
    stored = read_runs(tmp_path)
    assert stored.problems == []
    assert plan.make_plan(settings, stored).missing == []
    assert len(list((tmp_path / "runs").iterdir())) == 7


def test_the_commands_status_and_plan_import_neither_torch_nor_the_analysis() -> None:
    modules = "nas_retrain.commands.retrain, nas_retrain.commands.status"
    code = f"import sys, {modules}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "scipy", "matplotlib", "sklearn"} & set(done.stdout.split())


@pytest.mark.parametrize("command", ["status", "plan"])
def test_a_status_and_a_plan_import_neither_torch_nor_the_analysis(command: str, tmp_path: Path) -> None:
    """Unless there is a speed to measure; importing them takes as long as all else."""
    overrides = speed_results.overrides(tmp_path, "cells=sample:4")
    speed_results.fill(compose(*overrides), files=1)
    code = "import sys; from nas_retrain.commands import command_line; command_line.main(); print(*sys.modules)"
    run = [sys.executable, "-c", code, command, *overrides]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1].split()
    assert "nas_retrain.plan.plan" in imported
    assert not {"torch", "torchvision", "scipy.stats", "scipy.optimize", "matplotlib", "sklearn"} & set(imported)


@pytest.mark.slow
def test_status_plan_and_analysis_of_a_hundred_thousand_records_take_seconds(tmp_path: Path) -> None:
    """The measure is what this machine takes to parse the same lines one by one, at the same time of day: seconds alone
    would tell of the machine."""
    results = speed_results.measure_results(tmp_path).set_index("stage")
    assert (results["records"] > 95_000).all()
    begun = time.process_time()
    for path in (tmp_path / "runs").iterdir():
        for line in path.read_bytes().splitlines():
            json.loads(line)
    unit = time.process_time() - begun
    assert results.loc["status", "processor_seconds"] < 10 * unit
    assert results.loc["plan", "processor_seconds"] < 10 * unit
    assert results.loc["analyze", "processor_seconds"] < 150 * unit  # three comparisons of 2,000 null draws each
    assert results.loc["status", "memory"] < 700
    assert "| analyze | " in speed_results.summary(results.reset_index())
