from __future__ import annotations

from collections import Counter

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph, Edge, Operation, lowest_member
from tests.simulation import handed_out, simulate
from tests.strategies import NORMALISED, cell_graphs

CONV3 = Operation("layer", 3)
SKIP = Operation("skip")


def paths(graph: CellGraph) -> list[list[Edge]]:
    """Every input-to-output path, by another library."""
    network = nx.DiGraph()
    network.add_nodes_from(range(graph.vertices))
    network.add_edges_from((edge.source, edge.target) for edge in graph.edges)
    by_ends = {(edge.source, edge.target): edge for edge in graph.edges}
    return [[by_ends[ends] for ends in path] for path in nx.all_simple_edge_paths(network, 0, graph.vertices - 1)]


@given(cell_graphs(), st.integers(0, 3))
def test_path_depths_count_the_layers_of_every_path(graph: CellGraph, offset: int) -> None:
    expected = Counter(offset + sum(edge.operation.kind == "layer" for edge in path) for path in paths(graph))
    assert graph.path_depths(offset) == expected


@given(cell_graphs())
def test_live_edges_are_those_on_a_path(graph: CellGraph) -> None:
    on_paths = {edge for path in paths(graph) for edge in path}
    assert set(graph.live.edges) == on_paths
    assert graph.connected == bool(on_paths)
    incoming = Counter(edge.target for edge in on_paths)
    assert graph.in_degrees == tuple(max(1, incoming[vertex]) for vertex in range(graph.vertices))
    assert set(graph.layers) == {edge for edge in on_paths if edge.operation.kind == "layer"}


def output_of(graph: CellGraph, edges: tuple[Edge, ...], biases_alone: tuple[Edge, ...] = ()) -> NDArray[np.float64]:
    """What the graph with these edges only comes to, by simulation; biases_alone: layers that read zeros instead of
    their source."""
    random = np.random.default_rng(3)
    ends = [(source, target) for target in range(graph.vertices) for source in range(target)]
    weights = handed_out(ends, lambda: random.uniform(0.5, 2.0))
    biases = handed_out(ends, lambda: random.uniform(-2.0, 2.0))
    for edge in biases_alone:
        weights[edge.source, edge.target] = np.zeros((1, 1, 1))
    operations = {(edge.source, edge.target): edge.operation for edge in edges}
    return simulate(operations, graph.vertices, weights, biases, random.normal(size=(3, 4)))


@settings(max_examples=300)
@given(cell_graphs(NORMALISED, most=5))
def test_the_effective_edges_are_those_that_the_output_depends_on(graph: CellGraph) -> None:
    whole = output_of(graph, graph.edges)
    if not graph.connected:
        assert graph.effective.edges == ()
        np.testing.assert_allclose(np.ptp(whole, axis=1), 0, atol=1e-9)
        return
    effective = graph.effective.edges
    assert set(effective) <= set(graph.edges)
    np.testing.assert_allclose(output_of(graph, effective), whole, atol=1e-9)
    for edge in effective:
        others = tuple(other for other in effective if other != edge)
        assert np.abs(output_of(graph, others) - whole).max() > 1e-6
    # Biases are what they are whatever their weights; of all other layers the weights count.
    np.testing.assert_allclose(output_of(graph, effective, graph.biases), whole, atol=1e-9)
    for edge in graph.layers + graph.constant_layers:
        assert np.abs(output_of(graph, effective, (edge,)) - whole).max() > 1e-6
    assert set(graph.constants) == set(effective) - set(graph.live.edges)
    layers = {edge for edge in effective if edge.operation.kind == "layer"}
    assert layers == {*graph.layers, *graph.constant_layers, *graph.biases}


BIASED1, BIASED3 = Operation("layer", 1, normalised=True), Operation("layer", 3, normalised=True)


@pytest.mark.parametrize(
    ("chain", "formula"),
    [
        ([BIASED3], "c0=bias; out=c0+x"),
        ([BIASED3, SKIP], "c0=bias; out=c0+x"),
        ([BIASED1, Operation("pool", 3)], "c0=bias; out=c0+x"),
        ([BIASED3, BIASED1], "c0=bias; out=c0+x"),
        ([SKIP, Operation("pool", 3), BIASED3], "c0=bias; out=c0+x"),
        ([BIASED1, BIASED3], "c0=bias; c1=conv3(c0); out=c1+x"),
        ([BIASED3, BIASED3, BIASED1], "c0=bias; c1=conv1(c2); c2=conv3(c0); out=c1+x"),
        ([BIASED3, BIASED3, Operation("pool", 3)], "c0=bias; c1=conv3(c0); out=pool3(c1)+x"),
        ([SKIP, Operation("pool", 3)], "out=x"),
        ([CONV3, Operation("layer", 1)], "out=x"),
        ([BIASED1, CONV3], "c0=bias; c1=conv3(c0); out=c1+x"),
    ],
)
def test_what_a_chain_from_an_unreached_vertex_adds(chain: list[Operation], formula: str) -> None:
    last = len(chain) + 1
    edges = [Edge(place, place + 1, operation) for place, operation in enumerate(chain, start=1)]
    assert CellGraph(last + 1, (Edge(0, last, SKIP), *edges)).network_class == formula
    # The same chain out of the input is what it says.
    reached = CellGraph(last + 1, (Edge(0, last, SKIP), Edge(0, 1, SKIP), *edges))
    assert reached.constants == ()
    assert "bias" not in reached.network_class


def test_biases_are_not_one_another() -> None:
    """Two biases in one sum are trained apart, unlike one that is read twice."""
    two = CellGraph(3, (Edge(0, 2, SKIP), Edge(1, 2, BIASED1)))
    assert two.network_class == "c0=bias; out=c0+x"
    apart = CellGraph(4, (Edge(0, 3, SKIP), Edge(1, 3, BIASED1), Edge(2, 3, BIASED3)))
    assert apart.network_class == "c0=bias; c1=bias; out=c0+c1+x"
    twice = CellGraph(5, (Edge(0, 4, SKIP), Edge(1, 2, BIASED1), Edge(2, 3, SKIP), Edge(2, 4, SKIP), Edge(3, 4, SKIP)))
    assert twice.network_class == "c0=bias; out=c0+c0+x"


def test_path_depths_of_a_graph_with_more_paths_than_could_be_listed() -> None:
    vertices = 60
    edges = tuple(Edge(source, target, CONV3) for target in range(vertices) for source in range(target))
    depths = CellGraph(vertices, edges).path_depths()
    assert sum(depths.values()) == 2 ** (vertices - 2)


@given(cell_graphs(NORMALISED, most=5), st.data())
def test_network_class_does_not_depend_on_how_the_cell_is_written(graph: CellGraph, data: st.DataObject) -> None:
    inner = data.draw(st.permutations(range(1, graph.vertices - 1)))
    names = [0, *inner, graph.vertices - 1]
    renamed = [Edge(names[edge.source], names[edge.target], edge.operation) for edge in graph.edges]
    if any(edge.source >= edge.target for edge in renamed):
        return
    assert CellGraph(graph.vertices, tuple(renamed)).network_class == graph.network_class
    assert graph.effective.network_class == graph.network_class


@given(cell_graphs(NORMALISED, most=5), st.data())
def test_lengthening_an_edge_by_a_skip_leaves_the_network_the_same(graph: CellGraph, data: st.DataObject) -> None:
    if not graph.edges:
        return
    edge = data.draw(st.sampled_from(graph.edges))
    # A new vertex right before the edge's target: everything from there on is renumbered.
    moved = [
        Edge(e.source + (e.source >= edge.target), e.target + (e.target >= edge.target), e.operation)
        for e in graph.edges
        if e != edge
    ]
    detour = [Edge(edge.source, edge.target, edge.operation), Edge(edge.target, edge.target + 1, SKIP)]
    longer = CellGraph(graph.vertices + 1, tuple(moved + detour))
    assert longer.network_class == graph.network_class


def test_a_layer_read_twice_is_not_two_layers() -> None:
    once = CellGraph(4, (Edge(0, 1, CONV3), Edge(1, 2, SKIP), Edge(1, 3, SKIP), Edge(2, 3, SKIP)))
    twice = CellGraph(4, (Edge(0, 1, CONV3), Edge(0, 2, CONV3), Edge(1, 3, SKIP), Edge(2, 3, SKIP)))
    assert once.network_class == "c0=conv3(x); out=c0+c0"
    assert twice.network_class == "c0=conv3(x); c1=conv3(x); out=c0+c1"


@pytest.mark.parametrize("edge", [(1, 1), (2, 1), (0, 3), (-1, 1)])
def test_edges_must_lead_upwards_within_the_graph(edge: tuple[int, int]) -> None:
    with pytest.raises(NasRetrainError, match=f"Edge {edge[0]} -> {edge[1]}"):
        CellGraph(3, (Edge(*edge, SKIP),))


def test_lowest_member_names_classes_by_their_first_position() -> None:
    assert lowest_member(["b", "a", "b", "c", "a"]) == [0, 1, 0, 3, 1]
