"""SGD with momentum and weight decay for a network of several members, each with a learning rate of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from nas_retrain.benches import build
from nas_retrain.benches.parametrised import update_factors
from nas_retrain.settings import Settings
from nas_retrain.theory.rule import Parametrisation


class Sgd:
    """The optimiser of a network whose parameters are its members' stacked along the first dimension.

    The learning rate is a tensor on the device, so that a captured step reads the rate of its epoch. PyTorch's SGD has
    one rate for a tensor, and a stacked tensor has all members'. An update is linear in the gradient and in the decayed
    weight, through the momentum too; so both are scaled by a member's share of the first one's rate, and by what a
    scaling rule decided for a layer. These shares never change.

    decided: what rules decided for each member; empty if there are none.
    """

    def __init__(
        self,
        network: build.Network,
        rates: Sequence[float],
        settings: Settings,
        decided: Sequence[Parametrisation | None] = (),
    ) -> None:
        self.first_rate, self.members = rates[0], len(rates)
        self.parameters: list[Tensor] = list(network.parameters())
        self.recipe = settings.training
        device = self.parameters[0].device
        self.of_losses = torch.ones(self.members, device=device, dtype=self.parameters[0].dtype)
        # The fused kernels take a rate in double precision on the CPU, where a float is one, and in single elsewhere.
        precision = torch.float64 if device.type == "cpu" else torch.float32
        self.rate = torch.tensor(self.first_rate, device=device, dtype=precision)
        # From 0 the first momentum comes to the first gradient, as SGD has it. The fused update goes through memory:
        # a momentum must be laid out as its parameter is.
        self.momenta: list[Tensor] = [torch.zeros_like(each.detach()) for each in self.parameters]
        if not self.recipe.momentum:
            self.momenta = []
        of_layers = (
            update_factors(list(network.parameters()), network.parameter_blocks, decided) if any(decided) else None
        )
        self.shares: list[Tensor] = []
        self.decays: list[Tensor] = []
        if self.members > 1 or of_layers:
            share = torch.tensor(rates, device=device) / self.first_rate
            self.shares = [
                share.repeat_interleave(len(parameter) // self.members).view(-1, *[1] * (parameter.ndim - 1))
                for parameter in self.parameters
            ]
        if of_layers:
            torch._foreach_mul_(self.shares, of_layers.rates)
            self.decays = of_layers.decays
        self.weight_decay = self.recipe.weight_decay
        if self.recipe.norm_weight_decay is not None:
            # From here on the decays are the whole of it. A vector is BatchNorm's or a bias.
            by_kind = {True: self.recipe.norm_weight_decay, False: self.weight_decay}
            own = [torch.full([1] * each.ndim, by_kind[each.ndim == 1], device=device) for each in self.parameters]
            self.decays = (
                [one * all_of_it for one, all_of_it in zip(self.decays, own, strict=True)] if of_layers else own
            )
            self.weight_decay = 1.0

    def anneal(self, factor: float) -> None:
        """Set every member's rate to this share of its own."""
        self.rate.fill_(self.first_rate * factor)

    def compute_gradients(self, losses: Tensor) -> None:
        """Compute the gradients of the sum of the members' losses."""
        for parameter in self.parameters:
            parameter.grad = None
        losses.backward(self.of_losses)  # type: ignore[no-untyped-call]

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients that were computed, in the parameters' order."""
        return [cast("Tensor", parameter.grad) for parameter in self.parameters]

    @torch.no_grad()
    def gradient_sizes(self) -> tuple[list[float], list[float]]:
        """Each member's gradient_norm and relative_gradient (see `RunRecord`)."""
        members = self.members
        squares = torch.zeros(members, device=self.parameters[0].device)
        shares = []
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            square = gradient.reshape(members, -1).square().sum(1)
            squares += square
            if parameter.ndim > 1:
                shares.append(square / parameter.reshape(members, -1).square().sum(1))
        return squares.sqrt().tolist(), torch.stack(shares).mean(0).sqrt().tolist()

    @torch.no_grad()
    def update(self) -> None:
        """Move the parameters by the gradients that were computed."""
        gradients = self.gradients
        if self.decays:
            torch._foreach_addcmul_(gradients, self.parameters, self.decays, value=self.weight_decay)
        elif self.shares:
            torch._foreach_add_(gradients, self.parameters, alpha=self.weight_decay)
        if self.shares:
            torch._foreach_mul_(gradients, self.shares)
        sgd(
            self.parameters,
            gradients,
            list(self.momenta) or [None] * len(gradients),
            lr=self.rate,
            momentum=self.recipe.momentum,
            dampening=0.0,
            nesterov=self.recipe.nesterov,
            weight_decay=0.0 if self.shares or self.decays else self.weight_decay,
            maximize=False,
            fused=True,
        )
