from __future__ import annotations

from collections import Counter

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.errors import NasRetrainError
from nas_retrain.graph import CellGraph, Edge, Operation, lowest_member
from tests.strategies import cell_graphs

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


def test_path_depths_of_a_graph_with_more_paths_than_could_be_listed() -> None:
    vertices = 60
    edges = tuple(Edge(source, target, CONV3) for target in range(vertices) for source in range(target))
    depths = CellGraph(vertices, edges).path_depths()
    assert sum(depths.values()) == 2 ** (vertices - 2)


@given(cell_graphs(most=5), st.data())
def test_network_class_does_not_depend_on_how_the_cell_is_written(graph: CellGraph, data: st.DataObject) -> None:
    inner = data.draw(st.permutations(range(1, graph.vertices - 1)))
    names = [0, *inner, graph.vertices - 1]
    renamed = [Edge(names[edge.source], names[edge.target], edge.operation) for edge in graph.edges]
    if any(edge.source >= edge.target for edge in renamed):
        return
    assert CellGraph(graph.vertices, tuple(renamed)).network_class == graph.network_class
    assert graph.live.network_class == graph.network_class


@given(cell_graphs(most=5), st.data())
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
