"""NAS-Bench-201's network, built from those edges of a cell graph that its output depends on.

Stem, three stages of cells at C, 2C and 4C channels with a stride-2 residual block between stages, then BatchNorm,
ReLU, global average pooling and a linear readout. Every convolution is ReLU, convolution without bias, BatchNorm.

The mathematics is that of one module per edge, in fewer kernels: a vertex's ReLU and pooling are computed once for
all the edges that read them, and convolutions of one source vertex and kernel size are one convolution whose output
channels are theirs side by side. BatchNorm works per channel and stock initialisation depends on fan-in alone, so
joining changes neither. Dead edges are never built. A convolution whose output is its BatchNorm's bias, whatever it
reads (see `CellGraph.constants`), is built as that bias: a parameter for each channel, 0 at the start, with weight
decay like every parameter.

Without normalisation (`normalised=False`) no BatchNorm is anywhere in the network, and what a cell makes of zeros is
zero: convolutions that the input does not reach are not built.

On a GPU a network of one member goes another way to the same sums, in fewer kernels still (see `sums`): each module has
`forward`, and `hand_on` for that.

Several members (networks of one cell that differ in seed, initialisation or learning rate) can be one wide network:
every convolution has a group of channels for each member, and no member sees another's channels. Every parameter and
buffer is then the members' stacked along its first dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_retrain.benches import build as build_module
from nas_retrain.benches.nas_bench_201 import sums
from nas_retrain.benches.nas_bench_201.space import STAGES
from nas_retrain.benches.nas_bench_201.sums import Addend, Sent, settle
from nas_retrain.benches.parametrised import Block, Blocks
from nas_retrain.benches.pooling import averaged, halved
from nas_retrain.benches.registry import Sizes
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph, Edge
from nas_retrain.theory.rule import Layer
from nas_retrain.theory.scaling import (
    HE_GAIN_SQUARED,
    REDUCTION_DEGREES,
    Initialisation,
    in_degree_of,
    variance_factors,
)

JOINED_AT_MOST = 6_000_000
"""Values of a joined convolution's output on the CPU. Larger ones leave its caches between one pass and the next, and
BatchNorm's backward pass takes more than the joined call saves (measured on two cores, `make bench`)."""


class Vertex(nn.Module):
    """All that is read from one vertex of a cell: skips, one shared pooling, and one convolution per kernel size."""

    def __init__(self, edges: list[Edge], channels: int, members: int, *, normalised: bool) -> None:
        super().__init__()
        self.members = members
        self.skips = [edge.target for edge in edges if edge.operation.kind == "skip"]
        self.pools = [edge.target for edge in edges if edge.operation.kind == "pool"]
        layers = sorted((edge for edge in edges if edge.operation.kind == "layer"), key=_kernel_size)
        self.joined = [list(group) for _, group in itertools.groupby(layers, key=_kernel_size)]
        self.convolutions = nn.ModuleList(
            build_module.Convolution(channels, len(group) * channels, _kernel_size(group[0]), members)
            for group in self.joined
        )
        self.norms = nn.ModuleList(
            _normalisation(members * len(group) * channels, normalised=normalised) for group in self.joined
        )

    def forward(self, value: Tensor, *, ours: bool) -> list[tuple[int, Tensor, bool]]:
        """What goes from this vertex's value, of shape (batch, channels, height, width), to each target vertex.

        `ours` says that nothing else holds `value`, so that it may be overwritten; the last of each triple says the
        same of what is sent. No operation here needs its own output for its gradient, save ReLU, which is not sent.
        """
        sent = [(target, value, False) for target in self.skips]
        if self.pools:
            pooled = averaged(value)
            sent += [(target, pooled, len(self.pools) == 1) for target in self.pools]
        if self.joined:
            lowered = value.to(cast("nn.Conv2d", self.convolutions[0]).weight.dtype)  # once for all of them
            rectified = functional.relu(lowered, inplace=lowered is not value or (ours and not sent))
            for group, convolution, norm in self.layers():
                if self._too_large(rectified, len(group)):
                    sent += self._edge_by_edge(rectified, group, convolution, norm)
                    continue
                normalised = norm(convolution(rectified))
                if len(group) == 1:
                    sent.append((group[0].target, normalised, True))
                else:
                    parts = self._parts(normalised, len(group))
                    sent += [(edge.target, part, False) for edge, part in zip(group, parts, strict=True)]
        return sent

    def hand_on(self, addends: Sequence[Addend]) -> list[tuple[int, Addend]]:
        """The same from what is to be summed at this vertex, and as what is to be summed at each target vertex."""
        lowered = cast("nn.Conv2d", self.convolutions[0]).weight.dtype if self.joined else None
        total, rectified = settle(addends, plain=bool(self.skips or self.pools), rectified=lowered)
        sent: list[tuple[int, Addend]] = []
        if total is not None:
            skipped = Sent(total)
            sent += [(target, (skipped, 0)) for target in self.skips]
            if self.pools:
                pooled = Sent(averaged(total))
                sent += [(target, (pooled, 0)) for target in self.pools]
        for group, convolution, norm in self.layers():
            joined = Sent(norm(convolution(rectified)), len(group))
            sent += [(edge.target, (joined, part)) for part, edge in enumerate(group)]
        return sent

    def layers(self) -> Iterator[tuple[list[Edge], nn.Conv2d, nn.Module]]:
        """The edges that are one convolution, that convolution, and the BatchNorm after it, if there is one."""
        for group, convolution, norm in zip(self.joined, self.convolutions, self.norms, strict=True):
            yield group, cast("nn.Conv2d", convolution), norm

    def _too_large(self, value: Tensor, edges: int) -> bool:
        return edges > 1 and self.members == 1 and value.is_cpu and value.numel() * edges > JOINED_AT_MOST

    def _edge_by_edge(
        self, rectified: Tensor, group: list[Edge], convolution: nn.Conv2d, norm: nn.Module
    ) -> list[tuple[int, Tensor, bool]]:
        """The same as joined, one edge after the other, with views of its parameters and running statistics."""
        sent = []
        for place, (edge, kernel) in enumerate(zip(group, convolution.weight.chunk(len(group)), strict=True)):
            value = functional.conv2d(rectified, kernel, padding=kernel.shape[-1] // 2)
            if isinstance(norm, nn.BatchNorm2d):
                state = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
                mean, variance, scale, shift = (cast("Tensor", tensor).chunk(len(group))[place] for tensor in state)
                value = functional.batch_norm(
                    value.to(scale.dtype), mean, variance, scale, shift, norm.training, norm.momentum or 0.0, norm.eps
                )
            sent.append((edge.target, value, True))
        return sent

    def _parts(self, joined: Tensor, edges: int) -> list[Tensor]:
        """Each edge's channels, of all members, out of channels that are ordered by member and then by edge."""
        if self.members == 1:
            return list(joined.chunk(edges, dim=1))
        pixels = joined.permute(0, 2, 3, 1)
        by_edge = pixels.reshape(*pixels.shape[:3], self.members, edges, -1).unbind(4)
        return [part.flatten(3).permute(0, 3, 1, 2) for part in by_edge]

    def weights(self) -> list[tuple[Edge, Tensor]]:
        """Each edge's share of the joined weights, as views of shape (channels, channels, kernel, kernel)."""
        return [
            (edge, part)
            for group, convolution in zip(self.joined, self.convolutions, strict=True)
            for edge, part in zip(group, cast("nn.Conv2d", convolution).weight.chunk(len(group)), strict=True)
        ]


class Constants(nn.Module):
    """What a cell adds that is the same for every image: biases, and what the cell makes of them."""

    def __init__(self, graph: CellGraph, channels: int, members: int) -> None:
        super().__init__()
        self.edges = graph.constants
        self.bias_edges, self.layer_edges = graph.biases, graph.constant_layers
        self.biases = nn.ParameterList(torch.zeros(members * channels) for _ in self.bias_edges)
        self.convolutions = nn.ModuleList(
            build_module.Convolution(channels, channels, _kernel_size(edge), members) for edge in self.layer_edges
        )
        self.norms = nn.ModuleList(build_module.BatchNorm(members * channels) for _ in self.layer_edges)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """What they come to at each vertex, for the cell's input of shape (batch, channels, height, width).

        Of shape (1, channels, 1, 1) where it is the same at every pixel, else (1, channels, height, width).
        """
        biases = dict(zip(self.bias_edges, self.biases, strict=True))
        layers = dict(zip(self.layer_edges, zip(self.convolutions, self.norms, strict=True), strict=True))
        held: dict[int, Tensor] = {}
        for edge in self.edges:
            if edge in biases:
                sent = biases[edge].view(1, -1, 1, 1)
            elif edge in layers:
                convolution, norm = layers[edge]
                convolved = convolution(functional.relu(held[edge.source]).expand(1, *x.shape[1:]))
                # Over the whole batch, since the running variance is that of a sample of so many values.
                sent = norm(convolved.expand(x.shape))[:1]
            elif edge.operation.kind == "pool":
                sent = averaged(held[edge.source])
            else:
                sent = held[edge.source]
            held[edge.target] = held[edge.target] + sent if edge.target in held else sent
        return held

    def weights(self) -> list[tuple[Edge, Tensor]]:
        """The weights of layers, of shape (channels, channels, kernel, kernel)."""
        return [
            (edge, cast("nn.Conv2d", convolution).weight)
            for edge, convolution in zip(self.layer_edges, self.convolutions, strict=True)
        ]


class Cell(nn.Module):
    """A cell: every vertex is the sum of what its live edges bring, and of constants."""

    def __init__(self, graph: CellGraph, channels: int, members: int, *, normalised: bool) -> None:
        super().__init__()
        self.size = graph.vertices
        reading: dict[int, list[Edge]] = {}
        for edge in sorted(graph.live.edges):
            reading.setdefault(edge.source, []).append(edge)
        self.sources = list(reading)
        self.vertices = nn.ModuleList(
            Vertex(edges, channels, members, normalised=normalised) for edges in reading.values()
        )
        self.constants = Constants(graph, channels, members) if graph.constants else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        values: list[Tensor | None] = [x] + [None] * (self.size - 1)
        if self.constants is not None:
            for vertex, constant in self.constants(x).items():
                values[vertex] = constant
        ours = [False] * self.size  # the input belongs to whoever made it, and a constant is smaller than the sum
        for source, reader in zip(self.sources, self.vertices, strict=True):
            for target, sent, free in reader(values[source], ours=ours[source]):
                held = values[target]
                if held is None:
                    values[target], ours[target] = sent, free
                elif ours[target]:
                    held += sent
                elif free:
                    values[target], ours[target] = sent.add_(held), True
                else:
                    values[target], ours[target] = held + sent, True
        return cast("Tensor", values[-1])

    def hand_on(self, addends: Sequence[Addend]) -> list[Addend]:
        """The same from and to what is to be summed, of a cell without constants."""
        held: list[list[Addend]] = [list(addends)] + [[] for _ in range(self.size - 1)]
        for source, reader in zip(self.sources, self.vertices, strict=True):
            for target, addend in cast("Vertex", reader).hand_on(held[source]):
                held[target].append(addend)
        return held[-1]

    def weights(self) -> list[tuple[Edge, Tensor]]:
        """Each layer's edge and its weights, of shape (channels, channels, kernel, kernel)."""
        found = [pair for vertex in self.vertices for pair in cast("Vertex", vertex).weights()]
        return found if self.constants is None else found + self.constants.weights()


class Reduction(nn.Module):
    """The residual block between stages: halves the image, doubles the channels."""

    def __init__(self, channels: int, members: int, *, normalised: bool) -> None:
        super().__init__()
        self.first = build_module.Convolution(channels, 2 * channels, 3, members, stride=2)
        self.first_norm = _normalisation(members * 2 * channels, normalised=normalised)
        self.second = build_module.Convolution(2 * channels, 2 * channels, 3, members)
        self.second_norm = _normalisation(members * 2 * channels, normalised=normalised)
        self.shortcut = build_module.Convolution(channels, 2 * channels, 1, members)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, 2 channels, height / 2, width / 2), rounded up."""
        branch = self.first_norm(self.first(functional.relu(x)))
        branch = self.second_norm(self.second(functional.relu(branch)))
        return cast("Tensor", self.shortcut(halved(x)) + branch)

    def hand_on(self, addends: Sequence[Addend]) -> list[Addend]:
        """The same from and to what is to be summed."""
        total, rectified = settle(addends, plain=True, rectified=self.first.weight.dtype)
        branch = (Sent(self.first_norm(self.first(rectified))), 0)
        _, rectified = settle([branch], plain=False, rectified=self.second.weight.dtype)
        shortcut = self.shortcut(halved(cast("Tensor", total)))
        return [(Sent(shortcut), 0), (Sent(self.second_norm(self.second(rectified))), 0)]


class Network(build_module.Network):
    """The whole network of a connected cell, or of several members side by side."""

    def __init__(
        self,
        graph: CellGraph,
        *,
        channels: int,
        cells_per_stage: int,
        classes: int,
        image_channels: int,
        normalised: bool = True,
        members: int = 1,
    ) -> None:
        super().__init__(
            graph if normalised else graph.without_normalisation,
            members=members,
            channels=channels,
            cells_per_stage=cells_per_stage,
            classes=classes,
            image_channels=image_channels,
            normalised=normalised,
        )
        graph = self.graph
        self.stem = build_module.Convolution(image_channels, channels, 3, members)
        self.stem_norm = _normalisation(members * channels, normalised=normalised)
        blocks: list[nn.Module] = []
        for stage in range(STAGES):
            if stage:
                blocks.append(Reduction(channels, members, normalised=normalised))
                channels *= 2
            blocks += [Cell(graph, channels, members, normalised=normalised) for _ in range(cells_per_stage)]
        self.blocks = nn.Sequential(*blocks)
        self.last_norm = _normalisation(members * channels, normalised=normalised)
        self.readout = nn.Linear(channels, members * classes)

    @property
    def parameter_blocks(self) -> Blocks:
        """What the rows of each parameter belong to."""
        found: dict[nn.Parameter, list[Block]] = {}

        def add(module: nn.Module, norm: nn.Module | None, layers: Sequence[Layer | None]) -> None:
            """A convolution or readout whose rows are those of some layers, and the BatchNorm after it."""
            normalised = isinstance(norm, nn.BatchNorm2d)
            for of, parameter in [(module, each) for each in module.parameters()] + [
                (norm, each) for each in (norm.parameters() if norm is not None else ())
            ]:
                rows = len(parameter) // self.members // len(layers)
                last = of is norm or not normalised
                found[parameter] = [Block(rows, layer, vector=parameter.ndim == 1, last=last) for layer in layers]

        add(self.stem, self.stem_norm, ["first"])
        for block in self.blocks:
            if isinstance(block, Reduction):
                add(block.first, block.first_norm, ["reduction_first"])
                add(block.second, block.second_norm, ["reduction_second"])
                add(block.shortcut, None, ["reduction_shortcut"])
                continue
            cell = cast("Cell", block)
            for vertex in cell.vertices:
                for group, convolution, norm in cast("Vertex", vertex).layers():
                    add(convolution, norm, group)
            if cell.constants is not None:
                for edge, bias in zip(cell.constants.bias_edges, cell.constants.biases, strict=True):
                    found[bias] = [Block(len(bias) // self.members, edge, vector=True, last=True)]
                of_layers = zip(cell.constants.convolutions, cell.constants.norms, strict=True)
                for edge, (of_images, its_norm) in zip(cell.constants.layer_edges, of_layers, strict=True):
                    add(of_images, its_norm, [edge])
        add(self.last_norm, None, [None])
        add(self.readout, None, ["readout"])
        return [found[parameter] for parameter in self.parameters()]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, members x image_channels, height, width) to logits (batch, members x classes)."""
        stem = self.stem_norm(self.stem(images))
        one_kernel = self.members == 1 and not self.graph.constants and sums.in_one_kernel(images.device)
        features = self._handed_on(stem) if one_kernel else self.blocks(stem)
        pooled = functional.relu(self.last_norm(features)).mean((2, 3))
        return build_module.read_out(pooled, self.readout, self.members)

    def _handed_on(self, stem: Tensor) -> Tensor:
        """What the blocks make of the stem's output, by way of `sums`."""
        addends: list[Addend] = [(Sent(stem), 0)]
        for block in self.blocks:
            addends = cast("Cell | Reduction", block).hand_on(addends)
        features, _ = settle(addends, plain=True, rectified=None)
        return cast("Tensor", features)


def build(graph: CellGraph, settings: Settings) -> Network:
    """The network of a cell, with PyTorch's initialisation."""
    sizes = Sizes.of(settings)
    return Network(
        graph,
        channels=sizes.channels,
        cells_per_stage=sizes.cells_per_stage,
        classes=sizes.classes,
        image_channels=sizes.image_channels,
        normalised=sizes.normalised,
    )


def _normalisation(channels: int, *, normalised: bool) -> nn.Module:
    return build_module.BatchNorm(channels) if normalised else nn.Identity()


def initialise(network: Network, initialisation: Initialisation) -> None:
    """Draw every weight anew from torch's generator (paper eq. 4), save for "stock", which is how they come.

    Layers have the factors C of `variance_factors`, stem and reduction blocks follow `REDUCTION_DEGREES`, and the
    readout has no bias and the variance (2 / fan-in)^2, or 2 / fan-in under "he".
    """
    if initialisation == "stock":
        return
    in_degree = in_degree_of(initialisation)
    factors = variance_factors(network.graph, in_degree)
    with torch.no_grad():
        _draw(network.stem.weight, HE_GAIN_SQUARED)
        for block in network.blocks:
            if isinstance(block, Reduction):
                convolutions = (block.first, block.second, block.shortcut)
                for convolution, degree in zip(convolutions, REDUCTION_DEGREES[in_degree], strict=True):
                    _draw(convolution.weight, HE_GAIN_SQUARED / degree)
            else:
                for edge, weight in cast("Cell", block).weights():
                    _draw(weight, factors[edge])
        variance = HE_GAIN_SQUARED / network.readout.in_features
        network.readout.weight.normal_(0.0, variance**0.5 if initialisation == "he" else variance)
        network.readout.bias.zero_()


def _draw(weight: Tensor, factor: float) -> None:
    fan_in = weight[0].numel()
    weight.normal_(0.0, (factor / fan_in) ** 0.5)


def _kernel_size(edge: Edge) -> int:
    return edge.operation.kernel_size
