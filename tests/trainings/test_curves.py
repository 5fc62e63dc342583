"""Curves as a table, against loops over the lists of each record."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.trainings.curves import QUANTITIES, by_epoch
from nas_retrain.trainings.store import RunRecord, StoredRuns
from tests.trainings.test_store import a_record

curve = st.none() | st.lists(st.none() | st.floats(0, 100), max_size=4).map(tuple)
some = st.lists(st.builds(dict, train_loss_curve=curve, train_accuracy_curve=curve, test_loss_curve=curve), max_size=4)


def expected(records: list[RunRecord]) -> list[dict[str, float]]:
    rows = []
    for place, record in enumerate(records):
        lists = {quantity: getattr(record, name) or () for quantity, name in QUANTITIES.items()}
        for epoch in range(max(map(len, lists.values()))):
            known = {quantity: values[epoch] for quantity, values in lists.items() if epoch < len(values)}
            rows.append({"record": place, "epoch": epoch + 1} | known)
    return rows


@given(some)
def test_each_epoch_of_each_record_is_a_row(given_curves: list[dict[str, tuple[float | None, ...] | None]]) -> None:
    records = [replace(a_record(seed), **curves) for seed, curves in enumerate(given_curves)]  # type: ignore[arg-type]
    for frame in (StoredRuns.of(records).frame(), pd.DataFrame([vars(record) for record in records])):
        found = by_epoch(frame).to_dict("records")
        assert len(found) == len(expected(records))
        for row, wanted in zip(found, expected(records), strict=True):
            for quantity in QUANTITIES:
                value = row.get(quantity, math.nan)
                assert (None if math.isnan(value) else value) == wanted.get(quantity)
            assert (row["record"], row["epoch"]) == (wanted["record"], wanted["epoch"])
