"""Run trainings on this machine: worker processes that each train one network at a time.

The parent hands out one training at a time over a pipe to each worker; workers share no queue and no lock, so any
process may be killed at any moment. A worker that dies is replaced and its training taken up again from its last
checkpoint. Workers end by themselves when the parent is gone.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Literal

import torch
from tqdm import tqdm

from nas_retrain.config import Settings
from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import Training
from nas_retrain.store import RunKey, RunWriter
from nas_retrain.training import choose_device, prepare_process, train

ATTEMPTS = 2
"""How often a training is begun in one run if the process that runs it is killed each time."""


@dataclass(frozen=True)
class Outcome:
    """What a worker reports. "ready" and "failed" leave it waiting for work; "fatal" means no training can succeed."""

    kind: Literal["ready", "finished", "diverged", "disconnected", "failed", "fatal"]
    message: str = ""


@dataclass
class Tally:
    """How a run went: the number of records written, of them diverged, and the trainings that raised an error."""

    recorded: int = 0
    diverged: int = 0
    failed: list[Training] = field(default_factory=list)


def worker_count(settings: Settings, device: torch.device) -> int:
    """How many trainings run at once: as configured, or one per available core on the CPU and one on a GPU."""
    if settings.launcher.workers != "auto":
        return settings.launcher.workers
    return len(os.sched_getaffinity(0)) if device.type == "cpu" and hasattr(os, "sched_getaffinity") else 1


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a results folder against other runs of the pipeline on it; the lock goes when this process does.

    Raises NasRetrainError if another run holds it or the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise NasRetrainError(f"Cannot write {path}: {error.strerror}. Give another folder: results_dir=...") from error
    with file:
        if not _lock(file):
            raise NasRetrainError(
                f"Another run works on {folder} ({holder(folder)}). Wait for it, stop it, or give this run a folder of "
                "its own: results_dir=..."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        file.flush()
        yield


def holder(folder: Path) -> str | None:
    """Who works on a results folder now; None if nobody does."""
    try:
        with (folder / ".lock").open() as file:
            return None if _lock(file) else file.read().strip() or "just starting"
    except OSError:
        return None


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()
        self.training: Training | None = None

    def give(self, training: Training | None) -> None:
        """Hand over work, or None to let the worker end. If it died meanwhile, receiving from it will tell."""
        self.training = training
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(training)

    def receive(self) -> Outcome | None:
        """Its report; None if it died."""
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        return outcome


def run_here(trainings: Sequence[Training], settings: Settings, title: str) -> Tally:
    """Do every training with worker processes of this machine, showing progress; records go to the store.

    A training that raises is logged below logs/ and the others go on. Raises NasRetrainError if nothing can go on
    (no data, full disk, workers that cannot live); KeyboardInterrupt passes through once the workers are stopped.
    """
    tally = Tally()
    waiting = deque(trainings)
    begun: dict[str, int] = {}
    count = min(worker_count(settings, choose_device(settings.launcher.device)), len(waiting))
    workers = {worker.connection: worker for worker in (_Worker(settings) for _ in range(count))}
    try:
        with tqdm(total=len(trainings), desc=title, unit="training", dynamic_ncols=True) as bar:
            while workers:
                for connection in wait(list(workers)):
                    worker = workers[connection]  # type: ignore[index]
                    training, outcome = worker.training, worker.receive()
                    if outcome is None:
                        del workers[worker.connection]
                        worker.process.join()
                        _worker_died(worker, waiting, begun, tally, settings)
                        if waiting:
                            replacement = _Worker(settings)
                            workers[replacement.connection] = replacement
                        continue
                    if outcome.kind == "fatal":
                        raise NasRetrainError(outcome.message)
                    if training is not None:
                        _count(outcome, training, tally, settings)
                        bar.update()
                        bar.set_postfix(diverged=tally.diverged, failed=len(tally.failed))
                    if waiting:
                        following = waiting.popleft()
                        begun[following.label] = begun.get(following.label, 0) + 1
                        worker.give(following)
                    else:
                        worker.give(None)
                        del workers[worker.connection]
                        worker.process.join()
    finally:
        for worker in workers.values():
            worker.process.kill()
    return tally


def _count(outcome: Outcome, training: Training, tally: Tally, settings: Settings) -> None:
    if outcome.kind == "failed":
        tally.failed.append(training)
        _log_failure(training, outcome.message, settings)
        return
    tally.recorded += 1
    tally.diverged += outcome.kind == "diverged"


def _worker_died(
    worker: _Worker, waiting: deque[Training], begun: dict[str, int], tally: Tally, settings: Settings
) -> None:
    code = worker.process.exitcode
    if worker.training is None:
        raise NasRetrainError(f"A worker process ended before it could train anything (exit code {code}).")
    if begun[worker.training.label] < ATTEMPTS:
        waiting.appendleft(worker.training)
        return
    tally.failed.append(worker.training)
    _log_failure(worker.training, f"the worker process died {ATTEMPTS} times (last exit code {code})", settings)


def failure_log(settings: Settings) -> Path:
    """Where this machine's failed trainings are told, one JSON object a line."""
    return settings.results_dir / "logs" / "failures.jsonl"


def _log_failure(training: Training, message: str, settings: Settings) -> None:
    path = failure_log(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    failure = {"key": training.key, "when": datetime.now(UTC).isoformat(timespec="seconds"), "error": message}
    with path.open("a") as file:
        file.write(json.dumps(failure) + "\n")


def failed_keys(settings: Settings) -> dict[RunKey, str]:
    """The trainings that failed here at any time, with their last error; a later success does not remove them."""
    try:
        lines = failure_log(settings).read_text().splitlines()
    except FileNotFoundError:
        return {}
    failures: dict[RunKey, str] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # a torn line tells nothing
            failure = json.loads(line)
            failures[RunKey(*failure["key"])] = failure["error"]
    return failures


def checkpoint_path(training: Training, settings: Settings) -> Path:
    """Where a training that is under way keeps its state."""
    return settings.results_dir / "checkpoints" / f"{training.label}.pt"


def _work(connection: Connection, settings: Settings) -> None:
    """A worker process: train what comes over the connection until None or the parent's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        device = choose_device(settings.launcher.device)
        prepare_process(device)
        data = batches.load(settings.dataset, settings.data_dir, device)
        with RunWriter(settings.results_dir / "runs", "local") as writer:
            connection.send(Outcome("ready"))
            while (training := connection.recv()) is not None:
                connection.send(_train_one(training, settings, data, writer))
    except NasRetrainError as error:
        connection.send(Outcome("fatal", str(error)))
    except EOFError:
        return


def _train_one(training: Training, settings: Settings, data: batches.DeviceData, writer: RunWriter) -> Outcome:
    checkpoint = checkpoint_path(training, settings)
    try:
        record = train(training, settings, data, checkpoint)
    except NasRetrainError:
        raise
    except Exception:  # noqa: BLE001 - one bad training must not end the others
        return Outcome("failed", traceback.format_exc())
    writer.append(record)
    checkpoint.unlink(missing_ok=True)
    return Outcome(record.status)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
