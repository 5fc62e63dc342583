"""What a plan will cost: images to train on, at the speed measured on this machine.

Seconds per image are taken to be linear in a network's multiply-accumulates. The line is fitted to trainings of the
same settings on the same device if the store holds any, else to a few steps on made-up images before anything starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn import functional

from nas_retrain.config import DatasetSettings, NetworkSettings, Settings
from nas_retrain.data.batches import DeviceData, to_device, training_batches
from nas_retrain.networks import nas_bench_201 as networks
from nas_retrain.plan import Training
from nas_retrain.spaces import nas_bench_201
from nas_retrain.store import RunRecord

EVALUATION_SHARE = 1 / 3
"""A forward pass over a training step: forward, and backward with respect to inputs and to weights."""


@dataclass(frozen=True)
class Cost:
    """What a list of trainings comes to. hours are wall-clock with `workers` at once, `seconds` are their sum."""

    trainings: int
    epochs: int
    images: int
    seconds: float
    workers: int
    slowest: float
    fastest: float
    measured_on: str

    @property
    def hours(self) -> float:
        """Wall-clock hours, if the workers do not slow one another."""
        return self.seconds / self.workers / 3600


def estimate(
    trainings: Sequence[Training],
    stored: Sequence[RunRecord],
    settings: Settings,
    device: torch.device,
    workers: int,
) -> Cost:
    """The cost of trainings on this device; measures the speed, which takes seconds, if the store cannot tell it."""
    connected = [training for training in trainings if training.learning_rate is not None]
    images_each = settings.dataset.images_per_epoch
    images = sum(training.epochs for training in connected) * images_each
    if not connected:
        return Cost(0, 0, 0, 0.0, workers, 0.0, 0.0, "nothing to measure")
    work = np.array([_flops(training.cell, settings.network, settings.dataset) for training in connected], dtype=float)
    points, measured_on = _points(connected, work, stored, settings, device)
    slope, offset = np.polyfit([flops for flops, _ in points], [seconds for _, seconds in points], 1)
    floor = min(seconds for _, seconds in points)
    per_image = np.maximum(offset + slope * work, floor)
    epochs = np.array([training.epochs for training in connected])
    seconds = per_image * (epochs * images_each + EVALUATION_SHARE * settings.dataset.test_images)
    return Cost(
        trainings=len(connected),
        epochs=int(epochs.sum()),
        images=images,
        seconds=float(seconds.sum()),
        workers=workers,
        slowest=float(1 / per_image.max()),
        fastest=float(1 / per_image.min()),
        measured_on=measured_on,
    )


@cache
def _flops(cell: int, network: NetworkSettings, dataset: DatasetSettings) -> int:
    return nas_bench_201.flops(
        nas_bench_201.graph_at(cell),
        channels=network.channels,
        cells_per_stage=network.cells_per_stage,
        classes=dataset.classes,
        image_channels=dataset.image_channels,
        image_size=dataset.image_size,
    )


def _points(
    trainings: Sequence[Training],
    work: np.ndarray[tuple[int], np.dtype[np.float64]],
    stored: Sequence[RunRecord],
    settings: Settings,
    device: torch.device,
) -> tuple[list[tuple[float, float]], str]:
    """Pairs of multiply-accumulates and seconds per image, at two or more distinct sizes, and where they come from."""
    hashes = {training.config_hash for training in trainings}
    known = [
        (float(_flops(record.cell, settings.network, settings.dataset)), 1 / record.images_per_second)
        for record in stored
        if record.config_hash in hashes and record.images_per_second and record.device.startswith(device.type)
    ]
    if len({flops for flops, _ in known}) >= 3:
        return known, f"{len(known):,} finished trainings"
    ordered = np.argsort(work)
    cells = dict.fromkeys(trainings[ordered[int(q * (len(ordered) - 1))]].cell for q in (0.0, 0.5, 1.0))
    data = made_up_images(settings, device)
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # as a worker trains
    try:
        measured = [
            (float(_flops(cell, settings.network, settings.dataset)), seconds_per_image(cell, settings, data))
            for cell in [*cells, nas_bench_201.base_cell()]
        ]
    finally:
        torch.set_num_threads(threads)
    return measured, f"a few steps on this machine ({device.type})"


def made_up_images(settings: Settings, device: torch.device) -> DeviceData:
    """As many random images as one step needs: on the CPU few, since its speed hardly depends on the batch."""
    dataset = settings.dataset
    number = min(settings.training.batch_size, 32 if device.type == "cpu" else settings.training.batch_size)
    random = np.random.default_rng(0)
    shape = (number, dataset.image_size, dataset.image_size, dataset.image_channels)
    images = random.integers(0, 256, shape, dtype=np.uint8)
    labels = random.integers(0, dataset.classes, number)
    return to_device(dataset, (images, labels), (images, labels), device)


def seconds_per_image(
    cell: int, settings: Settings, data: DeviceData, budget: float = 0.5, most_steps: int = 50
) -> float:
    """Seconds that a training step takes for one image, over steps of about `budget` seconds after a first one."""
    network = networks.build(
        nas_bench_201.graph_at(cell),
        channels=settings.network.channels,
        cells_per_stage=settings.network.cells_per_stage,
        classes=settings.dataset.classes,
        image_channels=settings.dataset.image_channels,
        in_degree=None,
        seed=0,
    ).to(data.device)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, nesterov=True, fused=True)
    generator = torch.Generator().manual_seed(0)
    number = len(data.train_labels)

    def step() -> None:
        for images, labels in training_batches(data, number, generator):
            optimiser.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        loss.item()

    step()  # kernels are chosen and memory is allocated in the first one
    steps, begun = 0, time.perf_counter()
    while steps == 0 or (time.perf_counter() - begun < budget and steps < most_steps):
        step()
        steps += 1
    return (time.perf_counter() - begun) / steps / number
