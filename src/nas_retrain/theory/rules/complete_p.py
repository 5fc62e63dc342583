"""Multipliers of residual branches by depth, so that what is best for one number of branches is best for another."""

from __future__ import annotations

from nas_retrain.theory.graph import CellGraph, Edge
from nas_retrain.theory.rule import Layer, NetworkSize, Parametrisation, Rates, Vectors, weighted_edges


def rule(graph: CellGraph, size: NetworkSize, *, alpha: float = 1.0) -> Parametrisation:
    """A layer that ends a residual branch adds L^(-alpha) times what it puts out; layers of branches have the rate
    L^(2 alpha - 1) under gradient descent and L^(alpha - 1) under Adam. All layers have He's variances.

    L is the number of residual branches on the deepest path through all cells that are stacked, at least 1. A residual
    branch ends in a layer whose target the input also reaches along skips and poolings alone.

    Source: Dey, Zhang, Noci, Li, Bordelon, Bergsma, Pehlevan, Hanin and Hestness, "Don't be lazy: CompleteP enables
    compute-efficient deep transformers", 2025 (arXiv 2505.01618): alpha = 1, for Adam. The exponent for gradient
    descent follows from the same demand, that all branches together change the output by the same amount: a branch's
    gradient has the factor L^(-alpha), and so has what its change adds, of which there are L.

    Limits: derived for transformers of equal blocks. Cells without a residual branch are left as they are, whatever
    their depth. The layers on a branch before its last have the branch's rate too. It does not depend on width.
    """
    stream = _along_skips(graph)
    ends = [edge for edge in graph.layers if edge.target in stream]
    in_cell = _most_on_a_path(graph, set(ends))
    branches = max(1, in_cell * size.cells_per_stage * size.stages)
    on_branches = _before(graph, ends)
    rates: dict[Layer | Vectors, float] = dict.fromkeys(on_branches, branches ** (2 * alpha - 1))
    for_adam: dict[Layer | Vectors, float] = dict.fromkeys(on_branches, branches ** (alpha - 1))
    return Parametrisation(
        layer_rates=rates,
        variances=dict.fromkeys((*weighted_edges(graph), *size.outer), size.gain_squared),
        multipliers=dict.fromkeys(ends, branches**-alpha),
        adam=Rates(layer_rates=for_adam),
    )


def _along_skips(graph: CellGraph) -> set[int]:
    """The vertices that the input reaches along skips and poolings alone, and from which the output can be reached."""
    reached = {0}
    for edge in sorted(graph.live.edges):
        if edge.source in reached and edge.operation.kind != "layer":
            reached.add(edge.target)
    return reached


def _most_on_a_path(graph: CellGraph, counted: set[Edge]) -> int:
    most = [0] * graph.vertices
    for edge in sorted(graph.live.edges):
        most[edge.target] = max(most[edge.target], most[edge.source] + (edge in counted))
    return most[-1]


def _before(graph: CellGraph, ends: list[Edge]) -> list[Edge]:
    """The layers that end a branch, and those that lead to one of them."""
    leading = {edge.source for edge in ends}
    for edge in sorted(graph.live.edges, key=lambda edge: -edge.target):
        if edge.target in leading:
            leading.add(edge.source)
    return [edge for edge in graph.layers if edge in ends or edge.target in leading]
