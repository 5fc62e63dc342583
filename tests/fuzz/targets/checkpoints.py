"""Checkpoints: damaged, of other trainings, of other versions, and whole files of anything."""

from __future__ import annotations

import functools
import json
import pickle
import random as randoms
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_retrain.commands.command_line import compose
from nas_retrain.execution import train
from nas_retrain.execution.checkpoints import sealed
from nas_retrain.settings import Settings
from tests.execution.test_checkpoints import DAMAGES, MISFITS, stop_after
from tests.execution.test_train import CELL, CPU, one_training, run, timeless

_STEPS = 3


@functools.cache
def _settings() -> Settings:
    torch.set_num_threads(1)
    train.prepare_process(CPU)
    return compose(
        *("dataset=digits", "profile=dry", "launcher=local", "launcher.device=cpu", "launcher.together=1"),
        *(f"cells=[{CELL}]", "recipe=[benchmark]", "network.channels=2", "network.cells_per_stage=1"),
        *("training.epochs=2", "training.batch_size=300"),
    )


@functools.cache
def _undisturbed() -> dict[str, object]:
    return timeless(run(one_training(_settings()), _settings(), Path(tempfile.gettempdir()) / "absent.pt"))


@functools.cache
def _whole() -> bytes:
    """A checkpoint of that training, stopped in its second epoch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stopped.pt"
        with pytest.raises(train.Stopped):
            run(one_training(_settings()), _settings(), path, stop_after(_STEPS))
        return path.read_bytes()


def _payload() -> bytes:
    return _whole().partition(b"\n")[2]


def _content() -> dict[str, Any]:
    content: dict[str, Any] = pickle.loads(_payload())
    return content


def _packed(content: object) -> bytes:
    return sealed(pickle.dumps(content))


def _anything(random: randoms.Random) -> Any:
    choices = [None, True, -1, 2**70, 1.5, float("nan"), "text", b"bytes", [], {}, [1.0], torch.zeros(2), {"a": [None]}]
    return random.choice(choices)


def _train_with(content: bytes, folder: Path) -> dict[str, object]:
    path = folder / "checkpoint.pt"
    path.write_bytes(content)
    with warnings.catch_warnings(action="ignore"):
        return timeless(run(one_training(_settings()), _settings(), path))


def fuzz_damaged_checkpoint(random: randoms.Random, folder: Path) -> None:
    """Whatever happened to the file, the training ends with the figures of an undisturbed one."""
    content = _whole()
    for _ in range(random.randint(0, 3)):
        if len(content) > 3 * 4096:
            content = DAMAGES[random.choice([*DAMAGES])](content, random)
    assert _train_with(content, folder) == _undisturbed()


def fuzz_foreign_checkpoint(random: randoms.Random, folder: Path) -> None:
    """A whole file of another training, size or version: what is known to be wrong starts over, what is new is left."""
    content = _content()
    for _ in range(random.randint(0, 2)):
        content[f"new {random.random()}"] = _anything(random)
        content["progress"][f"new {random.random()}"] = _anything(random)
    if random.random() < 0.8:
        MISFITS[random.choice([*MISFITS])](content)
    assert _train_with(_packed(content), folder) == _undisturbed()


def fuzz_other_values_in_checkpoint(random: randoms.Random, folder: Path) -> None:
    """Values of any type in any place, with a right digest: a record comes of it, or the training starts over."""
    content = _content()
    for _ in range(random.randint(1, 3)):
        where = random.choice([content, content["progress"], content["network"]])
        if isinstance(where, dict) and where:
            where[random.choice([*where])] = _anything(random)
        if not all(isinstance(content[name], dict) for name in ("progress", "network")):
            break
    json.dumps(_train_with(_packed(content), folder))


def fuzz_damaged_checkpoint_with_a_right_digest(random: randoms.Random, folder: Path) -> None:
    """A damaged pickle does not end the process; only somebody who means it can write such a file."""
    payload = _payload()
    content = DAMAGES[random.choice(["a flipped bit", "a zeroed page", "a lost end"])](payload, random)
    json.dumps(_train_with(sealed(content), folder))
