"""NAS-Bench-201's search space (Dong and Yang, ICLR 2020): 15,625 cells of 4 vertices and 6 edges.

A cell is written `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`: group k lists the operations into vertex k, each with its
source vertex. The official index numbers the cells; results of the benchmark are keyed by it.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import dataclass
from functools import cache

import pandas as pd

from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import DatasetSettings, NetworkSettings
from nas_retrain.theory.graph import CellGraph, Edge, Operation, lowest_member
from nas_retrain.theory.scaling import InDegree, Initialisation, in_degree_of, learning_rate_factor, variance_factors

NAME = "201"
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
    return tuple(lowest_member(parse(arch).network_class for arch in cells()))


@cache
def training_classes(in_degree: InDegree | None) -> tuple[int, ...]:
    """The class of every cell within which one training stands for all, named like `network_classes`.

    in_degree: the convention of the initialisation, None for the stock one. Under "source" and stock these are the
    network classes. Under "target" and "released" cells are told apart too if their initial variances differ:
    contracting a skip moves edges from one vertex to another, and edges without effect are counted in the latter.
    """
    if in_degree in (None, "source"):
        return network_classes()
    return tuple(lowest_member(_initialised_formula(parse(arch), in_degree) for arch in cells()))


@cache
def _members() -> dict[int, tuple[int, ...]]:
    members: dict[int, list[int]] = {}
    for cell, network_class in enumerate(network_classes()):
        members.setdefault(network_class, []).append(cell)
    return {network_class: tuple(cells) for network_class, cells in members.items()}


@dataclass(frozen=True)
class NasBench201:
    """The benchmark as the pipeline sees any search space (`spaces.Space`)."""

    size: int = len(OPERATIONS) ** len(EDGES)
    base: CellGraph = BASE

    @property
    def base_cell(self) -> int:
        """See `base_cell`."""
        return base_cell()

    def arch_at(self, index: int) -> str:
        """See `cell_at`."""
        return cell_at(index)

    def graph_at(self, index: int) -> CellGraph:
        """See `graph_at`."""
        return graph_at(index)

    def members(self, network_class: int) -> tuple[int, ...]:
        """The cells of a network class, in order."""
        return _members()[network_class]

    def training_class(self, index: int, initialisation: Initialisation) -> int:
        """See `training_classes`."""
        cell_at(index)
        return training_classes(in_degree_of(initialisation))[index]

    def sample(self, number: int, seed: int) -> tuple[int, ...]:
        """Random representatives of connected network classes; raises NasRetrainError if there are fewer."""
        classes = [cell for cell in sorted(set(network_classes())) if graph_at(cell).connected]
        if not 0 < number <= len(classes):
            raise NasRetrainError(
                f"cells=sample:{number} is out of range: "
                f"it draws at least 1 of {len(classes):,} connected network classes."
            )
        return tuple(random.Random(seed).sample(classes, number))

    def flops(self, graph: CellGraph, network: NetworkSettings, dataset: DatasetSettings) -> int:
        """See `flops`."""
        return flops(
            graph,
            channels=network.channels,
            cells_per_stage=network.cells_per_stage,
            classes=dataset.classes,
            image_channels=dataset.image_channels,
            image_size=dataset.image_size,
        )


def _initialised_formula(graph: CellGraph, in_degree: InDegree | None) -> str:
    factors = variance_factors(graph, in_degree)
    return graph.formula({edge: f"conv{edge.operation.kernel_size}[{factor:.4g}]" for edge, factor in factors.items()})


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


def cells_table() -> pd.DataFrame:
    """One row a cell, in official order: index, arch, network_class, connected, path_depths and in_degrees (JSON
    lists), learning_rate_factor (empty when not connected), convolutions, parameters and flops (10 classes, 32x32).

    Depths, degrees, convolutions and flops are of what the input passes through; parameters has the constants too.
    """
    rows = []
    for index, (arch, network_class) in enumerate(zip(cells(), network_classes(), strict=True)):
        graph = parse(arch)
        rows.append(
            {
                "index": index,
                "arch": arch,
                "network_class": network_class,
                "connected": graph.connected,
                "path_depths": json.dumps(sorted(graph.path_depths().elements())),
                "in_degrees": json.dumps(graph.in_degrees),
                "learning_rate_factor": learning_rate_factor(graph, BASE) if graph.connected else None,
                "convolutions": len(graph.layers),
                "parameters": parameters(graph),
                "flops": flops(graph),
            }
        )
    return pd.DataFrame(rows)
