"""Average pooling whose gradient is right on every device.

torch's own is silently wrong where the channels of a pixel lie side by side, as they do in these networks: on CUDA
devices if images are padded (seen on an H100 with torch 2.11; https://github.com/pytorch/pytorch/issues/188344), and on
Apple's GPUs (https://github.com/pytorch/pytorch/issues/175190). Its forward pass is right on both.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional


def averaged(images: Tensor) -> Tensor:
    """The mean of each pixel and its eight neighbours, of as many as lie in the image: (batch, channels, height, width)
    to the same shape."""
    if images.device.type in ("cuda", "meta"):  # what is counted on the meta device is what a GPU does
        return cast("Tensor", _Averaged.apply(images))
    return _mean_of_neighbours(_laid_out(images))


def halved(images: Tensor) -> Tensor:
    """The mean of each square of two by two pixels: (batch, channels, height, width) to half the height and width,
    rounded up."""
    return functional.avg_pool2d(_laid_out(images), 2, ceil_mode=True)


def _laid_out(images: Tensor) -> Tensor:
    return images.contiguous() if images.device.type == "mps" else images


def _mean_of_neighbours(images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


class _Averaged(torch.autograd.Function):
    """Who is whose neighbour is the same both ways, so that the gradient is a pooling, too: of what comes back to each
    mean, over how many pixels it is of."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:  # noqa: ANN401, ARG004 - torch's own, without a public type
        return _mean_of_neighbours(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401, ARG004 - as above
        shares = _shares(*gradient.shape[2:], gradient.dtype, gradient.device)
        return functional.avg_pool2d(gradient * shares, 3, stride=1, padding=1)


@cache
def _shares(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Nine over how many of a pixel and its eight neighbours lie in the image: (height, width)."""
    inside = functional.avg_pool2d(torch.ones(1, height, width, dtype=torch.float64), 3, stride=1, padding=1)
    return (1 / inside[0]).to(device, dtype)
