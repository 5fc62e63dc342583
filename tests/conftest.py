"""Fixtures: settings composed from the real configuration files, and small data sets in the real file formats."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings

from nas_retrain.cli import compose
from nas_retrain.config import Settings

hypothesis_settings.register_profile("project", deadline=None, max_examples=60, derandomize=True)
hypothesis_settings.load_profile("project")

MakeSettings = Callable[..., Settings]


@pytest.fixture
def make_settings(tmp_path: Path) -> MakeSettings:
    """Settings of a tiny run in `tmp_path`; further overrides come last and win."""

    def make(*overrides: str, config: str = "config") -> Settings:
        tiny = [
            "dataset=digits",
            "dataset.verify=false",  # tests make their files themselves
            "profile=dry",
            "launcher=local",
            "launcher.together=1",
            f"results_dir={tmp_path / 'results'}",
            f"data_dir={tmp_path / 'data'}",
            "network.channels=4",
            "training.epochs=2",
            "launcher.device=cpu",
        ]
        return compose(*tiny, *overrides, config=config)

    return make


def processes_with(variable: str, value: str) -> list[int]:
    """Living processes that have this environment variable: a process that was started with it, and its children."""
    wanted = f"{variable}={value}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def write_cifar10(data_dir: Path, images_per_batch: int = 6) -> None:
    """CIFAR-10's six batches as Python 2 wrote them: text keys, one row of 3072 bytes an image."""
    random = np.random.default_rng(10)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {
            "batch_label": f"batch {number}",
            "labels": [int(label) for label in random.integers(0, 10, images_per_batch)],
            "data": random.integers(0, 256, (images_per_batch, 3072), dtype=np.uint8),
            "filenames": [f"{n}.png" for n in range(images_per_batch)],
        }
        _dump(data_dir / "cifar-10-batches-py" / name, batch)


def write_cifar100(data_dir: Path, train: int = 30, test: int = 6) -> None:
    """CIFAR-100's two files, with coarse labels beside the fine ones."""
    random = np.random.default_rng(100)
    for name, number in (("train", train), ("test", test)):
        batch = {
            "filenames": [f"{n}.png" for n in range(number)],
            "fine_labels": [int(label) for label in random.integers(0, 100, number)],
            "coarse_labels": [int(label) for label in random.integers(0, 20, number)],
            "data": random.integers(0, 256, (number, 3072), dtype=np.uint8),
        }
        _dump(data_dir / "cifar-100-python" / name, batch)


def write_imagenet16(data_dir: Path, per_batch: int = 40) -> tuple[int, int]:
    """Downsampled ImageNet's files with labels 1 to 1000; returns how many images are of classes 1 to 120."""
    random = np.random.default_rng(16)
    kept = {"train": 0, "val": 0}
    for name in [*(f"train_data_batch_{n}" for n in range(1, 11)), "val_data"]:
        labels = [int(label) for label in random.integers(1, 241, per_batch)]
        kept[name.split("_")[0]] += sum(label <= 120 for label in labels)
        data = random.integers(0, 256, (per_batch, 768), dtype=np.uint8)
        batch = {"data": data, "labels": labels, "mean": data.mean(0)}
        _dump(data_dir / "ImageNet16" / name, batch, protocol=4)
    return kept["train"], kept["val"]


def _dump(path: Path, batch: object, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
