"""Fashion-MNIST from small files in the real format, and from torchvision's reader of the same files."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets.mnist import read_image_file, read_label_file

from nas_retrain.data import fashion_mnist, sources
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import DatasetSettings
from tests.conftest import MakeSettings

DEBIAN = fashion_mnist.DEBIAN
COUNTS = {"train": 30, "test": 20}


@pytest.fixture(autouse=True)
def _no_system_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")


def settings(make_settings: MakeSettings, *overrides: str) -> DatasetSettings:
    counts = [f"dataset.{part}_images={number}" for part, number in COUNTS.items()]
    return make_settings("dataset=fashion_mnist", *counts, "dataset.train_subset=null", *overrides).dataset


def write(folder: Path, pack: Callable[[bytes], bytes] = lambda content: content, suffix: str = "") -> None:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, number in COUNTS.items():
        images = random.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = random.permutation(np.arange(number) % 10).astype(np.uint8)
        for name, array in zip(fashion_mnist.PARTS[part], (images, labels), strict=True):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{name}{suffix}").write_bytes(pack(header + array.tobytes()))


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "."])
def test_images_and_labels_are_what_torchvision_reads(make_settings: MakeSettings, tmp_path: Path, place: str) -> None:
    write(tmp_path / place)
    assert sources.missing_files(settings(make_settings), tmp_path) == []
    for part, (images, labels) in zip(("train", "test"), sources.read(settings(make_settings), tmp_path), strict=True):
        image_name, label_name = fashion_mnist.PARTS[part]
        np.testing.assert_array_equal(images[..., 0], read_image_file(str(tmp_path / place / image_name)).numpy())
        np.testing.assert_array_equal(labels, read_label_file(str(tmp_path / place / label_name)).numpy())


def test_compressed_files_and_debian_s_folder_are_found(make_settings: MakeSettings, tmp_path: Path) -> None:
    dataset = settings(make_settings)
    assert len(sources.missing_files(dataset, tmp_path)) == 4
    write(tmp_path / "debian", gzip.compress, ".gz")
    assert sources.missing_files(dataset, tmp_path) == []
    sources.fetch(dataset, tmp_path)  # nothing to do
    write(tmp_path / "plain")
    for compressed, plain in zip(
        sources.read(dataset, tmp_path), sources.read(dataset, tmp_path / "plain"), strict=True
    ):
        np.testing.assert_array_equal(compressed[0], plain[0])


def test_a_smaller_size_is_the_mean_over_squares(make_settings: MakeSettings, tmp_path: Path) -> None:
    write(tmp_path)
    whole, _ = sources.read(settings(make_settings), tmp_path)
    small, _ = sources.read(settings(make_settings, "dataset.image_size=14"), tmp_path)
    assert small[0].shape == (30, 14, 14, 1)
    for image, row, column in [(0, 0, 0), (3, 5, 13), (29, 13, 13)]:
        square = whole[0][image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert small[0][image, row, column, 0] == int(np.floor(square.mean() + 0.5))
    with pytest.raises(NasRetrainError, match=r"image_size=12 does not divide.*28"):
        sources.read(settings(make_settings, "dataset.image_size=12"), tmp_path)


def _swap(one: str, other: str) -> Callable[[Path], None]:
    def swap(folder: Path) -> None:
        first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
        (folder / one).write_bytes(second)
        (folder / other).write_bytes(first)

    return swap


def _as_mnist(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] = (content[-1] + 1) % 10  # classes of unequal size
    path.write_bytes(content)


def _cut(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])


def _torn_archive(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-100])
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (_cut, "train-images-idx3-ubyte"),
        (_torn_archive, r"train-images-idx3-ubyte\.gz"),
        (_swap("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"), "train-images.*30 x 28 x 28"),
        (_swap("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), "train-images.*30 x 28 x 28"),
        (_as_mnist, "train-labels.*3 images of each of 10 classes"),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "missing.*t10k-labels"),
    ],
)
def test_a_bad_file_is_one_error_that_names_it(
    make_settings: MakeSettings, tmp_path: Path, harm: Callable[[Path], None], named: str
) -> None:
    write(tmp_path)
    harm(tmp_path)
    with pytest.raises(NasRetrainError, match=named) as caught:
        sources.read(settings(make_settings), tmp_path)
    assert "dataset-fashion-mnist" in str(caught.value)


def test_a_download_that_fails_tells_the_remedy(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    with pytest.raises(NasRetrainError, match=r"Error downloading.*apt-get install dataset-fashion-mnist.*data_dir"):
        sources.fetch(settings(make_settings), tmp_path)


def test_a_subset_larger_than_the_data_is_told(make_settings: MakeSettings) -> None:
    with pytest.raises(NasRetrainError, match="train_subset 31 is larger than the 30"):
        settings(make_settings, "dataset.train_subset=31")


def test_other_contents_than_the_published_ones_are_refused(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path)
    verified = settings(make_settings, "dataset.verify=true")
    with pytest.raises(NasRetrainError, match=r"train-images-idx3-ubyte has not the published contents"):
        sources.read(verified, tmp_path)
    sums = {name: hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in fashion_mnist.MD5}
    monkeypatch.setattr(fashion_mnist, "MD5", sums)
    sources.read(verified, tmp_path)
    for name in sums:  # packed, with whatever settings, the contents are the same
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes(), 1))
        (tmp_path / name).unlink()
    sources.read(verified, tmp_path)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debian_s_files_have_the_published_contents() -> None:
    for name, md5 in fashion_mnist.MD5.items():
        assert hashlib.md5(gzip.decompress((DEBIAN / f"{name}.gz").read_bytes())).hexdigest() == md5
