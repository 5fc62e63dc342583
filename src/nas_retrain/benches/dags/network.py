"""Networks of the spaces "mlp" and "cnn": a first layer, a graph of layers without normalisation or biases, a readout.

A vertex holds pre-activations. Every layer of the graph and the readout read the activation of its source; the first
layer reads the image. In "cnn" layers are convolutions that keep the image's size, the first one with a 3x3 kernel,
and the readout follows a global average; in "mlp" they are fully connected.

`as_released` makes the networks of the paper's released code instead, which differ from its theory: the activation
follows each layer, so that a vertex is a sum of activated values and copies; every layer has a bias; a CNN's first
layer has its graph's kernel; and variances go by fan-out, with the readout's deviation 2 / classes.

Several members (networks of one graph that differ in seed, initialisation or learning rate) are computed side by side,
with every parameter stacked along its first dimension, as in `nas_bench_201`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_retrain.benches import build as build_module
from nas_retrain.benches.dags.space import DagSettings, first_kernel
from nas_retrain.benches.parametrised import Block, Blocks
from nas_retrain.benches.registry import Sizes
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph, Edge
from nas_retrain.theory.rule import Layer
from nas_retrain.theory.scaling import GAIN_SQUARED, Activation, Initialisation, in_degree_of, variance_factors

Kind = Literal["mlp", "cnn"]


class Network(build_module.Network):
    """A network, or several members of one graph side by side."""

    def __init__(
        self,
        graph: CellGraph,
        *,
        kind: Kind,
        activation: Activation,
        channels: int,
        classes: int,
        image_channels: int,
        image_size: int,
        as_released: bool = False,
        members: int = 1,
    ) -> None:
        super().__init__(
            graph,
            members=members,
            kind=kind,
            activation=activation,
            channels=channels,
            classes=classes,
            image_channels=image_channels,
            image_size=image_size,
            as_released=as_released,
        )
        self.kind, self.activation = kind, activation
        activations: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "gelu": functional.gelu}
        self.activate = activations[activation]
        self.as_released = as_released
        window = (first_kernel(graph, as_released=as_released),) * 2
        inputs = (image_channels, *window) if kind == "cnn" else (image_channels * image_size**2,)
        self.first = nn.Parameter(torch.empty(members * channels, *inputs))
        self.edges = sorted(graph.live.edges)
        self.layers = nn.ParameterList(
            torch.empty(members * channels, channels, *[edge.operation.kernel_size] * (2 if kind == "cnn" else 0))
            for edge in self.layer_edges
        )
        self.readout = nn.Parameter(torch.empty(members * classes, channels))
        self.biases = nn.ParameterList(
            torch.zeros(len(weight)) for weight in (self.weights.values() if as_released else ())
        )

    @property
    def layer_edges(self) -> list[Edge]:
        """The edges that the parameters of `layers` belong to, in their order."""
        return [edge for edge in self.edges if edge.operation.kind == "layer"]

    @property
    def weights(self) -> dict[Layer, nn.Parameter]:
        """The weights of each layer; its bias, if it has one, is at the same place of `biases`."""
        return {"first": self.first, **dict(zip(self.layer_edges, self.layers, strict=True)), "readout": self.readout}

    def fan(self, weight: Tensor) -> int:
        """What a layer's variance is divided by: fan-in, or fan-out as released."""
        return len(weight) // self.members * weight[0, 0].numel() if self.as_released else weight[0].numel()

    @property
    def parameter_blocks(self) -> Blocks:
        """What the rows of each parameter belong to."""
        found = {}
        for layer, weight in self.weights.items():
            found[weight] = [Block(len(weight) // self.members, layer, last=True, fan=self.fan(weight))]
        for layer, bias in zip(self.weights, self.biases, strict=False):
            found[bias] = [Block(len(bias) // self.members, layer, vector=True, last=True)]
        return [found[parameter] for parameter in self.parameters()]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, members x image_channels, size, size) to logits (batch, members x classes)."""
        last = cast("Tensor", self.pre_activations(images)[-1])
        if not self.as_released:
            last = self.activate(last)
        if self.kind == "cnn":
            last = last.mean((2, 3)).view(len(last), self.members, -1).transpose(0, 1)
        logits = self._fully_connected(last, self.readout)
        if self.as_released:
            logits = logits + self.biases[-1].view(self.members, 1, -1)
        return logits.transpose(0, 1).flatten(1)

    def pre_activations(self, images: Tensor) -> list[Tensor | None]:
        """What every vertex holds, before its activation; None for one that no path visits. As released, there is no
        activation after a sum.

        Of shape (batch, members x channels, size, size) in "cnn" and (members, batch, channels) in "mlp".
        """
        images = images.to(self.first.dtype)  # every layer is computed in the precision of the weights
        if self.kind == "mlp":
            images = images.reshape(len(images), self.members, -1).transpose(0, 1)
        if self.as_released:
            return self._values_as_released(images)
        values: list[Tensor | None] = [self._layer(images, self.first)] + [None] * (self.graph.vertices - 1)
        weights = dict(zip(self.layer_edges, self.layers, strict=True))
        activated: dict[int, Tensor] = {}
        for edge in self.edges:
            value = cast("Tensor", values[edge.source])
            if edge.operation.kind == "layer":
                if edge.source not in activated:
                    activated[edge.source] = self.activate(value)
                value = self._layer(activated[edge.source], weights[edge])
            held = values[edge.target]
            values[edge.target] = value if held is None else held + value
        return values

    def _values_as_released(self, images: Tensor) -> list[Tensor | None]:
        biases = dict(zip(self.weights, self.biases, strict=True))
        shape = (1, -1, 1, 1) if self.kind == "cnn" else (self.members, 1, -1)

        def activated(value: Tensor, layer: Layer) -> Tensor:
            return self.activate(self._layer(value, self.weights[layer]) + biases[layer].view(shape))

        values: list[Tensor | None] = [activated(images, "first")] + [None] * (self.graph.vertices - 1)
        for edge in self.edges:
            value = cast("Tensor", values[edge.source])
            sent = activated(value, edge) if edge.operation.kind == "layer" else value
            held = values[edge.target]
            values[edge.target] = sent if held is None else held + sent
        return values

    def _layer(self, value: Tensor, weight: Tensor) -> Tensor:
        if self.kind == "mlp":
            return self._fully_connected(value, weight)
        return functional.conv2d(value, weight, padding=weight.shape[-1] // 2, groups=self.members)

    def _fully_connected(self, value: Tensor, weight: Tensor) -> Tensor:
        """Each member's matrix times its rows: (members, batch, inputs) to (members, batch, outputs)."""
        return value @ weight.view(self.members, -1, weight.shape[1]).transpose(1, 2)


def build(graph: CellGraph, settings: Settings) -> Network:
    """The network of a graph, whose weights are still to be drawn."""
    bench, sizes = settings.bench, Sizes.of(settings)
    assert isinstance(bench, DagSettings)
    return Network(
        graph,
        kind=bench.name,
        activation=bench.activation,
        channels=sizes.channels,
        classes=sizes.classes,
        image_channels=sizes.image_channels,
        image_size=sizes.image_size,
        as_released=bench.as_released,
    )


def initialise(network: Network, initialisation: Initialisation) -> None:
    """Draw every weight from torch's generator: "stock" as PyTorch does, else from normal distributions.

    Layers have the factors C of `variance_factors` (paper eq. 4), the first layer He's, and the readout the variance
    (gain^2 / fan-in)^2, or gain^2 / fan-in under "he". gain^2 is 2 for ReLU. As released, fan-out takes the place of
    fan-in and biases are 0, save under "stock".
    """
    gain_squared = GAIN_SQUARED[network.activation]
    factors = variance_factors(network.graph, in_degree_of(initialisation), gain_squared)
    readout = gain_squared / network.fan(network.readout)
    with torch.no_grad():
        if initialisation == "stock":
            for parameter, (block,) in zip(network.parameters(), network.parameter_blocks, strict=True):
                bound = network.weights[cast("Layer", block.layer)][0].numel() ** -0.5
                parameter.uniform_(-bound, bound)
            return
        network.first.normal_(0.0, (gain_squared / network.fan(network.first)) ** 0.5)
        for edge, weight in zip(network.layer_edges, network.layers, strict=True):
            weight.normal_(0.0, (factors[edge] / network.fan(weight)) ** 0.5)
        network.readout.normal_(0.0, readout**0.5 if initialisation == "he" else readout)
