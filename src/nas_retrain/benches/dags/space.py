"""The spaces "mlp" and "cnn" (paper sections 3 and 4): networks whose hidden layers form any directed acyclic graph.

A network is written as in the paper, `2_02_002`: group k lists what leads into vertex k from vertices 0 to k - 1: 0 for
nothing, 1 for a skip, 2 for a layer. In a space of several kernel sizes the layers' size follows, `2_02_002/5`. Vertex
0 is what the first layer makes of the input, and the readout follows the last vertex, so that every path has one layer
more than its edges say.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import DatasetSettings, NetworkSettings
from nas_retrain.theory.graph import CellGraph, Edge, Operation
from nas_retrain.theory.scaling import Initialisation

KINDS = "012"
_FORM = re.compile(r"(?P<groups>[012]+(_[012]+)*)(/(?P<kernel>\d+))?")

BASE = CellGraph(2, (Edge(0, 1, Operation("skip")),))
"""Input, one hidden layer, readout: the base network of the learning-rate rule, with one path of depth 1."""


def parse(arch: str) -> CellGraph:
    """The graph of a network string; raises NasRetrainError, naming the string, if it is malformed."""
    match = _FORM.fullmatch(arch)
    groups = match["groups"].split("_") if match else []
    if match is None or [len(group) for group in groups] != list(range(1, len(groups) + 1)):
        raise NasRetrainError(
            f"Malformed network {arch!r}: expected groups of 1, 2, ... digits 0 (nothing), 1 (skip) or 2 (layer), as "
            "in 2_02_002, and the layers' kernel size as in 2_02_002/5 where it is not 1."
        )
    operations = {"1": Operation("skip"), "2": Operation("layer", int(match["kernel"] or 1))}
    return CellGraph(
        len(groups) + 1,
        tuple(
            Edge(source, target, operations[kind])
            for target, group in enumerate(groups, start=1)
            for source, kind in enumerate(group)
            if kind != "0"
        ),
    )


def chain(layers: int, kernel_size: int = 1) -> CellGraph:
    """So many layers one after the other."""
    operation = Operation("layer", kernel_size)
    return CellGraph(layers + 1, tuple(Edge(vertex, vertex + 1, operation) for vertex in range(layers)))


@dataclass(frozen=True)
class DagSpace:
    """All graphs of so many vertices, each with every one of some kernel sizes (1 alone in "mlp").

    They are numbered by their digits read as a number in base 3, the last digit fastest, with the kernel size
    counting faster still.
    """

    kind: Literal["mlp", "cnn"]
    vertices: int
    kernel_sizes: tuple[int, ...]

    @property
    def _digits(self) -> int:
        return self.vertices * (self.vertices - 1) // 2

    @property
    def size(self) -> int:
        """How many networks there are."""
        return int(3**self._digits) * len(self.kernel_sizes)

    def arch_at(self, index: int) -> str:
        """The string of a network; raises NasRetrainError if there is none of that number."""
        if not 0 <= index < self.size:
            raise NasRetrainError(f"Network {index} is out of range: this space has networks 0 to {self.size - 1:,}.")
        number, kernel = divmod(index, len(self.kernel_sizes))
        digits = "".join(str(number // 3**place % 3) for place in reversed(range(self._digits)))
        ends = list(itertools.accumulate(range(self.vertices)))
        text = "_".join(digits[start:end] for start, end in itertools.pairwise(ends))
        return text if self.kernel_sizes == (1,) else f"{text}/{self.kernel_sizes[kernel]}"

    def graph_at(self, index: int) -> CellGraph:
        """The graph of a network; raises NasRetrainError if there is none of that number."""
        return parse(self.arch_at(index))

    @property
    def base(self) -> CellGraph:
        """The base network of the learning-rate rule."""
        return BASE

    @cached_property
    def base_cell(self) -> int:
        """The number of the base network: a skip from first to last vertex, with the kernel size nearest to 3."""
        nearest = min(range(len(self.kernel_sizes)), key=lambda place: abs(self.kernel_sizes[place] - 3))
        return int(3 ** (self.vertices - 2)) * len(self.kernel_sizes) + nearest

    def members(self, network_class: int) -> tuple[int, ...]:
        """The network alone, as `training_class` has it."""
        return (network_class,)

    def training_class(self, index: int, _initialisation: Initialisation) -> int:
        """The network whose training stands for this one's: itself, since so large a space is only ever sampled."""
        self.arch_at(index)
        return index

    def flops(self, graph: CellGraph, network: NetworkSettings, dataset: DatasetSettings) -> int:
        """Multiply-accumulates of one image, dead edges left out."""
        channels, image = network.channels, dataset.image_channels
        first, pixels = (image * 9, dataset.image_size**2) if self.kind == "cnn" else (image * dataset.image_size**2, 1)
        layers = sum(channels * edge.operation.kernel_size**2 for edge in graph.layers)
        return channels * ((first + layers) * pixels + dataset.classes)

    def sample(self, number: int, seed: int) -> tuple[int, ...]:
        """That many random connected networks, no two of them the same network.

        Raises NasRetrainError if the space is too small to find them in.
        """
        drawn = random.Random(seed)
        found: dict[str, int] = {}
        for _ in range(1000 * number):
            index = drawn.randrange(self.size)
            graph = self.graph_at(index)
            if graph.connected:
                found.setdefault(graph.network_class, index)
            if len(found) == number:
                return tuple(found.values())
        raise NasRetrainError(
            f"cells=sample:{number}: only {len(found):,} different connected networks were found among graphs of "
            f"{self.vertices} vertices. Ask for fewer, or raise bench.vertices."
        )
