"""The paper's two rules, as pure functions of a cell graph: initial variances and the learning rate.

Source: Chen, Wu, Wang, Hanin, "Principled Architecture-aware Scaling of Hyperparameters", ICLR 2024
(arXiv 2402.17440).

Contract: on the base network the rules change nothing. Every variance factor is He's 2.0 and the learning-rate
factor is 1.0, both exactly. The theory covers the first step of networks without normalisation layers; nothing here
depends on width.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Literal, get_args

from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph, Edge, Operation

InDegree = Literal["source", "target", "released"]
"""Which in-degree divides a layer's variance, see `variance_factors`."""

Activation = Literal["relu", "gelu"]

Initialisation = Literal["stock", "he", "mup", "source", "target", "released"]
"""How weights are drawn. "stock": as PyTorch does. "he": from He's normal distribution. "mup": likewise, but the
readout's standard deviation, rather than its variance, falls as 1 / width, which the paper's rules assume. "source",
"target" and "released": as "mup", with variances divided by that in-degree."""

HE_GAIN_SQUARED = 2.0
"""E[relu(z)^2] = E[z^2] / 2 for symmetric z, so a variance of 2 / fan-in keeps the signal's scale (He et al. 2015)."""

GAIN_SQUARED: dict[Activation, float] = {
    "relu": HE_GAIN_SQUARED,
    "gelu": 1 / (1 / 3 + 1 / (2 * math.sqrt(3) * math.pi)),
}
"""1 / E[activation(z)^2] for a standard normal z (GELU's by Stein's lemma; it keeps the scale only where z has unit
variance)."""


BASE = CellGraph(2, (Edge(0, 1, Operation("skip")),))
"""The graph of the base network where none is named: a skip, with one path whose depth is the depth offset."""

REDUCTION_DEGREES: dict[InDegree | None, tuple[int, int, int]] = {
    "source": (2, 1, 2),
    "target": (1, 2, 2),
    "released": (2, 1, 2),
    None: (1, 1, 1),
}
"""In-degrees that divide the variances of the first convolution, the second convolution and the shortcut of a residual
block between stages.

"target" is the rule: the second convolution and the shortcut meet in one sum. The others are what the paper's
experiments ran, which is not the in-degree of the source vertex (that would be 1 throughout).
"""


@cache
def in_degree_of(initialisation: Initialisation) -> InDegree | None:
    """Whose in-degree divides the variances, if any does."""
    return next((convention for convention in get_args(InDegree) if convention == initialisation), None)


def variance_factors(
    graph: CellGraph, in_degree: InDegree | None, gain_squared: float = HE_GAIN_SQUARED
) -> dict[Edge, float]:
    """The factor C of each layer that has weights: they are drawn with variance C / fan-in.

    in_degree: whose in-degree divides. "target", C(l', l) = 2 / d_in(l), is what appendix A derives (eq. 12) and
    what keeps E|z|^2 equal at every vertex (eq. 3) of a graph without skips and poolings, whose terms nothing divides;
    "source", C(l', l) = 2 / d_in(l'), is eq. 4 as printed.
    "released" is "source" as the paper's released code counts it: edges from vertices that the input does not reach
    are counted too. They agree where every vertex has one incoming edge. None: nothing divides.
    gain_squared: in place of 2 for another activation than ReLU, see `GAIN_SQUARED`.

    Layers of constants (`CellGraph.constant_layers`) have the factors of their vertices like all others, and are not
    counted by "source" and "target": where training starts, biases are 0 and such layers put out nothing.
    """
    layers = graph.layers + graph.constant_layers
    if in_degree is None:
        return dict.fromkeys(layers, gain_squared)
    degrees = graph.in_degrees_of_all_edges if in_degree == "released" else graph.in_degrees
    return {edge: gain_squared / degrees[edge.target if in_degree == "target" else edge.source] for edge in layers}


def readout_factor(fan_in: int, gain_squared: float = HE_GAIN_SQUARED) -> float:
    """The factor C of a readout whose deviation, not its variance, is gain^2 / fan-in, as muP has it."""
    return gain_squared**2 / fan_in


def depths_of_paths(graph: CellGraph, depth_offset: int) -> Counter[int]:
    """See `CellGraph.path_depths`. Raises NasRetrainError for a cell without a path from input to output: no rate
    exists for it."""
    if not (depths := graph.path_depths(depth_offset)):
        raise NasRetrainError("No path leads from the cell's input to its output, so it has no learning rate.")
    return depths


def learning_rate_factor(
    graph: CellGraph,
    base: CellGraph,
    *,
    depth_offset: int = 1,
    kernel_factor: bool = False,
    base_kernel_size: float = 3.0,
) -> float:
    """The maximal learning rate as a multiple of the base network's (paper eq. 8, with `kernel_factor` eq. 9).

    factor = [sum_p L_p^3 / sum_base L_p^3]^(-1/2) * q_base / q, where p runs over all input-to-output paths, L_p is
    `depth_offset` plus the layers on the path, and q is the mean kernel size of the live layers. Cells without
    layers have no kernel of their own and keep the base network's.

    Raises NasRetrainError for a cell without a path from input to output: no rate exists for it.
    """
    depths, base_depths = depths_of_paths(graph, depth_offset), depths_of_paths(base, depth_offset)
    factor = _root_of_ratio(sum_of_cubes(base_depths), sum_of_cubes(depths))
    if kernel_factor:
        factor *= _mean_kernel_size(base, base_kernel_size) / _mean_kernel_size(graph, base_kernel_size)
    return factor


def sum_of_cubes(depths: Counter[int]) -> int:
    """The sum of L_p^3 over paths, from how many paths have each depth."""
    return sum(paths * depth**3 for depth, paths in depths.items())


def _root_of_ratio(numerator: int, denominator: int) -> float:
    """sqrt(numerator / denominator), by logarithms where the ratio itself may be beyond a float."""
    if abs(numerator.bit_length() - denominator.bit_length()) < 1000:
        return math.sqrt(numerator / denominator)
    return math.exp((math.log(numerator) - math.log(denominator)) / 2)


def _mean_kernel_size(graph: CellGraph, without_layers: float) -> float:
    sizes = [edge.operation.kernel_size for edge in graph.layers]
    return sum(sizes) / len(sizes) if sizes else without_layers
