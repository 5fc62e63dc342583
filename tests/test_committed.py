"""What is committed under results/reference is what this version plans and finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from nas_retrain.commands import retrain, scoreboard
from nas_retrain.commands.command_line import ROOT, compose
from nas_retrain.plan.plan import make_plan
from nas_retrain.studies.scoreboard.arms import arms
from nas_retrain.studies.scoreboard.findings import judge_rules
from nas_retrain.trainings.store import read_runs

REFERENCE = ROOT / "results" / "reference"

RUNS = {
    "201/digits": ["profile=dry", "dataset=digits"],
    "201/fashion_mnist": ["profile=reference", "dataset=fashion_mnist"],
    "201/settled": ["profile=rule_shape", "dataset=fashion_mnist"],
    "201/digits/verify": ["bench=201", "profile=dry", "dataset=digits"],
    "cnn/digits/verify": ["bench=cnn", "profile=dry", "dataset=digits"],
    "mlp/digits/verify": ["bench=mlp", "profile=dry", "dataset=digits"],
}
"""The committed folders and the settings that each was made with."""


def config(run: str) -> str:
    return "verify" if run.endswith("verify") else "config"


def copied(run: str, folder: Path) -> list[str]:
    """A folder with the committed records alone, and the overrides that go with it."""
    folder.mkdir()
    for name in ("runs.parquet", "base_rate.json"):
        if (REFERENCE / run / name).exists():
            shutil.copy(REFERENCE / run / name, folder)
    return [*RUNS[run], "launcher=local", "launcher.device=cpu", f"results_dir={folder}"]


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a run, by their names."""
    return {
        str(path.relative_to(folder)): pd.read_csv(path)
        for path in folder.rglob("*.csv")
        if "verify" not in path.relative_to(folder).parts
    }


@pytest.mark.parametrize("run", RUNS)
def test_every_planned_training_is_known_by_the_hash_that_it_was_stored_with(run: str, tmp_path: Path) -> None:
    settings = compose(*copied(run, tmp_path / "run"), config=config(run))
    plan = make_plan(settings, read_runs(settings.results_dir))
    assert len(plan.everything) >= 90
    assert plan.missing == []


SLOW = ("cnn/digits/verify", "201/fashion_mnist", "201/settled")


@pytest.mark.parametrize(
    "run",
    ["201/digits", *(pytest.param(run, marks=pytest.mark.slow) for run in SLOW)],
)
def test_its_tables_come_out_of_the_records(run: str, tmp_path: Path) -> None:
    settings = compose(*copied(run, tmp_path / "run"), config=config(run))
    retrain.analyse(settings)
    written, committed = (tables(folder) for folder in (settings.results_dir, REFERENCE / run))
    assert committed
    for name, table in committed.items():  # the last digits of coordinate checks depend on the processor
        pd.testing.assert_frame_equal(written[name], table, rtol=1e-4)


PARTS = ("nas_bench_201", "nas_bench_201_none", "mlp", "cnn", "mlp_released", "cnn_released")


@pytest.mark.parametrize("part", [PARTS[0], *(pytest.param(part, marks=pytest.mark.slow) for part in PARTS[1:])])
def test_the_scoreboard_comes_out_of_its_records(part: str, tmp_path: Path) -> None:
    wanted = compose(config="scoreboard").scoreboard
    assert wanted is not None
    assert set(wanted.parts) == set(PARTS)
    shutil.copy(REFERENCE / "scoreboard" / "digits" / part / "runs.parquet", tmp_path)
    settings = compose(*wanted.parts[part], f"results_dir={tmp_path}", "launcher.device=cpu", config="scoreboard")
    found = arms(settings, wanted, {})
    plan = make_plan(found.settings, read_runs(tmp_path))
    assert len(plan.everything) > 1000
    assert plan.missing == []
    committed = pd.read_csv(REFERENCE / "scoreboard" / "digits" / "tables" / "rules.csv")
    of_part = committed[committed["part"] == part].drop(columns="part").reset_index(drop=True)
    judged = judge_rules(found, scoreboard.finished_searches(found), wanted)
    pd.testing.assert_frame_equal(judged, of_part, check_dtype=False, rtol=1e-4, atol=1e-9)
