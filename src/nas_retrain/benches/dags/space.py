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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from nas_retrain.benches.registry import Bench, Sizes, Sweep
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import AllDifferent, BenchSettings, OneOrMore, Positive, Settings
from nas_retrain.theory.graph import ONE_LAYER, CellGraph, Edge, Operation
from nas_retrain.theory.rule import NetworkSize, Peers
from nas_retrain.theory.scaling import GAIN_SQUARED, Activation, InDegree, Initialisation, sum_of_cubes

_FORM = re.compile(r"(?P<groups>[012]+(_[012]+)*)(/(?P<kernel>\d+))?")

BASE = ONE_LAYER
"""Input, one hidden layer, readout: the base network of the learning-rate rule, with one path of depth 1."""

FIRST_KERNEL = 3

WIDTHS = {"mlp": 256, "cnn": 32}
"""Of the networks of the coordinate check, whatever the settings' width: the theory is that of wide ones, wide against
their depth too."""

DEPTHS = (1, 2, 4, 8, 16)
GRAPHS = 24


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


def first_kernel(graph: CellGraph, *, as_released: bool) -> int:
    """The kernel size of a CNN's first layer: whatever its graph's kernels, so that the base network is the same for
    all; as released, that of its graph."""
    sizes = [edge.operation.kernel_size for edge in graph.layers] if as_released else []
    return max(sizes, default=FIRST_KERNEL)


class DagSettings(BenchSettings):
    """A space of graphs of layers without normalisation (configs/bench/mlp.yaml, cnn.yaml)."""

    has_accuracies = False
    chooses_normalisation = False
    name: Literal["mlp", "cnn"]
    vertices: Annotated[int, Field(ge=2, le=12)]
    kernel_sizes: Annotated[tuple[Positive, ...], OneOrMore, Field(min_length=1), AllDifferent]
    activation: Activation
    as_released: bool

    @model_serializer(mode="wrap")
    def _usual_networks_as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        return {key: value for key, value in written.items() if key != "as_released" or value}

    @model_validator(mode="after")
    def _kernels_fit(self) -> DagSettings:
        if self.name == "mlp" and self.kernel_sizes != (1,):
            raise ValueError("kernel_sizes must be [1] in bench mlp, whose layers are fully connected")
        if not all(size % 2 for size in self.kernel_sizes):
            raise ValueError("kernel_sizes must be odd")
        return self


@dataclass(frozen=True)
class DagSpace(Bench):
    """All graphs of so many vertices, each with every one of some kernel sizes (1 alone in "mlp").

    They are numbered by their digits read as a number in base 3, the last digit fastest, with the kernel size
    counting faster still. as_released: whether networks are those of the paper's released code (see `network`).
    """

    kind: Literal["mlp", "cnn"]
    vertices: int
    kernel_sizes: tuple[int, ...]
    as_released: bool = False

    names = ("mlp", "cnn")
    settings_kind = DagSettings

    @classmethod
    def of(cls, settings: BenchSettings) -> DagSpace:
        """The space of these settings."""
        assert isinstance(settings, DagSettings)
        return cls(settings.name, settings.vertices, settings.kernel_sizes, settings.as_released)

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `kind`."""
        return self.kind

    @property
    def title(self) -> str:  # type: ignore[override]
        """What reports call it."""
        return self.kind

    @property
    def kernels_differ(self) -> bool:  # type: ignore[override]
        """Whether layers are convolutions."""
        return self.kind == "cnn"

    @property
    def kernel_factor(self) -> bool:  # type: ignore[override]
        """Whether the paper's experiments followed eq. 9."""
        return self.kind == "cnn"

    @property
    def reported_correlation(self) -> float:  # type: ignore[override]
        """Of predicted and searched rates (paper section 4)."""
        return {"mlp": 0.838, "cnn": 0.856}[self.kind]

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

    def training_classes(self, _in_degree: InDegree | None) -> tuple[int, ...]:
        """Of each network itself, see `training_class`."""
        return tuple(range(self.size))

    def flops(self, graph: CellGraph, sizes: Sizes) -> int:
        """Multiply-accumulates of one image, dead edges left out."""
        pixels = sizes.image_size**2 if self.kind == "cnn" else 1
        return self._weights_before_readout(graph, sizes) * pixels + sizes.channels * sizes.classes

    def parameters(self, graph: CellGraph, sizes: Sizes) -> int:
        """Weights of all layers, dead edges left out, and as released their biases."""
        biases = sizes.channels * (1 + len(graph.layers)) + sizes.classes if self.as_released else 0
        return self._weights_before_readout(graph, sizes) + sizes.channels * sizes.classes + biases

    def _weights_before_readout(self, graph: CellGraph, sizes: Sizes) -> int:
        side = first_kernel(graph, as_released=self.as_released) if self.kind == "cnn" else sizes.image_size
        layers = sum(sizes.channels * edge.operation.kernel_size**2 for edge in graph.layers)
        return sizes.channels * (sizes.image_channels * side**2 + layers)

    def network_size(self, settings: Settings, peers: Peers) -> NetworkSize:
        """One graph without BatchNorm, whose first layer in "mlp" reads all pixels."""
        assert isinstance(settings.bench, DagSettings)
        size, pixels = super().network_size(settings, peers), settings.dataset.image_size**2
        return replace(
            size,
            # As released, fan-out divides variances, which is the number of classes in the readout.
            readout_width=size.classes if settings.bench.as_released else size.readout_width,
            inputs=settings.dataset.image_channels * pixels if self.kind == "mlp" else size.inputs,
            normalised=False,
            gain_squared=GAIN_SQUARED[settings.bench.activation],
        )

    def sweeps(self, settings: BenchSettings) -> Iterator[Sweep]:
        """Networks of growing depth, width, sum of cubed path depths and kernel size."""
        width, kernel = WIDTHS[self.kind], self.kernel_sizes[0]
        for depth in DEPTHS:
            yield Sweep("depth", depth, chain(depth, kernel), width)
        for scale in (-2, -1, 0, 1, 2):
            wide = round(width * 2.0**scale)
            yield Sweep("width", wide, chain(3, kernel), wide)
        for cell in DagSpace(self.kind, self.vertices, (kernel,)).sample(GRAPHS, seed=1):
            graph = parse(DagSpace(self.kind, self.vertices, (kernel,)).arch_at(cell))
            yield Sweep("graph", sum_of_cubes(graph.path_depths(settings.depth_offset)), graph, width)
        if len(self.kernel_sizes) > 1:
            for size in self.kernel_sizes:
                yield Sweep("kernel", size, chain(3, size), width)

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


BENCH = DagSpace
