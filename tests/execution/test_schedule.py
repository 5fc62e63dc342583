"""The optimiser's settings against PyTorch's own: schedules, weight decay by kind of parameter, label smoothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.optim import lr_scheduler

from nas_retrain.benches import build
from nas_retrain.data import batches
from nas_retrain.execution import train
from nas_retrain.execution.schedule import share_of_rate
from nas_retrain.execution.sgd import Sgd
from nas_retrain.execution.steps import epoch_seed
from nas_retrain.plan import plan
from tests.conftest import MakeSettings
from tests.execution.test_train import CELL, CPU, one_training, run
from tests.strategies import NAS_BENCH_201

SCHEDULES = {
    "cosine": lambda optimiser, epochs: lr_scheduler.CosineAnnealingLR(optimiser, epochs),
    "linear": lambda optimiser, epochs: lr_scheduler.LinearLR(optimiser, 1.0, 0.0, epochs),
    "step": lambda optimiser, epochs: lr_scheduler.MultiStepLR(optimiser, [epochs // 2, 3 * epochs // 4], 0.1),
    "constant": lambda optimiser, _: lr_scheduler.ConstantLR(optimiser, 1.0, 0),
}  # fmt: skip


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_torchs_after_a_warm_up_in_equal_steps(
    make_settings: MakeSettings, schedule: str, warmup: int
) -> None:
    epochs = 8 + warmup
    recipe = make_settings(
        f"training.schedule={schedule}", f"training.warmup_epochs={warmup}", f"training.epochs={epochs}"
    ).training
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = SCHEDULES[schedule](optimiser, 8)
    for epoch in range(warmup):
        assert share_of_rate(recipe, epoch, epochs) == pytest.approx((epoch + 1) / (warmup + 1))
    for epoch in range(8):
        share = share_of_rate(recipe, warmup + epoch, epochs)
        assert 0.3 * share == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimiser.step()
        theirs.step()


def test_a_shorter_budget_has_the_schedule_on_its_own_epochs(make_settings: MakeSettings) -> None:
    recipe = make_settings("training.epochs=20", "training.warmup_epochs=4").training
    assert [share_of_rate(recipe, epoch, 3) for epoch in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert share_of_rate(recipe, 0, 1) == 1.0  # as in the search for the base rate


@pytest.mark.parametrize("members", [1, 3])
def test_weight_decay_is_torchs_with_a_group_for_vectors(make_settings: MakeSettings, members: int) -> None:
    settings = make_settings("training.weight_decay=0.3", "training.norm_weight_decay=0.01")
    built = [
        build.build(NAS_BENCH_201.graph_at(CELL), settings, initialisation="stock", seed=seed)
        for seed in range(members)
    ]
    rates = [0.1, 0.2, 0.05][:members]
    ours = build.join(built) if members > 1 else built[0]
    theirs = torch.nn.ParameterList([each.detach().clone() for each in ours.parameters()])
    optimiser = Sgd(ours, rates, settings)
    references = []
    for member, rate in enumerate(rates):
        mine = [torch.nn.Parameter(each.detach().chunk(members)[member].clone()) for each in theirs]
        kinds = {
            0.01: [each for each in mine if each.ndim == 1], 0.3: [each for each in mine if each.ndim > 1]
        }  # fmt: skip
        groups = [{"params": each, "weight_decay": decay} for decay, each in kinds.items()]
        references.append((mine, torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)))
    for step in range(3):
        torch.manual_seed(step)
        for place, parameter in enumerate(ours.parameters()):
            parameter.grad = torch.randn_like(parameter)
            for member, (mine, _) in enumerate(references):
                mine[place].grad = parameter.grad.chunk(members)[member].clone()
        optimiser.update()
        for _, reference in references:
            reference.step()
    for place, parameter in enumerate(ours.parameters()):
        expected = torch.cat([mine[place].detach() for mine, _ in references])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def test_labels_are_smoothed_in_training_and_not_in_testing(make_settings: MakeSettings, tmp_path: Path) -> None:
    chosen = (f"cells=[{CELL}]", "recipe=[benchmark]", "training.epochs=1", "training.schedule=constant")
    settings = make_settings(*chosen, "training.label_smoothing=0.2")
    planned = one_training(settings)
    record = run(planned, settings, tmp_path / "none")
    seed = train.seed_of_generator(planned, settings)
    network = build.build(NAS_BENCH_201.graph_at(CELL), settings, initialisation="stock", seed=seed)
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    total = 0.0
    generator = torch.Generator().manual_seed(epoch_seed(seed, 0))
    for images, labels in batches.training_batches(data, settings.training.batch_size, generator):
        optimiser.zero_grad()
        loss = functional.cross_entropy(network(images), labels, label_smoothing=0.2)
        loss.backward()
        optimiser.step()
        total += loss.item() * len(labels)
    assert record.train_loss == pytest.approx(total / len(data.train_labels), rel=1e-3)
    network.eval()
    with torch.no_grad():
        test_loss = functional.cross_entropy(network(data.test_images), data.test_labels).item()
    assert record.test_loss == pytest.approx(test_loss, rel=1e-3)


@pytest.mark.parametrize(
    "override",
    ["norm_weight_decay=0.0", "label_smoothing=0.1", "schedule=linear", "schedule=step", "warmup_epochs=1"],
)
def test_another_setting_is_another_budget_and_the_defaults_are_the_old_one(
    make_settings: MakeSettings, override: str
) -> None:
    before, after = make_settings("cells=[1]"), make_settings("cells=[1]", f"training.{override}")
    assert set(before.training.identity) == {
        "epochs", "batch_size", "momentum", "nesterov", "weight_decay", "precision"
    }  # fmt: skip
    hashes = [{each.config_hash for each in plan.recipe_trainings(one, 0.5)} for one in (before, after)]
    assert hashes[0].isdisjoint(hashes[1])
    steps = make_settings("cells=[1]", "training.steps=[0.1]")
    assert plan.recipe_trainings(steps, 0.5) == plan.recipe_trainings(before, 0.5)
