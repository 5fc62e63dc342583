"""Tables of trainings at several learning rates, published ones and our own, read in one way.

Whatever the source, what comes out are grids of accuracies by network class, rate and seed, one for each budget. Cells
without a path from input to output are left out: they have no rate.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from nas_retrain.benches import registry
from nas_retrain.benches.registry import Bench
from nas_retrain.errors import NasRetrainError
from nas_retrain.files import plain_table
from nas_retrain.purpose import is_search
from nas_retrain.statistics import accuracies
from nas_retrain.statistics.accuracy_grid import AccuracyGrid
from nas_retrain.statistics.rankings import FEWEST, Floats, Integers
from nas_retrain.statistics.scattered_rates import fitted_grid

MOST_RATES = 100
"""The most rates of a grid; where there are more, they are taken as scattered."""

_COLUMNS = (
    "index or arch, learning_rate, accuracy, and optionally seed, batch_size, weight_decay, epochs, valid_accuracy"
)
_OPTIONAL = ("epochs", "batch_size", "weight_decay")


@dataclass(frozen=True)
class Budget:
    """What the trainings of one grid have in common; None where the table does not say."""

    epochs: int | None = None
    batch_size: int | None = None
    weight_decay: float | None = None

    def __str__(self) -> str:
        parts = [
            f"{self.epochs} epochs" if self.epochs is not None else "",
            f"batches of {self.batch_size}" if self.batch_size is not None else "",
            f"weight decay {self.weight_decay:g}" if self.weight_decay is not None else "",
        ]
        return ", ".join(part for part in parts if part) or "one budget"


@dataclass(frozen=True)
class RateTable:
    """Grids of accuracies by budget.

    name: what reports call it. bench: whose cells it has. classes: for every cell of the benchmark the class of which
    all trainings are replicates, as `Accuracies.classes`. predicted: the budgets whose accuracies are a model's
    predictions and no trainings. notes: sentences that every report of the table says.
    """

    name: str
    grids: Mapping[Budget, AccuracyGrid]
    bench: Bench
    classes: tuple[int, ...]
    predicted: frozenset[Budget] = frozenset()
    notes: tuple[str, ...] = ()

    def chosen(self, batch_size: int | None, epochs: int | None) -> Budget:
        """The budget of this batch size and so many epochs. Where none is asked for: the longest real trainings, and
        the batch size that is nearest to the benchmark's 256. Raises NasRetrainError if there is none."""
        there = [
            budget
            for budget in self.grids
            if (batch_size is None or budget.batch_size == batch_size)
            and (budget.epochs == epochs or (epochs is None and budget not in self.predicted))
        ]
        if not there:
            asked = " and ".join(
                f"{name} {value}"
                for name, value in (("batch size", batch_size), ("epochs", epochs))
                if value is not None
            )
            raise NasRetrainError(
                f"{self.name} has no trainings with {asked or 'any budget'}; it has {'; '.join(map(str, self.grids))}. "
                "Choose with BATCH=... and ARGS='rate_table.epochs=...'"
            )
        return min(
            there,
            key=lambda budget: (-(budget.epochs or 0), abs(np.log2((budget.batch_size or 256) / 256)), str(budget)),
        )


def read(
    path: Path | str, dataset: str, bench: Bench | None = None, column: str | None = None, recipe: str = ""
) -> RateTable:
    """The table at a path: NAS-HPO-Bench-II's folder, or a .csv, .csv.gz, .tsv or .parquet file with JAHS-Bench-201's
    table, any table of trainings or run records of ours with a search of every network's rate.

    bench: whose cells; by default NAS-Bench-201. dataset, recipe: which of our own records. column: the accuracy's, see
    `plain_table.trainings`. Raises NasRetrainError for what is missing, damaged, foreign or too little.
    """
    path, bench = Path(path), bench or registry.default()
    if bench.rate_sources is None:
        raise NasRetrainError(f"There are no tables of {bench.title}'s trainings at several learning rates.")
    nas_hpo_bench, jahs_bench = bench.rate_sources
    if path.name in (nas_hpo_bench.TRAININGS, nas_hpo_bench.CELLS, nas_hpo_bench.PREDICTIONS):
        path = path.parent
    if path.is_dir():
        if not nas_hpo_bench.is_here(path):
            raise NasRetrainError(
                f"{path} is a folder without {nas_hpo_bench.TRAININGS}: name NAS-HPO-Bench-II's folder, or a "
                ".csv, .csv.gz, .tsv or .parquet file."
            )
        return _nas_hpo_bench(path, bench, nas_hpo_bench)
    if not path.exists():
        raise NasRetrainError(f"There is no file {path}.")
    if path.name.endswith((".pkl", ".pkl.gz", ".pickle")):
        raise NasRetrainError(
            f"{path}: pickled pandas tables are not read, since that can run code from them. If you trust the "
            f"file, make a Parquet file of it: {jahs_bench.CONVERSION}"
        )
    if path.suffix == ".parquet":
        frame = plain_table.read_parquet(path)
    elif path.name.endswith((".csv", ".csv.gz", ".tsv")):
        frame = plain_table.read_csv(path)
    else:
        raise NasRetrainError(f"{path}: expected NAS-HPO-Bench-II's folder, or a .csv, .csv.gz, .tsv or .parquet file.")
    if jahs_bench.is_one(frame):
        return _jahs_bench(frame, path, bench, jahs_bench)
    if "config_hash" in frame:
        return _own_records(frame, path, dataset, bench, recipe)
    return _any_table(frame, path, dataset, bench, column)


def _name(path: Path) -> str:
    for ending in (".csv.gz", ".csv", ".tsv", ".parquet"):
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.resolve().name


def _nas_hpo_bench(folder: Path, space: Bench, nas_hpo_bench: ModuleType) -> RateTable:
    bench = nas_hpo_bench.read(folder)
    connected = np.array([space.graph_at(int(cell)).connected for cell in bench.cells])
    trained = bench.valid[-1].reshape(len(bench.cells), -1)
    # Sound are those with all trainings, at every rate, batch size, seed and epoch.
    whole = np.isfinite(trained).all(1) & np.isfinite(bench.predicted.reshape(len(bench.cells), -1)).all(1)
    for accuracy in (bench.valid, bench.test):
        whole &= np.isfinite(np.moveaxis(accuracy, 1, 0).reshape(len(bench.cells), -1)).all(1)
    kept = connected & whole
    if kept.sum() < FEWEST:
        raise NasRetrainError(
            f"{folder}: {kept.sum()} networks have trainings at every learning rate, batch size, seed and epoch; "
            f"at least {FEWEST} are needed. Are the files whole?"
        )
    if (connected & ~whole).any():
        warnings.warn(
            f"{folder}: {(connected & ~whole).sum():,} of {connected.sum():,} networks are left out, which lack "
            "trainings at "
            "some learning rate, batch size, seed or epoch.",
            stacklevel=2,
        )
    cells = bench.cells[kept]
    grids, predicted = {}, set()
    for place, size in enumerate(bench.batch_sizes.tolist()):
        for epoch in range(nas_hpo_bench.EPOCHS):
            valid, test = (accuracy[epoch, kept, :, place] for accuracy in (bench.valid, bench.test))
            grids[Budget(epoch + 1, size, 5e-4)] = AccuracyGrid(cells, bench.rates, valid, test, shared=True)
        guess = bench.predicted[kept, :, place, None]
        budget = Budget(nas_hpo_bench.PREDICTED_EPOCHS, size, 5e-4)
        grids[budget] = AccuracyGrid(cells, bench.rates, guess, guess, shared=False)
        predicted.add(budget)
    return RateTable(
        _name(folder),
        grids,
        space,
        bench.classes,
        frozenset(predicted),
        (
            f"NAS-HPO-Bench-II: {len(cells):,} connected networks of its cells, isomorphic ones counted once, and "
            f"{len(bench.seeds)} seeds, which all networks share.",
            "Accuracies after 200 epochs are predictions of its authors' surrogate model, and no trainings.",
            "The learning rate falls along a cosine that ends at epoch 12, so accuracies before are of schedules "
            "that were "
            "not over.",
        ),
    )


def _jahs_bench(frame: pd.DataFrame, path: Path, bench: Bench, jahs_bench: ModuleType) -> RateTable:
    found = jahs_bench.trainings(frame, path)
    long = _checked(found, path, bench, ("valid", "test"))
    grids: dict[Budget, AccuracyGrid] = {}
    for epochs, part in long.groupby("epochs"):
        grid = _fitted(part, ("weight_decay", *jahs_bench.COVARIATES), path)
        if len(grid) >= FEWEST:
            grids[Budget(int(str(epochs)), jahs_bench.BATCH_SIZE)] = grid
    return RateTable(
        _name(path),
        _enough(grids, path),
        bench,
        bench.training_classes(None),
        notes=(f"JAHS-Bench-201, {len(long):,} trainings, no two of them alike in all but the learning rate.", _FITTED),
    )


def _fitted(trainings: pd.DataFrame, covariates: Sequence[str], path: Path) -> AccuracyGrid:
    try:
        return fitted_grid(trainings, covariates)
    except NasRetrainError as error:
        raise NasRetrainError(f"{path}: {error}") from error


_FITTED = (
    "Learning rates are scattered, so own rates come from a fit: a parabola over log2 of the rate that all "
    "networks share and a height and slope of each network, drawn towards the common ones where trainings are "
    "few. What stands for seeds are parts of each network's trainings. Gains are rather too small than too large."
)


def _own_records(frame: pd.DataFrame, path: Path, dataset: str, bench: Bench, recipe: str) -> RateTable:
    needed = {"bench", "dataset", "recipe", "cell", "learning_rate", "seed", "test_accuracy", "epochs"}
    if missing := needed - set(frame.columns):
        raise NasRetrainError(f"{path} is not a table of run records: it has no column {', '.join(sorted(missing))}.")
    here = frame[(frame["bench"] == bench.name) & (frame["dataset"] == dataset)]
    names = [str(name) for name, part in here.groupby("recipe") if _is_grid(part)]
    name = names[0] if len(names) == 1 else recipe
    if name not in names:
        there = sorted({f"{row.dataset} {row.recipe}" for row in frame[["dataset", "recipe"]].itertuples()})
        found = f"several, {', '.join(names)}: choose with ARGS='analysis.recipe=...'" if names else "none"
        raise NasRetrainError(
            f"{path}: of recipes whose networks were all trained at the same rates on {dataset} one is needed, "
            f"and there are {found}. It holds {', '.join(there)[:500] or 'nothing'}."
        )
    part = here[here["recipe"] == name]
    renamed = part.rename(columns={"cell": "index", "test_accuracy": "valid"})
    long = _checked(renamed.assign(test=renamed["valid"]), path, bench, ("valid", "test"))
    twice = long[long.duplicated(["index", "learning_rate", "seed", "epochs"])]
    if len(twice):
        row = twice.iloc[0]
        raise NasRetrainError(
            f"{path} holds {name} under several settings: cell {row['index']} was trained more than once at the "
            f"learning rate {row['learning_rate']:g} with seed {row['seed']} for {row['epochs']} epochs. Own rates are "
            "those of one budget: leave the records of one."
        )
    images = "validation images" if is_search(name) else "test images"
    return RateTable(
        f"{_name(path)} {name}",
        _grids(long, path, shared=accuracies.seeding_of(part) == "shared"),
        bench,
        bench.training_classes(None),
        notes=(
            f"Our own trainings, {name} on {dataset}. Rates are chosen and judged alike by accuracies on {images}.",
        ),
    )


def _is_grid(part: pd.DataFrame) -> bool:
    """Whether enough networks were trained at all of the rates that any of a recipe's networks was."""
    rates = part.groupby("cell")["learning_rate"].nunique()
    everything = part["learning_rate"].nunique()
    return bool(everything > 1 and (rates == everything).sum() >= FEWEST)


def _any_table(frame: pd.DataFrame, path: Path, dataset: str, bench: Bench, column: str | None) -> RateTable:
    if "learning_rate" not in frame:
        columns = ", ".join(map(str, frame.columns))[:300]
        raise NasRetrainError(f"{path} has no column 'learning_rate'; it has {columns}. Expected are {_COLUMNS}.")
    if "index" not in frame and "arch" in frame:
        frame = frame.assign(index=[_index(arch, path, bench) for arch in frame["arch"]])
    elif "arch" not in frame and "index" in frame:
        frame = frame.assign(arch="")
    found = plain_table.trainings(frame, path, dataset, column)
    if "arch" in frame and (frame["arch"].astype(str) != "").any():
        accuracies.check_names(zip(found["index"], found["arch"], strict=True), path, bench)
    long = found.rename(columns={"accuracy": "test"}).assign(valid=found["accuracy"])
    if "valid_accuracy" in frame:
        long["valid"] = frame["valid_accuracy"].to_numpy()
    for name in ("learning_rate", *_OPTIONAL):
        if name in frame:
            long[name] = frame[name].to_numpy()
    used = {"index", "arch", "learning_rate", "seed", *_OPTIONAL, "accuracy", "test_accuracy", "valid_accuracy"}
    unused = frame.drop(columns=[*(used | {column, dataset, f"{dataset}_test"})], errors="ignore")
    long = _numbered(
        _checked(long, path, bench, ("valid", "test")), path, unused.reset_index(drop=True), seeds="seed" in frame
    )
    notes = [f"{len(long):,} trainings of {long['index'].nunique():,} cells."]
    if "valid_accuracy" not in frame:
        notes.append("The table has one accuracy only, by which rates are chosen and judged alike.")
    if "seed" not in frame:
        notes.append("The table tells no seeds, so that a row is one training.")
        if len(unused.columns):
            names = ", ".join(map(str, unused.columns))[:300]
            notes.append(f"Rows that differ in nothing but {names} count as repeated trainings of one budget.")
    scattered = long["learning_rate"].nunique() > MOST_RATES
    if scattered:
        others = [name for name in ("batch_size", "weight_decay") if name in long and len(long[name].unique()) > 1]
        grids = {
            Budget(epochs=_whole(key)): _fitted(part, others, path)
            for key, part in (long.groupby("epochs") if "epochs" in long else [(None, long)])
        }
        notes.append(_FITTED)
    else:
        grids = _grids(long, path, shared="seed" in frame)
    return RateTable(_name(path), _enough(grids, path), bench, bench.training_classes(None), notes=tuple(notes))


def _numbered(long: pd.DataFrame, path: Path, unused: pd.DataFrame, *, seeds: bool) -> pd.DataFrame:
    """Trainings that differ in the seed. Without seeds, equally many trainings of each cell at each rate are numbered,
    and others share a number, so that their mean counts. Raises NasRetrainError for a training that is there twice.

    unused: the table's other columns, by the labels of `long`, which may tell how the rows of one training differ.
    """
    alike = ["index", "learning_rate", *(name for name in _OPTIONAL if name in long)]
    if seeds:
        twice = long[long.duplicated([*alike, "seed"])]
        if len(twice):
            row = twice.iloc[0]
            rows = unused.loc[long.index[(long[[*alike, "seed"]] == row[[*alike, "seed"]]).all(axis=1)]].astype(str)
            differing = ", ".join(map(str, rows.columns[(rows != rows.iloc[0]).any().to_numpy()]))[:300]
            remedy = (
                f"Its rows there differ in {differing}. Where these are budgets, leave the rows of one, or tell them "
                f"apart in the columns {', '.join(_OPTIONAL)}; where they are several trainings of one budget, number "
                "them in the column seed."
                if differing
                else "Number a cell's trainings in the column seed, or leave one row."
            )
            raise NasRetrainError(
                f"{path}: cell {row['index']:.0f} is listed more than once at the learning rate "
                f"{row['learning_rate']:g} with seed {row['seed']:.0f}. {remedy}"
            )
        return long
    groups = long.groupby(alike)
    return long.assign(seed=groups.cumcount()) if groups.size().nunique() == 1 else long  # noqa: PD101 - a few numbers


def _index(arch: object, path: Path, bench: Bench) -> int:
    try:
        return bench.index_of(str(arch))
    except NasRetrainError as error:
        raise NasRetrainError(f"{path}: {str(error)[:300]}") from None


def _whole(value: Any) -> int | None:  # noqa: ANN401 - a key of a table
    return None if value is None else int(value)


def _checked(long: pd.DataFrame, path: Path, bench: Bench, accuracy: tuple[str, ...]) -> pd.DataFrame:
    """Trainings with the class's cell, as far as the cell is connected; raises NasRetrainError for what cannot be."""
    if long.empty:
        raise NasRetrainError(f"{path} holds no trainings.")
    cells = bench.size
    index = long["index"].to_numpy()
    if not np.issubdtype(index.dtype, np.number) or not ((index >= 0) & (index < cells)).all():
        raise NasRetrainError(f"{path}: a cell's index is out of range 0 to {cells - 1}.")
    positive = [name for name in ("learning_rate", "epochs", "batch_size") if name in long]
    for name in [*positive, *(["weight_decay"] if "weight_decay" in long else []), *accuracy]:
        plain_table.check_numbers(long[name], path)
        values = long[name].to_numpy(dtype=float, na_value=np.nan)
        good = (values >= 0) & (values <= 100 if name in accuracy else np.isfinite(values))
        if name in positive:
            good &= values > 0
        if name in ("epochs", "batch_size"):
            good &= values == np.floor(values)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            wanted = "a percentage" if name in accuracy else "a positive number" if name in positive else "0 or more"
            wanted = wanted if name not in ("epochs", "batch_size") else "a positive whole number"
            raise NasRetrainError(
                f"{path}: {name} of cell {int(index[row])} is {values[row]:g}; {wanted} is expected. Leave out "
                "trainings without a result."
            )
        if name in accuracy and values.max() <= 1:
            raise NasRetrainError(
                f"{path}: no {name} accuracy is above 1; expected are percentages, 93 rather than 0.93."
            )
    classes = np.array(bench.training_classes(None))[index.astype(np.int64)]
    there = np.array([bench.graph_at(cell).connected for cell in np.unique(classes)])
    connected = there[np.searchsorted(np.unique(classes), classes)]
    return long.assign(cell=classes)[connected]


def _grids(long: pd.DataFrame, path: Path, *, shared: bool) -> dict[Budget, AccuracyGrid]:
    """A grid for each budget that has enough whole networks. Members of a network class with one rate and seed are
    replicates, whose mean counts."""
    given = [name for name in _OPTIONAL if name in long]
    grids = {}
    for keys, part in long.groupby(given) if given else [((), long)]:
        found = dict(zip(given, keys, strict=True))
        budget = Budget(
            epochs=_whole(found.get("epochs")),
            batch_size=_whole(found.get("batch_size")),
            weight_decay=None if "weight_decay" not in found else float(str(found["weight_decay"])),
        )
        grid = _grid(part, path, budget, shared=shared)
        if grid is not None:
            grids[budget] = grid
    return _enough(grids, path)


def _grid(part: pd.DataFrame, path: Path, budget: Budget, *, shared: bool) -> AccuracyGrid | None:
    """The networks that have every rate with every seed; None if they are too few. Where networks have seeds of their
    own, a seed's number says only which of a network's trainings it is."""
    numbered = part.assign(seed=part.groupby(["cell", "learning_rate"]).cumcount())
    for trainings, common in ((part, shared), (numbered, False)):
        tables = [
            trainings.pivot_table(index="cell", columns=["learning_rate", "seed"], values=which).sort_index(axis=1)
            for which in ("valid", "test")
        ]
        whole = tables[0].notna().all(axis=1)
        rates: Floats = np.unique(tables[0].columns.get_level_values(0)).astype(float)
        if whole.sum() < FEWEST or len(rates) < 2:
            continue
        if not whole.all():
            warnings.warn(
                f"{path}, {budget}: {(~whole).sum():,} of {len(whole):,} networks are left out, which lack a rate or a "
                "seed.",
                stacklevel=2,
            )
        cells: Integers = tables[0].index[whole].to_numpy()
        valid, test = (table[whole].to_numpy().reshape(len(cells), len(rates), -1) for table in tables)
        return AccuracyGrid(cells, rates, valid, test, shared=common)
    return None


def _enough(grids: dict[Budget, AccuracyGrid], path: Path) -> dict[Budget, AccuracyGrid]:
    grids = {budget: grid for budget, grid in grids.items() if len(grid) >= FEWEST}
    if not grids:
        raise NasRetrainError(
            f"{path}: at no budget have {FEWEST} networks been trained at the same two or more learning rates "
            f"with the same seeds. Expected are the columns {_COLUMNS}."
        )
    return grids
