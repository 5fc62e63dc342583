"""NAS-Bench-201's search space (Dong and Yang, ICLR 2020): 15,625 cells of 4 vertices and 6 edges.

A cell is written `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`: group k lists the operations into vertex k, each with its
source vertex. The official index numbers the cells; results of the benchmark are keyed by it.
"""

from __future__ import annotations

import itertools
import random
import re
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from nas_retrain.benches import registry
from nas_retrain.benches.nas_bench_201 import official_file, package
from nas_retrain.benches.registry import Bench, Drawing, Option, Published, Sizes
from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph, Edge, Operation
from nas_retrain.theory.scaling import InDegree

VERTICES = 4
OPERATIONS: dict[str, Operation | None] = {
    "none": None,
    "skip_connect": Operation("skip"),
    "nor_conv_1x1": Operation("layer", 1, normalised=True),
    "nor_conv_3x3": Operation("layer", 3, normalised=True),
    "avg_pool_3x3": Operation("pool", 3),
}
EDGES = tuple((source, target) for target in range(1, VERTICES) for source in range(target))

BASE = CellGraph(VERTICES, (Edge(0, VERTICES - 1, Operation("skip")),))
"""The skip-only cell: the base network of the learning-rate rule, with one path of depth 1."""

STAGES = 3
_TERM = re.compile(r"(?P<operation>[^~|]+)~(?P<source>\d+)")


def format_cell(operations: tuple[str, ...]) -> str:
    """The cell string of six operations, listed in the order of `EDGES`."""
    groups = [
        "|" + "|".join(f"{operations[EDGES.index((source, target))]}~{source}" for source in range(target)) + "|"
        for target in range(1, VERTICES)
    ]
    return "+".join(groups)


def parse_operations(arch: str) -> tuple[str, ...]:
    """The six operations of a cell string, in the order of `EDGES`.

    Raises NasRetrainError, naming the string and the part at fault, if it is malformed or has an unknown operation.
    """
    form = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
    groups = arch.split("+")
    if len(groups) != VERTICES - 1:
        raise NasRetrainError(f"Malformed cell {arch!r}: expected {VERTICES - 1} groups joined by '+', as in {form}.")
    operations: list[str] = []
    for target, group in enumerate(groups, start=1):
        terms = group.split("|")
        if len(terms) != target + 2 or terms[0] or terms[-1]:
            raise NasRetrainError(
                f"Malformed cell {arch!r}: group {group!r} must list {target} operation(s) between '|', as in {form}."
            )
        for source, term in enumerate(terms[1:-1]):
            match = _TERM.fullmatch(term)
            if match is None or int(match["source"]) != source:
                raise NasRetrainError(
                    f"Malformed cell {arch!r}: expected 'operation~{source}' in place of {term!r}, as in {form}."
                )
            if match["operation"] not in OPERATIONS:
                raise NasRetrainError(
                    f"Unknown operation {match['operation']!r} in cell {arch!r}; there are {', '.join(OPERATIONS)}."
                )
            operations.append(match["operation"])
    return tuple(operations)


@cache
def parse(arch: str) -> CellGraph:
    """The graph of a cell string; see `parse_operations` for what is raised."""
    edges = [
        Edge(source, target, operation)
        for (source, target), name in zip(EDGES, parse_operations(arch), strict=True)
        if (operation := OPERATIONS[name]) is not None
    ]
    return CellGraph(VERTICES, tuple(edges))


@cache
def cells() -> tuple[str, ...]:
    """All 15,625 cell strings in the benchmark's official order.

    The order is the plain enumeration (vertex 1's operation slowest) shuffled by CPython's generator with seed 88.
    """
    names = [format_cell(operations) for operations in itertools.product(OPERATIONS, repeat=len(EDGES))]
    random.Random(88).shuffle(names)
    return tuple(names)


@cache
def _indices() -> dict[str, int]:
    return {arch: index for index, arch in enumerate(cells())}


def index_of(arch: str) -> int:
    """The official index of a cell string; raises NasRetrainError if it is malformed."""
    return _indices()[format_cell(parse_operations(arch))]


def cell_at(index: int) -> str:
    """The cell string at an official index; raises NasRetrainError if there is none."""
    if not 0 <= index < len(cells()):
        raise NasRetrainError(f"Cell index {index} is out of range: NAS-Bench-201 has cells 0 to {len(cells()) - 1}.")
    return cells()[index]


def graph_at(index: int) -> CellGraph:
    """The graph of the cell at an official index; raises NasRetrainError if there is none."""
    return parse(cell_at(index))


def base_cell() -> int:
    """The official index of the lowest-numbered cell that is the base network."""
    return next(index for index, arch in enumerate(cells()) if parse(arch).network_class == BASE.network_class)


@cache
def network_classes() -> tuple[int, ...]:
    """The network class of every cell: the lowest official index among the cells that are the same network."""
    return registry.training_classes(map(parse, cells()), None)


@cache
def training_classes(in_degree: InDegree | None) -> tuple[int, ...]:
    """See `Bench.training_classes`."""
    if in_degree in (None, "source"):
        return network_classes()
    return registry.training_classes(map(parse, cells()), in_degree)


def parameters(
    graph: CellGraph, *, channels: int = 16, cells_per_stage: int = 5, classes: int = 10, image_channels: int = 3
) -> int:
    """Trainable parameters of the network built from a cell: what its output depends on, and nothing else.

    A convolution that puts out its BatchNorm's bias counts with that alone (`CellGraph.constants`).
    """
    layers = graph.layers + graph.constant_layers
    total = image_channels * channels * 9 + 2 * channels
    for stage in range(STAGES):
        width = channels << stage
        total += cells_per_stage * sum(width * width * e.operation.kernel_size**2 + 2 * width for e in layers)
        total += cells_per_stage * width * len(graph.biases)
        if stage:
            half = width // 2
            total += half * width * 9 + 2 * width + width * width * 9 + 2 * width + half * width
    return total + 2 * width + width * classes + classes


def flops(
    graph: CellGraph,
    *,
    channels: int = 16,
    cells_per_stage: int = 5,
    classes: int = 10,
    image_channels: int = 3,
    image_size: int = 32,
) -> int:
    """Multiply-accumulates of convolutions and readout for one image (the benchmark's "FLOPs").

    Dead edges are left out, and so are constants (`CellGraph.constants`): they are computed once, not for each image.
    """
    size = image_size
    total = image_channels * channels * 9 * size * size
    for stage in range(STAGES):
        width = channels << stage
        if stage:
            half = width // 2
            size = (size + 1) // 2
            total += (half * width * 9 + width * width * 9 + half * width) * size * size
        total += cells_per_stage * sum(width * width * e.operation.kernel_size**2 for e in graph.layers) * size * size
    return total + width * classes


DRAWING = Drawing(
    places=EDGES,
    options=(
        Option("none", "", None),
        Option("skip_connect", "skip", registry.COLOURS[0]),
        Option("nor_conv_1x1", "1×1", registry.COLOURS[1]),  # noqa: RUF001
        Option("nor_conv_3x3", "3×3", registry.COLOURS[2]),  # noqa: RUF001
        Option("avg_pool_3x3", "pool", registry.COLOURS[3]),
    ),
    vertices=registry.zigzag(VERTICES),
    label_at=(0.5, 0.5, 0.28, 0.3, 0.5, 0.5),  # the edges 1 to 2 and 0 to 3 cross in the middle
    pattern=format_cell(("{}",) * len(EDGES)),
)


class NasBench201(Bench):
    """The benchmark as everything else sees it. What is costly is kept by this module, for all of its objects."""

    names = ("201",)
    name = "201"
    title = "NAS-Bench-201"
    authors = "NAS-Bench-201 is by Dong and Yang (ICLR 2020)."
    published = Published(
        {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16_120": "ImageNet16-120"},
        space="tss",
        file=package.FILE,
    )
    """The published files' "cifar10-valid" is another data set, trained on half of the images."""

    stages = STAGES
    size = len(OPERATIONS) ** len(EDGES)
    base = BASE
    base_cell = cached_property(lambda _: base_cell())
    drawing = DRAWING

    def arch_at(self, index: int) -> str:
        """See `cell_at`."""
        return cell_at(index)

    def graph_at(self, index: int) -> CellGraph:
        """See `graph_at`."""
        return graph_at(index)

    def training_classes(self, in_degree: InDegree | None) -> tuple[int, ...]:
        """See `training_classes`."""
        return training_classes(in_degree)

    def chosen(self, index: int) -> tuple[int, ...]:
        """The operations on all edges, by their places in `OPERATIONS`."""
        names = list(OPERATIONS)
        return tuple(names.index(name) for name in parse_operations(cell_at(index)))

    def flops(self, graph: CellGraph, sizes: Sizes) -> int:
        """See `flops`."""
        return flops(
            graph,
            channels=sizes.channels,
            cells_per_stage=sizes.cells_per_stage,
            classes=sizes.classes,
            image_channels=sizes.image_channels,
            image_size=sizes.image_size,
        )

    def parameters(self, graph: CellGraph, sizes: Sizes) -> int:
        """See `parameters`."""
        return parameters(
            graph,
            channels=sizes.channels,
            cells_per_stage=sizes.cells_per_stage,
            classes=sizes.classes,
            image_channels=sizes.image_channels,
        )

    def index_of(self, arch: str) -> int:
        """See `index_of`."""
        return index_of(arch)

    @property
    def rate_sources(self) -> tuple[ModuleType, ModuleType]:
        """NAS-HPO-Bench-II's folder and JAHS-Bench-201's table."""
        from nas_retrain.benches.nas_bench_201 import jahs_bench, nas_hpo_bench  # which read this module

        return nas_hpo_bench, jahs_bench

    def network_config(self, index: int, sizes: Sizes) -> dict[str, object]:
        """The width, the number of cells in a stage and the cell's string."""
        return {"channel": sizes.channels, "num_cells": sizes.cells_per_stage, "arch_str": cell_at(index)}

    def read_published_file(self, path: Path) -> dict[int, dict[str, Any]]:
        """See `official_file.load`."""
        return official_file.load(path)


BENCH = NasBench201
