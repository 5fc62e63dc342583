"""He's initialisation with one rate."""

from __future__ import annotations

from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Parametrisation, Rates, weighted_edges


def rule(graph: CellGraph, size: NetworkSize) -> Parametrisation:
    """C = gain^2 for every layer, the readout too, where gain^2 = 1 / E[activation(z)^2] is 2 for ReLU.

    Source: He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", ICCV 2015, eq. 10. It keeps the signal's scale along
    a chain of layers. Where branches meet, their variances add up, and it says nothing about the learning rate.
    """
    layers = (*weighted_edges(graph), *size.outer)
    return Parametrisation(variances=dict.fromkeys(layers, size.gain_squared), adam=Rates())
