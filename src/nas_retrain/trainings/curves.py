"""Curves of run records as a table: a row for each epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas_retrain.trainings.store import CURVES

QUANTITIES = {name.removesuffix("_curve"): name for name in CURVES}
"""What curves are of, and the field of `RunRecord` that has it."""


def by_epoch(records: pd.DataFrame) -> pd.DataFrame:
    """What records, a row each with the fields of `RunRecord`, have of each epoch.

    Columns: record (the record's place among the rows), epoch (from 1), and those of QUANTITIES that a record has, NaN
    where nothing was measured. Records without curves have no rows.
    """
    lists = {
        quantity: [_numbers(one) for one in records[name]] for quantity, name in QUANTITIES.items() if name in records
    }
    lengths = {quantity: np.array([len(one) for one in found], np.int64) for quantity, found in lists.items()}
    epochs = np.max([*lengths.values(), np.zeros(len(records), np.int64)], axis=0)
    before = epochs.cumsum() - epochs
    table: dict[str, NDArray[Any]] = {
        "record": np.repeat(np.arange(len(records)), epochs),
        "epoch": 1 + _counted(epochs),
    }
    for quantity, found in lists.items():
        values = np.full(epochs.sum(), np.nan)
        values[np.repeat(before, lengths[quantity]) + _counted(lengths[quantity])] = np.concatenate([[], *found])
        if np.isfinite(values).any():
            table[quantity] = values
    return pd.DataFrame(table)


def _numbers(values: Any) -> NDArray[np.float64]:  # noqa: ANN401 - a table has what is missing as None or NaN
    """A list's numbers, none where there is no list."""
    return np.empty(0) if values is None or isinstance(values, float) else np.asarray(values, np.float64)


def _counted(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... up to each length, one behind the other."""
    counted: NDArray[np.int64] = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    return counted
