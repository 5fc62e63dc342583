"""Training speed of this machine: steps, whole workers and the data pipeline, each against the straightforward way.

What is compared is measured in one run, turn by turn, each in a process of its own, so that a drift of the machine's
speed touches both. Only one of them works at a time.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from nas_retrain.benches import build, registry
from nas_retrain.benches.registry import Sizes
from nas_retrain.data import batches
from nas_retrain.execution import train
from nas_retrain.execution.checkpoints import Progress
from nas_retrain.execution.cost import estimate, made_up_images
from nas_retrain.execution.train import choose_device, device_name, prepare_process
from nas_retrain.plan import plan
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import StoredRuns

REPEATS = 3
SECONDS = 0.5
"""How long one network is trained for one figure, at least for one epoch of made-up images."""

TOGETHER = 6
AUGMENTED_IMAGES = 10_000
LEARNING_RATE = 0.01

KERNELS = {
    "conv": "convolution",
    "batch_norm": "batch_norm",
    "clamp": "relu",
    "threshold": "relu",
    "pool": "pool",
    "add": "sum",
    "cat": "joining",
}
"""Kinds of kernels by a part of their names, the first that fits."""

_together: Barrier


def sample_of_cells(settings: Settings, number: int) -> list[int]:
    """That many random connected cells, always the same."""
    connected = [cell for cell, there in enumerate(registry.of(settings.bench).connected) if there]
    return random.Random(0).sample(connected, number)


def measure_steps(settings: Settings, cells: Sequence[int]) -> pd.DataFrame:
    """Images per second of one process on all cores, a row for each cell and repeat.

    fast: the network that is trained; reference: one module for each edge; reference_live: the same without the edges
    that lead nowhere. multiply_accumulates: of one image, forward.
    """
    device, cores = choose_device(settings.launcher.device), os.cpu_count() or 1
    steps = 1 if device.type == "cpu" else 20
    rows = []
    with _processes(1, cores, device, tuned=True) as ours, _processes(1, cores, device, tuned=False) as plain:
        for cell in cells:
            for repeat in range(REPEATS):
                fast = _speed(ours, 1, _train, cell, settings, steps, 1)
                edge_by_edge = _speed(plain, 1, _train_plain, cell, settings, steps, True)
                live = _speed(plain, 1, _train_plain, cell, settings, steps, False)
                rows.append((cell, _arch(cell, settings), _work(cell, settings), repeat, fast, edge_by_edge, live))
    columns = ["cell", "arch", "multiply_accumulates", "repeat", "fast", "reference", "reference_live"]
    return pd.DataFrame(rows, columns=columns)


def measure_workers(settings: Settings, cells: Sequence[int]) -> pd.DataFrame:
    """Images per second of all processes together, a row for each cell and repeat.

    reference: one process of one module for each edge, on all cores; one_process: our network instead; workers: one
    process a core on one thread each; workers_together: the same with six seeds of the cell as one wide network.
    """
    device, cores = choose_device(settings.launcher.device), os.cpu_count() or 1
    rows = []
    with (
        _processes(1, cores, device, tuned=False) as plain,
        _processes(1, cores, device, tuned=True) as ours,
        _processes(cores, 1, device, tuned=True) as beside,
    ):
        for cell in cells:
            for repeat in range(REPEATS):
                edge_by_edge = _speed(plain, 1, _train_plain, cell, settings, 10, True)
                one_process = _speed(ours, 1, _train, cell, settings, 10, 1)
                workers = _speed(beside, cores, _train, cell, settings, 10, 1)
                workers_together = _speed(beside, cores, _train, cell, settings, 10, TOGETHER)
                rows.append((cell, repeat, edge_by_edge, one_process, workers, workers_together))
    return pd.DataFrame(rows, columns=["cell", "repeat", "reference", "one_process", "workers", "workers_together"])


def measure_data(settings: Settings) -> pd.DataFrame:
    """Augmented images per second, a row for each repeat: ours on the device, in one process on all cores, and
    torchvision's transforms of PIL images in a DataLoader with two workers."""
    batch_size = settings.training.batch_size
    loader = torch.utils.data.DataLoader(
        _PilImages(_random_images(settings), settings),
        batch_size=batch_size,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )

    def torchvision_s() -> None:
        for _ in loader:
            pass

    torchvision_s()  # its workers start in the first epoch
    rows = []
    with _processes(1, os.cpu_count() or 1, choose_device(settings.launcher.device), tuned=True) as pool:
        for repeat in range(REPEATS):
            ours = _speed(pool, 1, _augment, settings)
            rows.append((repeat, ours, AUGMENTED_IMAGES / _seconds(torchvision_s)))
    return pd.DataFrame(rows, columns=["repeat", "device_pipeline", "torchvision_pipeline"])


def _augment(settings: Settings) -> float:
    images, device = _random_images(settings), choose_device(settings.launcher.device)
    labels = np.zeros(len(images), dtype=np.int64)
    data = batches.to_device(settings.dataset, (images, labels), (images[:1], labels[:1]), device)

    def epoch() -> None:
        total = torch.zeros((), device=device)
        generator = torch.Generator().manual_seed(0)
        for batch, _ in batches.training_batches(data, settings.training.batch_size, generator):
            total += batch[0, 0, 0, 0]
        total.item()

    return _measured(epoch, len(images))


def _random_images(settings: Settings) -> NDArray[np.uint8]:
    dataset = settings.dataset
    shape = (AUGMENTED_IMAGES, dataset.image_size, dataset.image_size, dataset.image_channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class _PilImages(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, images: NDArray[np.uint8], settings: Settings) -> None:
        dataset = settings.dataset
        transforms = torchvision.transforms
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomCrop(dataset.image_size, padding=dataset.padding),
                transforms.ToTensor(),
                transforms.Normalize([m / 255 for m in dataset.mean], [s / 255 for s in dataset.std]),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), 0


def measure_profile(settings: Settings, cells: Sequence[int]) -> pd.DataFrame:
    """Share of a training step's time, in percent, of each kind of kernel in our network, a row for each cell."""
    device = choose_device(settings.launcher.device)
    with _processes(1, os.cpu_count() or 1, device, tuned=True) as ours:
        shares = [ours.submit(_profile, cell, settings).result() for cell in cells]
    return pd.DataFrame(shares, index=pd.Index(cells, name="cell")).fillna(0.0).reset_index()


def _profile(cell: int, settings: Settings) -> dict[str, float]:
    epoch, _ = _our_epoch(cell, settings, 1, 1)
    epoch()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        epoch()
    on_cpu = choose_device(settings.launcher.device).type == "cpu"
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for part, kind in KERNELS.items() if part in event.key), "other")
        times[kind] = times.get(kind, 0.0) + (event.self_cpu_time_total if on_cpu else event.self_device_time_total)
    total = sum(times.values())
    return {kind: 100 * seconds / total for kind, seconds in times.items()}


def measure_peaks(settings: Settings) -> pd.DataFrame:
    """Multiply-accumulates per second that this machine reaches at best, a row for each repeat: a product of two
    square matrices, and a 3x3 convolution at 64 channels of the data set's batch."""
    device = choose_device(settings.launcher.device)
    side, channels, size = 2048, 64, settings.dataset.image_size
    left, right = torch.randn(2, side, side, device=device)
    convolution = (
        nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(device).to(memory_format=torch.channels_last)
    )
    images = torch.randn(64, channels, size, size, device=device).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def product() -> None:
        (left @ right)[0, 0].item()

    @torch.no_grad()
    def convolved() -> None:
        convolution(images)[0, 0, 0, 0].item()

    product()
    convolved()
    rows = [
        (
            repeat,
            side**3 / _seconds(product, at_least=SECONDS),
            len(images) * size * size * channels * channels * 9 / _seconds(convolved, at_least=SECONDS),
        )
        for repeat in range(REPEATS)
    ]
    return pd.DataFrame(rows, columns=["repeat", "matrix_product", "convolution"])


def summary(
    steps: pd.DataFrame,
    workers: pd.DataFrame,
    data: pd.DataFrame,
    peaks: pd.DataFrame,
    profile: pd.DataFrame,
    full: Settings,
) -> str:
    """What was measured, in Markdown: medians over repeats, then the spread over cells."""
    per_cell = steps.groupby("cell")[["fast", "reference", "reference_live", "multiply_accumulates"]].median()
    per_worker = workers.groupby("cell").median()
    achieved = 3 * per_cell["fast"] * per_cell["multiply_accumulates"]
    pipeline = data["device_pipeline"] / data["torchvision_pipeline"]
    trainings = plan.recipe_trainings(full, full.dataset.base_rate or 1.0)
    cost = estimate(trainings, StoredRuns.of([]), full, choose_device(full.launcher.device))
    assert cost is not None
    workers_here = os.cpu_count() or 1
    lines = [
        "# Speed",
        "",
        f"On {_machine(full)}. Each figure is a median of {REPEATS} repeats, with the range over cells or repeats.",
        "",
        f"| {full.dataset.name} shape ({_shape(full)}), {len(per_cell)} random cells, one process on all cores | |",
        "| --- | --- |",
        f"| training steps, over one module for each edge | {_ratios(per_cell['fast'] / per_cell['reference'])} |",
        f"| the same, without edges that lead nowhere | {_ratios(per_cell['fast'] / per_cell['reference_live'])} |",
        f"| images per second | {_range(per_cell['fast'], '{:,.0f}')} |",
        f"| multiply-accumulates, of a matrix product's {_giga(peaks['matrix_product'])} | "
        f"{_range(100 * achieved / peaks['matrix_product'].median(), '{:.0f}')} % |",
        f"| multiply-accumulates, of a 64-channel convolution's {_giga(peaks['convolution'])} | "
        f"{_range(100 * achieved / peaks['convolution'].median(), '{:.0f}')} % |",
        f"| augmented images per second | {_range(data['device_pipeline'], '{:,.0f}')} |",
        f"| the same, over torchvision's transforms with two workers | {_range(pipeline, '{:.0f}')} |",
        f"| all {cost.trainings:,} trainings of three seeds and two recipes, with {workers_here} workers here | "
        f"{cost.hours(workers_here):,.0f} hours |",
        "",
        f"| digits shape, {len(per_worker)} random cells, over one straightforward process on all cores | |",
        "| --- | --- |",
    ]
    for column, words in (
        ("one_process", "one process of ours"),
        ("workers", f"{workers_here} workers of ours, one thread each"),
        ("workers_together", f"{workers_here} workers, {TOGETHER} trainings of a class at once in each"),
    ):
        lines.append(f"| {words} | {_ratios(per_worker[column] / per_worker['reference'])} |")
    joint = per_worker["workers_together"] / per_worker["workers"]
    lines.append(f"| {TOGETHER} trainings at once over one at a time | {_ratios(joint)} |")
    shares = profile.drop(columns="cell")
    lines += [
        "",
        f"| where a step's time goes now, {len(profile)} of these cells | percent |",
        "| --- | --- |",
    ]
    lines += [f"| {kind} | {_range(shares[kind], '{:.0f}')} |" for kind in shares.median().sort_values().index[::-1]]
    return "\n".join(lines) + "\n"


def _ratios(ratios: pd.Series[float]) -> str:
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    return f"{mean:.2f} times (geometric mean; {ratios.min():.2f} to {ratios.max():.2f})"


def _range(values: pd.Series[float], form: str) -> str:
    low, middle, high = (form.format(value) for value in (values.min(), values.median(), values.max()))
    return f"{middle} ({low} to {high})"


def _giga(values: pd.Series[float]) -> str:
    return f"{values.median() / 1e9:,.0f} billion a second"


def _shape(settings: Settings) -> str:
    network = settings.network
    return f"C {network.channels}, N {network.cells_per_stage}, batch {settings.training.batch_size}"


def _machine(settings: Settings) -> str:
    device = choose_device(settings.launcher.device)
    name = device_name(device)
    if device.type == "cpu":
        information = Path("/proc/cpuinfo")
        models = (
            [line for line in information.read_text().splitlines() if "model name" in line]
            if information.exists()
            else []
        )
        name = models[0].partition(": ")[2] if models else platform.processor()
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} core(s), {versions}"


def _work(cell: int, settings: Settings) -> int:
    space = registry.of(settings.bench)
    return space.flops(space.graph_at(cell), Sizes.of(settings))


def _arch(cell: int, settings: Settings) -> str:
    return registry.of(settings.bench).arch_at(cell)


@contextmanager
def _processes(number: int, threads: int, device: torch.device, *, tuned: bool) -> Iterator[ProcessPoolExecutor]:
    """Processes that are prepared as ours are, or left as they come."""
    context = multiprocessing.get_context("spawn")
    arguments = (threads, device.type, tuned, context.Barrier(number))
    with ProcessPoolExecutor(number, context, _prepare, arguments) as pool:
        yield pool


def _prepare(threads: int, device: str, tuned: bool, together: Barrier) -> None:
    global _together  # a barrier reaches a process of a pool only when that begins
    _together = together
    if tuned:
        prepare_process(torch.device(device))
    torch.set_num_threads(threads)


def _speed(pool: ProcessPoolExecutor, number: int, work: Callable[..., float], *arguments: object) -> float:
    """Images per second of all processes of a pool at once."""
    return sum(task.result() for task in [pool.submit(work, *arguments) for _ in range(number)])


def _train(cell: int, settings: Settings, steps: int, members: int) -> float:
    return _measured(*_our_epoch(cell, settings, steps, members))


def _our_epoch(cell: int, settings: Settings, steps: int, members: int) -> tuple[Callable[[], None], int]:
    """A function that trains as we do for that many steps, and how many images it trains on."""
    device = choose_device(settings.launcher.device)
    data = _images(settings, steps, device)
    built = [
        build.build(registry.of(settings.bench).graph_at(cell), settings, initialisation="stock", seed=seed)
        for seed in range(members)
    ]
    steppers = train.steppers_for(built, [LEARNING_RATE] * members, range(members), settings, data)
    progress = Progress.start(members)

    def epoch() -> None:
        train.train_epoch(steppers, 1.0, progress, lambda: False)

    return epoch, members * len(data.train_labels)


def _train_plain(cell: int, settings: Settings, steps: int, dead_edges: bool) -> float:
    device = choose_device(settings.launcher.device)
    data = _images(settings, steps, device)
    network = build.build_plain(_arch(cell, settings), settings, dead_edges=dead_edges).to(device)
    recipe = settings.training
    optimiser = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, recipe.momentum, 0, recipe.weight_decay, nesterov=recipe.nesterov
    )
    generator = torch.Generator().manual_seed(0)

    def epoch() -> None:
        total = torch.zeros((), device=device)
        for images, labels in batches.training_batches(data, recipe.batch_size, generator):
            optimiser.zero_grad()
            loss = functional.cross_entropy(network(images.contiguous()), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.detach()
        total.item()

    return _measured(epoch, len(data.train_labels))


def _images(settings: Settings, steps: int, device: torch.device) -> batches.DeviceData:
    return made_up_images(settings, device, steps * settings.training.batch_size)


def _measured(epoch: Callable[[], None], images: int) -> float:
    epoch()  # kernels are chosen and memory is allocated in the first one
    _together.wait(timeout=120)  # each process takes one task, and all begin at once
    return images / _seconds(epoch, at_least=SECONDS)


def _seconds(work: Callable[[], None], at_least: float = 0.0) -> float:
    """Seconds of one call, over calls of that many seconds or more."""
    calls, begun = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - begun < at_least:
        work()
        calls += 1
    return (time.perf_counter() - begun) / calls
