"""Tables of accuracies that people keep, and those that `make export` writes, as CSV or Parquet.

A table has the columns index and arch and one of accuracies; where it has seeds too, one row is one training.
"""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import safe_pickle
from nas_retrain.files.file_kind import seems
from nas_retrain.files.parquet import read_frame

_EXPORTED = {"index", "arch", "representative", "copied", "dataset", "recipe", "seed", "test_accuracy"}


def read_csv(path: Path) -> pd.DataFrame:
    """The table in a .csv, .csv.gz or .tsv; raises NasRetrainError for a file that is missing, damaged or not CSV.

    Columns may be separated by semicolons or tabs too, and numbers then have decimal commas: a warning says so.
    """
    if not path.exists():
        raise NasRetrainError(f"There is no file {path}.")
    with safe_pickle.damage_reported(path):
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                bounded = safe_pickle.Bounded(file, (16 << 20) + 200 * path.stat().st_size)
                content = b"".join(iter(lambda: bounded.read(1 << 20), b""))
        else:
            content = path.read_bytes()
        separator = _separator(content)
        table: pd.DataFrame = pd.read_csv(io.BytesIO(content), sep=separator, low_memory=False, compression=None)
        if separator == ",":
            return table
        commas = [name for name in table if _decimal_commas(table[name])]
        for name in commas:
            numbers = pd.to_numeric(table[name].astype(str).str.replace(",", "."), errors="coerce")
            if numbers.isna().sum() == table[name].isna().sum():
                table[name] = numbers
        said = f", and the numbers in {', '.join(map(str, commas))[:200]} have decimal commas" if commas else ""
        warnings.warn(f"{path}: its columns are separated by {SEPARATORS[separator]}{said}.", stacklevel=2)
        return table


SEPARATORS = {";": "semicolons", "\t": "tabs"}
"""What may separate columns instead of commas."""


def _separator(content: bytes) -> str:
    """What separates the columns, by the first line, whose names have none of these."""
    header = content[: 1 << 16].partition(b"\n")[0]
    return next((one for one in SEPARATORS if one.encode() in header and b"," not in header), ",")


def is_plain(path: Path) -> bool:
    """Whether a Parquet file holds a table of cells rather than run records."""
    try:
        columns = set(pq.read_schema(path).names)
    except safe_pickle.DAMAGE:
        return False
    return {"index", "arch"} <= columns and "config_hash" not in columns


def read_parquet(path: Path) -> pd.DataFrame:
    """The table in a Parquet file; raises NasRetrainError for a damaged one."""
    with safe_pickle.damage_reported(path):
        return read_frame(path)


def is_export(table: pd.DataFrame) -> bool:
    """Whether `make export` wrote a table."""
    return set(table.columns) >= _EXPORTED


def own_trainings(table: pd.DataFrame, path: Path, dataset: str, column: str | None) -> pd.DataFrame:
    """The trainings in a table that `make export` wrote, as run records: columns recipe, cell, in_degree, seed,
    test_accuracy.

    Rows that repeat the training of another cell are left out. Raises NasRetrainError if there is none of `dataset`.
    """
    there = sorted({str(name) for name in table["dataset"]})
    table = table[table["dataset"] == dataset]
    if table.empty:
        raise NasRetrainError(f"{path} has no accuracies on {dataset}; it has {', '.join(there) or 'nothing'}.")
    recipes = sorted({str(name) for name in table["recipe"]})
    if len(recipes) > 1:
        raise NasRetrainError(f"{path} holds several recipes, {', '.join(recipes)}: leave the rows of one.")
    if "in_degree" not in table:
        raise NasRetrainError(
            f"{path} does not say how networks were initialised, as exports of version 0.1.0 do not: make export again."
        )
    found = trainings(table, path, dataset, column or "test_accuracy")
    found["in_degree"] = table["in_degree"].to_numpy()
    found["representative"] = whole(table["representative"], path)
    own = found[found["index"] == found["representative"]]
    renamed = own.rename(columns={"index": "cell", "accuracy": "test_accuracy"})
    return renamed.assign(dataset=dataset, recipe=recipes[0])


def trainings(table: pd.DataFrame, path: Path, dataset: str, column: str | None) -> pd.DataFrame:
    """A table's columns index, arch, seed (0 where it has none) and accuracy.

    column: the accuracy's column; by default `<dataset>_test`, `<dataset>`, `accuracy` or `test_accuracy`, whichever
    is there first. Raises NasRetrainError if a column is missing or holds what cannot be in it.
    """
    candidates = [column] if column else [f"{dataset}_test", dataset, "accuracy", "test_accuracy"]
    there = [name for name in candidates if name in table.columns]
    for needed, present in (("index", "index" in table), ("arch", "arch" in table), (candidates[0], bool(there))):
        if not present:
            raise NasRetrainError(f"{path} has no column {needed!r}{_instead(table, path, needed)}")
    check_numbers(table[there[0]], path)
    return pd.DataFrame(
        {
            "index": whole(table["index"], path),
            "arch": table["arch"].to_numpy(),
            "seed": whole(table["seed"], path) if "seed" in table.columns else 0,
            "accuracy": table[there[0]].to_numpy(dtype=float, na_value=np.nan),
        }
    )


def check_numbers(values: pd.Series[Any], path: Path) -> None:
    """Raise NasRetrainError, with the first value at fault, for a column that does not hold numbers."""
    if values.ndim != 1:
        raise NasRetrainError(f"{path} has several columns named {str(next(iter(values)))[:40]!r}. Leave one of them.")
    if pd.api.types.is_numeric_dtype(values):
        return
    if values.empty:
        raise NasRetrainError(f"{path} has columns and no rows: it holds no accuracies. Is the file whole?")
    wrong = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()]
    first = f", such as {str(wrong.iloc[0])[:40]!r}" if len(wrong) else ""
    hint = " They have decimal commas: write decimal points." if _decimal_commas(values) else ""
    raise NasRetrainError(f"{path}: column {values.name!r} holds values that are not numbers{first}.{hint}")


def whole(values: pd.Series[Any], path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A column of whole numbers as such; raises NasRetrainError for any other."""
    check_numbers(values, path)
    if values.isna().any():
        raise NasRetrainError(f"{path}: a row has no {values.name}. Is the file whole?")
    numbers = values.to_numpy()
    whole = (numbers >= -(2.0**63)) & (numbers < 2.0**63) & (numbers == np.floor(numbers))
    if not whole.all():
        raise NasRetrainError(f"{path}: column {values.name!r} holds {numbers[~whole][0]}, which is no whole number.")
    return numbers.astype(np.int64)


def _decimal_commas(values: pd.Series[Any]) -> bool:
    return bool(values.astype(str).str.fullmatch(r"-?\d+,\d+").any())


def _instead(table: pd.DataFrame, path: Path, needed: str) -> str:
    """What a table has where a column is missing, and what to do."""
    if what := seems(path):
        return f": {what}."
    columns = [str(name) for name in table.columns]
    for name in columns:
        if name.strip().lower() == needed:
            return f", but {name!r}: rename it."
    remedy = {
        "index": "Add the cells' numbers in the benchmark, from 0",
        "arch": "Add the cells' strings as the benchmark writes them",
    }.get(needed, "Name the accuracy's column with analysis.column=...")
    return f"; it has {', '.join(columns)[:500]}. {remedy}"
