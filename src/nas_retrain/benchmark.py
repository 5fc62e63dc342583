"""Accuracies of cells, whoever trained them: one door for published benchmarks and for runs of our own.

Whatever the source, what comes out is one training a row: the cell, which of its trainings it is, and the accuracy in
percent. A training that a source does not have is absent, never filled in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nas_retrain.errors import NasRetrainError
from nas_retrain.spaces import nas_bench_201

COLUMNS = ["index", "seed", "accuracy"]


@dataclass(frozen=True)
class Accuracies:
    """Trainings of cells.

    name: what reports call them. runs: one row a training with the columns index (the cell's official index), seed
    and accuracy (percent); unique in (index, seed). per_class: whether one row stands for a whole network class,
    named by its lowest index, rather than for one cell.
    """

    name: str
    runs: pd.DataFrame
    per_class: bool = False


def checked(runs: pd.DataFrame, source: Path | str) -> pd.DataFrame:
    """`runs` with its columns in order and sorted, if it can be what it says; raises NasRetrainError, naming `source`.

    Refused are cells outside the benchmark, a repeated training, and an accuracy that is not a percentage.
    """
    if runs.empty:
        raise NasRetrainError(f"{source} holds no accuracies.")
    runs = runs[COLUMNS].sort_values(["index", "seed"], ignore_index=True)
    cells = len(nas_bench_201.cells())
    outside = runs.loc[(runs["index"] < 0) | (runs["index"] >= cells), "index"]
    if len(outside):
        raise NasRetrainError(f"{source}: cell index {outside.iloc[0]} is out of range 0 to {cells - 1}.")
    repeated = runs.loc[runs.duplicated(["index", "seed"]), "index"]
    if len(repeated):
        raise NasRetrainError(f"{source}: cell {repeated.iloc[0]} is listed more than once.")
    wrong = runs.loc[~runs["accuracy"].between(0.0, 100.0)]  # NaN is not between either
    if len(wrong):
        row = wrong.iloc[0]
        raise NasRetrainError(
            f"{source}: cell {row['index']:.0f} has the accuracy {row['accuracy']}; percentages from 0 to 100 are "
            "expected. Leave out cells without a result."
        )
    return runs


def read_csv(path: Path, dataset: str, column: str | None = None) -> Accuracies:
    """Accuracies from a CSV file (.csv or .csv.gz) with the columns index, arch and an accuracy.

    column: the accuracy's column; by default `<dataset>_test`, `<dataset>` or `accuracy`, whichever is there. One
    row is one training as far as anyone can tell, even if it was averaged over seeds where the file was made. Raises
    NasRetrainError for a file that is missing, damaged, or not of that form.
    """
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise NasRetrainError(f"There is no file {path}.") from None
    except (ValueError, OSError, EOFError) as error:  # pandas' and gzip's errors for what is not CSV
        raise NasRetrainError(f"{path} cannot be read as CSV: {error}. Is it whole?") from error
    candidates = [column] if column else [f"{dataset}_test", dataset, "accuracy"]
    there = [name for name in candidates if name in table.columns]
    for needed, present in (("index", "index" in table), ("arch", "arch" in table), (candidates[0], bool(there))):
        if not present:
            raise NasRetrainError(
                f"{path} has no column {needed!r}; it has {', '.join(map(str, table.columns))}. Name the accuracy's "
                "column with analysis.column=..."
            )
    for name in ("index", there[0]):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise NasRetrainError(f"{path}: column {name!r} holds values that are not numbers.")
    if table["index"].isna().any():
        raise NasRetrainError(f"{path}: a row has no index. Is the file whole?")
    runs = checked(
        pd.DataFrame({"index": table["index"].astype(int), "seed": 0, "accuracy": table[there[0]].astype(float)}), path
    )
    if runs["accuracy"].max() <= 1.0:
        raise NasRetrainError(f"{path}: no accuracy is above 1; expected are percentages, 93 rather than 0.93.")
    _check_names(zip(table["index"].astype(int), table["arch"], strict=True), path)
    return Accuracies(path.name.removesuffix(".gz").removesuffix(".csv"), runs)


def _check_names(cells: Iterable[tuple[int, object]], source: Path) -> None:
    names = nas_bench_201.cells()
    for index, arch in cells:
        if names[index] != arch:
            raise NasRetrainError(f"{source}: cell {index} is {names[index]} in NAS-Bench-201, not {arch!r}.")


def from_runs(frame: pd.DataFrame, name: str) -> Accuracies:
    """One recipe's accuracies out of run records (the columns of `store.RunRecord`), one row a network class."""
    runs = frame.rename(columns={"cell": "index", "test_accuracy": "accuracy"})[COLUMNS]
    return Accuracies(name, checked(runs.astype({"accuracy": float}), name), per_class=True)


def read_runs(path: Path, dataset: str, recipe: str) -> Accuracies:
    """One recipe's accuracies from a runs.parquet of ours; raises NasRetrainError if it has none or several budgets."""
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise NasRetrainError(f"There is no file {path}.") from None
    except (ValueError, OSError) as error:
        raise NasRetrainError(f"{path} cannot be read as Parquet: {error}. Is it whole?") from error
    missing = {"dataset", "recipe", "config_hash", "cell", "seed", "test_accuracy"} - set(frame.columns)
    if missing:
        raise NasRetrainError(f"{path} is not a table of run records: it has no column {', '.join(sorted(missing))}.")
    found = frame[(frame["dataset"] == dataset) & (frame["recipe"] == recipe)]
    if found.empty:
        there = sorted({f"{row.dataset} {row.recipe}" for row in frame[["dataset", "recipe"]].itertuples()})
        raise NasRetrainError(f"{path} has no {dataset} {recipe}; it has {', '.join(there) or 'nothing'}.")
    if len(found["config_hash"].unique()) > 1:
        raise NasRetrainError(f"{path} holds {recipe} under several settings; they cannot be compared as one.")
    return from_runs(found, recipe)


def read(path: Path, dataset: str, *, recipe: str, column: str | None = None) -> Accuracies:
    """Accuracies of a data set from any source, told by its name: a runs.parquet of ours, or a CSV file.

    recipe: which one to take from runs of ours. column: see `read_csv`.
    """
    if path.suffix == ".parquet":
        return read_runs(path, dataset, recipe)
    if path.name.endswith((".csv", ".csv.gz")):
        return read_csv(path, dataset, column)
    raise NasRetrainError(f"{path}: expected a .csv, .csv.gz or .parquet file.")


def per_cell(accuracies: Accuracies) -> pd.DataFrame:
    """Mean accuracy and number of trainings of each cell, by index: columns accuracy, trainings and unit.

    unit numbers the results that were trained independently: a class's result stands for all of its members, which
    then share a unit.
    """
    grouped = accuracies.runs.groupby("index")["accuracy"]
    means = pd.DataFrame({"accuracy": grouped.mean(), "trainings": grouped.size()})
    means["unit"] = np.arange(len(means))
    if not accuracies.per_class:
        return means
    classes = np.array(nas_bench_201.network_classes())
    members = np.flatnonzero(np.isin(classes, means.index))
    return means.loc[classes[members]].set_axis(pd.Index(members, name="index"))
