"""The run store: nothing written is lost, whatever happens to the process that writes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.errors import NasRetrainError
from nas_retrain.store import COLUMNS, RunKey, RunRecord, RunWriter, merge, read_runs, replacing

finite = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    RunRecord,
    bench=st.text(max_size=5),
    dataset=st.text(max_size=5),
    recipe=st.text(max_size=5),
    cell=st.integers(0, 15624),
    arch=st.text(max_size=20),
    network_class=st.integers(0, 15624),
    seed=st.integers(0, 2**62),
    epochs=st.integers(1, 200),
    learning_rate=st.none() | finite,
    in_degree=st.none() | st.sampled_from(["source", "target"]),
    status=st.sampled_from(["finished", "diverged", "disconnected"]),
    train_loss=st.none() | finite,
    train_accuracy=finite,
    test_loss=st.none() | finite,
    test_accuracy=finite,
    seconds=finite,
    images_per_second=st.none() | finite,
    device=st.text(max_size=5),
    torch=st.text(max_size=5),
    code_version=st.text(max_size=5),
    config_hash=st.text(max_size=5),
    started=st.text(max_size=5),
    finished=st.text(max_size=5),
)
different_records = st.lists(records, unique_by=lambda record: record.key, min_size=1, max_size=4)


def a_record(seed: int = 777) -> RunRecord:
    return RunRecord(
        bench="201", dataset="digits", recipe="benchmark", cell=3, arch="|...|", network_class=3, seed=seed, epochs=2,
        learning_rate=0.1, in_degree=None, status="finished", train_loss=0.5, train_accuracy=90.0, test_loss=0.25,
        test_accuracy=91.25, seconds=1.5, images_per_second=800.0, device="cpu", torch="2", code_version="0",
        config_hash="abc", started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:00:01+00:00",
    )  # fmt: skip


def write(folder: Path, *written: RunRecord) -> Path:
    with RunWriter(folder / "runs", "local") as writer:
        for record in written:
            writer.append(record)
        return writer.path


@given(different_records)
def test_records_survive_the_round_trip(tmp_path_factory: pytest.TempPathFactory, written: list[RunRecord]) -> None:
    folder = tmp_path_factory.mktemp("store")
    write(folder, *written)
    stored = read_runs(folder)
    assert stored.records == written
    assert stored.problems == []


@given(different_records, st.data())
def test_a_file_cut_at_any_byte_loses_only_the_line_that_was_cut(
    tmp_path_factory: pytest.TempPathFactory, written: list[RunRecord], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store")
    path = write(folder, *written)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = [record for end, record in zip(_line_ends(content), written, strict=True) if end <= cut + 1]
    stored = read_runs(folder)
    assert stored.records == whole
    torn = cut > 0 and content[cut - 1 : cut] != b"\n" and cut + 1 not in _line_ends(content)
    assert len(stored.problems) == torn
    # A new writer takes the file up without joining its first line to the torn one.
    later = replace(written[0], seed=2**62 + 1)
    assert write(folder, later) == path
    assert read_runs(folder).records == [*whole, later]


def _line_ends(content: bytes) -> list[int]:
    return [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]


def test_of_two_records_with_one_key_the_first_stands_and_a_difference_is_told(tmp_path: Path) -> None:
    first = a_record()
    write(tmp_path, first, replace(first, seconds=9.0), replace(first, test_accuracy=1.0))
    stored = read_runs(tmp_path)
    assert stored.records == [first]
    assert len(stored.problems) == 1
    assert "line 3" in stored.problems[0]
    assert "1.0" in stored.problems[0]


@pytest.mark.parametrize("line", ["[]", "{}", "null", '{"bench": 1}', "\x00\xff", json.dumps({"unknown": 1})])
def test_foreign_lines_are_skipped_and_told(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, a_record())
    with path.open("a") as file:
        file.write(line + "\n")
    stored = read_runs(tmp_path)
    assert stored.records == [a_record()]
    assert len(stored.problems) == 1
    assert str(path) in stored.problems[0]


def test_merge_writes_the_columns_of_the_record_sorted_by_key(tmp_path: Path) -> None:
    write(tmp_path, a_record(3), a_record(1), replace(a_record(2), learning_rate=None, train_loss=None))
    frame = merge(tmp_path)
    assert tuple(frame.columns) == COLUMNS
    assert list(frame["seed"]) == [1, 2, 3]
    assert frame["learning_rate"].isna().tolist() == [False, True, False]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "runs.parquet"), frame)


def test_an_empty_store_merges_to_an_empty_table(tmp_path: Path) -> None:
    assert merge(tmp_path).empty
    assert tuple(pd.read_parquet(tmp_path / "runs.parquet").columns) == COLUMNS


def _append_many(folder: Path, start: int) -> None:
    with RunWriter(folder / "runs", "local") as writer:
        for seed in range(start, start + 50):
            writer.append(a_record(seed))


def test_writers_at_the_same_time_have_files_of_their_own_and_restarts_reuse_them(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(tmp_path, start)) for start in (0, 100, 200)]
    with RunWriter(tmp_path / "runs", "local") as held:  # all three run while this one holds the first file
        for process in writers:
            process.start()
        for process in writers:
            process.join()
            assert process.exitcode == 0
        held.append(a_record(1000))
    stored = read_runs(tmp_path)
    assert stored.problems == []
    assert {record.seed for record in stored.records} == {*range(50), *range(100, 150), *range(200, 250), 1000}
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names <= {f"local-{number}.jsonl" for number in range(4)}
    assert write(tmp_path, a_record(2000)).name == "local-0.jsonl"


def test_on_a_full_disk_the_records_already_written_survive(tmp_path: Path) -> None:
    """A limit on the file size stands in for the full disk: the system cuts the write short in the same way."""
    room = 3 * len(json.dumps(vars(a_record(100))) + "\n") + 40
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        from nas_retrain.errors import NasRetrainError
        from nas_retrain.store import RunWriter
        from tests.test_store import a_record
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
        with RunWriter(Path({str(tmp_path)!r}) / "runs", "local") as writer:
            for seed in range(100, 110):
                try:
                    writer.append(a_record(seed))
                except NasRetrainError as error:
                    sys.exit(f"{{seed}} {{error}}")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("103 ")
    assert "full" in done.stderr
    assert "run the same command again" in done.stderr
    assert [record.seed for record in read_runs(tmp_path).records] == [100, 101, 102]
    write(tmp_path, a_record(103))
    assert [record.seed for record in read_runs(tmp_path).records] == [100, 101, 102, 103]


def test_replacing_leaves_the_old_file_when_it_fails_and_the_umask_decides_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]
    before = os.umask(0o027)
    try:
        with replacing(path) as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_takes_its_place_is_on_the_disk_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a power loss leaves the old or the new one, whole, and the folders that were made for it."""
    happened: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        happened.append(("flushed", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        happened.append(("renamed", path.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    with replacing(tmp_path / "outer" / "inner" / "table.csv") as temporary:
        temporary.write_text("new")
    assert set(happened[:2]) == {("flushed", tmp_path.name), ("flushed", "outer")}
    assert happened[2:] == [("flushed", temporary.name), ("renamed", temporary.name), ("flushed", "inner")]


def test_a_record_is_on_the_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint is removed after that."""
    flushed: list[int] = []
    with RunWriter(tmp_path / "runs", "local") as writer:
        monkeypatch.setattr(os, "fsync", lambda _: flushed.append(writer.path.stat().st_size))
        for number in range(1, 3):
            writer.append(a_record(number))
            assert flushed == [*flushed[:-1], writer.path.stat().st_size]
            assert len(flushed) == number


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
def test_where_a_folder_cannot_be_flushed_a_file_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refuse)
    with replacing(tmp_path / "table.csv") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "table.csv").read_text() == "new"


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_does_not_reach_the_disk_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(error, os.strerror(error))

    (tmp_path / "table.csv").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(NasRetrainError, match=r"table\.csv"), replacing(tmp_path / "table.csv") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "table.csv").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NasRetrainError, match=r"file.*results_dir"):
        RunWriter(tmp_path / "file" / "runs", "local")
    with pytest.raises(NasRetrainError, match=r"file.*results_dir"), replacing(tmp_path / "file" / "x"):
        pass


def test_the_key_is_what_the_design_says() -> None:
    assert a_record().key == RunKey("201", "digits", "benchmark", 3, 777, "abc")
    assert RunKey._fields == ("bench", "dataset", "recipe", "network_class", "seed", "config_hash")
