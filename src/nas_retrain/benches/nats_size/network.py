"""Networks of the size space: a stem, three cells with two reduction blocks between them, and a readout.

Several members are computed side by side, as in the networks of NAS-Bench-201: every convolution has a group of
channels for each member, and every parameter and buffer is the members' stacked along its first dimension.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_retrain.benches import build as build_module
from nas_retrain.benches.nats_size.space import SizedGraph, scaled
from nas_retrain.benches.parametrised import Block, Blocks
from nas_retrain.benches.pooling import halved
from nas_retrain.benches.registry import Sizes
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import Layer
from nas_retrain.theory.scaling import (
    HE_GAIN_SQUARED,
    REDUCTION_DEGREES,
    Initialisation,
    in_degree_of,
    variance_factors,
)


class Layered(nn.Module):
    """A convolution without bias, which keeps the image's size but for its stride, and a BatchNorm after it.

    layer: which of the rule's layers it is; None for the 1x1 convolution of a skip.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        members: int,
        layer: Layer | None,
        *,
        stride: int = 1,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.convolution = build_module.Convolution(inputs, outputs, kernel_size, members, stride)
        self.norm = build_module.BatchNorm(members * outputs) if normalised else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height, width), over the stride."""
        return cast("Tensor", self.norm(self.convolution(x)))


class Cell(nn.Module):
    """Every vertex is the sum of what its edges bring; a skip between different widths is a 1x1 convolution."""

    def __init__(self, graph: CellGraph, inputs: int, outputs: int, members: int) -> None:
        super().__init__()
        self.graph_edges = sorted(graph.edges)
        self.edges = nn.ModuleList(
            nn.Identity()
            if edge.operation.kind == "skip" and inputs == outputs
            else Layered(
                outputs if edge.source else inputs,
                outputs,
                edge.operation.kernel_size,
                members,
                edge if edge.operation.kind == "layer" else None,
            )
            for edge in self.graph_edges
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height, width)."""
        values: dict[int, Tensor] = {0: x}
        for edge, module in zip(self.graph_edges, self.edges, strict=True):
            read = values[edge.source]
            sent = module(functional.relu(read) if edge.operation.kind == "layer" else read)
            values[edge.target] = values[edge.target] + sent if edge.target in values else sent
        return values[max(values)]


class Reduction(nn.Module):
    """The residual block between stages: halves the image and sets its width."""

    def __init__(self, inputs: int, outputs: int, members: int) -> None:
        super().__init__()
        self.first = Layered(inputs, outputs, 3, members, "reduction_first", stride=2)
        self.second = Layered(outputs, outputs, 3, members, "reduction_second")
        self.shortcut = Layered(inputs, outputs, 1, members, "reduction_shortcut", normalised=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / 2, width / 2), rounded up."""
        branch = self.second(functional.relu(self.first(functional.relu(x))))
        return cast("Tensor", self.shortcut(halved(x)) + branch)


class Network(build_module.Network):
    """The whole network of five widths, or of several members side by side."""

    def __init__(
        self, graph: CellGraph, *, widths: tuple[int, ...], classes: int, image_channels: int, members: int = 1
    ) -> None:
        super().__init__(graph, members=members, widths=widths, classes=classes, image_channels=image_channels)
        self.stem = Layered(image_channels, widths[0], 3, members, "first")
        self.blocks = nn.Sequential(
            *(
                Reduction(before, width, members) if place % 2 else Cell(graph, before, width, members)
                for place, (before, width) in enumerate(pairwise((widths[0], *widths)))
            )
        )
        self.last_norm = build_module.BatchNorm(members * widths[-1])
        self.readout = nn.Linear(widths[-1], members * classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, members x image_channels, height, width) to logits (batch, members x classes)."""
        features = functional.relu(self.last_norm(self.blocks(self.stem(images)))).mean((2, 3))
        return build_module.read_out(features, self.readout, self.members)

    def layered(self) -> list[Layered]:
        """All convolutions with what follows them."""
        return [module for module in self.modules() if isinstance(module, Layered)]

    @property
    def parameter_blocks(self) -> Blocks:
        """What the rows of each parameter belong to."""
        found: dict[nn.Parameter, Block] = {}
        for one in self.layered():
            normalised = isinstance(one.norm, nn.BatchNorm2d)
            weight = cast("nn.Parameter", one.convolution.weight)
            found[weight] = Block(len(weight) // self.members, one.layer, last=not normalised)
            for vector in one.norm.parameters():
                found[vector] = Block(len(vector) // self.members, one.layer, vector=True, last=True)
        for layer, module in ((None, self.last_norm), ("readout", self.readout)):
            for parameter in module.parameters():
                rows = len(parameter) // self.members
                found[parameter] = Block(rows, cast("Layer | None", layer), vector=parameter.ndim == 1, last=True)
        return [[found[parameter]] for parameter in self.parameters()]


def build(graph: CellGraph, settings: Settings) -> Network:
    """The network of a graph with widths, with PyTorch's initialisation. Raises NasRetrainError for several cells a
    stage, which the space does not have."""
    assert isinstance(graph, SizedGraph)
    sizes = Sizes.of(settings)
    if sizes.cells_per_stage != 1:
        raise NasRetrainError("Networks of bench sss have one cell a stage: network.cells_per_stage must be 1.")
    widths = scaled(graph.widths, sizes.channels)
    return Network(graph, widths=widths, classes=sizes.classes, image_channels=sizes.image_channels)


@torch.no_grad()
def initialise(network: Network, initialisation: Initialisation) -> None:
    """Draw every weight anew from torch's generator (paper eq. 4), save for "stock", which is how they come.

    As in NAS-Bench-201's networks. The 1x1 convolution of a skip, which no ReLU precedes, keeps the size of what it
    reads: its variance is 1 / fan-in.
    """
    if initialisation == "stock":
        return
    in_degree = in_degree_of(initialisation)
    first, second, shortcut = REDUCTION_DEGREES[in_degree]
    cell: dict[Layer | None, float] = dict(variance_factors(network.graph, in_degree).items())
    factors = cell | {
        None: 1.0,
        "first": HE_GAIN_SQUARED,
        "reduction_first": HE_GAIN_SQUARED / first,
        "reduction_second": HE_GAIN_SQUARED / second,
        "reduction_shortcut": HE_GAIN_SQUARED / shortcut,
    }
    for one in network.layered():
        weight = one.convolution.weight
        weight.normal_(0.0, (factors[one.layer] / weight[0].numel()) ** 0.5)
    variance = HE_GAIN_SQUARED / network.readout.in_features
    network.readout.weight.normal_(0.0, variance**0.5 if initialisation == "he" else variance)
    network.readout.bias.zero_()
