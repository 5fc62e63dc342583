"""cuDNN and cuBLAS on the stub: each call gives new memory of the right shape, type and layout, and is counted.

These libraries would ask the driver for what the stub does not have. Importing this module replaces torch's calls.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

calls: Counter[str] = Counter()
"""How often each was called, with the flags that choose a convolution's algorithm."""

_CHANNELS_LAST = torch.channels_last


def _size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _convolution(
    images: Tensor,
    weight: Tensor,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    _groups: int,
    benchmark: bool,
    deterministic: bool,
    allow_tf32: bool,
) -> Tensor:
    calls["convolution"] += 1
    calls["benchmarked"] += benchmark
    calls["deterministic"] += deterministic
    calls["tf32"] += allow_tf32
    height, width = (
        _size(images.shape[axis + 2], weight.shape[axis + 2], stride[axis], padding[axis], dilation[axis])
        for axis in range(2)
    )
    last = any(one.is_contiguous(memory_format=_CHANNELS_LAST) for one in (images, weight))
    return torch.empty(
        (len(images), len(weight), height, width),
        dtype=images.dtype,
        device=images.device,
        memory_format=_CHANNELS_LAST if last else torch.contiguous_format,
    )


def _convolution_backward(
    gradient: Tensor, images: Tensor, weight: Tensor, _bias: object, *settings: object
) -> tuple[Tensor | None, ...]:
    wanted = settings[-1]
    assert isinstance(wanted, list)
    calls["convolution_backward"] += sum(wanted)
    if images.is_contiguous(memory_format=_CHANNELS_LAST):
        gradient.contiguous(memory_format=_CHANNELS_LAST)  # a copy, if it must be one
    made = torch.empty_like(images), torch.empty_like(weight), gradient.new_empty(len(weight))
    return tuple(one if want else None for one, want in zip(made, wanted, strict=True))


def _normalised(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels = images.shape[1]
    statistics = [torch.empty(channels, device=images.device) for _ in range(2)]
    return torch.empty_like(images), statistics[0], statistics[1]


def _cudnn_batch_norm(images: Tensor, *_: object) -> tuple[Tensor, ...]:
    calls["cudnn_batch_norm"] += 1
    return *_normalised(images), torch.empty(0, dtype=torch.uint8, device=images.device)


def _cudnn_batch_norm_backward(images: Tensor, *_: object) -> tuple[Tensor, ...]:
    calls["cudnn_batch_norm_backward"] += 1
    return _normalised(images)


def _native_batch_norm(images: Tensor, *_: object) -> tuple[Tensor, ...]:
    calls["native_batch_norm"] += 1
    return _normalised(images)


def _native_batch_norm_backward(_gradient: Tensor, images: Tensor, *_: object) -> tuple[Tensor, ...]:
    calls["native_batch_norm_backward"] += 1
    return _normalised(images)


def _product(left: Tensor, right: Tensor) -> Tensor:
    calls["product"] += 1
    return left.new_empty((*left.shape[:-1], right.shape[-1]))


def _product_plus(_added: Tensor, left: Tensor, right: Tensor, **_: object) -> Tensor:
    return _product(left, right)


def _into(*_: object, out: Tensor, **__: object) -> Tensor:
    calls["product"] += 1
    return out


_library = torch.library.Library("aten", "IMPL")
for _name, _function in {
    "cudnn_convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "cudnn_batch_norm": _cudnn_batch_norm,
    "cudnn_batch_norm_backward": _cudnn_batch_norm_backward,
    "native_batch_norm": _native_batch_norm,
    "native_batch_norm_backward": _native_batch_norm_backward,
    "mm": _product,
    "bmm": _product,
    "addmm": _product_plus,
    "mm.out": _into,
    "bmm.out": _into,
    "addmm.out": _into,
}.items():
    _library.impl(_name, _function, "CUDA")
