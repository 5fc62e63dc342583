"""A rate by the depth of the deepest path alone."""

from __future__ import annotations

from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Parametrisation
from nas_retrain.theory.scaling import depths_of_paths


def rule(graph: CellGraph, size: NetworkSize, *, exponent: float = -1.5) -> Parametrisation:
    """The rate (L / L_base)^exponent, where L = depth_offset + layers on the deepest path and L_base = depth_offset.

    Source: Jelassi, Hanin, Ji, Reddi, Bhojanapalli and Kumar, "Depth Dependence of muP Learning Rates in ReLU MLPs",
    2023 (arXiv 2305.07810): L^(-3/2) for chains under muP and gradient descent.

    Limits: derived for chains, where the paper's rule gives the same. Of several paths it sees the deepest alone. It
    says nothing about initialisation, and nothing about Adam.
    """
    deepest = max(depths_of_paths(graph, size.depth_offset))
    return Parametrisation((deepest / size.depth_offset) ** exponent)
