"""What a scaling rule decides for a network of your own: deviations and learning rates of its layers.

A rule's multiplier of a layer is put into the layer: weights m times as large, with m^2 times the rate under gradient
descent (see `benches.parametrised`) and m times the rate under Adam, whose steps do not depend on a gradient's scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import VECTORS, Layer, NetworkSize, Parametrisation, Rates, find
from nas_retrain.theory.scaling import readout_factor

Optimiser = Literal["sgd", "adam"]


@dataclass(frozen=True)
class LayerSize:
    """A layer as a rule sees it. layer: an edge of the graph, or its role outside of it."""

    layer: Layer
    fan_in: int
    outputs: int


@dataclass(frozen=True)
class LayerDecision:
    """A layer's standard deviation, multiplied by its multiplier, and the factor of its learning rate, on top of the
    network's, that goes with it."""

    standard_deviation: float
    rate_factor: float
    multiplier: float


@dataclass(frozen=True)
class NetworkDecision:
    """learning_rate: a factor of the base rate. vectors: the factor, on top of it, of biases and normalisations."""

    learning_rate: float
    vectors: float
    layers: tuple[LayerDecision, ...]


def decide(
    rule: str,
    parameters: Mapping[str, Any] | None,
    optimiser: Optimiser,
    graph: CellGraph,
    layers: Sequence[LayerSize],
    *,
    normalised: bool,
    gain_squared: float,
    name: str,
) -> NetworkDecision:
    """What a rule decides for a network, with a decision for each of its layers.

    Layers of which the rule decides no variance have gain^2 / fan-in, and readouts (gain^2 / fan-in)^2. Raises
    NasRetrainError for a rule that cannot be used, that says nothing about the optimiser, or that multiplies layers
    before a normalisation, in which that would be lost.
    """
    if optimiser not in get_args(Optimiser):
        raise NasRetrainError(f"optimiser is {optimiser!r}; choose 'sgd' or 'adam'.")
    decided = find(rule, parameters).decide(graph, _size(layers, normalised, gain_squared), name)
    rates = _rates(decided, optimiser, rule)
    if normalised and any(multiplier != 1 for multiplier in decided.multipliers.values()):
        raise NasRetrainError(
            f"rule {rule} multiplies layers, and {name} has normalisation layers, after which a multiplier of weights "
            "is lost. Use another rule, or multiply the branches in forward and leave this rule out."
        )
    power = 2 if optimiser == "sgd" else 1
    found = []
    for one in layers:
        usual = readout_factor(one.fan_in, gain_squared) if one.layer == "readout" else gain_squared
        multiplier = 1.0 if isinstance(one.layer, str) else decided.multipliers.get(one.layer, 1.0)
        deviation = math.sqrt(decided.variances.get(one.layer, usual) / one.fan_in)
        factor = rates.layer_rates.get(one.layer, 1.0) * multiplier**power
        found.append(LayerDecision(multiplier * deviation, factor, multiplier))
    return NetworkDecision(rates.learning_rate, rates.layer_rates.get(VECTORS, 1.0), tuple(found))


def _rates(decided: Parametrisation, optimiser: Optimiser, rule: str) -> Rates:
    if optimiser == "sgd":
        return Rates(decided.learning_rate, decided.layer_rates)
    if decided.adam is None:
        raise NasRetrainError(f"rule {rule} says nothing about Adam: it holds for gradient descent, optimiser='sgd'.")
    return decided.adam


def _size(layers: Sequence[LayerSize], normalised: bool, gain_squared: float) -> NetworkSize:
    widths = {one.outputs for one in layers if one.layer != "readout"}
    readouts = [one for one in layers if one.layer == "readout"]
    first = [one for one in layers if one.layer == "first"]
    return NetworkSize(
        width=widths.pop() if len(widths) == 1 else None,
        readout_width=max((one.fan_in for one in readouts), default=1),
        inputs=max((one.fan_in for one in first), default=1),
        classes=max((one.outputs for one in readouts), default=1),
        normalised=normalised,
        gain_squared=gain_squared,
    )
