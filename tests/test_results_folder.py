"""A results folder as a user finds it: copied in part, damaged, or of another version; nothing in it is lost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from nas_retrain import launch, pipeline, plan, slurm
from nas_retrain.config import Settings
from nas_retrain.store import RunRecord, RunWriter, StoredRuns, merge, read_runs
from tests.conftest import MakeSettings
from tests.test_plan import as_stored

FEW = ("cells=sample:3", "seeds=[1,2]", "dataset.base_rate=0.3")


def made_up(settings: Settings) -> list[RunRecord]:
    """A record of every training that is planned."""
    trainings = plan.make_plan(settings, StoredRuns.of([])).everything
    return [
        replace(as_stored(training), cell=training.cell, arch=training.arch, test_accuracy=50.0 + number)
        for number, training in enumerate(trainings)
    ]


def keep(folder: Path, records: list[RunRecord], *, table_only: bool = False) -> None:
    with RunWriter(folder / "runs", "local") as writer:
        writer.append(*records)
    if table_only:
        merge(folder)
        shutil.rmtree(folder / "runs")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every training an error."""

    def refuse(groups: list[object], *_: object, **__: object) -> launch.Tally:
        assert groups == [], "what is stored is trained again"
        return launch.Tally()

    monkeypatch.setattr(launch, "run_here", refuse)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("chosen", ["sample:3", "sample:2", "sample:1"])
def test_what_only_the_table_holds_is_not_trained_again_and_stays_whatever_is_asked_for(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], chosen: str
) -> None:
    records = made_up(make_settings(*FEW))
    settings = make_settings(*FEW, f"cells={chosen}")
    keep(settings.results_dir, records, table_only=True)
    before = (settings.results_dir / "runs.parquet").read_bytes()
    assert plan.make_plan(settings, read_runs(settings.results_dir)).missing == []
    pipeline.retrain(settings)
    pipeline.analyse(settings)
    assert "Nothing left to train" in capsys.readouterr().out
    assert (settings.results_dir / "runs.parquet").read_bytes() == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("files", [0, 1])
def test_analyse_with_a_part_of_the_files_keeps_the_whole_table(make_settings: MakeSettings, files: int) -> None:
    settings = make_settings(*FEW)
    records = made_up(settings)
    keep(settings.results_dir, records, table_only=True)
    keep(settings.results_dir, records[: 4 * files])
    pipeline.analyse(settings)
    table = pd.read_parquet(settings.results_dir / "runs.parquet")
    assert sorted(table["test_accuracy"]) == [record.test_accuracy for record in records]


@pytest.mark.usefixtures("no_training")
def test_a_task_of_slurm_knows_what_only_the_table_holds(make_settings: MakeSettings) -> None:
    settings = make_settings(*FEW, "launcher=slurm")
    records = made_up(settings)
    keep(settings.results_dir, records, table_only=True)
    everything = plan.make_plan(settings, StoredRuns.of([])).everything
    slurm.train_unit(settings, "name", [training.slot for training in everything])
