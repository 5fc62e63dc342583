"""How trainings are best launched on this GPU: speeds of cells spread by their work, in each precision, with several
trainings to a process and several processes, and a launcher's settings made of the fastest.

Times are the GPU's own, between two events, repeated until the last three differ by less than `SPREAD`.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from nas_retrain.benches import build, registry
from nas_retrain.execution import devices
from nas_retrain.execution.cost import made_up_images
from nas_retrain.execution.gpu_check import RATE, Subject, mps_answers
from nas_retrain.execution.steps import Stepper
from nas_retrain.execution.train import device_name, steppers_for
from nas_retrain.files.atomic import replacing
from nas_retrain.plan import plan
from nas_retrain.settings import Settings

CELLS = 6
TOGETHER = (1, 2, 3, 4, 6)
WORKERS = (1, 2, 3, 4)
STEPS = 16
SPREAD = 0.03
MOST_REPEATS = 12
PATIENCE = 300.0

FIRST_LINE = "# Written by make gpu-check"

_together: Barrier


def tune(subject: Subject, say: Callable[..., None]) -> dict[str, Any]:
    """Measure, and return every speed and the best launcher for the precision of the settings.

    First trainings to a process, in each precision, then processes, with as many trainings in each as are best for one.
    More than one process is tried only where MPS runs, without which processes take turns on a GPU.
    """
    cells = subject.cells[:: max(1, len(subject.cells) // CELLS)][:CELLS]
    rows: list[dict[str, Any]] = []

    def measure(precision: str, together: int, workers: int) -> None:
        recipe = subject.settings.training.model_copy(update={"precision": precision})
        chosen = replace(subject, cells=cells, settings=subject.settings.model_copy(update={"training": recipe}))
        speeds = _speeds(chosen, together, workers)
        mean = 1 / statistics.mean(1 / speed for speed in speeds)  # that of a benchmark with these cells alike
        rows.append({"precision": precision, "together": together, "workers": workers, "images_per_second": mean})
        say(f"tuning   {precision}, {workers} worker(s) with {together} training(s) each: {mean:,.0f} images a second")

    def best(precision: str) -> dict[str, Any]:
        of_precision = [row for row in rows if row["precision"] == precision]
        return max(of_precision, key=lambda row: float(row["images_per_second"]))

    precisions = ("float32", "tf32", "bfloat16")
    for precision in precisions:
        for together in TOGETHER:
            measure(precision, together, 1)
    shared = mps_answers()
    for precision in precisions if shared else ():
        together = best(precision)["together"]
        for workers in WORKERS[1:]:
            measure(precision, together, workers)
    images = _images(subject.settings)
    for row in rows:
        row["gpu_hours"] = images / row["images_per_second"] / 3600
    return {
        "gpu": device_name(subject.device),
        "cells": list(cells),
        "mps": shared,
        "images": images,
        "speeds": rows,
        "best": {precision: best(precision) for precision in precisions},
    }


def _images(settings: Settings) -> int:
    """Training images of the whole benchmark with these settings."""
    trainings = plan.recipe_trainings(settings.model_copy(update={"cells": "all"}), RATE)
    connected = [training for training in trainings if training.learning_rate is not None]
    return sum(training.epochs for training in connected) * settings.dataset.images_per_epoch


def _speeds(subject: Subject, together: int, workers: int) -> list[float]:
    """Images per second for each cell, of all workers together."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (context.Barrier(workers), subject.device, workers)) as pool:
        jobs = [pool.submit(_measured, subject, together) for _ in range(workers)]
        each = [job.result(PATIENCE) for job in jobs]
    return [sum(of_cell) for of_cell in zip(*each, strict=True)]


def _begin(barrier: Barrier, device: torch.device, sharing: int) -> None:
    global _together
    _together = barrier
    devices.take(device, sharing)


def _measured(subject: Subject, together: int) -> list[float]:
    """Images per second of this process for each cell, while its siblings measure the same cell."""
    settings = subject.settings
    batch_size = settings.training.batch_size
    data = made_up_images(settings, subject.device, STEPS * batch_size)
    speeds = []
    for cell in subject.cells:
        graph = registry.of(settings.bench).graph_at(cell)
        built = [build.build(graph, settings, initialisation="stock", seed=seed) for seed in range(together)]
        steppers = steppers_for(built, [RATE] * together, range(together), settings, data)
        _time(steppers, batch_size)  # captures
        _together.wait(PATIENCE)
        times: list[float] = []
        while len(times) < 3 or (_spread(times[-3:]) > SPREAD and len(times) < MOST_REPEATS):
            times.append(_time(steppers, batch_size))
        _together.wait(PATIENCE)
        speeds.append(together * STEPS * batch_size / statistics.median(times[-3:]))
    return speeds


def _spread(times: Sequence[float]) -> float:
    return (max(times) - min(times)) / statistics.median(times)


def _time(steppers: Sequence[Stepper], batch_size: int) -> float:
    """Seconds of the GPU for an epoch's steps of all steppers side by side."""
    for stepper in steppers:
        stepper.network.train()
        members = len(stepper.seeds)
        stepper.begin_epoch(0, 1.0, 0, [0.0] * members, [0] * members)
    if steppers[0].stream is None:
        begun = time.perf_counter()
        _take_steps(steppers, batch_size)
        return time.perf_counter() - begun
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    _take_steps(steppers, batch_size)
    for stepper in steppers:
        if stepper.stream is not None:
            torch.cuda.current_stream().wait_stream(stepper.stream)
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000


def _take_steps(steppers: Sequence[Stepper], batch_size: int) -> None:
    for _ in range(STEPS):
        for stepper in steppers:
            stepper.step(batch_size)


def write_site(tuned: dict[str, Any], folder: Path, settings: Settings) -> Path:
    """Write the launcher's settings that were best to <the GPU's name>.yaml. A file of that name that somebody else
    wrote stays, and the new one gets a number."""
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
    lines = [
        f"{FIRST_LINE} on {tuned['gpu']}; what it costs is these GPU hours times your site's price of one.",
        *told,
        "# Change the names to your site's.",
        "partition: null",
        "account: null",
        "gpus: 1",
        f"workers: {chosen['workers']}" + (" # through MPS, which must run on the node" if tuned["mps"] else ""),
        f"together: {chosen['together']}",
        f"cpus: {chosen['workers'] + 1} # one for each worker and one for the parent",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path
