"""Trackers: what is told of each epoch of a training as it ends, such as TensorBoard.

A tracker is a function `tracker(training, results_dir, epochs_done)`, called in the worker process when a training
begins or goes on: `training` is a `trainings.training.Training`, `epochs_done` is 0 or where its checkpoint stood. It
gives a context manager, and that a function `tell(epoch, values)`, which is called after each epoch with its number,
from 1, and what is known of it by name: train_loss, train_accuracy, learning_rate and, under `curves=test`, test_loss
and test_accuracy, as far as they are finite. The context ends when the training ends, stops or fails. A training that
was killed after its last checkpoint is told some epochs again.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import own_code
from nas_retrain.settings import Settings
from nas_retrain.trainings.training import Training

KEY = "tracker"
TENSORBOARD = "tensorboard"

Tell = Callable[[int, Mapping[str, float]], object]
Tracker = Callable[[Training, Path, int], AbstractContextManager[Tell]]


def check(settings: Settings) -> None:
    """Raise NasRetrainError if the settings name a tracker that cannot be used."""
    if settings.tracker is not None:
        find(settings.tracker)


def find(name: str) -> Tracker:
    """The tracker of this name. Raises NasRetrainError if there is none, or if it lacks what it needs."""
    if name == TENSORBOARD:
        if importlib.util.find_spec("tensorboard") is None:
            raise NasRetrainError(f"{KEY}={name} needs TensorBoard, which is not installed: pip install tensorboard.")
        return tensorboard
    if ":" not in name:
        raise NasRetrainError(
            f"{KEY}={name}: expected {TENSORBOARD}, or a function of your own as package.module:function or "
            "folder/file.py:function."
        )
    return own_code.load(name, KEY)


@contextmanager
def tensorboard(training: Training, results_dir: Path, epochs_done: int) -> Iterator[Tell]:
    """Write the values as scalars to tensorboard/<recipe>/<network class>-<seed>-<hash> below the results folder.

    Epochs that are told again take the place of what was written of them.
    """
    from torch.utils.tensorboard import SummaryWriter

    run = training.label.removeprefix(f"{training.recipe}-")
    folder = results_dir / TENSORBOARD / training.recipe / run
    with SummaryWriter(folder, purge_step=epochs_done + 1) as writer:

        def tell(epoch: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, epoch)
            writer.flush()  # before a checkpoint says that the epoch is done

        yield tell


@contextmanager
def following(
    group: Sequence[Training], settings: Settings, epochs_done: int
) -> Iterator[Callable[[int, float, Mapping[str, Sequence[float]]], None]]:
    """Have the tracker that the settings name, if any, follow the members of a group.

    Gives a function to call after each epoch: with its number, its learning rates as a share of the members' own, and
    what was measured, a value for each member. A member that diverged is not told of any more.
    """
    if settings.tracker is None:
        yield lambda _epoch, _share, _measured: None
        return
    followers = [_Follower(training, settings, settings.tracker, epochs_done) for training in group]

    def tell(epoch: int, share: float, measured: Mapping[str, Sequence[float]]) -> None:
        for member, follower in enumerate(followers):
            follower.tell(epoch, share, {name: values[member] for name, values in measured.items()})

    try:
        yield tell
    finally:
        for follower in followers:
            follower.close()


class _Follower:
    """A tracker that follows one training. If it fails, that is told, and the training goes on without it."""

    def __init__(self, training: Training, settings: Settings, name: str, epochs_done: int) -> None:
        self._training, self._name = training, name
        self._told: Tell | None = None
        self._stack = ExitStack()
        with self._failing():
            context = find(name)(training, settings.results_dir, epochs_done)
            self._told = self._stack.enter_context(context)

    def tell(self, epoch: int, share: float, measured: Mapping[str, float]) -> None:
        if self._told is None or not math.isfinite(measured["train_loss"]):
            return
        values = dict(measured) | {"learning_rate": share * (self._training.learning_rate or 0.0)}
        with self._failing():
            self._told(epoch, {key: value for key, value in values.items() if math.isfinite(value)})

    def close(self) -> None:
        with self._failing():
            self._stack.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is none of the training's
            self._told = None
            warnings.warn(
                f"{KEY}={self._name}: {type(error).__name__}: {error}. {self._training.label} goes on without it.",
                stacklevel=2,
            )
