"""Checkpoints: gone on with to the same bits if they are whole and fit, else told, and the training starts over."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import checkpoints, train
from nas_retrain.execution.checkpoints import Unusable, kept_at, sealed
from nas_retrain.plan import plan
from nas_retrain.purpose import Recipe
from nas_retrain.settings import LocalSettings, Settings
from nas_retrain.trainings.store import RunRecord
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.execution.test_train import CELL, CPU, one_training, run, saved, timeless

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS = 2
STEPS = 23
"""Where the training of these tests was stopped: in its second epoch of nineteen steps."""


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(f"cells=[{CELL}]", f"training.epochs={EPOCHS}", "network.cells_per_stage=1")


@pytest.fixture
def planned(settings: Settings) -> Training:
    return one_training(settings)


@pytest.fixture
def undisturbed(settings: Settings, planned: Training, tmp_path: Path) -> dict[str, object]:
    return timeless(run(planned, settings, tmp_path / "undisturbed.pt"))


def stop_after(steps: int) -> Callable[[], bool]:
    left = iter(range(steps - 1, -1, -1))
    return lambda: next(left) == 0


@pytest.fixture
def checkpoint(settings: Settings, planned: Training, tmp_path: Path) -> Path:
    """Of the training, stopped halfway."""
    path = tmp_path / "stopped.pt"
    with pytest.raises(train.Stopped):
        run(planned, settings, path, stop_after(STEPS))
    return path


def write(content: object, path: Path) -> None:
    """A whole file, with a right digest, of any content."""
    path.write_bytes(sealed(pickle.dumps(content)))


def start_over(settings: Settings, planned: Training, path: Path, why: str) -> RunRecord:
    with pytest.warns(UserWarning, match=rf"{path} .*{why}.*starts over"):
        return run(planned, settings, path)


def _flip(content: bytes, place: random.Random) -> bytes:
    bit = place.randrange(8 * len(content))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _zero_page(content: bytes, place: random.Random) -> bytes:
    first = place.randrange(0, len(content), 4096)
    return content[:first] + bytes(len(content[first : first + 4096])) + content[first + 4096 :]


def _swap_pages(content: bytes, place: random.Random) -> bytes:
    one, other = sorted(place.sample(range(0, len(content) - 4096, 4096), 2))
    return (
        content[:one]
        + content[other : other + 4096]
        + content[one + 4096 : other]
        + content[one : one + 4096]
        + content[other + 4096 :]
    )


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a flipped bit": _flip,
    "a zeroed page": _zero_page,
    "two swapped pages": _swap_pages,
    "a lost end": lambda content, place: content[: place.randrange(len(content))],
    "a lost beginning": lambda content, place: content[place.randrange(1, len(content)) :],
    "bytes behind the end": lambda content, place: content + place.randbytes(place.randrange(1, 5000)),
    "zeroes for all": lambda content, _: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_of_any_kind_is_gone_on_with(
    settings: Settings, planned: Training, undisturbed: dict[str, object], checkpoint: Path, damage: str
) -> None:
    whole, place = checkpoint.read_bytes(), random.Random(damage)
    checked = 0
    while checked < 60:
        damaged = DAMAGES[damage](whole, place)
        if damaged == whole:  # a page that was zero before
            continue
        checked += 1
        with pytest.raises(Unusable):
            checkpoints._unpacked(damaged, checkpoint)
    checkpoint.write_bytes(damaged)
    record = start_over(settings, planned, checkpoint, "is ")
    assert timeless(record) == undisturbed
    assert record.resumed == ""


def test_what_is_no_file_is_told_and_the_training_starts_over(
    settings: Settings, planned: Training, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    folder, unreachable = tmp_path / "folder.pt", tmp_path / "circle.pt"
    folder.mkdir()
    unreachable.symlink_to(unreachable)
    for path in (folder, unreachable):
        assert timeless(start_over(settings, planned, path, "cannot be read")) == undisturbed


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.pop(name)


def _progress(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["progress"].update(values)


def _without_progress(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["progress"].pop(name)


def _doubled() -> object:
    """What holds so many values, most of them again and again, that nothing can go through them all."""
    value: object = 0
    for _ in range(60):
        value = (value, value)
    return value


def _first_weights(change: Callable[[np.ndarray[Any, Any]], object]) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        name = next(iter(content["network"]))
        content["network"][name] = change(content["network"][name])

    return apply


def _momenta(change: Callable[[list[np.ndarray[Any, Any]]], object]) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(momenta=change(content["momenta"]))


_EPOCH = {"train_loss": [1.0], "train_accuracy": [50.0]}

MISFITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no trainings": _without("trainings"),
    "no network": _without("network"),
    "no momenta": _without("momenta"),
    "no progress": _without("progress"),
    "another training": lambda content: content.update(trainings=["benchmark-1-2-abc"]),
    "one training more": lambda content: content["trainings"].append("benchmark-1-2-abc"),
    "trainings that are no list": lambda content: content.update(trainings=7),
    "a network that is no dictionary": lambda content: content.update(network=[1, 2]),
    "a layer less": lambda content: content["network"].popitem(),
    "a layer more": lambda content: content["network"].update(extra=np.zeros(1, np.float32)),
    "weights of another shape": _first_weights(lambda weights: weights[..., :1]),
    "weights of another size": _first_weights(lambda weights: np.concatenate([weights, weights])),
    "weights of another type": _first_weights(lambda weights: weights.astype(np.float64)),
    "weights in half precision": _first_weights(lambda weights: weights.astype(np.float16)),
    "weights in another order of bytes": _first_weights(lambda weights: weights.astype(weights.dtype.newbyteorder())),
    "weights that are a tensor": _first_weights(torch.tensor),
    "weights that are objects": _first_weights(lambda weights: weights.astype(object)),
    "weights that are a list": _first_weights(lambda weights: weights.tolist()),
    "weights that are None": _first_weights(lambda _: None),
    "no momentum of one layer": _momenta(lambda momenta: momenta[:-1]),
    "None for a momentum": _momenta(lambda momenta: [None, *momenta[1:]]),
    "momenta in another order": _momenta(lambda momenta: momenta[::-1]),
    "momenta of another type": _momenta(lambda momenta: [one.astype(np.float64) for one in momenta]),
    "momenta by name": _momenta(lambda momenta: dict(enumerate(momenta))),
    "an optimiser without momenta": _momenta(lambda _: []),
    "progress that is a list": lambda content: content.update(progress=[0, 1]),
    "an epoch too many": _progress(epoch=EPOCHS),
    "a million epochs": _progress(epoch=10**6),
    "a negative epoch": _progress(epoch=-1),
    "a fraction of an epoch": _progress(epoch=1.0),
    "a truth for an epoch": _progress(epoch=True),
    "an epoch that is endless when it is printed": _progress(epoch=_doubled()),
    "a step that is endless when it is printed": _progress(step=_doubled()),
    "an epoch in words": _progress(epoch="one"),
    "a step too many": _progress(step=99),
    "a negative step": _progress(step=-1),
    "None for a step": _progress(step=None),
    "counts that are not a number": _progress(correct=[math.nan]),
    "negative counts": _progress(correct=[-1]),
    "more hits than images": _progress(correct=[600]),
    "counts of two members": _progress(correct=[1, 1]),
    "counts that are no list": _progress(correct=1),
    "sums of no member": _progress(loss_sums=[]),
    "a negative sum": _progress(loss_sums=[-1.0]),
    "a sum in words": _progress(loss_sums=["1.0"]),
    "a sum before the first step": _progress(step=0, correct=[0], loss_sums=[5.0]),
    "losses that are whole numbers": _progress(losses=[1]),
    "an accuracy above all": _progress(accuracies=[101.0]),
    "no accuracy after an epoch": _progress(accuracies=[math.nan]),
    "an array for gradient norms": _progress(gradient_norms=np.ones(1)),
    "None for a gradient": _progress(relative_gradients=[None]),
    "endless seconds": _progress(seconds=math.inf),
    "seconds that are not a number": _progress(seconds=math.nan),
    "negative seconds": _progress(seconds=-1.0),
    "resumed by numbers": _progress(resumed=[1.2]),
    "a curve that is longer than the training": _progress(curve=2 * [_EPOCH]),
    "a curve that is no list": _progress(curve=_EPOCH),
    "a curve of whole numbers": _progress(curve=[1]),
    "a curve without accuracies": _progress(curve=[{"train_loss": [1.0]}]),
    "a curve of other things": _progress(curve=[_EPOCH | {"best": [1.0]}]),
    "a curve of no member": _progress(curve=[_EPOCH | {"train_loss": []}]),
    "a curve with a negative loss": _progress(curve=[_EPOCH | {"test_loss": [-1.0]}]),
    "a curve with an accuracy above all": _progress(curve=[_EPOCH | {"train_accuracy": [101.0]}]),
    **{
        f"no {one.name}": _without_progress(one.name)
        for one in dataclasses.fields(checkpoints.Progress)
        if one.name != "curve"  # which older versions did not keep
    },
}


def test_a_readable_checkpoint_that_does_not_fit_is_told_before_anything_of_it_is_used(
    settings: Settings, planned: Training, undisturbed: dict[str, object], checkpoint: Path
) -> None:
    whole = saved(checkpoint)
    new = after_one_step(settings, planned, checkpoint.with_name("new.pt"))
    for misfit, change in MISFITS.items():
        content = {name: value.copy() if isinstance(value, dict | list) else value for name, value in whole.items()}
        change(content)
        write(content, checkpoint)
        with pytest.warns(UserWarning, match=rf"{checkpoint} .*starts over"):
            state = after_one_step(settings, planned, checkpoint)
        torch.testing.assert_close(state, new, rtol=0, atol=0, equal_nan=True, msg=misfit)
    write(content, checkpoint)
    assert timeless(start_over(settings, planned, checkpoint, "lacks a part")) == undisturbed


def after_one_step(settings: Settings, planned: Training, path: Path) -> list[object]:
    with pytest.raises(train.Stopped):
        run(planned, settings, path, stop_after(1))
    state = saved(path)
    values = [value for name, value in state["progress"].items() if name not in ("seconds", "resumed")]
    assert state["progress"]["resumed"] == []
    return [state["network"], state["momenta"], *values]


@pytest.mark.parametrize("content", [7, "text", [1, 2], None, {}, np.zeros(3), {"network": {}}, {1: 2}])
def test_whole_files_of_something_else_are_told(
    settings: Settings, planned: Training, tmp_path: Path, content: object
) -> None:
    write(content, tmp_path / "other.pt")
    start_over(settings, planned, tmp_path / "other.pt", "")


@pytest.mark.parametrize("payload", [b"", b"text", b"PK\x03\x04", b"\x80\x04)"])
def test_a_right_digest_of_what_is_no_pickle_is_told(payload: bytes) -> None:
    with pytest.raises(Unusable, match="not a readable checkpoint"):
        checkpoints._unpacked(sealed(payload), Path("one.pt"))


def test_a_pickle_s_code_is_not_run(tmp_path: Path) -> None:
    class Command:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'run'}",)

    with pytest.raises(Unusable, match="not a readable checkpoint"):
        checkpoints._unpacked(sealed(pickle.dumps({"network": Command()})), tmp_path)
    assert not (tmp_path / "run").exists()


def test_what_a_later_version_adds_is_ignored(
    settings: Settings, planned: Training, undisturbed: dict[str, object], checkpoint: Path
) -> None:
    content = saved(checkpoint)
    content["generators"] = {"cuda": np.zeros(4)}
    content["progress"]["best_epoch"] = 1
    write(content, checkpoint)
    record = run(planned, settings, checkpoint)
    assert timeless(record) == undisturbed
    assert record.resumed == "1.4"


def test_what_an_earlier_version_wrote_is_told(settings: Settings, planned: Training, checkpoint: Path) -> None:
    torch.save({}, checkpoint)
    start_over(settings, planned, checkpoint, "not a checkpoint of this version")


def test_another_seed_s_recipe_s_or_group_s_checkpoint_is_told(
    settings: Settings, planned: Training, checkpoint: Path
) -> None:
    whole = checkpoint.read_bytes()
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    one, two = replace(planned, seed=1), replace(planned, purpose=Recipe("other"))
    for group in ([one], [two], [planned, one]):
        checkpoint.write_bytes(whole)
        with pytest.warns(UserWarning, match="another training's checkpoint"):
            train.train(group, settings, data, checkpoint)


def test_a_key_that_takes_ages_to_hash_is_refused_at_once(
    settings: Settings, planned: Training, checkpoint: Path
) -> None:
    doubled = b"2\x86" * 60  # a pair of the last value and itself, again and again
    checkpoint.write_bytes(sealed(b"\x80\x04}K\x00" + doubled + b"K\x01s."))
    start_over(settings, planned, checkpoint, "not a readable checkpoint")


def test_a_checkpoint_holds_plain_arrays_and_no_tensors_of_a_device(checkpoint: Path) -> None:
    """So that one that was written on one GPU is gone on with on another, or where there is none."""
    assert b"_rebuild_tensor" not in checkpoint.read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [["training.momentum=0", "training.nesterov=false"], ["training.nesterov=false"], ["launcher.together=2"]],
)
def test_it_is_gone_on_with_to_the_same_bits_under_every_optimiser(
    make_settings: MakeSettings, tmp_path: Path, overrides: list[str]
) -> None:
    settings = make_settings(
        *(f"cells=[{CELL}]", f"training.epochs={EPOCHS}", "network.cells_per_stage=1"),
        *("recipe=[benchmark]", "seeds=[1,2]", *overrides),
    )
    group = plan.groups(plan.recipe_trainings(settings, 0.5), settings.launcher.together)[0]
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    expected = train.train(group, settings, data, tmp_path / "undisturbed.pt")
    with pytest.raises(train.Stopped):
        train.train(group, settings, data, tmp_path / "stopped.pt", stop_after(STEPS))
    resumed = train.train(group, settings, data, tmp_path / "stopped.pt")
    assert list(map(timeless, resumed)) == list(map(timeless, expected))
    assert {record.resumed for record in resumed} == {"1.4"}


def test_a_folder_that_is_moved_removed_or_replaced_is_not_written_to(
    settings: Settings, planned: Training, checkpoint: Path, tmp_path: Path
) -> None:
    content = saved(checkpoint)
    for change in ("moved", "removed", "replaced"):
        folder = tmp_path / change / "checkpoints"
        folder.mkdir(parents=True)
        with kept_at(folder / "one.pt") as kept:
            if change == "removed":
                folder.rmdir()
            else:
                folder.rename(tmp_path / change / "elsewhere")
            if change == "replaced":
                folder.mkdir()
            state = checkpoints.State(tuple(content["trainings"]), {}, [], checkpoints.Progress.start(1))
            with pytest.raises(NasRetrainError, match="removed" if change == "removed" else "elsewhere"):
                kept.save(state)
        assert not (folder / "one.pt").exists()
        assert folder.exists() == (change == "replaced")
    with pytest.raises(NasRetrainError, match=r"absent.*moved or removed"):
        run(planned, settings, tmp_path / "absent" / "one.pt")


def test_it_goes_on_with_another_torch_or_device_and_says_so(
    settings: Settings, planned: Training, undisturbed: dict[str, object], checkpoint: Path
) -> None:
    content = checkpoints.content(checkpoint)
    assert content["made_with"] == {"device": "cpu", "torch": torch.__version__}
    made_with = {"device": "NVIDIA\x1b H100", "torch": "2.6.0", "cuDNN": "90100"}
    write(content | {"made_with": made_with}, checkpoint)
    changes = [
        r"device NVIDIA\x1b H100 then, cpu now",
        f"torch 2.6.0 then, {torch.__version__} now",
        "cuDNN 90100 then, none now",
    ]
    with pytest.warns(UserWarning, match=re.escape(", ".join(changes))):
        assert timeless(run(planned, settings, checkpoint)) == undisturbed


def test_one_that_does_not_say_what_it_was_made_with_is_gone_on_with(
    settings: Settings, planned: Training, undisturbed: dict[str, object], checkpoint: Path
) -> None:
    content = checkpoints.content(checkpoint)
    del content["made_with"]
    write(content, checkpoint)
    assert timeless(run(planned, settings, checkpoint)) == undisturbed


def test_they_are_no_closer_than_the_minutes_asked_for(settings: Settings, tmp_path: Path) -> None:
    def launcher(every: int, minutes: float) -> LocalSettings:
        return settings.launcher.model_copy(update={"checkpoint_every": every, "checkpoint_minutes": minutes})

    with kept_at(tmp_path / "any.pt") as kept:
        assert [kept.due(epoch, launcher(2, 0)) for epoch in (1, 2, 3, 4)] == [False, True, False, True]
        assert not kept.due(2, launcher(2, 5))
        kept._saved -= 301
        assert kept.due(2, launcher(2, 5))
        assert not kept.due(3, launcher(2, 5))
