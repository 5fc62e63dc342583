"""The pipeline on a machine with two GPUs, as far as a CUDA runtime that computes nothing can show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_retrain.trainings.store import read_runs
from tests import cuda_stub as stub

TINY = (
    *("dataset=digits", "profile=dry", "launcher=local", "launcher.device=cuda", "dataset.verify=false"),
    *("base_rate.points=2", "base_rate.seeds=[1]", "base_rate.epochs=1"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "chosen"),
    [
        ("retrain", ("bench=201", "cells=sample:3", "seeds=[1,2]", "training.epochs=1", "network.cells_per_stage=1")),
        ("verify", ("bench=201", "cells=sample:4", "recipe=[grid_he]", "network.cells_per_stage=1")),
    ],
)
def test_it_runs_through_on_two_gpus(cuda_stub: Path, tmp_path: Path, script: str, chosen: tuple[str, ...]) -> None:
    paths = (f"results_dir={tmp_path / 'results'}", f"data_dir={tmp_path / 'data'}")
    program = Path(__file__).parents[2] / "scripts" / f"{script}.py"
    done = stub.run(cuda_stub, program, *TINY, *chosen, *paths, devices=2, zeros=True, timeout=300)
    assert done.returncode == 0, done.stderr
    stored = read_runs(tmp_path / "results")
    assert stored.problems == []
    assert {record.device for record in stored.records} == {"CUDA stub"}
    assert "make gpu-check" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "results").glob("**/report.md"))
