"""Runs targets in child processes, so that a crash, a hang or a flood of memory is a fault like any other."""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import pkgutil
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path

from nas_retrain.errors import NasRetrainError
from tests.fuzz import targets

Target = Callable[[random.Random, Path], None]

SECONDS_A_CASE = 20.0
MEMORY_A_TARGET = 512 << 20
"""How many bytes the resident memory of a target's process may grow beyond what it was after the first case."""

_ROOM = 4 << 30
"""Address space beyond that of the fresh process, so that a flood ends the child and not the machine."""


@dataclass(frozen=True)
class Fault:
    """A case that gave neither a value nor a NasRetrainError, and what it gave instead."""

    target: str
    seed: int
    case: int
    what: str

    def __str__(self) -> str:
        again = f"python -m tests.fuzz --only {self.target} --seed {self.seed} --case {self.case}"
        return f"{self.target}, seed {self.seed}, case {self.case} (again: {again})\n{self.what}"


def found_targets() -> dict[str, Target]:
    """All targets by name, without the prefix."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(targets.__path__, f"{targets.__name__}."):
        for name, function in vars(importlib.import_module(module.name)).items():
            if name.startswith("fuzz_"):
                found[name.removeprefix("fuzz_")] = function
    return found


def run_case(name: str, target: Target, seed: int, case: int) -> None:
    """One case in this process; the same for the same name, seed and number."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        target(random.Random(f"{name} {seed} {case}"), folder)
    except NasRetrainError:
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fuzz(names: Sequence[str], seed: int, seconds: float) -> tuple[dict[str, int], list[Fault]]:
    """The number of cases tried of each target in `seconds` altogether, shared equally, and all faults."""
    tried: dict[str, int] = {}
    faults: list[Fault] = []
    for name in names:
        tried[name], found = _fuzz_one(name, seed, seconds / len(names))
        faults += found
    return tried, faults


def _fuzz_one(name: str, seed: int, seconds: float, most_faults: int = 5) -> tuple[int, list[Fault]]:
    started, case = None, 0
    faults: list[Fault] = []
    while started is None or (time.monotonic() - started < seconds and len(faults) < most_faults):
        ours, theirs = multiprocessing.Pipe()
        # Forked, so that a target need not import everything again after each crash.
        child = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, name, seed, case), daemon=True)
        child.start()
        theirs.close()
        started = started or time.monotonic()
        trouble = None
        while trouble is None and time.monotonic() - started < seconds:
            spent, answered = _processor(child.pid)[1], ours.poll(SECONDS_A_CASE)
            while not answered and _is_kept_waiting(child.pid, spent):
                answered = ours.poll(SECONDS_A_CASE)
            if not answered:
                trouble = f"took longer than {SECONDS_A_CASE:g} s"
                break
            try:
                trouble = ours.recv()  # None after a case that went well
            except EOFError:
                child.join()
                trouble = f"ended the process with exit status {child.exitcode}"
                break
            case += 1
        child.kill()
        child.join()
        ours.close()
        if trouble is not None:
            case += 0 if trouble.startswith("Traceback") else 1
            faults.append(Fault(name, seed, case - 1, trouble))
    return case, faults


def _is_kept_waiting(process: int | None, spent: float) -> bool:
    """Whether a process would work on, had it not too little of the processor since it had spent so many seconds."""
    state, now = _processor(process)
    return state in "RD" and now - spent < SECONDS_A_CASE


def _processor(process: int | None) -> tuple[str, float]:
    """A process's state and the seconds of the processor that it has spent."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak() -> int:
    """The most bytes of memory that were resident in this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _child(parent: Connection, name: str, seed: int, case: int) -> None:
    faulthandler.disable()  # a crash is told by the parent
    target = found_targets()[name]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the process that this one was forked from
    before = None
    while True:
        trouble = None
        try:
            with redirect_stderr(StringIO()):  # thousands of notes of what is damaged
                run_case(name, target, seed, case)
            peak = _peak()
            before = before or peak
            assert peak - before < MEMORY_A_TARGET, f"memory grew by {(peak - before) >> 20} MiB"
        except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
            trouble = traceback.format_exc()
        try:
            parent.send(trouble)
        except OSError:  # the time is over
            return
        if trouble:
            return
        case += 1
