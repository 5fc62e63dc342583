from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from torchvision.transforms import functional as transforms

from nas_retrain.data import batches, sources
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import DatasetSettings
from tests.conftest import MakeSettings, write_cifar10, write_cifar100, write_imagenet16

CPU = torch.device("cpu")


def cifar10(make_settings: MakeSettings, *overrides: str) -> DatasetSettings:
    small = ["dataset.train_images=30", "dataset.test_images=6", "dataset.dry_train_subset=null"]
    return make_settings("dataset=cifar10", *small, *overrides).dataset


def test_digits_are_scikit_learn_s(make_settings: MakeSettings, tmp_path: Path) -> None:
    dataset = make_settings().dataset
    (train, train_labels), (test, test_labels) = sources.read(dataset, tmp_path)
    assert train.shape == (600, 8, 8, 1)
    assert test.shape == (1197, 8, 8, 1)
    bunch = load_digits()
    ours = sorted(
        (image.tobytes(), label)
        for image, label in zip(np.concatenate([train, test]), np.concatenate([train_labels, test_labels]), strict=True)
    )
    theirs = sorted(
        (image.astype(np.uint8).tobytes(), label) for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert ours == theirs
    assert dataset.mean[0] == pytest.approx(bunch.images.mean(), abs=1e-3)
    assert dataset.std[0] == pytest.approx(bunch.images.std(), abs=1e-3)
    assert np.bincount(train_labels).min() > 40


def test_cifar10_reads_as_torchvision_reads_it(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (train, train_labels), (test, test_labels) = sources.read(cifar10(make_settings), tmp_path)

    class Unchecked(torchvision.datasets.CIFAR10):
        def _check_integrity(self) -> bool:
            return True

        def _load_meta(self) -> None:
            pass

    for images, labels, is_train in ((train, train_labels, True), (test, test_labels, False)):
        theirs = Unchecked(str(tmp_path), train=is_train)
        np.testing.assert_array_equal(images, theirs.data)
        assert list(labels) == theirs.targets


def test_cifar100_takes_the_fine_labels(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    dataset = make_settings(
        "dataset=cifar100", "dataset.train_images=30", "dataset.test_images=6", "dataset.dry_train_subset=null"
    ).dataset
    (train, labels), _ = sources.read(dataset, tmp_path)
    written = pickle.loads((tmp_path / "cifar-100-python" / "train").read_bytes())
    assert list(labels) == written["fine_labels"]
    np.testing.assert_array_equal(train[3, :, :, 1].ravel(), written["data"][3, 1024:2048])


def test_imagenet16_keeps_classes_1_to_120(make_settings: MakeSettings, tmp_path: Path) -> None:
    train_images, test_images = write_imagenet16(tmp_path)
    dataset = make_settings(
        "dataset=imagenet16_120",
        f"dataset.train_images={train_images}",
        f"dataset.test_images={test_images}",
        "dataset.dry_train_subset=null",
    ).dataset
    (train, train_labels), (test, test_labels) = sources.read(dataset, tmp_path)
    assert train.shape == (train_images, 16, 16, 3)
    assert test.shape == (test_images, 16, 16, 3)
    assert 0 <= min(train_labels.min(), test_labels.min()) <= max(train_labels.max(), test_labels.max()) <= 119
    first = pickle.loads((tmp_path / "ImageNet16" / "train_data_batch_1").read_bytes())
    place = next(place for place, label in enumerate(first["labels"]) if label <= 120)
    assert train_labels[0] == first["labels"][place] - 1
    np.testing.assert_array_equal(train[0, :, :, 2].ravel(), first["data"][place, 512:])


def test_a_training_subset_is_drawn_once(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    whole, _ = sources.read(cifar10(make_settings), tmp_path)
    dataset = cifar10(make_settings, "dataset.train_subset=12")
    (images, labels), (test, _) = sources.read(dataset, tmp_path)
    assert images.shape[0] == len(labels) == dataset.images_per_epoch == 12
    assert test.shape[0] == 6
    assert {image.tobytes() for image in images} < {image.tobytes() for image in whole[0]}
    np.testing.assert_array_equal(images, sources.read(dataset, tmp_path)[0][0])
    with pytest.raises(NasRetrainError, match="train_subset 31 is larger than the 30"):
        cifar10(make_settings, "dataset.train_subset=31")


@pytest.mark.parametrize(("subset", "validation", "trained"), [("12", 10, 12), ("25", 10, 20), ("null", 7, 23)])
def test_validation_images_are_training_images_that_are_not_trained_on(
    make_settings: MakeSettings, tmp_path: Path, subset: str, validation: int, trained: int
) -> None:
    write_cifar10(tmp_path)
    dataset = cifar10(make_settings, f"dataset.train_subset={subset}")
    whole = {image.tobytes() for image in sources.read(cifar10(make_settings), tmp_path)[0][0]}
    train, kept_back = sources.read(dataset, tmp_path, validation)
    trained_on, validated_on = ({image.tobytes() for image in part[0]} for part in (train, kept_back))
    assert (len(trained_on), len(validated_on)) == (len(train[1]), len(kept_back[1])) == (trained, validation)
    assert trained_on | validated_on <= whole
    assert not trained_on & validated_on
    if trained == dataset.train_subset:  # then the search trains on the very images that the recipes do
        np.testing.assert_array_equal(train[0], sources.read(dataset, tmp_path)[0][0])


BAD = {
    "truncated": lambda good: good[: len(good) // 2],
    "empty": lambda _: b"",
    "text": lambda _: b"<html>404 Not Found</html>",
    "another object": lambda _: pickle.dumps([1, 2, 3]),
    "no labels": lambda _: pickle.dumps({"data": np.zeros((6, 3072), np.uint8)}),
    "wrong shape": lambda _: pickle.dumps({"data": np.zeros((6, 768), np.uint8), "labels": [0] * 6}),
    "wrong type": lambda _: pickle.dumps({"data": np.zeros((6, 3072)), "labels": [0] * 6}),
    "too few labels": lambda _: pickle.dumps({"data": np.zeros((6, 3072), np.uint8), "labels": [0] * 5}),
    "labels of another data set": lambda _: pickle.dumps({"data": np.zeros((6, 3072), np.uint8), "labels": [10] * 6}),
    "labels that are text": lambda _: pickle.dumps({"data": np.zeros((6, 3072), np.uint8), "labels": ["cat"] * 6}),
    "a call": lambda _: b"cos\nsystem\n(S'echo pwned > /dev/null'\ntR.",
    "too few images": lambda _: pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "labels": [0] * 5}),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_one_clear_error(fault: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(BAD[fault](path.read_bytes()))
    with pytest.raises(NasRetrainError) as caught:
        sources.read(cifar10(make_settings), tmp_path)
    assert "data_batch_3" in str(caught.value)
    assert "gain" in str(caught.value) or "npack" in str(caught.value)  # download it again, or unpack the archive


def test_files_that_are_missing_in_part_are_named(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.unlink()
    dataset = cifar10(make_settings)
    assert sources.missing_files(dataset, tmp_path) == [path]
    for attempt in (sources.fetch, sources.read):
        with pytest.raises(NasRetrainError, match=r"missing .*data_batch_2.*cifar-10-python\.tar\.gz"):
            attempt(dataset, tmp_path)


def test_a_download_that_fails_tells_the_remedy(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", no_network)
    with pytest.raises(NasRetrainError, match=r"Name or service not known.*data_dir"):
        sources.fetch(cifar10(make_settings), tmp_path / "nothing")
    with pytest.raises(NasRetrainError, match=r"train_data_batch_1.*image-net\.org"):
        sources.fetch(make_settings("dataset=imagenet16_120").dataset, tmp_path / "nothing")


def device_data(make_settings: MakeSettings, tmp_path: Path, *overrides: str) -> batches.DeviceData:
    write_cifar10(tmp_path)
    return batches.load(cifar10(make_settings, *overrides), tmp_path, CPU)


@given(images=st.integers(0, 29), top=st.integers(0, 8), left=st.integers(0, 8), mirrored=st.booleans())
def test_augmentation_is_torchvision_s_pad_crop_flip(
    cifar: tuple[batches.DeviceData, sources.Part, DatasetSettings], images: int, top: int, left: int, mirrored: bool
) -> None:
    data, (raw, labels), dataset = cifar
    picture = Image.fromarray(raw[images])
    cropped = transforms.crop(transforms.pad(picture, dataset.padding), top, left, 32, 32)
    if mirrored:
        cropped = transforms.hflip(cropped)
    mean, std = ([value / 255 for value in constants] for constants in (dataset.mean, dataset.std))
    expected = transforms.normalize(transforms.to_tensor(cropped), mean, std)
    ours = batches.augment(data, *(torch.tensor([value]) for value in (images, top, left)), torch.tensor([mirrored]))
    torch.testing.assert_close(ours[0], expected, rtol=1e-5, atol=1e-5)
    assert data.train_labels[images] == labels[images]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> tuple[batches.DeviceData, sources.Part, DatasetSettings]:
    from nas_retrain.commands.command_line import compose

    folder = tmp_path_factory.mktemp("cifar")
    write_cifar10(folder)
    dataset = compose(
        "dataset=cifar10", "dataset.train_images=30", "dataset.test_images=6", "dataset.verify=false"
    ).dataset
    return batches.load(dataset, folder, CPU), sources.read(dataset, folder)[0], dataset


def test_drawn_augmentation_has_the_distribution_of_flip_and_random_crop(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    data = device_data(make_settings, tmp_path)
    generator = torch.Generator().manual_seed(0)
    drawn = [batches.draw_augmentation(data, generator) for _ in range(300)]
    for epoch in drawn:
        assert sorted(epoch.order.tolist()) == list(range(30))
    tops = torch.cat([epoch.tops for epoch in drawn])
    lefts = torch.cat([epoch.lefts for epoch in drawn])
    mirrored = torch.cat([epoch.mirrored for epoch in drawn])
    joint = torch.bincount(tops * 9 + lefts, minlength=81)
    assert len(joint) == 81
    assert stats.chisquare(joint.numpy()).pvalue > 1e-3
    assert stats.binomtest(int(mirrored.sum()), len(mirrored)).pvalue > 1e-3
    assert stats.chisquare(np.bincount([int(epoch.order[0]) for epoch in drawn], minlength=30)).pvalue > 1e-3
    pairs = np.bincount(tops.numpy() * 2 + mirrored.numpy(), minlength=18).reshape(9, 2)
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_digits_are_never_mirrored(make_settings: MakeSettings, tmp_path: Path) -> None:
    data = batches.load(make_settings().dataset, tmp_path, CPU)
    assert not batches.draw_augmentation(data, torch.Generator().manual_seed(0)).mirrored.any()


def test_an_epoch_shows_every_image_once_channels_last(make_settings: MakeSettings, tmp_path: Path) -> None:
    data = device_data(make_settings, tmp_path, "dataset.padding=0", "dataset.flip=false")
    shown = list(batches.training_batches(data, 8, torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in shown] == [8, 8, 8, 6]
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in shown)
    (raw, labels), _ = sources.read(cifar10(make_settings), tmp_path)
    flat = torch.from_numpy(np.ascontiguousarray(raw)).flatten(1) * data.scale + data.shift
    expected = flat.view(raw.shape).permute(0, 3, 1, 2)
    everything = torch.cat([images for images, _ in shown])
    keys = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(everything, torch.cat([labels for _, labels in shown]), strict=True)
    }
    assert len(keys) == 30
    for image, label in zip(expected, labels, strict=True):
        near = (everything - image).abs().amax((1, 2, 3)).argmin()
        torch.testing.assert_close(everything[near], image, rtol=1e-5, atol=1e-5)
        assert keys[everything[near].numpy().tobytes()] == label


def test_test_images_are_normalised(make_settings: MakeSettings, tmp_path: Path) -> None:
    data = device_data(make_settings, tmp_path)
    _, (raw, labels) = sources.read(cifar10(make_settings), tmp_path)
    dataset = cifar10(make_settings)
    expected = (raw - np.array(dataset.mean)) / np.array(dataset.std)
    np.testing.assert_allclose(data.test_images.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert data.test_labels.tolist() == labels.tolist()


def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the made files for the published ones."""
    source = sources.SOURCES["cifar10"]
    assert isinstance(source, sources.PickledBatches)
    sums = [
        {name: hashlib.md5((tmp_path / source.folder / name).read_bytes()).hexdigest() for name in part}
        for part in (source.train_files, source.test_files)
    ]
    changed = dataclasses.replace(source, train_files=sums[0], test_files=sums[1])
    monkeypatch.setitem(sources.SOURCES, "cifar10", changed)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch"])
@pytest.mark.parametrize("change", ["one label", "one pixel", "written again", "an appended byte"])
def test_other_contents_than_the_published_ones_are_refused_by_the_file_s_name(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, change: str
) -> None:
    write_cifar10(tmp_path)
    published(monkeypatch, tmp_path)
    verified = cifar10(make_settings, "dataset.verify=true")
    images = sources.read(verified, tmp_path)[0][0]
    path = tmp_path / "cifar-10-batches-py" / name
    batch = pickle.loads(path.read_bytes())
    if change == "one label":
        batch["labels"][0] = (batch["labels"][0] + 1) % 10
    elif change == "one pixel":
        batch["data"] = batch["data"].copy()
        batch["data"][0, 0] ^= 1
    path.write_bytes(pickle.dumps(batch, 4) + (b"x" if change == "an appended byte" else b""))
    with pytest.raises(NasRetrainError, match=rf"{name} has not the published contents.*dataset\.verify=false"):
        sources.read(verified, tmp_path)
    assert sources.read(cifar10(make_settings), tmp_path)[0][0].shape == images.shape


@pytest.mark.parametrize(
    ("dataset", "write", "named"),
    [
        ("cifar10", write_cifar10, "data_batch_1"),
        ("cifar100", write_cifar100, "train"),
        ("imagenet16_120", write_imagenet16, "train_data_batch_1"),
    ],
)
def test_each_data_set_is_compared_with_its_published_sums(
    make_settings: MakeSettings, tmp_path: Path, dataset: str, write: Callable[[Path], object], named: str
) -> None:
    write(tmp_path)
    with pytest.raises(NasRetrainError, match=rf"{named} has not the published contents"):
        sources.read(make_settings(f"dataset={dataset}", "dataset.verify=true").dataset, tmp_path)


def test_the_sums_of_cifar_are_torchvision_s() -> None:
    for name, theirs in (("cifar10", torchvision.datasets.CIFAR10), ("cifar100", torchvision.datasets.CIFAR100)):
        source = sources.SOURCES[name]
        assert isinstance(source, sources.PickledBatches)
        assert dict(theirs.train_list) == source.train_files
        assert dict(theirs.test_list) == source.test_files


def test_labels_that_cannot_be_read_in_good_time_are_refused(make_settings: MakeSettings, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    labels: list[object] = [0]
    for _ in range(60):
        labels = [labels, labels]
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": np.zeros((6, 3072), np.uint8), "labels": labels}, 4))
    with pytest.raises(NasRetrainError, match="one whole-numbered label"):
        sources.read(cifar10(make_settings), tmp_path)
