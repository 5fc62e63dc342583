"""A minute of fuzzing, and that the harness sees the faults that it is there to see."""

from __future__ import annotations

import ctypes
import mmap
import random
import time
from pathlib import Path

import pytest

from nas_retrain.errors import NasRetrainError
from tests.fuzz import harness


def _fine(random: random.Random, folder: Path) -> None:
    if random.random() < 0.5:
        raise NasRetrainError(f"{folder} is refused.")


def _error(random: random.Random, folder: Path) -> None:
    if random.random() < 0.5:
        raise KeyError(str(folder))


def _crash(random: random.Random, folder: Path) -> None:  # noqa: ARG001
    if random.random() < 0.5:
        ctypes.string_at(0)


def _hang(random: random.Random, folder: Path) -> None:  # noqa: ARG001
    if random.random() < 0.5:
        time.sleep(60)


def _busy(random: random.Random, folder: Path) -> None:  # noqa: ARG001
    if random.random() < 0.5:
        while True:
            pass


def _flood(random: random.Random, folder: Path) -> None:  # noqa: ARG001
    if random.random() < 0.5:
        # Not of the heap, which other tests may have left large.
        with mmap.mmap(-1, 100 << 20) as memory:
            for page in range(0, 100 << 20, 4096):
                memory[page] = 1


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (_fine, None),
        (_error, "KeyError"),
        (_crash, "exit status -11"),
        (_hang, "longer than 0.5 s"),
        (_busy, "longer than 0.5 s"),
        (_flood, "memory grew"),
    ],
)
def test_the_harness_sees_errors_crashes_hangs_and_floods(
    monkeypatch: pytest.MonkeyPatch, target: harness.Target, seen: str | None
) -> None:
    monkeypatch.setattr(harness, "found_targets", lambda: {"it": target})
    monkeypatch.setattr(harness, "SECONDS_A_CASE", 0.5)
    monkeypatch.setattr(harness, "MEMORY_A_TARGET", 50 << 20)
    tried, faults = harness.fuzz(["it"], 0, 1.0)
    assert tried["it"] > 0
    assert bool(faults) == bool(seen)
    for fault in faults:
        assert seen in fault.what
        if target is _error:
            with pytest.raises(KeyError):
                harness.run_case(fault.target, target, fault.seed, fault.case)


@pytest.mark.slow  # a minute
def test_only_values_and_nas_retrain_errors_come_out() -> None:
    """With the same cases each time, so that a test of one commit has one outcome; `make fuzz` draws others."""
    _, faults = harness.fuzz(sorted(harness.found_targets()), 0, 60.0)
    assert not faults, "\n\n".join(map(str, faults))
