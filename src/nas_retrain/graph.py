"""A cell as a directed acyclic graph, and what the scaling rules read from it.

Vertices are feature maps (the paper's pre-activations z), edges carry operations; an absent edge is the "none"
operation. Vertex 0 is the cell's input and the last vertex its output. Every edge leads from a lower to a higher
vertex, so vertex order is a topological order.

This module knows no search space and does not import torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nas_retrain.errors import NasRetrainError


@dataclass(frozen=True, order=True)
class Operation:
    """What an edge does to its source vertex.

    kind: "skip" (identity), "pool" (average pooling, no weights) or "layer" (ReLU, then a weighted linear map).
    kernel_size: side of the square window; 1 for skips and for fully-connected layers.
    """

    kind: Literal["skip", "pool", "layer"]
    kernel_size: int = 1


@dataclass(frozen=True, order=True)
class Edge:
    """An operation from vertex `source` to vertex `target`, source < target."""

    source: int
    target: int
    operation: Operation


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
        for edge in sorted(self.edges):  # by source: when an edge is reached, its source's fate is decided
            if edge.source in from_input:
                from_input.add(edge.target)
        to_output = {self.vertices - 1}
        for edge in sorted(self.edges, key=lambda edge: -edge.target):
            if edge.target in to_output:
                to_output.add(edge.source)
        return CellGraph(
            self.vertices,
            tuple(edge for edge in self.edges if edge.source in from_input and edge.target in to_output),
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
    def in_degrees(self) -> tuple[int, ...]:
        """Live incoming edges of each vertex (skip, pool and layer alike), at least 1; the input has 1.

        Paper section 3.2. Edges from dead vertices carry no signal and are not counted.
        """
        incoming = Counter(edge.target for edge in self.live.edges)
        return tuple(max(1, incoming[vertex]) for vertex in range(self.vertices))

    def path_depths(self, offset: int = 1) -> Counter[int]:
        """How many input-to-output paths have each depth L_p = offset + layers on the path (paper eq. 8).

        The offset counts the weighted layers that every path shares outside the cell. An unconnected cell has no
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
        return self.formula({edge: f"conv{edge.operation.kernel_size}" for edge in self.layers})

    def formula(self, kinds: Mapping[Edge, str]) -> str:
        """A canonical formula of the cell, in which each live layer is called what `kinds` says it is.

        Dead edges vanish, skips are contracted, sums are multisets and pooling is a function of its input. Every
        layer keeps its identity: a layer that is read twice is one set of weights, unlike two layers with equal
        inputs. Layers are named c0, c1, ... so that the formula does not depend on how the cell was written; an
        unconnected cell has the formula "0".
        """
        if not self.connected:
            return "0"
        layers = sorted(self.layers)
        # A layer's shape is its formula with every layer above it spelled out. Shapes ignore identity, so layers of
        # equal shape are the only ties, and the least formula over all orders of the tied layers is canonical.
        shapes: dict[Edge, str] = {}
        for layer in layers:
            shapes[layer] = f"{kinds[layer]}({self._sum(layer.source, shapes)})"
        layers.sort(key=shapes.__getitem__)
        ties = [tuple(tied) for _, tied in itertools.groupby(layers, key=shapes.__getitem__)]
        return min(
            self._written_in_order(tuple(itertools.chain(*orders)), kinds)
            for orders in itertools.product(*map(itertools.permutations, ties))
        )

    def _written_in_order(self, layers: tuple[Edge, ...], kinds: Mapping[Edge, str]) -> str:
        names = {layer: f"c{position}" for position, layer in enumerate(layers)}
        definitions = [f"{names[layer]}={kinds[layer]}({self._sum(layer.source, names)})" for layer in layers]
        return "; ".join([*definitions, f"out={self._sum(self.vertices - 1, names)}"])

    def _sum(self, vertex: int, names: Mapping[Edge, str]) -> str:
        """What a vertex holds, as a sum in a fixed order, with the layers written as `names` says."""
        return "+".join(sorted(self._terms(vertex, names)))

    def _terms(self, vertex: int, names: Mapping[Edge, str]) -> list[str]:
        if vertex == 0:
            return ["x"]
        terms: list[str] = []
        for edge in self.live.edges:
            if edge.target != vertex:
                continue
            if edge.operation.kind == "skip":
                terms += self._terms(edge.source, names)
            elif edge.operation.kind == "pool":
                terms.append(f"pool{edge.operation.kernel_size}({self._sum(edge.source, names)})")
            else:
                terms.append(names[edge])
        return terms


def lowest_member(keys: Iterable[str]) -> list[int]:
    """For each position the first position with the same key: class numbers that name their representative."""
    first: dict[str, int] = {}
    return [first.setdefault(key, position) for position, key in enumerate(keys)]
