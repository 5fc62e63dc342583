"""Parquet files whose pages are whole and whose texts are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import plain_table, table_copy
from nas_retrain.files.parquet import read_frame, read_table
from nas_retrain.statistics import accuracies, rate_tables
from nas_retrain.trainings.store import SCHEMA, read_runs
from tests.strategies import NAS_BENCH_201


def not_utf8(text: bytes = b"|nor_co\xffv_1x1~0|") -> pa.Array:
    """A column of one text with bytes that are no UTF-8, as a flipped bit leaves it."""
    offsets = pa.array([0, len(text)], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(text)])


def written(folder: Path) -> Path:
    table = pa.table(
        {
            "index": [0],
            "arch": not_utf8(),
            "seed": [1],
            "learning_rate": [0.1],
            "accuracy": [50.0],
            "val_accuracy": [1.0],
        }
    )
    path = folder / "table.parquet"
    pq.write_table(table, path)
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "a table of accuracies": lambda path: accuracies.read(path, "cifar10", NAS_BENCH_201, recipe="benchmark"),
    "a table of rates": lambda path: rate_tables.read(path, "cifar10", NAS_BENCH_201),
    "a plain table": plain_table.read_parquet,
}


@pytest.mark.parametrize("reader", READERS)
def test_texts_that_are_not_utf8_are_damage(reader: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(NasRetrainError, match=r"table\.parquet cannot be read: .*UTF"):
        READERS[reader](path)


def test_so_they_are_where_damage_has_another_name(tmp_path: Path) -> None:
    path = written(tmp_path)
    for read in (read_table, read_frame, lambda path: read_table(path.read_bytes())):
        with pytest.raises(ValueError, match="UTF"):
            read(path)
    copied = table_copy.place(path)
    path.rename(copied)
    with pytest.warns(UserWarning, match="is damaged .*UTF"):
        assert table_copy.read(path, "any", ["index"]) is None


def test_so_they_are_among_records(tmp_path: Path) -> None:
    columns = {column.name: pa.nulls(1, column.type) for column in SCHEMA.columns} | {"recipe": not_utf8()}
    pq.write_table(pa.table(columns), tmp_path / "runs.parquet")
    with pytest.raises(NasRetrainError, match=r"runs\.parquet.*UTF"):
        read_runs(tmp_path)


def test_a_table_that_declares_more_rows_than_it_can_hold_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"index": pa.nulls(10_000_000, pa.int8())}), path)
    with pytest.raises(ValueError, match="it cannot hold the 10,000,000 rows"):
        read_table(path)
