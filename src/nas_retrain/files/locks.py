"""Locks between processes, on one machine or several: who works on a results folder, who writes a file.

A lock is the system's (flock), which ends with the process that holds it, however it ends. On a file system without
such locks (Lustre can be mounted so) a file beside the locked one, created exclusively, stands for it. That file stays
where its process is killed. It names the host and the process, so that the next process on that host can take it over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from nas_retrain.errors import NasRetrainError, cannot_write
from nas_retrain.files.processes import has_ended, this_process

_WITHOUT_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_PATIENCE_SECONDS = 10.0


def in_place(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def moved(descriptor: int, path: Path) -> NasRetrainError:
    """What to raise where an open file or folder that was at `path` is there no longer: it says where it is now."""
    with suppress(OSError):
        now = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if now.endswith(" (deleted)") or os.fstat(descriptor).st_nlink == 0:
            return NasRetrainError(
                f"{path} was removed while this run worked with it, so the run stopped. What was stored there is gone; "
                "run the same command again to start anew."
            )
        return NasRetrainError(
            f"{path} was moved while this run worked with it, so the run stopped. It is now {now}, with all records: "
            "move the results folder back, or give the new place with results_dir=..., and run the same command again."
        )
    return NasRetrainError(
        f"{path} was moved or removed while this run worked with it, so the run stopped. The records are where the "
        "results folder is now: move it back and run the same command again."
    )


class Lock:
    """A lock on `path` that this process holds until `release`. `file` is `path`, open for reading and appending."""

    def __init__(self, path: Path, file: IO[bytes], marker: Path | None) -> None:
        self.path, self.file, self._marker = path, file, marker

    def check(self) -> None:
        """Raise NasRetrainError if the locked file, or a folder above it, was moved or removed."""
        if not in_place(self.file.fileno(), self.path):
            raise moved(self.file.fileno(), self.path)

    def release(self) -> None:
        """Give the lock up."""
        self.file.close()
        if self._marker is not None:
            self._marker.unlink(missing_ok=True)
            self._marker = None  # from now on it is another's

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def take(path: Path) -> Lock | None:
    """Lock `path`, which is created if it is absent; None if another process holds it. Raises OSError if it cannot be
    opened or created."""
    while True:
        file = path.open("a+b", buffering=0)
        try:
            marker = None
            try:
                taken = _flock_alone(file)
            except OSError as error:
                if error.errno not in _WITHOUT_FLOCK:
                    raise
                _tell_of_markers()
                marker = _marker_of(path)
                taken = _create(marker)
            if not taken:
                file.close()
                return None
            lock = Lock(path, file, marker)
            if in_place(file.fileno(), path):
                return lock
            lock.release()  # its last holder removed it between our opening and our locking it
        except BaseException:
            file.close()
            raise


def _flock_alone(file: IO[bytes]) -> bool:
    """Lock an open file against all others. A process that only looks (see `holder`) is waited for."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        if time.monotonic() > end:
            return False
        time.sleep(random.uniform(0.005, 0.02))  # two processes that start at once must not stay in step


def _marker_of(path: Path) -> Path:
    return path.with_name(f".{path.name.removeprefix('.')}.held")


@cache
def _tell_of_markers() -> None:
    print(  # noqa: T201 - a note, once
        "note: the results folder's file system has no locks (flock); files named .*.held stand for them. If a process "
        "is killed on another host, its file must be removed by hand.",
        file=sys.stderr,
        flush=True,
    )


def _create(marker: Path) -> bool:
    """Create the file that stands for a lock, or take over that of a dead process; False if a living one, or one on
    another host, holds it."""
    while True:
        try:
            handle = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if not _remove_stale(marker):
                return False
            continue
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(f"{_describe_this_process()}\n{this_process()}\n".encode())
        except OSError:
            marker.unlink(missing_ok=True)
            raise
        return True


def _remove_stale(marker: Path) -> bool:
    """Remove a dead process's marker; returns whether there is none now."""
    # One process at a time: two that find it stale must not remove the new marker of a third.
    alone = _takeover_of(marker)
    try:
        if not _is_stale(marker):
            return False
        os.close(os.open(alone, os.O_CREAT | os.O_EXCL, 0o666))
        try:
            if _is_stale(marker):
                marker.unlink()
        finally:
            alone.unlink()
    except FileExistsError:
        return False
    except FileNotFoundError:
        pass
    return True


def _takeover_of(marker: Path) -> Path:
    return marker.with_name(f"{marker.name}.takeover")


def _is_stale(marker: Path) -> bool:
    return has_ended(marker.read_text(errors="replace").strip().rpartition("\n")[2]) is True


def _describe_this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


@contextmanager
def exclusive(folder: Path) -> Iterator[Lock]:
    """Hold a results folder against other runs of the pipeline on it; the lock goes when this process does.

    The folder is created if it is absent, and removed at the end if nothing was written to it. Raises NasRetrainError
    if another run holds it or the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        absent = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = take(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    if lock is None:
        markers = [one for one in (_marker_of(path), _takeover_of(_marker_of(path))) if one.exists()]
        remedy = f" If that process is gone, remove {' and '.join(map(str, markers))}." if markers else ""
        raise NasRetrainError(
            f"Another run works on {folder} ({holder(folder) or 'just starting'}). Wait for it, stop it, or give this "
            f"run a folder of its own: results_dir=...{remedy}"
        )
    with lock:
        try:
            _sign(lock)
            yield lock
        finally:
            if absent:
                _remove_if_unused(lock, absent)


def _sign(lock: Lock) -> None:
    try:
        lock.file.truncate(0)
        lock.file.write(_describe_this_process().encode())
    except OSError as error:
        raise cannot_write(lock.path, error) from error


def _remove_if_unused(lock: Lock, folders: list[Path]) -> None:
    """Remove these folders, innermost first, if nothing but the lock is in the first."""
    with suppress(OSError):
        own = {lock.path.name, _marker_of(lock.path).name}
        if in_place(lock.file.fileno(), lock.path) and {entry.name for entry in folders[0].iterdir()} <= own:
            lock.path.unlink()
            lock.release()
            for folder in folders:
                folder.rmdir()


def holder(folder: Path) -> str | None:
    """Who works on a results folder now; None if nobody does. It never keeps a run from starting."""
    path = folder / ".lock"
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().decode(errors="replace").strip() or "just starting"
            except OSError as error:
                if error.errno in _WITHOUT_FLOCK:
                    return _holder_by_marker(_marker_of(path))
    except OSError:
        return None
    return None


def _holder_by_marker(marker: Path) -> str | None:
    try:
        content = marker.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    told, _, process = content.partition("\n")
    return None if has_ended(process) else told or "just starting"
