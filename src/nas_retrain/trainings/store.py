"""Run records: append-only JSON Lines, one file per writing process, merged to Parquet.

Every record is one flushed line, so a process killed at any moment loses at most the line it was writing. Readers
tolerate and report such torn lines. Every other file appears whole, by rename. What a results folder holds is what its
lines and its table hold together (`read_runs`), and nothing that it holds is ever dropped (`merge`).
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nas_retrain.errors import NasRetrainError, cannot_write
from nas_retrain.files import locks, sha256
from nas_retrain.files.atomic import cannot_read, make_folder, opened, read_whole, replacing, set_aside
from nas_retrain.files.parquet import read_table
from nas_retrain.trainings import merged_files
from nas_retrain.trainings.merged_files import Digests
from nas_retrain.trainings.schema import Checked, Schema, joined

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["finished", "diverged", "disconnected"]


class RunKey(NamedTuple):
    """What identifies a training; two records with one key are the same training twice."""

    bench: str
    dataset: str
    recipe: str
    network_class: int
    seed: int
    config_hash: str

    @property
    def label(self) -> str:
        """A short name for messages and file names, unique among the trainings of one results folder."""
        return f"{self.recipe}-{self.network_class}-{self.seed}-{self.config_hash}"


@dataclass(frozen=True)
class RunRecord:
    """The result of one training. Accuracies in percent, losses in nats, times in seconds or as ISO 8601 UTC.

    learning_rate is None for a disconnected cell, in_degree None under stock initialisation. A diverged training and
    a disconnected cell have no losses and the accuracy of chance. Under <recipe>_search of a recipe with a rate for
    each network, and in the parts of a study that try a grid of rates, test_loss and test_accuracy are of validation
    images. gradient_norm: of the first step's gradient;
    relative_gradient: the root mean square over layers of its norm as a share of the weights' (neither depends on the
    learning rate; None if nothing was trained). group: what it was trained together with (see `plan.group_name`).
    seeding: see `seeding.Seeding`; all that was trained before there was a choice was "shared".
    resumed: where the training stood each time that it went on from a checkpoint, as "epoch.step", with spaces between.
    *_curve: the values of each epoch, the first one's first, up to the last before a training diverged; None for what
    was not measured or is not finite. A record has these fields only if they were asked for (`Settings.curves`).

    Of a recipe that names a scaling rule, and None of all others (the paper's rule as recipes have it built in is in
    learning_rate and in_degree): rule, the rule's name; rule_checksum, of the file that the rule is written in (see
    `own_code.Loaded`); rule_factor, the factor of the learning rate that it decided, which a rate of a search does not
    have in it; rule_layers, what it decided about layers as JSON (see `Parametrisation.layers_as_text`).

    A field with a default is one that older versions did not write: the default is what is read then.
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
    rule: str | None = None
    rule_checksum: str | None = None
    rule_factor: float | None = None
    rule_layers: str | None = None
    train_loss_curve: tuple[float | None, ...] | None = None
    train_accuracy_curve: tuple[float | None, ...] | None = None
    learning_rate_curve: tuple[float | None, ...] | None = None
    test_loss_curve: tuple[float | None, ...] | None = None
    test_accuracy_curve: tuple[float | None, ...] | None = None

    @property
    def key(self) -> RunKey:
        """The training that this is the result of."""
        return RunKey(self.bench, self.dataset, self.recipe, self.network_class, self.seed, self.config_hash)


def finite(value: float) -> float | None:
    """A number as records and files of JSON can hold it: None for what is not finite."""
    return value if math.isfinite(value) else None


SCHEMA = Schema.of(
    RunRecord,
    {
        "cell": (0, math.inf),
        "network_class": (0, math.inf),
        "epochs": (1, math.inf),
        "train_accuracy": (0, 100),
        "test_accuracy": (0, 100),
        **dict.fromkeys(("learning_rate", "train_loss", "test_loss", "seconds", "images_per_second"), (0, math.inf)),
        **dict.fromkeys(("gradient_norm", "relative_gradient", "rule_factor"), (0, math.inf)),
        **dict.fromkeys(("train_loss_curve", "learning_rate_curve", "test_loss_curve"), (0, math.inf)),
        **dict.fromkeys(("train_accuracy_curve", "test_accuracy_curve"), (0, 100)),
    },
)
"""The columns of a table of records, and what each may hold: the one check of lines and of tables."""

COLUMNS = tuple(column.name for column in SCHEMA.columns if not column.optional)
"""The columns of every table of records."""

CURVES = tuple(column.name for column in SCHEMA.columns if column.optional)
"""Those of tables in which a record has curves."""

TABLE = "runs.parquet"
_BLOCK = 2_000
"""Lines that are Python objects at a time."""

_TOLD = 3
"""Faults of one file that are told one by one."""


def _as_line(record: RunRecord) -> bytes:
    values = {name: value for name, value in vars(record).items() if value is not None or name in COLUMNS}
    return json.dumps(values, allow_nan=False).encode() + b"\n"


class RunWriter:
    """Appends run records to a file of its own in `folder`, and holds it locked against other writers.

    The file is the first of name-0.jsonl, name-1.jsonl, ... that no living process writes to, so restarts do not
    multiply files. Raises NasRetrainError if the folder or file cannot be written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        try:
            make_folder(folder)
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
        lines = b"".join(_as_line(record) for record in records)
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


@dataclass(frozen=True, eq=False)
class StoredRuns:
    """The records of a folder, one a key: a table with the columns of `RunRecord` and those that a newer version
    added; and a sentence for each thing that was wrong or is worth knowing."""

    table: pa.Table
    problems: Sequence[str] = ()

    @classmethod
    def of(cls, records: Iterable[RunRecord]) -> Self:
        """The same for records that no folder holds; of several with one key the first stands."""
        table, _ = _first_of_each(SCHEMA.of_instances(list(records)))
        return cls(table)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, key: RunKey) -> bool:
        return key in self.rows

    @cached_property
    def rows(self) -> dict[tuple[object, ...], int]:
        """The row of each key."""
        return dict(zip(_keys(self.table), range(len(self.table)), strict=True))

    def column(self, name: str) -> NDArray[Any]:
        """The values of a column, in the order of the rows; a missing number is NaN, a missing text None."""
        if name not in self._columns:
            self._columns[name] = self.table[name].to_numpy()
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        return {}

    def only(self, which: NDArray[np.bool_]) -> StoredRuns:
        """The records of some rows."""
        return StoredRuns(self.table.filter(pa.array(which)))

    def frame(self, keys: Iterable[RunKey] | None = None) -> pd.DataFrame:
        """As a data frame: all, or those of some keys as far as they are stored; a missing number is NaN."""
        table = self.table
        if keys is not None:
            table = table.take(pa.array(sorted(self.rows[key] for key in set(keys) if key in self), pa.int64()))
        frame: pd.DataFrame = table.to_pandas()
        return frame

    @property
    def records(self) -> list[RunRecord]:
        """One object a record, made anew at each call; slow where there are many."""
        columns = [self.table[name].to_pylist() for name in COLUMNS]  # which come first among the fields
        for name in CURVES:
            lists = self.table[name].to_pylist() if name in self.table.column_names else [None] * len(self)
            columns.append([one if one is None else tuple(one) for one in lists])
        return [RunRecord(*row) for row in zip(*columns, strict=True)]


def read_runs(folder: Path) -> StoredRuns:
    """All that a results folder holds: runs/*.jsonl, and runs.parquet as far as no line has the same key.

    A line or row that is no record is skipped and reported, never an error. Of several records with one key the first
    in (file, line) order stands; a report is made if they differ in test accuracy. Only names order files, never
    clocks. Raises NasRetrainError for what may hold records and cannot be read at all, since these would be trained
    again: a file or folder that the system does not give, and a damaged table without any lines beside it.
    """
    return _read(folder).runs


class _Source(NamedTuple):
    """Where some lines or rows come from: stretches of files, each with the number of its first and how many it has."""

    stretches: list[tuple[Path, int, int]]

    def of(self, place: int) -> tuple[Path, str]:
        """The file of the place-th of them, and what to call it."""
        for path, number, count in self.stretches:
            if place < count:
                return path, f"{path}, {'row' if path.name == TABLE else 'line'} {number + place}"
            place -= count
        raise AssertionError("every line comes from a file")


class _Read(NamedTuple):
    """What a folder holds. table: what its runs.parquet holds, as the file has it; None if there is no such file or it
    cannot be read. lost: whether that file holds something that `runs` lacks, damaged or not. stamp: which file it
    was. digest: its. whole: the files of lines that `runs` holds whole, without fault; noted: those that the folder's
    note says are in runs.parquet whole (see `merged_files`)."""

    runs: StoredRuns
    table: pa.Table | None
    lost: bool
    stamp: object
    digest: str
    whole: Digests
    noted: Digests


def _read(folder: Path) -> _Read:
    path = folder / TABLE
    while True:
        stamp = _stamp(path)
        content = read_whole(path)
        digest = "" if content is None else sha256.of_bytes(content)
        noted = {} if content is None else merged_files.read(folder, digest)
        files = _run_files(folder)
        merged = {file: noted[file.name] for file in files if merged_files.still_is(file, noted.get(file.name))}
        read = _read_without(merged, files, content, folder) if merged else None
        if read is None:
            read = _read_without({}, files, content, folder)
            assert read is not None
        if _stamp(path) == stamp:  # else files may have gone whose records are in the new table
            return read._replace(stamp=stamp, digest=digest, noted=noted)


def _read_without(
    merged: Mapping[Path, str], files: Sequence[Path], content: bytes | None, folder: Path
) -> _Read | None:
    """What the table and the files of lines come to, without those files that were merged into the table.

    None if these must be read too: where the table's rows are not what they were, and where a training is in another
    file as well and is not the same there, since which of the two stands depends on the files that they come from.
    """
    digests: dict[Path, str] = {}
    parts: list[tuple[Checked, _Source]] = [
        (SCHEMA.from_lines(lines), source)
        for lines, source in _blocks((file for file in files if file not in merged), digests)
    ]
    lines = sum(len(checked.table) for checked, _ in parts)
    path = folder / TABLE
    problems: list[str] = []
    table: Checked | None = None
    try:
        table = None if content is None else _table_in(content)
    except ValueError as error:
        if merged:
            return None
        if lines == 0:
            raise NasRetrainError(
                f"{path} cannot be read as a table of run records: {error}. Is it whole? Nothing else holds records of "
                "this folder: put a good copy in its place, or move it away to begin anew."
            ) from error
        problems.append(
            f"{path} cannot be read as a table of run records: {error}. A good copy in its place keeps what only it "
            "holds from being trained again; the next merge puts it aside under another name"
        )
    faulty = {source.of(place)[0] for checked, source in parts for place in checked.faults}
    if table is not None:
        parts.append((table, _Source([(path, 1, len(table.table) + len(table.faults))])))
    problems += _faults(parts)
    together = SCHEMA.in_order(joined([SCHEMA.empty(), *(checked.table for checked, _ in parts)]))
    runs, repeats = _first_of_each(together)
    unlike = repeats[_unlike(together, repeats)][:, 0].tolist()
    unknown = SCHEMA.unknown(runs)  # of which the table may have made other types
    if merged and (unlike or unknown or (table is not None and table.faults)):
        return None
    accuracies = together["test_accuracy"].to_numpy()
    differing = repeats[accuracies[repeats[:, 0]] != accuracies[repeats[:, 1]]]
    for row, first in differing[:_TOLD].tolist():
        _, place = _origin(row, parts)
        problems.append(
            f"{place}: the same training gave {accuracies[row]} here and {accuracies[first]} before; the first is kept"
        )
    if len(differing) > _TOLD:
        problems.append(f"{folder}: {len(differing) - _TOLD:,} more trainings gave two accuracies; the first are kept")
    if unknown:
        problems.append(
            f"{folder}: written by a newer version: the records have fields that this one does not know "
            f"({', '.join(unknown)}), which are kept"
        )
    lost = content is not None and (table is None or bool(table.faults) or bool((differing[:, 0] >= lines).any()))
    partly = faulty | {_origin(row, parts)[0] for row in unlike}
    whole = {file.name: one for file, one in {**merged, **digests}.items() if file not in partly}
    return _Read(StoredRuns(runs, problems), table.table if table else None, lost, None, "", whole, {})


def _faults(parts: Sequence[tuple[Checked, _Source]]) -> list[str]:
    """A sentence for each of the first few faults of each file, and one for how many more there are."""
    told: dict[Path, list[str]] = {}
    for checked, source in parts:
        for place, fault in checked.faults.items():
            path, name = source.of(place)
            told.setdefault(path, []).append(f"{name}: {fault}; it is skipped, and counts as not trained")
    sentences = []
    for path, faults in told.items():
        sentences += faults[:_TOLD]
        if len(faults) > _TOLD:
            sentences.append(f"{path}: {len(faults) - _TOLD:,} more of the kind")
    return sentences


def _run_files(folder: Path) -> list[Path]:
    runs = folder / "runs"
    try:
        names = sorted(os.listdir(runs))  # noqa: PTH208 - Path.iterdir does not raise before it is used
    except (FileNotFoundError, NotADirectoryError) as error:
        no_folder = isinstance(error, NotADirectoryError) and os.path.lexists(runs)
        if no_folder or runs.is_symlink():  # a link to what is not there now
            raise cannot_read(runs, error) from error
        return []
    except OSError as error:
        raise cannot_read(runs, error) from error
    return [runs / name for name in names if name.endswith(".jsonl") and not name.startswith(".")]


def _blocks(paths: Iterable[Path], digests: dict[Path, str]) -> Iterator[tuple[list[bytes], _Source]]:
    """The lines of all files, many at a time, and where they come from; `digests` gets those of what was read."""
    lines: list[bytes] = []
    source = _Source([])
    for path in paths:
        number, read = 1, hashlib.sha256()
        with opened(path) as file:
            while more := list(islice(file, _BLOCK - len(lines))):
                read.update(b"".join(more))
                source.stretches.append((path, number, len(more)))
                lines += more
                number += len(more)
                if len(lines) == _BLOCK:
                    yield lines, source
                    lines, source = [], _Source([])
        digests[path] = read.hexdigest()
    if lines:
        yield lines, source


def _stamp(path: Path) -> object:
    """Tells a file from what is put in its place; None if there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise cannot_read(path, error) from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _table_in(content: bytes) -> Checked:
    """The records of a file that is a table of ours; raises ValueError if it is damaged or foreign."""
    return SCHEMA.from_table(read_table(content).replace_schema_metadata(None))


def _keys(table: pa.Table) -> Iterator[tuple[object, ...]]:
    columns = [pc.dictionary_encode(table[name].combine_chunks()) for name in RunKey._fields]
    # Every text is one object, however many rows it is in.
    return zip(
        *(np.array(one.dictionary.to_pylist(), object)[one.indices.to_numpy()].tolist() for one in columns), strict=True
    )


def _firsts(table: pa.Table) -> NDArray[np.int64]:
    """For each row the first row that has the same key."""
    numbers, kinds = np.zeros(len(table), np.int64), 1
    for name in RunKey._fields:
        column = pc.dictionary_encode(table[name].combine_chunks())
        if kinds * len(column.dictionary) >= 2**63:  # numbers that fit again
            known, numbers = np.unique(numbers, return_inverse=True)
            kinds = len(known)
        numbers = numbers * len(column.dictionary) + column.indices.to_numpy()
        kinds *= max(1, len(column.dictionary))
    _, firsts, places = np.unique(numbers, return_index=True, return_inverse=True)
    return firsts[places]


def _first_of_each(table: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """The first row of each key; and of every other row its number and that of the first of its key, in two columns."""
    rows = np.arange(len(table))
    firsts = _firsts(table)
    repeats = np.column_stack([rows, firsts])[firsts != rows]
    if not len(repeats):
        return table, repeats
    which = rows[firsts == rows]
    # Where the table repeats the lines, as after every merge, there is nothing to copy.
    kept = table.slice(0, len(which)) if which[-1] == len(which) - 1 else table.take(pa.array(which))
    accuracy = table["test_accuracy"].to_numpy()
    alike = repeats[accuracy[repeats[:, 0]] == accuracy[repeats[:, 1]]]
    for name in table.column_names[len(COLUMNS) :]:  # what a first row lacks of these, a later one may have
        absent = table[name].is_null().to_numpy()
        found = alike[absent[alike[:, 1]] & ~absent[alike[:, 0]]]
        if len(found):
            source = rows.copy()
            source[found[::-1, 1]] = found[::-1, 0]  # of several later ones the first
            values = table[name].take(pa.array(source[which]))
            kept = kept.set_column(kept.schema.get_field_index(name), name, values)
    return kept, repeats


def _unlike(table: pa.Table, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pairs of rows, (pairs, 2), differ in any column."""
    found = np.zeros(len(pairs), dtype=bool)
    for column in table.columns:
        first, second = (column.take(pa.array(rows)) for rows in pairs.T)
        if not first.equals(second):
            found |= np.array([one != other for one, other in zip(first.to_pylist(), second.to_pylist(), strict=True)])
    return found


def _origin(row: int, parts: Sequence[tuple[Checked, _Source]]) -> tuple[Path, str]:
    """The file that a row comes from, and what to call its place."""
    for checked, source in parts:
        if row < len(checked.places):
            return source.of(checked.places[row])
        row -= len(checked.places)
    raise AssertionError("every row comes from a file")


def merge(folder: Path) -> StoredRuns:
    """Write all that the folder holds to runs.parquet, sorted by key, and return it.

    What was in runs.parquet stays in it. A file there that holds something which cannot be kept in the new one (it is
    damaged, or has another accuracy for a training) is put aside under another name first. Nothing is written if it
    would be the same.
    """
    path = folder / TABLE
    while True:
        read = _read(folder)
        table = read.runs.table.sort_by([(name, "ascending") for name in RunKey._fields])
        same = table.equals(read.table) if read.table is not None else not len(table)
        if same and not read.lost:
            if read.table is not None and read.whole != read.noted:
                merged_files.write(folder, read.digest, read.whole)
            return StoredRuns(table, read.runs.problems)
        told = list(read.runs.problems)
        try:
            with replacing(path) as temporary:
                pq.write_table(table, temporary)
                digest = sha256.of(temporary)
                if _stamp(path) != read.stamp:
                    raise _Overtaken
                if read.lost:
                    told.append(f"{path} was put aside as {set_aside(path).name}")
        except _Overtaken:
            continue
        if read.whole:
            merged_files.write(folder, digest, read.whole)
        return StoredRuns(table, told)


class _Overtaken(Exception):  # noqa: N818 - nothing went wrong
    """Another process wrote the table since it was read."""
