from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph, Edge, Operation
from nas_retrain.theory.scaling import InDegree, Initialisation, in_degree_of, learning_rate_factor, variance_factors
from tests.strategies import NAS_BENCH_201, cell_graphs
from tests.theory.test_graph import paths

CHAIN = CellGraph(3, (Edge(0, 1, Operation("layer", 3)), Edge(1, 2, Operation("layer", 3))))


def test_the_base_network_keeps_the_base_rate_and_he_initialisation_exactly() -> None:
    base = space.BASE
    for kernel_factor in (False, True):
        assert learning_rate_factor(base, base, kernel_factor=kernel_factor) == 1.0
    assert learning_rate_factor(CHAIN, CHAIN, depth_offset=0, kernel_factor=True) == 1.0
    for convention in get_args(InDegree):
        assert set(variance_factors(CHAIN, convention).values()) == {2.0}


@given(cell_graphs(), st.booleans())
def test_learning_rate_factor_is_the_formula_over_listed_paths(graph: CellGraph, kernel_factor: bool) -> None:
    listed = paths(graph)
    if not listed:
        with pytest.raises(NasRetrainError, match="No path"):
            learning_rate_factor(graph, space.BASE)
        return
    cubes = sum((1 + sum(edge.operation.kind == "layer" for edge in path)) ** 3 for path in listed)
    sizes = [edge.operation.kernel_size for edge in {edge for path in listed for edge in path} & set(graph.layers)]
    expected = cubes**-0.5 * (3 / np.mean(sizes) if kernel_factor and sizes else 1.0)
    found = learning_rate_factor(graph, space.BASE, kernel_factor=kernel_factor)
    assert math.isclose(found, expected, rel_tol=1e-12)


@given(cell_graphs(operations=[None, Operation("skip"), Operation("layer", 3)]))
def test_variance_factors_divide_by_the_in_degree_of_the_chosen_end(graph: CellGraph) -> None:
    incoming = [sum(edge.target == vertex for edge in graph.live.edges) for vertex in range(graph.vertices)]
    assert variance_factors(graph, "target") == {e: 2 / incoming[e.target] for e in graph.layers}
    assert variance_factors(graph, "source") == {e: 2 / max(1, incoming[e.source]) for e in graph.layers}
    counted = [sum(edge.target == vertex for edge in graph.edges) for vertex in range(graph.vertices)]
    assert variance_factors(graph, "released") == {e: 2 / max(1, counted[e.source]) for e in graph.layers}


def test_a_record_names_the_convention_of_its_initialisation() -> None:
    conventions = {name: in_degree_of(name) for name in get_args(Initialisation)}
    assert {name for name, convention in conventions.items() if convention == name} == set(get_args(InDegree))
    assert [name for name, convention in conventions.items() if convention is None] == ["stock", "he", "mup"]


def mean_squares(graph: CellGraph, convention: InDegree, width: int = 64, draws: int = 400) -> list[float]:
    """E|z|^2 / width at each live vertex of a fully connected network without normalisation, by simulation."""
    random = np.random.default_rng(1)
    factors = variance_factors(graph, convention)
    z = np.zeros((graph.vertices, draws, width))
    z[0] = random.standard_normal((draws, width))
    for edge in sorted(graph.live.edges):
        weights = random.standard_normal((draws, width, width)) * math.sqrt(factors[edge] / width)
        z[edge.target] += np.einsum("dij,dj->di", weights, np.maximum(z[edge.source], 0))
    return [float((z[vertex] ** 2).mean()) for vertex in sorted({0, *(edge.target for edge in graph.live.edges)})]


@given(st.integers(0, 2**30))
def test_target_in_degrees_keep_the_signal_at_every_vertex(seed: int) -> None:
    """The information-flow condition, paper eq. 3, on random graphs of layers."""
    random = np.random.default_rng(seed)
    edges = tuple(
        Edge(source, target, Operation("layer"))
        for target in range(1, 5)
        for source in range(target)
        if random.random() < 0.6
    )
    graph = CellGraph(5, edges)
    if graph.connected:
        found = mean_squares(graph, "target")
        assert found == pytest.approx([1.0] * len(found), rel=0.15)


def test_source_in_degrees_miss_it_where_branches_meet() -> None:
    """Three branches from the input meet: each has a source of in-degree 1, so their sum is three times too large,
    and the layer after it, whose source has in-degree 3, divides by three what it should keep."""
    layer = Operation("layer")
    edges = [Edge(0, 1, layer), Edge(0, 2, layer), Edge(0, 3, layer), Edge(1, 3, layer), Edge(2, 3, layer)]
    graph = CellGraph(5, (*edges, Edge(3, 4, layer)))
    assert mean_squares(graph, "target") == pytest.approx([1, 1, 1, 1, 1], rel=0.15)
    assert mean_squares(graph, "source") == pytest.approx([1, 1, 1, 3, 1], rel=0.15)


def test_every_cell_of_the_benchmark_has_the_factor_of_plain_floats() -> None:
    for arch in NAS_BENCH_201.archs:
        graph = space.parse(arch)
        if graph.connected:
            cubes = sum(paths * depth**3 for depth, paths in graph.path_depths().items())
            assert learning_rate_factor(graph, space.BASE) == math.sqrt(1 / cubes)


def doublings(number: int) -> CellGraph:
    """A graph with 2 ** number paths of depth 1."""
    skip = Operation("skip")
    return CellGraph(number + 1, tuple(Edge(vertex, vertex + 1, skip) for vertex in range(number) for _ in range(2)))


@settings(max_examples=25)
@given(st.integers(1, 2500), st.integers(1, 1900))
def test_a_factor_is_right_where_the_sums_over_paths_are_beyond_any_float(number: int, base: int) -> None:
    with localcontext(prec=50):
        expected = float(Decimal(2) ** (Decimal(base - number) / 2))
    factor = learning_rate_factor(doublings(number), doublings(base))
    assert factor == pytest.approx(expected, rel=1e-11, abs=5e-324)
