"""JAHS-Bench-201's table: which number is which operation on which edge, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from nas_retrain.benches.nas_bench_201 import jahs_bench, space
from nas_retrain.errors import NasRetrainError
from tests import published_tables
from tests.strategies import NAS_BENCH_201

# As lib/core/constants.py of its repository has them.
OP_NAMES = ["Identity", "Zero", "ConvBN3x3", "ConvBN1x1", "AvgPool1x1"]
EDGE_LIST = ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))
OPS_TO_NB201 = {
    "AvgPool1x1": "avg_pool_3x3",
    "ConvBN1x1": "nor_conv_1x1",
    "ConvBN3x3": "nor_conv_3x3",
    "Identity": "skip_connect",
    "Zero": "none",
}


def test_operations_are_on_the_edges_that_its_code_puts_them_on() -> None:
    table, _ = published_tables.jahs_table(trainings=300, cells=200)
    found = jahs_bench.trainings(table, "table")
    for (_, row), index in zip(table.iterrows(), found["index"], strict=True):
        on_edge = {edge: OPS_TO_NB201[OP_NAMES[row[f"Op{place}"]]] for place, edge in enumerate(EDGE_LIST, start=1)}
        operations = space.parse_operations(NAS_BENCH_201.arch_at(index))
        for (source, target), operation in zip(space.EDGES, operations, strict=True):
            assert operation == on_edge[source + 1, target + 1]
    assert np.array_equal(found["learning_rate"], table["LearningRate"])
    assert np.array_equal(found["test"], table["test-acc"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop(columns="epoch"), "no column epoch"),
        (lambda table: table.assign(Op3=7), "numbers from 0 to 4"),
        (lambda table: table.assign(Op3="skip"), "numbers from 0 to 4"),
        (lambda table: table.assign(**{"valid-acc": "high"}), "'valid-acc' holds values that are not numbers"),
    ],
)
def test_what_cannot_be_is_one_error(change, told: str) -> None:
    table, _ = published_tables.jahs_table(trainings=20, cells=5)
    with pytest.raises(NasRetrainError, match=f"some.csv.*{told}"):
        jahs_bench.trainings(change(table), "some.csv")
