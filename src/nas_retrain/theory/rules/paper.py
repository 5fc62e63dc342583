"""The rules of the paper that this project tests: variances by in-degree, and a rate by the depths of all paths."""

from __future__ import annotations

from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import Layer, NetworkSize, Parametrisation
from nas_retrain.theory.scaling import (
    REDUCTION_DEGREES,
    InDegree,
    learning_rate_factor,
    readout_factor,
    variance_factors,
)


def rule(
    graph: CellGraph,
    size: NetworkSize,
    *,
    in_degree: InDegree = "source",
    kernel_factor: bool = False,
    initialisation: bool = True,
    rate: bool = True,
) -> Parametrisation:
    """Variances C = gain^2 / in-degree and the rate (sum_p L_p^3 / sum_base L_p^3)^(-1/2) [q_base / q].

    Source: Chen, Wu, Wang and Hanin, "Principled Architecture-aware Scaling of Hyperparameters", ICLR 2024 (arXiv
    2402.17440), eq. 4, 8, 9 and 12.

    in_degree: whose in-degree divides: "source" (eq. 4 as printed), "target" (appendix A) or "released", the source's
    as the released code counts it, with edges from vertices that the input does not reach. See `variance_factors`.
    kernel_factor: also divide the rate by the mean kernel size (eq. 9). initialisation, rate: whether to decide these.
    The readout has variance (gain^2 / fan-in)^2, and blocks between stages the degrees of `REDUCTION_DEGREES`.

    Limits: it covers the first step of gradient descent in networks without normalisation, counts the paths of one cell
    and not of all that are stacked, does not depend on width, and says nothing about Adam.
    """
    variances: dict[Layer, float] = {}
    if initialisation:
        for edge, factor in variance_factors(graph, in_degree, size.gain_squared).items():
            variances[edge] = factor
        variances |= dict.fromkeys(size.outer, size.gain_squared)
        variances["readout"] = readout_factor(size.readout_width, size.gain_squared)
        if size.stages > 1:
            first, second, shortcut = REDUCTION_DEGREES[in_degree]
            variances["reduction_first"] /= first
            variances["reduction_second"] /= second
            variances["reduction_shortcut"] /= shortcut
    factor = 1.0
    if rate:
        factor = learning_rate_factor(
            graph,
            size.base,
            depth_offset=size.depth_offset,
            kernel_factor=kernel_factor,
            base_kernel_size=size.base_kernel_size,
        )
    return Parametrisation(factor, variances=variances)
