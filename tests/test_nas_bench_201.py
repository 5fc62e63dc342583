"""NAS-Bench-201's space: order, names, classes and table."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nas_retrain.errors import NasRetrainError
from nas_retrain.scaling import variance_factors
from nas_retrain.spaces import nas_bench_201
from tests.strategies import cells

# Cells 0, 9 and 123, and the benchmark's best on CIFAR-10, CIFAR-100 and ImageNet16-120, as published.
PUBLISHED = {
    0: "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
    9: "|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|",
    123: "|avg_pool_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|",
    6111: "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|",
    9930: "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|",
    857: "|nor_conv_1x1~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|",
}
# Of all 15,625 published cell strings joined by line feeds.
PUBLISHED_ORDER = "83abc799e45cf34e9d2163654668ab998b9a54d01c39e72ca1f71f2cdf356d84"


def test_cells_stand_in_the_published_order() -> None:
    assert {index: nas_bench_201.cell_at(index) for index in PUBLISHED} == PUBLISHED
    assert hashlib.sha256("\n".join(nas_bench_201.cells()).encode()).hexdigest() == PUBLISHED_ORDER


@given(cells)
def test_cell_strings_round_trip(arch: str) -> None:
    assert nas_bench_201.format_cell(nas_bench_201.parse_operations(arch)) == arch
    assert nas_bench_201.cell_at(nas_bench_201.index_of(arch)) == arch


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ("", "expected 3 groups"),
        ("|none~0|+|none~0|none~1|", "expected 3 groups"),
        ("|none~0|+|none~0|+|none~0|none~1|none~2|", "must list 2"),
        ("none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "must list 1"),
        ("|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "'operation~0'"),
        ("|none|+|none~0|none~1|+|none~0|none~1|none~2|", "'operation~0'"),
        ("|conv_5x5~0|+|none~0|none~1|+|none~0|none~1|none~2|", "Unknown operation 'conv_5x5'.*nor_conv_3x3"),
    ],
)
def test_malformed_cells_are_refused_by_name(arch: str, told: str) -> None:
    with pytest.raises(NasRetrainError, match=told):
        nas_bench_201.parse(arch)


@given(st.text(alphabet="|~+012nonesk", max_size=60))
def test_arbitrary_text_is_a_cell_or_a_clear_error(text: str) -> None:
    if text in nas_bench_201.cells():
        nas_bench_201.parse(text)
        return
    with pytest.raises(NasRetrainError) as caught:
        nas_bench_201.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("index", [-1, 15625])
def test_indices_out_of_range_are_refused(index: int) -> None:
    with pytest.raises(NasRetrainError, match="out of range"):
        nas_bench_201.cell_at(index)


def fingerprint(arch: str, inputs: NDArray[np.float64]) -> tuple[float, ...]:
    """A number that two cells share exactly if they are the same network up to naming their convolutions.

    Written from the definition, without the package's graphs: convolutions are sines with a weight each, pooling
    an exponential, and the cell's output is averaged over all ways to hand out the weights.
    """
    operations = dict(zip(nas_bench_201.EDGES, nas_bench_201.parse_operations(arch), strict=True))
    forward, backward = {0}, {3}
    for source, target in nas_bench_201.EDGES:
        if source in forward and operations[source, target] != "none":
            forward.add(target)
    for source, target in reversed(nas_bench_201.EDGES):
        if target in backward and operations[source, target] != "none":
            backward.add(source)
    live = [ends for ends in operations if operations[ends] != "none" and ends[0] in forward and ends[1] in backward]
    if not live:
        return ()
    kinds = ["nor_conv_1x1", "nor_conv_3x3"]
    weights = {"nor_conv_1x1": 0.7 + 0.31 * np.arange(6), "nor_conv_3x3": -0.4 - 0.37 * np.arange(6)}
    convolutions = {kind: [ends for ends in live if operations[ends] == kind] for kind in kinds}
    total = np.zeros_like(inputs)
    orders = [list(itertools.permutations(range(len(convolutions[kind])))) for kind in kinds]
    handed_out = {
        ends: np.array([weights[kind][order[kind_index][place]] for order in itertools.product(*orders)])[:, None]
        for kind_index, kind in enumerate(kinds)
        for place, ends in enumerate(convolutions[kind])
    }
    values = {0: np.broadcast_to(inputs, (math.prod(map(len, orders)), len(inputs)))}
    for vertex in (1, 2, 3):
        total = np.zeros(values[0].shape)
        for source, target in live:
            if target != vertex or source not in values:
                continue
            value, operation = values[source], operations[source, target]
            if operation in kinds:
                total = total + np.sin(handed_out[source, target] * value)
            else:
                total = total + (value if operation == "skip_connect" else np.expm1(0.3 * value))
        values[vertex] = total
    return tuple(np.round(np.sin(3 * values[3]).mean(0), 9))


def test_network_classes_are_those_of_an_independent_fingerprint() -> None:
    inputs = np.random.default_rng(5).normal(size=3)
    by_fingerprint: dict[tuple[float, ...], set[int]] = defaultdict(set)
    for index, arch in enumerate(nas_bench_201.cells()):
        by_fingerprint[fingerprint(arch, inputs)].add(index)
    by_class: dict[int, set[int]] = defaultdict(set)
    for index, network_class in enumerate(nas_bench_201.network_classes()):
        by_class[network_class].add(index)
    assert len(by_class) == 5260
    assert sorted(map(min, by_class.values())) == sorted(by_class)
    assert sorted(map(sorted, by_class.values())) == sorted(map(sorted, by_fingerprint.values()))


def test_members_of_a_training_class_are_initialised_alike() -> None:
    def variances(index: int, convention: str) -> list[tuple[int, float]]:
        graph = nas_bench_201.graph_at(index)
        factors = variance_factors(graph, convention)  # type: ignore[arg-type]
        return sorted((edge.operation.kernel_size, factors[edge]) for edge in graph.layers)

    split = defaultdict(set)
    for convention in ("source", "target"):
        for index, representative in enumerate(nas_bench_201.training_classes(convention)):  # type: ignore[arg-type]
            assert variances(index, convention) == variances(representative, convention)
            if convention == "target":
                split[nas_bench_201.network_classes()[index]].add(representative)
    assert sum(len(parts) > 1 for parts in split.values()) == 596
    assert nas_bench_201.training_classes(None) == nas_bench_201.network_classes()


def test_cells_table() -> None:
    table = nas_bench_201.cells_table()
    assert list(table["index"]) == list(range(15625))
    assert table["network_class"].nunique() == 5260
    assert (~table["connected"]).sum() == 341
    rates = 0.46 * table["learning_rate_factor"].dropna()
    assert len(rates) == 15625 - 341
    assert rates.nunique() == 46
    assert (round(rates.min(), 5), round(rates.max(), 5), round(rates.median(), 3)) == (0.04098, 0.46, 0.108)
    assert table["parameters"].max() == 1_531_546
    assert round(table["flops"].max() / 1e6, 2) == 220.12
    first = table.iloc[0]
    assert json.loads(first["path_depths"]) == [1, 1, 2, 2]
    assert json.loads(first["in_degrees"]) == [1, 1, 2, 3]


def test_the_base_cell_is_a_skip() -> None:
    graph = nas_bench_201.graph_at(nas_bench_201.base_cell())
    assert graph.network_class == "out=x"
    assert nas_bench_201.base_cell() in nas_bench_201.network_classes()
