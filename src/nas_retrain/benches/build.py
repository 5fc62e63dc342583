"""From a cell's graph to a network. Each benchmark's own module `network` has the two functions that do it:
`build(graph, settings)` and `initialise(network, initialisation)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_retrain.benches import parametrised, registry
from nas_retrain.benches.parametrised import Blocks
from nas_retrain.benches.registry import Bench, Sizes
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import Parametrisation
from nas_retrain.theory.scaling import Initialisation


class Network(nn.Module):
    """A cell's network, or several members of it side by side: networks of one graph and size that differ in seed,
    initialisation or learning rate.

    It maps images (batch, members x image channels, height, width) to logits (batch, members x classes). Every
    parameter and buffer is the members' stacked along its first dimension, save buffers without dimensions.

    sizes: what its class takes beside graph and members, by name.
    """

    def __init__(self, graph: CellGraph, *, members: int = 1, **sizes: Any) -> None:  # noqa: ANN401 - names and numbers
        super().__init__()
        self.graph, self.members, self.sizes = graph, members, sizes

    @property
    def parameter_blocks(self) -> Blocks:
        """What the rows of each parameter belong to, in the order of `parameters()`; asked where a rule decides about
        single layers."""
        raise NotImplementedError

    def pre_activations(self, images: Tensor) -> list[Tensor | None]:
        """What every vertex of the graph holds, None for one that no path visits; asked of benchmarks with a
        coordinate check alone."""
        raise NotImplementedError


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm in the precision of its parameters, whatever its input's is. It does not count batches: nothing reads
    the counter where running statistics have a momentum, and each is a kernel a step."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None

    def forward(self, value: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return super().forward(value.to(self.weight.dtype))


class Convolution(nn.Conv2d):
    """A convolution without bias for each member, in the precision of its weights, whatever its input's is. It keeps
    the image's size but for its stride, and may be several that read the same, with their outputs side by side."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, members: int, stride: int = 1) -> None:
        super().__init__(
            members * inputs,
            members * outputs,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=members,
            bias=False,
        )

    def forward(self, value: Tensor) -> Tensor:
        """Map (batch, members x inputs, height, width) to (batch, members x outputs, height, width), over the stride,
        rounded up."""
        return super().forward(value.to(self.weight.dtype))


def read_out(features: Tensor, readout: nn.Linear, members: int) -> Tensor:
    """Each member's features times its rows of the readout's weights, in their precision, and its biases: (batch,
    members x features) to (batch, members x classes)."""
    weight, bias = readout.weight, readout.bias
    features = features.to(weight.dtype)
    if members == 1:
        return functional.linear(features, weight, bias.to(weight.dtype))
    by_member = features.view(len(features), members, -1)
    logits = torch.einsum("bmc,mkc->bmk", by_member, weight.view(members, -1, readout.in_features))
    return logits.flatten(1) + bias


def build(
    graph: CellGraph,
    settings: Settings,
    *,
    initialisation: Initialisation,
    seed: int,
    decided: Parametrisation | None = None,
) -> Network:
    """A network on the CPU, initialised from `seed` alone and laid out channels-last.

    decided: what a rule decided; layers that it leaves out are drawn as `initialisation` says.
    """
    module = _module(registry.of(settings.bench), "network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Network = module.build(graph, settings)
        module.initialise(network, initialisation)
        if decided is not None:
            parametrised.initialise(list(network.parameters()), network.parameter_blocks, decided)
        return network.to(memory_format=torch.channels_last)


def build_plain(arch: str, settings: Settings, *, dead_edges: bool) -> nn.Module:
    """A cell's network as its description reads, one module for each edge, to compare speed with.

    dead_edges: whether those without effect on the output are computed too.
    """
    plain: nn.Module = _module(registry.of(settings.bench), "plain_network").build(
        arch, Sizes.of(settings), dead_edges=dead_edges
    )
    return plain


def _module(bench: Bench, name: str) -> ModuleType:
    """A module beside a benchmark's space."""
    return import_module(f"{type(bench).__module__.rpartition('.')[0]}.{name}")


def join(networks: Sequence[Network]) -> Network:
    """Stack single-member networks of one graph and size side by side, copying their values."""
    if len(networks) == 1:
        return networks[0]
    first = networks[0]
    joined = type(first)(first.graph, **first.sizes, members=len(networks))
    joined.to(memory_format=torch.channels_last)
    load(joined, stacked([network.state_dict() for network in networks]))
    return joined


def stacked(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters and buffers by name, those of several networks of one graph and size stacked along the first
    dimension."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def load(network: Network, state: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers by name into a network, each into the memory where it lies."""
    for name, tensor in network.state_dict().items():
        tensor.copy_(state[name])
