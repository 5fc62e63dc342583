"""The two operations of `sums` as kernels, in Triton's language.

Triton comes with torch for Linux. It compiles a kernel where it is used first, with a C compiler and Python's headers.
Tensors are read and written as tables with a row for each pixel and its channels in it; a part of a tensor's channels
is such a table whose rows lie farther apart.
"""

# ruff: noqa: ANN001, ANN202, N803 - Triton's functions: their arguments are pointers and constants in capitals
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import triton
from torch import Tensor
from triton import language as tl

MOST = 3
"""Tensors that a kernel reads a sum from or writes a gradient to: a vertex of a cell has no more edges."""

BLOCK = 1024
"""Values that a block of threads computes."""


@triton.jit
def _add_kernel(
    first, second, third, total, activated, first_row, second_row, third_row, values,
    CHANNELS: tl.constexpr, TERMS: tl.constexpr, PLAIN: tl.constexpr, RECTIFIED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < values
    pixel, channel = at // CHANNELS, at % CHANNELS
    added = tl.load(first + pixel * first_row + channel, mask=inside)
    if TERMS > 1:
        added = added + tl.load(second + pixel * second_row + channel, mask=inside)
    if TERMS > 2:
        added = added + tl.load(third + pixel * third_row + channel, mask=inside)
    if PLAIN:
        tl.store(total + at, added, mask=inside)
    if RECTIFIED:
        tl.store(activated + at, tl.where(added <= 0, tl.zeros_like(added), added), mask=inside)  # keeps NaN, as torch


@triton.jit
def _send_back_kernel(
    of_total, of_activated, activated, first, second, third, first_row, second_row, third_row, values,
    CHANNELS: tl.constexpr, WRITTEN: tl.constexpr, PLAIN: tl.constexpr, RECTIFIED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < values
    pixel, channel = at // CHANNELS, at % CHANNELS
    if RECTIFIED:
        gradient = tl.load(of_activated + at, mask=inside)
        gradient = tl.where(tl.load(activated + at, mask=inside) <= 0, tl.zeros_like(gradient), gradient)
        if PLAIN:
            gradient = tl.load(of_total + at, mask=inside) + gradient
    else:
        gradient = tl.load(of_total + at, mask=inside)
    tl.store(first + pixel * first_row + channel, gradient, mask=inside)
    if WRITTEN > 1:
        tl.store(second + pixel * second_row + channel, gradient, mask=inside)
    if WRITTEN > 2:
        tl.store(third + pixel * third_row + channel, gradient, mask=inside)


def add(parts: Sequence[Tensor], plain: bool, rectified: torch.dtype | None) -> list[Tensor]:
    """See `sums._add`."""
    kind = reduce(torch.promote_types, [part.dtype for part in parts])
    kinds = ([kind] if plain else []) + ([rectified] if rectified is not None else [])
    made = [torch.empty_like(parts[0], dtype=one, memory_format=torch.channels_last) for one in kinds]
    tables = [_table(_channels_last(part)) for part in parts]
    written = [_table(each) for each in made]
    _launch(
        _add_kernel,
        [*_three(tables), written[0], written[-1]],
        tables,
        TERMS=len(parts),
        PLAIN=plain,
        RECTIFIED=rectified is not None,
    )
    return made


def send_back(
    of_total: Tensor | None, of_activated: Tensor | None, activated: Tensor | None, written: Sequence[Tensor]
) -> None:
    """See `sums._send_back`."""
    tables = [_table(each) for each in written]
    given = [
        None if each is None else _table(each.contiguous(memory_format=torch.channels_last))
        for each in (of_total, of_activated, activated)
    ]
    _launch(
        _send_back_kernel,
        [*(tables[0] if each is None else each for each in given), *_three(tables)],
        tables,
        WRITTEN=len(written),
        PLAIN=of_total is not None,
        RECTIFIED=of_activated is not None,
    )


def _launch(kernel, pointers: Sequence[Tensor], tables: Sequence[Tensor], **constants: int) -> None:
    rows = [table.stride(0) for table in _three(tables)]
    pixels, channels = tables[0].shape
    blocks = triton.cdiv(pixels * channels, BLOCK)
    kernel[(blocks,)](*pointers, *rows, pixels * channels, CHANNELS=channels, BLOCK=BLOCK, **constants)


def _three(tables: Sequence[Tensor]) -> list[Tensor]:
    """As many as a kernel takes; what is not there is not looked at."""
    return [*tables, *[tables[0]] * (MOST - len(tables))]


def _channels_last(images: Tensor) -> Tensor:
    """The same images with the channels of a pixel side by side: a copy of what cuDNN made in float64, where its
    convolutions have no other layout than channels first. In other precisions a copy would be a waste of time."""
    return images.contiguous(memory_format=torch.channels_last) if images.dtype == torch.float64 else images


def _table(images: Tensor) -> Tensor:
    """A view of (batch, channels, height, width) as (pixels, channels), each row of which lies together."""
    table = images.permute(0, 2, 3, 1).view(-1, images.shape[1])  # raises if it is not laid out channels-last
    assert table.stride(1) == 1 or table.shape[1] == 1
    return table
