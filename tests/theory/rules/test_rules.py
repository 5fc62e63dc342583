"""Each rule that ships against values that were worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph, Edge, Operation
from nas_retrain.theory.rule import NetworkSize, Parametrisation, Peers, Rates, find, shipped
from nas_retrain.theory.rules import complete_p
from nas_retrain.theory.rules.effective_depth import effective_depth
from nas_retrain.theory.scaling import BASE, learning_rate_factor
from tests.strategies import NAS_BENCH_201, cell_graphs

CONV3, CONV5, SKIP = Operation("layer", 3), Operation("layer", 5), Operation("skip")

A, B, C = Edge(0, 1, CONV3), Edge(0, 2, SKIP), Edge(1, 2, CONV5)
GRAPH = CellGraph(3, (A, B, C))
"""Two paths: one of two layers, one of none. They meet in vertex 2, of in-degree 2."""

MLP = NetworkSize(width=32, readout_width=32, inputs=64, classes=10)
STACKED = NetworkSize(width=8, readout_width=32, inputs=9, classes=10, stages=3, cells_per_stage=2)


def decided(name: str, graph: CellGraph = GRAPH, size: NetworkSize = MLP, **parameters: object) -> Parametrisation:
    return find(name, parameters).decide(graph, size, "a cell")


def test_one_rate_decides_nothing() -> None:
    assert decided("one_rate") == Parametrisation(adam=Rates())


def test_he() -> None:
    assert decided("he") == Parametrisation(variances={A: 2.0, C: 2.0, "first": 2.0, "readout": 2.0}, adam=Rates())


def test_the_papers_rule() -> None:
    # Depths 3 and 1: 27 + 1 = 28 over the base network's 1. Kernels 3 and 5 have the mean 4.
    rate = 28**-0.5
    assert decided("paper").learning_rate == pytest.approx(rate, rel=1e-15)
    assert decided("paper", kernel_factor=True).learning_rate == pytest.approx(rate * 3 / 4, rel=1e-15)
    # Vertices 0, 1 and 2 have in-degrees 1, 1 and 2. The readout's deviation is 2 / 32.
    outer = {"first": 2.0, "readout": 4 / 32}
    assert decided("paper").variances == outer | {A: 2.0, C: 2.0}
    assert decided("paper", in_degree="target").variances == outer | {A: 2.0, C: 1.0}
    assert decided("paper", rate=False).learning_rate == 1
    assert decided("paper", initialisation=False) == Parametrisation(decided("paper").learning_rate)


def test_the_papers_rule_with_a_depth_offset_of_three() -> None:
    # The base network has one path of depth 3; here are depths 5 and 3.
    size = NetworkSize(width=32, readout_width=32, inputs=64, classes=10, depth_offset=3)
    assert decided("paper", size=size).learning_rate == pytest.approx(((125 + 27) / 27) ** -0.5, rel=1e-15)


def test_the_papers_rule_in_a_network_of_stages() -> None:
    variances = decided("paper", size=STACKED).variances
    assert variances["readout"] == 4 / 32
    assert [variances[name] for name in ("reduction_first", "reduction_second", "reduction_shortcut")] == [1, 2, 1]
    variances = decided("paper", size=STACKED, in_degree="target").variances
    assert [variances[name] for name in ("reduction_first", "reduction_second", "reduction_shortcut")] == [2, 1, 1]


def test_the_released_code_counts_dead_edges() -> None:
    # Vertex 1 is reached by nothing, so the edge from it is dead, and vertex 2 has one live edge of two.
    last = Edge(2, 3, CONV3)
    graph = CellGraph(4, (Edge(0, 2, SKIP), Edge(1, 2, CONV3), last))
    assert decided("paper", graph).variances[last] == 2
    assert decided("paper", graph, in_degree="released").variances[last] == 1


def test_in_800_cells_counting_dead_edges_changes_the_variances() -> None:
    graphs = [graph for graph in map(NAS_BENCH_201.graph_at, range(NAS_BENCH_201.size)) if graph.connected]
    dead = [graph for graph in graphs if graph.in_degrees_of_all_edges != graph.in_degrees]
    assert sum(decided("paper", graph) != decided("paper", graph, in_degree="released") for graph in dead) == 800


@given(cell_graphs(), st.integers(1, 3))
def test_the_papers_rule_is_the_scaling_of_recipes(graph: CellGraph, offset: int) -> None:
    if graph.connected:
        size = NetworkSize(16, 16, 9, 10, depth_offset=offset)
        assert decided("paper", graph, size).learning_rate == learning_rate_factor(graph, BASE, depth_offset=offset)


def test_depth_alone() -> None:
    assert decided("depth") == Parametrisation(3**-1.5)
    assert decided("depth", exponent=-1).learning_rate == pytest.approx(1 / 3)


def test_effective_depth() -> None:
    # The skip is the shortest path. It ends in an addition, which counts one: depth 1 + 1.
    assert effective_depth(GRAPH) == 1
    assert decided("effective_depth") == Parametrisation(2**-1.5)
    # Without the skip there is no addition, and two layers.
    assert effective_depth(CellGraph(3, (A, C))) == 2
    # Three edges into one vertex are one addition; a dead edge is none.
    three = CellGraph(4, (Edge(0, 1, SKIP), Edge(0, 2, SKIP), Edge(0, 3, CONV3), Edge(1, 3, CONV3), Edge(2, 3, CONV3)))
    assert effective_depth(three) == 2
    assert effective_depth(CellGraph(3, (Edge(0, 2, CONV3), Edge(1, 2, CONV3)))) == 1


@given(st.integers(1, 8))
def test_on_chains_all_rules_by_depth_agree(layers: int) -> None:
    chain = CellGraph(layers + 1, tuple(Edge(vertex, vertex + 1, CONV3) for vertex in range(layers)))
    expected = (layers + 1) ** -1.5
    for name in ("paper", "depth", "effective_depth"):
        assert decided(name, chain).learning_rate == pytest.approx(expected, rel=1e-12)


def test_mup() -> None:
    # Half as wide as the base: r = 1/2.
    found = decided("mup", base_width=64)
    assert found.learning_rate == 1
    assert found.layer_rates == {"first": 0.5, "vectors": 0.5, "readout": 2.0}
    assert found.variances == {A: 2.0, C: 2.0, "first": 2.0, "readout": 4 / 32}
    assert found.adam == Rates(layer_rates={A: 2.0, C: 2.0, "readout": 2.0})
    assert decided("mup", base_width=64).uniform is False
    assert set(decided("mup", base_width=32).layer_rates.values()) == {1.0}
    assert decided("mup", size=STACKED).adam == Rates(
        layer_rates=dict.fromkeys((A, C, "reduction_first", "reduction_second", "reduction_shortcut", "readout"), 8.0)
    )


def test_complete_p() -> None:
    # One residual branch, A then C, beside the skip; 2 cells in each of 3 stages are 6 of them.
    found = decided("complete_p", size=STACKED)
    assert found.multipliers == {C: 1 / 6}
    assert found.layer_rates == {A: 6.0, C: 6.0}
    assert found.adam == Rates(layer_rates={A: 1.0, C: 1.0})
    half = decided("complete_p", size=STACKED, alpha=0.5)
    assert half.multipliers == {C: 6**-0.5}
    assert half.layer_rates == {A: 1.0, C: 1.0}
    assert half.adam is not None
    assert half.adam.layer_rates == {A: pytest.approx(6**-0.5), C: pytest.approx(6**-0.5)}
    # Without a skip nothing is a branch.
    chain = decided("complete_p", CellGraph(3, (A, C)), STACKED)
    assert (chain.multipliers, chain.layer_rates) == ({}, {})
    # Two branches after one another.
    two = CellGraph(3, (A, Edge(0, 1, CONV3), C))
    assert complete_p.rule(CellGraph(2, (A, Edge(0, 1, SKIP))), MLP).multipliers == {A: 1.0}
    assert complete_p.rule(two, MLP).multipliers == {}


def test_the_measured_rule(tmp_path: Path) -> None:
    shares = {"out=x": 0.4, GRAPH.network_class: 0.1}
    assert decided("measured", shares=shares).learning_rate == pytest.approx(4)
    assert decided("measured", shares=shares, exponent=0.5).learning_rate == pytest.approx(0.5)
    table = tmp_path / "shares.csv"
    table.write_text(
        "network_class,relative_gradient\n" + "\n".join(f"{name},{share}" for name, share in shares.items())
    )
    assert decided("measured", shares=str(table)) == decided("measured", shares=shares)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"out=x": 0.4}, "no measurement of the network c0=conv"),
        ({GRAPH.network_class: 0.4}, "no measurement of the base network out=x"),
        ({GRAPH.network_class: math.nan, "out=x": 1.0}, "has nan for"),
        ("/nowhere.csv", "shares=/nowhere.csv cannot be read"),
    ],
)
def test_a_measurement_that_is_missing_or_damaged(shares: object, said: str) -> None:
    with pytest.raises(NasRetrainError, match=r"^rule measured for cell a cell: shares") as error:
        decided("measured", shares=shares)
    assert said in str(error.value)


def test_a_permutation_hands_out_the_same_factors() -> None:
    cells = NAS_BENCH_201.sample(30, seed=5)
    graphs = [NAS_BENCH_201.graph_at(cell) for cell in cells]
    size = NetworkSize(8, 32, 9, 10, peers=Peers(tuple(graphs)))
    turned = NetworkSize(8, 32, 9, 10, peers=Peers(tuple(reversed(graphs))))
    own = [decided("paper", graph, size).learning_rate for graph in graphs]
    drawn = [decided("permuted", graph, size, of="paper").learning_rate for graph in graphs]
    assert drawn == [decided("permuted", graph, turned, of="paper").learning_rate for graph in graphs]
    assert sorted(drawn) == sorted(own)
    assert drawn != own
    assert drawn != [decided("permuted", graph, size, seed=1).learning_rate for graph in graphs]
    # All else stays with its network.
    assert decided("permuted", graphs[0], size).variances == decided("paper", graphs[0], size).variances
    scaled = decided("permuted", graphs[0], size, of="depth", parameters={"exponent": 0.0})
    assert scaled.learning_rate == 1
    with pytest.raises(NasRetrainError, match="none of the networks among which factors are permuted"):
        decided("permuted", GRAPH, size)


def test_the_base_network_keeps_its_rate() -> None:
    for name in set(shipped()) - {"permuted", "measured"}:
        assert decided(name, BASE).learning_rate == 1
    assert decided("measured", BASE, shares={"out=x": 0.3}).learning_rate == 1
