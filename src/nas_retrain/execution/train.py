"""A group of trainings of one cell, usually of one: recipes and seeds in; run records out.

A training depends on its seed and settings only, never on what ran before it in the process: every epoch draws its
shuffling and augmentation from a generator seeded by the training's seed (see `seeding`) and the epoch. So a checkpoint
needs no generator state, and a killed and resumed training ends with the same bits as one that was never killed, on the
same machine. Which trainings are in a group with it changes nothing but the order in which floats are added.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from nas_retrain.benches import build as networks
from nas_retrain.benches import registry as spaces
from nas_retrain.data.batches import DeviceData, training_batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution.checkpoints import Checkpoint, Length, Progress, State, Unusable, kept_at
from nas_retrain.plan.plan import group_name
from nas_retrain.seeding import generator_seed
from nas_retrain.settings import Settings, TrainingSettings
from nas_retrain.theory.scaling import in_degree_of
from nas_retrain.trainings.store import RunRecord, Status
from nas_retrain.trainings.training import Training
from nas_retrain.trainings.version import code_version

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
    epochs, graph = group[0].epochs, spaces.of(settings.bench).graph_at(group[0].cell)
    progress = Progress.start(len(group))
    if group[0].learning_rate is None:
        return _records(group, started, progress, None, data, settings)

    seeds = [seed_of_generator(training, settings) for training in group]
    network = networks.join(
        [
            networks.build(graph, settings, initialisation=training.initialisation, seed=seed)
            for training, seed in zip(group, seeds, strict=True)
        ]
    ).to(data.device)
    if settings.launcher.compile:
        torch._dynamo.reset()  # what was compiled for other networks counts against a limit
        # On CUDA this mode also replays a step's kernels as one graph: these networks are bound by launching them.
        network.compile(mode="reduce-overhead" if data.device.type == "cuda" else "default")
    optimiser = Sgd(network, [training.learning_rate or 0.0 for training in group], settings)
    progress = _resumed(kept, group, network, optimiser, settings, len(data.train_labels)) or progress
    while progress.epoch < epochs:
        optimiser.anneal(cosine(1.0, progress.epoch, epochs))
        begun = time.perf_counter()
        whole = train_epoch(network, optimiser, data, settings.training, seeds, progress, stop)
        progress.seconds += time.perf_counter() - begun
        if not whole:
            kept.save(_state(group, network, optimiser.momenta, progress))
            raise Stopped
        if not any(map(math.isfinite, progress.losses)):
            break
        if progress.epoch < epochs and kept.due(progress.epoch, settings.launcher):
            kept.save(_state(group, network, optimiser.momenta, progress))
    return _records(group, started, progress, network, data, settings)


class Sgd:
    """SGD with momentum and weight decay, and a learning rate for each member of a network.

    PyTorch's SGD has one rate for a tensor, and a stacked tensor has all members'. An update is linear in the gradient
    and in the decayed weight, through the momentum too; so both are scaled by a member's share of the first one's
    rate.
    """

    def __init__(self, network: networks.Network, rates: Sequence[float], settings: Settings) -> None:
        self.rate, self.members = rates[0], len(rates)
        self.parameters: list[Tensor] = list(network.parameters())
        self.weight_decay = settings.training.weight_decay
        self.sgd = torch.optim.SGD(
            self.parameters,
            lr=self.rate,
            momentum=settings.training.momentum,
            nesterov=settings.training.nesterov,
            weight_decay=self.weight_decay if len(rates) == 1 else 0.0,
            fused=True,
        )
        self.shares: list[Tensor] = []
        if len(rates) > 1:
            share = torch.tensor(rates, device=self.parameters[0].device) / self.rate
            self.shares = [
                share.repeat_interleave(len(parameter) // len(rates)).view(-1, *[1] * (parameter.ndim - 1))
                for parameter in self.parameters
            ]

    @property
    def like_momenta(self) -> list[Tensor]:
        """Tensors of the shapes and types of the momenta, in the parameters' order; none without momentum."""
        return self.parameters if self.sgd.defaults["momentum"] else []

    @property
    def momenta(self) -> Sequence[Tensor]:
        """The momenta after a step, in the parameters' order; none without momentum."""
        return [self.sgd.state[parameter]["momentum_buffer"] for parameter in self.like_momenta]

    @momenta.setter
    def momenta(self, momenta: Sequence[Tensor]) -> None:
        for parameter, momentum in zip(self.like_momenta, momenta, strict=True):
            # The fused update goes through memory: what is loaded must be laid out as the parameter is.
            self.sgd.state[parameter]["momentum_buffer"] = torch.empty_like(parameter.detach()).copy_(momentum)

    def anneal(self, factor: float) -> None:
        """Set every member's rate to this share of its own."""
        for group in self.sgd.param_groups:
            group["lr"] = self.rate * factor

    def gradients(self, loss: Tensor) -> None:
        """Compute the gradients of `loss`, a sum over members."""
        self.sgd.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def gradient_sizes(self) -> tuple[list[float], list[float]]:
        """Each member's gradient_norm and relative_gradient (see `RunRecord`)."""
        members = self.members
        squares = torch.zeros(members, device=self.parameters[0].device)
        shares = []
        for parameter in self.parameters:
            square = cast("Tensor", parameter.grad).reshape(members, -1).square().sum(1)
            squares += square
            if parameter.ndim > 1:
                shares.append(square / parameter.reshape(members, -1).square().sum(1))
        return squares.sqrt().tolist(), torch.stack(shares).mean(0).sqrt().tolist()

    @torch.no_grad()
    def step(self) -> None:
        """One update by the gradients that were computed."""
        if self.shares:
            gradients = [cast("Tensor", parameter.grad) for parameter in self.parameters]
            torch._foreach_add_(gradients, self.parameters, alpha=self.weight_decay)
            torch._foreach_mul_(gradients, self.shares)
        self.sgd.step()


def cosine(learning_rate: float, epoch: int, epochs: int) -> float:
    """The rate of an epoch under a cosine schedule that starts at `learning_rate` and would reach 0 at `epochs`."""
    return 0.5 * learning_rate * (1.0 + math.cos(math.pi * epoch / epochs))


def seed_of_generator(training: Training, settings: Settings) -> int:
    """What seeds the generator of a training's weights and batches."""
    network_class = spaces.of(settings.bench).training_class(training.cell, "stock")
    return generator_seed(settings.seeding, network_class, training.seed)


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def train_epoch(
    network: networks.Network,
    optimiser: Sgd,
    data: DeviceData,
    recipe: TrainingSettings,
    seeds: Sequence[int],
    progress: Progress,
    stop: Callable[[], bool],
) -> bool:
    """Train to the end of the epoch, or until `stop`; tells which, and updates `progress`.

    Losses and accuracies are measured as the epoch goes. One synchronisation an epoch.
    """
    network.train()
    loss_sums = torch.tensor(progress.loss_sums, device=data.device, dtype=torch.float32)
    correct = torch.tensor(progress.correct, device=data.device)
    for step, (images, labels) in enumerate(_batches(data, recipe.batch_size, seeds, progress.epoch)):
        if step < progress.step:  # trained before the stop; drawn again, for the generator's sake
            continue
        with _precision(recipe, data.device):
            logits = _by_member(network, network(images))
        losses = torch.stack([functional.cross_entropy(*pair) for pair in zip(logits, labels, strict=True)])
        optimiser.gradients(losses.sum())
        if progress.epoch == 0 and step == 0:
            progress.gradient_norms, progress.relative_gradients = optimiser.gradient_sizes()
        optimiser.step()
        loss_sums += losses.detach() * labels.shape[1]
        correct += (logits.detach().argmax(2) == labels).sum(1)
        if stop():
            progress.step, progress.loss_sums, progress.correct = step + 1, loss_sums.tolist(), correct.tolist()
            return False
    number = len(data.train_labels)
    progress.losses = [loss_sum / number for loss_sum in loss_sums.tolist()]
    progress.accuracies = [100.0 * hits / number for hits in correct.tolist()]
    progress.epoch += 1
    progress.step, progress.loss_sums, progress.correct = 0, [0.0] * len(seeds), [0] * len(seeds)
    return True


def _batches(data: DeviceData, batch_size: int, seeds: Sequence[int], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of each member's batches: images (batch, members x channels, size, size), labels (members, batch)."""
    drawn = {
        seed: training_batches(data, batch_size, torch.Generator().manual_seed(_epoch_seed(seed, epoch)))
        for seed in dict.fromkeys(seeds)
    }
    for together in zip(*drawn.values(), strict=True):
        batch = dict(zip(drawn, together, strict=True))
        if len(seeds) == 1:
            images, labels = together[0]
            yield images, labels[None]
        else:
            yield torch.cat([batch[seed][0] for seed in seeds], 1), torch.stack([batch[seed][1] for seed in seeds])


def _by_member(network: networks.Network, logits: Tensor) -> Tensor:
    """Logits of shape (members, batch, classes), in single precision at least."""
    by_member = logits.view(len(logits), network.members, -1).movedim(1, 0)
    return by_member if by_member.dtype == torch.float64 else by_member.float()


def _precision(recipe: TrainingSettings, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


@torch.no_grad()
def evaluate(network: networks.Network, data: DeviceData, recipe: TrainingSettings) -> tuple[list[float], list[float]]:
    """Each member's mean test loss and test accuracy in percent, with the running BatchNorm statistics."""
    network.eval()
    loss_sums = torch.zeros(network.members, device=data.device)
    correct = torch.zeros(network.members, device=data.device, dtype=torch.int64)
    for images, labels in zip(
        torch.split(data.test_images, EVALUATION_BATCH), torch.split(data.test_labels, EVALUATION_BATCH), strict=True
    ):
        repeated = images if network.members == 1 else torch.cat([images] * network.members, 1)
        with _precision(recipe, data.device):
            logits = _by_member(network, network.forward(repeated))  # never compiled: it is done once
        loss_sums += torch.stack([functional.cross_entropy(each, labels, reduction="sum") for each in logits])
        correct += (logits.argmax(2) == labels).sum(1)
    number = len(data.test_labels)
    return (loss_sums / number).tolist(), [100.0 * hits / number for hits in correct.tolist()]


def _state(
    group: Sequence[Training], network: networks.Network, momenta: Sequence[Tensor], progress: Progress
) -> State:
    return State(tuple(training.label for training in group), network.state_dict(), momenta, progress)


def _resumed(
    kept: Checkpoint,
    group: Sequence[Training],
    network: networks.Network,
    optimiser: Sgd,
    settings: Settings,
    images: int,
) -> Progress | None:
    """Load what was saved into the network and the optimiser, and return its progress; None, with both left as at the
    start, if nothing was saved or what was cannot be gone on with."""
    start = _state(group, network, optimiser.like_momenta, Progress.start(len(group)))
    try:
        saved = kept.load(start, Length(group[0].epochs, images, settings.training.batch_size))
    except Unusable as reason:
        warnings.warn(f"{kept.path} {reason}: the training starts over.", stacklevel=2)
        return None
    if saved is None:
        return None
    network.load_state_dict(dict(saved.network))
    optimiser.momenta = saved.momenta
    progress = saved.progress
    return replace(progress, resumed=[*progress.resumed, f"{progress.epoch}.{progress.step}"])


def _records(
    group: Sequence[Training],
    started: str,
    progress: Progress,
    network: networks.Network | None,
    data: DeviceData,
    settings: Settings,
) -> list[RunRecord]:
    """Each member's record. The time of a group is shared out evenly. network is None for a disconnected cell."""
    chance = 100.0 / settings.dataset.classes
    test_losses, test_accuracies = [math.nan] * len(group), [chance] * len(group)
    if network is not None and any(map(math.isfinite, progress.losses)):
        test_losses, test_accuracies = evaluate(network, data, settings.training)
    seconds = progress.seconds / len(group)
    images = progress.epoch * len(data.train_labels)
    records = []
    for member, training in enumerate(group):
        loss, test_loss = progress.losses[member], test_losses[member]
        status: Status = "finished"
        if network is None:
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
                train_loss=_finite(loss),
                train_accuracy=progress.accuracies[member] if status == "finished" else chance,
                test_loss=_finite(test_loss),
                test_accuracy=test_accuracies[member] if status == "finished" else chance,
                seconds=seconds,
                images_per_second=None if network is None else images / max(seconds, 1e-9),
                device=device_name(data.device),
                torch=torch.__version__,
                code_version=code_version(),
                config_hash=training.config_hash,
                started=started,
                finished=_now(),
                gradient_norm=_finite(progress.gradient_norms[member]),
                relative_gradient=_finite(progress.relative_gradients[member]),
                group=group_name(group),
                seeding=settings.seeding,
                resumed=" ".join(progress.resumed),
            )
        )
    return records


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
