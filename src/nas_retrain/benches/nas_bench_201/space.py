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


class NasBench201(Bench):
    """The benchmark as everything else sees it."""

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
    drawing = Drawing(
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

    @cached_property
    def archs(self) -> tuple[str, ...]:
        """All 15,625 cell strings in the benchmark's official order.

        The order is the plain enumeration (vertex 1's operation slowest) shuffled by CPython's generator with seed 88.
        """
        names = [format_cell(operations) for operations in itertools.product(OPERATIONS, repeat=len(EDGES))]
        random.Random(88).shuffle(names)
        return tuple(names)

    def arch_at(self, index: int) -> str:
        """The cell string at an official index; raises NasRetrainError if there is none."""
        if not 0 <= index < self.size:
            raise NasRetrainError(f"Cell index {index} is out of range: NAS-Bench-201 has cells 0 to {self.size - 1}.")
        return self.archs[index]

    def graph_at(self, index: int) -> CellGraph:
        """The graph of the cell at an official index; raises NasRetrainError if there is none."""
        return parse(self.arch_at(index))

    def index_of(self, arch: str) -> int:
        """The official index of a cell string; raises NasRetrainError, naming the part at fault, if it is malformed."""
        return self.numbers[format_cell(parse_operations(arch))]

    def chosen(self, index: int) -> tuple[int, ...]:
        """The operations on all edges, by their places in `OPERATIONS`."""
        names = list(OPERATIONS)
        return tuple(names.index(name) for name in parse_operations(self.arch_at(index)))

    def flops(self, graph: CellGraph, sizes: Sizes) -> int:
        """Multiply-accumulates of convolutions and readout for one image (the benchmark's "FLOPs").

        Dead edges are left out, and so are constants (`CellGraph.constants`): they are computed once, not for each
        image.
        """
        width, side = sizes.channels, sizes.image_size
        total = sizes.image_channels * width * 9 * side**2
        for stage in range(STAGES):
            if stage:
                width, side = 2 * width, (side + 1) // 2
                total += _reduction(width) * side**2
            total += sizes.cells_per_stage * sum(_weights(edge, width) for edge in graph.layers) * side**2
        return total + width * sizes.classes

    def parameters(self, graph: CellGraph, sizes: Sizes) -> int:
        """Trainable parameters of the network built from a cell: what its output depends on, and nothing else.

        A convolution that puts out its BatchNorm's bias counts with that alone (`CellGraph.constants`).
        """
        graph = graph if sizes.normalised else graph.without_normalisation
        layers = graph.layers + graph.constant_layers
        of_norm = 2 if sizes.normalised else 0  # for each channel: a BatchNorm's weight and bias
        width = sizes.channels
        total = sizes.image_channels * width * 9 + of_norm * width
        for stage in range(STAGES):
            if stage:
                width *= 2
                total += _reduction(width) + 2 * of_norm * width
            in_cell = sum(_weights(edge, width) + of_norm * width for edge in layers) + width * len(graph.biases)
            total += sizes.cells_per_stage * in_cell
        return total + of_norm * width + (width + 1) * sizes.classes

    @property
    def rate_sources(self) -> tuple[ModuleType, ModuleType]:
        """NAS-HPO-Bench-II's folder and JAHS-Bench-201's table."""
        from nas_retrain.benches.nas_bench_201 import jahs_bench, nas_hpo_bench  # which read this module

        return nas_hpo_bench, jahs_bench

    def network_config(self, index: int, sizes: Sizes) -> dict[str, object]:
        """The width, the number of cells in a stage and the cell's string."""
        return {"channel": sizes.channels, "num_cells": sizes.cells_per_stage, "arch_str": self.arch_at(index)}

    def read_published_file(self, path: Path) -> dict[int, dict[str, Any]]:
        """See `official_file.load`."""
        return official_file.load(path)


def _weights(edge: Edge, width: int) -> int:
    """Of the convolution on an edge of a cell."""
    return width**2 * edge.operation.kernel_size**2


def _reduction(width: int) -> int:
    """The weights of the three convolutions of the residual block before the stage of this width."""
    half = width // 2
    return half * width * 9 + width**2 * 9 + half * width


BENCH = NasBench201
