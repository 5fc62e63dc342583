"""A group of trainings of one cell, usually of one: recipes and seeds in; run records out.

A training depends on its seed and settings only, never on what ran before it in the process: every epoch draws its
shuffling and augmentation from a generator seeded by the training's seed (see `seeding`) and the epoch. So a checkpoint
needs no generator state, and a killed and resumed training ends with the same bits as one that was never killed, on the
same kind of CPU, or on the same kind of GPU with the same driver, torch and cuDNN. On a CPU, which trainings are in a
group with it changes the order in which floats are added and nothing else; on a GPU it changes nothing.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn import functional

from nas_retrain.benches import build, registry
from nas_retrain.data.batches import DeviceData
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import tracking
from nas_retrain.execution.checkpoints import MEASURED, Checkpoint, Length, Progress, State, Unusable, kept_at
from nas_retrain.execution.precision import forward
from nas_retrain.execution.schedule import share_of_rate
from nas_retrain.execution.steps import Stepper, by_member
from nas_retrain.plan.plan import group_name
from nas_retrain.seeding import generator_seed
from nas_retrain.settings import Settings, TrainingSettings
from nas_retrain.theory.rule import Parametrisation
from nas_retrain.theory.scaling import in_degree_of
from nas_retrain.trainings.store import RunRecord, Status, finite
from nas_retrain.trainings.training import Training
from nas_retrain.trainings.version import code_version

EVALUATION_BATCH = 1000
First = TypeVar("First")
Second = TypeVar("Second")


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
    # That mode also fills every new tensor, which costs a pass over memory; nothing here reads what was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
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


def train(
    group: Sequence[Training],
    settings: Settings,
    data: DeviceData,
    checkpoint: Path,
    stop: Callable[[], bool] = lambda: False,
) -> list[RunRecord]:
    """Train the networks of a group (see `plan.groups`), resuming from `checkpoint` if it is there and this group's.

    A loss that is not finite makes a member "diverged" with the accuracy of chance; the others go on. A cell without a
    path is "disconnected" and not trained. `stop` is asked after every step. The caller removes the checkpoint once
    the records are stored. Raises Stopped, with everything saved, if `stop` says so, and NasRetrainError if a
    checkpoint cannot be written, or if its folder is absent, moved or removed.
    """
    with kept_at(checkpoint) as kept:
        return _train(group, settings, data, kept, stop)


def _train(
    group: Sequence[Training], settings: Settings, data: DeviceData, kept: Checkpoint, stop: Callable[[], bool]
) -> list[RunRecord]:
    started = _now()
    epochs, graph = group[0].epochs, registry.graph_of(group[0].cell, settings)
    progress = Progress.start(len(group))
    if group[0].learning_rate is None:
        return _records(group, started, progress, [], data, settings)

    seeds = [seed_of_generator(training, settings) for training in group]
    built = [
        build.build(graph, settings, initialisation=training.initialisation, seed=seed, decided=training.decided)
        for training, seed in zip(group, seeds, strict=True)
    ]
    rates, decided = [training.learning_rate or 0.0 for training in group], [training.decided for training in group]
    steppers = steppers_for(built, rates, seeds, settings, data, decided)
    progress = _resumed(kept, group, steppers, settings, len(data.train_labels)) or progress
    with tracking.following(group, settings, progress.epoch) as tell:
        while progress.epoch < epochs:
            begun = time.perf_counter()
            share = share_of_rate(settings.training, progress.epoch, epochs)
            whole = train_epoch(steppers, share, progress, stop)
            progress.seconds += time.perf_counter() - begun
            if not whole:
                kept.save(_state(group, steppers, progress))
                raise Stopped
            if settings.curves == "test":
                tested = _evaluated(steppers, data, settings.training)
                progress.curve[-1] |= dict(zip(MEASURED[2:], tested, strict=True))
            tell(progress.epoch, share, progress.curve[-1])
            if not any(map(math.isfinite, progress.losses)):
                break
            if progress.epoch < epochs and kept.due(progress.epoch, settings.launcher):
                kept.save(_state(group, steppers, progress))
    return _records(group, started, progress, steppers, data, settings)


def seed_of_generator(training: Training, settings: Settings) -> int:
    """What seeds the generator of a training's weights and batches."""
    return generator_seed(settings.seeding, training.seeded_as, training.seed)


def steppers_for(
    built: Sequence[build.Network],
    rates: Sequence[float],
    seeds: Sequence[int],
    settings: Settings,
    data: DeviceData,
    decided: Sequence[Parametrisation | None] = (),
) -> list[Stepper]:
    """What takes the steps of a group's networks, each with one member.

    On a CUDA device each network has steps of its own, which run side by side. Elsewhere all are one wide network.
    decided: what rules decided for each network, nothing if there are none.
    """
    decided = decided or [None] * len(built)
    if data.device.type == "cuda":
        each = enumerate(zip(built, rates, seeds, decided, strict=True))
        return [Stepper(network, [rate], [seed], settings, data, [its], at) for at, (network, rate, seed, its) in each]
    return [Stepper(build.join(built), rates, seeds, settings, data, decided)]


def train_epoch(steppers: Sequence[Stepper], factor: float, progress: Progress, stop: Callable[[], bool]) -> bool:
    """Train to the end of the epoch, or until `stop`; tells which, and updates `progress`.

    factor: the epoch's learning rates as a share of the members' own. Losses and accuracies are measured as the epoch
    goes. One synchronisation an epoch.
    """
    number, batch_size = len(steppers[0].data.train_labels), steppers[0].recipe.batch_size
    first_image, first_member = progress.step * batch_size, 0
    for stepper in steppers:
        its = slice(first_member, first_member := first_member + len(stepper.seeds))
        stepper.network.train()
        stepper.begin_epoch(progress.epoch, factor, first_image, progress.loss_sums[its], progress.correct[its])
    for start in range(first_image, number, batch_size):
        images = min(batch_size, number - start)
        if progress.epoch == 0 and start == 0:
            progress.gradient_norms, progress.relative_gradients = _of_all(
                stepper.first_step(images) for stepper in steppers
            )
        else:
            for stepper in steppers:
                stepper.step(images)
        if stop():
            progress.step = start // batch_size + 1
            progress.loss_sums, progress.correct = _of_all(stepper.sums() for stepper in steppers)
            return False
    loss_sums, correct = _of_all(stepper.sums() for stepper in steppers)
    progress.losses = [loss_sum / number for loss_sum in loss_sums]
    progress.accuracies = [100.0 * hits / number for hits in correct]
    progress.curve.append({"train_loss": progress.losses, "train_accuracy": progress.accuracies})
    progress.epoch += 1
    progress.step, progress.loss_sums, progress.correct = 0, [0.0] * len(correct), [0] * len(correct)
    return True


def _of_all(pairs: Iterable[tuple[list[First], list[Second]]]) -> tuple[list[First], list[Second]]:
    """Two lists with a value for each member of a group, from those of its networks."""
    first, second = zip(*pairs, strict=True)
    return list(chain.from_iterable(first)), list(chain.from_iterable(second))


@torch.no_grad()
def evaluate(network: build.Network, data: DeviceData, recipe: TrainingSettings) -> tuple[list[float], list[float]]:
    """Each member's mean test loss and test accuracy in percent, with the running BatchNorm statistics."""
    network.eval()
    loss_sums = torch.zeros(network.members, device=data.device)
    correct = torch.zeros(network.members, device=data.device, dtype=torch.int64)
    for images, labels in zip(
        torch.split(data.test_images, EVALUATION_BATCH), torch.split(data.test_labels, EVALUATION_BATCH), strict=True
    ):
        repeated = images if network.members == 1 else torch.cat([images] * network.members, 1)
        logits = by_member(network, forward(network, repeated, recipe.precision))
        loss_sums += torch.stack([functional.cross_entropy(each, labels, reduction="sum") for each in logits])
        correct += (logits.argmax(2) == labels).sum(1)
    number = len(data.test_labels)
    return (loss_sums / number).tolist(), [100.0 * hits / number for hits in correct.tolist()]


def _evaluated(
    steppers: Sequence[Stepper], data: DeviceData, recipe: TrainingSettings
) -> tuple[list[float], list[float]]:
    """The same for each member of a group."""
    losses: list[float] = []
    accuracies: list[float] = []
    for stepper in steppers:
        with stepper.on_stream():
            found = evaluate(stepper.network, data, recipe)
        losses += found[0]
        accuracies += found[1]
    return losses, accuracies


def _state(group: Sequence[Training], steppers: Sequence[Stepper], progress: Progress) -> State:
    """The group's state, with every tensor the members' stacked, however many networks they are."""
    momenta = zip(*(stepper.optimiser.momenta for stepper in steppers), strict=True)
    return State(
        tuple(training.label for training in group),
        build.stacked([stepper.network.state_dict() for stepper in steppers]),
        [torch.cat(each) for each in momenta],
        progress,
    )


def _resumed(
    kept: Checkpoint, group: Sequence[Training], steppers: Sequence[Stepper], settings: Settings, images: int
) -> Progress | None:
    """Load what was saved into networks and optimisers, and return its progress; None, with all left as at the start,
    if nothing was saved or what was cannot be gone on with."""
    start = _state(group, steppers, Progress.start(len(group)))
    try:
        saved = kept.load(start, Length(group[0].epochs, images, settings.training.batch_size))
    except Unusable as reason:
        warnings.warn(f"{kept.path} {reason}: the training starts over.", stacklevel=2)
        return None
    if saved is None:
        return None
    for place, stepper in enumerate(steppers):
        with stepper.on_stream():
            parts = {name: tensor.chunk(len(steppers))[place] for name, tensor in saved.network.items()}
            build.load(stepper.network, parts)
            for momentum, tensor in zip(stepper.optimiser.momenta, saved.momenta, strict=True):
                momentum.copy_(tensor.chunk(len(steppers))[place])
    progress = saved.progress
    if settings.curves and len(progress.curve) < progress.epoch:
        warnings.warn(f"{kept.path} is an older version's, without curves: the record gets none.", stacklevel=2)
    return replace(progress, resumed=[*progress.resumed, f"{progress.epoch}.{progress.step}"])


def _records(
    group: Sequence[Training],
    started: str,
    progress: Progress,
    steppers: Sequence[Stepper],
    data: DeviceData,
    settings: Settings,
) -> list[RunRecord]:
    """Each member's record. The time of a group is shared out evenly. A disconnected cell has no steppers."""
    chance = 100.0 / settings.dataset.classes
    test_losses, test_accuracies = [math.nan] * len(group), [chance] * len(group)
    last = progress.curve[-1] if progress.curve else {}
    if steppers and "test_loss" in last:  # it was evaluated for the curves
        test_losses, test_accuracies = last["test_loss"], last["test_accuracy"]
    elif steppers and any(map(math.isfinite, progress.losses)):
        test_losses, test_accuracies = _evaluated(steppers, data, settings.training)
    seconds = progress.seconds / len(group)
    images = progress.epoch * len(data.train_labels)
    records = []
    for member, training in enumerate(group):
        loss, test_loss = progress.losses[member], test_losses[member]
        status: Status = "finished"
        if not steppers:
            status = "disconnected"
        elif not (math.isfinite(loss) and math.isfinite(test_loss)):
            status, test_loss = "diverged", math.nan
        records.append(
            RunRecord(
                bench=training.bench,
                dataset=training.dataset,
                recipe=training.recipe,
                cell=training.cell,
                arch=training.arch,
                network_class=training.network_class,
                seed=training.seed,
                epochs=training.epochs,
                learning_rate=training.learning_rate,
                in_degree=in_degree_of(training.initialisation),
                status=status,
                train_loss=finite(loss),
                train_accuracy=progress.accuracies[member] if status == "finished" else chance,
                test_loss=finite(test_loss),
                test_accuracy=test_accuracies[member] if status == "finished" else chance,
                seconds=seconds,
                images_per_second=images / max(seconds, 1e-9) if steppers else None,
                device=device_name(data.device),
                torch=torch.__version__,
                code_version=code_version(),
                config_hash=training.config_hash,
                started=started,
                finished=_now(),
                gradient_norm=finite(progress.gradient_norms[member]),
                relative_gradient=finite(progress.relative_gradients[member]),
                group=group_name(group),
                seeding=settings.seeding,
                resumed=" ".join(progress.resumed),
                **_decided(training),
                **(_curves(progress, member, training, settings) if steppers else {}),
            )
        )
    return records


def _decided(training: Training) -> dict[str, Any]:
    """The fields of a record that tell what a rule decided; nothing without a rule."""
    rule, decided = training.rule, training.decided
    if rule is None or decided is None:
        return {}
    return {
        "rule": rule.name,
        "rule_checksum": rule.checksum,
        "rule_factor": decided.learning_rate,
        "rule_layers": decided.layers_as_text(),
    }


def _curves(progress: Progress, member: int, training: Training, settings: Settings) -> dict[str, Any]:
    """A member's fields of `RunRecord` that hold values of each epoch; none if they are not asked for or not known."""
    if settings.curves is None or len(progress.curve) < progress.epoch:
        return {}
    epochs = list(takewhile(lambda one: math.isfinite(one["train_loss"][member]), progress.curve))
    rate = training.learning_rate or 0.0
    rates = [rate * share_of_rate(settings.training, epoch, training.epochs) for epoch in range(len(epochs))]
    measured = MEASURED if settings.curves == "test" else MEASURED[:2]
    return {"learning_rate_curve": tuple(rates)} | {
        f"{name}_curve": tuple(finite(one[name][member]) if name in one else None for one in epochs)
        for name in measured
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
