"""The network against the plain one: one module per edge, written from the benchmark's description alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import cache
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas_retrain.benches.build import build as build_network
from nas_retrain.benches.build import join
from nas_retrain.benches.nas_bench_201 import network as networks
from nas_retrain.benches.nas_bench_201 import space, sums
from nas_retrain.benches.nas_bench_201.plain_network import PlainCell, PlainNetwork, PlainReduction
from nas_retrain.benches.registry import Sizes
from nas_retrain.execution.precision import forward
from nas_retrain.theory.graph import CellGraph, Edge
from nas_retrain.theory.scaling import InDegree, Initialisation, variance_factors
from tests.conftest import MakeSettings
from tests.strategies import NAS_BENCH_201, cells, cells_with_constants

SMALL = {"channels": 4, "cells_per_stage": 2, "classes": 7, "image_channels": 3}


def pairs(network: networks.Network, oracle: PlainNetwork) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of the oracle's with the part of the network's parameters and buffers that corresponds to it."""
    matched: list[tuple[Tensor, Tensor]] = []

    def norm(theirs: nn.Module, ours: nn.Module, part: slice = slice(None)) -> None:
        assert isinstance(ours, type(theirs))
        if isinstance(ours, nn.Identity):
            return
        matched.extend(
            (getattr(theirs, name), getattr(ours, name)[part])
            for name in ("weight", "bias", "running_mean", "running_var")
        )

    matched.append((oracle.stem[0].weight, network.stem.weight))
    norm(oracle.stem[1], network.stem_norm)
    for theirs, ours in zip(oracle.blocks, network.blocks, strict=True):
        if isinstance(theirs, PlainReduction):
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
        if ours.constants is not None:
            for edge, bias in zip(ours.constants.bias_edges, ours.constants.biases, strict=True):
                matched.append((theirs.edges[f"{edge.source}{edge.target}"][2].bias, bias))
            layers = zip(ours.constants.convolutions, ours.constants.norms, strict=True)
            for edge, (convolution, batch_norm) in zip(ours.constants.layer_edges, layers, strict=True):
                module = theirs.edges[f"{edge.source}{edge.target}"]
                matched.append((module[1].weight, convolution.weight))
                norm(module[2], batch_norm)
    norm(oracle.last[0], network.last_norm)
    matched.append((oracle.classifier.weight, network.readout.weight))
    matched.append((oracle.classifier.bias, network.readout.bias))
    return matched


def build(graph: CellGraph, initialisation: Initialisation = "stock", seed: int = 0, **sizes: int) -> networks.Network:
    torch.manual_seed(seed)
    network = networks.Network(graph, **sizes)
    networks.initialise(network, initialisation)
    return network.to(memory_format=torch.channels_last)


def build_both(
    arch: str, initialisation: Initialisation, seed: int = 0, *, normalised: bool = True
) -> tuple[networks.Network, PlainNetwork]:
    network = build(space.parse(arch), initialisation, seed, **SMALL, normalised=normalised)
    oracle = PlainNetwork(arch, **SMALL, normalised=normalised)
    with torch.no_grad():
        for theirs, ours in pairs(network, oracle):
            theirs.copy_(ours)
    return network.double(), oracle.double()


@cache
def random_cells() -> list[int]:
    connected = [cell for cell in range(NAS_BENCH_201.size) if NAS_BENCH_201.graph_at(cell).connected]
    return random.Random(0).sample(connected, 100)


@pytest.mark.parametrize("initialisation", ["source", "stock"])
@pytest.mark.parametrize("joined_at_most", [networks.JOINED_AT_MOST, 0])
@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_outputs_and_gradients_equal_one_module_per_edge(
    initialisation: Initialisation, joined_at_most: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "JOINED_AT_MOST", joined_at_most)
    for cell in random_cells()[part::5]:
        outputs_and_gradients_are_equal(NAS_BENCH_201.arch_at(cell), initialisation, seed=cell)


@pytest.mark.parametrize("joined_at_most", [networks.JOINED_AT_MOST, 0])
def test_without_normalisation_outputs_and_gradients_equal_one_module_per_edge(
    joined_at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "JOINED_AT_MOST", joined_at_most)
    for arch in [NAS_BENCH_201.arch_at(cell) for cell in random_cells()[::8]] + [CONSTANT_LAYER, DEAD_EDGE, DENSE]:
        outputs_and_gradients_are_equal(arch, "target", seed=1, normalised=False)


@pytest.mark.parametrize("normalised", [True, False])
def test_by_way_of_sums_outputs_and_gradients_equal_one_module_per_edge(
    normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "in_one_kernel", lambda _: True)
    for arch in [NAS_BENCH_201.arch_at(cell) for cell in random_cells()[::8]] + [DEAD_EDGE, DENSE]:
        outputs_and_gradients_are_equal(arch, "stock", seed=1, normalised=normalised)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_by_way_of_sums_networks_have_the_same_bits(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward in every cell; backward too where no vertex is read by more than convolutions, since only there nothing
    is added up in another order."""
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    for arch in [NAS_BENCH_201.arch_at(cell) for cell in random_cells()[::8]] + [DENSE]:
        found = []
        for by_sums in (False, True):
            monkeypatch.setattr(sums, "in_one_kernel", lambda _, by_sums=by_sums: by_sums)
            network = build(space.parse(arch), "stock", 1, **SMALL)
            logits = forward(network, images, precision)
            logits.float().square().mean().backward()
            gradients = [cast("Tensor", parameter.grad) for parameter in network.parameters()]
            found.append(([logits.detach(), *network.buffers()], gradients))
        (ours, our_gradients), (theirs, their_gradients) = found
        assert all(map(torch.equal, ours, theirs))
        if "skip" not in arch and "pool" not in arch:
            assert all(map(torch.equal, our_gradients, their_gradients))
        for one, other in zip(our_gradients, their_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2 if precision == "bfloat16" else 1e-4, atol=1e-5)


def outputs_and_gradients_are_equal(
    arch: str, initialisation: Initialisation, seed: int, *, normalised: bool = True
) -> None:
    network, oracle = build_both(arch, initialisation, seed, normalised=normalised)
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


def gradient_pairs(network: networks.Network, oracle: PlainNetwork) -> list[tuple[Tensor, Tensor]]:
    """The gradients of matching parameters: the same pairing, run on copies that hold gradients as their values."""
    sizes = SMALL | {"normalised": network.sizes["normalised"]}
    ours = build(space.parse(arch_of(oracle)), **sizes).double()
    theirs = PlainNetwork(arch_of(oracle), **sizes).double()
    with torch.no_grad():
        for copy, model in ((ours, network), (theirs, oracle)):
            for held, parameter in zip(copy.parameters(), model.parameters(), strict=True):
                if parameter.grad is not None:  # a dead edge has none
                    held.copy_(parameter.grad)
            for held in copy.buffers():
                held.zero_()
    return pairs(ours, theirs)


def arch_of(oracle: PlainNetwork) -> str:
    cell = next(block for block in oracle.blocks if isinstance(block, PlainCell))
    return space.format_cell(tuple(cell.operations[ends] for ends in space.EDGES))


def trained(
    archs: list[str], batch_norm_biases: float, steps: int, compare: Callable[[str, bool, Tensor, Tensor], None]
) -> None:
    """Train the network and one module for each edge of each cell alike, and compare their outputs.

    batch_norm_biases: the standard deviation of all BatchNorm biases at the start, of dead convolutions too. compare:
    called with the cell, whether in training mode, and the outputs of the two, after every step and at the end.
    """
    for seed, arch in enumerate(archs):
        generator = torch.Generator().manual_seed(seed)
        network, oracle = (
            build(space.parse(arch), "stock", seed, **TINY).double(),
            PlainNetwork(arch, **TINY),
        )
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0.0, batch_norm_biases, generator=generator)
                if isinstance(module, networks.Constants):
                    for bias in module.biases:
                        bias.normal_(0.0, batch_norm_biases, generator=generator)
            for module in oracle.double().modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.bias.normal_(0.0, batch_norm_biases, generator=generator)
            for theirs, ours in pairs(network, oracle):
                theirs.copy_(ours)
        sgd = {
            model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
            for model in (network, oracle)
        }
        for step in range(steps + 1):
            images = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
            labels = torch.randint(0, TINY["classes"], (4,), generator=generator)
            outputs = {model: model(images) for model in sgd}
            compare(arch, True, outputs[network], outputs[oracle])
            if step == steps:
                break
            for model, optimiser in sgd.items():
                optimiser.zero_grad()
                nn.functional.cross_entropy(outputs[model], labels).backward()
                optimiser.step()
        network.eval()
        oracle.eval()
        compare(arch, False, network(images), oracle(images))


TINY = {"channels": 2, "cells_per_stage": 1, "classes": 3, "image_channels": 1}


def one_of_each_class(cells: Iterable[int], number: int | None = None) -> list[str]:
    """A random member of each network class among these cells, of a random choice of so many classes."""
    members: dict[int, list[int]] = {}
    for cell in cells:
        members.setdefault(NAS_BENCH_201.training_classes(None)[cell], []).append(cell)
    drawn = random.Random(1)
    classes = sorted(members) if number is None else drawn.sample(sorted(members), number)
    return [NAS_BENCH_201.arch_at(drawn.choice(members[network_class])) for network_class in classes]


@cache
def with_constants() -> list[int]:
    return [cell for cell in range(NAS_BENCH_201.size) if NAS_BENCH_201.graph_at(cell).constants]


def makes_a_constant_of_a_bias(arch: str) -> bool:
    """Whether a 1x1 convolution reads what is made of another's bias."""
    operations = dict(zip(space.EDGES, space.parse_operations(arch), strict=True))
    chain = operations[1, 2].startswith("nor_conv") and operations[2, 3] == "nor_conv_1x1"
    return chain and operations[0, 1] == operations[0, 2] == "none"


@pytest.mark.parametrize(
    "number",
    [12, pytest.param(40, marks=pytest.mark.slow)],
)
def test_training_equals_that_of_one_module_per_edge_with_convolutions_of_unreached_vertices(
    number: int,
) -> None:
    def compare(arch: str, training: bool, ours: Tensor, theirs: Tensor) -> None:
        if training or not makes_a_constant_of_a_bias(arch):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    without = [cell for cell in random_cells() if cell not in with_constants()]
    of_images = [cell for cell in with_constants() if NAS_BENCH_201.graph_at(cell).constant_layers]
    archs = (
        one_of_each_class(with_constants(), number) + one_of_each_class(without, 5) + one_of_each_class(of_images, 4)
    )
    trained(archs, batch_norm_biases=1.0, steps=5, compare=compare)


def test_a_1x1_convolution_of_a_bias_differs_only_in_evaluation_and_only_from_biases_that_are_not_zero() -> None:
    """A running mean lags behind the constant that such a convolution makes. Biases that are 0 at the start, as they
    are where training starts, stay 0 there."""
    archs = one_of_each_class(
        filter(lambda cell: makes_a_constant_of_a_bias(NAS_BENCH_201.arch_at(cell)), with_constants())
    )
    differences: dict[tuple[float, bool], float] = {}
    for deviation in (0.0, 1.0):

        def compare(_: str, training: bool, ours: Tensor, theirs: Tensor, deviation: float = deviation) -> None:
            largest = float((ours - theirs).abs().max().detach())
            which = deviation, training
            differences[which] = max(differences.get(which, 0.0), largest)

        trained(archs, deviation, steps=5, compare=compare)
    assert differences[0.0, True] < 1e-9
    assert differences[0.0, False] < 1e-9
    assert differences[1.0, True] < 1e-9
    assert differences[1.0, False] > 1e-2


def test_constants_of_members_are_trained_apart() -> None:
    """Networks side by side, with constant layers, come to what each comes to alone."""
    arch = "|none~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    alone = [build(space.parse(arch), "source", seed, **TINY) for seed in range(3)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in alone:
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    joined = join(alone).double()
    alone = [network.double() for network in alone]
    assert sum(len(block.constants.biases) for block in joined.blocks if isinstance(block, networks.Cell)) == 2 * 3
    for _ in range(3):
        images = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
        apart = [network(images) for network in alone]
        found = joined(images.repeat(1, 3, 1, 1))
        torch.testing.assert_close(found, torch.cat(apart, 1), rtol=1e-9, atol=1e-9)
        for model, output in [(joined, found), *zip(alone, apart, strict=True)]:
            model.zero_grad()
            output.square().sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(parameter.grad, alpha=0.01)
    joined.eval()
    images = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    expected = torch.cat([network.eval()(images) for network in alone], 1)
    torch.testing.assert_close(joined(images.repeat(1, 3, 1, 1)), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(st.one_of(cells, cells_with_constants), st.booleans())
def test_parameters_and_flops_are_those_of_the_modules(arch: str, normalised: bool) -> None:
    graph = space.parse(arch)
    if not graph.connected:
        return
    sizes = {"channels": 8, "cells_per_stage": 1, "classes": 10, "image_channels": 1, "normalised": normalised}
    oracle = PlainNetwork(arch, **sizes, dead_edges=False)
    expected = sum(parameter.numel() for parameter in oracle.parameters())
    for edge in graph.biases if normalised else ():  # of all that the module has, its BatchNorm's bias alone acts
        modules = [block.edges[f"{edge.source}{edge.target}"] for block in oracle.blocks if hasattr(block, "edges")]
        expected -= sum(module[1].weight.numel() + module[2].weight.numel() for module in modules)
    assert NAS_BENCH_201.parameters(graph, Sizes(**sizes, image_size=16)) == expected
    network = build(graph, **sizes)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected

    counted = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        pixels = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        counted += module.weight.numel() * pixels

    of_constants = [f".{edge.source}{edge.target}." for edge in graph.constants]
    for name, module in oracle.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not any(edge in name for edge in of_constants):
            module.register_forward_hook(count)
    oracle(torch.zeros(2, 1, 16, 16))
    assert NAS_BENCH_201.flops(graph, Sizes(**sizes, image_size=16)) == counted


def test_dead_branches_are_not_built() -> None:
    arch = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|"
    network = build(space.parse(arch), **SMALL)
    base = build(space.BASE, **SMALL)
    assert [tuple(p.shape) for p in network.parameters()] == [tuple(p.shape) for p in base.parameters()]


@pytest.mark.parametrize("size", [7, 8, 14, 16, 28, 32])
def test_any_image_size_works(size: int) -> None:
    network = build(space.BASE, **SMALL)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


DENSE = "|nor_conv_3x3~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"


CONSTANT_LAYER = "|none~0|+|none~0|nor_conv_1x1~1|+|nor_conv_3x3~0|none~1|nor_conv_3x3~2|"
DEAD_EDGE = "|none~0|+|skip_connect~0|avg_pool_3x3~1|+|nor_conv_3x3~0|none~1|nor_conv_3x3~2|"


@pytest.mark.parametrize("arch", [DENSE, CONSTANT_LAYER, DEAD_EDGE])
@pytest.mark.parametrize("in_degree", ["source", "target", "released"])
def test_in_degree_initialisation_has_the_rule_s_variances(in_degree: InDegree, arch: str) -> None:
    graph = space.parse(arch)
    network = build(graph, in_degree, 3, channels=64, cells_per_stage=1, classes=100, image_channels=3)
    factors = variance_factors(graph, in_degree)

    def variance(weight: Tensor) -> float:
        return float(weight.detach().var()) * weight[0].numel()

    weights: list[tuple[Edge, Tensor]] = [
        pair for block in network.blocks if isinstance(block, networks.Cell) for pair in block.weights()
    ]
    assert {edge for edge, _ in weights} == set(graph.layers + graph.constant_layers)
    for edge, weight in weights:
        assert variance(weight) == pytest.approx(factors[edge], rel=0.12)
    reduction = next(block for block in network.blocks if isinstance(block, networks.Reduction))
    found = [variance(module.weight) for module in (reduction.first, reduction.second, reduction.shortcut)]
    assert found == pytest.approx([2.0, 1.0, 1.0] if in_degree == "target" else [1.0, 2.0, 1.0], rel=0.1)
    assert float(network.readout.weight.detach().std()) == pytest.approx(2 / 256, rel=0.05)
    assert not network.readout.bias.any()


def test_without_normalisation_nothing_is_built_that_the_input_does_not_reach() -> None:
    for arch, live in ((CONSTANT_LAYER, {(0, 3)}), (DEAD_EDGE, {(0, 3), (2, 3)})):
        network = build(space.parse(arch), **SMALL, normalised=False)
        built = [edge for block in network.blocks if isinstance(block, networks.Cell) for edge, _ in block.weights()]
        assert {(edge.source, edge.target) for edge in built} == live
        assert not any(isinstance(module, nn.BatchNorm2d | networks.Constants) for module in network.modules())
        oracle = PlainNetwork(arch, **SMALL, dead_edges=False, normalised=False)
        assert sum(each.numel() for each in network.parameters()) == sum(each.numel() for each in oracle.parameters())


def test_members_without_normalisation_come_to_what_each_comes_to_alone() -> None:
    alone = [build(space.parse(DENSE), "target", seed, **SMALL, normalised=False) for seed in range(3)]
    joined = join(alone).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([network.double()(images) for network in alone], 1)
    torch.testing.assert_close(joined(images.repeat(1, 3, 1, 1)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arch", "factor"),
    [
        (DENSE, 1.0),  # convolutions alone: eq. 3 holds
        ("|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|", 1.0),
        ("|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|", 1.0),
        # A skip adds its source's 1 whatever the in-degree, and the convolution, halved, adds 1/2.
        ("|skip_connect~0|+|none~0|none~1|+|nor_conv_1x1~0|skip_connect~1|none~2|", 1.5),
    ],
)
def test_without_normalisation_target_in_degrees_carry_the_signal_through_a_cell(arch: str, factor: float) -> None:
    """The mean square of what a cell puts out over that of its input, in a wide network without zero padding's edge."""
    ratios = []
    for seed in range(2):
        network = build(
            space.parse(arch), "target", seed, channels=96, cells_per_stage=1, classes=2, image_channels=3,
            normalised=False,
        )  # fmt: skip
        x = torch.randn(4, 96, 16, 16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            z = network.blocks[0](x)[:, :, 4:-4, 4:-4]
        ratios.append(float(z.square().mean() / x.square().mean()))
    assert sum(ratios) / 2 == pytest.approx(factor, rel=0.1)


def test_stock_initialisation_is_torch_s_own() -> None:
    """Joined convolutions are drawn from the same uniform distribution as separate ones."""
    network = build(space.parse(DENSE), "stock", 3, channels=32, cells_per_stage=1, classes=10, image_channels=3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            values = module.weight.detach().flatten()
            assert float(values.abs().max()) <= bound
            assert float(values.var()) == pytest.approx(bound**2 / 3, rel=0.15)


def test_initialisation_depends_on_the_seed_alone(make_settings: MakeSettings) -> None:
    settings = make_settings()

    def first_weights(seed: int) -> Tensor:
        network = build_network(space.parse(DENSE), settings, initialisation="source", seed=seed)
        return next(network.parameters())

    torch.manual_seed(1)
    state = torch.get_rng_state()
    once = first_weights(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(once, first_weights(5))
    assert not torch.equal(once, first_weights(6))
