"""A cell as a directed acyclic graph, and what the scaling rules read from it.

Vertices are feature maps (the paper's pre-activations z), edges carry operations; an absent edge is the "none"
operation. Vertex 0 is the cell's input and the last vertex its output. Every edge leads from a lower to a higher
vertex, so vertex order is a topological order.

What an unreached vertex holds is the same for every input: zero, unless a layer that ends in a BatchNorm reads it. That
layer puts out its trained bias, which is part of the network if it gets to the output. See `CellGraph.constants`.

This module knows no search space and does not import torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from operator import attrgetter
from typing import Literal

from nas_retrain.errors import NasRetrainError


@dataclass(frozen=True, order=True)
class Operation:
    """What an edge does to its source vertex.

    kind: "skip" (identity), "pool" (average pooling, no weights) or "layer" (ReLU, then a weighted linear map).
    kernel_size: side of the square window; 1 for skips and for fully-connected layers.
    normalised: whether a layer ends in a BatchNorm, which adds a trained bias to each channel.
    """

    kind: Literal["skip", "pool", "layer"]
    kernel_size: int = 1
    normalised: bool = False


@dataclass(frozen=True, order=True)
class Edge:
    """An operation from vertex `source` to vertex `target`, source < target."""

    source: int
    target: int
    operation: Operation


class Constant(IntEnum):
    """What a vertex that the input does not reach holds. A sum holds the largest of what its terms hold."""

    ZERO = 0
    UNIFORM = 1
    """One value for each channel, the same at every pixel."""
    IMAGE = 2
    """Not the same at every pixel: zero padding shows at the border."""


@dataclass(frozen=True)
class CellGraph:
    """A cell: `vertices` of them, numbered in topological order, joined by `edges` (none-edges left out).

    Raises NasRetrainError if there are fewer than two vertices or an edge does not lead upwards within them.
    """

    vertices: int
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        if self.vertices < 2:
            raise NasRetrainError(f"A cell graph needs an input and an output vertex, got {self.vertices} vertices.")
        for edge in self.edges:
            if not 0 <= edge.source < edge.target < self.vertices:
                raise NasRetrainError(
                    f"Edge {edge.source} -> {edge.target} does not lead upwards among {self.vertices} vertices."
                )

    @cached_property
    def live(self) -> CellGraph:
        """The same vertices with only the edges that lie on some path from input to output."""
        from_input = {0}
        for edge in sorted(self.edges, key=attrgetter("source")):  # so after all edges into the source
            if edge.source in from_input:
                from_input.add(edge.target)
        to_output = {self.vertices - 1}
        for edge in sorted(self.edges, key=attrgetter("target"), reverse=True):
            if edge.target in to_output:
                to_output.add(edge.source)
        return CellGraph(
            self.vertices,
            tuple(edge for edge in self.edges if edge.source in from_input and edge.target in to_output),
        )

    @cached_property
    def without_normalisation(self) -> CellGraph:
        """The same cell with layers that end in no BatchNorm, so that nothing comes from unreached vertices."""
        return CellGraph(
            self.vertices,
            tuple(replace(edge, operation=replace(edge.operation, normalised=False)) for edge in self.edges),
        )

    @property
    def connected(self) -> bool:
        """Whether any path leads from input to output."""
        return bool(self.live.edges)

    @property
    def layers(self) -> tuple[Edge, ...]:
        """The live edges that carry weights, in edge order."""
        return tuple(edge for edge in self.live.edges if edge.operation.kind == "layer")

    @cached_property
    def constants(self) -> tuple[Edge, ...]:
        """The edges that carry a constant (the same for every input, and not zero) to the output, by their sources.

        They start from biases: a normalised layer (ReLU, convolution, BatchNorm) of zeros puts out its BatchNorm's
        bias, and so does one with a 1x1 kernel of any uniform constant, which BatchNorm subtracts as the mean that it
        is. What leads to such a layer does not matter. Skips and average pooling pass a uniform constant on as it is.
        A 3x3 layer of it is a layer like others (see `constant_layers`), since zero padding shows at the border.

        This is exact for BatchNorm in training mode. In evaluation a BatchNorm subtracts its running mean, which lags
        behind a constant that training changes. The constant that a 1x1 layer makes of a bias is the only one for
        which this matters. Where biases start at 0 it does not: a bias that only ReLUs read stays at 0, as the
        derivative of ReLU at 0 is 0, so that the running mean is exactly that constant. (From standard normal biases,
        logits of up to 0.8 in evaluation differed by up to 0.2 after five steps, in networks of 2 channels.)

        A disconnected cell has none, since it is not trained.
        """
        if not self.connected:
            return ()
        carrying = [edge for edge in sorted(self.edges) if edge.source in self._unreached and self._sent(edge)]
        to_output = {self.vertices - 1} | {edge.source for edge in self.live.edges}
        for edge in sorted(carrying, key=lambda edge: -edge.target):
            if edge.target in to_output and not self._is_bias(edge):
                to_output.add(edge.source)
        return tuple(edge for edge in carrying if edge.target in to_output)

    @property
    def biases(self) -> tuple[Edge, ...]:
        """Those of `constants` that are nothing but a trained bias for each channel."""
        return tuple(edge for edge in self.constants if self._is_bias(edge))

    @property
    def constant_layers(self) -> tuple[Edge, ...]:
        """Those of `constants` that carry weights: layers that read an image which is the same for every input."""
        return tuple(edge for edge in self.constants if edge.operation.kind == "layer" and not self._is_bias(edge))

    @cached_property
    def effective(self) -> CellGraph:
        """The same vertices with only the edges that the output depends on: the live ones and the constants."""
        return CellGraph(self.vertices, self.live.edges + self.constants)

    @cached_property
    def _unreached(self) -> dict[int, Constant]:
        """What each vertex holds to which no path leads from the input."""
        held = dict.fromkeys(range(1, self.vertices), Constant.ZERO)
        for edge in sorted(self.edges, key=attrgetter("source")):  # so after all edges into the source
            if edge.target not in held:
                continue
            if edge.source in held:
                held[edge.target] = max(held[edge.target], self._made_of(held[edge.source], edge.operation))
            else:
                del held[edge.target]
        return held

    @staticmethod
    def _made_of(read: Constant, operation: Operation) -> Constant:
        """What an operation makes of a constant."""
        if operation.kind != "layer":
            return read
        if read is Constant.ZERO:
            return Constant.UNIFORM if operation.normalised else Constant.ZERO
        return Constant.IMAGE if operation.kernel_size > 1 else read

    def _sent(self, edge: Edge) -> Constant:
        return self._made_of(self._unreached[edge.source], edge.operation)

    def _is_bias(self, edge: Edge) -> bool:
        """Whether an edge puts out its BatchNorm's bias, whatever it reads."""
        layer = edge.operation.kind == "layer" and edge.operation.normalised
        return layer and edge.source in self._unreached and self._sent(edge) is Constant.UNIFORM

    @cached_property
    def in_degrees(self) -> tuple[int, ...]:
        """Live incoming edges of each vertex (skip, pool and layer alike), at least 1; the input has 1.

        Paper section 3.2. Edges from vertices that the input does not reach are not counted: they carry no signal.
        """
        return self._incoming(self.live.edges)

    @cached_property
    def in_degrees_of_all_edges(self) -> tuple[int, ...]:
        """The same with every edge counted, dead or live, as the paper's released code does."""
        return self._incoming(self.edges)

    def _incoming(self, edges: Iterable[Edge]) -> tuple[int, ...]:
        incoming = Counter(edge.target for edge in edges)
        return tuple(max(1, incoming[vertex]) for vertex in range(self.vertices))

    def path_depths(self, offset: int = 1) -> Counter[int]:
        """How many input-to-output paths have each depth L_p = offset + layers on the path (paper eq. 8).

        The offset counts the weighted layers that every path shares outside the cell. A disconnected cell has no
        path, hence an empty counter. The work grows with vertices times depth, not with the number of paths.
        """
        depths: list[Counter[int]] = [Counter() for _ in range(self.vertices)]
        depths[0][offset] = 1
        for edge in sorted(self.live.edges):
            step = 1 if edge.operation.kind == "layer" else 0
            for depth, paths in depths[edge.source].items():
                depths[edge.target][depth + step] += paths
        return depths[-1]

    @cached_property
    def network_class(self) -> str:
        """The formula of the network that the cell is: equal for two cells exactly if they are the same network."""
        weighted = self.layers + self.constant_layers
        return self.formula({edge: f"conv{edge.operation.kernel_size}" for edge in weighted})

    def formula(self, kinds: Mapping[Edge, str]) -> str:
        """A canonical formula of the cell, in which each layer that carries weights is called what `kinds` says it is.

        Edges without effect vanish, skips are contracted, sums are multisets and pooling is a function of its input.
        Every layer and every bias keeps its identity: a layer that is read twice is one set of weights, unlike two
        layers with equal inputs. They are named c0, c1, ... so that the formula does not depend on how the cell was
        written; a disconnected cell has the formula "0".
        """
        if not self.connected:
            return "0"
        trained = sorted(self.layers + self.constant_layers + self.biases)
        # A layer's shape is its formula with every layer above it spelled out. Shapes ignore identity, so layers of
        # equal shape are the only ties, and the least formula over all orders of the tied layers is canonical.
        shapes: dict[Edge, str] = {}
        for edge in trained:
            shapes[edge] = self._definition(edge, kinds, shapes)
        trained.sort(key=shapes.__getitem__)
        ties = [tuple(tied) for _, tied in itertools.groupby(trained, key=shapes.__getitem__)]
        return min(
            self._written_in_order(tuple(itertools.chain(*orders)), kinds)
            for orders in itertools.product(*map(itertools.permutations, ties))
        )

    @cached_property
    def _read_by(self) -> dict[int, list[Edge]]:
        """The effective edges into each vertex."""
        found: dict[int, list[Edge]] = {vertex: [] for vertex in range(self.vertices)}
        for edge in self.effective.edges:
            found[edge.target].append(edge)
        return found

    def _written_in_order(self, trained: tuple[Edge, ...], kinds: Mapping[Edge, str]) -> str:
        names = {edge: f"c{position}" for position, edge in enumerate(trained)}
        definitions = [f"{names[edge]}={self._definition(edge, kinds, names)}" for edge in trained]
        return "; ".join([*definitions, f"out={self._sum(self.vertices - 1, names)}"])

    def _definition(self, edge: Edge, kinds: Mapping[Edge, str], names: Mapping[Edge, str]) -> str:
        return "bias" if self._is_bias(edge) else f"{kinds[edge]}({self._sum(edge.source, names)})"

    def _sum(self, vertex: int, names: Mapping[Edge, str]) -> str:
        """What a vertex holds, as a sum in a fixed order, with what is trained written as `names` says."""
        return "+".join(sorted(self._terms(vertex, names)))

    def _terms(self, vertex: int, names: Mapping[Edge, str]) -> list[str]:
        if vertex == 0:
            return ["x"]
        terms: list[str] = []
        for edge in self._read_by[vertex]:
            if edge.operation.kind == "layer":
                terms.append(names[edge])
            elif edge.operation.kind == "skip" or self._unreached.get(edge.source) is Constant.UNIFORM:
                terms += self._terms(edge.source, names)
            else:
                terms.append(f"pool{edge.operation.kernel_size}({self._sum(edge.source, names)})")
        return terms


def lowest_member(keys: Iterable[str]) -> list[int]:
    """For each position the first position with the same key, so that a class is named by its first member."""
    first: dict[str, int] = {}
    return [first.setdefault(key, position) for position, key in enumerate(keys)]


ONE_LAYER = CellGraph(2, (Edge(0, 1, Operation("skip")),))
"""Input, one hidden layer, readout: the base network of the learning-rate rule, with one path of depth 1."""
