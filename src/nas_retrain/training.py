"""One training: a cell, a recipe and a seed in; a run record out.

A training depends on its seed and settings only, never on what ran before it in the process: every epoch draws its
shuffling and augmentation from a generator seeded by (seed, epoch). So a checkpoint needs no generator state, and a
killed and resumed training ends with the same bits as one that was never killed, on the same machine.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nas_retrain.config import Settings
from nas_retrain.data.batches import DeviceData, training_batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.networks import nas_bench_201 as networks
from nas_retrain.plan import Training
from nas_retrain.spaces import nas_bench_201
from nas_retrain.store import RunRecord, Status, replacing
from nas_retrain.version import code_version

EVALUATION_BATCH = 1000


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A training was asked to stop. Its checkpoint holds all that it had done."""


def choose_device(wanted: str) -> torch.device:
    """The device that a setting names; "auto" is cuda, else mps, else cpu.

    Raises NasRetrainError if it is absent, or if "auto" would silently leave a GPU that was given to this process.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if wanted == "auto" and re.match(r"\d|GPU-|MIG-", given) and not present["cuda"]:
        raise NasRetrainError(
            f"launcher.device=auto: this process was given a GPU (CUDA_VISIBLE_DEVICES={given}) that torch cannot use. "
            "Check the driver (nvidia-smi) and that torch was installed with CUDA, or ask for launcher.device=cpu."
        )
    if wanted == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present[wanted]:
        there = ", ".join(name for name, there in present.items() if there)
        raise NasRetrainError(f"launcher.device={wanted}: this machine has no such device; it has {there}.")
    return torch.device(wanted)


def prepare_process(device: torch.device) -> None:
    """Make this process train reproducibly: deterministic kernels, and on the CPU one thread (more run beside it)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False
    if device.type == "cpu":
        torch.set_num_threads(1)
        _keep_memory()


def _keep_memory() -> None:
    """Let glibc keep freed memory for the next step. By default it hands tensors of megabytes back to the kernel, which
    then clears their pages again, step by step. Elsewhere than on glibc this does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        no_mmap, never_trim = (-4, 0), (-1, -1)  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
        mallopt(*no_mmap)
        mallopt(*never_trim)


def device_name(device: torch.device) -> str:
    """What a run record calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@dataclass
class _Progress:
    """What a training knows beside weights and momenta: epochs done, and steps, summed loss and hits of the one under
    way. loss (mean, in nats) and accuracy (percent) are of the last whole epoch."""

    epoch: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    accuracy: float = math.nan
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0


def train(
    training: Training,
    settings: Settings,
    data: DeviceData,
    checkpoint: Path,
    stop: Callable[[], bool] = lambda: False,
) -> RunRecord:
    """Train one network, resuming from `checkpoint` if it is there and this training's.

    A loss that is not finite ends the training as "diverged" with the accuracy of chance. A cell without a path is
    "disconnected" and not trained. `stop` is asked after every step. The caller removes the checkpoint once the record
    is stored. Raises Stopped, with everything saved, if `stop` says so, and NasRetrainError if a checkpoint cannot be
    written.
    """
    started = _now()
    chance = 100.0 / settings.dataset.classes
    if training.learning_rate is None:
        return _record(training, started, _Progress(accuracy=chance), "disconnected", math.nan, chance, data, None)

    network = networks.build(
        nas_bench_201.parse(training.arch),
        channels=settings.network.channels,
        cells_per_stage=settings.network.cells_per_stage,
        classes=settings.dataset.classes,
        image_channels=settings.dataset.image_channels,
        in_degree=training.in_degree,
        seed=training.seed,
    ).to(data.device)
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=training.learning_rate,
        momentum=settings.training.momentum,
        nesterov=settings.training.nesterov,
        weight_decay=settings.training.weight_decay,
        fused=True,
    )
    progress = _resume(checkpoint, training, network, optimiser)
    while progress.epoch < training.epochs:
        rate = cosine(training.learning_rate, progress.epoch, training.epochs)
        for group in optimiser.param_groups:
            group["lr"] = rate
        begun = time.perf_counter()
        generator = torch.Generator().manual_seed(_epoch_seed(training.seed, progress.epoch))
        whole = _train_epoch(network, optimiser, data, settings.training.batch_size, generator, progress, stop)
        progress.seconds += time.perf_counter() - begun
        if not whole:
            _save(checkpoint, training, network, optimiser, progress)
            raise Stopped
        if not math.isfinite(progress.loss):
            break
        if progress.epoch % settings.launcher.checkpoint_every == 0 and progress.epoch < training.epochs:
            _save(checkpoint, training, network, optimiser, progress)

    images = progress.epoch * len(data.train_labels)
    test_loss, test_accuracy = evaluate(network, data) if math.isfinite(progress.loss) else (math.nan, math.nan)
    status: Status = "finished"
    if not math.isfinite(test_loss):
        status, progress.accuracy, test_accuracy = "diverged", chance, chance
    return _record(
        training, started, progress, status, test_loss, test_accuracy, data, images / max(progress.seconds, 1e-9)
    )


def cosine(learning_rate: float, epoch: int, epochs: int) -> float:
    """The rate of an epoch under a cosine schedule that starts at `learning_rate` and would reach 0 at `epochs`."""
    return 0.5 * learning_rate * (1.0 + math.cos(math.pi * epoch / epochs))


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def _train_epoch(
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    data: DeviceData,
    batch_size: int,
    generator: torch.Generator,
    progress: _Progress,
    stop: Callable[[], bool],
) -> bool:
    """Train to the end of the epoch, or until `stop`; tells which, and updates `progress`.

    Loss and accuracy are measured as the epoch goes. One synchronisation an epoch.
    """
    network.train()
    loss_sum = torch.tensor(progress.loss_sum, device=data.device, dtype=torch.float32)
    correct = torch.tensor(progress.correct, device=data.device)
    for step, (images, labels) in enumerate(training_batches(data, batch_size, generator)):
        if step < progress.step:  # trained before the stop; drawn again, for the generator's sake
            continue
        optimiser.zero_grad(set_to_none=True)
        logits = network(images)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.detach().argmax(1) == labels).sum()
        if stop():
            progress.step, progress.loss_sum, progress.correct = step + 1, loss_sum.item(), int(correct.item())
            return False
    number = len(data.train_labels)
    progress.loss, progress.accuracy = loss_sum.item() / number, 100.0 * correct.item() / number
    progress.epoch += 1
    progress.step, progress.loss_sum, progress.correct = 0, 0.0, 0
    return True


@torch.no_grad()
def evaluate(network: torch.nn.Module, data: DeviceData) -> tuple[float, float]:
    """Mean test loss and test accuracy in percent, with the running BatchNorm statistics."""
    network.eval()
    loss_sum = torch.zeros((), device=data.device)
    correct = torch.zeros((), device=data.device, dtype=torch.int64)
    for images, labels in zip(
        torch.split(data.test_images, EVALUATION_BATCH), torch.split(data.test_labels, EVALUATION_BATCH), strict=True
    ):
        logits: Tensor = network(images)
        loss_sum += functional.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    number = len(data.test_labels)
    return loss_sum.item() / number, 100.0 * correct.item() / number


def _save(
    path: Path, training: Training, network: torch.nn.Module, optimiser: torch.optim.Optimizer, progress: _Progress
) -> None:
    state = {
        "training": training.label,
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": vars(progress),
    }
    with replacing(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk this way
            raise NasRetrainError(f"Cannot write the checkpoint {path}: {error}. Is the disk full?") from error


def _resume(path: Path, training: Training, network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> _Progress:
    """Load a checkpoint into the network and optimiser; without one, or with one that is damaged, start from 0."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except FileNotFoundError:
        return _Progress()
    except Exception as error:  # noqa: BLE001 - torch raises many kinds for a damaged file
        warnings.warn(f"{path} is not a readable checkpoint ({error}): the training starts over.", stacklevel=2)
        return _Progress()
    if state.get("training") != training.label:
        warnings.warn(f"{path} is another training's checkpoint: the training starts over.", stacklevel=2)
        return _Progress()
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return _Progress(**state["progress"])


def _record(
    training: Training,
    started: str,
    progress: _Progress,
    status: Status,
    test_loss: float,
    test_accuracy: float,
    data: DeviceData,
    images_per_second: float | None,
) -> RunRecord:
    return RunRecord(
        bench=training.bench,
        dataset=training.dataset,
        recipe=training.recipe,
        cell=training.cell,
        arch=training.arch,
        network_class=training.network_class,
        seed=training.seed,
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        in_degree=training.in_degree,
        status=status,
        train_loss=_finite(progress.loss),
        train_accuracy=progress.accuracy,
        test_loss=_finite(test_loss),
        test_accuracy=test_accuracy,
        seconds=progress.seconds,
        images_per_second=images_per_second,
        device=device_name(data.device),
        torch=torch.__version__,
        code_version=code_version(),
        config_hash=training.config_hash,
        started=started,
        finished=_now(),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
