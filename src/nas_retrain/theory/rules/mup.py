"""muP: variances and rates by layer, so that what is best at one width is best at another."""

from __future__ import annotations

from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import VECTORS, Layer, NetworkSize, Parametrisation, Rates, Vectors, weighted_edges
from nas_retrain.theory.scaling import readout_factor


def rule(graph: CellGraph, size: NetworkSize, *, base_width: int = 64) -> Parametrisation:
    """With r = width / base_width, where the base rate was searched at base_width:

    | | variance | rate, gradient descent | rate, Adam |
    | --- | --- | --- | --- |
    | first layer, vectors | gain^2 / fan-in | r | 1 |
    | hidden layers | gain^2 / fan-in | 1 | 1 / r |
    | readout | (gain^2 / fan-in)^2 | 1 / r | 1 / r |

    Source: Yang, Hu and others, "Tensor Programs V", 2022 (arXiv 2203.03466), table 3.

    Limits: it knows neither depth nor graph: multiply its rate by another rule's where these vary. At the base width it
    is one rate for all layers. It needs a width.
    """
    ratio = size.required_width / base_width
    hidden: list[Layer] = [*weighted_edges(graph), *(layer for layer in size.outer if layer.startswith("reduction"))]
    variances: dict[Layer, float] = dict.fromkeys((*hidden, "first"), size.gain_squared)
    variances["readout"] = readout_factor(size.readout_width, size.gain_squared)
    descent: dict[Layer | Vectors, float] = {"first": ratio, VECTORS: ratio, "readout": 1 / ratio}
    adam: dict[Layer | Vectors, float] = dict.fromkeys((*hidden, "readout"), 1 / ratio)
    return Parametrisation(layer_rates=descent, variances=variances, adam=Rates(layer_rates=adam))
