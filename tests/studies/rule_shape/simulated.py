"""The study in miniature, and records of trainings that were never trained."""

from __future__ import annotations

from nas_retrain.settings import Settings
from nas_retrain.trainings.store import RunRecord
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings

MINIATURE = (
    "profile=rule_shape",
    "dataset.image_size=2",
    "dataset.train_subset=32",
    "network.channels=2",
    "training.epochs=1",
    "launcher.together=12",
    "rule_shape.validation_images=40",
    "rule_shape.base_rate.points=2",
    "rule_shape.base_rate.seeds=[1,2,3,4]",
    "rule_shape.base_rate.epochs=[1,2]",
    "rule_shape.surface={classes: 3, lowest: 0.05, highest: 0.2, points: 3, seeds: [11, 22]}",
    "rule_shape.confirmation={classes: 3, seeds: [111, 222]}",
    "rule_shape.longer={classes: 2, seeds: [111], epochs: 2, weight_decays: [0.0005, 0.05]}",
    "rule_shape.plain={classes: 3, lowest: 0.05, highest: 0.2, points: 3, seeds: [11, 22]}",
    "rule_shape.plain.confirmation_classes=3",
    "rule_shape.ladder={classes: 2, lowest: 0.05, highest: 0.2, points: 2, seeds: [11], sizes: [[4, 2]]}",
    "rule_shape.ends={octaves: 0, outside: 1}",
    "rule_shape.exponents=[-1, 0, 1]",
    "rule_shape.permutations=20",
    "rule_shape.draws=50",
)
"""Settings of the whole study, seconds long."""


def miniature(make_settings: MakeSettings, *overrides: str) -> Settings:
    """Settings of the whole study, seconds long, on scikit-learn's digits."""
    return make_settings(*MINIATURE, *overrides)


def recorded(training: Training, accuracy_above_60: float, train_loss: float = 1.0) -> RunRecord:
    """A record as if this had been trained."""
    return RunRecord(
        bench=training.bench, dataset=training.dataset, recipe=training.recipe, cell=training.cell, arch=training.arch,
        network_class=training.network_class, seed=training.seed, epochs=training.epochs,
        learning_rate=training.learning_rate, in_degree=None, status="finished", train_loss=train_loss,
        train_accuracy=50.0, test_loss=1.0, test_accuracy=60.0 + accuracy_above_60, seconds=1.0,
        images_per_second=100.0, device="cpu", torch="2", code_version="0", config_hash=training.config_hash,
        started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:00:01+00:00", gradient_norm=1.0,
        relative_gradient=0.3, seeding="nested",
    )  # fmt: skip
