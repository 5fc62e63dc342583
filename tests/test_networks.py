"""The network against the reference: one module per edge, written from the benchmark's description alone."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from nas_retrain.graph import CellGraph, Edge
from nas_retrain.networks import build as build_network
from nas_retrain.networks import nas_bench_201 as networks
from nas_retrain.networks.reference import ReferenceCell, ReferenceNetwork, ReferenceReduction
from nas_retrain.scaling import InDegree, Initialisation, variance_factors
from nas_retrain.spaces import nas_bench_201
from tests.conftest import MakeSettings
from tests.strategies import cells

SMALL = {"channels": 4, "cells_per_stage": 2, "classes": 7, "image_channels": 3}


def pairs(network: networks.Network, oracle: ReferenceNetwork) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of the oracle's with the part of the network's parameters and buffers that corresponds to it."""
    matched: list[tuple[Tensor, Tensor]] = []

    def norm(theirs: nn.Module, ours: nn.Module, part: slice = slice(None)) -> None:
        matched.extend(
            (getattr(theirs, name), getattr(ours, name)[part])
            for name in ("weight", "bias", "running_mean", "running_var")
        )

    matched.append((oracle.stem[0].weight, network.stem.weight))
    norm(oracle.stem[1], network.stem_norm)
    for theirs, ours in zip(oracle.blocks, network.blocks, strict=True):
        if isinstance(theirs, ReferenceReduction):
            matched.append((theirs.a[1].weight, ours.first.weight))
            matched.append((theirs.b[1].weight, ours.second.weight))
            matched.append((theirs.downsample[1].weight, ours.shortcut.weight))
            norm(theirs.a[2], ours.first_norm)
            norm(theirs.b[2], ours.second_norm)
            continue
        for vertex in ours.vertices:
            for group, convolution, batch_norm in zip(vertex.joined, vertex.convolutions, vertex.norms, strict=True):
                width = convolution.in_channels
                for place, edge in enumerate(group):
                    part = slice(place * width, (place + 1) * width)
                    module = theirs.edges[f"{edge.source}{edge.target}"]
                    matched.append((module[1].weight, convolution.weight[part]))
                    norm(module[2], batch_norm, part)
    norm(oracle.last[0], network.last_norm)
    matched.append((oracle.classifier.weight, network.readout.weight))
    matched.append((oracle.classifier.bias, network.readout.bias))
    return matched


def build(graph: CellGraph, initialisation: Initialisation = "stock", seed: int = 0, **sizes: int) -> networks.Network:
    torch.manual_seed(seed)
    network = networks.Network(graph, **sizes)
    networks.initialise(network, initialisation)
    return network.to(memory_format=torch.channels_last)


def build_both(arch: str, initialisation: Initialisation, seed: int = 0) -> tuple[networks.Network, ReferenceNetwork]:
    network = build(nas_bench_201.parse(arch), initialisation, seed, **SMALL)
    oracle = ReferenceNetwork(arch, **SMALL)
    with torch.no_grad():
        for theirs, ours in pairs(network, oracle):
            theirs.copy_(ours)
    return network.double(), oracle.double()


RANDOM_CELLS = random.Random(0).sample(
    [cell for cell in range(len(nas_bench_201.cells())) if nas_bench_201.graph_at(cell).connected], 300
)


@pytest.mark.parametrize("initialisation", ["source", "stock"])
@pytest.mark.parametrize("joined_at_most", [networks.JOINED_AT_MOST, 0])
@pytest.mark.parametrize("part", range(5))
def test_outputs_and_gradients_equal_one_module_per_edge(
    initialisation: Initialisation, joined_at_most: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "JOINED_AT_MOST", joined_at_most)
    for cell in RANDOM_CELLS[part::5]:
        outputs_and_gradients_are_equal(nas_bench_201.cell_at(cell), initialisation, seed=cell)


def outputs_and_gradients_are_equal(arch: str, initialisation: Initialisation, seed: int) -> None:
    network, oracle = build_both(arch, initialisation, seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(5, 3, 12, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (5,), generator=generator)
    for step in range(2):  # training mode, then evaluation with the statistics that training left
        if step:
            network.eval()
            oracle.eval()
        ours, theirs = network(images), oracle(images)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        for model in (network, oracle):
            model.zero_grad()
        nn.functional.cross_entropy(ours, labels).backward()
        nn.functional.cross_entropy(theirs, labels).backward()
        gradients = gradient_pairs(network, oracle)
        assert gradients
        for theirs_gradient, ours_gradient in gradients:
            torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=1e-6, atol=1e-9)
    for theirs_state, ours_state in pairs(network, oracle):
        torch.testing.assert_close(ours_state, theirs_state, rtol=1e-8, atol=1e-9)


def gradient_pairs(network: networks.Network, oracle: ReferenceNetwork) -> list[tuple[Tensor, Tensor]]:
    """The gradients of matching parameters: the same pairing, run on copies that hold gradients as their values."""
    ours = build(nas_bench_201.parse(arch_of(oracle)), **SMALL).double()
    theirs = ReferenceNetwork(arch_of(oracle), **SMALL).double()
    with torch.no_grad():
        for copy, model in ((ours, network), (theirs, oracle)):
            for held, parameter in zip(copy.parameters(), model.parameters(), strict=True):
                if parameter.grad is not None:  # a dead edge has none
                    held.copy_(parameter.grad)
            for held in copy.buffers():
                held.zero_()
    return pairs(ours, theirs)


def arch_of(oracle: ReferenceNetwork) -> str:
    cell = next(block for block in oracle.blocks if isinstance(block, ReferenceCell))
    return nas_bench_201.format_cell(tuple(cell.operations[ends] for ends in nas_bench_201.EDGES))


@settings(max_examples=40)
@given(cells)
def test_parameters_and_flops_are_those_of_the_modules(arch: str) -> None:
    graph = nas_bench_201.parse(arch)
    if not graph.connected:
        return
    sizes = {"channels": 8, "cells_per_stage": 1, "classes": 10, "image_channels": 1}
    oracle = ReferenceNetwork(arch, **sizes, dead_edges=False)
    expected = sum(parameter.numel() for parameter in oracle.parameters())
    assert nas_bench_201.parameters(graph, **sizes) == expected
    network = build(graph, **sizes)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected

    counted = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        pixels = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        counted += module.weight.numel() * pixels

    for module in oracle.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    oracle(torch.zeros(2, 1, 16, 16))
    assert nas_bench_201.flops(graph, **sizes, image_size=16) == counted


def test_dead_branches_are_not_built() -> None:
    arch = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|"
    network = build(nas_bench_201.parse(arch), **SMALL)
    base = build(nas_bench_201.BASE, **SMALL)
    assert [tuple(p.shape) for p in network.parameters()] == [tuple(p.shape) for p in base.parameters()]


@pytest.mark.parametrize("size", [7, 8, 14, 16, 28, 32])
def test_any_image_size_works(size: int) -> None:
    network = build(nas_bench_201.BASE, **SMALL)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


DENSE = "|nor_conv_3x3~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"


@pytest.mark.parametrize("in_degree", ["source", "target"])
def test_in_degree_initialisation_has_the_rule_s_variances(in_degree: InDegree) -> None:
    graph = nas_bench_201.parse(DENSE)
    network = build(graph, in_degree, 3, channels=64, cells_per_stage=1, classes=100, image_channels=3)
    factors = variance_factors(graph, in_degree)

    def variance(weight: Tensor) -> float:
        return float(weight.detach().var()) * weight[0].numel()

    weights: list[tuple[Edge, Tensor]] = [
        pair
        for block in network.blocks
        if isinstance(block, networks.Cell)
        for v in block.vertices
        for pair in v.weights()
    ]
    assert {edge for edge, _ in weights} == set(graph.layers)
    for edge, weight in weights:
        assert variance(weight) == pytest.approx(factors[edge], rel=0.12)
    reduction = next(block for block in network.blocks if isinstance(block, networks.Reduction))
    found = [variance(module.weight) for module in (reduction.first, reduction.second, reduction.shortcut)]
    assert found == pytest.approx([1.0, 2.0, 1.0] if in_degree == "source" else [2.0, 1.0, 1.0], rel=0.1)
    assert float(network.readout.weight.detach().std()) == pytest.approx(2 / 256, rel=0.05)
    assert not network.readout.bias.any()


def test_stock_initialisation_is_torch_s_own() -> None:
    """Joined convolutions are drawn from the same uniform distribution as separate ones."""
    network = build(
        nas_bench_201.parse(DENSE), "stock", 3, channels=32, cells_per_stage=1, classes=10, image_channels=3
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            values = module.weight.detach().flatten()
            assert float(values.abs().max()) <= bound
            assert float(values.var()) == pytest.approx(bound**2 / 3, rel=0.15)


def test_initialisation_depends_on_the_seed_alone(make_settings: MakeSettings) -> None:
    settings = make_settings()

    def first_weights(seed: int) -> Tensor:
        network = build_network(nas_bench_201.parse(DENSE), settings, initialisation="source", seed=seed)
        return next(network.parameters())

    torch.manual_seed(1)
    state = torch.get_rng_state()
    once = first_weights(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(once, first_weights(5))
    assert not torch.equal(once, first_weights(6))
