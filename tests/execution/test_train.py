"""One training: deterministic, resumable to the last bit, and a record whatever happens."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from nas_retrain.benches import build
from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.benches.nas_bench_201.plain_network import PlainNetwork
from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import steps, train
from nas_retrain.execution.steps import epoch_seed
from nas_retrain.plan import plan
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import RunRecord
from nas_retrain.trainings.training import Training
from tests.benches.nas_bench_201.test_network import pairs
from tests.conftest import MakeSettings
from tests.strategies import NAS_BENCH_201

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CELL = NAS_BENCH_201.index_of("|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")
COURSE = ("seconds", "images_per_second", "started", "finished", "resumed")


def one_training(settings: Settings, recipe: str = "benchmark") -> Training:
    return next(planned for planned in plan.recipe_trainings(settings, 0.5) if planned.recipe == recipe)


def run(planned: Training, settings: Settings, checkpoint: Path, stop: Callable[[], bool] = lambda: False) -> RunRecord:
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    (record,) = train.train([planned], settings, data, checkpoint, stop)
    return record


def timeless(record: RunRecord) -> dict[str, object]:
    return {name: value for name, value in asdict(record).items() if name not in COURSE}


def saved(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = pickle.loads(checkpoint.read_bytes().partition(b"\n")[2])
    return state


@pytest.mark.parametrize("recipe", ["benchmark", "architecture_aware", "learning_rate_only", "initialisation_only"])
def test_the_same_seed_gives_the_same_figures_and_another_gives_others(
    make_settings: MakeSettings, tmp_path: Path, recipe: str
) -> None:
    settings = make_settings(f"cells=[{CELL}]", f"recipe=[{recipe}]")
    planned = one_training(settings, recipe)
    first = run(planned, settings, tmp_path / "a")
    torch.manual_seed(5)  # what happens elsewhere in the process has no part in it
    torch.rand(3)
    assert timeless(run(planned, settings, tmp_path / "b")) == timeless(first)
    other = run(replace(planned, seed=planned.seed + 1), settings, tmp_path / "c")
    assert other.train_loss != first.train_loss
    assert first.status == "finished"
    assert first.test_loss is not None
    assert first.epochs == 2
    assert first.key == planned.key


def test_training_learns(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(f"cells=[{CELL}]", "training.epochs=8")
    record = run(one_training(settings), settings, tmp_path / "checkpoint")
    assert record.test_accuracy > 80  # ten digits: chance is 10


def test_a_loss_that_is_not_finite_is_recorded_as_diverged(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(f"cells=[{CELL}]", "training.epochs=50", "recipes.benchmark.learning_rate=1e30")
    record = run(one_training(settings), settings, tmp_path / "checkpoint")
    assert (record.status, record.train_loss, record.test_loss) == ("diverged", None, None)
    assert (record.train_accuracy, record.test_accuracy) == (10.0, 10.0)
    assert record.seconds < 10  # it did not go on for 50 epochs
    json.dumps(asdict(record), allow_nan=False)


def test_a_disconnected_cell_is_recorded_and_not_trained(make_settings: MakeSettings, tmp_path: Path) -> None:
    cell = next(cell for cell in range(15625) if not NAS_BENCH_201.graph_at(cell).connected)
    settings = make_settings(f"cells=[{cell}]")
    for recipe in ("benchmark", "architecture_aware"):
        record = run(one_training(settings, recipe), settings, tmp_path / "checkpoint")
        assert (record.status, record.learning_rate, record.test_accuracy) == ("disconnected", None, 10.0)
        assert record.seconds == 0.0


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(f"cells=[{CELL}]", "training.epochs=8", "launcher.checkpoint_every=1")
    planned = one_training(settings)
    undisturbed = run(planned, settings, tmp_path / "undisturbed.pt")
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    # One process imports torch once and forks children that train; each is killed after a random time.
    code = f"""
        import dataclasses, json, os, pathlib, random, signal, time
        from tests.execution.test_train import CPU, one_training, run
        from nas_retrain.execution import train as training
        from nas_retrain.settings import Settings
        folder = pathlib.Path({str(tmp_path)!r})
        settings = Settings.model_validate_json((folder / "settings.json").read_text())
        training.prepare_process(CPU)
        moments = random.Random()
        killed = 0
        while not (folder / "record.json").exists():
            child = os.fork()
            if child == 0:
                record = run(one_training(settings), settings, folder / "killed.pt")
                (folder / "record.tmp").write_text(json.dumps(dataclasses.asdict(record)))
                (folder / "record.tmp").rename(folder / "record.json")
                os._exit(0)
            if killed < 8:
                time.sleep(moments.uniform(0.05, {undisturbed.seconds / 3}))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed += os.WIFSIGNALED(status)
        print(killed)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    record = RunRecord(**json.loads((tmp_path / "record.json").read_text()))
    assert timeless(record) == timeless(undisturbed)
    states = [saved(tmp_path / f"{name}.pt") for name in ("undisturbed", "killed")]
    assert states[0]["progress"]["epoch"] == states[1]["progress"]["epoch"] == 7
    for part in ("network", "momenta"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


def test_stopped_after_any_step_it_continues_there_and_ends_with_the_same_bits(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(f"cells=[{CELL}]", "training.epochs=3", "launcher.checkpoint_every=2")
    planned = one_training(settings)
    undisturbed = run(planned, settings, tmp_path / "undisturbed.pt")
    steps_an_epoch = math.ceil(600 / settings.training.batch_size)
    for stops in ([1], [steps_an_epoch], [5, 1, steps_an_epoch - 1, steps_an_epoch, 3]):
        steps, places = 0, []
        for stop_after in stops:
            count = iter(range(1, stop_after + 1))
            with pytest.raises(train.Stopped):
                run(planned, settings, tmp_path / "stopped.pt", stop=lambda c=count, n=stop_after: next(c) == n)  # type: ignore[misc]
            steps += stop_after
            progress = saved(tmp_path / "stopped.pt")["progress"]
            assert progress["epoch"] * steps_an_epoch + progress["step"] == steps
            places.append(f"{progress['epoch']}.{progress['step']}")
        record = run(planned, settings, tmp_path / "stopped.pt")
        assert timeless(record) == timeless(undisturbed)
        assert record.resumed == " ".join(places)
        (tmp_path / "stopped.pt").unlink()


def test_a_gpu_that_was_given_but_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given in ("0", "2,3", "GPU-8f2a", "MIG-8f2a"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        with pytest.raises(NasRetrainError, match=rf"CUDA_VISIBLE_DEVICES={given}.*launcher\.device=cpu"):
            train.choose_device("auto")
        assert train.choose_device("cpu") == CPU
    for none_given in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none_given)
        assert train.choose_device("auto").type in ("cpu", "mps")


def test_a_device_that_is_absent_is_told_with_those_present() -> None:
    assert train.choose_device("cpu") == CPU
    absent = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(NasRetrainError, match=rf"launcher\.device={absent}.*cpu"):
        train.choose_device(absent)


class TestGroups:
    """Several trainings as one wide network: each must be what it is alone."""

    @pytest.fixture
    def group(self, make_settings: MakeSettings) -> tuple[Settings, list[Training]]:
        recipes = "recipe=[benchmark,architecture_aware,learning_rate_only]"
        settings = make_settings(f"cells=[{CELL}]", recipes, "seeds=[1,2]", "launcher.together=6")
        (group,) = plan.groups(plan.recipe_trainings(settings, 0.5), 6)
        assert len({planned.learning_rate for planned in group}) == 2
        return settings, group

    @pytest.fixture
    def _doubles(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """In double precision the order of additions hardly matters, so what differs is a mistake."""
        monkeypatch.setattr(steps, "crop", lambda *arguments: batches.crop(*arguments).double())
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)

    def run(self, group: list[Training], settings: Settings, folder: Path, name: str) -> list[RunRecord]:
        data = batches.load(settings.dataset, settings.data_dir, CPU)
        data = replace(data, test_images=data.test_images.to(torch.get_default_dtype()))
        return train.train(group, settings, data, folder / f"{name}.pt")

    @pytest.mark.usefixtures("_doubles")
    def test_each_member_ends_as_it_does_alone(self, group: tuple[Settings, list[Training]], tmp_path: Path) -> None:
        settings, trainings = group
        together = self.run(trainings, settings, tmp_path, "together")
        for planned, record in zip(trainings, together, strict=True):
            (alone,) = self.run([planned], settings, tmp_path, "alone")
            assert record.key == alone.key == planned.key
            assert (record.status, record.train_accuracy, record.test_accuracy) == (
                (alone.status, alone.train_accuracy, alone.test_accuracy)
            )
            assert record.train_loss == pytest.approx(alone.train_loss, rel=1e-6)  # summed in single precision
            assert record.test_loss == pytest.approx(alone.test_loss, rel=1e-6)
        assert len({record.test_loss for record in together}) == 6

    @pytest.mark.usefixtures("_doubles")
    def test_a_member_that_diverges_harms_no_other(
        self, group: tuple[Settings, list[Training]], tmp_path: Path
    ) -> None:
        settings, trainings = group
        trainings[1] = replace(trainings[1], learning_rate=1e30)
        together = self.run(trainings[:3], settings, tmp_path, "together")
        assert [record.status for record in together] == ["finished", "diverged", "finished"]
        assert (together[1].test_accuracy, together[1].test_loss) == (10.0, None)
        for member in (0, 2):
            (alone,) = self.run([trainings[member]], settings, tmp_path, "alone")
            assert together[member].test_loss == pytest.approx(alone.test_loss, rel=1e-6)

    def test_stopped_and_continued_a_group_ends_with_the_same_bits(
        self, group: tuple[Settings, list[Training]], tmp_path: Path
    ) -> None:
        settings, trainings = group
        data = batches.load(settings.dataset, settings.data_dir, CPU)
        undisturbed = train.train(trainings, settings, data, tmp_path / "undisturbed.pt")
        for stop_after in (3, 20):
            count = iter(range(1, stop_after + 1))
            with pytest.raises(train.Stopped):
                train.train(
                    trainings,
                    settings,
                    data,
                    tmp_path / "a.pt",
                    lambda c=count, n=stop_after: next(c) == n,  # type: ignore[misc]
                )
        resumed = train.train(trainings, settings, data, tmp_path / "a.pt")
        assert list(map(timeless, resumed)) == list(map(timeless, undisturbed))

    @pytest.mark.slow
    def test_in_single_precision_accuracies_differ_by_no_more_than_chance(
        self, make_settings: MakeSettings, tmp_path: Path
    ) -> None:
        """Forty seeds together and alone: the mean difference is within three of its standard errors."""
        settings = make_settings(
            f"cells=[{CELL}]", "recipe=[benchmark]", f"seeds={list(range(40))}", "training.epochs=3"
        )
        trainings = plan.recipe_trainings(settings, None)
        together = [
            record.test_accuracy
            for group in plan.groups(trainings, 8)
            for record in self.run(group, settings, tmp_path, group[0].label)
        ]
        alone = [self.run([planned], settings, tmp_path, planned.label)[0].test_accuracy for planned in trainings]
        differences = torch.tensor(together) - torch.tensor(alone)
        assert differences.mean().abs() <= 3 * differences.std() / math.sqrt(40) + 1e-9
        assert torch.tensor(alone).std() > 0.5  # percent: seeds do matter here


@pytest.mark.parametrize("together", [1, 6])
def test_the_first_step_s_gradient_is_autograd_s(make_settings: MakeSettings, tmp_path: Path, together: int) -> None:
    """Each member's, whatever its learning rate, and also in what a resumed training records."""
    recipes = "recipe=[benchmark,architecture_aware,learning_rate_only]"
    settings = make_settings(f"cells=[{CELL}]", recipes, "seeds=[1,2]", "training.epochs=1")
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    for group in plan.groups(plan.recipe_trainings(settings, 0.5), together):
        steps, checkpoint = count(), tmp_path / f"{group[0].label}.pt"
        with pytest.raises(train.Stopped):
            train.train(group, settings, data, checkpoint, lambda steps=steps: next(steps) == 2)  # type: ignore[misc]
        for planned, record in zip(group, train.train(group, settings, data, checkpoint), strict=True):
            graph = space.parse(planned.arch)
            seed = train.seed_of_generator(planned, settings)
            network = build.build(graph, settings, initialisation=planned.initialisation, seed=seed)
            generator = torch.Generator().manual_seed(epoch_seed(seed, 0))
            images, labels = next(batches.training_batches(data, settings.training.batch_size, generator))
            weights = list(network.parameters())
            gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(network(images), labels), weights)
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            shares = [g.norm() / w.norm() for g, w in zip(gradients, weights, strict=True) if w.ndim > 1]
            assert record.gradient_norm == pytest.approx(norm.item(), rel=1e-3)
            assert record.relative_gradient == pytest.approx(
                torch.stack(shares).square().mean().sqrt().item(), rel=1e-3
            )


@pytest.mark.slow
def test_a_short_training_ends_as_the_reference_network_s_does(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Twenty seeds, each from the same weights and batches in both networks; single precision, so they part on the way.

    The test accuracies' mean difference is within three of its standard errors, and far smaller than what seeds do.
    """
    settings = make_settings(
        f"cells=[{CELL}]", "recipe=[benchmark]", f"seeds={list(range(20))}", "training.epochs=3", "launcher.together=1"
    )
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    ours, theirs = [], []
    for planned in plan.recipe_trainings(settings, None):
        ours.append(run(planned, settings, tmp_path / "none").test_accuracy)
        seed = train.seed_of_generator(planned, settings)
        network = build.build(space.parse(planned.arch), settings, initialisation="stock", seed=seed)
        reference = PlainNetwork(planned.arch, **network.sizes)
        with torch.no_grad():
            for their_tensor, our_tensor in pairs(network, reference):
                their_tensor.copy_(our_tensor)
        optimiser = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = CosineAnnealingLR(optimiser, T_max=3)
        for epoch in range(3):
            generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
            for images, labels in batches.training_batches(data, settings.training.batch_size, generator):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(reference(images.contiguous()), labels).backward()
                optimiser.step()
            schedule.step()
        reference.eval()
        with torch.no_grad():
            hits = reference(data.test_images).argmax(1) == data.test_labels
        theirs.append(100 * hits.double().mean().item())
    differences = torch.tensor(ours) - torch.tensor(theirs)
    assert differences.mean().abs() <= 3 * differences.std() / math.sqrt(20) + 1e-9
    assert differences.mean().abs() < torch.tensor(theirs).std() / 2


def test_bfloat16_trains_as_well_and_is_another_budget(make_settings: MakeSettings, tmp_path: Path) -> None:
    chosen = (f"cells=[{CELL}]", "recipe=[benchmark]", "training.epochs=4")
    single = make_settings(*chosen)
    half = make_settings(*chosen, "training.precision=bfloat16")
    records = [run(one_training(settings), settings, tmp_path / "none") for settings in (single, half)]
    assert records[0].config_hash != records[1].config_hash
    assert records[0].test_loss != records[1].test_loss
    assert records[1].train_loss == pytest.approx(records[0].train_loss, rel=0.2)
    assert min(record.test_accuracy for record in records) > 50
