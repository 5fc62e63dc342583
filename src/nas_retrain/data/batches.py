"""A data set on the device, and augmentation there: flip and zero-padded random crop for a whole batch at once.

Training images are stored zero-padded as a flat table of pixels, each pixel's channels packed into one integer.
Shuffling and cropping a batch is then a single gather of rows of pixels, and its result is already laid out
channels-last. Nothing is computed per image in Python, and nothing crosses between host and device per step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_retrain.data import sources
from nas_retrain.settings import DatasetSettings


@dataclass(frozen=True)
class DeviceData:
    """One data set's tensors, all on one device.

    pixels: packed training pixels, shape (images * padded * padded,), uint8 for one channel and int32 for two to
    four. train_labels: (images,). test_images: normalised floats (tests, channels, size, size), channels-last.
    scale, shift: turn an image's pixel values into normalised ones, shape (size * size * channels,), channels last.
    """

    pixels: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    scale: Tensor
    shift: Tensor
    image_size: int
    padding: int
    flip: bool

    @property
    def device(self) -> torch.device:
        """Where all of it lives."""
        return self.pixels.device


@dataclass(frozen=True)
class Augmentation:
    """For each image of an epoch, in order: which it is, where its crop starts and whether it is mirrored."""

    order: Tensor
    tops: Tensor
    lefts: Tensor
    mirrored: Tensor


def load(dataset: DatasetSettings, data_dir: Path, device: torch.device, validation_images: int = 0) -> DeviceData:
    """Read a data set and place it on the device; see `sources.read` for validation images and what is raised."""
    train, test = sources.read(dataset, data_dir, validation_images)
    return to_device(dataset, train, test, device)


def to_device(dataset: DatasetSettings, train: sources.Part, test: sources.Part, device: torch.device) -> DeviceData:
    """Pack, pad and normalise images already read."""
    scale = 1.0 / torch.tensor(dataset.std, dtype=torch.float32)
    shift = -torch.tensor(dataset.mean, dtype=torch.float32) * scale
    test_images = (torch.from_numpy(np.ascontiguousarray(test[0])).float() * scale + shift).permute(0, 3, 1, 2)
    return DeviceData(
        pixels=_pack(train[0], dataset.padding).to(device),
        train_labels=torch.from_numpy(train[1]).to(device),
        test_images=test_images.contiguous(memory_format=torch.channels_last).to(device),
        test_labels=torch.from_numpy(test[1]).to(device),
        scale=scale.repeat(dataset.image_size**2).to(device),
        shift=shift.repeat(dataset.image_size**2).to(device),
        image_size=dataset.image_size,
        padding=dataset.padding,
        flip=dataset.flip,
    )


def _pack(images: NDArray[np.uint8], padding: int) -> Tensor:
    number, height, width, channels = images.shape
    lanes = 1 if channels == 1 else 4
    padded = np.zeros((number, height + 2 * padding, width + 2 * padding, lanes), dtype=np.uint8)
    padded[:, padding : padding + height, padding : padding + width, :channels] = images
    table = torch.from_numpy(padded.reshape(-1))
    return table if lanes == 1 else table.view(torch.int32)


def draw_augmentation(data: DeviceData, generator: torch.Generator) -> Augmentation:
    """Draw one epoch's order, crops and flips on the CPU, so that they are the same on every device."""
    number = len(data.train_labels)
    order = torch.randperm(number, generator=generator)
    offsets = torch.randint(0, 2 * data.padding + 1, (2, number), generator=generator)
    mirrored = torch.rand(number, generator=generator) < (0.5 if data.flip else 0.0)
    return Augmentation(*(drawn.to(data.device) for drawn in (order, offsets[0], offsets[1], mirrored)))


def augment(data: DeviceData, order: Tensor, tops: Tensor, lefts: Tensor, mirrored: Tensor) -> Tensor:
    """Cropped, flipped and normalised images of shape (len(order), channels, size, size), channels-last.

    tops, lefts: the crop's first row and column in the padded image. A mirrored image is the crop mirrored.
    """
    return crop(data, crop_starts(data, order, tops, lefts), mirrored)


def crop_starts(data: DeviceData, order: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
    """The place of each crop's first pixel in the table of pixels."""
    padded = data.image_size + 2 * data.padding
    return (order * padded + tops) * padded + lefts


def crop(data: DeviceData, starts: Tensor, mirrored: Tensor) -> Tensor:
    """The same as `augment` does, from `crop_starts`."""
    size = data.image_size
    padded = size + 2 * data.padding
    rows = starts[:, None] + torch.arange(0, size * padded, padded, device=data.device)
    # Every run of `size` pixels of the table, as a row of an overlapping view: a gather of these copies whole rows.
    runs = data.pixels.as_strided((len(data.pixels) - size + 1, size), (1, 1))
    crops = runs.index_select(0, rows.view(-1)).view(len(starts), size, size)
    if data.flip:
        crops = torch.where(mirrored[:, None, None], crops.flip(2), crops)
    lanes = crops.view(torch.uint8).view(len(starts), size, size, -1)[..., : data.test_images.shape[1]]
    # One image a row: the constants then line up with memory, where each channel's values would be scattered over it.
    normalised = lanes.contiguous().view(len(starts), -1).float().mul_(data.scale).add_(data.shift)
    return normalised.view(lanes.shape).permute(0, 3, 1, 2)


def training_batches(data: DeviceData, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, augmented images and their labels; the last batch may be smaller."""
    drawn = draw_augmentation(data, generator)
    labels = data.train_labels[drawn.order]
    for start in range(0, len(labels), batch_size):
        batch = slice(start, start + batch_size)
        yield (
            augment(data, drawn.order[batch], drawn.tops[batch], drawn.lefts[batch], drawn.mirrored[batch]),
            labels[batch],
        )
