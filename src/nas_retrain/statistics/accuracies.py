"""Accuracies of cells, from published benchmarks and from runs of our own, read in one way.

Whatever the source, what comes out is one training a row: the cell, which of its trainings it is, and the accuracy in
percent. A training that a source does not have is absent, never filled in.
"""

from __future__ import annotations

import bz2
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from nas_retrain.benches import registry
from nas_retrain.benches.registry import Bench
from nas_retrain.errors import NasRetrainError
from nas_retrain.files import plain_table, safe_pickle, table_copy
from nas_retrain.files.file_kind import seems
from nas_retrain.seeding import Seeding

COLUMNS = ["index", "seed", "accuracy"]

_PUBLISHED_COLUMNS = ["index", "arch", "dataset", "epochs", "seed", "test_set", "accuracy"]


@dataclass(frozen=True)
class Accuracies:
    """Trainings of cells.

    name: what reports call them. runs: one row a training with the columns index (the cell's number), seed and
    accuracy (percent); unique in (index, seed). bench: whose cells these are. per_class: whether one row stands for a
    whole class rather than for one cell. classes: for every cell of the benchmark the class of which all trainings are
    replicates, named by its lowest cell: its network class if none are given. seeding: whether trainings with one seed
    share its draws.
    """

    name: str
    runs: pd.DataFrame
    bench: Bench = field(default_factory=registry.default)
    per_class: bool = False
    classes: tuple[int, ...] = ()
    seeding: Seeding = "shared"

    def __post_init__(self) -> None:
        if not self.classes:
            object.__setattr__(self, "classes", self.bench.training_classes(None))

    @property
    def results(self) -> NDArray[np.int64]:
        """Which result each row of `runs` is a training of, (runs,): its class's or its cell's."""
        index = self.runs["index"].to_numpy()
        return np.array(self.classes)[index] if self.per_class else index


def checked(runs: pd.DataFrame, source: Path | str, bench: Bench, *, foreign: bool = True) -> pd.DataFrame:
    """`runs` with its columns in order and sorted, if it can be what it says; raises NasRetrainError, naming `source`.

    Refused are cells outside the benchmark, a repeated training, an accuracy that is not a percentage, and, in what is
    not known to be percentages (foreign, such as a CSV file), fractions among them.
    """
    if runs.empty:
        raise NasRetrainError(f"{source} holds no accuracies.")
    runs = runs[COLUMNS].sort_values(["index", "seed"], ignore_index=True)
    cells = bench.size
    outside = runs.loc[(runs["index"] < 0) | (runs["index"] >= cells), "index"]
    if len(outside):
        raise NasRetrainError(f"{source}: cell index {outside.iloc[0]} is out of range 0 to {cells - 1}.")
    repeated = runs.loc[runs.duplicated(["index", "seed"]), "index"]
    if len(repeated):
        raise NasRetrainError(
            f"{source}: cell {repeated.iloc[0]} is listed more than once. Where these are several trainings, number "
            "them in a column seed; where they are of several budgets, such as numbers of epochs, leave the rows of "
            "one; else leave one row."
        )
    wrong = runs.loc[~runs["accuracy"].between(0.0, 100.0)]  # NaN is not between either
    if len(wrong):
        row = wrong.iloc[0]
        raise NasRetrainError(
            f"{source}: cell {row['index']:.0f} has the accuracy {row['accuracy']}; percentages from 0 to 100 are "
            "expected. Leave out cells without a result."
        )
    fractions = runs.loc[_like_fractions(runs["accuracy"].to_numpy())] if foreign else runs[:0]
    if len(fractions):
        row = fractions.iloc[0]
        raise NasRetrainError(
            f"{source}: fractions are mixed with percentages: cell {row['index']:.0f} has the accuracy "
            f"{row['accuracy']:g}. Write all in percent, 93 rather than 0.93."
        )
    return runs


def _like_fractions(accuracy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values look like fractions among percentages: positive ones of at most 1 that, a hundred times as large,
    fall among the values above 1.

    Percentages of at most 1 are those of networks at chance or below, which takes 100 classes or more. Chance itself,
    1 or 0.83, is never taken for a fraction, nor is 0.
    """
    large = accuracy[accuracy > 1]
    if not len(large):
        return np.zeros(len(accuracy), dtype=bool)
    meant = 100 * accuracy
    chance = np.isclose(accuracy[:, None], [100 / 100, 100 / 120], rtol=0, atol=0.005).any(1)
    among = (meant >= 0.5 * large.min()) & (meant <= 1.05 * large.max())
    found: NDArray[np.bool_] = (accuracy > 0) & (accuracy <= 1) & ~chance & among
    return found


def read_csv(path: Path | str, dataset: str, bench: Bench | None = None, column: str | None = None) -> Accuracies:
    """Accuracies from a CSV file (.csv, .csv.gz or .tsv) with the columns index, arch (of which one is enough) and an
    accuracy.

    bench: whose cells it has; by default NAS-Bench-201.
    column: the accuracy's column; by default `<dataset>_test`, `<dataset>`, `accuracy` or `test_accuracy`, whichever
    is there. A column seed distinguishes the trainings of a cell; without one, each row counts as one training,
    even if it was averaged over seeds where the file was made. What `make export` wrote is read as the
    records that it was made of. Raises NasRetrainError for a file that is missing, damaged, or not of that form.
    """
    path = Path(path)
    return _from_table(plain_table.read_csv(path), path, dataset, bench or registry.default(), column)


def _from_table(table: pd.DataFrame, path: Path, dataset: str, bench: Bench, column: str | None) -> Accuracies:
    """Accuracies from a table of cells, or from one that `make export` wrote, where a training stands for a class."""
    if plain_table.is_export(table):
        trained = plain_table.own_trainings(table, path, dataset, column)
        check_names(zip(trained["cell"], trained["arch"], strict=True), path, bench)
        return from_runs(trained, str(trained["recipe"].iloc[0]), bench)
    found = plain_table.trainings(_with_both_names(table, path, bench), path, dataset, column)
    runs = checked(found, path, bench)
    if runs["accuracy"].max() <= 1.0:
        raise NasRetrainError(f"{path}: no accuracy is above 1; expected are percentages, 93 rather than 0.93.")
    check_names(zip(found["index"], found["arch"], strict=True), path, bench)
    return Accuracies(re.sub(r"(\.csv(\.gz)?|\.tsv|\.parquet)$", "", path.name), runs, bench)


def _with_both_names(table: pd.DataFrame, path: Path, bench: Bench) -> pd.DataFrame:
    """A table of cells with the columns index and arch, of which it may lack one. A column of nearly that name is left
    to be told."""
    names, like = bench.archs, {str(name).strip().lower() for name in table.columns}
    if "index" not in like and "arch" in table:
        number = {name: index for index, name in enumerate(names)}
        unknown = [name for name in table["arch"] if name not in number]
        if unknown:
            raise NasRetrainError(f"{path}: {str(unknown[0])[:100]!r} is no cell of {bench.title}.")
        return table.assign(index=[number[name] for name in table["arch"]])
    if "arch" not in like and "index" in table:
        numbers = plain_table.whole(table["index"], path)
        if ((numbers < 0) | (numbers >= len(names))).any():
            outside = numbers[(numbers < 0) | (numbers >= len(names))][0]
            raise NasRetrainError(f"{path}: cell index {outside} is out of range 0 to {len(names) - 1}.")
        return table.assign(arch=[names[number] for number in numbers])
    return table


def check_names(cells: Iterable[tuple[int, object]], source: Path, bench: Bench) -> None:
    """Raise NasRetrainError, naming `source`, if a cell's string is not that of its index."""
    names = bench.archs
    for index, arch in cells:
        if not 0 <= index < len(names):
            raise NasRetrainError(f"{source}: cell index {index} is out of range 0 to {len(names) - 1}.")
        if names[index] != arch:
            raise NasRetrainError(
                f"{source}: cell {index} is {names[index]} in {bench.title}, not {str(arch)[:100]!r}."
            )


def from_runs(frame: pd.DataFrame, name: str, bench: Bench | None = None) -> Accuracies:
    """One recipe's accuracies out of run records (the columns of `store.RunRecord`), one row a class of networks that
    are initialised alike. Raises NasRetrainError if the recipe's records differ in the initialisation.

    bench: whose cells they are of; by default NAS-Bench-201.
    """
    bench = bench or registry.default()
    conventions = {None if pd.isna(value) else value for value in frame["in_degree"]}
    if len(conventions) > 1:
        raise NasRetrainError(
            f"{name}: the records differ in in_degree ({', '.join(sorted(map(str, conventions)))}); they cannot be "
            "compared as one recipe."
        )
    runs = frame.rename(columns={"cell": "index", "test_accuracy": "accuracy"})[COLUMNS].astype({"accuracy": float})
    return Accuracies(
        name,
        checked(runs, name, bench, foreign=False),
        bench,
        per_class=True,
        classes=bench.training_classes(conventions.pop() if conventions else None),
        seeding=seeding_of(frame),
    )


def seeding_of(frame: pd.DataFrame) -> Seeding:
    """How the trainings of run records were seeded; old records do not say it, and have shared seeds."""
    return "nested" if "seeding" in frame and (frame["seeding"] == "nested").all() else "shared"


def read_recipe(path: Path | str, dataset: str, recipe: str, bench: Bench | None = None) -> Accuracies:
    """One recipe's accuracies from a runs.parquet of ours; raises NasRetrainError if it has none or several budgets.

    bench: whose cells it has; by default NAS-Bench-201.
    """
    path, bench = Path(path), bench or registry.default()
    if not path.exists():
        raise NasRetrainError(f"There is no file {path}.")
    frame = plain_table.read_parquet(path)
    missing = {"dataset", "recipe", "config_hash", "cell", "seed", "test_accuracy", "in_degree"} - set(frame.columns)
    if missing:
        raise NasRetrainError(f"{path} is not a table of run records: it has no column {', '.join(sorted(missing))}.")
    found = frame[(frame["dataset"] == dataset) & (frame["recipe"] == recipe)]
    if found.empty:
        there = sorted({f"{row.dataset} {row.recipe}" for row in frame[["dataset", "recipe"]].itertuples()})
        raise NasRetrainError(
            f"{path} has no {dataset} {recipe}; it has {', '.join(there) or 'nothing'}. "
            "Choose with DATASET=... and ARGS='analysis.recipe=...'"
        )
    constant = found["cell"].map(lambda cell: bool(bench.graph_at(cell).constants)).astype(bool)
    # Such cells' trainings have a hash of their own. Version 0.1.0 gave them that of all others, and left a part out.
    incomplete = constant & found["config_hash"].isin(found.loc[~constant, "config_hash"])
    if incomplete.any():
        warnings.warn(
            f"{path}: {incomplete.sum():,} trainings of {recipe} are left out. Version 0.1.0 made them of cells in "
            "which a convolution reads what the input does not reach, without that convolution. make retrain with the "
            "settings of that run trains the whole networks.",
            stacklevel=2,
        )
    found, constant = found[~incomplete], constant[~incomplete]
    # Under a rule the hash has what was decided for the network, and is another where that is.
    decided = [found[name] for name in ("rule_factor", "rule_layers") if name in found]
    hashes = found["config_hash"]
    kinds, cells = hashes.groupby([constant, *decided], dropna=False), hashes.groupby(found["cell"])
    if any(len(part.unique()) > 1 for groups in (kinds, cells) for _, part in groups):
        raise NasRetrainError(f"{path} holds {recipe} under several settings; they cannot be compared as one.")
    return from_runs(found, recipe, bench)


def read_published(
    path: Path | str, dataset: str, bench: Bench | None = None, *, epochs: int = 200, test_set: str = "ori-test"
) -> Accuracies:
    """Accuracies of every seed as the benchmark's authors published them.

    bench: whose; by default NAS-Bench-201. path: its one file (see `Bench.read_published_file`), or a folder of
    nats_bench with one <index>.pickle.pbz2 a cell ("-simple"). epochs: which of the trainings, such as 12 or 200.
    test_set: "ori-test" (all test images), or "x-valid" or "x-test" (a half each) where there are these. Reading takes
    minutes, so what was read is kept beside `path` as <name>.accuracies.parquet and used until `path` changes. Raises
    NasRetrainError for a damaged or foreign file, a folder without cells, and a choice that no cell has.
    """
    path, bench = Path(path), bench or registry.default()
    table = _published_table(path, bench)
    here = table[table["dataset"] == published_name(bench, dataset)]
    chosen = here[(here["epochs"] == epochs) & (here["test_set"] == test_set)]
    if chosen.empty:
        there = sorted({f"{row.test_set} after {row.epochs} epochs" for row in here.itertuples()})
        raise NasRetrainError(
            f"{path} has no {test_set} after {epochs} epochs for {dataset}; it has {', '.join(there) or 'nothing'}. "
            "Choose with analysis.test_set=... and analysis.epochs=..."
        )
    runs = checked(chosen, path, bench, foreign=False)
    return Accuracies(f"{path.name.removesuffix('.pth')}-{epochs}-epochs", runs, bench)


def published_name(bench: Bench, dataset: str) -> str:
    """What a benchmark's published files call a data set; one that they do not have keeps its own name."""
    return bench.published.datasets.get(dataset, dataset) if bench.published else dataset


def _published_table(path: Path, bench: Bench) -> pd.DataFrame:
    """Every last-epoch test accuracy, from the copy beside `path` if that is of `path` as it is now."""
    if not path.exists():
        raise NasRetrainError(f"There is no file {path}.")
    if not path.is_dir() and not path.is_file():
        raise NasRetrainError(f"{path} is neither a file nor a folder.")
    files = _nats_files(path, bench) if path.is_dir() else [path]
    known_by = table_copy.identity(files)
    table = table_copy.read(path, known_by, _PUBLISHED_COLUMNS)
    if table is None:
        rows = _nats_rows(files, path) if path.is_dir() else _official_rows(path, bench)
        table = pd.DataFrame(rows, columns=_PUBLISHED_COLUMNS)
        check_names(zip(table["index"], table["arch"], strict=True), path, bench)
        table_copy.write(table, path, known_by)
    return table


def _nats_files(folder: Path, bench: Bench) -> list[Path]:
    """The cells' files of a NATS-Bench folder, sorted by name; warns if some are missing."""
    try:
        paths = sorted(path for path in folder.iterdir() if re.fullmatch(r"[0-9]{1,6}\.pickle\.pbz2", path.name))
    except OSError as error:
        raise NasRetrainError(f"{folder} cannot be read: {error.strerror}.") from error
    if not paths:
        tables = sorted(
            str(path) for path in folder.iterdir() if path.name.endswith((".parquet", ".pth", ".csv", ".csv.gz"))
        )
        raise NasRetrainError(
            f"{folder} has no files like 000000.pickle.pbz2, one a cell, as NATS-Bench lays them out."
            + (f" Name a file of it, such as {tables[0]}." if tables else "")
        )
    there = {_cell_of(path) for path in paths}
    missing = sorted(_cells_to_be(folder, bench) - there)
    if missing:
        whole = len(there) + len(missing)
        warnings.warn(
            f"{folder} holds {len(there):,} of {whole:,} cells; the first that is missing is {missing[0]:06d}. The "
            "missing cells are left out. If the folder was unpacked or copied in parts, complete it.",
            stacklevel=2,
        )
    return paths


def _cell_of(path: Path) -> int:
    return int(path.name.split(".")[0])


def _cells_to_be(folder: Path, bench: Bench) -> set[int]:
    """The cells that a NATS-Bench folder should hold: those that its meta file names, or all."""
    path = folder / "meta.pickle.pbz2"
    try:
        evaluated = _unpacked(path)["evaluated_indexes"] if path.is_file() else None
    except (NasRetrainError, TypeError, LookupError):
        evaluated = None
    if isinstance(evaluated, set | frozenset | list | tuple) and set(map(type, evaluated)) == {int}:
        return set(evaluated)
    return set(range(bench.size))


def _nats_rows(paths: list[Path], folder: Path) -> Iterator[tuple[object, ...]]:
    for path in tqdm(paths, desc=folder.name, unit="cell", disable=not sys.stderr.isatty()):
        yield from _nats_cell(path)


def _nats_cell(path: Path) -> Iterator[tuple[object, ...]]:
    advice = (
        "It seems to hold networks' weights, as in NATS-Bench's folder that ends in -full. Give the folder that ends "
        "in -simple, which holds the accuracies alone."
    )
    with safe_pickle.tensors_refused(path, advice):
        content = _unpacked(path)
    with safe_pickle.damage_reported(path):
        for trained in content.values():
            yield from _results(_cell_of(path), trained, path)


def _unpacked(path: Path) -> Any:  # noqa: ANN401 - a file holds anything
    """What a file compressed with bzip2 has pickled; one that unpacks to far more than cells do is not read on."""
    with safe_pickle.damage_reported(path):
        if not path.is_file():
            raise OSError("it is not a regular file")
        with bz2.open(path) as file:
            return safe_pickle.load(safe_pickle.Bounded(file, (2 << 20) + 50 * path.stat().st_size), path)


def _official_rows(path: Path, bench: Bench) -> Iterator[tuple[object, ...]]:
    cells = bench.read_published_file(path)
    with safe_pickle.damage_reported(path):
        for index, budgets in cells.items():
            for trained in budgets.values():
                yield from _results(index, trained, path)


def _results(index: int, trained: Any, path: Path) -> Iterator[tuple[object, ...]]:  # noqa: ANN401
    """A row for each data set, seed and test set in the state of the packages' ArchResults."""
    arch_index, arch = _typed(trained["arch_index"], int), _typed(trained["arch_str"], str)
    if arch_index != index:
        raise NasRetrainError(f"{path} holds cell {arch_index} in the place of cell {index}.")
    for (dataset, seed), result in trained["all_results"].items():
        epochs, seed_number = _typed(result["epochs"], int), _typed(seed, int)
        for test_set in _typed(result["eval_names"], list):
            accuracy = result["eval_acc1es"][f"{_typed(test_set, str)}@{epochs - 1}"]
            number = float(accuracy) if type(accuracy) is int else _typed(accuracy, float)
            yield index, arch, _typed(dataset, str), epochs, seed_number, test_set, number


T = TypeVar("T")


def _typed(value: object, kind: type[T]) -> T:
    """A value out of a file, if it is of this kind and, being a number, fits in 64 bits."""
    if type(value) is not kind or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 63):
        raise TypeError(f"a {type(value).__name__} stands where a {kind.__name__} belongs")
    return value


def read(
    path: Path | str,
    dataset: str,
    bench: Bench | None = None,
    *,
    recipe: str,
    column: str | None = None,
    epochs: int = 200,
    test_set: str = "ori-test",
) -> Accuracies:
    """Accuracies of a benchmark's cells on a data set from any source: a NATS folder, or by its name a .pth, a
    runs.parquet of ours or a CSV.

    bench: whose cells; by default NAS-Bench-201. recipe: which one to take from runs of ours. column: see `read_csv`.
    epochs, test_set: see `read_published`.
    """
    path, bench = Path(path), bench or registry.default()
    if path.is_dir() or path.suffix == ".pth":
        return read_published(path, dataset, bench, epochs=epochs, test_set=test_set)
    if path.suffix == ".parquet":
        if plain_table.is_plain(path):
            return _from_table(plain_table.read_parquet(path), path, dataset, bench, column)
        with safe_pickle.damage_reported(path):
            return read_recipe(path, dataset, recipe, bench)
    if path.name.endswith((".csv", ".csv.gz", ".tsv")):
        return read_csv(path, dataset, bench, column)
    if not path.exists():
        raise NasRetrainError(f"There is no file {path}.")
    what = " Unpack it first." if path.name.endswith((".tar", ".tgz", ".tar.gz", ".zip")) else ""
    kind = seems(path) or "its name ends in none of these"
    raise NasRetrainError(
        f"{path}: expected a NATS-Bench folder or a .pth, .csv, .csv.gz, .tsv or .parquet file; {kind}.{what}"
    )


def per_cell(accuracies: Accuracies) -> pd.DataFrame:
    """Mean accuracy and number of trainings of each cell, by index: columns accuracy, trainings and unit.

    unit numbers the results that were trained independently: a class's result stands for all of its members, by the
    accuracies' own classes, which then share a unit.
    """
    grouped = accuracies.runs.groupby(accuracies.results)["accuracy"]
    means = pd.DataFrame({"accuracy": grouped.mean(), "trainings": grouped.size()})
    means["unit"] = np.arange(len(means))
    means.index.name = "index"
    if not accuracies.per_class:
        return means
    classes = np.array(accuracies.classes)
    members = np.flatnonzero(np.isin(classes, means.index))
    return means.loc[classes[members]].set_axis(pd.Index(members, name="index"))
