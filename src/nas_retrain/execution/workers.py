"""Run trainings on this machine: worker processes that each train one network at a time.

The parent hands out one training at a time over a pipe to each worker and writes the records that come back; workers
share no queue and no lock, so any process may be killed at any moment. A worker that dies is replaced and its training
taken up again from its last checkpoint. Workers end by themselves when the parent is gone. Asked by a signal to stop,
every worker saves its training where it stands.

After an error of CUDA all that follows in a process fails, so that its worker ends and another one takes the training.
A GPU is probed before each training, and given up after two faults. A training that a GPU's memory was too small for is
tried once more at the end, when it has the GPU for itself. Workers that share a GPU do so through MPS, which is started
for them.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tqdm import tqdm

from nas_retrain.errors import NasRetrainError, cannot_write
from nas_retrain.execution import devices, gpu_verdicts, mps
from nas_retrain.execution.devices import Device
from nas_retrain.plan import plan
from nas_retrain.settings import DatasetSettings, Settings
from nas_retrain.trainings.failures import first_line
from nas_retrain.trainings.store import RunKey, RunRecord, RunWriter, StoredRuns
from nas_retrain.trainings.training import Training

if TYPE_CHECKING:  # torch takes seconds to import, and those who only ask for the state of a run need not have it
    import torch

    from nas_retrain.data import batches

Group = tuple[Training, ...]
"""What a worker does at once; see `plan.groups`."""

ATTEMPTS = 2
"""How often a group is begun in one run if the process that runs it is killed each time."""

STARTS = 3
"""How often in a row a worker's place is filled if its processes end before they can train anything."""

FAULTS = 2
"""How often a GPU may fail in one run before it is given up. Workers that it takes with it at once count as one."""

SAVE_SECONDS = 120.0
"""How long a run that ends by an error waits for its workers to save what they are at."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Ctrl-C, and what SLURM sends before it takes a node away."""


@dataclass(frozen=True)
class Outcome:
    """What a worker reports. After "ready", "recorded", "failed" and "memory" (the device's was too small) it waits for
    work. After the others it ends: "stopped" as it was asked to, "unable" to start, "faulty" if the device failed, or
    "unfit" if that showed before the training began; "fatal" means no training can succeed."""

    kind: Literal["ready", "recorded", "failed", "memory", "stopped", "unable", "faulty", "unfit", "fatal"]
    message: str = ""
    records: tuple[RunRecord, ...] = ()


@dataclass
class Tally:
    """How a run went: the number of records written, of them diverged, the trainings that raised an error, and the
    signals that asked it to stop early."""

    recorded: int = 0
    diverged: int = 0
    failed: list[Training] = field(default_factory=list)
    stopped_by: set[int] = field(default_factory=set)


def worker_count(settings: Settings, device: torch.device | Device) -> int:
    """How many trainings run at once: as configured, or one per GPU, or on the CPU one per core that is ours."""
    if settings.launcher.workers != "auto":
        return settings.launcher.workers
    if device.type != "cpu":
        return devices.count(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A cluster that does not bind tasks to cores shows every task the whole node. Outside of a job the variable is
    # somebody's default for srun.
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "") if "SLURM_JOB_ID" in os.environ else ""
    return min(cores, int(granted)) if re.fullmatch("0*[1-9][0-9]*", granted) else cores


@dataclass(frozen=True)
class Place:
    """A place for a worker process: the number-th of this run, on a device by torch's name, and how many share that."""

    number: int
    device: str
    sharing: int

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one that CUDA's errors come from."""
        return self.device.startswith("cuda")


class _Worker:
    """The parent's end of one worker process. probed: since when, by time.monotonic(), it is known that the device
    answered, or may have."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self.place, self.ready, self.probed = place, False, time.monotonic()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, settings, place), daemon=True)
        with _blocked(STOP_SIGNALS):  # the new process inherits this, and unblocks once it can handle them
            self.process.start()
        theirs.close()
        self.group: Group | None = None

    def give(self, group: Group | None) -> None:
        """Hand over work, or None to let the worker end. If it died meanwhile, receiving from it will tell."""
        self.group, self.probed = group, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(group)

    def receive(self) -> Outcome | None:
        """Its report; None if it died."""
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):  # the latter if it died in the middle of a report
            return None
        return outcome

    def stop(self) -> None:
        """Ask it to save its training and end."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, signal.SIGUSR2)


@contextmanager
def _blocked(signals: Sequence[int]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handling(signals: Sequence[signal.Signals], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle signals by `handler`, save those that this process was told to ignore."""
    before = {number: signal.getsignal(number) for number in signals}
    heeded = {number: known for number, known in before.items() if known is not signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in heeded.items():
            signal.signal(number, known)


def run_here(
    work: Sequence[Sequence[Training]], wanted: Collection[RunKey], settings: Settings, title: str, name: str = "local"
) -> Tally:
    """Do every group with worker processes of this machine, showing progress; the records of the wanted trainings go to
    runs/<name>-0.jsonl (see `plan.groups_to_train` for what else is in a group).

    A training that raises is logged below logs/ and the others go on, and so does the run without workers that cannot
    start and GPUs that fail, as long as one is left. Ctrl-C, SIGTERM or SIGUSR2 lets the workers save
    what they are at, to be continued by another run; the tally tells. Raises NasRetrainError if nothing can go on (no
    data, a full disk, a folder that was moved, no worker that can start), after the workers have saved what they were
    at, and KeyboardInterrupt at a second Ctrl-C.
    """
    groups = [tuple(group) for group in work]
    device = devices.found(settings.launcher.device)
    if device.type == "cuda" and (unchecked := gpu_verdicts.missing(gpu_verdicts.FILE)):
        print(f"WARNING: {unchecked}", file=sys.stderr, flush=True)  # noqa: T201
    workers, present = worker_count(settings, device), devices.count(device)
    names = [f"cuda:{index}" for index in range(present)] if device.type == "cuda" else [device.type]
    places = [
        Place(number, names[number % len(names)], -(-workers // len(names)))
        for number in range(min(workers, len(groups)))
    ]
    bar = tqdm(
        total=sum(map(len, groups)),
        desc=title,
        unit="training",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file is not a screen
    )
    sharing = device.type == "cuda" and len(places) > len(names)
    shared: AbstractContextManager[str] = mps.running() if sharing else nullcontext("")
    with RunWriter(settings.results_dir / "runs", name) as writer, bar, shared as no_mps:
        if no_mps:
            bar.write(
                f"note: {places[0].sharing} workers share a GPU and take turns, since MPS could not be had: {no_mps}. "
                "launcher.together, with one worker, trains several networks side by side without it.",
                file=sys.stderr,
            )
        _make_checkpoint_folder(settings)
        run = _Run(groups, wanted, settings, name, writer, bar)
        with _handling(STOP_SIGNALS, run.stop):
            run.finish(places)
    return run.tally


class _Run:
    """The parent's side of a run: what waits, who is at what, and how it went."""

    def __init__(
        self,
        groups: Sequence[Group],
        wanted: Collection[RunKey],
        settings: Settings,
        name: str,
        writer: RunWriter,
        bar: tqdm[NoReturn],
    ) -> None:
        self.settings, self.name, self.writer, self.bar = settings, name, writer, bar
        self.tally = Tally()
        self.waiting = deque(groups)
        self.wanted = wanted
        self.begun: Counter[Group] = Counter()
        self.short: list[Group] = []  # those that the memory was too small for, to be tried once more
        self.alone = False  # whether that is what is done now
        self.free: deque[Place] = deque()
        self.failed_starts: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()  # of each device
        self.faulted: dict[str, float] = {}  # when it failed last
        self.last_reason = ""
        self.workers: dict[Any, _Worker] = {}

    def finish(self, places: Sequence[Place]) -> None:
        """Work with workers in these places until nothing waits and nobody works."""
        try:
            self._work(places)
            if self.short and not self.tally.stopped_by:
                self.alone = True
                self.waiting.extend(self.short)
                first = {place.device: place for place in reversed(places)}
                self._work([replace(place, sharing=1) for place in reversed(first.values())])
        except Exception:
            self._let_save()
            raise
        finally:
            for worker in self.workers.values():
                worker.process.kill()

    def _work(self, places: Sequence[Place]) -> None:
        self.free = deque(place for place in places if not self._given_up(place))
        self._fill()
        while self.workers:
            for connection in wait(list(self.workers)):
                worker = self.workers[connection]
                outcome = worker.receive()
                if outcome is None or outcome.kind in ("stopped", "unable", "faulty", "unfit"):
                    self._ended(worker, outcome)
                else:
                    self._reported(worker, outcome)
            self._fill()
        if self.waiting:
            raise NasRetrainError(
                f"No worker process is left: {self.last_reason} What is finished is stored. Look for the cause above "
                "this line or in the system's log (was memory short?), and run the same command again, with fewer "
                "launcher.workers if need be."
            )

    def _fill(self) -> None:
        """Start workers in free places as long as there is work that those who are starting will not take."""
        while self.free and len(self.waiting) > sum(worker.group is None for worker in self.workers.values()):
            self._start(self.free.popleft())

    def _let_save(self) -> None:
        """Before the run ends by an error: let the workers save what they are at, and keep what they finish."""
        self.waiting.clear()
        for worker in self.workers.values():
            if worker.group is None:
                worker.process.kill()  # it has nothing to save
            else:
                worker.stop()
        end = time.monotonic() + SAVE_SECONDS
        while self.workers and (left := end - time.monotonic()) > 0:
            for connection in wait(list(self.workers), left):
                worker = self.workers.pop(connection)
                outcome, group = worker.receive(), worker.group
                if outcome is not None and outcome.kind == "recorded" and group is not None:
                    with suppress(NasRetrainError):  # the error that ends the run is told
                        self._record(group, outcome.records)
                worker.give(None)
                worker.process.join(left)

    def stop(self, number: int, _frame: object) -> None:
        """As a signal's handler: give out nothing more and let every worker save its training."""
        if number == signal.SIGINT and self.tally.stopped_by:
            raise KeyboardInterrupt
        self.tally.stopped_by.add(number)
        self.waiting.clear()
        for worker in self.workers.values():
            worker.stop()

    def _start(self, place: Place) -> None:
        try:
            worker = _Worker(self.settings, place)
        except OSError as error:  # no memory or no process left to have
            self._could_not_start(place, str(error))
            return
        self.workers[worker.connection] = worker

    def _could_not_start(self, place: Place, reason: str) -> None:
        """A worker ended before it could train: its place is filled again, or left empty from now on."""
        self.failed_starts[place.number] += 1
        if self.failed_starts[place.number] < STARTS:
            self.free.append(place)
            return
        self.last_reason = f"the last ended {STARTS} times before it could train anything ({reason})."
        if self.workers and self.waiting:
            self._note(
                f"worker {place.number} ended {STARTS} times before it could train anything ({reason}); the run goes "
                f"on with {len(self.workers)} other(s)."
            )

    def _ended(self, worker: _Worker, outcome: Outcome | None) -> None:
        """A worker is gone: asked to stop, by us or by somebody else, or by an error; without an outcome, killed."""
        del self.workers[worker.connection]
        if outcome is not None and outcome.kind != "stopped":
            worker.process.kill()  # with a device that failed, a process may hang where it should end
        worker.process.join()
        if self.tally.stopped_by:
            return
        place, group, kind = worker.place, worker.group, outcome.kind if outcome is not None else "killed"
        message = outcome.message if outcome is not None else f"exit code {worker.process.exitcode}"
        if outcome is None and group is not None and worker.process.exitcode == -signal.SIGABRT and place.on_gpu:
            kind = "faulty"  # torch aborts where it meets CUDA's error while it frees something
        shared = any(other.ready and other.place.device == place.device for other in self.workers.values())
        # Where another worker trains on the device, one that cannot start says nothing against it: it may be in
        # exclusive mode.
        if kind in ("faulty", "unfit") and (group is not None or not shared):
            self._fault(worker, first_line(message))
            if not self._given_up(place):
                self.free.append(place)
        elif group is None:
            self._could_not_start(place, first_line(message))
        else:
            self.free.append(place)
        if group is None:
            return
        if kind == "faulty" and self._given_up(place) and (self.workers or self.free):
            self.begun[group] -= 1  # the device is to blame, and there are others
        if kind == "unfit":
            self.begun[group] -= 1
            self.waiting.appendleft(group)
        elif kind == "stopped" or self.begun[group] < ATTEMPTS:
            # What a device failed at comes last, lest one training that no device can do make all of them be given up.
            (self.waiting.append if kind == "faulty" else self.waiting.appendleft)(group)
        elif kind == "faulty":
            self._failed(group, message)
        else:
            self._failed(group, f"the worker process died {ATTEMPTS} times (last {message})")

    def _fault(self, worker: _Worker, reason: str) -> None:
        """Count a fault of a worker's device, unless it was the last one's, and give the device up if there were too
        many."""
        device = worker.place.device
        if worker.probed <= self.faulted.get(device, -math.inf) or self._given_up(worker.place):
            return
        self.faulted[device] = time.monotonic()
        self.faults[device] += 1
        named = devices.called(device)
        if not self._given_up(worker.place):
            self._note(f"{named} failed ({reason}). It is tried once more; its training goes to another worker.")
            return
        self.free = deque(place for place in self.free if not self._given_up(place))
        self.last_reason = f"{named} failed {FAULTS} times and was given up ({reason})."
        self._note(f"{named} failed {FAULTS} times and is given up ({reason}).")

    def _given_up(self, place: Place) -> bool:
        return self.faults[place.device] >= FAULTS

    def _note(self, text: str) -> None:
        self.bar.write(f"note: {text}", file=sys.stderr)

    def _reported(self, worker: _Worker, outcome: Outcome) -> None:
        """A worker is ready, or done with its training: keep what it has and give it more."""
        group, worker.group = worker.group, None
        if outcome.kind == "fatal":
            raise NasRetrainError(outcome.message)
        if group is None:
            worker.ready = True
            self.failed_starts[worker.place.number] = 0
        elif outcome.kind == "recorded":
            self._record(group, outcome.records)
        elif outcome.kind == "memory" and not self.alone:
            self.short.append(group)
            self._note(
                f"{group[0].label}: the memory of {devices.called(worker.place.device)} was too small. It is tried "
                "once more at the end, when it has a GPU for itself."
            )
        else:
            self._failed(group, outcome.message)
        if self.waiting and not self._given_up(worker.place):
            following = self.waiting.popleft()
            self.begun[following] += 1
            worker.give(following)
        else:
            del self.workers[worker.connection]
            worker.give(None)
            worker.process.join()
            if not self._given_up(worker.place):
                self.free.append(worker.place)

    def _record(self, group: Group, made: Sequence[RunRecord]) -> None:
        records = [record for record in made if record.key in self.wanted]
        self.writer.append(*records)
        with suppress(OSError):  # the next run removes it
            checkpoint_path(group, self.settings).unlink(missing_ok=True)
        self.tally.recorded += len(records)
        self.tally.diverged += sum(record.status == "diverged" for record in records)
        self._show(group)

    def _failed(self, group: Group, message: str) -> None:
        self.tally.failed += group
        path = self.settings.results_dir / "logs" / f"failures-{self.name}.jsonl"
        when = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [json.dumps({"key": training.key, "when": when, "error": message}) + "\n" for training in group]
        self.writer.check()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.writelines(lines)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._show(group)

    def _show(self, group: Group) -> None:
        self.bar.set_postfix(diverged=self.tally.diverged, failed=len(self.tally.failed), refresh=False)
        with suppress(OSError):  # a log on a full disk does not end the run
            self.bar.update(len(group))


def _make_checkpoint_folder(settings: Settings) -> None:
    folder = settings.results_dir / "checkpoints"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


_CHECKPOINT_NAME = re.compile(r"(.+?)(-with-[0-9a-f]{12})?\.pt", re.DOTALL)


def checkpoint_path(group: Sequence[Training], settings: Settings) -> Path:
    """Where a group that is under way keeps its state."""
    name = plan.group_name(group)
    others = f"-with-{name}" if name else ""
    return settings.results_dir / "checkpoints" / f"{group[0].label}{others}.pt"


def forget_recorded(groups: Iterable[Sequence[Training]], stored: StoredRuns, settings: Settings) -> None:
    """Remove the checkpoints of trainings whose records are stored: a process that was killed between the two left
    them. groups: those still to train, whose checkpoints stay."""
    kept = {checkpoint_path(group, settings) for group in groups}
    recorded = {RunKey._make(key).label for key in stored.rows}
    for path in (settings.results_dir / "checkpoints").glob("*.pt"):
        named = _CHECKPOINT_NAME.fullmatch(path.name)
        if named and named[1] in recorded and path not in kept:
            path.unlink(missing_ok=True)


def _work(connection: Connection, settings: Settings, place: Place) -> None:
    """A worker process: train what comes over the connection until None, a signal to stop, a fault of the device, or
    the parent's end."""
    stopping = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    for stop_signal in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(stop_signal, lambda *_: stopping.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with suppress(EOFError, ConnectionError):  # the parent is gone
            for outcome in _outcomes(connection, settings, place, stopping):
                connection.send(outcome)
    except NasRetrainError as error:
        connection.send(Outcome("fatal", str(error)))


def _outcomes(connection: Connection, settings: Settings, place: Place, stopping: threading.Event) -> Iterator[Outcome]:
    """What a worker reports, up to its end."""
    import torch

    from nas_retrain.data import batches

    device = torch.device(place.device)
    try:
        devices.take(device, place.sharing)

        @cache
        def data(dataset: DatasetSettings, kept_back: int) -> batches.DeviceData:
            return batches.load(dataset, settings.data_dir, device, kept_back)

        data(settings.dataset, 0)
    except NasRetrainError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on without this worker
        faulty = devices.blamed(error, device) == "device"
        yield Outcome("unfit" if faulty else "unable", traceback.format_exc())
        return
    yield Outcome("ready")
    while (group := connection.recv()) is not None:
        try:
            devices.probe(device)
        except RuntimeError:
            yield Outcome("unfit", traceback.format_exc())
            return
        outcome = _train_group(group, settings, data, device, stopping)
        yield outcome
        if outcome.kind == "faulty" or stopping.is_set():
            return


def _train_group(
    group: Group,
    settings: Settings,
    data: Callable[..., batches.DeviceData],
    device: torch.device,
    stopping: threading.Event,
) -> Outcome:
    from nas_retrain.execution.train import Stopped, train

    try:
        settings = settings.under(group[0].setup)
        images = data(settings.dataset, settings.validation_images if group[0].validated else 0)
        records = train(group, settings, images, checkpoint_path(group, settings), stopping.is_set)
    except Stopped:
        return Outcome("stopped")
    except NasRetrainError:
        raise
    except Exception as error:  # noqa: BLE001 - one bad training must not end the others
        kinds: dict[str, Literal["memory", "faulty", "failed"]] = {"memory": "memory", "device": "faulty"}
        kind, message = kinds.get(devices.blamed(error, device), "failed"), traceback.format_exc()
    else:
        return Outcome("recorded", records=tuple(records))
    if kind == "memory":
        devices.empty_cache()  # the error, and with it the training's tensors, is gone by now
    return Outcome(kind, message)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
