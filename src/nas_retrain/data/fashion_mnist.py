"""Fashion-MNIST (Xiao et al. 2017) from its four idx files: a header of big-endian integers, then one byte a value."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas_retrain.data import checksum
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import DatasetSettings

SIZE = 28
MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""Of the unpacked files: how a packed file looks depends on the program that packed it."""

PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts them."""

REMEDY = "Let torchvision download it, or on Debian: apt-get install dataset-fashion-mnist"


class FashionMnist:
    """The four files; see `sources.Source`."""

    remedy = REMEDY

    def missing_files(self, data_dir: Path) -> list[Path]:
        """The files that are in none of the folders searched, by the paths at which torchvision puts them."""
        names = [name for part in PARTS.values() for name in part]
        return [_folders(data_dir)[0] / name for name in names if _find(name, data_dir) is None]

    def downloads(self, data_dir: Path) -> bool:  # noqa: ARG002 - a source's interface
        """Whether torchvision can get it: always."""
        return True

    def download(self, data_dir: Path) -> None:
        """Get it with torchvision."""
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(data_dir), download=True)

    def read(
        self, dataset: DatasetSettings, data_dir: Path
    ) -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """The whole training and test part."""
        return (
            _read_part("train", data_dir, dataset.train_images, dataset),
            _read_part("test", data_dir, dataset.test_images, dataset),
        )


def _read_part(
    part: str, data_dir: Path, images: int, dataset: DatasetSettings
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (number, size, size, 1) and labels of a part, "train" or "test".

    A smaller size is the mean over squares of pixels, rounded. Raises NasRetrainError for a file that is missing,
    damaged, another part's or of another data set, and for a size that does not divide the images' own.
    """
    image_size = dataset.image_size
    if SIZE % image_size:
        raise NasRetrainError(
            f"dataset.image_size={image_size} does not divide fashion_mnist's {SIZE}: take 28, 14 or 7."
        )
    image_path, label_path = (_found(name, data_dir) for name in PARTS[part])
    pixels = _read_idx(image_path, (images, SIZE, SIZE), verify=dataset.verify)
    labels = _read_idx(label_path, (images,), verify=dataset.verify).astype(np.int64)
    if set(np.bincount(labels).tolist()) != {images // 10}:  # which MNIST and others of the same format do not have
        raise NasRetrainError(
            f"{label_path}: expected {images // 10:,} images of each of 10 classes, as in fashion_mnist. {REMEDY}."
        )
    side = SIZE // image_size
    blocks = pixels.reshape(images, image_size, side, image_size, side)
    shrunk = (blocks.astype(np.float32).mean((2, 4)) + 0.5).astype(np.uint8) if side > 1 else pixels
    return shrunk[..., np.newaxis], labels


def _folders(data_dir: Path) -> tuple[Path, ...]:
    return data_dir / "FashionMNIST" / "raw", data_dir, DEBIAN


def _find(name: str, data_dir: Path) -> Path | None:
    candidates = [folder / f"{name}{suffix}" for folder in _folders(data_dir) for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _found(name: str, data_dir: Path) -> Path:
    path = _find(name, data_dir)
    if path is None:
        raise NasRetrainError(f"fashion_mnist: missing {_folders(data_dir)[0] / name}. {REMEDY}.")
    return path


def _read_idx(path: Path, shape: tuple[int, ...], *, verify: bool) -> NDArray[np.uint8]:
    """The bytes of an idx file, which must have this shape and, to be verified, the published contents."""
    most = 1024 + math.prod(shape)  # so that a file that unpacks to far more is not unpacked
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise NasRetrainError(f"{path} cannot be read ({error}). {REMEDY}.") from error
    header = b"".join(number.to_bytes(4, "big") for number in (0x0800 + len(shape), *shape))  # 0x08: unsigned bytes
    if content[: len(header)] != header or len(content) != len(header) + math.prod(shape):
        expected = " x ".join(f"{number:,}" for number in shape)
        raise NasRetrainError(f"{path}: expected {expected} bytes after an idx header, as in fashion_mnist. {REMEDY}.")
    if verify and checksum.of(io.BytesIO(content)) != MD5[path.name.removesuffix(".gz")]:
        raise checksum.altered(path, REMEDY)
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
