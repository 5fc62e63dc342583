"""Devices that fail, and memory that is too small: a run goes on without them, and every training is recorded once,
told as failed, or left for another run."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nas_retrain.commands.command_line import compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import devices
from nas_retrain.execution import workers as launch
from nas_retrain.execution.devices import Device
from nas_retrain.settings import Settings
from nas_retrain.trainings.failures import first_line, read_failures
from nas_retrain.trainings.store import RunRecord, read_runs
from tests import cuda_stub as stub
from tests.conftest import MakeSettings
from tests.execution.test_workers import trainings
from tests.trainings.test_store import a_record

ILLEGAL = """Traceback (most recent call last):
  File "train.py", line 1, in train
    loss.item()
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1

Device-side assertion tracking was not enabled by user.
"""


@dataclass
class Machine:
    """What happens on each device: the outcomes of starting a worker there and of its trainings, one after another;
    once they are used up, all goes well. It notes which trainings ran at the same time."""

    starts: dict[str, list[str]]
    outcomes: dict[str, list[str]]
    given: Counter[launch.Group] = field(default_factory=Counter)
    running: dict[str, set[int]] = field(default_factory=dict)
    alone: list[bool] = field(default_factory=list)

    def worker(self, _settings: Settings, place: launch.Place) -> SimpleNamespace:
        """A worker of which nothing but its end of the pipe is real. It does its work when it is given it."""
        ours, theirs = multiprocessing.Pipe()
        process = SimpleNamespace(pid=0, exitcode=-9, join=lambda *_: None, kill=lambda: None)
        worker = SimpleNamespace(
            place=place, connection=ours, process=process, group=None, ready=False, probed=time.monotonic()
        )

        def report(kind: str, records: tuple[RunRecord, ...] = ()) -> None:
            if kind in ("killed", "aborted"):
                process.exitcode = -9 if kind == "killed" else -6
                theirs.close()
            else:
                theirs.send(launch.Outcome(kind, ILLEGAL, records))  # type: ignore[arg-type]

        def give(group: launch.Group | None) -> None:
            worker.group, worker.probed = group, time.monotonic()
            if group is None:
                return
            queue = self.outcomes.get(place.device, [])
            kind = queue.pop(0) if queue else "recorded"
            self.given[group] += kind != "unfit"
            report(kind, (record_of(group),) if kind == "recorded" else ())

        def receive() -> launch.Outcome | None:
            try:
                return ours.recv()
            except EOFError:
                return None

        worker.give, worker.receive, worker.stop = give, receive, lambda: None
        queue = self.starts.get(place.device, [])
        report(queue.pop(0) if queue else "ready")
        return worker


def record_of(group: launch.Group) -> RunRecord:
    return replace(a_record(), **group[0].key._asdict())


@contextmanager
def on(machine: Machine, gpus: int, workers: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_Worker", machine.worker)
        patch.setattr(devices, "found", lambda _: Device("cuda", "a GPU"))
        patch.setattr(devices, "count", lambda _: gpus)
        patch.setattr(launch, "worker_count", lambda *_: workers)
        yield


def run(settings: Settings, machine: Machine, gpus: int, workers: int) -> launch.Tally:
    wanted = trainings(settings)
    with on(machine, gpus, workers):
        return launch.run_here([(one,) for one in wanted], {one.key for one in wanted}, settings, "test")


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings("cells=sample:6", "seeds=[1]", "recipe=[benchmark]")


def recorded(settings: Settings) -> Counter[Any]:
    return Counter(record.key for record in read_runs(settings.results_dir).records)


def test_a_gpu_that_fails_twice_is_given_up_and_named(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine({}, {"cuda:1": ["recorded", "faulty", "faulty", "recorded"]})
    tally = run(settings, machine, gpus=2, workers=2)
    assert (tally.recorded, tally.failed) == (6, [])
    assert set(recorded(settings).values()) == {1}
    told = capsys.readouterr().err
    assert "GPU 1 of " in told
    assert "is given up (torch.AcceleratorError: CUDA error: an illegal memory access was encountered)" in told
    assert machine.outcomes["cuda:1"] == ["recorded"]


def test_a_process_that_cuda_aborts_is_a_fault_of_its_gpu(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine({}, {"cuda:0": ["recorded", "aborted"]})
    tally = run(settings, machine, gpus=1, workers=1)
    assert (tally.recorded, tally.failed) == (6, [])
    assert "failed (exit code -6)" in capsys.readouterr().err


def test_workers_that_a_gpu_takes_with_it_at_once_are_one_fault(settings: Settings) -> None:
    """Four share the only GPU, and the daemon through which they do ends all of them when one fails."""
    machine = Machine({}, {"cuda:0": ["faulty"] * 4})
    assert run(settings, machine, gpus=1, workers=4).recorded == 6


def test_what_the_last_gpu_fails_at_is_left_for_another_run(settings: Settings) -> None:
    machine = Machine({}, {"cuda:0": ["recorded", "recorded", "faulty", "unfit"], "cuda:1": ["faulty", "faulty"]})
    with pytest.raises(NasRetrainError, match=r"No worker process is left: GPU . of \S+ failed 2 times"):
        run(settings, machine, gpus=2, workers=2)
    assert sum(recorded(settings).values()) == 2


def test_a_gpu_that_lets_no_second_process_in_is_used_by_the_first(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine({"cuda:0": ["ready", *["unfit"] * launch.STARTS]}, {})
    tally = run(settings, machine, gpus=1, workers=2)
    assert (tally.recorded, tally.failed) == (6, [])
    assert "given up" not in capsys.readouterr().err


def test_what_the_memory_was_too_small_for_is_tried_once_more_and_then_told(settings: Settings) -> None:
    machine = Machine({}, {"cuda:0": ["memory", "memory"]})
    assert run(settings, machine, gpus=1, workers=1).recorded == 6
    machine = Machine({}, {"cuda:0": ["memory"] * 7})
    again = settings.model_copy(update={"results_dir": settings.results_dir.parent / "again"})
    tally = run(again, machine, gpus=1, workers=2)
    assert (tally.recorded, len(tally.failed)) == (5, 1)


@cache
def tiny() -> Settings:
    return compose(
        "dataset=digits", "profile=dry", "launcher=local", "cells=sample:4", "seeds=[1]", "recipe=[benchmark]"
    )


KINDS = st.sampled_from(["recorded", "faulty", "unfit", "memory", "killed", "failed"])


@hypothesis_settings(max_examples=40)
@given(
    starts=st.lists(st.lists(st.sampled_from(["ready", "killed", "unable", "unfit"]), max_size=4), max_size=3),
    outcomes=st.lists(st.lists(KINDS, max_size=6), max_size=3),
    gpus=st.integers(1, 3),
    workers=st.integers(1, 5),
)
def test_whatever_fails_every_training_is_recorded_or_failed_or_left(
    tmp_path_factory: pytest.TempPathFactory,
    starts: list[list[str]],
    outcomes: list[list[str]],
    gpus: int,
    workers: int,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    settings = tiny().model_copy(update={"results_dir": folder})
    named = [dict(zip((f"cuda:{gpu}" for gpu in range(3)), queues, strict=False)) for queues in (starts, outcomes)]
    machine = Machine(*named)
    wanted = [training.key for training in trainings(settings)]
    try:
        tally = run(settings, machine, gpus, workers)
    except NasRetrainError as error:
        assert "No worker process is left" in str(error)  # noqa: PT017
        assert set(recorded(settings)) | set(read_failures(folder).errors) < set(wanted)
    else:
        done, failed = recorded(settings), [training.key for training in tally.failed]
        assert sorted([*done.elements(), *failed]) == sorted(wanted)
        assert set(read_failures(folder).errors) == set(failed)
    assert max(machine.given.values(), default=0) <= launch.ATTEMPTS + gpus


def test_the_first_line_of_an_error_is_told_and_not_the_hints_after_it() -> None:
    assert first_line(ILLEGAL) == "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert first_line("the worker process died 2 times (last exit code -9)").startswith("the worker process died")
    try:
        json.loads("{")
    except ValueError:
        assert first_line(traceback.format_exc()).startswith("json.decoder.JSONDecodeError: Expecting property name")


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("CUDA error: device-side assert triggered"), "device"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), "training"),
        (ZeroDivisionError("CUDA"), "training"),
    ],
)
def test_an_error_is_blamed_on_memory_device_or_training(
    monkeypatch: pytest.MonkeyPatch, error: Exception, blamed: str
) -> None:
    monkeypatch.setattr(devices, "probe", lambda _: None)
    assert devices.blamed(error, torch.device("cuda", 0)) == blamed
    assert devices.blamed(error, torch.device("cpu")) == "training"


def test_an_error_of_another_kind_is_blamed_on_a_device_that_no_longer_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(devices, "probe", broken)
    assert devices.blamed(ValueError("not a number"), torch.device("cuda", 0)) == "device"


PROGRAM = """
import json
import sys
from nas_retrain.commands.command_line import compose
from nas_retrain.execution import workers
from nas_retrain.plan import plan
from nas_retrain.trainings.store import read_runs

if __name__ == "__main__":
    settings = compose(*sys.argv[1:])
    wanted = plan.recipe_trainings(settings, 0.1)
    tally = workers.run_here([(one,) for one in wanted], {one.key for one in wanted}, settings, "test")
    stored = len(read_runs(settings.results_dir).records)
    print(json.dumps({"recorded": tally.recorded, "failed": len(tally.failed), "stored": stored}))
"""

CHOSEN = (
    *("dataset=digits", "profile=dry", "launcher=local", "dataset.verify=false", "launcher.device=cuda"),
    *("recipe=[benchmark]", "cells=sample:2", "seeds=[1]", "training.epochs=1", "network.cells_per_stage=1"),
)


def on_stub(
    library: Path, folder: Path, *overrides: str, zeros: bool = False, **faults: object
) -> tuple[dict[str, int], str]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    paths = (f"results_dir={folder / 'results'}", f"data_dir={folder / 'data'}")
    done = stub.run(library, program, *CHOSEN, *paths, *overrides, devices=2, timeout=300, zeros=zeros, **faults)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_a_gpu_that_fails_in_a_training_costs_none(cuda_stub: Path, tmp_path: Path) -> None:
    """Real worker processes and real errors of torch: a GPU fails at its hundredth launch, once."""
    once = tmp_path / "once"
    once.touch()
    counts, told = on_stub(cuda_stub, tmp_path, "launcher.workers=1", "network.channels=4", fail_at=100, once=once)
    assert (counts["recorded"], counts["failed"]) == (2, 0)
    assert not once.exists()
    assert "GPU 0 of " in told
    assert "failed (torch.AcceleratorError: CUDA error: an illegal memory access was encountered)" in told


@pytest.mark.slow
def test_a_gpu_that_no_worker_can_start_on_is_done_without(cuda_stub: Path, tmp_path: Path) -> None:
    counts, told = on_stub(cuda_stub, tmp_path, "network.channels=4", zeros=True, bad_device=1)
    assert counts == {"recorded": 2, "failed": 0, "stored": 2}
    assert "GPU 1 of " in told
    assert "failed (torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable)" in told


@pytest.mark.slow
def test_a_training_that_memory_was_too_small_for_is_done_once_it_is_alone(cuda_stub: Path, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    counts, told = on_stub(
        cuda_stub, tmp_path, "launcher.workers=1", "network.channels=16", zeros=True, memory=3_000_000, once=once
    )
    assert counts == {"recorded": 2, "failed": 0, "stored": 2}
    assert "was too small. It is tried once more at the end" in told
    assert not once.exists()
