"""The whole study in miniature: every stage is trained, nothing twice, and all comes again when a part is lost."""

from __future__ import annotations

import json

import pytest

from nas_retrain.commands.retrain import retrain
from nas_retrain.plan.plan import make_plan
from nas_retrain.trainings.store import TABLE, read_runs
from tests.conftest import MakeSettings
from tests.studies.rule_shape.simulated import miniature


@pytest.mark.slow
def test_every_stage_is_trained_once_and_what_was_lost_comes_back(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = miniature(make_settings, "launcher.workers=1")
    retrain(settings)
    stored = read_runs(settings.results_dir)
    made = make_plan(settings, stored)
    assert not made.missing
    assert len(stored) == len(made.everything)
    assert {training.label for training in made.everything} == {
        f"{row.recipe}-{row.network_class}-{row.seed}-{row.config_hash}" for row in stored.records
    }
    assert "a surface takes 8 networks" in capsys.readouterr().out
    before = {record.key: record for record in stored.records}
    (settings.results_dir / TABLE).unlink()
    for file in (settings.results_dir / "runs").glob("*.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        lost = [json.loads(line)["recipe"] for line in lines[10:20]]
        file.write_text("".join(lines[:10] + lines[20:]))
    assert lost
    retrain(settings)
    again = {record.key: record for record in read_runs(settings.results_dir).records}
    assert before.keys() == again.keys()
    assert all(again[key].test_loss == record.test_loss for key, record in before.items())
