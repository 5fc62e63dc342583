"""Read image data sets from their published files into numpy arrays, checking what is read.

A missing, truncated or foreign file is one NasRetrainError that names the file, what was expected and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nas_retrain.data import checksum, fashion_mnist
from nas_retrain.data.own import OwnData
from nas_retrain.errors import NasRetrainError
from nas_retrain.files import safe_pickle
from nas_retrain.settings import DatasetSettings

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images of shape (number, height, width, channels) and their labels of shape (number,)."""


class Source(Protocol):
    """One data set's files."""

    @property
    def remedy(self) -> str:
        """What to do if they are missing."""

    def missing_files(self, data_dir: Path) -> list[Path]:
        """Those that are not there."""

    def downloads(self, data_dir: Path) -> bool:
        """Whether what is missing can be downloaded."""

    def download(self, data_dir: Path) -> None:
        """Get them; raises OSError or RuntimeError if that fails."""

    def read(self, dataset: DatasetSettings, data_dir: Path) -> tuple[Part, Part]:
        """The whole training and test part; raises NasRetrainError for files missing, damaged or foreign."""


class Digits:
    """scikit-learn's digits, which come with it."""

    remedy = "Install scikit-learn"

    def missing_files(self, data_dir: Path) -> list[Path]:  # noqa: ARG002 - a source's interface
        """None."""
        return []

    def downloads(self, data_dir: Path) -> bool:  # noqa: ARG002
        """There is nothing to get."""
        return False

    def download(self, data_dir: Path) -> None:
        """There is nothing to get."""

    def read(self, dataset: DatasetSettings, data_dir: Path) -> tuple[Part, Part]:  # noqa: ARG002
        """The two parts, drawn once and for all."""
        from sklearn.datasets import load_digits

        bunch: Any = load_digits()
        images = bunch.images.astype(np.uint8)[..., np.newaxis]
        labels = bunch.target.astype(np.int64)
        if dataset.train_images + dataset.test_images != len(labels):
            raise NasRetrainError(f"digits: dataset.train_images and dataset.test_images must add up to {len(labels)}.")
        order = np.random.default_rng(0).permutation(len(labels))
        train, test = order[: dataset.train_images], order[dataset.train_images :]
        return (images[train], labels[train]), (images[test], labels[test])


@dataclass(frozen=True)
class PickledBatches:
    """A data set of pickled batches: where they lie below data_dir, how they are read, and how they come there."""

    folder: str
    train_files: Mapping[str, str]
    """The names of the training part's files, and the MD5 sums of the published ones."""
    test_files: Mapping[str, str]
    label_key: str
    remedy: str
    archive: tuple[str, str, str] | None = None
    """URL, file name and MD5 of an archive that holds the folder."""

    def missing_files(self, data_dir: Path) -> list[Path]:
        """Those that are not there."""
        return [path for path in self._paths(data_dir) if not path.is_file()]

    def _paths(self, data_dir: Path) -> list[Path]:
        return [data_dir / self.folder / name for name in (*self.train_files, *self.test_files)]

    def downloads(self, data_dir: Path) -> bool:
        """Whether there is an archive; a folder that holds a part of the files is left as it is."""
        return self.archive is not None and self.missing_files(data_dir) == self._paths(data_dir)

    def download(self, data_dir: Path) -> None:
        """Get and unpack the archive."""
        from torchvision.datasets.utils import download_and_extract_archive

        assert self.archive is not None
        url, name, md5 = self.archive
        download_and_extract_archive(url, str(data_dir), filename=name, md5=md5)

    def read(self, dataset: DatasetSettings, data_dir: Path) -> tuple[Part, Part]:
        """The whole training and test part."""

        def part(names: Mapping[str, str], expected: int) -> Part:
            folder = data_dir / self.folder
            batches = [_read_batch(folder / name, dataset, self, md5) for name, md5 in names.items()]
            images = np.concatenate([batch[0] for batch in batches])
            labels = np.concatenate([batch[1] for batch in batches])
            if len(labels) != expected:
                raise NasRetrainError(
                    f"{folder}: {', '.join(names)} hold {len(labels):,} images of classes 1 to {dataset.classes}, "
                    f"expected {expected:,}. {self.remedy}."
                )
            return images, labels

        return part(self.train_files, dataset.train_images), part(self.test_files, dataset.test_images)


def _read_batch(path: Path, dataset: DatasetSettings, source: PickledBatches, md5: str) -> Part:
    size, channels = dataset.image_size, dataset.image_channels

    def check(condition: Callable[[], bool], expected: str) -> None:
        if not condition():
            raise NasRetrainError(f"{path}: expected {expected}, as in {dataset.name}. {source.remedy}.")

    try:
        with path.open("rb") as file:
            if dataset.verify and checksum.of(file) != md5:
                raise checksum.altered(path, source.remedy)
            file.seek(0)
            batch: Any = safe_pickle.load(file, path)
    except FileNotFoundError:
        raise NasRetrainError(f"{dataset.name}: missing {path}. {source.remedy}.") from None
    except OSError as error:
        raise NasRetrainError(f"{path} cannot be read: {error.strerror}.") from error
    check(lambda: isinstance(batch, dict) and {"data", source.label_key} <= batch.keys(), f"'{source.label_key}'")
    data = batch["data"]
    check(
        lambda: (
            isinstance(data, np.ndarray)
            and data.dtype == np.uint8
            and data.ndim == 2
            and data.shape[1] == channels * size * size
        ),
        f"rows of {channels * size * size} bytes ({channels} channels of {size}x{size})",
    )
    labels = _whole_numbers(batch[source.label_key])
    check(lambda: labels.shape == (len(data),), f"one whole-numbered label for each of the {len(data)} images")
    if dataset.name == "imagenet16_120":  # labels are 1 to 1000, of which the first 120 are kept
        check(lambda: bool(np.all((labels >= 1) & (labels <= 1000))), "labels 1 to 1000")
        kept = labels <= dataset.classes
        data, labels = data[kept], labels[kept] - 1
    check(lambda: bool(np.all((labels >= 0) & (labels < dataset.classes))), f"labels 0 to {dataset.classes - 1}")
    return data.reshape(-1, channels, size, size).transpose(0, 2, 3, 1), labels


def _whole_numbers(labels: object) -> NDArray[np.int64]:
    """A list or an array of labels as an array; empty if they are not whole numbers."""
    whole = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"
    try:
        if whole or (isinstance(labels, list) and set(map(type, labels)) == {int}):
            return np.asarray(labels, dtype=np.int64)
    except OverflowError:
        pass
    return np.empty(0, dtype=np.int64)


SOURCES: dict[str, Source] = {
    "digits": Digits(),
    "fashion_mnist": fashion_mnist.FashionMnist(),
    "cifar10": PickledBatches(
        folder="cifar-10-batches-py",
        train_files={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test_files={"test_batch": "40351d587109b95175f43aff81a1287e"},
        label_key="labels",
        remedy="Unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in data_dir",
        archive=(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
        ),
    ),
    "cifar100": PickledBatches(
        folder="cifar-100-python",
        train_files={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test_files={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        label_key="fine_labels",
        remedy="Unpack https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz in data_dir",
        archive=(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
        ),
    ),
    "imagenet16_120": PickledBatches(
        folder="ImageNet16",
        # The sums of NAS-Bench-201's authors.
        train_files={
            "train_data_batch_1": "27846dcaa50de8e21a7d1a35f30f0e91",
            "train_data_batch_2": "c7254a054e0e795c69120a5727050e3f",
            "train_data_batch_3": "4333d3df2e5ffb114b05d2ffc19b1e87",
            "train_data_batch_4": "1620cdf193304f4a92677b695d70d10f",
            "train_data_batch_5": "348b3c2fdbb3940c4e9e834affd3b18d",
            "train_data_batch_6": "6e765307c242a1b3d7d5ef9139b48945",
            "train_data_batch_7": "564926d8cbf8fc4818ba23d2faac7564",
            "train_data_batch_8": "f4755871f718ccb653440b9dd0ebac66",
            "train_data_batch_9": "bb6dd660c38c58552125b1a92f86b5d4",
            "train_data_batch_10": "8f03f34ac4b42271a294f91bf480f29b",
        },
        test_files={"val_data": "3410e3017fdaefba8d5073aaa65e4bd6"},
        label_key="labels",
        remedy="Get the 16x16 'Downsampled image data' (python files, train and val) from https://image-net.org and "
        "unpack them in this folder",
    ),
}


def source_of(dataset: DatasetSettings) -> Source:
    """Where a data set comes from: what `dataset.source` names, or the published files."""
    return SOURCES[dataset.name] if dataset.source is None else OwnData(dataset.source)


def missing_files(dataset: DatasetSettings, data_dir: Path) -> list[Path]:
    """The data set's files that are not there; empty for digits, which scikit-learn ships."""
    return source_of(dataset).missing_files(data_dir)


def fetch(dataset: DatasetSettings, data_dir: Path) -> None:
    """Download and unpack a data set of which nothing is there yet.

    Raises NasRetrainError if files are missing and cannot be had: no network, no automatic download, or a folder
    that holds some files and lacks others (which is left as it is).
    """
    source = source_of(dataset)
    missing = source.missing_files(data_dir)
    if not missing:
        return
    remedy = f"{source.remedy} (data_dir is {data_dir}), or name the folder that has it: ARGS='data_dir=/path'."
    if not source.downloads(data_dir):
        names = ", ".join(str(path) for path in missing)
        raise NasRetrainError(f"{dataset.name}: missing {names}. {remedy}")
    try:
        source.download(data_dir)
    except (OSError, RuntimeError) as error:
        raise NasRetrainError(
            f"{dataset.name}: {missing[0]} is missing, and the download gave: {error}. {remedy}"
        ) from error


def read(dataset: DatasetSettings, data_dir: Path, validation_images: int = 0) -> tuple[Part, Part]:
    """Training part (cut to `train_subset`) and test part of a data set.

    validation_images: if any, that many training images, none of which is in the training part, stand in for the test
    part. They lie outside `train_subset` as far as there are images outside it.

    Raises NasRetrainError for files that are missing, truncated or not of this data set.
    """
    train, test = source_of(dataset).read(dataset, data_dir)
    if dataset.train_subset is None and not validation_images:
        return train, test
    order = np.random.default_rng(0).permutation(len(train[1]))
    rest = len(order) - validation_images
    if validation_images:
        test = _only(train, order[rest:])
    return _only(train, order[: min(rest, dataset.images_per_epoch)]), test


def _only(part: Part, images: NDArray[np.int64]) -> Part:
    """These images of a part, in its order."""
    chosen = np.sort(images)
    return part[0][chosen], part[1][chosen]
