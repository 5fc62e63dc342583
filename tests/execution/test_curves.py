"""What a training keeps of each epoch, and what its tracker is told: the same whatever interrupts it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas_retrain.commands import retrain
from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import train, workers
from nas_retrain.plan import plan
from nas_retrain.plan.plan import make_plan
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import CURVES, RunRecord, StoredRuns, read_runs
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.execution.test_checkpoints import stop_after, write
from tests.execution.test_train import CELL, CPU, saved, timeless

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS = 3
STEPS = 4
"""Of an epoch."""


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(
        *(f"cells=[{CELL}]", f"training.epochs={EPOCHS}", "network.cells_per_stage=1", "network.channels=2"),
        *("dataset.train_subset=60", "training.batch_size=15", "training.warmup_epochs=1", "seeds=[1,2,3]"),
        *("recipe=[benchmark]", "curves=test"),
    )


@pytest.fixture
def group(settings: Settings) -> list[Training]:
    """Three members, of which the second diverges."""
    group = plan.recipe_trainings(settings, None)
    group[1] = replace(group[1], learning_rate=1e9)
    return group


@pytest.fixture
def run(group: list[Training], tmp_path: Path) -> Callable[..., list[RunRecord]]:
    def train_group(
        settings: Settings, name: str = "one.pt", stop: Callable[[], bool] = lambda: False
    ) -> list[RunRecord]:
        data = batches.load(settings.dataset, settings.data_dir, CPU)
        return train.train(group, settings, data, tmp_path / name, stop)

    return train_group


Run = Callable[..., list[RunRecord]]


def without_curves(record: RunRecord) -> dict[str, object]:
    return {name: value for name, value in timeless(record).items() if name not in CURVES}


def test_each_member_has_its_own_curve_which_changes_no_figure(settings: Settings, run: Run) -> None:
    found, train_only, plain = (
        run(settings.model_copy(update={"curves": wanted})) for wanted in ("test", "train", None)
    )
    assert list(map(without_curves, found)) == list(map(without_curves, plain)) == list(map(without_curves, train_only))
    assert all(getattr(record, name) is None for record in plain for name in CURVES)
    for record, of_training in zip(found, train_only, strict=True):
        assert (of_training.test_loss_curve, of_training.test_accuracy_curve) == (None, None)
        assert of_training.train_loss_curve == record.train_loss_curve
    for record in (found[0], found[2]):
        assert record.train_loss_curve is not None
        assert record.test_accuracy_curve is not None
        assert {len(getattr(record, name)) for name in CURVES} == {EPOCHS}
        last = [getattr(record, name)[-1] for name in CURVES if name != "learning_rate_curve"]
        assert last == [record.train_loss, record.train_accuracy, record.test_loss, record.test_accuracy]
        assert record.learning_rate_curve == pytest.approx([0.1 * share for share in (0.5, 1, 0.5)])
    assert found[0].train_loss_curve != found[2].train_loss_curve
    diverged = found[1]
    assert diverged.status == "diverged"
    lengths = {len(getattr(diverged, name)) for name in CURVES}
    assert len(lengths) == 1
    assert max(lengths) < EPOCHS
    json.dumps([asdict(record) for record in found], allow_nan=False)


@pytest.mark.parametrize("before", ["test", None])
def test_stopped_anywhere_the_curve_is_whole_even_if_it_was_not_asked_for_then(
    settings: Settings, run: Run, before: str | None
) -> None:
    undisturbed = run(settings, "undisturbed.pt")
    for steps in (STEPS // 2, STEPS, STEPS - 1):
        with pytest.raises(train.Stopped):
            run(settings.model_copy(update={"curves": before}), stop=stop_after(steps))
    for record, wanted in zip(run(settings), undisturbed, strict=True):
        if before is None:  # what was not measured then is not known
            known = {name: getattr(wanted, name) for name in CURVES}
            unknown = min(2, len(known["test_loss_curve"]))
            for name in ("test_loss_curve", "test_accuracy_curve"):
                known[name] = (None,) * unknown + known[name][unknown:]
            wanted = replace(wanted, **known)
        assert timeless(record) == timeless(wanted)


def test_going_on_from_what_an_older_version_left_there_is_no_curve(
    settings: Settings, run: Run, tmp_path: Path
) -> None:
    undisturbed = run(settings, "undisturbed.pt")
    with pytest.raises(train.Stopped):
        run(settings, stop=stop_after(STEPS + 1))
    content: dict[str, Any] = saved(tmp_path / "one.pt")
    del content["progress"]["curve"]
    write(content, tmp_path / "one.pt")
    with pytest.warns(UserWarning, match="record gets none"):
        found = run(settings)
    assert list(map(without_curves, found)) == list(map(without_curves, undisturbed))
    assert all(getattr(record, name) is None for record in found for name in CURVES)


def test_neither_curves_nor_a_tracker_make_another_training(make_settings: MakeSettings) -> None:
    nothing = StoredRuns.of([])
    plain, other = (
        make_plan(make_settings("cells=sample:3", "dataset.base_rate=0.3", *more), nothing).everything
        for more in ((), ("curves=test", "tracker=my_module:my_tracker"))
    )
    assert plain == other


TRACKER = """
import json
from contextlib import contextmanager


@contextmanager
def told(training, results_dir, epochs_done):
    path = results_dir / f"told-{training.seed}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"begun": epochs_done}) + "\\n")
        yield lambda epoch, values: file.write(json.dumps({"epoch": epoch} | values) + "\\n")
        file.write(json.dumps({"ended": True}) + "\\n")


@contextmanager
def failing(training, results_dir, epochs_done):
    def tell(epoch, values):
        raise OSError("no network")

    yield tell


def unopened(training, results_dir, epochs_done):
    return told(training, results_dir / "absent", epochs_done)
"""


@pytest.fixture
def tracker(tmp_path: Path, settings: Settings) -> Path:
    settings.results_dir.mkdir(parents=True)
    path = tmp_path / "my_tracker.py"
    path.write_text(TRACKER)
    return path


def test_a_tracker_of_one_s_own_is_told_of_each_epoch_also_in_a_worker(
    settings: Settings, group: list[Training], tracker: Path
) -> None:
    settings = settings.model_copy(update={"tracker": f"{tracker}:told"})
    workers.run_here([group], {training.key for training in group}, settings, "test")
    for record in read_runs(settings.results_dir).records:
        lines = (settings.results_dir / f"told-{record.seed}.jsonl").read_text().splitlines()
        begun, *epochs, ended = map(json.loads, lines)
        assert (begun, ended) == ({"begun": 0}, {"ended": True})
        for name in CURVES:
            assert tuple(epoch[name.removesuffix("_curve")] for epoch in epochs) == getattr(record, name)
        assert [epoch["epoch"] for epoch in epochs] == list(range(1, len(epochs) + 1))


def test_a_tracker_is_told_where_a_training_goes_on_and_its_end_at_a_stop(
    settings: Settings, run: Run, tracker: Path
) -> None:
    settings = settings.model_copy(update={"tracker": f"{tracker}:told"})
    with pytest.raises(train.Stopped):
        run(settings, stop=stop_after(2 * STEPS + 1))
    run(settings)
    lines = (settings.results_dir / "told-1.jsonl").read_text().splitlines()
    found = [
        value for line in map(json.loads, lines) for key, value in line.items() if key in ("begun", "epoch", "ended")
    ]
    assert found == [0, 1, 2, True, 2, 3, True]


@pytest.mark.parametrize("name", ["failing", "unopened", "absent"])
def test_a_tracker_that_fails_is_told_and_harms_no_training(
    settings: Settings, run: Run, tracker: Path, name: str
) -> None:
    undisturbed = run(settings, "undisturbed.pt")
    with pytest.warns(UserWarning, match=rf"tracker=.*:{name}: .*goes on without it") as warned:
        found = run(settings.model_copy(update={"tracker": f"{tracker}:{name}"}))
    assert list(map(timeless, found)) == list(map(timeless, undisturbed))
    assert 1 <= len(warned) <= 3  # once for each member at most


def test_tensorboard_s_events_are_the_curve_with_no_step_twice(
    settings: Settings, run: Run, group: list[Training], tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"tracker": "tensorboard", "results_dir": tmp_path})
    with pytest.raises(train.Stopped):
        run(settings, stop=stop_after(STEPS + 1))
    checkpoint = (tmp_path / "one.pt").read_bytes()
    run(settings)
    (tmp_path / "one.pt").write_bytes(checkpoint)  # as if it had been killed at the end
    records = run(settings)
    for training, record in zip(group, records, strict=True):
        folder = f"{training.network_class}-{training.seed}-{training.config_hash}"
        events = EventAccumulator(str(tmp_path / "tensorboard" / "benchmark" / folder)).Reload()
        for name in CURVES:
            curve = getattr(record, name)
            scalars = events.Scalars(name.removesuffix("_curve")) if curve else []
            assert [scalar.step for scalar in scalars] == list(range(1, len(curve) + 1))
            assert [scalar.value for scalar in scalars] == pytest.approx(curve, rel=1e-6)


def test_a_tracker_that_cannot_be_used_is_told_before_anything_is_written(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    faults = {
        "tensorboard": "pip install tensorboard",
        "wandb": "expected tensorboard, or a function of your own",
        "no_such_module:told": "cannot be imported",
        "json:no_such_function": "has no function",
    }
    for name, fault in faults.items():
        settings = make_settings("cells=sample:2", "dataset.base_rate=0.3", f"tracker={name}")
        with pytest.raises(NasRetrainError, match=f"^tracker={name}.*{fault}"):
            retrain.retrain(settings)
        assert not settings.results_dir.exists()
    retrain.print_plan(settings)
    (told,) = (line for line in capsys.readouterr().out.splitlines() if f"tracker={name}" in line)
    assert "blocked by" in told
    assert fault in told
