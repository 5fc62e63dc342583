"""What was merged is not read twice, and nothing is read otherwise for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nas_retrain.files import sha256
from nas_retrain.trainings import merged_files, store
from nas_retrain.trainings.schema import Checked, Schema
from nas_retrain.trainings.store import RunWriter, merge, read_runs
from tests.trainings.test_store import a_record, as_a_newer_version, version, with_curves


def append(folder: Path, name: str, *seeds: int) -> None:
    with RunWriter(folder / "runs", name) as writer:
        writer.append(*map(a_record, seeds))


@pytest.fixture
def lines_read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines that are taken apart from now on."""
    read: list[bytes] = []
    original = Schema.from_lines

    def from_lines(self: Schema, lines: Sequence[bytes]) -> Checked:
        read.extend(lines)
        return original(self, lines)

    monkeypatch.setattr(Schema, "from_lines", from_lines)
    return read


def test_files_that_were_merged_are_not_read_again_until_they_are_written_to(
    tmp_path: Path, lines_read: list[bytes]
) -> None:
    append(tmp_path, "a", 1, 2)
    append(tmp_path, "b", 3)
    merge(tmp_path)
    assert len(lines_read) == 3
    del lines_read[:]
    before = version(tmp_path / merged_files.NOTE)
    assert len(read_runs(tmp_path)) == len(merge(tmp_path)) == 3
    assert lines_read == []
    assert version(tmp_path / merged_files.NOTE) == before
    append(tmp_path, "b", 4)
    assert len(read_runs(tmp_path)) == 4
    assert [json.loads(line)["seed"] for line in lines_read] == [3, 4]
    merge(tmp_path)
    del lines_read[:]
    assert len(read_runs(tmp_path)) == 4
    assert lines_read == []


def test_a_file_with_a_fault_is_read_and_its_fault_told_each_time(tmp_path: Path, lines_read: list[bytes]) -> None:
    append(tmp_path, "a", 1, 2)
    append(tmp_path, "b", 3)
    with (tmp_path / "runs" / "b-0.jsonl").open("ab") as file:
        file.write(b'{"torn')
    merge(tmp_path)
    del lines_read[:]
    (problem,) = read_runs(tmp_path).problems
    assert "b-0.jsonl, line 2: it is torn" in problem
    assert len(lines_read) == 2


def test_a_merge_with_nothing_new_notes_files_of_a_table_without_a_note(
    tmp_path: Path, lines_read: list[bytes]
) -> None:
    append(tmp_path, "a", 1, 2)
    merge(tmp_path)
    note = tmp_path / merged_files.NOTE
    before, table = note.read_bytes(), version(tmp_path / "runs.parquet")
    note.unlink()
    merge(tmp_path)
    assert note.read_bytes() == before
    assert version(tmp_path / "runs.parquet") == table
    del lines_read[:]
    read_runs(tmp_path)
    assert lines_read == []


@pytest.mark.parametrize("change", [{"seconds": 99.0}, {"test_accuracy": 10.0}, {"train_loss_curve": (2.0, 1.0)}])
def test_a_file_whose_line_stands_behind_another_s_is_read_each_time(tmp_path: Path, change: dict[str, Any]) -> None:
    """Since its line stands once the other is gone."""
    other = replace(a_record(1), **change)
    append(tmp_path, "a", 1)
    with RunWriter(tmp_path / "runs", "b") as writer:
        writer.append(other)
    merge(tmp_path)
    noted = json.loads((tmp_path / merged_files.NOTE).read_text())["files"]
    assert list(noted) == ["a-0.jsonl"]
    (tmp_path / "runs" / "a-0.jsonl").unlink()
    assert read_runs(tmp_path).records == [other]
    assert merge(tmp_path).records == [other]


def test_a_line_in_a_new_file_that_says_otherwise_stands_behind_the_merged_file_s(tmp_path: Path) -> None:
    append(tmp_path, "a", 1)
    merge(tmp_path)
    with RunWriter(tmp_path / "runs", "b") as writer:
        writer.append(replace(a_record(1), seconds=99.0))
    assert read_runs(tmp_path).records == [a_record(1)]


def test_fields_of_a_newer_version_are_read_from_lines(tmp_path: Path) -> None:
    """They have one type there, and after many merges too."""
    for number, value in enumerate([1, "x", 2, 3, 4]):
        path = tmp_path / "runs" / f"{number}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_a_newer_version(a_record(number), novelty=value) + "\n")
        merge(tmp_path)
    assert merge(tmp_path).table["novelty"].to_pylist() == ["1", '"x"', "2", "3", "4"]


def test_a_noted_table_that_cannot_be_read_now_costs_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(tmp_path, "a", 1, 2)
    merge(tmp_path)

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(store.pq, "ParquetFile", fails)
    stored = read_runs(tmp_path)
    assert len(stored) == 2
    assert "cannot be read as a table" in stored.problems[0]


def test_a_noted_table_with_a_row_that_is_none_now_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a version may say that takes less than the one that merged."""
    append(tmp_path, "a", 1, 2)
    merge(tmp_path)
    original = Schema.from_table

    def first_is_faulty(self: Schema, table: pa.Table) -> Checked:
        checked = original(self, table)
        return Checked(checked.table.slice(1), checked.places[1:], {0: "it is none"})

    monkeypatch.setattr(Schema, "from_table", first_is_faulty)
    assert len(read_runs(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "endless"])
def test_what_stands_in_the_place_of_the_note_is_passed_over(tmp_path: Path, kind: str) -> None:
    append(tmp_path, "a", 1, 2)
    merge(tmp_path)
    note = tmp_path / merged_files.NOTE
    note.unlink()
    match kind:
        case "folder":
            note.mkdir()
        case "pipe":
            os.mkfifo(note)
        case "dangling link":
            note.symlink_to("nowhere")
        case _:
            with note.open("wb") as file:
                file.truncate(10 << 30)
    assert len(read_runs(tmp_path)) == 2
    assert len(merge(tmp_path)) == 2


NOTES: list[bytes] = [
    b"", b"\x00\xff", b"[]", b"7", b"{}", b"[" * 100_000, b'{"table": 1, "files": 2}', b'{"files": {}}',
]  # fmt: skip


@pytest.mark.parametrize("content", NOTES)
def test_a_note_that_is_none_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    append(tmp_path, "a", 1, 2)
    merge(tmp_path)
    note = tmp_path / merged_files.NOTE
    good = note.read_bytes()
    note.write_bytes(content)
    assert len(read_runs(tmp_path)) == 2
    merge(tmp_path)
    assert note.read_bytes() == good


@pytest.mark.parametrize("files", [2, None, [], ["a-0.jsonl"], {"a-0.jsonl": 7}, {"a-0.jsonl": None}, {"": ""}])
def test_a_note_of_the_right_table_that_names_no_files_rightly_is_as_good_as_none(
    tmp_path: Path, files: object
) -> None:
    append(tmp_path, "a", 1, 2)
    merge(tmp_path)
    table = sha256.of(tmp_path / "runs.parquet")
    (tmp_path / merged_files.NOTE).write_text(json.dumps({"table": table, "files": files}))
    assert len(read_runs(tmp_path)) == 2


def test_a_table_that_is_written_while_its_folder_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of lines may go once it was merged."""
    append(tmp_path, "a", 1, 2)
    append(tmp_path, "b", 3)
    original, calls = merged_files.read, []

    def read(folder: Path, digest: str) -> merged_files.Digests:
        calls.append(digest)
        if len(calls) == 1:
            merge(folder)
            shutil.rmtree(folder / "runs")
        return original(folder, digest)

    append(tmp_path, "a", 4)
    merge(tmp_path)
    append(tmp_path, "a", 5)
    monkeypatch.setattr(merged_files, "read", read)
    assert len(read_runs(tmp_path)) == 5


def _append(folder: Path, name: str, seed: int, accuracy: float, seconds: float, *, curves: bool) -> None:
    record = replace(with_curves(seed) if curves else a_record(seed), test_accuracy=accuracy, seconds=seconds)
    with RunWriter(folder / "runs", name) as writer:
        writer.append(record)


def _tear(folder: Path, name: str) -> None:
    (folder / "runs").mkdir(exist_ok=True)
    with (folder / "runs" / f"{name}-0.jsonl").open("ab") as file:
        file.write(b'{"torn')


def _newer(folder: Path, name: str, seed: int, value: object) -> None:
    (folder / "runs").mkdir(exist_ok=True)
    with (folder / "runs" / f"{name}-0.jsonl").open("ab") as file:
        file.write(b"\n" + as_a_newer_version(a_record(seed), novelty=value).encode() + b"\n")


def _move(folder: Path, name: str, to: str) -> None:
    path = folder / "runs" / f"{name}-0.jsonl"
    if path.exists():
        path.replace(path.with_name(f"{to}-0.jsonl"))


def _drop_row(folder: Path) -> None:
    """As another program may write the table."""
    if (folder / "runs.parquet").exists():
        pd.read_parquet(folder / "runs.parquet").iloc[1:].to_parquet(folder / "runs.parquet", index=False)


APPEND = partial(_append, curves=False)
NAMES, SEEDS = st.sampled_from("abc"), st.integers(1, 2)
MERGE = st.just((merge, ()))
STEPS = st.one_of(
    st.tuples(
        st.just(APPEND),
        st.tuples(NAMES, SEEDS, st.sampled_from([91.25, 10.0]), st.sampled_from([1.5, 99.0])),
    ),
    st.tuples(st.just(partial(_append, curves=True)), st.tuples(NAMES, SEEDS, st.just(91.25), st.just(1.5))),
    MERGE,
    MERGE,
    st.tuples(st.just(_tear), st.tuples(NAMES)),
    st.tuples(st.just(_newer), st.tuples(NAMES, SEEDS, st.sampled_from([1, "x", None, 0.5]))),
    st.tuples(st.just(_move), st.tuples(NAMES, st.sampled_from(["a", "c", "gone"]))),
    st.just((_drop_row, ())),
)


@example(steps=[(APPEND, ("a", 1, 91.25, 1.5)), (merge, ()), (_drop_row, ())])
@example(steps=[(APPEND, ("a", 1, 91.25, 1.5)), (merge, ()), (APPEND, ("b", 1, 10.0, 1.5)), (merge, ())])
@given(steps=st.lists(STEPS, min_size=3, max_size=12))
def test_whatever_happens_to_a_folder_it_reads_as_it_does_without_a_note(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Callable[..., object], tuple[object, ...]]]
) -> None:
    folder = tmp_path_factory.mktemp("noted")
    for step, arguments in steps:
        step(folder, *arguments)
        noted = read_runs(folder)
        note, aside = folder / merged_files.NOTE, folder / "aside"
        if note.exists():
            note.rename(aside)
        plain = read_runs(folder)
        assert set(noted.rows) == set(plain.rows)
        order = [plain.rows[key] for key in noted.rows]
        assert noted.table.equals(plain.table.take(pa.array(order, pa.int64())))
        assert noted.problems == plain.problems
        if aside.exists():
            aside.rename(note)
