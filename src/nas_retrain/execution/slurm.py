"""SLURM: submit work units as tasks of job arrays through submitit, see which are on their way, and run one.

A submission is a folder jobs/<name>: units.json says which trainings each task of the array does, written before sbatch
is called, and SLURM knows the job by the same name. So squeue alone tells what is on its way, even if the submitting
process was killed between two lines; no clock, job id or accounting is needed for it. What is done, the store tells.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import slurm_commands, workers
from nas_retrain.files.atomic import replacing
from nas_retrain.plan import plan
from nas_retrain.settings import Settings, SlurmSettings
from nas_retrain.trainings.store import read_runs
from nas_retrain.trainings.training import Slot, Training

Purpose = Literal["base-rate", "training", "analysis"]

PREFIX = "nas-retrain-"

FINISHED_STATES = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""Job states after which nothing more comes. A job in any other one, also one unknown here, is on its way."""

ANALYSIS_MINUTES = 60
ANALYSIS_SIGNAL_SECONDS = 90
GRACE_SECONDS = 900

Units = list[list[Slot]]
"""The trainings that each task of a submission was given."""


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
        slurm_commands.ask("sinfo", "--noheader", "--format=%P")
    except NasRetrainError as error:
        print(f"note: {error} Working on this machine.", file=sys.stderr)  # noqa: T201
        return False
    return True


def largest_array() -> int:
    """How many tasks this site allows in one job array. Raises NasRetrainError if SLURM does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", slurm_commands.ask("scontrol", "show", "config"), re.MULTILINE)
    if found is None:
        raise NasRetrainError("scontrol show config does not tell MaxArraySize.")
    return max(1, int(found[1]))


@dataclass(frozen=True)
class Queue:
    """The submissions of a results folder, and which of their tasks SLURM has queued or running.

    submitted: every submission that is still kept, by its name; None where units.json cannot be read. silence: why
    SLURM did not say what is on its way, in a sentence; empty if it did. Where it is silent, `tasks` tells nothing.
    """

    submitted: dict[str, Units | None]
    tasks: tuple[Task, ...] = ()
    silence: str = ""

    @cached_property
    def slots(self) -> dict[Slot, bool]:
        """The slots that the tasks on their way were given, done or not, and whether the task is running."""
        return {
            slot: task.running
            for task in sorted(self.tasks, key=lambda task: task.running)
            for slot in self._slots_of(task)
        }

    def _slots_of(self, task: Task) -> list[Slot]:
        units = self.submitted[task.name] or []
        return units[task.unit] if task.unit < len(units) else []

    def was_given(self, slots: Collection[Slot]) -> bool:
        """Whether one of these slots was ever submitted, or may have been as far as the submissions can be read."""
        return bool(slots) and any(
            units is None or any(not unit.isdisjoint(slots) for unit in map(set, units))
            for units in self.submitted.values()
        )


def submissions(folder: Path) -> dict[str, Units | None]:
    """Every submission of a results folder that is still kept, by its name; None where units.json cannot be read."""
    paths = {path.parent.name: path for path in sorted(folder.glob(f"jobs/{PREFIX}*/units.json"))}
    return {name: _read_units(path) for name, path in paths.items() if re.fullmatch(r"[\w-]+", name, re.ASCII)}


def _read_units(path: Path) -> Units | None:
    try:
        units = json.loads(path.read_bytes())
        if not isinstance(units, list):
            return None
        return [[Slot.read(text) for text in unit] for unit in units]
    except (OSError, ValueError, RecursionError, TypeError, AttributeError):  # the last two: another form of JSON
        return None


def queues(folders: Collection[Path]) -> dict[Path, Queue]:
    """What was submitted for each of these results folders and what is on its way, asking SLURM once for all of them,
    and not at all if nothing was submitted."""
    submitted = {folder: submissions(folder) for folder in folders}
    names = {name for known in submitted.values() for name in known}
    try:
        listed = slurm_commands.squeue(sorted(names)) if names else []
    except NasRetrainError as error:
        return {folder: Queue(known, silence=str(error) if known else "") for folder, known in submitted.items()}
    on_their_way = [
        Task(line.name, line.index, line.job, line.state == "RUNNING")
        for line in listed
        if line.state not in FINISHED_STATES
    ]
    return {
        folder: Queue(known, tuple(task for task in on_their_way if task.name in known))
        for folder, known in submitted.items()
    }


def queue(folder: Path) -> Queue:
    """What was submitted for a results folder and what is on its way.

    Raises NasRetrainError if SLURM does not say, or if it has a task whose units.json cannot be read: a task must never
    be taken for gone because nobody answered.
    """
    found = queues([folder])[folder]
    if found.silence:
        raise NasRetrainError(found.silence)
    for task in found.tasks:
        if found.submitted[task.name] is None:
            raise NasRetrainError(
                f"{folder / 'jobs' / task.name / 'units.json'} cannot be read, so that nobody knows which trainings "
                f"the tasks of job {task.job} do. Wait until it is over, or cancel it: scancel {task.job}"
            )
    return found


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
        with _submitting(name):
            jobs = executor.map_array(train_unit, [settings] * len(part), names, slots)
        accepted.append(Submitted(purpose, jobs[0].job_id.split("_")[0], len(part)))
    return accepted


def refused(launcher: SlurmSettings) -> list[str]:
    """Why sbatch would refuse a task as the settings ask for it, in a sentence; nothing is submitted."""
    with tempfile.TemporaryDirectory() as folder:
        executor = _executor(f"{PREFIX}training-test", Path(folder), launcher, gpus=launcher.gpus, after=())
        script = Path(folder) / "script.sh"
        script.write_text(executor._make_submission_file_text("true", "test"))
        try:
            slurm_commands.ask("sbatch", "--test-only", str(script))
        except NasRetrainError as error:
            return [str(error)]
    return []


def submit_analysis(analyse: Callable[[Settings], None], settings: Settings, after: Collection[str]) -> Submitted:
    """Submit `analyse(settings)` as a job that starts once the jobs `after` have ended, however they ended."""
    name, folder = _new_submission("analysis", [], settings)
    executor = _executor(name, folder, _slurm(settings), gpus=0, after=after)
    with _submitting(name):
        job = executor.submit(analyse, settings)
    return Submitted("analysis", job.job_id, 1)


def cancel(folder: Path) -> list[str]:
    """Cancel the jobs of a results folder that are queued or running, and tell which. Raises NasRetrainError if SLURM
    does not say, or if scancel fails and squeue still lists one."""
    jobs = _jobs(queues([folder])[folder])
    if jobs:
        try:
            slurm_commands.ask("scancel", *jobs)
        except NasRetrainError as error:
            if left := _jobs(queues([folder])[folder]):
                raise NasRetrainError(f"{error} Still there: job(s) {', '.join(left)}.") from error
    return jobs


def _jobs(found: Queue) -> list[str]:
    if found.silence:
        raise NasRetrainError(found.silence)
    return sorted({task.job for task in found.tasks}, key=int)


def forget_finished(folder: Path, known: Queue, done: Collection[Slot]) -> None:
    """Remove the logs and other files of submissions that are over and whose trainings are all done, or unknown."""
    alive = {task.name for task in known.tasks}
    for name, units in known.submitted.items():
        if name not in alive and all(slot in done for unit in units or [] for slot in unit):
            shutil.rmtree(folder / "jobs" / name, ignore_errors=True)


def log_of(folder: Path, known: Queue, name: str, unit: int) -> Path | None:
    """The log of a submission's task; None if it wrote none."""
    array = len(known.submitted[name] or []) > 1
    return max((folder / "jobs" / name).glob(f"*_{unit}_0_log.out" if array else "*_0_log.out"), default=None)


def train_unit(settings: Settings, name: str, slots: Sequence[Slot]) -> None:
    """What a task does: train those of its trainings that the store lacks; records go to runs/<name>-0.jsonl.

    Asked by SIGUSR2, the trainings are saved and the task is queued again. This is done here and not by submitit's
    own handler, which counts every job shorter than ten minutes as timed out, and leaves from wherever it interrupts.
    At SIGTERM alone they are saved too, and the task waits for its end: SLURM then cancels it, or preempts it and
    queues it again itself. Raises NasRetrainError if trainings failed or the base rate is not known yet.
    """
    classes = {slot.network_class for slot in slots}
    stored = read_runs(settings.results_dir)
    made = plan.make_plan(settings, stored, classes)
    ours = set(slots)
    wanted = [training for training in made.missing if training.slot in ours]
    if made.searching and not all(training.tries_rate for training in wanted):
        raise NasRetrainError("The search for learning rates did not finish. Run make retrain again on the login node.")
    groups = [group for group in made.groups if any(training.slot in ours for training in group)]
    tally = workers.run_here(groups, {training.key for training in wanted}, settings, name, name)
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
    slurm_commands.ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    print("Saved; queued again.", flush=True)  # noqa: T201 - a task's log
    sys.exit(1)  # without a result, since there is none yet


def _slurm(settings: Settings) -> SlurmSettings:
    assert isinstance(settings.launcher, SlurmSettings)
    return settings.launcher


def _new_submission(purpose: Purpose, units: Sequence[Sequence[Slot]], settings: Settings) -> tuple[str, Path]:
    name = f"{PREFIX}{purpose}-{secrets.token_hex(4)}"
    folder = (settings.results_dir / "jobs" / name).resolve()
    if re.search(r"[\x00-\x1f%\\]", str(folder)):
        raise NasRetrainError(
            f"results_dir={folder}: SLURM cannot write logs to a path with %, \\ or control characters."
        )
    with replacing(folder / "units.json") as temporary:
        temporary.write_text(json.dumps([[str(slot) for slot in unit] for unit in units]))
    return name, folder


def _executor(
    name: str, folder: Path, launcher: SlurmSettings, *, gpus: int, after: Collection[str]
) -> submitit.SlurmExecutor:
    executor = submitit.SlurmExecutor(folder)
    analysis = name.startswith(f"{PREFIX}analysis-")
    cpus = 1 if analysis else launcher.cpus or task_workers(launcher)
    other: dict[str, Any] = {"requeue": True} | launcher.sbatch | {"ntasks": 1}
    if launcher.memory_gb is not None:
        other["mem"] = f"{max(1, round(launcher.memory_gb * 1024))}M"  # 0 would ask for all of the node's
    wanted = {
        "job_name": name,
        "time": ANALYSIS_MINUTES if analysis else launcher.time_minutes,
        "partition": (launcher.analysis_partition if analysis else None) or launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": None if analysis else launcher.constraint,
        "gpus_per_node": gpus or None,
        "cpus_per_task": cpus,
        "dependency": "afterany:" + ":".join(after) if after else None,
        "signal_delay_s": ANALYSIS_SIGNAL_SECONDS if analysis else launcher.signal_seconds,
        "stderr_to_stdout": True,
        # srun starts a copy for each CPU that it may, unless told how many; since 22.05 it does not take the CPUs from
        # sbatch; and where the job was given no environment, it would hand none on, not even the script's own.
        "srun_args": ["--ntasks=1", "--nodes=1", f"--cpus-per-task={cpus}", "--export=ALL"],
        "additional_parameters": {key: value for key, value in other.items() if value is not False},
    }
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


@contextmanager
def _submitting(name: str) -> Iterator[None]:
    """Let submitit call sbatch by `slurm_commands.sbatch`, and tell refusals.

    submitit itself calls it with the whole environment and waits for ever. It makes the executor of an array by its own
    class, so that the method is replaced there; no subclass would be asked.
    """
    command = mock.patch.object(
        submitit.SlurmExecutor,
        "_make_submission_command",
        lambda _, script: [*slurm_commands.sbatch_command(name), str(script)],
    )
    try:
        with command, redirect_stderr(io.StringIO()):  # submitit prints what it raises, too
            yield
    except (FailedJobError, FailedSubmissionError) as error:
        raise NasRetrainError(str(error)) from error
