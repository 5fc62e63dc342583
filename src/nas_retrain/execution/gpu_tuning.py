"""How trainings are best launched on this GPU: speeds of cells spread by their work, and a launcher's settings made of
the fastest.

All combinations of precision, captured or eager steps, trainings side by side in a process and processes would take
hours. So one factor is varied at a time, and what the settings ask for comes first: one training in each precision;
then, for the precision that is set and after it for the others, 2 to 6 trainings side by side, each on a stream of its
own (which is what launcher.together means on a GPU), and 2 to 4 processes with as many trainings in each as were best
for one. Eager steps, which no launcher takes, come last, to tell what capturing is worth. Where time runs out, what is
left is left out, and told.

Times are the GPU's own, between two events, repeated until the last three differ by less than `SPREAD`.
"""

from __future__ import annotations

import gc
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import torch

from nas_retrain.benches import build, registry
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import devices, gpu_verdicts, mps
from nas_retrain.execution.cost import made_up_images
from nas_retrain.execution.gpu_check import RATE, Subject
from nas_retrain.execution.steps import Stepper
from nas_retrain.execution.train import device_name, steppers_for
from nas_retrain.files.atomic import replacing
from nas_retrain.plan import plan
from nas_retrain.settings import Precision, Settings

CELLS = 6
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
TOGETHER = (1, 2, 3, 4, 6)
WORKERS = (2, 3, 4)
STEPS = 8
SPREAD = 0.03
MOST_REPEATS = 8
PATIENCE = 200.0

FIRST_LINE = "# Written by make gpu-check"

_together: Barrier


@dataclass(frozen=True)
class Way:
    """How trainings are run: in which precision, captured or launched kernel by kernel, so many of them side by side in
    each of so many processes."""

    precision: Precision
    captured: bool = True
    together: int = 1
    workers: int = 1

    def __str__(self) -> str:
        steps = "captured" if self.captured else "eager"
        return f"{self.precision}, {steps}, {self.workers} worker(s) with {self.together} training(s) each"


def tune(subject: Subject, say: Callable[..., None], seconds: float) -> dict[str, Any]:
    """Measure for `seconds` at most, or little more, and return every speed and the best launcher for each precision.

    Several processes are tried only where they can share the GPU (see `mps`), without which they take turns.
    """
    end = time.monotonic() + seconds
    places = np.linspace(0, len(subject.cells) - 1, min(CELLS, len(subject.cells))).round().astype(int)
    cells = tuple(subject.cells[place] for place in places)
    subject = replace(subject, cells=cells)
    speeds: dict[Way, float] = {}
    left_out: list[str] = []

    def measure(pool: Pool, way: Way) -> None:
        if time.monotonic() > end and way != Way(way.precision):  # without which there is nothing to choose from
            left_out.append(str(way))
            return
        of_cells = _speeds(pool, subject, way)
        if not of_cells:
            say(f"tuning   {way}: the GPU's memory is too small")
            return
        speeds[way] = 1 / statistics.mean(1 / speed for speed in of_cells)  # that of a benchmark with these cells alike
        say(f"tuning   {way}: {speeds[way]:,.0f} images a second")

    def best(precision: str) -> Way:
        """The fastest way that a launcher can take: its steps are captured."""
        return max((way for way in speeds if way.precision == precision and way.captured), key=lambda way: speeds[way])

    with _pool(subject.device, 1) as pool:
        for precision in PRECISIONS:
            measure(pool, Way(precision))
    # Memory was too small for the others.
    fitting = [precision for precision in PRECISIONS if Way(precision) in speeds]
    no_mps = ""
    for precision in sorted(fitting, key=lambda each: each != subject.settings.training.precision):
        with _pool(subject.device, 1) as pool:
            for together in TOGETHER[1:]:
                measure(pool, Way(precision, together=together))
        chosen = best(precision)
        with mps.running() as missing:
            no_mps = no_mps or missing
            for workers in () if missing else WORKERS:
                with _pool(subject.device, workers) as pool:
                    measure(pool, replace(chosen, workers=workers))
    with _pool(subject.device, 1) as pool:
        for precision in fitting:
            measure(pool, Way(precision, captured=False))
    if no_mps:
        say(f"tuning   several workers were not tried: {no_mps}")
    if left_out:
        say(f"tuning   left out, since {seconds:.0f} s were over: {'; '.join(left_out)}")
    images = _images(subject.settings)

    def row(way: Way) -> dict[str, Any]:
        return asdict(way) | {"images_per_second": speeds[way], "gpu_hours": images / speeds[way] / 3600}

    return {
        "gpu": device_name(subject.device),
        "cells": list(cells),
        "mps": no_mps or "runs",
        "images": images,
        "speeds": [row(way) for way in speeds],
        "left_out": left_out,
        "best": {precision: row(best(precision)) for precision in fitting},
    }


def _images(settings: Settings) -> int:
    """Training images of the whole benchmark with these settings."""
    trainings = plan.recipe_trainings(settings.model_copy(update={"cells": "all"}), RATE)
    connected = [training for training in trainings if training.learning_rate is not None]
    return sum(training.epochs for training in connected) * settings.dataset.images_per_epoch


Pool = tuple[ProcessPoolExecutor, Barrier]
"""Processes on the GPU, and where they wait for each other."""


@contextmanager
def _pool(device: torch.device, workers: int) -> Iterator[Pool]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    with ProcessPoolExecutor(workers, context, _begin, (barrier, device, workers)) as processes:
        yield processes, barrier


def _speeds(pool: Pool, subject: Subject, way: Way) -> list[float]:
    """Images per second for each cell, of all workers together; none if the GPU's memory was too small."""
    processes, barrier = pool
    jobs = [processes.submit(_measured, subject, way) for _ in range(way.workers)]
    each = [job.result(PATIENCE) for job in jobs]
    if not all(each):
        barrier.reset()
        return []
    return [sum(of_cell) for of_cell in zip(*each, strict=True)]


def _begin(barrier: Barrier, device: torch.device, sharing: int) -> None:
    global _together
    _together = barrier
    devices.take(device, sharing)


def _measured(subject: Subject, way: Way) -> list[float]:
    """Images per second of this process for each cell, while its siblings measure the same cell; none if memory was too
    small for one of them."""
    try:
        return _measured_together(subject, way)
    except BrokenBarrierError:
        return []
    except RuntimeError as error:
        _together.abort()
        if devices.blamed(error, subject.device) != "memory":
            raise
    gc.collect()
    devices.empty_cache()
    return []


def _measured_together(subject: Subject, way: Way) -> list[float]:
    recipe = subject.settings.training.model_copy(update={"precision": way.precision})
    settings = subject.settings.model_copy(update={"training": recipe})
    data = made_up_images(settings, subject.device, STEPS * recipe.batch_size)
    speeds = []
    for cell in subject.cells:
        graph = registry.of(settings.bench).graph_at(cell)
        built = [build.build(graph, settings, initialisation="stock", seed=seed) for seed in range(way.together)]
        steppers = steppers_for(built, [RATE] * way.together, range(way.together), settings, data)
        _time(steppers, way)  # kernels are loaded, and the step is captured
        _together.wait(PATIENCE)
        times: list[float] = []
        while len(times) < 3 or (_spread(times[-3:]) > SPREAD and len(times) < MOST_REPEATS):
            times.append(_time(steppers, way))
        _together.wait(PATIENCE)
        speeds.append(way.together * STEPS * recipe.batch_size / statistics.median(times[-3:]))
        del built, steppers
        gc.collect()  # or the next cell's steps are measured beside this one's memory
        devices.empty_cache()
    return speeds


def _spread(times: Sequence[float]) -> float:
    return (max(times) - min(times)) / statistics.median(times)


def _time(steppers: Sequence[Stepper], way: Way) -> float:
    """Seconds of the GPU for an epoch's steps of all steppers side by side."""
    for stepper in steppers:
        stepper.network.train()
        members = len(stepper.seeds)
        stepper.begin_epoch(0, 1.0, 0, [0.0] * members, [0] * members)
    if steppers[0].stream is None:
        begun = time.perf_counter()
        _take_steps(steppers, way)
        return time.perf_counter() - begun
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    _take_steps(steppers, way)
    for stepper in steppers:
        if stepper.stream is not None:
            torch.cuda.current_stream().wait_stream(stepper.stream)
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000


def _take_steps(steppers: Sequence[Stepper], way: Way) -> None:
    for _ in range(STEPS):
        for stepper in steppers:
            (stepper.step if way.captured else stepper.step_eagerly)(stepper.recipe.batch_size)


def write_site(tuned: dict[str, Any], folder: Path, settings: Settings) -> Path:
    """Write the launcher's settings that were best to <the GPU's name>.yaml. A file of that name that somebody else
    wrote stays, and the new one gets a number. Raises NasRetrainError if the precision that is set does not fit."""
    if settings.training.precision not in tuned["best"]:
        raise NasRetrainError(
            f"A training in {settings.training.precision} does not fit into the memory of {tuned['gpu']}. Choose a "
            "smaller training.batch_size or another training.precision."
        )
    name = re.sub(r"[^a-z0-9]+", "_", tuned["gpu"].lower()).strip("_")
    path, number = folder / f"{name}.yaml", 1
    while path.exists() and not path.read_text().startswith(FIRST_LINE):
        number += 1
        path = folder / f"{name}_{number}.yaml"
    chosen = tuned["best"][settings.training.precision]
    told = [
        f"# {precision}: {row['images_per_second']:,.0f} images a second on one GPU, {row['gpu_hours']:,.0f} GPU hours "
        f"for all {tuned['images']:,} images (workers {row['workers']}, together {row['together']})."
        for precision, row in tuned["best"].items()
    ]
    if tuned["left_out"]:
        told.append(f"# For {len(tuned['left_out'])} other ways there was no time; {gpu_verdicts.FILE} names them.")
    lines = [
        f"{FIRST_LINE} on {tuned['gpu']}; what it costs is these GPU hours times your site's price of one.",
        *told,
        "# Change the names to your site's.",
        "partition: null",
        "account: null",
        "gpus: 1",
        f"workers: {chosen['workers']}" + (" # through MPS, which a task starts" if chosen["workers"] > 1 else ""),
        f"together: {chosen['together']}",
        f"cpus: {chosen['workers'] + 1} # one for each worker and one for the parent",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path
