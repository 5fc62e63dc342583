"""NAS-Bench-201's space: order, names, classes and table."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nas_201_api import NASBench201API

from nas_retrain.benches.cells import cells_table
from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import lowest_member
from nas_retrain.theory.scaling import InDegree, variance_factors
from tests.simulation import Floats, simulate
from tests.strategies import NAS_BENCH_201, cells

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
    assert {index: NAS_BENCH_201.arch_at(index) for index in PUBLISHED} == PUBLISHED
    assert hashlib.sha256("\n".join(NAS_BENCH_201.archs).encode()).hexdigest() == PUBLISHED_ORDER


@given(cells)
def test_cell_strings_round_trip(arch: str) -> None:
    assert space.format_cell(space.parse_operations(arch)) == arch
    assert NAS_BENCH_201.arch_at(NAS_BENCH_201.index_of(arch)) == arch


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
        space.parse(arch)


@given(st.text(alphabet="|~+012nonesk", max_size=60))
def test_arbitrary_text_is_a_cell_or_a_clear_error(text: str) -> None:
    if text in NAS_BENCH_201.archs:
        space.parse(text)
        return
    with pytest.raises(NasRetrainError) as caught:
        space.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("index", [-1, 15625])
def test_indices_out_of_range_are_refused(index: int) -> None:
    with pytest.raises(NasRetrainError, match="out of range"):
        NAS_BENCH_201.arch_at(index)


def fingerprint(arch: str, images: Floats) -> tuple[float, ...]:
    """A number that two cells share exactly if they are the same network up to naming what they train.

    Every edge of the cell is simulated, whatever it leads to, and the output is averaged over all ways to hand out six
    weights and biases to its convolutions. Nothing for a cell whose output is the same for all images.
    """
    operations = {
        ends: space.OPERATIONS[name] for ends, name in zip(space.EDGES, space.parse_operations(arch), strict=True)
    }
    convolutions = [ends for ends, operation in operations.items() if operation and operation.kind == "layer"]
    hands = np.array(list(itertools.permutations(range(6), len(convolutions))), dtype=int)
    hands = hands.reshape(len(hands), len(convolutions), 1, 1)
    weights, biases = np.array([0.7, 1.1, 1.6, 0.4, 1.9, 1.3]), np.array([0.3, -0.8, 1.2, -1.7, 0.9, 2.2])
    output = simulate(
        operations,
        space.VERTICES,
        {ends: weights[hands[:, place]] for place, ends in enumerate(convolutions)},
        {ends: biases[hands[:, place]] for place, ends in enumerate(convolutions)},
        images,
    )
    if np.ptp(output, axis=1).max() < 1e-9:
        return ()
    return tuple(np.round(np.sin(3 * output).mean(0).ravel(), 8))


def test_network_classes_are_those_of_an_independent_fingerprint() -> None:
    images = np.random.default_rng(5).normal(size=(2, 3))
    by_fingerprint: dict[tuple[float, ...], set[int]] = defaultdict(set)
    for index, arch in enumerate(NAS_BENCH_201.archs):
        by_fingerprint[fingerprint(arch, images)].add(index)
    by_class: dict[int, set[int]] = defaultdict(set)
    for index, network_class in enumerate(NAS_BENCH_201.training_classes(None)):
        by_class[network_class].add(index)
    assert len(by_class) == len(by_fingerprint) == 5461
    assert sorted(map(min, by_class.values())) == sorted(by_class)
    assert sorted(map(sorted, by_class.values())) == sorted(map(sorted, by_fingerprint.values()))
    assert len(by_fingerprint[()]) == 341


def test_convolutions_of_what_the_input_does_not_reach_split_classes() -> None:
    """Without the biases that they add there would be 5,260 classes."""
    graphs = [NAS_BENCH_201.graph_at(index) for index in range(15625)]
    pruned = lowest_member(graph.live.network_class for graph in graphs)
    assert len(set(pruned)) == 5260
    having = [index for index, graph in enumerate(graphs) if graph.constants]
    assert len(having) == 2000
    assert len({pruned[index] for index in having}) == 59
    classes = NAS_BENCH_201.training_classes(None)
    assert len({classes[index] for index in having}) == 201
    assert {classes[index] for index in having}.isdisjoint(set(classes) - {classes[index] for index in having})
    assert sum(bool(graphs[index].constant_layers) for index in having) == 40


def test_the_released_in_degrees_count_edges_that_the_input_does_not_reach() -> None:
    """800 cells are initialised unlike under "source", counted here from their strings."""
    differing = {
        index
        for index, arch in enumerate(NAS_BENCH_201.archs)
        if variances(arch, "released") != variances(arch, "source")
    }
    expected = set()
    for index, arch in enumerate(NAS_BENCH_201.archs):
        operations = dict(zip(space.EDGES, space.parse_operations(arch), strict=True))
        counted_in_vain = operations[0, 1] == "none" != operations[1, 2] and operations[0, 2] != "none"
        if counted_in_vain and operations[2, 3].startswith("nor_conv"):
            expected.add(index)
            (edge,) = (edge for edge in space.parse(arch).layers if edge.source == 2)
            released, source = (variance_factors(space.parse(arch), c) for c in ("released", "source"))
            assert (released[edge], source[edge]) == (1.0, 2.0)
    assert differing == expected
    assert len(differing) == 800
    assert len({NAS_BENCH_201.graph_at(index).live.network_class for index in differing}) == 39


def variances(arch: str, convention: InDegree) -> list[tuple[int, float]]:
    """What the layers of a cell are drawn with."""
    factors = variance_factors(space.parse(arch), convention)
    return sorted((edge.operation.kernel_size, factor) for edge, factor in factors.items())


@pytest.mark.parametrize(("convention", "split"), [("source", 0), ("target", 608), ("released", 78)])
def test_members_of_a_training_class_are_initialised_alike(convention: InDegree, split: int) -> None:
    names, parts = NAS_BENCH_201.archs, defaultdict(set)
    for index, representative in enumerate(NAS_BENCH_201.training_classes(convention)):
        assert variances(names[index], convention) == variances(names[representative], convention)
        parts[NAS_BENCH_201.training_classes(None)[index]].add(representative)
    assert sum(len(its) > 1 for its in parts.values()) == split


def test_stock_initialisation_has_the_network_classes() -> None:
    assert NAS_BENCH_201.training_classes(None) == NAS_BENCH_201.training_classes(None)


def test_cells_table() -> None:
    table = cells_table(NAS_BENCH_201)
    assert list(table["index"]) == list(range(15625))
    assert table["network_class"].nunique() == 5461
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
    graph = NAS_BENCH_201.graph_at(NAS_BENCH_201.base_cell)
    assert graph.network_class == "out=x"
    assert NAS_BENCH_201.base_cell in NAS_BENCH_201.training_classes(None)


def test_every_cell_is_what_the_benchmark_s_package_reads_from_its_name() -> None:
    bench = NAS_BENCH_201
    for index, arch in enumerate(NAS_BENCH_201.archs):
        by_edge = dict(zip(space.EDGES, space.parse_operations(arch), strict=True))
        theirs = {
            (source, target): name
            for target, edges in enumerate(NASBench201API.str2lists(arch), start=1)
            for name, source in edges
        }
        assert by_edge == theirs
        if index % 25 == 0:
            matrix = NASBench201API.str2matrix(arch)  # whose numbers are those of operations, 0 for none
            assert bench.chosen(index) == tuple(matrix[target, source] for source, target in space.EDGES)
