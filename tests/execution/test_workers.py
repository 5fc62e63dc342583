"""Worker processes: whatever happens to them, every training is recorded once or told as failed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import workers as launch
from nas_retrain.plan import plan
from nas_retrain.settings import Settings
from nas_retrain.trainings.failures import read_failures
from nas_retrain.trainings.store import StoredRuns, read_runs
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.trainings.test_store import a_record


def trainings(settings: Settings) -> list[Training]:
    return plan.recipe_trainings(settings, 0.5)


def run(wanted: list[Training], settings: Settings) -> launch.Tally:
    groups = plan.groups(wanted, settings.launcher.together)
    return launch.run_here(groups, {training.key for training in wanted}, settings, "test")


@pytest.fixture
def kill_after_giving(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Kill -9 a worker some seconds after it is given a training; once for each delay listed."""
    give = launch._Worker.give

    def patch(delays: list[float]) -> None:
        def give_then_kill(worker: launch._Worker, training: Training | None) -> None:
            give(worker, training)
            if training is not None and delays:
                pid = worker.process.pid
                assert pid is not None
                threading.Timer(delays.pop(), os.kill, (pid, signal.SIGKILL)).start()

        monkeypatch.setattr(launch._Worker, "give", give_then_kill)

    return patch


def test_every_training_is_recorded_once(make_settings: MakeSettings) -> None:
    settings = make_settings("cells=sample:3", "seeds=[1]", "launcher.workers=2", "training.epochs=1")
    wanted = trainings(settings)
    tally = run(wanted, settings)
    stored = read_runs(settings.results_dir)
    assert (tally.recorded, tally.diverged, tally.failed) == (6, 0, [])
    assert {record.key for record in stored.records} == {training.key for training in wanted}
    assert stored.problems == []
    assert not list((settings.results_dir / "checkpoints").glob("*"))


def test_a_killed_worker_is_replaced_and_its_training_done(
    make_settings: MakeSettings, kill_after_giving: Callable[[list[float]], None]
) -> None:
    settings = make_settings("cells=sample:2", "seeds=[1]", "launcher.workers=1", "launcher.checkpoint_every=1")
    wanted = trainings(settings)
    delays = [0.2]
    kill_after_giving(delays)
    tally = run(wanted, settings)
    assert delays == []
    assert tally.failed == []
    assert {record.key for record in read_runs(settings.results_dir).records} == {t.key for t in wanted}


@pytest.mark.slow
def test_a_training_whose_worker_dies_each_time_is_given_up_and_told(
    make_settings: MakeSettings, kill_after_giving: Callable[[list[float]], None]
) -> None:
    settings = make_settings("cells=sample:2", "seeds=[1]", "recipe=[benchmark]", "launcher.workers=1")
    poisonous, harmless = trainings(settings)
    kill_after_giving([0.0] * launch.ATTEMPTS)
    tally = run([poisonous, harmless], settings)
    assert tally.failed == [poisonous]
    assert [record.key for record in read_runs(settings.results_dir).records] == [harmless.key]
    assert (
        f"died {launch.ATTEMPTS} times (last exit code -9)" in read_failures(settings.results_dir).errors[poisonous.key]
    )


def test_a_training_that_raises_is_logged_and_the_others_go_on(make_settings: MakeSettings) -> None:
    settings = make_settings("cells=sample:2", "seeds=[1]", "recipe=[benchmark]", "launcher.workers=1")
    broken, sound = trainings(settings)
    broken = replace(broken, learning_rate="fast")  # type: ignore[arg-type]
    tally = run([broken, sound], settings)
    assert tally.failed == [broken]
    assert [record.key for record in read_runs(settings.results_dir).records] == [sound.key]
    assert "Traceback" in read_failures(settings.results_dir).errors[broken.key]
    with (settings.results_dir / "logs" / "failures-local.jsonl").open("a") as file:
        file.write('{"key": ["torn')
    assert set(read_failures(settings.results_dir).errors) == {broken.key}


@pytest.fixture
def kill_at_start(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Kill -9 a worker as soon as its process exists; once for each worker number listed."""
    begin = launch._Worker.__init__

    def patch(numbers: list[int]) -> None:
        def begin_and_kill(worker: launch._Worker, settings: Settings, place: launch.Place) -> None:
            begin(worker, settings, place)
            if place.number in numbers:
                numbers.remove(place.number)
                worker.process.kill()

        monkeypatch.setattr(launch._Worker, "__init__", begin_and_kill)

    return patch


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[0, *[1] * launch.STARTS], [0, 1]])
def test_workers_that_are_killed_while_they_start_are_replaced_or_done_without(
    make_settings: MakeSettings,
    kill_at_start: Callable[[list[int]], None],
    capsys: pytest.CaptureFixture[str],
    kills: list[int],
) -> None:
    settings = make_settings("cells=sample:1", "seeds=[1]", "launcher.workers=2", "training.epochs=1")
    wanted, given_up = trainings(settings), len(kills) > launch.STARTS
    kill_at_start(kills)
    tally = run(wanted, settings)
    assert kills == []
    assert tally.failed == []
    assert {record.key for record in read_runs(settings.results_dir).records} == {t.key for t in wanted}
    assert ("goes on with 1 other(s)" in capsys.readouterr().err) == given_up


@pytest.mark.parametrize("workers", [1, 3])
def test_where_no_worker_can_start_the_run_ends_with_one_error(
    make_settings: MakeSettings, kill_at_start: Callable[[list[int]], None], workers: int
) -> None:
    settings = make_settings("cells=sample:4", "seeds=[1]", f"launcher.workers={workers}")
    kill_at_start([*range(workers)] * launch.STARTS)
    with pytest.raises(NasRetrainError, match=r"No worker process is left.*exit code -9.*launcher\.workers"):
        run(trainings(settings), settings)


def test_a_process_that_the_system_refuses_is_a_worker_that_cannot_start(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    settings = make_settings("cells=sample:2", "seeds=[1]", "launcher.workers=2")
    monkeypatch.setattr(launch._Worker, "__init__", refuse)
    with pytest.raises(NasRetrainError, match=r"No worker process is left.*Resource temporarily unavailable"):
        run(trainings(settings), settings)


@pytest.mark.slow
@pytest.mark.parametrize("error", [NasRetrainError("the disk is full"), ZeroDivisionError()])
def test_when_a_run_ends_by_an_error_the_others_save_first(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The first record cannot be written, while another training is far from its next checkpoint."""
    settings = make_settings("cells=sample:2", "seeds=[1]", "recipe=[benchmark]", "launcher.workers=2")
    quick, slow = trainings(settings)
    slow = replace(slow, epochs=10_000)
    settings = settings.model_copy(
        update={"launcher": settings.launcher.model_copy(update={"checkpoint_every": 10_000})}
    )

    def refuse(*_: object) -> None:
        time.sleep(0.5)
        raise error

    monkeypatch.setattr("nas_retrain.trainings.store.RunWriter.append", refuse)
    with pytest.raises(type(error)):
        run([slow, quick], settings)
    saved = [path.name for path in (settings.results_dir / "checkpoints").iterdir()]
    assert saved == [f"{slow.label}.pt"]


@pytest.mark.slow
def test_a_results_folder_that_is_moved_stops_the_run_which_says_where_it_is(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("cells=sample:3", "seeds=[1]", "launcher.workers=2", "launcher.checkpoint_every=1")
    append = launch.RunWriter.append

    def move_and_append(writer: launch.RunWriter, *records: object) -> None:
        if settings.results_dir.exists():
            settings.results_dir.rename(tmp_path / "elsewhere")
        append(writer, *records)  # type: ignore[arg-type]

    monkeypatch.setattr(launch.RunWriter, "append", move_and_append)
    with pytest.raises(NasRetrainError, match=rf"{tmp_path}/elsewhere/runs/local-0\.jsonl, with all records"):
        run(trainings(settings), settings)
    assert not settings.results_dir.exists()
    assert read_runs(tmp_path / "elsewhere").records


def test_the_checkpoints_of_recorded_trainings_are_removed_and_no_others(make_settings: MakeSettings) -> None:
    settings = make_settings("cells=sample:3", "seeds=[1,2]", "recipe=[benchmark]", "launcher.together=2")
    groups = plan.groups(trainings(settings), 2)
    recorded, torn, missing = (launch.checkpoint_path(group, settings) for group in groups)
    alone = launch.checkpoint_path(groups[0][:1], settings)
    foreign = recorded.with_name("notes.pt")
    recorded.parent.mkdir(parents=True)
    for path in (recorded, torn, missing, alone, foreign):
        path.touch()
    stored = [replace(a_record(), **training.key._asdict()) for training in [*groups[0], groups[1][0]]]
    launch.forget_recorded(groups[1:], StoredRuns.of(stored), settings)
    assert {*recorded.parent.iterdir()} == {torn, missing, foreign}


def test_missing_data_end_the_run_with_one_error(make_settings: MakeSettings) -> None:
    settings = make_settings("dataset=cifar10", "cells=sample:2", "seeds=[1]", "launcher.workers=1")
    with pytest.raises(NasRetrainError, match=r"missing .*data_batch_1"):
        run(trainings(settings), settings)


def test_workers_are_as_many_as_configured_or_one_a_core_or_gpu(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    cpu = torch.device("cpu")
    assert launch.worker_count(make_settings("launcher.workers=5"), cpu) == 5
    assert launch.worker_count(make_settings(), cpu) == len(os.sched_getaffinity(0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launch.worker_count(make_settings(), torch.device("cuda")) == 4
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert launch.worker_count(make_settings(), cpu) == 1
