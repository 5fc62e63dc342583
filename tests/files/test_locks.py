"""Locks: one at a time, whatever the file system can do, and no one is kept away who need not be."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import locks
from nas_retrain.trainings.store import RunWriter

WITHOUT = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


def without_flock(error: int) -> Callable[[object, int], None]:
    def flock(_: object, __: int) -> None:
        raise OSError(error, os.strerror(error))

    return flock


@pytest.fixture(params=[None, *WITHOUT], ids=["flock", "ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """One with the system's locks, or one that answers with this error."""
    error: int | None = request.param
    if error is not None:
        monkeypatch.setattr(fcntl, "flock", without_flock(error))
    locks._tell_of_markers.cache_clear()
    return error


def hold(folder: Path, error: int | None, connection: Connection) -> None:
    """Hold a results folder and a file of runs, in a process of its own."""
    if error is not None:
        fcntl.flock = without_flock(error)  # type: ignore[assignment]
    with locks.exclusive(folder), RunWriter(folder / "runs", "local") as writer:
        connection.send(writer.path.name)
        connection.recv()


@pytest.fixture
def another_run(tmp_path: Path, file_system: int | None) -> Iterator[multiprocessing.process.BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, file_system, theirs))
    process.start()
    assert ours.recv() == "local-0.jsonl"
    yield process
    process.kill()
    process.join()


@pytest.mark.usefixtures("file_system")
def test_two_runs_on_one_folder_are_refused_with_who_holds_it(tmp_path: Path) -> None:
    with locks.exclusive(tmp_path):
        holder = locks.holder(tmp_path)
        assert holder is not None
        assert f"process {os.getpid()} " in holder
        with pytest.raises(NasRetrainError, match=f"process {os.getpid()} .*results_dir"), locks.exclusive(tmp_path):
            pass
        assert locks.holder(tmp_path) == holder
    assert locks.holder(tmp_path) is None
    with locks.exclusive(tmp_path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]


def test_another_process_s_locks_are_respected_until_it_is_killed(
    tmp_path: Path, another_run: multiprocessing.process.BaseProcess
) -> None:
    assert f"process {another_run.pid} " in (locks.holder(tmp_path) or "")
    with pytest.raises(NasRetrainError, match=f"process {another_run.pid} "), locks.exclusive(tmp_path):
        pass
    with RunWriter(tmp_path / "runs", "local") as writer:
        assert writer.path.name == "local-1.jsonl"
    another_run.kill()
    another_run.join()
    assert locks.holder(tmp_path) is None
    with locks.exclusive(tmp_path), RunWriter(tmp_path / "runs", "local") as writer:
        assert writer.path.name == "local-0.jsonl"
    assert not list(tmp_path.rglob("*.held"))


def test_a_file_system_without_locks_is_told_once(
    tmp_path: Path, file_system: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        with locks.exclusive(tmp_path), RunWriter(tmp_path / "runs", "local"):
            pass
    assert capsys.readouterr().err.count("flock") == (file_system is not None)


@pytest.mark.parametrize("content", ["process 7 on node3 since 2026\n7-12-34@node3\n", "torn", "", "\n\n"])
@pytest.mark.parametrize("file_system", [errno.ENOSYS], indirect=True)
@pytest.mark.usefixtures("file_system")
def test_a_lock_of_another_host_or_a_torn_one_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").touch()
    marker = tmp_path / ".lock.held"
    marker.write_text(content)
    with pytest.raises(NasRetrainError, match=rf"If that process is gone, remove {marker}"), locks.exclusive(tmp_path):
        pass
    assert marker.read_text() == content
    marker.unlink()
    with locks.exclusive(tmp_path):
        pass


@pytest.mark.usefixtures("file_system")
def test_of_many_that_start_at_once_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the lock of a dead process is still there. A thread of this process stands for each."""
    monkeypatch.setattr(locks, "has_ended", lambda name: name == "dead")
    for _ in range(20):
        (tmp_path / ".file.held").write_text("process 1 on here\ndead\n")
        taken: list[locks.Lock] = []
        start = threading.Barrier(6)

        def contend(taken: list[locks.Lock] = taken, start: threading.Barrier = start) -> None:
            start.wait()
            lock = locks.take(tmp_path / "file")
            if lock is not None:
                taken.append(lock)

        threads = [threading.Thread(target=contend) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].release()


def test_a_run_is_not_refused_beside_those_who_only_look(tmp_path: Path) -> None:
    code = f"""if True:
        from pathlib import Path
        from nas_retrain.files import locks
        print("looking", flush=True)
        while True:
            locks.holder(Path({str(tmp_path)!r}))
    """
    with locks.exclusive(tmp_path):
        pass
    lookers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        for looker in lookers:
            assert looker.stdout is not None
            assert looker.stdout.readline() == "looking\n"
        for _ in range(200):
            with locks.exclusive(tmp_path):
                pass
    finally:
        for looker in lookers:
            looker.kill()
            looker.communicate()


def test_one_who_looks_and_is_halted_meanwhile_is_waited_for(tmp_path: Path) -> None:
    with locks.exclusive(tmp_path):
        pass
    with (tmp_path / ".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.3, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        begun = time.monotonic()
        with locks.exclusive(tmp_path):
            assert time.monotonic() - begun > 0.2


def test_a_folder_that_nothing_was_written_to_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "201" / "digits"
    with pytest.raises(ZeroDivisionError), locks.exclusive(folder):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with locks.exclusive(folder):
        (folder / "settings.json").touch()
    assert sorted(entry.name for entry in folder.iterdir()) == [".lock", "settings.json"]
    with locks.exclusive(folder.parent):
        pass
    assert folder.parent.exists()  # it was there before


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NasRetrainError, match=r"file.*results_dir"), locks.exclusive(tmp_path / "file" / "results"):
        pass


@pytest.mark.parametrize("change", ["moved", "removed", "replaced", "the lock removed", "a folder above moved"])
def test_a_folder_that_is_moved_or_removed_is_noticed_and_where_it_is_told(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "above" / "results"
    with locks.exclusive(folder) as lock, RunWriter(folder / "runs", "local") as writer:
        lock.check()
        writer.check()
        told = rf"{tmp_path}/elsewhere/"
        if change == "the lock removed":
            (folder / ".lock").unlink()
            told = "removed"
        elif change == "removed":
            shutil.rmtree(folder)
            told = "removed"
        elif change == "a folder above moved":
            folder.parent.rename(tmp_path / "elsewhere")
        else:
            folder.rename(tmp_path / "elsewhere")
            if change == "replaced":
                (folder / "runs").mkdir(parents=True)
                (folder / ".lock").touch()
                (folder / "runs" / "local-0.jsonl").touch()
        with pytest.raises(NasRetrainError, match=told):
            lock.check()
        if change != "the lock removed":
            with pytest.raises(NasRetrainError, match=told):
                writer.check()


@pytest.mark.parametrize("markers", [False, True])
def test_a_full_disk_while_the_lock_is_written_is_told(tmp_path: Path, markers: bool) -> None:
    """A limit on the file size stands in for the full disk."""
    code = f"""if True:
        import errno, fcntl, resource, signal, sys
        from pathlib import Path
        from nas_retrain.files import locks
        from nas_retrain.errors import NasRetrainError
        from tests.files.test_locks import without_flock
        if {markers}:
            fcntl.flock = without_flock(errno.ENOSYS)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            with locks.exclusive(Path({str(tmp_path / "results")!r})):
                pass
        except NasRetrainError as error:
            sys.exit(f"told: {{error}}")
    """
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert "told: Cannot write" in done.stderr
    assert "full" in done.stderr
    assert done.returncode == 1
    assert not list(tmp_path.rglob("*.held"))


def test_other_errors_of_the_lock_are_told_and_not_taken_for_a_file_system_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (errno.EIO, errno.ESTALE, errno.EINTR):
        monkeypatch.setattr(fcntl, "flock", without_flock(error))
        with pytest.raises(NasRetrainError, match=r"Cannot write .*\.lock"), locks.exclusive(tmp_path):
            pass
    assert not list(tmp_path.rglob("*.held"))
