"""A rate by the depth of the deepest path alone."""

from __future__ import annotations

from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Parametrisation
from nas_retrain.theory.scaling import depths_of_paths


def rule(graph: CellGraph, size: NetworkSize, *, exponent: float = -1.5) -> Parametrisation:
    """The rate (L / L_base)^exponent, where L = depth_offset + layers on the deepest path, and L_base is the base
    network's, which is depth_offset where that has no layers.

    Source: Jelassi, Hanin, Ji, Reddi, Bhojanapalli and Kumar, "Depth Dependence of muP Learning Rates in ReLU MLPs",
    2023 (arXiv 2305.07810): L^(-3/2) for chains under muP and gradient descent.

    Limits: derived for chains, where the paper's rule gives the same. Of several paths it sees the deepest alone. It
    says nothing about initialisation, and nothing about Adam.
    """
    deepest, of_base = (max(depths_of_paths(one, size.depth_offset)) for one in (graph, size.base))
    return Parametrisation((deepest / of_base) ** exponent)
