"""Worker processes: whatever happens to them, every training is recorded once or told as failed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nas_retrain import launch, plan
from nas_retrain.config import Settings
from nas_retrain.errors import NasRetrainError
from nas_retrain.failures import read_failures
from nas_retrain.plan import Training
from nas_retrain.store import read_runs
from tests.conftest import MakeSettings


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


def test_missing_data_end_the_run_with_one_error(make_settings: MakeSettings) -> None:
    settings = make_settings("dataset=cifar10", "cells=sample:2", "seeds=[1]")
    with pytest.raises(NasRetrainError, match=r"missing .*data_batch_1"):
        run(trainings(settings), settings)


def test_two_runs_on_one_folder_are_refused_with_who_holds_it(tmp_path: Path) -> None:
    with launch.exclusive(tmp_path):
        holder = launch.holder(tmp_path)
        assert holder is not None
        assert f"process {os.getpid()} " in holder
        with pytest.raises(NasRetrainError, match=f"process {os.getpid()} .*results_dir"), launch.exclusive(tmp_path):
            pass
    assert launch.holder(tmp_path) is None
    with launch.exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NasRetrainError, match=r"file.*results_dir"), launch.exclusive(tmp_path / "file" / "results"):
        pass


def test_workers_are_as_many_as_configured_or_one_a_core_or_gpu(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    cpu = torch.device("cpu")
    assert launch.worker_count(make_settings("launcher.workers=5"), cpu) == 5
    assert launch.worker_count(make_settings(), cpu) == len(os.sched_getaffinity(0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launch.worker_count(make_settings(), torch.device("cuda")) == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert launch.worker_count(make_settings(), cpu) == 1
