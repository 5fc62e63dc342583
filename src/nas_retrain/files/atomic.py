"""Write files and folders so that they appear whole or not at all, and read so that nothing is silently skipped."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from nas_retrain.errors import NasRetrainError, cannot_write
from nas_retrain.files.leftovers import temporary_prefix


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, whole, when the block ends without an exception.

    The file gets the permissions that the user's umask gives. Raises NasRetrainError, naming `path`, if the folder
    cannot be written or the disk is full; whatever stood at `path` is left as it was. After a power loss either the
    old or the new file is there, whole.
    """
    try:
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=temporary_prefix(path), suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they outlive a power loss."""
    absent = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in absent:
        _flush(made.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):  # not every file system can
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder`, whole, when the block ends without an exception.

    Raises NasRetrainError, naming `folder`, if it cannot be written; what stood there is left as it was.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=temporary_prefix(folder), dir=folder.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            yield new
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise NasRetrainError(
            f"Cannot write {folder}: {error.strerror or error}. Free some space or check the permissions, and run the "
            "same command again."
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A regular file, opened for reading; raises NasRetrainError if it is not one or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end, a folder holds no lines
            raise OSError(errno.EINVAL, "it is no regular file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: OSError) -> NasRetrainError:
    """The error for a file or folder that cannot be read."""
    return NasRetrainError(
        f"{path} cannot be read: {error.strerror or error}. Going on would pass over what it holds. Make it readable, "
        "or move it out of the results folder to go on without it."
    )


def read_whole(path: Path) -> bytes | None:
    """What a file holds; None if there is no file. Raises NasRetrainError if it is not a regular file or cannot be
    read, which includes a link that leads nowhere."""
    if not os.path.lexists(path):
        return None
    with opened(path) as file:
        return file.read()


def set_aside(path: Path) -> Path:
    """Rename a file, link or folder to a name beside it that is free, and return that name.

    Raises NasRetrainError if the folder cannot be written.
    """
    number = 0
    while os.path.lexists(aside := path.with_name(f"{path.stem}.set-aside-{number}{path.suffix}")):
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise cannot_write(path, error) from error
    return aside
