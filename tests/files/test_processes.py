"""Names of processes: a living one is never taken for dead, and one that cannot be asked is told apart."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import time
from multiprocessing.connection import Connection

import pytest

from nas_retrain.files.processes import has_ended, this_process


def tell_name(connection: Connection) -> None:
    connection.send(this_process())
    connection.recv()


def test_a_process_lives_until_it_ends() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=tell_name, args=(theirs,))
    process.start()
    name = ours.recv()
    assert name != this_process()
    assert has_ended(name) is False
    assert has_ended(this_process()) is False
    process.kill()
    process.join()
    assert has_ended(name) is True


def test_one_that_is_dead_but_not_yet_waited_for_has_ended() -> None:
    code = "from nas_retrain.files.processes import this_process; print(this_process(), flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert has_ended(name) is False
        process.kill()
        while not has_ended(name):  # without waiting for it
            time.sleep(0.01)


def test_a_number_that_another_process_has_now_is_not_taken_for_the_first() -> None:
    number, start, rest = this_process().split("-", 2)
    assert has_ended(f"{number}-{int(start) - 1}-{rest}") is True


@pytest.mark.parametrize("change", [(r"@.*", "@elsewhere"), (r"-\d+@", "-1@")])
def test_one_on_another_host_or_in_another_container_cannot_be_told(change: tuple[str, str]) -> None:
    name = re.sub(*change, this_process())
    assert name != this_process()
    assert has_ended(name) is None


@pytest.mark.parametrize("name", ["", "text", "1-2@here", "\x00", "a bare number"])
def test_what_is_no_name_cannot_be_told(name: str) -> None:
    name = name.replace("a bare number", f"{os.getpid()}")
    assert has_ended(name) is None


def test_without_proc_the_number_alone_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_retrain.files.processes._start", lambda _: None)
    monkeypatch.setattr("nas_retrain.files.processes._number_space", lambda: "")
    assert has_ended(this_process()) is False
    free = int(max(filter(str.isdigit, os.listdir("/proc")), key=int)) + 10_000  # noqa: PTH208 - not a file's name
    assert has_ended(this_process().replace(str(os.getpid()), str(free), 1)) is True
