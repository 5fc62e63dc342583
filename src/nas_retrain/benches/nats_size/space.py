"""The size space of NATS-Bench (Dong, Liu, Musial and Gabrys, TPAMI 2021): one cell in networks of 32,768 widths.

A network is written by its five widths, `8:8:8:16:32`: of the first cell, the first reduction block, the second cell,
the second reduction block and the third cell. Each is one of eight, and networks are numbered as these count up, the
last width fastest. All have NAS-Bench-201's cell with six 3x3 convolutions but for a skip from input to output, and one
cell a stage. Where a cell is not as wide as what it reads, the skip is a 1x1 convolution with a BatchNorm.

The paper's rule does not know widths: it gives all of these networks one learning rate and alike variances.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from nas_retrain.benches.registry import COLOURS, Bench, Drawing, Option, Published, Sizes, zigzag
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import BenchSettings, Settings
from nas_retrain.theory.graph import CellGraph, Edge, Operation
from nas_retrain.theory.rule import NetworkSize, Peers
from nas_retrain.theory.scaling import InDegree

WIDTHS = tuple(range(8, 65, 8))
PLACES = 5
WIDEST = WIDTHS[-1]

GENOTYPE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
"""The cell as NAS-Bench-201 writes it."""

_CONVOLUTION = Operation("layer", 3, normalised=True)
EDGES = (
    *(Edge(source, target, _CONVOLUTION) for source, target in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3))),
    Edge(0, 3, Operation("skip")),
)


@dataclass(frozen=True)
class SizedGraph(CellGraph):
    """The cell's graph with the widths of the network that repeats it."""

    widths: tuple[int, ...] = ()

    def formula(self, kinds: Mapping[Edge, str]) -> str:
        """See `CellGraph.formula`; networks of different widths are different ones."""
        return f"{written(self.widths)} {super().formula(kinds)}"


def written(widths: tuple[int, ...]) -> str:
    """A network's string."""
    return ":".join(map(str, widths))


def parse(arch: str) -> SizedGraph:
    """The graph of a network's string; raises NasRetrainError, naming the string, if it is malformed."""
    parts = arch.split(":")
    if len(parts) != PLACES or not set(parts) <= set(map(str, WIDTHS)):
        raise NasRetrainError(
            f"Malformed network {arch[:100]!r}: expected five widths of {', '.join(map(str, WIDTHS))}, as in "
            "8:8:8:16:32."
        )
    return SizedGraph(4, EDGES, tuple(map(int, parts)))


class Convolution(NamedTuple):
    """What is computed at `pixels` places: inputs x outputs weights for each place of a square kernel."""

    inputs: int
    outputs: int
    kernel_size: int
    pixels: int
    normalised: bool


def scaled(widths: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """The widths of a network whose widest may have so many channels."""
    return tuple(max(1, width * channels // WIDEST) for width in widths)


def convolutions(widths: tuple[int, ...], sizes: Sizes) -> Iterator[Convolution]:
    """All convolutions of a network."""
    side, before = sizes.image_size, widths[0]
    yield Convolution(sizes.image_channels, before, 3, side**2, normalised=True)
    for place, width in enumerate(widths):
        if place % 2:
            side = (side + 1) // 2
            yield Convolution(before, width, 3, side**2, normalised=True)
            yield Convolution(width, width, 3, side**2, normalised=True)
            yield Convolution(before, width, 1, side**2, normalised=False)
        else:
            for edge in EDGES:
                if edge.operation.kind == "layer":
                    yield Convolution(width if edge.source else before, width, 3, side**2, normalised=True)
                elif before != width:
                    yield Convolution(before, width, 1, side**2, normalised=True)
        before = width


class SizeSettings(BenchSettings):
    """The settings of configs/bench/sss.yaml."""

    chooses_normalisation = False


class SizeSpace(Bench):
    """The benchmark as everything else sees it."""

    names = ("sss",)
    settings_kind = SizeSettings
    name = "sss"
    title = "NATS-sss"
    authors = "NATS-Bench is by Dong, Liu, Musial and Gabrys (TPAMI 2021)."
    published = Published(
        {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16_120": "ImageNet16-120"},
        space="sss",
        digits=2,
        times_evaluation=True,
    )
    sizes = Sizes(channels=WIDEST, cells_per_stage=1, classes=10, image_channels=3, image_size=32)
    stages = 3
    size = int(len(WIDTHS) ** PLACES)
    base = parse("32:32:32:32:32")
    base_cell = 14043

    drawing = Drawing(
        places=tuple((place, place + 1) for place in range(PLACES)),
        options=tuple(Option(str(width), str(width), colours) for width, colours in zip(WIDTHS, COLOURS, strict=True)),
        vertices=zigzag(PLACES + 1),
        label_at=(0.5,) * PLACES,
        pattern=":".join(["{}"] * PLACES),
    )

    def arch_at(self, index: int) -> str:
        """The string of a network; raises NasRetrainError if there is none of that number."""
        if not 0 <= index < self.size:
            raise NasRetrainError(f"Cell index {index} is out of range: {self.title} has 0 to {self.size - 1}.")
        return written(tuple(WIDTHS[number] for number in self.chosen(index)))

    @cached_property
    def archs(self) -> tuple[str, ...]:
        """All networks' strings, by number."""
        return tuple(map(written, itertools.product(WIDTHS, repeat=PLACES)))

    def graph_at(self, index: int) -> SizedGraph:
        """The graph of a network, with its widths."""
        return parse(self.arch_at(index))

    @cached_property
    def connected(self) -> tuple[bool, ...]:
        """All are."""
        return (True,) * self.size

    def training_classes(self, _in_degree: InDegree | None) -> tuple[int, ...]:
        """Of each network itself: no two have the same widths."""
        return tuple(range(self.size))

    def training_class(self, index: int, _initialisation: object) -> int:
        """The network itself."""
        self.arch_at(index)
        return index

    def members(self, network_class: int) -> tuple[int, ...]:
        """The network alone."""
        return (network_class,)

    def sample(self, number: int, seed: int) -> tuple[int, ...]:
        """That many random networks; raises NasRetrainError if there are fewer."""
        if not 0 < number <= self.size:
            raise NasRetrainError(
                f"cells=sample:{number} is out of range: it draws at least 1 of {self.size:,} networks."
            )
        return tuple(random.Random(seed).sample(range(self.size), number))

    def chosen(self, index: int) -> tuple[int, ...]:
        """The places of a network's widths in `WIDTHS`."""
        return tuple(index // len(WIDTHS) ** place % len(WIDTHS) for place in reversed(range(PLACES)))

    def effective(self, _index: int) -> tuple[bool, ...]:
        """Every width counts."""
        return (True,) * PLACES

    def flops(self, graph: CellGraph, sizes: Sizes) -> int:
        """Multiply-accumulates of convolutions and readout for one image (the benchmark's "FLOPs")."""
        widths = self._widths(graph, sizes)
        layers = sum(one.inputs * one.outputs * one.kernel_size**2 * one.pixels for one in convolutions(widths, sizes))
        return layers + widths[-1] * sizes.classes

    def parameters(self, graph: CellGraph, sizes: Sizes) -> int:
        """Trainable parameters of a network."""
        widths = self._widths(graph, sizes)
        layers = sum(
            one.inputs * one.outputs * one.kernel_size**2 + 2 * one.outputs * one.normalised
            for one in convolutions(widths, sizes)
        )
        return layers + 2 * widths[-1] + (widths[-1] + 1) * sizes.classes

    @staticmethod
    def _widths(graph: CellGraph, sizes: Sizes) -> tuple[int, ...]:
        assert isinstance(graph, SizedGraph)
        return scaled(graph.widths, sizes.channels)

    def network_size(self, settings: Settings, peers: Peers) -> NetworkSize:
        """Vertices have no width in common; a network's own widths are its graph's. The base network has its cell."""
        size = super().network_size(settings, peers)
        return replace(size, width=None, readout_width=settings.network.channels, base=self.base)

    def network_config(self, index: int, _sizes: Sizes) -> dict[str, object]:
        """The widths, and the cell that all networks have."""
        arch = self.arch_at(index)
        return {"name": "infer.shape.tiny", "channels": arch, "arch_str": arch, "genotype": GENOTYPE}


BENCH = SizeSpace
