"""The reference retraining in miniature: searches, recipes, sensitivity, and what is lost trained again alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nas_retrain.commands import retrain
from nas_retrain.commands.command_line import compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings
from nas_retrain.trainings import store
from tests.conftest import MakeSettings

pytestmark = pytest.mark.slow

TINY = ["dataset=digits", "launcher=local", "launcher.device=cpu", "network.channels=4"]
MINIATURE = [
    "profile=reference",
    "dataset.image_size=8",
    "dataset.train_subset=200",
    "cells=sample:4",
    "seeds=[1,2]",
    "training.epochs=1",
    "launcher.together=4",
    "launcher.workers=2",
    "base_rate.points=3",
    "base_rate.seeds=[1]",
    "own_rate.classes=4",
    "own_rate.points=3",
    "own_rate.seeds=[3]",
    "own_rate.fresh_seeds=[4,5]",
    "own_rate.validation_images=100",
    "sensitivity.classes=2",
    "sensitivity.epochs=[2]",
    "sensitivity.base_rate_factors=[0.5]",
    "analysis.bootstrap_draws=50",
    "analysis.null_draws=20",
]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a miniature that has been retrained."""
    settings = compose(*TINY, *MINIATURE, f"results_dir={tmp_path_factory.mktemp('miniature')}")
    retrain.retrain(settings)
    return settings


def lines(settings: Settings) -> dict[str, dict[str, object]]:
    """The stored records without their times, by key."""
    found = {}
    for path in sorted((settings.results_dir / "runs").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            for name in ("seconds", "images_per_second", "started", "finished"):
                del record[name]
            key = str(store.RunRecord(**json.loads(line)).key)
            assert key not in found, "a training must be recorded once"
            found[key] = record
    return found


def test_every_training_of_every_part_is_recorded_once(miniature: Settings) -> None:
    searches, recipes, sensitivity = 3 + 3 + 4 * 3, 4 * 5 * 2 + 4 * 2, 2 * (3 * 2 + 2)
    assert len(lines(miniature)) == searches + recipes + sensitivity


def test_the_report_comes_from_the_merged_records_alone(miniature: Settings, tmp_path: Path) -> None:
    """With the same tables as the retraining's own, and the records stay as they are."""
    there = miniature.results_dir
    tables = {path.name: path.read_bytes() for path in (there / "whose_ranking" / "tables").iterdir()}
    assert {"rankings.csv", "regret.csv", "rules.csv", "sensitivity.csv"} <= tables.keys()
    merged = (there / "runs.parquet").read_bytes()
    (tmp_path / "runs.parquet").write_bytes(merged)
    retrain.analyse(miniature.model_copy(update={"results_dir": tmp_path}))
    again = {path.name: path.read_bytes() for path in (tmp_path / "whose_ranking" / "tables").iterdir()}
    assert again == tables
    assert (tmp_path / "runs.parquet").read_bytes() == merged


def test_lost_records_come_back_equal_to_the_last_bit(miniature: Settings) -> None:
    before = lines(miniature)
    path = miniature.results_dir / "runs" / "local-0.jsonl"
    stored = path.read_text().splitlines(keepends=True)
    path.write_text("".join(stored[20:]))
    (miniature.results_dir / "runs.parquet").unlink()  # which would hold them still
    retrain.retrain(miniature)
    assert lines(miniature) == before


def test_an_own_rate_without_a_grid_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(NasRetrainError, match=r"own_rate needs the grid.*own_rate\.lowest"):
        make_settings("recipe=[benchmark,own_rate]")
    for seen in (2, 3):
        with pytest.raises(NasRetrainError, match=r"own_rate\.fresh_seeds must be none of"):
            make_settings(*MINIATURE, f"own_rate.fresh_seeds=[4,{seen}]")
    with pytest.raises(NasRetrainError, match=r"leaves nothing of the 600"):
        make_settings(*MINIATURE, "own_rate.validation_images=1200")
    with pytest.raises(NasRetrainError, match=r"sensitivity\.recipes: tuned_rate is none"):
        make_settings(*MINIATURE, "recipe=[benchmark,architecture_aware]")
    with pytest.raises(NasRetrainError, match=r"cannot be varied"):
        make_settings(*MINIATURE, "sensitivity.recipes=[benchmark,own_rate]")
    with pytest.raises(NasRetrainError, match=r"leave out training\.epochs"):
        make_settings(*MINIATURE, "sensitivity.epochs=[1,2]")
