"""The run store: nothing written is lost, whatever happens to the process that writes."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.errors import NasRetrainError
from nas_retrain.files.atomic import replacing
from nas_retrain.trainings import store
from nas_retrain.trainings.store import COLUMNS, CURVES, RunKey, RunRecord, RunWriter, merge, read_runs

amounts = st.floats(0, allow_nan=False, allow_infinity=False)
percents = st.floats(0, 100)


def curves(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[float | None, ...] | None]:
    return st.none() | st.lists(st.none() | values, max_size=3).map(tuple)


records = st.builds(
    RunRecord,
    bench=st.text(max_size=5),
    dataset=st.text(max_size=5),
    recipe=st.text(max_size=5),
    cell=st.integers(0, 15624),
    arch=st.text(max_size=20),
    network_class=st.integers(0, 15624),
    seed=st.integers(-(2**63), 2**62),
    epochs=st.integers(1, 200),
    learning_rate=st.none() | amounts,
    in_degree=st.none() | st.sampled_from(["source", "target"]),
    status=st.sampled_from(["finished", "diverged", "disconnected"]),
    train_loss=st.none() | amounts,
    train_accuracy=percents,
    test_loss=st.none() | amounts,
    test_accuracy=percents,
    seconds=amounts,
    images_per_second=st.none() | amounts,
    device=st.text(max_size=5),
    torch=st.text(max_size=5),
    code_version=st.text(max_size=5),
    config_hash=st.text(max_size=5),
    started=st.text(max_size=5),
    finished=st.text(max_size=5),
    rule=st.none() | st.text(max_size=9),
    rule_checksum=st.none() | st.text(max_size=5),
    rule_factor=st.none() | amounts,
    rule_layers=st.none() | st.text(max_size=9) | st.just('{"layer_rates":{"0-1/3":0.1,"vectors":2.0}}'),
    train_loss_curve=curves(amounts),
    test_accuracy_curve=curves(percents),
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


@pytest.mark.parametrize(
    "line", ["[]", "{}", "null", "3", "{}{}", '{"bench": 1}', "\x00\xff", json.dumps({"unknown": 1})]
)
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
    frame = merge(tmp_path).frame()
    assert tuple(frame.columns) == COLUMNS
    assert list(frame["seed"]) == [1, 2, 3]
    assert frame["learning_rate"].isna().tolist() == [False, True, False]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "runs.parquet"), frame)


def with_curves(seed: int) -> RunRecord:
    curve = {"train_loss_curve": (2.5, 0.5), "train_accuracy_curve": (50.0, None), "learning_rate_curve": ()}
    return replace(a_record(seed), **curve)  # type: ignore[arg-type]


def test_only_records_with_curves_have_their_fields_and_only_tables_with_such_records_their_columns(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, a_record(1), a_record(2), with_curves(3))
    without, _, of_third = (json.loads(line) for line in path.read_bytes().splitlines())
    assert tuple(without) == COLUMNS
    assert tuple(of_third) == (*COLUMNS, *CURVES[:3])
    assert tuple(merge(tmp_path).frame().columns) == (*COLUMNS, *CURVES[:3])
    assert read_runs(tmp_path).records == [a_record(1), a_record(2), with_curves(3)]
    before = version(tmp_path / "runs.parquet")
    path.unlink()
    assert merge(tmp_path).records == [a_record(1), a_record(2), with_curves(3)]
    assert version(tmp_path / "runs.parquet") == before


def test_curves_beside_fields_of_a_newer_version_merge_to_one_table_that_stays(tmp_path: Path) -> None:
    write(tmp_path, a_record(1)).write_text(as_a_newer_version(a_record(1), novelty=1))
    with RunWriter(tmp_path / "runs", "task") as writer:
        writer.append(with_curves(2))
    merge(tmp_path)
    before = version(tmp_path / "runs.parquet")
    (tmp_path / "runs" / "local-0.jsonl").unlink()
    assert merge(tmp_path).records == [a_record(1), with_curves(2)]
    assert version(tmp_path / "runs.parquet") == before


def test_curves_that_only_a_later_record_of_the_same_training_has_are_kept(tmp_path: Path) -> None:
    write(tmp_path, a_record(1), a_record(2), a_record(3))
    with RunWriter(tmp_path / "runs", "task") as writer:
        writer.append(with_curves(2), replace(with_curves(3), test_accuracy=10.0), replace(with_curves(2), recipe="x"))
    found = read_runs(tmp_path).records
    assert found == [a_record(1), with_curves(2), a_record(3), replace(with_curves(2), recipe="x")]


def test_curves_that_pandas_wrote_are_read_and_wrong_ones_are_named(tmp_path: Path) -> None:
    table = merged(tmp_path, a_record(1), with_curves(2), with_curves(3))
    frame = pd.read_parquet(table)
    frame.to_parquet(table, index=False)  # with NaN in the place of null
    assert read_runs(tmp_path).records == [a_record(1), with_curves(2), with_curves(3)]
    frame["train_accuracy_curve"] = [None, [50.0, 60.0], [50.0, 150.0]]
    frame.to_parquet(table, index=False)
    stored = read_runs(tmp_path)
    assert stored.records == [a_record(1), replace(with_curves(2), train_accuracy_curve=(50.0, 60.0))]
    assert "row 3: train_accuracy_curve is [50.0, 150.0], where a list of numbers from 0 to 100" in stored.problems[0]
    frame.assign(train_loss_curve=7.5).to_parquet(table, index=False)
    with pytest.raises(NasRetrainError, match="its column train_loss_curve is of type double"):
        read_runs(tmp_path)


def test_curves_that_a_version_without_them_kept_as_texts_are_read(tmp_path: Path) -> None:
    table = merged(tmp_path, a_record(1), with_curves(2), a_record(3))
    frame = pd.read_parquet(table)
    texts = [None, "[2.5, 0.5]", "[2.5"]
    frame.assign(train_loss_curve=texts).to_parquet(table, index=False)
    stored = read_runs(tmp_path)
    assert stored.records == [a_record(1), with_curves(2)]
    assert "row 3: train_loss_curve is '[2.5', where a list of numbers" in stored.problems[0]


def test_an_empty_store_merges_to_nothing(tmp_path: Path) -> None:
    assert not merge(tmp_path)
    assert list(tmp_path.iterdir()) == []


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
        from nas_retrain.trainings.store import RunWriter
        from tests.trainings.test_store import a_record
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
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
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


def merged(folder: Path, *written: RunRecord) -> Path:
    """A folder whose records are in its table only, as results are committed."""
    write(folder, *written)
    merge(folder)
    shutil.rmtree(folder / "runs")
    return folder / "runs.parquet"


def version(path: Path) -> tuple[int, int, int]:
    """Tells a file from another one in its place; reading it changes nothing."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@given(different_records, st.data())
def test_no_merge_drops_a_record_of_the_table_whichever_files_of_lines_are_there(
    tmp_path_factory: pytest.TempPathFactory, written: list[RunRecord], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store")
    known: set[RunKey] = set()
    for number in range(3):
        part = data.draw(st.lists(st.sampled_from(written), unique_by=lambda record: record.key))
        with RunWriter(folder / "runs", f"task-{number}") as writer:
            writer.append(*part)
        known |= {record.key for record in part}
        assert {record.key for record in merge(folder).records} == known
        assert {record.key for record in read_runs(folder).records} == known
        if data.draw(st.booleans()):
            shutil.rmtree(folder / "runs")
    assert set(read_runs(folder).records) == {record for record in written if record.key in known}


def test_what_only_the_table_holds_is_read_beside_lines_and_merging_again_writes_nothing(tmp_path: Path) -> None:
    table = merged(tmp_path, a_record(1), a_record(2))
    assert [record.seed for record in read_runs(tmp_path).records] == [1, 2]
    write(tmp_path, a_record(2), a_record(3))
    assert {record.seed for record in read_runs(tmp_path).records} == {1, 2, 3}
    assert [record.seed for record in merge(tmp_path).records] == [1, 2, 3]
    before = version(table)
    assert len(merge(tmp_path)) == 3
    assert version(table) == before


SPOILED = {
    "empty": lambda _: b"",
    "zeroed": lambda whole: bytes(len(whole)),
    "cut": lambda whole: whole[: len(whole) // 2],
    "without an end": lambda whole: whole[:-4] + bytes(4),
    "text": lambda _: b"version https://git-lfs.github.com/spec/v1\n",
    "another table": lambda _: parquet(pd.DataFrame({"cell": [1]})),
    "texts for numbers": lambda whole: parquet(pd.read_parquet(BytesIO(whole)).astype({"seed": str})),
    "truths for numbers": lambda whole: parquet(pd.read_parquet(BytesIO(whole)).astype({"test_accuracy": bool})),
    "fractions for integers": lambda whole: parquet(pd.read_parquet(BytesIO(whole)).astype({"cell": float})),
}


def parquet(frame: pd.DataFrame) -> bytes:
    content = BytesIO()
    frame.to_parquet(content, index=False)
    return content.getvalue()


@pytest.mark.parametrize("kind", SPOILED)
def test_a_damaged_or_foreign_table_is_put_aside_beside_lines_and_refused_without(tmp_path: Path, kind: str) -> None:
    table = merged(tmp_path, a_record(1), a_record(2))
    spoiled = SPOILED[kind](table.read_bytes())
    for number in range(2):  # what was put aside before is not overwritten
        table.write_bytes(spoiled)
        with pytest.raises(NasRetrainError, match=r"runs\.parquet cannot be read as a table of run records.*good copy"):
            read_runs(tmp_path)
        with pytest.raises(NasRetrainError, match=r"runs\.parquet cannot be read"):
            merge(tmp_path)
        assert table.read_bytes() == spoiled
        write(tmp_path, a_record(3 + number))
        stored = read_runs(tmp_path)
        assert "runs.parquet cannot be read" in stored.problems[0]
        aside = tmp_path / f"runs.set-aside-{number}.parquet"
        assert f"put aside as {aside.name}" in merge(tmp_path).problems[-1]
        assert aside.read_bytes() == spoiled
        assert read_runs(tmp_path).records == stored.records
        assert read_runs(tmp_path).problems == []
        shutil.rmtree(tmp_path / "runs")
    aside = {"runs.set-aside-0.parquet", "runs.set-aside-1.parquet"}
    assert entries(tmp_path) == {"runs.parquet", "merged.json"} | aside


def test_a_table_that_disagrees_with_lines_is_kept_under_another_name(tmp_path: Path) -> None:
    table = merged(tmp_path, a_record(1), a_record(2))
    before = table.read_bytes()
    write(tmp_path, replace(a_record(2), test_accuracy=10.0))
    assert any("gave 91.25 here and 10.0 before" in problem for problem in read_runs(tmp_path).problems)
    assert [record.test_accuracy for record in merge(tmp_path).records] == [91.25, 10.0]
    assert (tmp_path / "runs.set-aside-0.parquet").read_bytes() == before
    assert merge(tmp_path).problems == []


def test_a_table_that_another_process_wrote_meanwhile_is_merged_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, a_record(1))
    other = merged(tmp_path / "other", a_record(2)).read_bytes()
    original = store.pq.write_table

    def overtaken(*given: object) -> None:
        original(*given)
        monkeypatch.setattr(store.pq, "write_table", original)
        (tmp_path / "runs.parquet").write_bytes(other)

    monkeypatch.setattr(store.pq, "write_table", overtaken)
    assert [record.seed for record in merge(tmp_path).records] == [1, 2]
    assert len(pd.read_parquet(tmp_path / "runs.parquet")) == 2


WRONG_VALUES = {
    "cell": [-1, 1e9, "3", None, True, [3], {"a": 3}, 2**63, 10**400],
    "seed": [0.5, "777", None, False, 2**70],
    "epochs": [0, -5, 2.0],
    "learning_rate": [-0.1, "0.1", [0.1], True],
    "status": ["stopped", "", None, 1, ["finished"]],
    "train_loss": [-1.0, "nan", {}],
    "test_accuracy": [150.0, 1e9, -1, None, "91", [91.25], True],
    "seconds": [-1.0, None, "1"],
    "arch": [None, 3, ["|"]],
    "config_hash": [None, 12, {}],
    "group": [1, False],
    "train_loss_curve": [[-1.0], ["1"], 0.5, [True], [[0.5]], {}, [0.5, 10**400], "[0.5]"],
    "test_accuracy_curve": [[50.0, 101.0]],
}
WRONG_TEXTS = {
    "not a number": ('"test_accuracy": 91.25', '"test_accuracy": NaN'),
    "infinity": ('"test_accuracy": 91.25', '"test_accuracy": Infinity'),
    "beyond all numbers": ('"seconds": 1.5', '"seconds": 1e999'),
    "a name twice": ('"seed": 777', '"seed": 777, "seed": 778'),
    "a lone surrogate": ('"device": "cpu"', '"device": "\\ud800"'),
    "no UTF-8": ('"device": "cpu"', '"device": "\udcff"'),
    "nested beyond reason": ('"device": "cpu"', '"device": ' + 100_000 * "["),
    "a byte of zero": ('"device": "cpu"', '"device": "\x00"'),
}


def wrong_lines() -> dict[str, bytes]:
    values = asdict(a_record())
    found = {
        f"{name}={str(value)[:10]}": json.dumps(values | {name: value}).encode()
        for name, wrong in WRONG_VALUES.items()
        for value in wrong
    }
    for kind, (right, wrong) in WRONG_TEXTS.items():
        found[kind] = json.dumps(values).replace(right, wrong).encode(errors="surrogateescape")
    return found | {f"no {name}": json.dumps({**values, name: None}).encode() for name in ("bench", "torch")}


@pytest.mark.parametrize("line", wrong_lines().values(), ids=wrong_lines())
def test_a_line_with_a_value_that_cannot_be_is_named_and_costs_no_other_record(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path, a_record(1), a_record(2))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + second)
    stored = read_runs(tmp_path)
    assert [record.seed for record in stored.records] == [1, 2]
    (problem,) = stored.problems
    assert f"{path}, line 2: " in problem
    assert "counts as not trained" in problem
    assert len(merge(tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("test_accuracy", 150.0), ("test_accuracy", math.nan), ("seconds", -math.inf), ("status", "x"), ("cell", -3)],
)
def test_a_row_with_a_value_that_cannot_be_is_named_like_a_line_and_its_table_is_kept(
    tmp_path: Path, name: str, value: object
) -> None:
    table = merged(tmp_path, a_record(1), a_record(2))
    frame = pd.read_parquet(table)
    frame.loc[1, name] = value
    frame.to_parquet(table, index=False)
    before = table.read_bytes()
    stored = read_runs(tmp_path)
    assert [record.seed for record in stored.records] == [1]
    assert re.match(re.escape(f"{table}, row 2: ") + f"({name} is |it has no {name})", stored.problems[0])
    merge(tmp_path)
    assert (tmp_path / "runs.set-aside-0.parquet").read_bytes() == before


def test_faults_by_the_thousand_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, a_record())
    path.write_bytes(path.read_bytes() + 2000 * b"torn\n")
    problems = read_runs(tmp_path).problems
    assert len(problems) == 4
    assert "1,997 more" in problems[-1]


@pytest.mark.parametrize("name", ["runs/task-0.jsonl", "runs.parquet", "runs"])
@pytest.mark.parametrize("kind", ["folder", "dangling link", "link to itself", "pipe", "not permitted"])
def test_what_may_hold_records_and_cannot_be_read_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    write(tmp_path / "elsewhere", a_record())
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "folder":
        if name == "runs":
            path.write_text("a file in the place of a folder")
        else:
            path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "not mounted")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        (tmp_path / "elsewhere" / "runs").rename(path) if name == "runs" else path.write_bytes(b"")

        def refuse(real: Callable[..., Any]) -> Callable[..., Any]:
            def opened(given: Any, *others: Any) -> Any:
                if Path(given) == path:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(given))
                return real(given, *others)

            return opened

        monkeypatch.setattr(os, "listdir", refuse(os.listdir))
        monkeypatch.setattr(Path, "open", refuse(Path.open))
    for read in (read_runs, merge):
        with pytest.raises(NasRetrainError, match=re.escape(f"{path} cannot be read: ")) as raised:
            read(tmp_path)
        assert "move it out" in str(raised.value)
    assert path.is_symlink() or path.exists()


def as_a_newer_version(record: RunRecord, **fields: object) -> str:
    return json.dumps(asdict(record) | fields) + "\n"


NEW_FIELDS = [
    "a text",
    "2026-01-01T00:00:00",
    7,
    2**70,
    0.5,
    True,
    {"nested": [1, {"deeper": None}]},
    {},
    [1, "of two kinds"],
    [],
]


@pytest.mark.parametrize("value", NEW_FIELDS, ids=str)
def test_a_record_of_a_newer_version_is_kept_with_its_fields_also_through_merges(tmp_path: Path, value: object) -> None:
    path = write(tmp_path, a_record(1))
    with path.open("a") as file:
        file.write(as_a_newer_version(a_record(2), novelty=value))
        file.write(as_a_newer_version(a_record(3), novelty=value, another=1))
    stored = read_runs(tmp_path)
    assert [record.seed for record in stored.records] == [1, 2, 3]
    (problem,) = stored.problems
    assert "written by a newer version" in problem
    assert "another, novelty" in problem
    merge(tmp_path)
    shutil.rmtree(path.parent)
    for seed in (4, 5):
        write(tmp_path, a_record(seed))
        merge(tmp_path)
    kept = pq.read_table(tmp_path / "runs.parquet").to_pydict()
    assert kept["seed"] == [1, 2, 3, 4, 5]
    assert kept["another"] == [None, None, 1, None, None]
    # What Parquet has no type for is kept as a JSON text.
    plain = [json.loads(kept["novelty"][row]) if kept["novelty"][row] != value else value for row in (1, 2)]
    assert plain == [value, value]
    assert kept["novelty"][3:] == [None, None]


@pytest.mark.parametrize(
    ("first", "second"), [(1, "x"), (1, 0.5), ([1], {"a": 1}), (None, True), ("x", ["x"])], ids=str
)
def test_a_new_field_of_several_kinds_is_kept_too(tmp_path: Path, first: object, second: object) -> None:
    (tmp_path / "runs").mkdir()
    for name, value in (("a", first), ("b", second)):
        line = as_a_newer_version(a_record(ord(name)), novelty=value)
        (tmp_path / "runs" / f"{name}.jsonl").write_text(line)
    for _ in range(2):
        merge(tmp_path)
        kept = pq.read_table(tmp_path / "runs.parquet")["novelty"].to_pylist()
        plain = [json.loads(one) if isinstance(one, str) and one not in (first, second) else one for one in kept]
        assert plain == [first, second]


def test_a_field_that_only_the_table_has_stays_where_lines_lack_it(tmp_path: Path) -> None:
    path = write(tmp_path, a_record(1), a_record(2))
    merge(tmp_path)
    table = tmp_path / "runs.parquet"
    pd.read_parquet(table).assign(novelty=["one", "two"]).to_parquet(table, index=False)
    with path.open("a") as file:
        file.write(as_a_newer_version(a_record(3), novelty="three"))
    merge(tmp_path)
    assert list(pd.read_parquet(table)["novelty"]) == ["one", "two", "three"]
    assert "runs.set-aside-0.parquet" not in entries(tmp_path)


def test_records_of_an_older_version_are_read_with_the_defaults_of_what_they_lack(tmp_path: Path) -> None:
    newer = ("gradient_norm", "relative_gradient", "group")
    old = replace(a_record(1), gradient_norm=None, relative_gradient=None, group="")
    path = tmp_path / "runs" / "old.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({name: value for name, value in asdict(old).items() if name not in newer}) + "\n")
    table = merged(tmp_path / "table", old)
    pd.read_parquet(table).drop(columns=list(newer)).to_parquet(table, index=False)
    for folder in (tmp_path, tmp_path / "table"):
        assert read_runs(folder).records == [old]
        assert read_runs(folder).problems == []
        assert tuple(merge(folder).frame().columns) == COLUMNS
