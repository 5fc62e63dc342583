"""The spaces of MLPs and CNNs of any graph, their networks, and the coordinate check on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional

from nas_retrain.benches import build, registry
from nas_retrain.benches.dags import network as dag_networks
from nas_retrain.benches.dags import space as dags
from nas_retrain.benches.registry import Sizes
from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings
from nas_retrain.studies.rate_prediction import coordinates
from nas_retrain.studies.rate_prediction.findings import slopes
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.scaling import GAIN_SQUARED, Initialisation, learning_rate_factor, variance_factors
from tests.conftest import MakeSettings, composed_once

CPU = torch.device("cpu")


@pytest.mark.parametrize(("vertices", "kernels"), [(2, (1,)), (3, (1,)), (4, (3, 5, 7))])
def test_the_enumeration_has_every_graph_once(vertices: int, kernels: tuple[int, ...]) -> None:
    space = dags.DagSpace("cnn", vertices, kernels)
    names = [space.arch_at(index) for index in range(space.size)]
    groups = [["".join(kinds) for kinds in itertools.product("012", repeat=target)] for target in range(1, vertices)]
    graphs = ["_".join(chosen) for chosen in itertools.product(*groups)]
    expected = [f"{graph}/{kernel}" if kernels != (1,) else graph for graph in graphs for kernel in kernels]
    assert names == expected
    assert space.graph_at(space.base_cell).network_class == dags.BASE.network_class
    for outside in (-1, space.size):
        with pytest.raises(NasRetrainError, match="out of range"):
            space.graph_at(outside)


@given(st.integers(0, 3**10 * 3 - 1))
def test_a_name_says_what_leads_where(index: int) -> None:
    arch = dags.DagSpace("cnn", 5, (3, 5, 7)).arch_at(index)
    graph = dags.parse(arch)
    text, kernel = arch.split("/")
    for target, group in enumerate(text.split("_"), start=1):
        for source, digit in enumerate(group):
            found = [edge.operation for edge in graph.edges if (edge.source, edge.target) == (source, target)]
            kinds = {"0": [], "1": ["skip"], "2": ["layer"]}[digit]
            assert [operation.kind for operation in found] == kinds
            assert all(operation.kernel_size == int(kernel) for operation in found if operation.kind == "layer")


@pytest.mark.parametrize("arch", ["", "3", "2_2", "2_02_02", "2_02_002/", "2_02_002/x", "2_02_0022", "2-02"])
def test_a_malformed_name_is_told(arch: str) -> None:
    with pytest.raises(NasRetrainError, match="Malformed network"):
        dags.parse(arch)


def test_a_sample_is_of_different_connected_networks() -> None:
    space = dags.DagSpace("mlp", 5, (1,))
    sample = space.sample(50, seed=3)
    assert sample == space.sample(50, seed=3)
    assert sample != space.sample(50, seed=4)
    assert len({space.graph_at(cell).network_class for cell in sample}) == 50
    assert all(space.graph_at(cell).connected for cell in sample)
    with pytest.raises(NasRetrainError, match="raise bench"):
        dags.DagSpace("mlp", 2, (1,)).sample(3, seed=0)  # there are two: a skip and a layer


def test_chains_have_the_rule_of_depth_alone() -> None:
    """Chains of L layers: factor (L + 1)^(-3/2), as known before the paper."""
    for layers in range(1, 9):
        factor = learning_rate_factor(dags.chain(layers), dags.BASE)
        assert math.isclose(factor, (layers + 1) ** -1.5)
    assert learning_rate_factor(dags.BASE, dags.BASE, kernel_factor=True) == 1.0


def test_gelu_s_gain_is_the_integral() -> None:
    square, _ = quad(lambda z: (z * norm.cdf(z)) ** 2 * norm.pdf(z), -12, 12, epsabs=1e-13)
    assert math.isclose(GAIN_SQUARED["gelu"], 1 / square, rel_tol=1e-9)


def bench_settings(make_settings: MakeSettings, bench: str, *overrides: str) -> Settings:
    return make_settings(f"bench={bench}", "network.channels=8", *overrides, config="verify")


def one_by_one(network: dag_networks.Network, graph: CellGraph, images: Tensor) -> Tensor:
    """The same network, vertex by vertex in paper eq. 1, for one member."""

    def linear(weight: Tensor, value: Tensor) -> Tensor:
        if weight.ndim == 2:
            return functional.linear(value, weight)
        return functional.conv2d(value, weight, padding="same")

    activate = {"relu": torch.relu, "gelu": functional.gelu}[network.activation]
    weights = dict(zip(network.layer_edges, network.layers, strict=True))
    values = {0: linear(network.first, images.flatten(1) if network.kind == "mlp" else images)}
    for vertex in range(1, graph.vertices):
        incoming = [edge for edge in graph.live.edges if edge.target == vertex]
        if incoming:
            values[vertex] = sum(
                linear(weights[edge], activate(values[edge.source]))
                if edge.operation.kind == "layer"
                else values[edge.source]
                for edge in incoming
            )
    last = activate(values[graph.vertices - 1])
    return functional.linear(last if last.ndim == 2 else last.mean((2, 3)), network.readout)


@pytest.mark.parametrize("bench", ["mlp", "cnn"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_networks_compute_equation_1_and_members_do_not_meet(
    make_settings: MakeSettings, bench: str, activation: str
) -> None:
    chosen = bench_settings(make_settings, bench, f"bench.activation={activation}")
    space = registry.of(chosen.bench)
    for cell in space.sample(12, seed=5):
        graph = space.graph_at(cell)
        ways: list[Initialisation] = ["he", "target", "stock"]
        alone = [build.build(graph, chosen, initialisation=way, seed=seed).double() for seed, way in enumerate(ways)]
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        together = build.join(alone).double()(images).view(4, 3, -1)
        for member, network in enumerate(alone):
            assert isinstance(network, dag_networks.Network)
            expected = one_by_one(network, graph, images[:, member : member + 1])
            torch.testing.assert_close(network(images[:, member : member + 1]), expected)
            torch.testing.assert_close(together[:, member], expected)


@pytest.mark.parametrize("bench", ["mlp", "cnn"])
@pytest.mark.parametrize("initialisation", ["stock", "he", "mup", "source", "target"])
def test_initial_variances_are_the_rule_s(
    make_settings: MakeSettings, bench: str, initialisation: Initialisation
) -> None:
    chosen = bench_settings(make_settings, bench, "network.channels=64", "bench.activation=gelu")
    graph = dags.parse("2_12_022/5" if bench == "cnn" else "2_12_022")
    network = build.build(graph, chosen, initialisation=initialisation, seed=1)
    assert isinstance(network, dag_networks.Network)
    gain = 1 / 3 if initialisation == "stock" else GAIN_SQUARED["gelu"]

    def factor(weight: Tensor) -> float:
        return float(weight.detach().var()) * weight[0].numel()

    assert factor(network.first) == pytest.approx(gain, rel=0.2)
    in_degree = initialisation if initialisation in ("source", "target") else None
    rule = variance_factors(graph, in_degree, gain)
    for edge, weight in zip(network.layer_edges, network.layers, strict=True):
        assert factor(weight) == pytest.approx(rule[edge], rel=0.1)
    narrow = initialisation in ("stock", "he")
    assert factor(network.readout) == pytest.approx(gain if narrow else gain**2 / 64, rel=0.2)


@settings(max_examples=30)
@given(st.data())
def test_flops_are_counted_layer_by_layer(data: st.DataObject) -> None:
    bench = data.draw(st.sampled_from(["mlp", "cnn"]))
    chosen = composed_once(f"bench={bench}", config="verify")
    space = registry.of(chosen.bench)
    graph = space.graph_at(data.draw(st.integers(0, space.size - 1)))
    if graph.connected:
        network = build.build(graph, chosen, initialisation="he", seed=0)
        assert isinstance(network, dag_networks.Network)
        pixels = 64 if bench == "cnn" else 1
        weights = [network.first, *network.layers]
        expected = sum(weight.numel() for weight in weights) * pixels + network.readout.numel()
        assert space.flops(graph, Sizes.of(chosen)) == expected


@pytest.fixture
def narrow_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("narrow_threads")
def test_the_first_step_s_change_is_flat_under_the_rule_and_not_under_one_rate(make_settings: MakeSettings) -> None:
    """Paper eq. 7 on fully connected networks, as exponents of power laws; and eq. 3 for the signal itself."""
    chosen = make_settings("bench=mlp", config="verify")
    data = batches.load(chosen.dataset, chosen.data_dir, CPU)
    found = slopes(coordinates.measure(chosen, data)).set_index(["arm", "sweep"])
    for sweep in ("depth", "width", "graph"):
        for way in ("source", "target"):
            assert abs(found.loc[(f"rule, in-degree of the {way}", sweep), "change_slope"]) < 0.35
        assert found.loc[("He, one rate", sweep), "change_slope"] > 0.5
    assert found.loc[("He, one rate", "depth"), "change_slope"] > 1.5
    for sweep in ("depth", "width", "graph"):
        assert abs(found.loc[("rule, in-degree of the target", sweep), "size_slope"]) < 0.15
    assert found.loc[("He, one rate", "graph"), "size_slope"] > 0.25


def test_settings_that_make_no_space_are_told(make_settings: MakeSettings) -> None:
    for wrong, told in [
        (("bench=mlp", "bench.kernel_sizes=[3]"), "bench.*fully connected"),
        (("bench=cnn", "bench.kernel_sizes=[3,4]"), "must be odd"),
        (("bench=cnn", "bench.vertices=1"), "bench.vertices"),
        (("bench=cnn", "bench.activation=tanh"), "bench.activation"),
        (("bench=cnn", "bench.widht=3"), "bench.widht: there is no such key"),
        (("bench=cnn", "recipe=[benchmark]"), "bench cnn has no accuracies to compare with"),
        (("bench=cnn", "recipe=[benchmark,grid_he]"), "bench cnn has no accuracies to compare with"),
    ]:
        with pytest.raises(NasRetrainError, match=told):
            make_settings(*(f"+{part}" if "widht" in part else part for part in wrong), config="verify")
    assert isinstance(make_settings("bench=cnn", config="verify").bench, dags.DagSettings)
