"""How what a rule decided gets into a network: into its initial weights and into the updates of each parameter.

A layer's multiplier is put into the layer's own parameters, so that networks are the same with a rule as without. A
layer that is multiplied by m is the layer with weights m times as large. Under gradient descent its weights then change
as before if their rate is m^2 times as large and their weight decay 1 / m^2 times (the symmetry of Yang and Hu 2021,
arXiv 2011.14522, section 2). Where a BatchNorm follows, its weights and biases are what is multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas_retrain.theory.graph import Edge
from nas_retrain.theory.rule import VECTORS, Layer, Parametrisation


@dataclass(frozen=True)
class Block:
    """Rows of a parameter, along its first dimension, that belong to one layer of one member of a network.

    layer: None for a BatchNorm that belongs to no layer. vector: whether it is no matrix (see `VECTORS`). last: whether
    the layer puts out what this parameter makes, so that a multiplier goes into it. fan: what the layer's variance is
    divided by; 0: its fan-in.
    """

    rows: int
    layer: Layer | None
    vector: bool = False
    last: bool = False
    fan: int = 0

    def multiplier(self, decided: Parametrisation) -> float:
        """What these parameters are multiplied by."""
        return decided.multipliers.get(self.layer, 1.0) if self.last and isinstance(self.layer, Edge) else 1.0

    def rate_factor(self, decided: Parametrisation) -> float:
        """The factor of their learning rate, on top of the network's."""
        layer = VECTORS if self.vector else self.layer
        rate = 1.0 if layer is None else decided.layer_rates.get(layer, 1.0)
        return rate * self.multiplier(decided) ** 2


Blocks = list[list[Block]]
"""For each parameter of a network, in the order of `parameters()`, the rows of one member."""


@torch.no_grad()
def initialise(parameters: Sequence[nn.Parameter], blocks: Blocks, decided: Parametrisation) -> None:
    """Draw the weights of one network for which a rule decided a variance, from torch's generator, and set its
    multipliers. Where it decided the readout's variance, biases are 0."""
    for parameter, parts in zip(parameters, blocks, strict=True):
        for part, rows in zip(parts, torch.split(parameter, [part.rows for part in parts]), strict=True):
            if part.vector:
                if part.layer == "readout" and "readout" in decided.variances:
                    rows.zero_()
            elif part.layer is not None and part.layer in decided.variances:
                rows.normal_(0.0, (decided.variances[part.layer] / (part.fan or rows[0].numel())) ** 0.5)
            if (multiplier := part.multiplier(decided)) != 1:
                rows.mul_(multiplier)


@dataclass(frozen=True)
class UpdateFactors:
    """Factors of each parameter's updates, of shape (rows of all members, 1, ...), in the order of `parameters()`.

    rates: of the learning rate. decays: of the weight decay beside the gradient; none where all are 1.
    """

    rates: list[Tensor]
    decays: list[Tensor]


def update_factors(
    parameters: Sequence[Tensor], blocks: Blocks, decided: Sequence[Parametrisation | None]
) -> UpdateFactors | None:
    """The factors for a network of several members; None if they are 1 throughout.

    decided: what rules decided for each member, None without a rule.
    """
    members = [one or Parametrisation() for one in decided]
    if all(one.uniform for one in members):
        return None
    rates, decays = [], []
    for parameter, parts in zip(parameters, blocks, strict=True):
        rows = torch.tensor([part.rows for part in parts] * len(members))
        shape = (-1, *[1] * (parameter.ndim - 1))
        by_part = torch.tensor([part.rate_factor(one) for one in members for part in parts])
        rates.append(by_part.repeat_interleave(rows).view(shape).to(parameter.device))
        by_part = torch.tensor([part.multiplier(one) ** -2 for one in members for part in parts])
        decays.append(by_part.repeat_interleave(rows).view(shape).to(parameter.device))
    multiplied = any(one.multipliers for one in members)
    return UpdateFactors(rates, decays if multiplied else [])
