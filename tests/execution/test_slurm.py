"""SLURM: what is submitted, what a task does when it is signalled, and a real cluster of one node, mistreated."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.commands import retrain, status
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import slurm, slurm_commands, workers
from nas_retrain.files import locks
from nas_retrain.plan import plan
from nas_retrain.settings import Settings, SlurmSettings
from nas_retrain.trainings.store import RunKey, read_runs
from nas_retrain.trainings.training import Slot, Training
from tests.conftest import HOSTILE, MakeSettings, processes_with

ROOT = Path(__file__).parents[2]
SLURM = ("launcher=slurm", "launcher.gpus=0", "launcher.device=cpu", "launcher.workers=1")
TINY = ("base_rate.points=2", "base_rate.seeds=[1]")
Figures = dict[RunKey, tuple[float | None, ...]]


def figures(folder: Path) -> Figures:
    return {
        record.key: (
            record.learning_rate,
            record.train_loss,
            record.train_accuracy,
            record.test_loss,
            record.test_accuracy,
        )
        for record in read_runs(folder).records
    }


def lines_by_key(folder: Path) -> Counter[RunKey]:
    return Counter(
        RunKey(*(json.loads(line)[name] for name in RunKey._fields))
        for path in (folder / "runs").iterdir()
        for line in path.read_text().splitlines()
    )


# What needs no cluster


@given(
    classes=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([2, 5]), st.floats(0, 10)), max_size=30),
    together=st.integers(1, 5),
    largest=st.floats(1, 20),
)
def test_groups_share_a_class_and_units_hold_whole_groups_in_order_and_no_more_than_they_may(
    classes: list[tuple[int, int, float]], together: int, largest: float
) -> None:
    trainings = [
        Training(
            "201", "digits", "benchmark", number, "", network_class, number, network_class, epochs, 0.1, None, "hash"
        )
        for number, (network_class, epochs, _) in enumerate(classes)
    ]
    groups = plan.groups(trainings, together)
    assert [training for group in groups for training in group] == trainings
    assert all(len(group) <= together for group in groups)
    kinds = [[(training.network_class, training.epochs) for training in group] for group in groups]
    assert all(len(set(kind)) == 1 for kind in kinds)
    assert all(len(kind) == together or kind[0] != following[0] for kind, following in pairwise(kinds))

    def size(training: Training) -> float:
        return classes[training.cell][2]

    units = plan.work_units(groups, size, largest)
    ends = [unit[-1] for unit in units]
    assert [training for unit in units for training in unit] == trainings
    assert set(ends) <= {group[-1] for group in groups}
    whole = [[group for group in groups if group[0] in unit] for unit in units]
    totals = [[sum(map(size, group)) for group in unit] for unit in whole]
    assert all(len(total) == 1 or sum(total) <= largest * (1 + 1e-9) for total in totals)
    assert all(sum(total) + following[0] > largest * (1 - 1e-9) for total, following in pairwise(totals))


@pytest.mark.parametrize("value", ["x; rm -rf ~", "x\nrm -rf ~", "$(rm -rf ~)", "`id`", "a b", "'x'", "x>y", "x\n"])
@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "analysis_partition"])
def test_a_value_in_which_a_shell_could_hide_is_an_error(make_settings: MakeSettings, key: str, value: str) -> None:
    launcher = make_settings(*SLURM).launcher
    with pytest.raises(ValueError, match=rf"{key}\n.*one word"):
        SlurmSettings.model_validate(launcher.model_dump() | {key: value})
    with pytest.raises(ValueError, match=r"sbatch.*\n.*one word"):
        SlurmSettings.model_validate(launcher.model_dump() | {"sbatch": {"gres": value}})
    with pytest.raises(ValueError, match=r"sbatch(.|\n)*String should match"):
        SlurmSettings.model_validate(launcher.model_dump() | {"sbatch": {value: "x"}})


def test_ordinary_values_of_sites_are_allowed(make_settings: MakeSettings) -> None:
    settings = make_settings(
        *SLURM, "launcher.partition='gpu_short,gpu-long'", "launcher.constraint='[a100*2|h100]&ib'",
        "launcher.account=1234", "+launcher.sbatch={gres: 'gpu:a100:1', exclude: 'node[01-07]', nice: 100, hold: true}",
    )  # fmt: skip
    assert isinstance(settings.launcher, SlurmSettings)
    assert settings.launcher.account == "1234"
    assert settings.launcher.sbatch["nice"] == "100"
    assert settings.launcher.sbatch["hold"] is True


@pytest.mark.parametrize("site", sorted(path.stem for path in (ROOT / "slurm" / "site").glob("*.yaml")))
def test_site_presets_fit_and_the_command_line_wins_over_them(make_settings: MakeSettings, site: str) -> None:
    launcher = make_settings("launcher=slurm", f"site={site}", "launcher.parallelism=3").launcher
    assert isinstance(launcher, SlurmSettings)
    assert launcher.partition is not None
    assert launcher.parallelism == 3
    with pytest.raises(NasRetrainError, match=r"launcher\.\w+ is SLURM's"):
        make_settings("launcher=local", f"site={site}")


@pytest.mark.parametrize(("hours", "seconds"), [(0.02, 90), (0.001, 60), (1, 3600), (24, 100_000), (0.5, 1800)])
@pytest.mark.parametrize("launcher", ["slurm", "auto"])
def test_a_time_limit_that_ends_before_a_task_could_train_is_refused_with_both_keys(
    make_settings: MakeSettings, launcher: str, hours: float, seconds: int
) -> None:
    chosen = (f"launcher={launcher}", f"launcher.time_hours={hours}")
    with pytest.raises(NasRetrainError, match=r"launcher\.time_hours=.*launcher\.signal_seconds="):
        make_settings(*chosen, f"launcher.signal_seconds={seconds}")
    settings = make_settings(*chosen, f"launcher.signal_seconds={seconds // 2 if seconds < 1e5 else 60}")
    assert isinstance(settings.launcher, SlurmSettings)


@pytest.mark.parametrize("option", ["ntasks", "nodes", "array", "job-name", "output", "signal", "wait", "clusters"])
def test_an_option_by_which_tasks_would_be_multiplied_or_lost_is_no_sites_to_set(
    make_settings: MakeSettings, option: str
) -> None:
    with pytest.raises(NasRetrainError, match=rf"launcher\.sbatch\.{option} cannot be set"):
        make_settings(*SLURM, f"+launcher.sbatch={{{option}: 2}}")


def test_the_cpus_of_a_job_count_inside_of_one_only(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("launcher.workers=auto")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    cores = workers.worker_count(settings, torch.device("cpu"))
    for cpus in ("1", "0", "", "many", "-1", "1.5"):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", cpus)
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        assert workers.worker_count(settings, torch.device("cpu")) == cores
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        assert workers.worker_count(settings, torch.device("cpu")) == (1 if cpus == "1" else cores)


def test_to_ask_who_works_on_a_folder_keeps_no_run_from_it(tmp_path: Path) -> None:
    with locks.exclusive(tmp_path):
        assert f"process {os.getpid()} on" in (locks.holder(tmp_path) or "")
    assert locks.holder(tmp_path) is None
    # Others that ask at the same moment share the lock for that long: neither a run nor another asker minds.
    with (tmp_path / ".lock").open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert locks.holder(tmp_path) is None
        done = threading.Timer(0.2, fcntl.flock, [asking, fcntl.LOCK_UN])
        done.start()
        with locks.exclusive(tmp_path):
            pass
        done.join()


def fake_queue(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    monkeypatch.setattr(slurm_commands, "ask", lambda *_, **__: "".join(f"{line}\n" for line in lines))


def a_submission(folder: Path, name: str, units: list[list[str]]) -> None:
    (folder / "jobs" / name).mkdir(parents=True)
    (folder / "jobs" / name / "units.json").write_text(json.dumps(units))


def test_tasks_are_on_their_way_unless_slurm_says_that_they_are_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_submission(tmp_path, "nas-retrain-training-aa", [["benchmark/1/7"], ["benchmark/2/7"], ["benchmark/3/7"]])
    states = {0: "PENDING", 1: "RUNNING", 2: "SOME_STATE_OF_NEXT_YEAR"}
    lines = [f"12|{unit}|{state}|nas-retrain-training-aa" for unit, state in states.items()]
    over = [f"11|0|{state}|nas-retrain-training-aa" for state in slurm.FINISHED_STATES]
    foreign = ["13|0|RUNNING|nas-retrain-training-bb", "14|N/A|RUNNING|bash|with|bars"]
    fake_queue(monkeypatch, [*lines, *over, *foreign])
    queue = slurm.queue(tmp_path)
    tasks = queue.tasks
    assert [(task.unit, task.running) for task in tasks] == [(0, False), (1, True), (2, False)]
    assert {task.purpose for task in tasks} == {"training"}
    assert queue.slots == {
        Slot("benchmark", 1, 7): False,
        Slot("benchmark", 2, 7): True,
        Slot("benchmark", 3, 7): False,
    }


def test_a_queue_that_does_not_answer_is_an_error_and_no_empty_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slurm.queue(tmp_path).tasks == ()  # nothing was ever submitted: there is nothing to ask
    a_submission(tmp_path, "nas-retrain-training-aa", [["benchmark/1/7"]])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NasRetrainError, match=r"squeue is not on this machine.*LAUNCHER=local"):
        slurm.queue(tmp_path)
    (tmp_path / "squeue").write_text(
        "#!/bin/sh\necho slurm_load_jobs error: Unable to contact slurm controller >&2\nexit 1\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    with pytest.raises(NasRetrainError, match=r"squeue failed: .*Unable to contact"):
        slurm.queue(tmp_path)


def test_auto_is_this_machine_where_slurm_does_not_answer(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings("launcher=auto", "cells=sample:1", "dataset.base_rate=0.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    retrain.print_plan(settings)
    assert "with" in capsys.readouterr().out
    for name in ("sbatch", "sinfo"):
        (tmp_path / name).write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    retrain.print_plan(settings)
    told = capsys.readouterr()
    assert "worker(s)" in told.out
    assert "sinfo failed: no controller" in told.err


def test_units_are_sized_in_hours_once_a_speed_is_known(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm_commands, "ask", lambda *_, **__: "MaxArraySize            = 3\n")
    chosen = ("launcher=slurm", "cells=sample:4", "seeds=[1,2]", "dataset.base_rate=0.3", "launcher.workers=2")
    unknown = make_settings(*chosen, "launcher.device=cuda", "launcher.hours_per_task=1")
    with pytest.raises(NasRetrainError, match=r"hours_per_task needs a measured speed.*trainings_per_task"):
        retrain.print_plan(unknown)
    known = make_settings(*chosen, "launcher.gpus=0", "launcher.hours_per_task=1e-6")
    retrain.print_plan(known)
    assert "16 trainings in 16 task(s) of 6 job array(s)" in capsys.readouterr().out
    retrain.print_plan(make_settings(*chosen, "launcher.gpus=0", "launcher.hours_per_task=100"))
    assert "16 trainings in 1 task(s) of 1 job array(s)" in capsys.readouterr().out
    retrain.print_plan(make_settings(*chosen, "launcher.device=cuda", "launcher.trainings_per_task=8"))
    assert "cost           unknown until some trainings have run" in capsys.readouterr().out


class TestTask:
    """What a task does, without a cluster: `scontrol requeue` is only noted."""

    @pytest.fixture
    def requeued(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
        asked: list[tuple[str, ...]] = []
        monkeypatch.setattr(slurm_commands, "ask", lambda *command: asked.append(command) or "")  # type: ignore[func-returns-value]
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        return asked

    @pytest.fixture
    def settings(self, make_settings: MakeSettings) -> Settings:
        return make_settings(
            *SLURM,
            "cells=sample:2",
            "seeds=[1]",
            "dataset.base_rate=0.3",
            "training.epochs=8",
            "launcher.checkpoint_every=100",
        )

    def slots(self, settings: Settings) -> list[Slot]:
        return [training.slot for training in plan.recipe_trainings(settings, 0.3)]

    def send_when_under_way(self, settings: Settings, *signals: signal.Signals) -> threading.Thread:
        def send() -> None:
            while not read_runs(settings.results_dir).records:
                time.sleep(0.02)
            time.sleep(0.3)
            for number in signals:
                os.kill(os.getpid(), number)
                time.sleep(0.2)

        thread = threading.Thread(target=send)
        thread.start()
        return thread

    @pytest.mark.slow
    def test_at_the_signal_it_saves_is_queued_again_and_continues_there_to_the_same_bits(
        self, settings: Settings, requeued: list[tuple[str, ...]], tmp_path: Path
    ) -> None:
        slots = self.slots(settings)
        sender = self.send_when_under_way(settings, signal.SIGUSR2)
        with pytest.raises(SystemExit):
            slurm.train_unit(settings, "unit", slots)
        sender.join()
        assert requeued == [("scontrol", "requeue", "77")]
        assert 0 < len(read_runs(settings.results_dir).records) < len(slots)
        assert len(list((settings.results_dir / "checkpoints").iterdir())) == 1  # though none was due
        slurm.train_unit(settings, "unit", slots)
        assert set(lines_by_key(settings.results_dir).values()) == {1}
        assert list((settings.results_dir / "checkpoints").iterdir()) == []
        undisturbed = settings.model_copy(update={"results_dir": tmp_path / "undisturbed"})
        slurm.train_unit(undisturbed, "unit", slots)
        assert figures(settings.results_dir) == figures(undisturbed.results_dir)

    def test_when_it_is_cancelled_it_saves_and_is_not_queued_again(
        self, settings: Settings, requeued: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(slurm, "GRACE_SECONDS", 0.5)
        sender = self.send_when_under_way(settings, signal.SIGTERM)
        slurm.train_unit(settings, "unit", self.slots(settings))
        sender.join()
        assert requeued == []
        assert len(list((settings.results_dir / "checkpoints").iterdir())) == 1

    @pytest.mark.slow
    def test_preempted_with_both_signals_it_is_queued_again(
        self, settings: Settings, requeued: list[tuple[str, ...]]
    ) -> None:
        sender = self.send_when_under_way(settings, signal.SIGTERM, signal.SIGUSR2)
        with pytest.raises(SystemExit):
            slurm.train_unit(settings, "unit", self.slots(settings))
        sender.join()
        assert requeued == [("scontrol", "requeue", "77")]

    @pytest.mark.slow
    def test_it_is_not_queued_again_for_ever(
        self, settings: Settings, requeued: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "100")
        sender = self.send_when_under_way(settings, signal.SIGUSR2)
        with pytest.raises(NasRetrainError, match=r"100 times.*launcher\.max_requeues"):
            slurm.train_unit(settings, "unit", self.slots(settings))
        sender.join()
        assert requeued == []

    def test_without_a_base_rate_it_trains_nothing_and_says_why(self, make_settings: MakeSettings) -> None:
        settings = make_settings(*SLURM, *TINY, "cells=sample:1", "seeds=[1]")
        with pytest.raises(NasRetrainError, match=r"learning rates did not finish.*make retrain"):
            slurm.train_unit(settings, "unit", self.slots(settings))
        assert read_runs(settings.results_dir).records == []


# What needs one


@pytest.fixture(scope="session")
def _cluster() -> None:
    """A skip unless commands here speak to the test cluster, lest tests submit to a real one."""
    how = "start one with slurm/test_cluster.sh install; slurm/test_cluster.sh start; export SLURM_CONF as it says"
    if shutil.which("scontrol") is None:
        pytest.skip(f"SLURM is not installed: {how}")
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    if "nas-retrain-test" not in shown.stdout:
        pytest.skip(f"no test cluster of SLURM answers here: {how}")


def queue(folder: Path) -> dict[str, str]:
    """The state of every task of a results folder that squeue lists, by the id that commands take."""
    names = slurm.submissions(folder)
    done = subprocess.run(
        ["squeue", "--states=all", "--array", "--noheader", "--format=%i|%T|%j"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {job: state for job, state, name in rows if name in names and state not in slurm.FINISHED_STATES}


def wait_until_over(folder: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while jobs := queue(folder):
        assert time.monotonic() < end, f"still on their way: {jobs}"
        release(jobs)
        time.sleep(0.5)


def release(jobs: dict[str, str]) -> None:
    """Spare tasks that were queued again the two minutes that SLURM makes them wait."""
    for job, state in jobs.items():
        if state == "PENDING":
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_a_cluster_gives_what_this_machine_gives_and_nothing_is_submitted_twice(
    make_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("cells=sample:4", "seeds=[1,2]", "launcher.together=3", *TINY)
    here = make_settings(*chosen, f"results_dir={tmp_path / 'here'}")
    there = make_settings(*SLURM, *chosen, f"results_dir={tmp_path / 'there'}", "launcher.trainings_per_task=5")
    retrain.retrain(here)

    held = there.model_copy(update={"launcher": there.launcher.model_copy(update={"sbatch": {"hold": True}})})
    retrain.print_plan(held)
    assert "18 trainings in 5 task(s) of 2 job array(s)" in capsys.readouterr().out
    assert not there.results_dir.exists()
    retrain.retrain(held)
    jobs = queue(there.results_dir)
    assert len(jobs) == 1 + 4 + 1
    capsys.readouterr()
    retrain.retrain(there)
    assert "nothing was submitted" in capsys.readouterr().out
    assert queue(there.results_dir) == jobs
    with pytest.raises(NasRetrainError, match=r"SLURM has tasks of .*make cancel"):
        retrain.retrain(there.model_copy(update={"launcher": here.launcher}))
    status.status(there)
    told = capsys.readouterr().out
    assert re.search(r"digits +benchmark +8 +0 +0 +0 +0 +8 +0 +8", told)
    assert f"0 task(s) of SLURM running, {len(jobs)} queued" in told

    subprocess.run(["scontrol", "release", *{job.partition("_")[0] for job in jobs}], check=True)
    wait_until_over(there.results_dir)
    assert figures(there.results_dir) == figures(here.results_dir)
    written = {path.relative_to(here.results_dir) for path in here.results_dir.glob("tables/*.csv")}
    assert written
    for path in [*written, Path("base_rate.json")]:
        assert (there.results_dir / path).read_bytes() == (here.results_dir / path).read_bytes()
    assert (there.results_dir / "report.md").exists()

    capsys.readouterr()
    retrain.retrain(there)
    assert "Nothing left to train" in capsys.readouterr().out
    assert not slurm.submissions(there.results_dir)  # nothing more to know about them
    assert queue(there.results_dir) == {}


def processes(job: str, what: bytes) -> list[int]:
    """The processes of a task whose command line has this in it."""
    told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    number = told.partition("JobId=")[2].partition(" ")[0]
    found = []
    for process in processes_with("SLURM_JOB_ID", number) if number else []:
        with suppress(OSError):
            if what in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def is_training(job: str) -> bool:
    """Whether a task is past its start: a worker has used more processor time than the imports take."""
    for process in processes(job, b"spawn_main"):
        with suppress(OSError):
            ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
            if sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") > 4:
                return True
    return False


def hit(kind: str, job: str) -> bool:
    """Do something bad to a task; tells whether it was still there to be hit."""
    commands = {
        "USR2": ["scancel", "--signal=USR2", job],
        "requeue": ["scontrol", "requeue", job],
        "scancel": ["scancel", job],
    }
    if kind in commands:
        return subprocess.run(commands[kind], capture_output=True, check=False).returncode == 0
    wanted = processes(job, b"spawn_main" if kind == "kill worker" else b"submitit.core._submit")
    for process in wanted:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return bool(wanted)


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_soak(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Tasks are hit again and again; in the end every training is there once, with an undisturbed run's figures."""
    chosen = (
        "cells=sample:5", "seeds=[1,2,3,4]", "training.epochs=16", "launcher.checkpoint_every=5",
        "dataset.base_rate=0.3", "analysis.bootstrap_draws=10", "analysis.null_draws=10",
    )  # fmt: skip
    here = make_settings(*chosen, f"results_dir={tmp_path / 'here'}")
    there = make_settings(*chosen, f"results_dir={tmp_path / 'there'}", *SLURM, "launcher.trainings_per_task=10")
    retrain.retrain(here)
    assert len(figures(here.results_dir)) == 40

    random_ = random.Random(4)
    kinds = ["USR2", "kill worker", "requeue", "kill task", "scancel"]
    blows: Counter[str] = Counter()
    restarted = False

    def saved() -> int:  # a signal that comes before the first training has begun saves nothing
        return sum("Saved; queued again" in log.read_text() for log in there.results_dir.glob("jobs/*/*_log.out"))

    for _ in range(10):
        retrain.retrain(there)
        while jobs := queue(there.results_dir):
            release(jobs)
            time.sleep(random_.uniform(0.2, 2))
            training = [job for job, state in jobs.items() if state == "RUNNING" and is_training(job)]
            if training and (sum(blows.values()) < 2 * len(kinds) or (not saved() and blows["USR2"] < 20)):
                kind = min(kinds, key=lambda kind: blows[kind]) if sum(blows.values()) < 2 * len(kinds) else "USR2"
                blows[kind] += hit(kind, random_.choice(training))
            if sum(blows.values()) >= 5 and not restarted:
                subprocess.run(
                    [ROOT / "slurm" / "test_cluster.sh", "restart-controller"], check=True, capture_output=True
                )
                restarted = True
        if len(figures(there.results_dir)) == 40:
            break
    assert restarted
    assert min(blows[kind] for kind in kinds) >= 2, blows
    assert saved() >= 1
    assert figures(there.results_dir) == figures(here.results_dir)
    assert set(lines_by_key(there.results_dir).values()) == {1}
    assert read_runs(there.results_dir).problems == []
    assert list((there.results_dir / "checkpoints").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_the_whole_benchmark_is_submitted_within_a_minute_and_its_arrays_within_the_sites_limit(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings(
        *SLURM, "profile=full", "network.channels=16", "training.epochs=200", "cells=all", "seeds=[777,888,999]",
        "+launcher.sbatch.hold=true", "launcher.parallelism=3",
    )  # fmt: skip
    begun = time.monotonic()
    retrain.retrain(settings)
    seconds = time.monotonic() - begun
    try:
        assert seconds < 60
        folder = settings.results_dir
        arrays = {name: units for name, units in slurm.submissions(folder).items() if "training" in name}
        slots = [slot for units in arrays.values() for unit in units for slot in unit]
        assert len(slots) == len(set(slots)) == 5461 * 3 * 2
        assert all(len(units) <= slurm.largest_array() for units in arrays.values())
        assert len(arrays) == 4
        assert len(queue(folder)) == sum(map(len, arrays.values())) + 2
        assert sum(path.is_file() for path in folder.rglob("*")) < 2000
        throttles = [
            int(line.split("ArrayTaskThrottle=")[1].split()[0])
            for name in arrays
            for line in shown(name).splitlines()
            if "ArrayTaskThrottle=" in line
        ]
        assert sorted(throttles) == [1, 1, 1, 1]  # three lanes of one task each; the fourth array waits for the first
    finally:
        retrain.cancel(settings)
    assert queue(folder) == {}


def shown(name: str) -> str:
    jobs = subprocess.run(
        ["squeue", "--noheader", "--format=%F", f"--name={name}"], capture_output=True, text=True, check=True
    )
    (job,) = set(jobs.stdout.split())
    return subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_cancel_stops_this_runs_jobs_and_no_others(
    make_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = (*SLURM, "cells=sample:1", "seeds=[1]", "dataset.base_rate=0.3", "+launcher.sbatch.hold=true")
    mine, other = (make_settings(*chosen, f"results_dir={tmp_path / name}") for name in ("mine", "other"))
    for settings in (mine, other):
        retrain.retrain(settings)
    others = queue(other.results_dir)
    assert len(others) == 2
    retrain.cancel(mine)
    assert queue(mine.results_dir) == {}
    assert queue(other.results_dir) == others
    retrain.cancel(mine)
    assert "SLURM has no task of this run" in capsys.readouterr().out
    retrain.cancel(other)
    assert queue(other.results_dir) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_what_sbatch_refuses_is_told_with_its_reason(make_settings: MakeSettings) -> None:
    settings = make_settings(
        *SLURM, "cells=sample:1", "seeds=[1]", "dataset.base_rate=0.3", "launcher.partition=no_such_partition"
    )
    with pytest.raises(NasRetrainError, match=r"sbatch refused: .*invalid partition.*Check partition"):
        retrain.retrain(settings)
    assert queue(settings.results_dir) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_status_shows_the_end_of_a_lost_tasks_log(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(*SLURM, "cells=sample:1", "seeds=[1]", "dataset.base_rate=0.3")
    launcher = settings.launcher.model_copy(update={"device": "mps"})  # this machine has none: the task fails
    retrain.retrain(settings.model_copy(update={"launcher": launcher}))
    wait_until_over(settings.results_dir)
    capsys.readouterr()
    status.status(settings)
    told = capsys.readouterr().out
    assert "1 task(s) ended with trainings undone; make retrain submits these again" in told
    assert "launcher.device=mps: this machine has no such device" in told


def asked_for(folder: Path) -> list[dict[str, str]]:
    """What SLURM says that each job of a results folder asks for, without what differs between any two submissions."""
    told = []
    for name in sorted(slurm.submissions(folder)):
        job = shown(name).partition("\n\n")[0]
        fields = dict(field.partition("=")[::2] for field in job.split())
        kept = {
            key: value
            for key, value in fields.items()
            if not re.search(r"Time$|LastSchedEval|JobId$|Name$|Command|Std|Depend", key)
        }
        told.append(kept | {"purpose": name.rpartition("-")[0]})
    return told


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_a_real_slurm_is_asked_for_the_same_whatever_the_environment_says_and_tasks_run_in_it(
    make_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = (*SLURM, "cells=sample:2", "seeds=[1]", "dataset.base_rate=0.3", "launcher.trainings_per_task=2")
    told, submitted = [], []
    for hostile in (False, True):
        settings = make_settings(*chosen, f"results_dir={tmp_path / 'here' / 'results'}", "+launcher.sbatch.hold=true")
        with pytest.MonkeyPatch.context() as environment:
            for name, value in HOSTILE.items() if hostile else ():
                environment.setenv(name, value)
            retrain.retrain(settings)
            retrain.retrain(settings)
            status.status(settings)
        jobs = queue(settings.results_dir)
        assert len(jobs) == 3
        submitted.append(asked_for(settings.results_dir))
        told.append(re.sub(r"speed .*|cost .*|job [0-9]+ +|jobs .*", "", capsys.readouterr().out))
        if hostile:
            subprocess.run(["scontrol", "release", *{job.partition("_")[0] for job in jobs}], check=True)
            wait_until_over(settings.results_dir)
            assert set(lines_by_key(settings.results_dir).values()) == {1}
            assert len(figures(settings.results_dir)) == 4
            assert (settings.results_dir / "report.md").exists()
        else:
            retrain.cancel(settings)
            shutil.rmtree(settings.results_dir)
            capsys.readouterr()
    assert told[0] == told[1]
    assert submitted[0] == submitted[1]


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_a_node_with_hyper_threads_runs_each_task_once(make_settings: MakeSettings, tmp_path: Path) -> None:
    runs = []
    for number, site in enumerate(("{hint: multithread}", "{exclusive: true, export: NONE}")):
        settings = make_settings(
            *SLURM, "cells=sample:1", "seeds=[1,2]", "dataset.base_rate=0.3", "training.epochs=1",
            f"+launcher.sbatch={site}", "analysis.bootstrap_draws=2", "analysis.null_draws=2",
            f"results_dir={tmp_path / str(number)}",
        )  # fmt: skip
        retrain.retrain(settings)
        runs.append(settings.results_dir)
    for folder in runs:
        wait_until_over(folder)
        lines = lines_by_key(folder)
        assert len(lines) == 4
        assert set(lines.values()) == {1}
        logs = list(folder.glob("jobs/*/*.out"))
        assert len(logs) == 2
        assert all(log.read_text().count("Starting with JobEnvironment") == 1 for log in logs)
