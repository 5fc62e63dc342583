"""Average pooling, with a gradient that does not depend on how torch computes it on GPUs.

torch's own is silently wrong where the channels of a pixel lie side by side, as they do in these networks: on CUDA
devices if images are padded (seen on an H100 with torch 2.11; mended by https://github.com/pytorch/pytorch/pull/188345),
and on Apple's GPUs in any pooling (https://github.com/pytorch/pytorch/issues/175190). For the latter, on which none of
this was run, images are laid out anew.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
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
    """The gradient of a pixel is a sum over its neighbours and itself: of the gradient of the mean there, divided by
    how many pixels that is the mean of. Such sums are a pooling, too."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:  # noqa: ANN401, ARG004 - torch's own, without a public type
        return _mean_of_neighbours(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401, ARG004 - as above
        shares = _shares(*gradient.shape[2:], gradient.dtype, gradient.device)
        return functional.avg_pool2d(gradient * shares, 3, stride=1, padding=1)


@cache
def _shares(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Nine over how many of a pixel and its eight neighbours lie in the image: (height, width)."""
    inside = functional.avg_pool2d(torch.ones(1, height, width, dtype=torch.float64), 3, stride=1, padding=1)
    return (1 / inside[0]).to(device, dtype)
