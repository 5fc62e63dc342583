"""A storm of kills: whatever is killed at whatever moment, the run ends with what an undisturbed one ends with.

One process imports everything and forks the runs, and they their workers, so that a start takes milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nas_retrain.trainings.store import read_runs

KILLS = 50
OVERRIDES = [
    *("dataset=digits", "profile=dry", "cells=sample:4", "seeds=[1]", "training.epochs=6", "dataset.train_subset=200"),
    *("network.channels=4", "network.cells_per_stage=1", "base_rate.points=2", "base_rate.seeds=[1]"),
    *("launcher=local", "launcher.device=cpu", "launcher.workers=2", "launcher.together=2"),
    *("launcher.checkpoint_every=1", "analysis.bootstrap_draws=20", "analysis.null_draws=19"),
]
COURSE = ("seconds", "images_per_second", "started", "finished", "resumed")


class Forked:
    """Stands for multiprocessing's way of starting a new interpreter: a fork that keeps nothing of its parent open."""

    Pipe = staticmethod(multiprocessing.Pipe)

    @staticmethod
    def Process(target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> Any:  # noqa: N802
        context = multiprocessing.get_context("fork")
        return context.Process(target=_only_with, args=(target, args), daemon=daemon)


def _only_with(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - numbers, no paths
        if number > 2 and number not in (args[0].fileno(), parent.sentinel):
            with suppress(OSError):
                os.close(number)
    target(*args)


class Mine:
    """Kills the process that calls `fsync` for the n-th time, before or after: it is in the middle of writing a
    checkpoint, a record, a table or a figure then."""

    def __init__(self, blow: int, *, before: bool, log: Path) -> None:
        self.left, self.before, self.log, self.fsync = blow, before, log, os.fsync

    def __call__(self, handle: int) -> None:
        self.left -= 1
        if not self.before:
            self.fsync(handle)
        if self.left == 0:
            note_kill(self.log)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.before:
            self.fsync(handle)


def note_kill(log: Path) -> None:
    with log.open("ab", buffering=0) as file:
        file.write(b".")


def start(results: Path, mine: Mine | None = None) -> int:
    """Fork a run on a results folder, in a process group of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgrp()
        log = os.open(results.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from tqdm import tqdm

        from nas_retrain.commands import retrain
        from nas_retrain.commands.command_line import compose
        from nas_retrain.execution import workers as launch

        tqdm.monitor_interval = 0  # its thread does not outlive a fork

        class Multiprocessing:
            parent_process = staticmethod(multiprocessing.parent_process)
            get_context = staticmethod(lambda _: Forked)

        launch.multiprocessing = Multiprocessing  # type: ignore[attr-defined]
        retrain._forecast_here = lambda *_: 0.0  # what a run costs is measured for seconds
        if mine is not None:
            os.fsync = mine
        retrain.retrain(compose(*OVERRIDES, f"results_dir={results}"))
        code = 0
    finally:
        if code:
            import traceback

            traceback.print_exc()
        os._exit(code)


def children(process: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def kill(process: int, log: Path) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
        note_kill(log)


def ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(process: int, seconds: float) -> None:
    """Until so many seconds have passed, or the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not ended(process):
        time.sleep(0.002)


def disturb(results: Path, how: str, seconds: float, log: Path, moments: random.Random) -> bool:
    """One run with its kills; tells whether it ended well nevertheless."""
    mine = None
    if how == "while writing":
        mine = Mine(moments.randrange(1, moments.choice([6, 60])), before=moments.random() < 0.5, log=log)
    process = start(results, mine)
    if how == "a worker":
        for _ in range(6):
            wait_until(process, moments.uniform(0, seconds / 6))
            if workers := children(process):
                kill(moments.choice(workers), log)
    if how != "while writing":
        wait_until(process, moments.uniform(0, seconds / 2))
        if not ended(process):
            kill(process, log)
    _, status = os.waitpid(process, 0)
    if moments.random() < 0.5:  # the next run may begin while workers of this one still live
        wait_for_group(process)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def wait_for_group(process: int) -> None:
    end = time.monotonic() + 30
    with suppress(ProcessLookupError):
        while True:
            os.killpg(process, 0)
            assert time.monotonic() < end, "workers outlive their run"
            time.sleep(0.01)


def storm(folder: Path, kills: int) -> None:
    """Runs and kills in `folder`, which holds undisturbed/, every storm-<n>/ that was gone through to its end, and
    `kills`, a byte for each."""
    import torch

    import nas_retrain.commands.retrain
    import nas_retrain.execution.slurm  # noqa: F401 - all that a run imports, before the forks
    from nas_retrain.execution import train
    from nas_retrain.files.leftovers import remove_leftovers

    train.prepare_process(torch.device("cpu"))
    log = folder / "kills"
    log.touch()
    begun = time.monotonic()
    process = start(folder / "undisturbed")
    assert os.waitpid(process, 0)[1] == 0
    seconds = time.monotonic() - begun
    moments = random.Random()
    number = 0
    while log.stat().st_size < kills:
        how = moments.choice(["the run", "a worker", "while writing"])
        if disturb(folder / f"storm-{number}", how, seconds, log, moments):
            number += 1
    process = start(folder / f"storm-{number}")
    assert os.waitpid(process, 0)[1] == 0
    # Workers of killed runs may have lived on beside it for a moment: the next run begins by removing what they left.
    for finished in range(number + 1):
        remove_leftovers(folder / f"storm-{finished}")


def figures(results: Path) -> dict[object, dict[str, object]]:
    return {
        record.key: {name: value for name, value in asdict(record).items() if name not in COURSE}
        for record in read_runs(results).records
    }


def lines_by_key(results: Path) -> Counter[tuple[object, ...]]:
    lines = [line for path in (results / "runs").iterdir() for line in path.read_text().splitlines()]
    records = [json.loads(line) for line in lines if line]
    names = ("recipe", "network_class", "seed", "config_hash")
    return Counter(tuple(record[name] for name in names) for record in records)


def files(results: Path) -> dict[Path, bytes]:
    """What does not tell how long something took."""
    kinds = ("tables/*.csv", "base_rate.json", "settings.json")
    return {path.relative_to(results): path.read_bytes() for kind in kinds for path in results.glob(kind)}


def unexpected(results: Path, undisturbed: Sequence[str]) -> set[str]:
    there = {str(path.relative_to(results)) for path in results.rglob("*")}
    return {path for path in there - set(undisturbed) if not path.startswith(("runs/", "logs"))}


@pytest.mark.slow
def test_after_fifty_kills_everything_is_as_in_an_undisturbed_run(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.execution.test_kill_storm import storm; "
        f"storm(Path({str(tmp_path)!r}), {KILLS})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    logs = "\n".join(path.read_text()[-3000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert (tmp_path / "kills").stat().st_size >= KILLS
    undisturbed = tmp_path / "undisturbed"
    expected = [str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*")]
    resumed = 0
    for results in tmp_path.glob("storm-*/"):
        if not results.is_dir():
            continue
        assert set(lines_by_key(results).values()) == {1}
        assert lines_by_key(results) == lines_by_key(undisturbed)
        assert figures(results) == figures(undisturbed)
        assert files(results) == files(undisturbed)
        assert unexpected(results, expected) == set()
        resumed += sum(record.resumed != "" for record in read_runs(results).records)
    assert resumed > 0
