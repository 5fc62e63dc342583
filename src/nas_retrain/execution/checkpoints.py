"""The state of a group of trainings that is under way, kept in a file so that another process can go on with it.

A file is a line with a digest, then a pickle of plain values and numpy arrays, which `safe_pickle` reads: whoever can
write a file can give it the right digest. Nothing of it is used before the digest and then every value has been checked
against the training that is to go on. A file that is damaged, of another training or of another version is `Unusable`,
and the training starts over. What a later version adds beside the values known here is ignored.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas_retrain.errors import NasRetrainError, printable
from nas_retrain.execution import devices
from nas_retrain.files import safe_pickle
from nas_retrain.files.atomic import replacing
from nas_retrain.files.locks import in_place, moved
from nas_retrain.settings import LocalSettings

MARK = b"nas-retrain checkpoint 2, blake2b "
"""How a file begins, before the digest of all that follows the line."""


MEASURED = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
"""What is measured in an epoch; of the test images only if it is asked for (`Settings.curves`)."""


class Unusable(Exception):  # noqa: N818 - the training only starts over
    """Why a checkpoint cannot be gone on with, as the second half of a sentence that begins with its path."""


@dataclass
class Progress:
    """What a group knows beside weights and momenta: epochs done, and steps, summed losses and hits of the one under
    way. losses (means, in nats) and accuracies (percent) are of the last whole epoch, a value for each member.
    gradient_norms and relative_gradients are of the first step (see `RunRecord`). resumed: where it was each time that
    it went on from a checkpoint, as "epoch.step". curve: of each whole epoch, what was measured, by the names in
    MEASURED, a value for each member; shorter than `epoch` where an older version kept none of the first epochs."""

    losses: list[float]
    accuracies: list[float]
    loss_sums: list[float]
    correct: list[int]
    gradient_norms: list[float]
    relative_gradients: list[float]
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    resumed: list[str] = field(default_factory=list)
    curve: list[dict[str, list[float]]] = field(default_factory=list)

    @classmethod
    def start(cls, members: int) -> Progress:
        """Of a group that has not begun."""
        unknown = [math.nan] * members
        return cls(unknown, unknown, [0.0] * members, [0] * members, unknown, unknown)


@dataclass(frozen=True)
class State:
    """All that a group under way is: the labels of its members, the network's tensors by name, SGD's momenta in the
    order of the parameters (none without momentum), and how far it is."""

    trainings: tuple[str, ...]
    network: Mapping[str, Tensor]
    momenta: Sequence[Tensor]
    progress: Progress


@dataclass(frozen=True)
class Length:
    """How long a training is: epochs, and the images and the batch size that make an epoch's steps."""

    epochs: int
    images: int
    batch_size: int


class Checkpoint:
    """The file of one group, in a folder that must stay where it is."""

    def __init__(self, path: Path, folder: int) -> None:
        self.path, self._folder = path, folder
        self._saved = time.monotonic()

    def due(self, epoch: int, launcher: LocalSettings) -> bool:
        """Whether to save at the end of so many epochs: every checkpoint_every epochs, but no sooner than
        checkpoint_minutes after the last time, so that many workers do not write more than a file system takes."""
        waited = (time.monotonic() - self._saved) / 60
        return epoch % launcher.checkpoint_every == 0 and waited >= launcher.checkpoint_minutes

    def save(self, state: State) -> None:
        """Write the file, whole. Raises NasRetrainError if that cannot be, or if its folder was moved or removed."""
        if not in_place(self._folder, self.path.parent):
            raise moved(self._folder, self.path.parent)
        content = {
            "trainings": list(state.trainings),
            "network": {name: tensor.numpy(force=True) for name, tensor in state.network.items()},
            "momenta": [tensor.numpy(force=True) for tensor in state.momenta],
            "progress": dict(vars(state.progress)),
            "made_with": made_with(state),
        }
        with replacing(self.path) as temporary:
            temporary.write_bytes(sealed(pickle.dumps(content)))
        self._saved = time.monotonic()

    def load(self, start: State, length: Length) -> State | None:
        """What was saved of the training that starts as `start`, on the CPU; None if nothing was.

        Warns if it was saved with another device, torch or cuDNN, since the last bits may be others then. Raises
        Unusable for a file that is damaged or does not fit.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unusable(f"cannot be read ({error.strerror or error})") from error
        loaded = _unpacked(content, self.path)
        state = _checked(loaded, start, length)
        _tell_what_differs(self.path, loaded.get("made_with"), made_with(start))
        return state


@contextmanager
def kept_at(path: Path) -> Iterator[Checkpoint]:
    """A checkpoint at `path`, in a folder that is there. Raises NasRetrainError if it is not."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise NasRetrainError(
            f"{path.parent}, which checkpoints are written to, cannot be opened: {error.strerror}. Was the results "
            "folder moved or removed? Put it back and run the same command again."
        ) from error
    try:
        yield Checkpoint(path, folder)
    finally:
        os.close(folder)


def content(path: Path) -> dict[str, Any]:
    """All that a checkpoint's file holds, as it was written. Raises Unusable for a damaged one."""
    return _unpacked(path.read_bytes(), path)


def made_with(state: State) -> dict[str, str]:
    """What the last bits of a state depend on beside the training: the device that it is on, torch, and cuDNN there."""
    device = next((tensor.device for tensor in state.network.values()), torch.device("cpu"))
    found = {"device": device.type, "torch": str(torch.__version__)}  # which is more than a string
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "cuDNN": devices.cudnn_version()}
    return found


def _tell_what_differs(path: Path, before: object, now: Mapping[str, str]) -> None:
    """Warn of what a checkpoint was made with, where that is known and something else is used now."""
    known = before if isinstance(before, dict) else now
    differing = [name for name in ("device", "torch", "cuDNN") if known.get(name) != now.get(name)]
    changes = [
        f"{name} {printable(str(known.get(name, 'none')), 99)} then, {now.get(name, 'none')} now" for name in differing
    ]
    if changes:
        warnings.warn(f"{path} goes on with what may change its last bits: {', '.join(changes)}.", stacklevel=4)


def sealed(payload: bytes) -> bytes:
    """A file's content: the payload behind a line with its digest."""
    return MARK + hashlib.blake2b(payload).hexdigest().encode() + b"\n" + payload


def _unpacked(content: bytes, path: Path) -> dict[str, Any]:
    line, _, payload = content.partition(b"\n")
    if not line.startswith(MARK):
        raise Unusable("is not a checkpoint of this version")
    if line != sealed(payload).partition(b"\n")[0]:
        raise Unusable("is damaged: its content is not what was written")
    try:
        loaded = safe_pickle.load(io.BytesIO(payload), path)
    except NasRetrainError as error:
        raise Unusable(f"is not a readable checkpoint ({error})") from error
    if not isinstance(loaded, dict):
        raise Unusable("does not hold a training's state")
    return loaded


def _checked(loaded: dict[str, Any], start: State, length: Length) -> State:
    """The state that was loaded, every value of it of the kind, size and range that this training has."""
    trainings, network, momenta = (loaded.get(name) for name in ("trainings", "network", "momenta"))
    if trainings != list(start.trainings):
        raise Unusable("is another training's checkpoint")
    if not isinstance(network, dict) or network.keys() != start.network.keys():
        raise Unusable("is of a network with other layers")
    for name, known in start.network.items():
        if not _alike(network[name], known):
            raise Unusable(f"is of a network with another {name}")
    if not isinstance(momenta, list) or len(momenta) != len(start.momenta):
        raise Unusable("is of another optimiser")
    if not all(map(_alike, momenta, start.momenta)):
        raise Unusable("is of another optimiser, with momenta of another kind")
    return State(
        start.trainings,
        {name: torch.from_numpy(array.copy()) for name, array in network.items()},
        [torch.from_numpy(array.copy()) for array in momenta],
        _checked_progress(loaded.get("progress"), start, length),
    )


def _alike(value: object, known: Tensor) -> bool:
    """Whether `value` is an array with the shape and type of `known`."""
    plain = known.numpy(force=True)
    return isinstance(value, np.ndarray) and (value.shape, value.dtype) == (plain.shape, plain.dtype)


def _checked_progress(values: object, start: State, length: Length) -> Progress:
    names = {one.name for one in fields(Progress)}
    if not isinstance(values, dict) or not values.keys() >= names - {"curve"}:  # which older versions did not keep
        raise Unusable("lacks a part of a training's progress")
    progress = Progress(**{name: values[name] for name in names & values.keys()})
    steps = math.ceil(length.images / length.batch_size)
    if not (_whole(progress.epoch, length.epochs - 1) and _whole(progress.step, steps)):
        raise Unusable("stands at an epoch or a step that this training does not have")
    members = len(start.trainings)
    seen = min(length.images, progress.step * length.batch_size)
    begun = progress.epoch > 0

    def of_each(value: object, fits: Callable[[Any], bool]) -> bool:
        return isinstance(value, list) and len(value) == members and all(map(fits, value))

    def listed(name: str, fits: Callable[[Any], bool]) -> bool:
        return of_each(getattr(progress, name), fits)

    def loss(value: object) -> bool:  # that of a diverged member is not finite
        return isinstance(value, float) and not value < 0

    def accuracy(value: object) -> bool:
        return isinstance(value, float) and (0 <= value <= 100 if begun else math.isnan(value))

    def measured(one: object) -> bool:
        return (
            isinstance(one, dict)
            and set(MEASURED[:2]) <= one.keys() <= set(MEASURED)
            and all(of_each(value, loss if name.endswith("loss") else accuracy) for name, value in one.items())
        )

    fit = {
        "losses": listed("losses", loss),
        "accuracies": listed("accuracies", accuracy),
        "loss_sums": listed("loss_sums", lambda value: loss(value) and (value == 0 or seen > 0)),
        "correct": listed("correct", lambda value: _whole(value, seen)),
        "gradient_norms": listed("gradient_norms", loss),
        "relative_gradients": listed("relative_gradients", loss),
        "seconds": isinstance(progress.seconds, float) and 0 <= progress.seconds < math.inf,
        "resumed": isinstance(progress.resumed, list) and all(isinstance(one, str) for one in progress.resumed),
        "curve": isinstance(progress.curve, list)
        and len(progress.curve) <= progress.epoch
        and all(map(measured, progress.curve)),
    }
    if wrong := [name for name, right in fit.items() if not right]:
        raise Unusable(f"has values that no training reaches ({', '.join(wrong)})")
    return progress


def _whole(value: object, largest: int) -> bool:
    return type(value) is int and 0 <= value <= largest
