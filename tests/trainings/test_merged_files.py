"""What was merged is not read twice, and nothing is read otherwise for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.files import sha256
from nas_retrain.trainings import merged_files
from nas_retrain.trainings.schema import Checked, Schema
from nas_retrain.trainings.store import RunWriter, merge, read_runs
from tests.trainings.test_store import a_record, version, with_curves


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
    assert len(read_runs(tmp_path)) == len(merge(tmp_path)) == 3
    assert lines_read == []
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


def _append_line(folder: Path, name: str, seed: int, accuracy: float, *, curves: bool) -> None:
    record = replace(with_curves(seed) if curves else a_record(seed), test_accuracy=accuracy)
    with RunWriter(folder / "runs", name) as writer:
        writer.append(record)


def _tear(folder: Path, name: str) -> None:
    (folder / "runs").mkdir(exist_ok=True)
    with (folder / "runs" / f"{name}-0.jsonl").open("ab") as file:
        file.write(b'{"torn')


def _remove(folder: Path, name: str) -> None:
    (folder / "runs" / f"{name}-0.jsonl").unlink(missing_ok=True)


def _drop_rows(folder: Path) -> None:
    """As another program may write the table."""
    if (folder / "runs.parquet").exists():
        pd.read_parquet(folder / "runs.parquet").iloc[1:].to_parquet(folder / "runs.parquet", index=False)


NAMES = st.sampled_from("abc")
STEPS = st.one_of(
    st.tuples(st.just("append"), NAMES, st.integers(1, 4), st.sampled_from([91.25, 91.25, 10.0]), st.booleans()),
    st.tuples(st.just("tear"), NAMES),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("merge")),
    st.tuples(st.just("merge")),
    st.tuples(st.just("drop rows")),
)


@given(steps=st.lists(STEPS, min_size=3, max_size=14))
def test_whatever_happens_to_a_folder_it_reads_as_it_does_without_a_note(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("noted")
    for kind, *given_ in steps:
        match kind, given_:
            case "append", [str(name), int(seed), float(accuracy), bool(curves)]:
                _append_line(folder, name, seed, accuracy, curves=curves)
            case "tear", [str(name)]:
                _tear(folder, name)
            case "remove", [str(name)]:
                _remove(folder, name)
            case "merge", []:
                merge(folder)
            case "drop rows", []:
                _drop_rows(folder)
        noted = read_runs(folder)
        note = folder / merged_files.NOTE
        aside = folder / "aside"
        if note.exists():
            note.rename(aside)
        plain = read_runs(folder)
        assert set(noted.rows) == set(plain.rows)
        assert set(noted.records) == set(plain.records)
        assert noted.problems == plain.problems
        if aside.exists():
            aside.rename(note)
