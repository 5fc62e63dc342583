"""A rate by the shortest path, on which additions count as layers do."""

from __future__ import annotations

import math

from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Parametrisation


def rule(graph: CellGraph, size: NetworkSize, *, exponent: float = -1.5) -> Parametrisation:
    """The rate (L / L_base)^exponent, where L = depth_offset + effective depth, and L_base is the base network's, which
    is depth_offset where that has no layers.

    The effective depth is that of the path from input to output with the fewest layers and additions, where a vertex of
    more than one live incoming edge is one addition, however many edges meet there.

    Source: Zhang, Wu, Bian, Ma, Zhang, Chen and Lin, "Hyperparameter Transfer Laws for Non-Recurrent Multi-Path Neural
    Networks", 2026 (arXiv 2602.07494): L^(-3/2).

    Limits: derived for initialisations that keep the signal's scale, which this rule leaves to the recipe. Counts one
    cell and not all that are stacked. Says nothing about Adam.
    """
    depth, of_base = (size.depth_offset + effective_depth(one) for one in (graph, size.base))
    return Parametrisation((depth / of_base) ** exponent)


def effective_depth(graph: CellGraph) -> int:
    """The fewest layers and additions on a path from input to output. Raises NasRetrainError where there is none."""
    if not graph.connected:
        raise NasRetrainError("no path leads from the cell's input to its output, so it has no learning rate")
    fewest: list[float] = [0.0] + [math.inf] * (graph.vertices - 1)
    for edge in sorted(graph.live.edges):
        layer, addition = edge.operation.kind == "layer", graph.in_degrees[edge.target] > 1
        fewest[edge.target] = min(fewest[edge.target], fewest[edge.source] + layer + addition)
    return int(fewest[-1])
