"""What a rule decides, in networks: against an initialisation, multipliers and rates that are written out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_retrain.benches import build as networks
from nas_retrain.benches import registry
from nas_retrain.benches.dags import space
from nas_retrain.benches.nas_bench_201 import network as network_201
from nas_retrain.benches.nas_bench_201 import space as nas_bench_201
from nas_retrain.benches.parametrised import UpdateFactors, update_factors
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph, Edge
from nas_retrain.theory.rule import VECTORS, Parametrisation, find, weighted_edges
from tests.conftest import MakeSettings

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
"""Two convolutions of one source and kernel size, which are joined."""
CONSTANTS = "|none~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
"""With a bias, and with layers that read it."""


def settings_of(make_settings: MakeSettings, kind: str) -> Settings:
    if kind in ("mlp", "cnn"):
        return make_settings(f"bench={kind}", "dataset.image_size=4", config="verify")
    return make_settings("dataset.image_size=8", f"network.normalisation={kind}")


GRAPHS = {
    "batch": nas_bench_201.parse(CELL),
    "none": nas_bench_201.parse(CELL).without_normalisation,
    "mlp": space.parse("2_12_022"),
    "cnn": space.parse("2_12_022/3"),
}


def decided_for(graph: CellGraph, number: int, *, outer: bool) -> Parametrisation:
    """Something else for every layer."""
    edges = weighted_edges(graph)
    rates = {edge: 1.5 + place + number for place, edge in enumerate(edges)} | {"first": 0.5, "readout": 3.0}
    if outer:
        rates |= {VECTORS: 0.7, "reduction_first": 0.3, "reduction_second": 0.4, "reduction_shortcut": 1.7}
    return Parametrisation(
        0.1,
        rates,
        {edge: 0.5 + 0.1 * place for place, edge in enumerate(edges)},
        {edge: 0.4 + 0.3 * place for place, edge in enumerate(edges)},
    )


def step(
    network: networks.Network, factors: UpdateFactors | None, images: Tensor, labels: Tensor, decay: float, rate: float
) -> None:
    logits = network(images).view(len(labels) * network.members, -1)
    network.zero_grad()
    functional.cross_entropy(logits, labels.repeat_interleave(network.members), reduction="sum").backward()
    with torch.no_grad():
        for place, parameter in enumerate(network.parameters()):
            rates = factors.rates[place] if factors else 1.0
            decays = factors.decays[place] if factors and factors.decays else 1.0
            parameter.sub_(rate * rates * (parameter.grad + decay * decays * parameter))


def batch(settings: Settings, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = settings.dataset.image_size
    images = torch.randn(6, settings.dataset.image_channels, size, size, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, settings.dataset.classes, (6,), generator=generator)


def factors_of(network: networks.Network, decided: Sequence[Parametrisation | None]) -> UpdateFactors | None:
    return update_factors(list(network.parameters()), network.parameter_blocks, decided)


def with_multipliers(network: networks.Network, decided: Parametrisation) -> networks.Network:
    """The network with its multipliers as multiplications, on what each layer puts out."""

    def multiplied(_module: nn.Module, _read: object, output: Tensor, by: Tensor) -> Tensor:
        return output * by.view(1, -1, *[1] * (output.ndim - 2))

    if isinstance(network, network_201.Network):
        for block in network.blocks:
            if isinstance(block, network_201.Cell):
                for vertex in block.vertices:
                    for group, convolution, norm in vertex.layers():
                        rows = convolution.weight.shape[0] // len(group)
                        by = [torch.full((rows,), decided.multipliers[edge], dtype=torch.float64) for edge in group]
                        norm.register_forward_hook(partial(multiplied, by=torch.cat(by)))
        return network
    kernel, weights = network._layer, {id(w): edge for edge, w in zip(network.layer_edges, network.layers, strict=True)}
    network._layer = lambda value, weight: (
        kernel(value, weight) * (decided.multipliers[weights[id(weight)]] if id(weight) in weights else 1.0)
    )
    return network


@pytest.mark.parametrize("kind", list(GRAPHS))
def test_a_multiplier_is_what_is_multiplied_with_its_rate_and_its_decay(kind: str, make_settings: MakeSettings) -> None:
    settings, graph = settings_of(make_settings, kind), GRAPHS[kind]
    decided = decided_for(graph, 0, outer=kind in ("batch", "none"))
    plain = Parametrisation(decided.learning_rate, decided.layer_rates, decided.variances)
    build = partial(networks.build, graph, settings, initialisation="he", seed=1)
    ours, theirs = build(decided=decided).double(), with_multipliers(build(decided=plain).double(), decided)
    factors = [factors_of(network, [of]) for network, of in ((ours, decided), (theirs, plain))]
    for seed in range(4):
        images, labels = batch(settings, seed)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-6)
        for network, of in zip((ours, theirs), factors, strict=True):
            step(network, of, images, labels, decay=0.1, rate=0.01)
    assert not torch.equal(next(ours.parameters()), next(build(decided=decided).double().parameters()))


@pytest.mark.parametrize("kind", list(GRAPHS))
def test_members_are_trained_as_each_alone_whatever_was_decided_for_the_others(
    kind: str, make_settings: MakeSettings
) -> None:
    settings, graph = settings_of(make_settings, kind), GRAPHS[kind]
    decided = [None, *(decided_for(graph, number, outer=kind in ("batch", "none")) for number in range(2))]
    alone = [
        networks.build(graph, settings, initialisation="he", seed=seed, decided=one) for seed, one in enumerate(decided)
    ]
    joined = networks.join(alone).double()
    apart = [network.double() for network in alone]
    factors = factors_of(joined, decided)
    for seed in range(3):
        images, labels = batch(settings, seed)
        step(joined, factors, images.repeat(1, 3, 1, 1), labels, decay=0.1, rate=0.01)
        for network, one in zip(apart, decided, strict=True):
            step(network, factors_of(network, [one]), images, labels, decay=0.1, rate=0.01)
    for place, parameter in enumerate(joined.parameters()):
        parts = [list(network.parameters())[place] for network in apart]
        torch.testing.assert_close(parameter, torch.cat(parts), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [*GRAPHS, "constants"])
def test_every_row_of_every_parameter_belongs_to_a_layer(kind: str, make_settings: MakeSettings) -> None:
    graph = nas_bench_201.parse(CONSTANTS) if kind == "constants" else GRAPHS[kind]
    settings = settings_of(make_settings, "batch" if kind == "constants" else kind)
    network = networks.build(graph, settings, initialisation="stock", seed=0)
    size = registry.size_of(settings)
    matrices: dict[object, int] = {}
    for parameter, parts in zip(network.parameters(), network.parameter_blocks, strict=True):
        assert sum(part.rows for part in parts) == len(parameter)
        assert all(part.vector == (parameter.ndim == 1) for part in parts)
        for part in parts:
            if not part.vector:
                matrices[part.layer] = matrices.get(part.layer, 0) + 1
                assert isinstance(part.layer, Edge | str)
    cells = size.stages * size.cells_per_stage
    expected: dict[object, int] = dict.fromkeys(weighted_edges(graph), cells)
    expected |= {layer: 2 if layer.startswith("reduction") else 1 for layer in size.outer}
    assert matrices == expected


@pytest.mark.parametrize("in_degree", ["source", "target", "released"])
def test_the_papers_rule_draws_what_the_papers_initialisation_draws(
    in_degree: str, make_settings: MakeSettings
) -> None:
    settings = make_settings("dataset.image_size=8")
    for arch in (CELL, CONSTANTS):
        graph = nas_bench_201.parse(arch)
        decided = find("paper", {"in_degree": in_degree}).decide(graph, registry.size_of(settings), arch)
        ours = networks.build(graph, settings, initialisation="stock", seed=4, decided=decided)
        theirs = networks.build(graph, settings, initialisation=in_degree, seed=4)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, other)


def test_rates_of_layers_are_those_of_parameter_groups(make_settings: MakeSettings) -> None:
    """Against torch's own optimiser with a group for each parameter, in a network where no two layers are joined."""
    settings, graph = settings_of(make_settings, "mlp"), GRAPHS["mlp"]
    decided = find("mup", {"base_width": 16}).decide(graph, registry.size_of(settings), "a cell")
    build = partial(networks.build, graph, settings, initialisation="he", seed=1, decided=decided)
    ours, theirs = build().double(), build().double()
    assert decided.layer_rates["first"] != decided.layer_rates["readout"]
    groups = [
        {"params": list(theirs.layers), "lr": 0.01},
        {"params": [theirs.first], "lr": 0.01 * decided.layer_rates["first"]},
        {"params": [theirs.readout], "lr": 0.01 * decided.layer_rates["readout"]},
    ]
    sgd = torch.optim.SGD(groups, lr=0.01, weight_decay=0.1)
    for seed in range(3):
        images, labels = batch(settings, seed)
        sgd.zero_grad()
        functional.cross_entropy(theirs(images), labels, reduction="sum").backward()
        sgd.step()
        step(ours, factors_of(ours, [decided]), images, labels, decay=0.1, rate=0.01)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_without_layers_of_their_own_there_are_no_factors(make_settings: MakeSettings) -> None:
    settings = settings_of(make_settings, "batch")
    network = networks.build(GRAPHS["batch"], settings, initialisation="stock", seed=0)
    assert factors_of(network, [None, Parametrisation(0.3, variances={"first": 1.0})]) is None
