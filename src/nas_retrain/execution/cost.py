"""What a plan will cost: images to train on, at the speed measured on this machine.

Seconds per image are taken to be linear in a network's multiply-accumulates. The line is fitted to stored trainings of
the same settings if there are any, else to a few steps on made-up images before anything starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nas_retrain.benches import registry
from nas_retrain.benches.registry import Sizes
from nas_retrain.purpose import AS_SET, Setup
from nas_retrain.settings import BenchSettings, Settings
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Training

if TYPE_CHECKING:  # torch takes seconds to import, and is needed to measure only
    import torch

    from nas_retrain.data.batches import DeviceData

EVALUATION_SHARE = 1 / 3
"""A forward pass over a training step: forward, and backward with respect to inputs and to weights."""


MEASURED_STEPS = 20
"""Steps in an epoch of made-up images on a GPU, where what is done once an epoch would count too much in fewer."""

MEASURED_RATE = 1e-3
"""A learning rate to measure speed with: none at which a network on made-up images diverges."""


@dataclass(frozen=True)
class Cost:
    """What a list of trainings comes to. `seconds` has one training's time for each of them, in their order, 0 for one
    of a disconnected cell; speeds are images per second of one worker. devices: how many GPUs there are, of which
    one was measured with one worker; None if speeds are those of workers side by side."""

    trainings: int
    epochs: int
    images: int
    seconds: tuple[float, ...]
    slowest: float
    fastest: float
    measured_on: str
    devices: int | None = None

    def hours(self, workers: int) -> float:
        """Wall-clock hours with that many workers. What several gain on one GPU where one was measured is unknown, and
        taken for nothing."""
        return sum(self.seconds) / min(workers, self.devices or workers) / 3600


def estimate(
    trainings: Sequence[Training],
    stored: StoredRuns,
    settings: Settings,
    device: torch.device | str | None,
) -> Cost | None:
    """The cost of trainings at the speed of the stored records of the same settings, else as measured on `device`.

    Measuring takes seconds. None if there is no such record and no device to measure on.
    """
    connected = np.array([training.learning_rate is not None for training in trainings], dtype=bool)
    images_each = settings.dataset.images_per_epoch
    work = _work_of(trainings, settings)
    epochs = np.array([training.epochs for training in trainings])
    if not connected.any():
        return Cost(0, 0, 0, (0.0,) * len(trainings), 0.0, 0.0, "nothing to measure")
    points = _known_points(trainings, stored, settings)
    measured_on, devices = f"{len(points):,} finished trainings", None
    if len(np.unique(points[:, 0])) < 3:
        if device is None:
            return None
        import torch

        from nas_retrain.execution.train import device_name

        device = torch.device(device)
        points = _measured_points(trainings, work, settings, device)
        devices = None if device.type == "cpu" else max(1, torch.cuda.device_count())
        measured_on = f"a few steps on this machine ({device_name(device)})"
    if np.ptp(points[:, 0]) > 0:
        slope, offset = np.polyfit(points[:, 0], points[:, 1], 1)
    else:  # all networks are of one size, the base network's
        slope, offset = 0.0, points[:, 1].mean()
    per_image = np.maximum(offset + slope * work, points[:, 1].min())
    images = epochs * images_each + EVALUATION_SHARE * settings.dataset.test_images
    return Cost(
        trainings=int(connected.sum()),
        epochs=int(epochs[connected].sum()),
        images=int(epochs[connected].sum()) * images_each,
        seconds=tuple(np.where(connected, per_image * images, 0.0).tolist()),
        slowest=float(1 / per_image[connected].max()),
        fastest=float(1 / per_image[connected].min()),
        measured_on=measured_on,
        devices=devices,
    )


def _flops(cell: int, settings: Settings) -> int:
    return _cached_flops(cell, settings.bench, Sizes.of(settings))


@cache
def _cached_flops(cell: int, settings: BenchSettings, sizes: Sizes) -> int:
    bench = registry.of(settings)
    return bench.flops(bench.graph_at(cell), sizes)


def _flops_of(cells: Sequence[int] | NDArray[np.int64], settings: Settings) -> NDArray[np.float64]:
    """Multiply-accumulates of each cell."""
    different, places = np.unique(np.asarray(cells, dtype=np.int64), return_inverse=True)
    return np.array([_flops(int(cell), settings) for cell in different], dtype=float)[places]


def _work_of(trainings: Sequence[Training], settings: Settings) -> NDArray[np.float64]:
    """Multiply-accumulates of each training's network, for one image."""
    work = np.zeros(len(trainings))
    places: dict[Setup, list[int]] = {}
    for place, training in enumerate(trainings):
        places.setdefault(training.setup, []).append(place)
    for setup, there in places.items():
        work[there] = _flops_of([trainings[place].cell for place in there], settings.under(setup))
    return work


def _known_points(trainings: Sequence[Training], stored: StoredRuns, settings: Settings) -> NDArray[np.float64]:
    """Multiply-accumulates and seconds per image of stored trainings with the same settings, a row each."""
    setups = {training.config_hash: training.setup for training in trainings}
    hashes, speeds, cells = (stored.column(name) for name in ("config_hash", "images_per_second", "cell"))
    usable = (cells < registry.of(settings.bench).size) & (speeds > 0)
    points = [np.empty((0, 2))]
    for setup in dict.fromkeys(setups.values()):
        known = usable & np.isin(hashes, [one for one, its in setups.items() if its == setup])
        points.append(np.column_stack([_flops_of(cells[known], settings.under(setup)), 1 / speeds[known]]))
    return np.concatenate(points)


def _measured_points(
    trainings: Sequence[Training],
    work: NDArray[np.float64],
    settings: Settings,
    device: torch.device,
) -> NDArray[np.float64]:
    """The same, measured here with the smallest, the middle and the largest network, and the base network."""
    import torch

    ordered = [place for place in np.argsort(work) if trainings[place].learning_rate is not None]
    chosen = [trainings[ordered[int(q * (len(ordered) - 1))]] for q in (0.0, 0.5, 1.0)]
    networks = dict.fromkeys([(training.cell, training.setup) for training in chosen])
    networks[registry.of(settings.bench).base_cell, AS_SET] = None
    # On the CPU few images will do, since its speed hardly depends on the batch.
    batch_size = settings.training.batch_size
    number = min(batch_size, 32) if device.type == "cpu" else MEASURED_STEPS * batch_size
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # as a worker trains
    try:
        points = []
        for cell, setup in networks:
            its = settings.under(setup)
            seconds = seconds_per_image(cell, its, made_up_images(its, device, number))
            points.append((float(_flops(cell, its)), seconds))
        return np.array(points)
    finally:
        torch.set_num_threads(threads)


def made_up_images(settings: Settings, device: torch.device, number: int) -> DeviceData:
    """Random images of the data set's shape, to measure with."""
    from nas_retrain.data.batches import to_device

    dataset = settings.dataset
    random = np.random.default_rng(0)
    shape = (number, dataset.image_size, dataset.image_size, dataset.image_channels)
    images = random.integers(0, 256, shape, dtype=np.uint8)
    labels = random.integers(0, dataset.classes, number)
    return to_device(dataset, (images, labels), (images, labels), device)


def seconds_per_image(
    cell: int, settings: Settings, data: DeviceData, budget: float = 0.5, most_epochs: int = 50
) -> float:
    """Seconds that training takes for one image of one training, over epochs of about `budget` seconds after a first
    one, in the precision and with as many trainings together as the settings have."""
    from nas_retrain.benches import build
    from nas_retrain.execution.checkpoints import Progress
    from nas_retrain.execution.train import steppers_for, train_epoch

    members = settings.launcher.together
    graph = registry.of(settings.bench).graph_at(cell)
    built = [build.build(graph, settings, initialisation="stock", seed=seed) for seed in range(members)]
    steppers = steppers_for(built, [MEASURED_RATE] * members, range(members), settings, data)
    progress = replace(Progress.start(members), epoch=1)  # a training's very first step is another

    def epoch() -> None:
        train_epoch(steppers, 1.0, progress, lambda: False)

    epoch()  # kernels are chosen, memory is allocated and the step is captured in the first one
    epochs, begun = 0, time.perf_counter()
    while epochs == 0 or (time.perf_counter() - begun < budget and epochs < most_epochs):
        epoch()
        epochs += 1
    return (time.perf_counter() - begun) / epochs / len(data.train_labels) / members
