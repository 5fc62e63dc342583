"""Data sets of a user's own: arrays in a file, or what a function returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.commands.command_line import CONFIGS
from nas_retrain.commands.composition import from_command_line
from nas_retrain.data import batches, own, sources
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings

READER = """
import numpy as np

def read(data_dir):
    random = np.random.default_rng(3)
    return {
        "train_images": random.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8), "train_labels": np.arange(20) % 4,
        "test_images": random.integers(0, 256, (8, 6, 6, 3), dtype=np.uint8), "test_labels": np.arange(8) % 4,
    }

def failing(data_dir):
    raise RuntimeError("no network")

def nothing(data_dir):
    return 5
"""
SIZES = (
    "classes: 4\nimage_channels: 3\nimage_size: 6\ntrain_images: 20\ntest_images: 8\nmean: [1, 2, 3]\nstd: [4, 5, 6]\n"
)


def arrays(train: int = 20, test: int = 8, channels: int | None = None) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    shape = (6, 6) if channels is None else (6, 6, channels)
    return {
        "train_images": random.integers(0, 256, (train, *shape), dtype=np.uint8),
        "train_labels": np.arange(train) % 4,
        "test_images": random.integers(0, 256, (test, *shape), dtype=np.uint8),
        "test_labels": np.arange(test, dtype=np.uint8) % 3,
    }


def compose(file: Path, *overrides: str) -> Settings:
    (settings,) = from_command_line([f"dataset={file}", "profile=dry", "launcher=local", *overrides])
    return settings


def write(folder: Path, text: str = "source: mine.npz\n", **changed: Any) -> Path:
    np.savez(folder / "mine.npz", **(arrays() | changed))
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 1, 2, 3, 4]))
def test_a_file_says_of_itself_what_its_arrays_are(
    tmp_path_factory: pytest.TempPathFactory, train: int, test: int, channels: int | None
) -> None:
    file = tmp_path_factory.mktemp("own") / "any.npz"
    held = arrays(train, test, channels)
    np.savez(file, **held)
    told = own.described(str(file))
    images = held["train_images"].reshape(train, 36, channels or 1)
    assert (told["train_images"], told["test_images"], told["image_size"]) == (train, test, 6)
    assert told["classes"] == max(held["train_labels"].max(), held["test_labels"].max()) + 1
    assert told["mean"] == pytest.approx(images.mean((0, 1)), rel=1e-5)
    assert told["std"] == pytest.approx(images.std((0, 1)), rel=1e-5)


@pytest.mark.parametrize("channels", [None, 3])
def test_one_line_of_yaml_is_a_data_set(tmp_path: Path, channels: int | None) -> None:
    held = arrays(channels=channels)
    dataset = compose(write(tmp_path, **held)).dataset
    assert (dataset.name, dataset.base_rate, dataset.flip) == ("mine", None, False)
    (train, train_labels), (test, test_labels) = sources.read(dataset, tmp_path)
    assert train.tobytes() == held["train_images"].tobytes()
    assert test.tobytes() == held["test_images"].tobytes()
    assert train_labels.tolist() == held["train_labels"].tolist()
    assert test_labels.tolist() == held["test_labels"].tolist()
    loaded = batches.load(dataset, tmp_path, torch.device("cpu"))
    assert loaded.test_images.shape == (8, channels or 1, 6, 6)


def test_what_the_file_of_a_data_set_says_wins(tmp_path: Path) -> None:
    dataset = compose(write(tmp_path, "source: mine.npz\nname: other\nmean: 7\npadding: 1\nbase_rate: 0.2\n")).dataset
    assert (dataset.name, dataset.mean, dataset.padding) == ("other", (7.0,), 1)
    assert dataset.std != (7.0,)


def test_results_depend_on_the_contents_of_a_file_and_not_on_its_place(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    here, there = compose(write(tmp_path)), compose(write(tmp_path / "there"))
    assert here.dataset.source != there.dataset.source
    assert here.identity("benchmark") == there.identity("benchmark")
    same_shape = arrays() | {"test_labels": np.zeros(8, dtype=int)}
    assert compose(write(tmp_path, **same_shape)).identity("benchmark") != there.identity("benchmark")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"train_images": np.zeros((20, 6, 6))}, "train_images holds float64; bytes"),
        ({"train_images": np.zeros((20, 6, 5), np.uint8)}, r"train_images has shape \(20, 6, 5, 1\)"),
        ({"test_images": np.zeros((8, 7, 7), np.uint8)}, "training images are .* and test images"),
        ({"test_images": np.zeros((8, 6, 6, 5), np.uint8)}, "one to four channels"),
        ({"train_labels": np.arange(19)}, "train_labels must be one whole number from 0 for each of the 20"),
        ({"train_labels": np.arange(20) - 1}, "train_labels must be one whole number"),
        ({"train_labels": np.arange(20) / 2}, "train_labels must be one whole number"),
        ({"train_labels": np.arange(20) % 3 + 1, "test_labels": np.arange(8) % 3 + 1}, "no image has the label 0"),
        ({"train_labels": np.array([*range(19), 10**9])}, "largest label is 1000000000, and no image has the label 19"),
        ({"train_labels": np.array([object()] * 20)}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(NasRetrainError, match=told):
        compose(write(tmp_path, **changed))


@pytest.mark.parametrize("damage", [b"", b"PK", b"no archive"])
def test_a_damaged_file_is_one_error(tmp_path: Path, damage: bytes) -> None:
    file = write(tmp_path)
    (tmp_path / "mine.npz").write_bytes(damage)
    with pytest.raises(NasRetrainError, match=r"mine\.npz cannot be read as an \.npz file"):
        compose(file)


@given(place=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_no_damage_to_a_file_raises_another_error(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, cut: bool
) -> None:
    file = tmp_path_factory.mktemp("own") / "any.npz"
    np.savez_compressed(file, **arrays())
    content = bytearray(file.read_bytes())
    at = int(place * (len(content) - 1))
    content[at] ^= 1 << bit
    file.write_bytes(content[:at] if cut else content)
    told = ""
    try:
        own.described(str(file))
    except NasRetrainError as error:
        told = str(error)
    assert not told or "any.npz" in told


def test_arrays_of_other_sizes_than_the_settings_say_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NasRetrainError, match=r"train_images has shape \(20, 6, 6, 1\); \(19, 6, 6, 1\) was expected"):
        sources.read(compose(write(tmp_path, "source: mine.npz\ntrain_images: 19\n")).dataset, tmp_path)
    with pytest.raises(NasRetrainError, match=r"train_labels has label 3; dataset\.classes=3"):
        sources.read(compose(write(tmp_path, "source: mine.npz\nclasses: 3\n")).dataset, tmp_path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    file = write(tmp_path, "source: mine.npz\n" + SIZES)
    (tmp_path / "mine.npz").unlink()
    with pytest.raises(NasRetrainError, match=r"mine: missing .*mine\.npz\. Put it there"):
        sources.fetch(compose(file).dataset, tmp_path)


def test_unused_labels_are_allowed_if_the_classes_are_given(tmp_path: Path) -> None:
    labels = {"train_labels": np.arange(20) % 3 + 1, "test_labels": np.arange(8) % 3 + 1}
    assert compose(write(tmp_path, "source: mine.npz\nclasses: 4\n", **labels)).dataset.classes == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("source: absent.npz\n", r"there is no file .*absent\.npz\. Put it there"),
        ("source: reader.py:read\n", r"Set classes, image_channels, .*, std in the data set's file"),
        ("source: reader.py:read\nclasses: 4\n", r"Set image_channels, "),
        ("source: mine.csv\n", r"source=mine\.csv: expected an \.npz file"),
        ("source: .\n", r"source=\.: expected an \.npz file"),
        ("source: 3\n", r"source=3: expected an \.npz file"),
        ("padding: 1\n", r"mine\.yaml: a data set has a source"),
        ("", r"mine\.yaml: a data set has a source"),
    ],
)
def test_a_source_that_tells_no_sizes_is_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(NasRetrainError, match=told):
        compose(write(tmp_path, text))


@pytest.mark.parametrize("name", ["my scans", "scans.v2", "<b>scans", "scans;x"])
@pytest.mark.parametrize("group", ["dataset", "recipe"])
def test_a_file_whose_name_cannot_be_one_is_told_so(tmp_path: Path, name: str, group: str) -> None:
    file = write(tmp_path).rename(tmp_path / f"{name}.yaml")
    with pytest.raises(NasRetrainError, match=r"letters, digits, - and _ only\. Rename it"):
        from_command_line([f"{group}={file}"])


@pytest.mark.parametrize("source", ["reader.py:read", "own_reader_in_a_module:read"])
def test_a_function_may_give_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    place = source.partition(":")[0].removesuffix(".py")
    (tmp_path / f"{place}.py").write_text(READER)
    settings = compose(write(tmp_path, f"source: {source}\n{SIZES}"))
    (train, _), (test, _) = sources.read(settings.dataset, tmp_path)
    assert (train.shape, test.shape) == ((20, 6, 6, 3), (8, 6, 6, 3))
    identity = settings.identity("benchmark")["dataset"]
    assert ("checksum" in identity, "source" in identity) == ((True, False) if ".py" in source else (False, True))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("reader.py:failing", "the function raised RuntimeError: no network"),
        ("reader.py:nothing", r"lacks a mapping \(it is int\)"),
        ("reader.py:absent", "has no function absent"),
        ("no_such_module:read", "no_such_module cannot be imported"),
        ("reader.py", "expected package.module:function or folder/file.py:function"),
    ],
)
def test_a_function_that_cannot_be_used_is_named(tmp_path: Path, source: str, told: str) -> None:
    (tmp_path / "reader.py").write_text(READER)
    dataset = compose(write(tmp_path, f"source: {source}\n{SIZES}")).dataset
    with pytest.raises(NasRetrainError, match=told):
        sources.read(dataset, tmp_path)


def test_a_data_set_without_a_source_must_be_a_published_one(tmp_path: Path) -> None:
    shipped = (CONFIGS / "dataset" / "digits.yaml").read_text()
    with pytest.raises(NasRetrainError, match=r"dataset: there is no data set unknown: there are cifar10, .* a source"):
        compose(write(tmp_path, shipped.replace("name: digits", "name: unknown")))
