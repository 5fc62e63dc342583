"""SLURM: submit work units as tasks of job arrays through submitit, see which are on their way, and run one.

A submission is a folder jobs/<name>: units.json says which trainings each task of the array does, written before sbatch
is called, and SLURM knows the job by the same name. So squeue alone tells what is on its way, even if the submitting
process was killed between two lines; no clock, job id or accounting is needed for it. What is done, the store tells.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from nas_retrain import launch, plan
from nas_retrain.config import Settings, SlurmSettings
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import Training
from nas_retrain.store import read_runs, replacing

Purpose = Literal["base-rate", "training", "analysis"]

PREFIX = "nas-retrain-"

FINISHED_STATES = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""Job states after which nothing more comes. A job in any other one, also one unknown here, is on its way."""

ANALYSIS_HOURS = 1
ANSWER_SECONDS = 60
GRACE_SECONDS = 900


@dataclass(frozen=True)
class Task:
    """A task on its way: unit `unit` of submission `name`, in job `job`; running, or else queued."""

    name: str
    unit: int
    job: str
    running: bool

    @property
    def purpose(self) -> str:
        """What the submission is for; see `Purpose`."""
        return self.name.removeprefix(PREFIX).rpartition("-")[0]


@dataclass(frozen=True)
class Submitted:
    """One job array that SLURM accepted."""

    purpose: Purpose
    job: str
    tasks: int


def answers() -> bool:
    """Whether this machine can submit to a SLURM that answers."""
    if shutil.which("sbatch") is None:
        return False
    try:
        _ask("sinfo", "--noheader", "--format=%P")
    except NasRetrainError as error:
        print(f"note: {error} Working on this machine.", file=sys.stderr)  # noqa: T201
        return False
    return True


def _ask(*command: str) -> str:
    """What a SLURM command prints. Raises NasRetrainError if it is absent, fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)  # noqa: S603
    except FileNotFoundError as error:
        raise NasRetrainError(
            f"{command[0]} is not on this machine. Work on a login node of the cluster, or here with LAUNCHER=local."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise NasRetrainError(f"SLURM's {command[0]} did not answer within {ANSWER_SECONDS} seconds.") from error
    except subprocess.CalledProcessError as error:
        raise NasRetrainError(f"SLURM's {command[0]} failed: {error.stderr.strip()}.") from error
    return done.stdout


def largest_array() -> int:
    """How many tasks this site allows in one job array. Raises NasRetrainError if SLURM does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    if found is None:
        raise NasRetrainError("scontrol show config does not tell MaxArraySize.")
    return max(1, int(found[1]))


def submissions(folder: Path) -> dict[str, list[list[str]]]:
    """Every submission of a results folder that is still kept: its name, and the slots (see `Training.slot`) that
    each of its tasks was given."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("jobs/*/units.json"))}


def tasks_on_their_way(folder: Path) -> list[Task]:
    """The tasks of a results folder that SLURM has queued or running. Raises NasRetrainError if SLURM does not say:
    a task must never be taken for gone because nobody answered."""
    names = submissions(folder)
    if not names:
        return []
    listed = _ask(
        "squeue", f"--user={os.getuid()}", "--states=all", "--array", "--noheader", "--format=%F|%K|%T|%j"
    ).splitlines()
    tasks = []
    for line in listed:
        job, index, state, name = line.split("|", 3)
        if name in names and state not in FINISHED_STATES:
            tasks.append(Task(name, int(index) if index.isdecimal() else 0, job, state == "RUNNING"))
    return tasks


def slots_on_their_way(folder: Path, tasks: Collection[Task]) -> dict[str, bool]:
    """The slots that these tasks were given, done or not, and whether the task is running."""
    units = submissions(folder)
    return {
        slot: task.running
        for task in sorted(tasks, key=lambda task: task.running)
        if task.unit < len(units.get(task.name, []))
        for slot in units[task.name][task.unit]
    }


def task_workers(settings: SlurmSettings) -> int:
    """How many trainings a task does at once."""
    if settings.workers != "auto":
        return settings.workers
    return settings.gpus or settings.cpus or 1


def array_count(units: int, largest: int) -> int:
    """How many arrays that many tasks need."""
    return -(-units // largest)


def submit(
    purpose: Purpose, units: Sequence[Sequence[Training]], settings: Settings, largest: int, after: Collection[str]
) -> list[Submitted]:
    """Submit one task for each unit, in arrays of at most `largest`, to start once the jobs `after` have ended.

    At most launcher.parallelism tasks run at once, over all arrays: each gets its share of it, and where there are
    more arrays than that, some wait for others. Raises NasRetrainError if sbatch refuses; what it accepted before is
    queued and known.
    """
    launcher = _slurm(settings)
    lanes = min(array_count(len(units), largest), launcher.parallelism)
    accepted: list[Submitted] = []
    for first in range(0, len(units), largest):
        number = len(accepted)
        before = [*after, *([accepted[number - lanes].job] if number >= lanes else [])]
        share = launcher.parallelism // lanes + (number % lanes < launcher.parallelism % lanes)
        part = units[first : first + largest]
        slots = [[training.slot for training in unit] for unit in part]
        name, folder = _new_submission(purpose, slots, settings)
        executor = _executor(name, folder, launcher, gpus=launcher.gpus, after=before)
        executor.update_parameters(array_parallelism=share)
        names = [f"{name}-{unit:05}" for unit in range(len(part))]
        with _telling_refusals():
            jobs = executor.map_array(train_unit, [settings] * len(part), names, slots)
        accepted.append(Submitted(purpose, jobs[0].job_id.split("_")[0], len(part)))
    return accepted


def submit_analysis(analyse: Callable[[Settings], None], settings: Settings, after: Collection[str]) -> Submitted:
    """Submit `analyse(settings)` as a job that starts once the jobs `after` have ended, however they ended."""
    name, folder = _new_submission("analysis", [], settings)
    executor = _executor(name, folder, _slurm(settings), gpus=0, after=after)
    with _telling_refusals():
        job = executor.submit(analyse, settings)
    return Submitted("analysis", job.job_id, 1)


def cancel(tasks: Collection[Task]) -> list[str]:
    """Cancel the jobs that these tasks belong to, and tell which."""
    jobs = sorted({task.job for task in tasks}, key=int)
    if jobs:
        _ask("scancel", *jobs)
    return jobs


def forget_finished(folder: Path, tasks: Collection[Task], done: Collection[str]) -> None:
    """Remove the logs and other files of submissions that are over and whose trainings are all done."""
    alive = {task.name for task in tasks}
    for name, units in submissions(folder).items():
        if name not in alive and all(slot in done for unit in units for slot in unit):
            shutil.rmtree(folder / "jobs" / name, ignore_errors=True)


def log_of(folder: Path, name: str, unit: int) -> Path | None:
    """The log of a submission's task; None if it wrote none."""
    array = len(submissions(folder)[name]) > 1
    return max((folder / "jobs" / name).glob(f"*_{unit}_0_log.out" if array else "*_0_log.out"), default=None)


def train_unit(settings: Settings, name: str, slots: Sequence[str]) -> None:
    """What a task does: train those of its trainings that the store lacks; records go to runs/<name>-0.jsonl.

    Asked by SIGUSR2, the trainings are saved and the task is queued again. This is done here and not by submitit's
    own handler, which counts every job shorter than ten minutes as timed out, and leaves from wherever it interrupts.
    At SIGTERM alone they are saved too, and the task waits for its end: SLURM then cancels it, or preempts it and
    queues it again itself. Raises NasRetrainError if trainings failed or the base rate is not known yet.
    """
    classes = {int(slot.split("/")[1]) for slot in slots}
    stored = read_runs(settings.results_dir)
    made = plan.make_plan(settings, stored, classes)
    ours = set(slots)
    wanted = [training for training in made.missing if training.slot in ours]
    if made.searching and not all(training.searched for training in wanted):
        raise NasRetrainError("The search for learning rates did not finish. Run make retrain again on the login node.")
    groups = [group for group in made.groups if any(training.slot in ours for training in group)]
    tally = launch.run_here(groups, {training.key for training in wanted}, settings, name, name)
    if signal.SIGUSR2 in tally.stopped_by or (signal.SIGTERM in tally.stopped_by and _signalled_in_grace_time()):
        _queue_again(_slurm(settings).max_requeues)
    if tally.failed:
        raise NasRetrainError(f"{len(tally.failed)} of {len(wanted)} trainings failed; make status tells how.")


def _signalled_in_grace_time() -> bool:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    return signal.sigtimedwait([signal.SIGUSR2], GRACE_SECONDS) is not None


def _queue_again(at_most: int) -> None:
    count = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if count >= at_most:
        raise NasRetrainError(f"This task was queued again {count} times, as often as launcher.max_requeues allows.")
    _ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    print("Saved; queued again.", flush=True)  # noqa: T201 - a task's log
    sys.exit(1)  # without a result, since there is none yet


def _slurm(settings: Settings) -> SlurmSettings:
    assert isinstance(settings.launcher, SlurmSettings)
    return settings.launcher


def _new_submission(purpose: Purpose, units: Sequence[Sequence[str]], settings: Settings) -> tuple[str, Path]:
    name = f"{PREFIX}{purpose}-{secrets.token_hex(4)}"
    folder = (settings.results_dir / "jobs" / name).resolve()
    if re.search(r"[\x00-\x1f%\\]", str(folder)):
        raise NasRetrainError(
            f"results_dir={folder}: SLURM cannot write logs to a path with %, \\ or control characters."
        )
    with replacing(folder / "units.json") as temporary:
        temporary.write_text(json.dumps(units))
    return name, folder


def _executor(
    name: str, folder: Path, launcher: SlurmSettings, *, gpus: int, after: Collection[str]
) -> submitit.SlurmExecutor:
    executor = submitit.SlurmExecutor(folder)
    analysis = name.startswith(f"{PREFIX}analysis-")
    cpus = 1 if analysis else launcher.cpus or task_workers(launcher)
    other: dict[str, Any] = {"requeue": True} | launcher.sbatch
    if launcher.memory_gb is not None:
        other["mem"] = f"{round(launcher.memory_gb * 1024)}M"
    wanted = {
        "job_name": name,
        "time": max(1, round((ANALYSIS_HOURS if analysis else launcher.time_hours) * 60)),
        "partition": (launcher.analysis_partition if analysis else None) or launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": None if analysis else launcher.constraint,
        "gpus_per_node": gpus or None,
        "cpus_per_task": cpus,
        "dependency": "afterany:" + ":".join(after) if after else None,
        "signal_delay_s": launcher.signal_seconds,
        "stderr_to_stdout": True,
        "srun_args": [f"--cpus-per-task={cpus}"],  # since SLURM 22.05 srun does not take it from sbatch
        "additional_parameters": other,
    }
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


@contextmanager
def _telling_refusals() -> Iterator[None]:
    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines() if "error" in line.lower())
        raise NasRetrainError(
            f"sbatch refused: {reason or error}. Check partition, account, qos and limits in the launcher's settings; "
            "run make retrain again to submit the rest."
        ) from error
