"""The whole pipeline, through its scripts: run, run again, kill, interrupt, and refuse."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from scipy.stats import kendalltau

from nas_retrain.commands import retrain
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import workers
from nas_retrain.files import locks
from nas_retrain.plan import plan
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import RunKey, RunWriter, read_runs
from tests.conftest import (
    ROOT,
    MakeSettings,
    processes_with,
    run_script,
    write_cifar10,
    write_cifar100,
    write_imagenet16,
)
from tests.trainings.test_store import a_record

TINY = [
    "dataset=digits", "profile=dry", "cells=sample:4", "seeds=[1,2]", "network.channels=4", "training.epochs=3",
    "base_rate.points=2", "base_rate.seeds=[1]", "launcher=local", "launcher.device=cpu",
    "launcher.workers=2", "launcher.checkpoint_every=1",
]  # fmt: skip
RECORDS = 4 * 2 * 2 + 2


def command(results: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "retrain.py"), *TINY, f"results_dir={results}", *overrides]


def run(script: str, results: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run_script(script, *TINY, f"results_dir={results}", *overrides)


def start(results: Path) -> subprocess.Popen[str]:
    # Where the tests run in the background, a shell may have made them, and their children, deaf to Ctrl-C.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command(results),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=heed,
        env=os.environ | {"RESULTS_OF_THIS_TEST": str(results)},
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def processes_of(results: Path) -> list[int]:
    return processes_with("RESULTS_OF_THIS_TEST", str(results))


def figures(results: Path) -> dict[RunKey, tuple[object, ...]]:
    return {
        record.key: (record.learning_rate, record.status, record.train_loss, record.test_loss, record.test_accuracy)
        for record in read_runs(results).records
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of one run that nothing disturbed."""
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    done = subprocess.run(command(results, "launcher.workers=1"), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return results


def test_a_run_leaves_every_record_the_base_rate_and_tables(undisturbed: Path) -> None:
    stored = read_runs(undisturbed)
    assert len(stored.records) == RECORDS
    assert stored.problems == []
    assert len(pd.read_parquet(undisturbed / "runs.parquet")) == RECORDS
    found = json.loads((undisturbed / "base_rate.json").read_text())
    assert len(found["grid"]) == 2
    ruled = [record for record in stored.records if record.recipe == "architecture_aware"]
    assert ruled
    assert all(record.learning_rate is not None and record.learning_rate <= found["base_rate"] for record in ruled)
    assert not list((undisturbed / "checkpoints").glob("*"))
    runs = pd.read_parquet(undisturbed / "runs.parquet")
    means = runs.pivot_table(index="cell", columns="recipe", values="test_accuracy")
    means = means.loc[means["architecture_aware"].notna()]
    change = pd.read_csv(undisturbed / "tables" / "ranking_change.csv").set_index("top_percent")
    expected = kendalltau(means["benchmark"], means["architecture_aware"]).statistic
    assert change.loc[100, "kendall_tau"] == pytest.approx(expected, abs=1e-5)
    gain = pd.read_csv(undisturbed / "tables" / "accuracy_gain.csv")["mean_gain"][0]
    assert gain == pytest.approx((means["architecture_aware"] - means["benchmark"]).mean(), abs=1e-4)
    assert f"between the rankings: {expected:.3f}" in (undisturbed / "report.md").read_text()


def test_run_again_it_trains_nothing(undisturbed: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(undisturbed, results)
    before = {path: path.read_bytes() for path in (results / "runs").iterdir()}
    done = run("retrain", results)
    assert done.returncode == 0, done.stderr
    assert "0 to do" in done.stdout
    assert "Nothing left to train" in done.stdout
    assert {path: path.read_bytes() for path in (results / "runs").iterdir()} == before


@pytest.mark.slow
def test_killed_halfway_and_run_again_it_completes_with_the_same_figures(undisturbed: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for records in (1, RECORDS // 2):
        process = start(results)
        wait_for(lambda records=records: len(read_runs(results).records) >= records)  # type: ignore[misc]
        process.kill()
        process.communicate()
        wait_for(lambda: not processes_of(results), seconds=10)  # orphans end by themselves
    assert len(read_runs(results).records) < RECORDS
    done = run("retrain", results)
    assert done.returncode == 0, done.stderr
    assert figures(results) == figures(undisturbed)


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(undisturbed: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    process = start(results)
    wait_for(lambda: len(read_runs(results).records) >= 3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "same command continues" in output
    assert "Traceback" not in errors
    wait_for(lambda: not processes_of(results), seconds=10)
    status = run("status", results)
    assert status.returncode == 0
    assert "no run is working on it" in status.stdout
    assert run("retrain", results).returncode == 0
    assert figures(results) == figures(undisturbed)


@pytest.mark.slow
def test_a_second_run_at_the_same_time_is_refused_and_harms_nothing(undisturbed: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    first = start(results)
    wait_for(lambda: len(read_runs(results).records) >= 1)
    second = run("retrain", results)
    assert second.returncode == 2
    assert f"process {first.pid} on" in second.stderr
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    assert figures(results) == figures(undisturbed)


def test_another_budget_in_the_same_folder_is_refused(undisturbed: Path) -> None:
    before = figures(undisturbed)
    done = run("retrain", undisturbed, "training.epochs=4")
    assert done.returncode == 2
    assert "training.epochs: 3 there, 4 now" in done.stderr
    assert figures(undisturbed) == before


def test_an_analysis_with_settings_of_no_training_says_so(undisturbed: Path) -> None:
    before = figures(undisturbed)
    done = run("analyze", undisturbed, "training.epochs=4")
    assert done.returncode == 2
    assert "none that these settings ask for" in done.stderr
    assert "settings.json" in done.stderr
    assert figures(undisturbed) == before


def test_status_and_plan_tell_where_it_stands_and_write_nothing(undisturbed: Path, tmp_path: Path) -> None:
    status = run("status", undisturbed)
    assert status.returncode == 0, status.stderr
    assert "architecture_aware" in status.stdout
    results = tmp_path / "results"
    plan = run("plan", results)
    assert plan.returncode == 0, plan.stderr
    assert f"{RECORDS} wanted (with 2 that search learning rates), 0 stored, {RECORDS} to do" in plan.stdout
    assert "images/s a worker" in plan.stdout
    assert not results.exists()


def test_the_full_benchmark_without_data_says_what_it_costs_and_starts_nothing(tmp_path: Path) -> None:
    done = run_script("retrain", "launcher=local", "launcher.device=cpu", cwd=tmp_path)
    assert done.returncode == 2
    assert "15,625 chosen, 5,461 network classes" in done.stdout
    assert "hours with" in done.stdout
    assert "cifar10 lacks 6 file(s)" in done.stderr
    assert "launcher.max_hours" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("retrain", tmp_path / "file" / "results")
    assert done.returncode == 2
    assert "Cannot write" in done.stderr
    assert "Traceback" not in done.stderr


class WorkerHere(workers._Worker):
    """A worker that is no process of its own, which would load torch for seconds: it trains as it is given a group."""

    def __init__(self, settings: Settings, place: workers.Place) -> None:
        self.place, self.ready, self.probed, self.group = place, False, time.monotonic(), None
        self.connection, self._theirs = multiprocessing.Pipe()
        self.process: Any = SimpleNamespace(kill=lambda: None, join=lambda *_: None, exitcode=0)
        self._outcomes = workers._outcomes(self._theirs, settings, place, threading.Event())
        self._theirs.send(next(self._outcomes))

    def give(self, group: workers.Group | None) -> None:
        super().give(group)
        if group is None:
            self._theirs.close()
        else:
            self._theirs.send(next(self._outcomes))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("dataset", "write", "train_images", "test_images"),
    [
        ("cifar10", write_cifar10, 30, 6),
        ("cifar100", write_cifar100, 30, 6),
        ("imagenet16_120", write_imagenet16, None, None),
    ],
)
def test_an_epoch_on_each_data_set_from_files_in_its_real_format(
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    dataset: str,
    write: Callable[[Path], object],
    train_images: int | None,
    test_images: int | None,
) -> None:
    written = write(tmp_path / "data")
    if isinstance(written, tuple):
        train_images, test_images = written
    settings = make_settings(
        f"dataset={dataset}", f"dataset.train_images={train_images}", f"dataset.test_images={test_images}",
        "dataset.train_subset=null", "cells=sample:2", "seeds=[1]", "training.epochs=1", "base_rate.points=2",
        "base_rate.seeds=[1]", "launcher.workers=1", "analysis.null_draws=20", "analysis.bootstrap_draws=20",
    )  # fmt: skip
    monkeypatch.setattr(workers, "_Worker", WorkerHere)
    retrain.retrain(settings)
    records = read_runs(settings.results_dir).records
    assert {(record.dataset, record.status) for record in records} == {(dataset, "finished")}
    assert len(records) == 2 * 2 + 2


@pytest.mark.parametrize("overrides", [["dataset.base_rate=0.3"], ["recipe=[benchmark]"], ["launcher.together=6"]])
def test_what_another_run_finished_before_the_lock_was_had_is_not_trained_again(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    """Nor downloaded for: what is done inside the lock is what was planned inside it."""
    settings = make_settings("cells=sample:4", "seeds=[1,2]", "dataset.base_rate=0.3", *overrides)
    taken = locks.exclusive

    @contextmanager
    def after_another_run(folder: Path) -> Iterator[locks.Lock]:
        with taken(folder) as lock:
            with RunWriter(folder / "runs", "local") as writer:
                for training in plan.recipe_trainings(settings, 0.3):
                    writer.append(replace(a_record(), **training.key._asdict()))
            yield lock

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(locks, "exclusive", after_another_run)
    monkeypatch.setattr(workers, "run_here", refuse)
    monkeypatch.setattr(retrain.sources, "fetch", refuse)
    monkeypatch.setattr(retrain, "_merge_and_analyse", lambda _: None)
    retrain.retrain(settings)


@pytest.mark.parametrize("change", ["moved", "removed"])
def test_a_results_folder_that_is_moved_between_trainings_and_analysis_is_not_made_anew(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    settings = make_settings("cells=sample:2", "seeds=[1]", "dataset.base_rate=0.3")

    def move(*_: object) -> workers.Tally:
        if change == "moved":
            settings.results_dir.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(settings.results_dir)
        return workers.Tally()

    monkeypatch.setattr(workers, "run_here", move)
    told = rf"{tmp_path}/elsewhere" if change == "moved" else "removed"
    with pytest.raises(NasRetrainError, match=told):
        retrain.retrain(settings)
    assert not settings.results_dir.exists()


def test_data_that_are_missing_stop_a_run_before_it_writes(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", no_network)
    settings = make_settings("dataset=cifar10", "cells=sample:1", "seeds=[1]", "dataset.base_rate=0.1")
    with pytest.raises(NasRetrainError, match=r"data_batch_1.*no network.*data_dir"):
        retrain.retrain(settings)
    assert not settings.results_dir.exists()
