"""Run records: append-only JSON Lines, one file per writing process, merged to Parquet.

Every record is one flushed line, so a process killed at any moment loses at most the line it was writing. Readers
tolerate and report such torn lines. Every other file appears whole, by rename.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import pandas as pd

from nas_retrain import locks
from nas_retrain.errors import NasRetrainError, cannot_write
from nas_retrain.leftovers import temporary_prefix

Status = Literal["finished", "diverged", "disconnected"]


class RunKey(NamedTuple):
    """What identifies a training; two records with one key are the same training twice."""

    bench: str
    dataset: str
    recipe: str
    network_class: int
    seed: int
    config_hash: str


@dataclass(frozen=True)
class RunRecord:
    """The result of one training. Accuracies in percent, losses in nats, times in seconds or as ISO 8601 UTC.

    learning_rate is None for a disconnected cell, in_degree None under stock initialisation. A diverged training and
    a disconnected cell have no losses and the accuracy of chance. Under <recipe>_search of a recipe with a rate for
    each network, test_loss and test_accuracy are of validation images. gradient_norm: of the first step's gradient;
    relative_gradient: the root mean square over layers of its norm as a share of the weights' (neither depends on the
    learning rate; None if nothing was trained). group: what it was trained together with (see `plan.group_name`).
    seeding: see `seeding.Seeding`; all that was trained before there was a choice was "shared".
    resumed: where the training stood each time that it went on from a checkpoint, as "epoch.step", with spaces between.
    """

    bench: str
    dataset: str
    recipe: str
    cell: int
    arch: str
    network_class: int
    seed: int
    epochs: int
    learning_rate: float | None
    in_degree: str | None
    status: Status
    train_loss: float | None
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float
    seconds: float
    images_per_second: float | None
    device: str
    torch: str
    code_version: str
    config_hash: str
    started: str
    finished: str
    gradient_norm: float | None = None
    relative_gradient: float | None = None
    group: str = ""
    seeding: str = "shared"
    resumed: str = ""

    @property
    def key(self) -> RunKey:
        """The training that this is the result of."""
        return RunKey(self.bench, self.dataset, self.recipe, self.network_class, self.seed, self.config_hash)


COLUMNS = tuple(field.name for field in dataclasses.fields(RunRecord))
_FLOATS = ("learning_rate", "train_loss", "test_loss", "images_per_second", "gradient_norm", "relative_gradient")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, whole, when the block ends without an exception.

    The file gets the permissions that the user's umask gives. Raises NasRetrainError, naming `path`, if the folder
    cannot be written or the disk is full; whatever stood at `path` is left as it was. After a power loss either the
    old or the new file is there, whole.
    """
    try:
        _make_folder(path.parent)
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


def _make_folder(folder: Path) -> None:
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


class RunWriter:
    """Appends run records to a file of its own in `folder`, and holds it locked against other writers.

    The file is the first of name-0.jsonl, name-1.jsonl, ... that no living process writes to, so restarts do not
    multiply files. Raises NasRetrainError if the folder or file cannot be written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        try:
            _make_folder(folder)
            self._lock = self._open(folder, name)
        except OSError as error:
            raise cannot_write(folder, error) from error

        self.path, self._file = self._lock.path, self._lock.file

    @staticmethod
    def _open(folder: Path, name: str) -> locks.Lock:
        for number in itertools.count():
            lock = locks.take(folder / f"{name}-{number}.jsonl")
            if lock is not None:
                return lock
        raise AssertionError

    def check(self) -> None:
        """Raise NasRetrainError if the file, or a folder above it, was moved or removed since it was opened."""
        self._lock.check()

    def append(self, *records: RunRecord) -> None:
        """Write a line for each, at once. Raises NasRetrainError if the disk is full (what was written survives) or if
        the file was moved or removed; in a moved one the records are written first."""
        lines = b"".join(json.dumps(dataclasses.asdict(record), allow_nan=False).encode() + b"\n" for record in records)
        try:
            if self._ends_torn():
                lines = b"\n" + lines
            written = self._file.write(lines)
            if written != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.check()

    def _ends_torn(self) -> bool:
        if self._file.seek(0, os.SEEK_END) == 0:
            return False
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) != b"\n"

    def close(self) -> None:
        """Close the file and release its lock."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class StoredRuns(NamedTuple):
    """The records of a folder, one per key in file order, and a sentence for each thing that was wrong with it."""

    records: list[RunRecord]
    problems: list[str]


def read_runs(folder: Path) -> StoredRuns:
    """Read runs/*.jsonl below a results folder. A torn line is skipped and reported, never an error.

    Of several records with one key the first in (file, line) order stands; a report is made if they differ in test
    accuracy. Only names order files, never clocks.
    """
    by_key: dict[RunKey, RunRecord] = {}
    problems: list[str] = []
    for path in sorted((folder / "runs").glob("*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                record = _parse(line)
            except (ValueError, TypeError):
                problems.append(f"{path}, line {number}: torn or foreign record, skipped")
                continue
            known = by_key.setdefault(record.key, record)
            if known.test_accuracy != record.test_accuracy:
                problems.append(
                    f"{path}, line {number}: the same training gave {record.test_accuracy} here and "
                    f"{known.test_accuracy} before; the first is kept"
                )
    return StoredRuns(list(by_key.values()), problems)


def _parse(line: bytes) -> RunRecord:
    values: Any = json.loads(line)
    return RunRecord(**values)


def read_merged(path: Path) -> list[RunRecord]:
    """The records of a runs.parquet; raises NasRetrainError if it is not one."""
    try:
        frame = pd.read_parquet(path)
        plain = frame.astype(object).where(frame.notna(), None)
        return [
            RunRecord(**dict(zip(plain.columns, row, strict=True))) for row in plain.itertuples(index=False, name=None)
        ]
    except (ValueError, TypeError, OSError) as error:
        raise NasRetrainError(f"{path} cannot be read as a table of run records: {error}. Is it whole?") from error


def to_frame(records: list[RunRecord]) -> pd.DataFrame:
    """Records as a table with the columns of `RunRecord`; a missing number is NaN."""
    frame = pd.DataFrame([dataclasses.asdict(record) for record in records], columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(_FLOATS, float))


def merge(folder: Path) -> pd.DataFrame:
    """Write runs.parquet from runs/*.jsonl and return it, sorted by key."""
    frame = to_frame(read_runs(folder).records).sort_values(list(RunKey._fields), ignore_index=True)
    with replacing(folder / "runs.parquet") as temporary:
        frame.to_parquet(temporary, index=False)
    return frame
