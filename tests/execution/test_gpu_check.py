"""The checks for a GPU: on the CPU they pass or say why they were not run; wrong devices fail them; on the stub is run
what needs no numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_retrain.commands.command_line import ROOT
from nas_retrain.execution import gpu_check, gpu_tuning, gpu_verdicts, mps
from nas_retrain.execution import train as training
from nas_retrain.execution.gpu_check import Finding, Subject
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import RunRecord
from tests import cuda_stub as stub
from tests.conftest import MakeSettings
from tests.execution.test_train import CPU

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def subject(make_settings: MakeSettings, tmp_path: Path) -> Subject:
    settings = make_settings("network.cells_per_stage=1", "training.batch_size=16", "recipe=[benchmark]")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Subject(torch.device("cpu"), settings, (1462, 11462, 9930), settings, scratch)


def test_on_the_cpu_checks_pass_or_say_why_they_were_not_run(subject: Subject) -> None:
    apart = (gpu_check.determinism, gpu_check.resume, gpu_check.short_trainings)
    checks = [check for check in gpu_check.CHECKS if check not in apart]
    told: list[str] = []
    findings = gpu_check.run(subject, checks, lambda name, _: told.append(name))
    assert told == list(findings)
    verdicts = {name: found.verdict for name, found in findings.items()}
    assert verdicts == {
        "environment": "not run",
        "arithmetic": "passed",
        "augmentation": "passed",
        "operations": "passed",
        "equality with the cpu": "passed",
        "side by side": "not run",
        "graph and eager": "not run",
        "faults": "not run",
        "no hidden synchronisation": "not run",
        "no leak": "not run",
    }, findings


def test_short_trainings_must_reach_what_float32_does(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = subject.learnable.training.model_copy(update={"batch_size": 64})
    quick = replace(subject, learnable=subject.learnable.model_copy(update={"training": recipe}))
    assert gpu_check.short_trainings(quick, seeds=2, epochs=2).verdict == "passed"
    train = training.train

    def worse_in_bfloat16(group: Any, settings: Settings, *rest: Any) -> list[RunRecord]:
        records = train(group, settings, *rest)
        lost = 60.0 if settings.training.precision == "bfloat16" else 0.0
        return [replace(record, test_accuracy=max(0.0, record.test_accuracy - lost)) for record in records]

    monkeypatch.setattr(training, "train", worse_in_bfloat16)
    again = replace(quick, scratch=subject.scratch.parent)
    assert gpu_check.short_trainings(again, seeds=2, epochs=2).verdict == "failed"


@pytest.mark.parametrize(("wrong", "by"), [("float64", 1e-6), ("float32", 0.1), ("bfloat16", 1.0)])
def test_a_device_that_computes_wrongly_fails(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, wrong: str, by: float
) -> None:
    one_pass = gpu_check._one_pass

    def slightly_off(cell: int, subject: Subject, device: torch.device, precision: str) -> dict[str, torch.Tensor]:
        made = one_pass(cell, subject, device, precision)
        off = device.index == 0 and precision == wrong
        return {name: value * (1 + by) if off and name == "gradients" else value for name, value in made.items()}

    monkeypatch.setattr(gpu_check, "_one_pass", slightly_off)
    found = gpu_check.equality_with_the_cpu(replace(subject, device=torch.device("cpu", 0)))
    assert found.verdict == "failed"
    too_far = [name for name, far in found.figures["differences"].items() if far > found.figures["allowed"][name]]
    assert too_far == [f"{wrong} gradients of cell {cell}" for cell in subject.cells]


def test_networks_without_normalisation_can_be_checked(make_settings: MakeSettings, subject: Subject) -> None:
    settings = make_settings("network.normalisation=none", "network.cells_per_stage=1", "training.batch_size=16")
    assert gpu_check.equality_with_the_cpu(replace(subject, settings=settings)).verdict == "passed"


def test_an_operation_with_a_wrong_gradient_is_named(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gradients = gpu_check._with_gradients

    def without_gradient(
        module: torch.nn.Module, size: int, device: torch.device, precision: str
    ) -> list[torch.Tensor]:
        made, *gradients = with_gradients(module, size, device, precision)
        wrong = device.index == 0 and isinstance(module, torch.nn.Conv2d) and module.stride == (2, 2)
        return [made, *(0 * each if wrong else each for each in gradients)]

    monkeypatch.setattr(gpu_check, "_with_gradients", without_gradient)
    found = gpu_check.operations(replace(subject, device=torch.device("cpu", 0)))
    wrong = [f"{size}x{size} pixels in {precision}" for size in (7, 16) for precision in gpu_check._precisions(CPU)]
    told = ", ".join(f"3x3 convolution of stride 2 of {each} is off by 1.0e+00" for each in wrong)
    assert (found.verdict, found.told) == ("failed", told)


def test_trainings_that_differ_each_time_fail(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter(range(10**6))
    monkeypatch.setattr("nas_retrain.execution.steps.epoch_seed", lambda *_: next(draws))
    found = gpu_check.run(subject, [gpu_check.resume], lambda *_: None)["resume"]
    assert (found.verdict, found.figures["stopped"]) == ("failed", False)


def test_an_error_is_a_finding(subject: Subject) -> None:
    def broken(_: Subject) -> Finding:
        raise RuntimeError("CUDA error: unspecified launch failure\nhints")

    found = gpu_check.run(subject, [broken], lambda *_: None)["broken"]
    assert (found.verdict, found.told) == ("failed", "RuntimeError: CUDA error: unspecified launch failure")


KEY = {"gpu": "A GPU", "torch": "2", "cudnn": "9", "code": "1"}


def test_a_verdict_holds_for_the_same_gpu_and_software_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu_check.json"
    monkeypatch.setattr(gpu_verdicts, "key", lambda: KEY)
    assert "Run make gpu-check here first" in gpu_verdicts.missing(path)
    gpu_verdicts.write(path, {"key": KEY, "verdict": "failed", "told": "failed: resume"})
    assert gpu_verdicts.missing(path).endswith("did not pass: failed: resume")
    gpu_verdicts.write(path, {"key": KEY | {"torch": "3"}, "verdict": "passed", "told": ""})
    assert "did not pass" in gpu_verdicts.missing(path)
    gpu_verdicts.write(path, {"key": KEY, "verdict": "passed", "told": ""})
    assert gpu_verdicts.missing(path) == ""
    assert len(gpu_verdicts.read(path)) == 2
    path.write_text("[")
    assert "Run make gpu-check here first" in gpu_verdicts.missing(path)


def test_the_site_file_is_one_that_settings_can_be_made_of(make_settings: MakeSettings, tmp_path: Path) -> None:
    rows = {
        name: {"images_per_second": 1000.0, "gpu_hours": 5.0, "workers": 2, "together": 3}
        for name in ("float32", "tf32", "bfloat16")
    }
    tuned = {"gpu": "NVIDIA H100 80GB", "images": 10**6, "best": rows, "left_out": ["one", "another"]}
    (tmp_path / "nvidia_h100_80gb.yaml").write_text("# mine\n")
    settings = make_settings()
    path = gpu_tuning.write_site(tuned, tmp_path, settings)
    assert path == gpu_tuning.write_site(tuned, tmp_path, settings) == tmp_path / "nvidia_h100_80gb_2.yaml"
    assert "# For 2 other ways there was no time; results/gpu_check.json names them." in path.read_text().splitlines()
    from omegaconf import OmegaConf

    chosen = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(chosen, dict)
    assert (chosen["workers"], chosen["together"], chosen["cpus"]) == (2, 3, 3)
    overrides = [f"launcher.{key}={'null' if value is None else value}" for key, value in chosen.items()]
    assert make_settings("launcher=slurm", *overrides).launcher.workers == 2


PROGRAM = """
import json
import sys
from dataclasses import replace
from nas_retrain.commands.command_line import compose
from nas_retrain.commands.gpu_check import gpu_check as command
from nas_retrain.execution import gpu_check, gpu_tuning

if __name__ == "__main__":
    gpu_check.CHECKS = (gpu_check.environment,)  # all others need a device that computes
    gpu_tuning.PRECISIONS, gpu_tuning.CELLS = ("float32",), 1
    gpu_tuning.TOGETHER, gpu_tuning.WORKERS = (1, 3), (2,)
    command(compose(*sys.argv[1:]))
"""

SMALL = (
    *("dataset=digits", "profile=dry", "launcher=local", "recipe=[benchmark]", "training.batch_size=8"),
    *("network.channels=4", "network.cells_per_stage=1"),
)


def on_the_cpu_in(folder: Path, *overrides: str) -> str:
    """Run the command as `make gpu-check` does; returns what it prints."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/gpu_check.py", *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_passes_on_the_cpu_and_stores_nothing(tmp_path: Path) -> None:
    told = on_the_cpu_in(tmp_path, *SMALL, "launcher.device=cpu")
    verdicts = {line.partition(":")[0].split(maxsplit=1)[1] for line in told.splitlines() if line.startswith("passed")}
    assert verdicts == {
        *("arithmetic", "augmentation", "operations", "equality with the cpu", "determinism", "resume"),
        "short trainings",
    }
    assert "failed" not in told
    assert "Nothing is stored: there is no CUDA device." in told
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "slurm").exists()


@pytest.mark.slow
def test_the_command_fails_on_a_gpu_that_computes_nothing_and_says_what_was_run(
    cuda_stub: Path, tmp_path: Path
) -> None:
    done = stub.run(cuda_stub, ROOT / "scripts/gpu_check.py", *SMALL, timeout=300, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "arithmetic failed on GPU 0 of " in done.stderr
    (stored,) = json.loads((tmp_path / gpu_verdicts.FILE).read_text())["checks"]
    assert (stored["verdict"], stored["told"], stored["tuning"]) == ("failed", "failed: arithmetic", {})
    verdicts = {name: found["verdict"] for name, found in stored["findings"].items()}
    assert verdicts == {
        "environment": "passed",
        "arithmetic": "failed",
        "augmentation": "not run",
        "operations": "not run",
        "equality with the cpu": "not run",
        "determinism": "not run",
        "side by side": "not run",
        "graph and eager": "not run",
        "resume": "not run",
        "faults": "passed",
        "no hidden synchronisation": "passed",
        "no leak": "passed",
        "short trainings": "not run",
    }
    for name, verdict in verdicts.items():
        assert f"{verdict:8} {name}: " in done.stdout


@pytest.mark.slow
def test_a_gpu_that_passed_is_tuned_one_factor_at_a_time(
    cuda_stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "bin" / mps.CONTROL  # says yes to whatever it is asked
    control.parent.mkdir()
    control.write_text("#!/bin/sh\n")
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{control.parent}:{os.environ['PATH']}")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = stub.run(cuda_stub, program, *SMALL, timeout=300, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (stored,) = json.loads((tmp_path / gpu_verdicts.FILE).read_text())["checks"]
    assert stored["verdict"] == "passed"
    tuned = stored["tuning"]
    rows = tuned["speeds"]
    fastest = max(rows[:2], key=lambda row: row["images_per_second"])
    ways = [(row["captured"], row["together"], row["workers"]) for row in rows]
    assert ways == [(True, 1, 1), (True, 3, 1), (True, fastest["together"], 2), (False, 1, 1)]
    best = tuned["best"]["float32"]
    assert best["gpu_hours"] == pytest.approx(tuned["images"] / best["images_per_second"] / 3600)
    assert (tmp_path / "slurm/site/cuda_stub.yaml").exists()
    assert tuned["left_out"] == []


def test_what_time_is_short_for_is_left_out_and_told(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tuning, "_pool", lambda *_: nullcontext())
    monkeypatch.setattr(gpu_tuning, "_images", lambda _: 10**6)
    monkeypatch.setattr(mps, "running", lambda: nullcontext("there is none"))
    asked: list[gpu_tuning.Way] = []

    def speeds(_pool: object, _subject: Subject, way: gpu_tuning.Way) -> list[float]:
        asked.append(way)
        return [] if way.together == 6 else [100.0 * way.together, 300.0 * way.together]

    monkeypatch.setattr(gpu_tuning, "_speeds", speeds)
    told: list[str] = []
    tuned = gpu_tuning.tune(subject, told.append, 60)
    assert tuned["best"]["bfloat16"]["together"] == 4
    assert tuned["best"]["bfloat16"]["images_per_second"] == pytest.approx(600)  # harmonic mean of 400 and 1,200
    assert "tuning   float32, captured, 1 worker(s) with 6 training(s) each: the GPU's memory is too small" in told
    assert "tuning   several workers were not tried: there is none" in told
    assert len(asked) == 3 * (1 + 1 + 4)
    asked.clear()
    assert len(gpu_tuning.tune(subject, told.append, -1)["left_out"]) == 3 * 5
    assert asked == [gpu_tuning.Way(precision) for precision in gpu_tuning.PRECISIONS]
    asked.clear()
    recipe = subject.settings.training.model_copy(update={"precision": "bfloat16"})
    ours = replace(subject, settings=subject.settings.model_copy(update={"training": recipe}))
    gpu_tuning.tune(ours, told.append, 60)
    assert [way.precision for way in asked[3:7]] == ["bfloat16"] * 4
    assert any("left out, since" in line for line in told)
