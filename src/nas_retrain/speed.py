"""Training speed of this machine: one network at a time on all cores, against one a core on one thread each.

Both arrangements are measured in one run, turn by turn, so that a drift of the machine's speed touches both.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier

import pandas as pd
import torch

from nas_retrain.config import Settings
from nas_retrain.cost import made_up_images, seconds_per_image
from nas_retrain.plan import recipe_trainings
from nas_retrain.training import choose_device, device_name, prepare_process

REPEATS = 5
CELLS = 8
SECONDS = 2.0
"""How long one network is trained for one figure."""

_together: Barrier


def measure_workers(settings: Settings) -> pd.DataFrame:
    """Images a second of both arrangements, a row a cell and repeat.

    The cells are the first eight connected ones that the settings choose. Columns: cell, repeat, device, torch,
    cores, one_process and worker_processes (images/s of all processes together, training steps only) and ratio.
    """
    device = choose_device(settings.launcher.device)
    cores = os.cpu_count() or 1
    trainings = recipe_trainings(settings, 1.0)
    cells = list(dict.fromkeys(training.cell for training in trainings if training.learning_rate is not None))[:CELLS]
    rows = []
    with _processes(1, cores, device) as alone, _processes(cores, 1, device) as beside:
        for repeat in range(REPEATS):
            for cell in cells:
                one = _images_per_second(alone, 1, cell, settings, device)
                several = _images_per_second(beside, cores, cell, settings, device)
                rows.append((cell, repeat, device_name(device), torch.__version__, cores, one, several, several / one))
    columns = ["cell", "repeat", "device", "torch", "cores", "one_process", "worker_processes", "ratio"]
    return pd.DataFrame(rows, columns=columns)


@contextmanager
def _processes(number: int, threads: int, device: torch.device) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, context, _prepare, (threads, device.type, context.Barrier(number))) as pool:
        yield pool


def _prepare(threads: int, device: str, together: Barrier) -> None:
    global _together  # a barrier reaches a process of a pool only when that begins
    _together = together
    prepare_process(torch.device(device))
    torch.set_num_threads(threads)


def _images_per_second(
    pool: ProcessPoolExecutor, number: int, cell: int, settings: Settings, device: torch.device
) -> float:
    tasks = [pool.submit(_train_a_while, cell, settings, device.type) for _ in range(number)]
    return sum(task.result() for task in tasks)


def _train_a_while(cell: int, settings: Settings, device: str) -> float:
    data = made_up_images(settings, torch.device(device))
    _together.wait(timeout=120)  # each process takes one task, and all begin at once
    return 1 / seconds_per_image(cell, settings, data, budget=SECONDS, most_steps=10**6)
