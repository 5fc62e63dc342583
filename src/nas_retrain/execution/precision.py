"""In which precision a network is computed: float32, tf32 or bfloat16. Weights and updates are float32 in all of them.

- float32: IEEE single precision throughout, on every device.
- tf32: convolutions and matrix products read their inputs with TF32's 10 bits of mantissa and add in single precision.
  NVIDIA GPUs since Ampere have it; elsewhere it is refused.
- bfloat16: convolutions and the readout read and write bfloat16, with weights that are cast all at once in each step.
  BatchNorm, the sums of a cell, the loss and the update are in single precision.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from nas_retrain.errors import NasRetrainError


def set_precision(precision: str, device: torch.device) -> None:
    """Make this process compute in `precision` on `device`; raises NasRetrainError for one that the device lacks.

    torch's own default is TF32 in convolutions and IEEE single precision in matrix products.
    """
    tf32 = precision == "tf32"
    if tf32 and device.type not in ("cuda", "meta"):
        raise NasRetrainError(
            f"training.precision=tf32 needs an NVIDIA GPU, and these trainings are to run on {device.type}: choose "
            "training.precision=float32, or launcher.device=cuda where there is one."
        )
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def forward(network: nn.Module, images: Tensor, precision: str) -> Tensor:
    """A network's logits for `images`; a network computes each layer in the precision of the weights it is given."""
    if precision != "bfloat16":
        return cast("Tensor", network(images))
    names, weights = zip(*((name, each) for name, each in network.named_parameters() if each.ndim > 1), strict=True)
    halves = dict(zip(names, _InBfloat16.apply(*weights), strict=True))
    return cast("Tensor", torch.func.functional_call(network, halves, (images,)))


class _InBfloat16(torch.autograd.Function):
    """Weights in bfloat16, and their gradients in the weights' own precision, with one cast for all each way."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - torch's own, without a public type
        ctx.precision = weights[0].dtype
        return _cast(weights, torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - as above
        return _cast(gradients, ctx.precision)


def _cast(tensors: tuple[Tensor, ...], precision: torch.dtype) -> tuple[Tensor, ...]:
    into = [torch.empty_like(tensor, dtype=precision) for tensor in tensors]
    torch._foreach_copy_(into, tensors)
    return tuple(into)
