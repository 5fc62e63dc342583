"""The learning rates that a recipe takes from a table of the user's own: a row a cell, named by its index or its arch,
and its learning_rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import pandas as pd

from nas_retrain.benches.registry import Bench
from nas_retrain.errors import NasRetrainError
from nas_retrain.files import sha256
from nas_retrain.files.plain_table import read_csv, whole
from nas_retrain.rate_policy import Listed

SHOWN = 3
"""How many of the cells at fault an error names."""


@lru_cache
def read(listed: Listed, bench: Bench) -> dict[int, float]:
    """The rate of each cell that the table lists, by its index.

    Raises NasRetrainError for a table that cannot be read, that is another than when the settings were made, that lacks
    a column, lists a cell twice or one that the benchmark does not have, or has a rate that is not above 0.
    """
    path = listed.path
    try:
        checksum = sha256.of(path)
    except OSError as error:
        raise NasRetrainError(f"{path}: the table of learning rates cannot be read ({error.strerror}).") from error
    if checksum != listed.checksum:
        raise NasRetrainError(
            f"{path}: the table of learning rates has changed since this run began. Put the old one back, or run the "
            "command again with a results folder of its own: ARGS='results_dir=...'"
        )
    table = read_csv(path)
    if "learning_rate" not in table or not {"index", "arch"} & {*table}:
        raise NasRetrainError(
            f"{path}: a table of learning rates has the columns index or arch, and learning_rate; this one has "
            f"{', '.join(map(str, table))[:200]}."
        )
    if table.empty:
        raise NasRetrainError(f"{path}: the table of learning rates lists no cell.")
    rates = pd.to_numeric(table["learning_rate"], errors="coerce").to_numpy(dtype=float)
    if (wrong := ~(np.isfinite(rates) & (rates > 0))).any():
        row = int(wrong.argmax())
        raise NasRetrainError(
            f"{path}: {_times(wrong.sum(), 'learning rate')} cannot be used, the first of them in row {row + 1} of the "
            f"table, {table['learning_rate'].iloc[row]}. Numbers above 0 were expected."
        )
    cells = _cells(table, listed, bench)
    if repeated := [cell for cell, again in zip(cells, pd.Series(cells).duplicated(), strict=True) if again]:
        raise NasRetrainError(f"{path}: {_named(repeated)} listed more than once. Leave one row of each.")
    return dict(zip(cells, rates.tolist(), strict=True))


def _cells(table: pd.DataFrame, listed: Listed, bench: Bench) -> list[int]:
    """The index of each row's cell."""
    of_arch: list[int] | None = None
    if "arch" in table:
        try:
            of_arch = [bench.index_of(str(arch)) for arch in table["arch"]]
        except NasRetrainError as error:
            raise NasRetrainError(f"{listed.path}: {error}") from error
    if "index" not in table:
        assert of_arch is not None
        return of_arch
    cells = [int(cell) for cell in whole(table["index"], listed.path)]
    if outside := [cell for cell in cells if not 0 <= cell < bench.size]:
        raise NasRetrainError(f"{listed.path}: {_named(outside)} outside 0 to {bench.size - 1}.")
    if of_arch is not None and (other := [c for c, same in zip(cells, of_arch, strict=True) if c != same]):
        raise NasRetrainError(f"{listed.path}: index and arch are of different cells where {_named(other)} the index.")
    return cells


def by_class(
    name: str, listed: Listed, bench: Bench, wanted: Iterable[int], class_of: Callable[[int], int]
) -> dict[int, float]:
    """The rate of each class of cells that share a training.

    name: of the recipe. wanted: the cells to train, each of which, or another of its class, must be listed; a
    disconnected one needs no rate. class_of: the class of a cell. Raises NasRetrainError as `read` does, for cells that
    are not listed, and for two rates of one class.
    """
    rates: dict[int, float] = {}
    first: dict[int, int] = {}
    for cell, rate in read(listed, bench).items():
        network_class = class_of(cell)
        known = rates.setdefault(network_class, rate)
        if known != rate:
            raise NasRetrainError(
                f"{listed.path}: cells {first[network_class]} and {cell} are the same network, which is trained once, "
                f"but have the learning rates {known:g} and {rate:g}. Give them one."
            )
        first.setdefault(network_class, cell)
    missing = [cell for cell in wanted if bench.graph_at(cell).connected and class_of(cell) not in rates]
    if missing:
        raise NasRetrainError(
            f"{listed.path}: recipe {name} takes its learning rates from this table, in which {_named(missing)} "
            "missing. Add what is missing, or choose other cells: ARGS='cells=[...]'"
        )
    return rates


def _times(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _named(cells: list[int]) -> str:
    """The first of some cells, and the verb."""
    distinct = list(dict.fromkeys(cells))
    shown = ", ".join(map(str, distinct[:SHOWN]))
    more = f" and {len(distinct) - SHOWN:,} more" if len(distinct) > SHOWN else ""
    return f"cell {shown} is" if len(distinct) == 1 else f"cells {shown}{more} are"
