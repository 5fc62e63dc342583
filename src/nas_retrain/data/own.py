"""Data sets of a user's own: arrays in an .npz file, or what a function of the user's returns.

The file holds, and the function returns as a mapping, the arrays train_images, train_labels, test_images and
test_labels: images as bytes of shape (number, height, width) or (number, height, width, channels), and labels as whole
numbers from 0. The function is called with the folder data_dir.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import own_code, sha256
from nas_retrain.settings import DatasetSettings

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

KEYS = {
    "flip": False, "padding": 0, "train_subset": None, "dry_train_subset": None, "base_rate": None, "verify": True,
}  # fmt: skip
"""The keys of configs/dataset that a data set of one's own need not set, and what they are then."""

SIZES = ("classes", "image_channels", "image_size", "train_images", "test_images", "mean", "std")
"""The keys that the arrays of an .npz file tell, and that a function's data set must set."""

KEY = "dataset.source"

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class OwnData:
    """A data set that `dataset.source` names; see `sources.Source`."""

    source: str
    remedy: str = "Put it there, or name another in dataset.source"

    def missing_files(self, data_dir: Path) -> list[Path]:  # noqa: ARG002 - a source's interface
        """The file, if it is not there."""
        path = file_of(self.source)
        return [] if path is None or path.is_file() else [path]

    def downloads(self, data_dir: Path) -> bool:  # noqa: ARG002
        """A function may download what it reads; a file is the user's own."""
        return False

    def download(self, data_dir: Path) -> None:
        """There is nothing to get."""

    def read(self, dataset: DatasetSettings, data_dir: Path) -> tuple[Part, Part]:
        """The training and the test part, as large as the settings say."""
        arrays = _from_function(self.source, data_dir) if is_function(self.source) else _from_file(Path(self.source))
        train, test = checked(arrays, self.source)
        for part, name, number in ((train, "train", dataset.train_images), (test, "test", dataset.test_images)):
            wanted = (number, dataset.image_size, dataset.image_size, dataset.image_channels)
            if part[0].shape != wanted:
                raise NasRetrainError(
                    f"{self.source}: {name}_images has shape {part[0].shape}; {wanted} was expected, by dataset."
                    f"{name}_images, image_size and image_channels. Mend the one or the other."
                )
            if int(part[1].max()) >= dataset.classes:
                raise NasRetrainError(
                    f"{self.source}: {name}_labels has label {part[1].max()}; dataset.classes={dataset.classes} has "
                    f"labels 0 to {dataset.classes - 1}."
                )
        return train, test


def is_function(source: str) -> bool:
    """Whether a source is a function, rather than a file of arrays."""
    return not source.endswith(".npz")


def file_of(source: str) -> Path | None:
    """The file that a source is in; None for a function of an installed module."""
    if not is_function(source):
        return Path(source)
    return Path(source.rpartition(":")[0]) if own_code.is_file(source) else None


def unknown(source: str, keys: Sequence[str]) -> str:
    """Why these keys of `SIZES` have no values, and what to do: for a message."""
    if not is_function(source):
        return f"{KEY}: there is no file {source}. Put it there, or mend the path, which starts at the data set's file."
    if ":" not in source:
        return f"{KEY}={source}: expected an .npz file, package.module:function or folder/file.py:function."
    return (
        f"{KEY}={source}: what a function returns is not known before training. Set {', '.join(keys)} in the "
        "data set's file, as configs/dataset/digits.yaml does."
    )


def described(source: str, given: Container[str] = ()) -> dict[str, Any]:
    """The keys of the section `dataset` that follow from a source: a checksum of its file, so that results of other
    contents are never taken for the same, and for arrays in a file also their sizes, means and standard deviations.

    given: the keys that need not follow. A file that is not there adds nothing. Raises NasRetrainError for arrays that
    cannot be used, and for a number below the largest label that no image has, unless the classes are given.
    """
    path = file_of(source)
    if path is None or not path.is_file():
        return dict(KEYS)
    checksum = sha256.of(path)
    if is_function(source):
        return KEYS | {"checksum": checksum}
    (train, train_labels), (test, test_labels) = checked(_from_file(path), source)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    labels = np.union1d(train_labels, test_labels)
    if "classes" not in given and len(labels) < classes:
        unused = int(np.flatnonzero(np.append(labels, -1) != np.arange(len(labels) + 1))[0])
        raise NasRetrainError(
            f"{source}: the largest label is {classes - 1}, and no image has the label {unused}. Number the classes "
            "from 0 without gaps, or set classes in the data set's file if there are that many."
        )
    pixels = train.reshape(-1, train.shape[-1])
    mean, std = pixels.mean(0, dtype=np.float64), pixels.std(0, dtype=np.float64)
    return KEYS | {
        "classes": classes,
        "image_channels": train.shape[3],
        "image_size": train.shape[1],
        "train_images": len(train),
        "test_images": len(test),
        "mean": [float(f"{value:.6g}") for value in mean],
        "std": [float(f"{value:.6g}") or 1.0 for value in std],  # a channel of one value stays that value
        "checksum": checksum,
    }


def _from_file(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in ARRAYS if name in file.files}
    except FileNotFoundError:
        raise NasRetrainError(f"{KEY}: there is no file {path}.") from None
    except Exception as error:  # zip, deflate and numpy's own headers fail in many ways
        raise NasRetrainError(
            f"{path} cannot be read as an .npz file of plain arrays ({error}). Write it with numpy.savez."
        ) from error


def _from_function(source: str, data_dir: Path) -> object:
    function = own_code.load(source, KEY)
    try:
        return function(data_dir)
    except Exception as error:
        raise NasRetrainError(f"{KEY}={source}: the function raised {type(error).__name__}: {error}") from error


def checked(arrays: object, source: str) -> tuple[Part, Part]:
    """The training and the test part, if the arrays are such; raises NasRetrainError naming the one at fault."""
    if not isinstance(arrays, Mapping) or (absent := [name for name in ARRAYS if name not in arrays]):
        lacking = ", ".join(absent) if isinstance(arrays, Mapping) else f"a mapping (it is {type(arrays).__name__})"
        raise NasRetrainError(f"{source} lacks {lacking}: the arrays {', '.join(ARRAYS)} were expected.")
    parts = [_part(arrays, name, source) for name in ("train", "test")]
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        raise NasRetrainError(
            f"{source}: training images are {parts[0][0].shape[1:]} and test images {parts[1][0].shape[1:]} (height, "
            "width, channels); the same was expected."
        )
    return parts[0], parts[1]


def _part(arrays: Mapping[str, Any], name: str, source: str) -> Part:
    images, labels = np.asarray(arrays[f"{name}_images"]), np.asarray(arrays[f"{name}_labels"])
    if images.dtype != np.uint8:
        raise NasRetrainError(
            f"{source}: {name}_images holds {images.dtype}; bytes (uint8) from 0 to 255 were expected. Round and scale "
            "the images to that range."
        )
    images = images[..., np.newaxis] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1] != images.shape[2] or not 1 <= images.shape[3] <= 4 or not images.size:
        raise NasRetrainError(
            f"{source}: {name}_images has shape {images.shape}; (number, size, size) or (number, size, size, channels) "
            "with one to four channels was expected. Images must be square."
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= 2**31:
        raise NasRetrainError(
            f"{source}: {name}_labels must be one whole number from 0 for each of the {len(images):,} images; it has "
            f"shape {labels.shape} and holds {labels.dtype}."
        )
    return images, labels.astype(np.int64)
