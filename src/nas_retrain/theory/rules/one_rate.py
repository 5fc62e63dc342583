"""One rate for every network, which is how benchmarks are made: the rule to be better than."""

from __future__ import annotations

from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Parametrisation, Rates


def rule(_graph: CellGraph, _size: NetworkSize) -> Parametrisation:
    """Decide nothing: factor 1, and weights drawn as the recipe says, for gradient descent and for Adam."""
    return Parametrisation(adam=Rates())
