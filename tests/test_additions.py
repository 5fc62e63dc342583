"""What one adds to a checkout: a recipe and a study are one file each, and nothing else of it is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]

RECIPE = """\
defaults: [benchmark]
learning_rate: 0.05
"""

STUDY = '''\
"""How many trainings of each recipe are stored?"""

from nas_retrain.plan.study import Study


def trainings(settings, found):
    return []  # it counts what others asked for


def analyse(records, settings):
    return records.frame().groupby("recipe").size()


def write(counts, folder):
    counts.to_csv(folder / "counts.csv", header=["trainings"])
    return [f"{folder}/counts.csv: {counts.sum()} trainings are stored."]


STUDY = Study(trainings, analyse, write)
'''

PROGRAM = """\
import sys

from nas_retrain.commands import retrain
from nas_retrain.commands.command_line import compose
from nas_retrain.plan.plan import make_plan
from nas_retrain.trainings.store import RunRecord, RunWriter, StoredRuns

settings = compose(*sys.argv[1:])
with RunWriter(settings.results_dir / "runs", "local") as writer:
    for number, one in enumerate(make_plan(settings, StoredRuns.of([])).everything):
        writer.append(RunRecord(
            *one.key[:3], one.cell, one.arch, one.network_class, one.seed, one.epochs, one.learning_rate, None,
            "finished", 1.0, 60.0, 1.0, 50.0 + number % 7, 1.0, 1.0, "cpu", "2", "0", one.config_hash, "then", "then",
        ))
retrain.analyse(settings)
"""
"""Makes up the records of a plan, by the program's own means, and has the studies look at them."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a checkout with the two files says of a run, and the run's results folder."""
    checkout = tmp_path_factory.mktemp("checkout")
    for part in ("src", "configs", "slurm/site"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "configs" / "recipe" / "halved.yaml").write_text(RECIPE)
    (checkout / "src" / "nas_retrain" / "studies" / "count.py").write_text(STUDY)
    settings = [
        "dataset=digits", "profile=dry", "launcher=local", "recipe=[benchmark,halved]", "cells=sample:12",
        "analysis.null_draws=20", "analysis.bootstrap_draws=20", "results_dir=results/mine",
    ]  # fmt: skip
    there = os.environ | {"PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *settings],
        cwd=checkout, env=there, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, checkout / "results" / "mine"


def test_a_recipe_is_one_file(told: tuple[str, Path]) -> None:
    said, folder = told
    end = said.splitlines()[:-1]  # the last line is the other study's
    assert end[-3:] == ["Open", "  results/mine/report.html", "  results/mine/explore.html"]
    assert end[-6].startswith("- Kendall's tau between the rankings: ")
    records = pd.read_parquet(folder / "runs.parquet")
    assert {name: set(part) for name, part in records.groupby("recipe")["learning_rate"]} == {
        "benchmark": {0.1}, "halved": {0.05},
    }  # fmt: skip
    assert (folder / "report.md").read_text().startswith("# digits: halved against benchmark")


def test_a_study_is_one_file(told: tuple[str, Path]) -> None:
    said, folder = told
    assert said.splitlines()[-1] == "results/mine/counts.csv: 48 trainings are stored."
    assert (folder / "counts.csv").read_text() == "recipe,trainings\nbenchmark,24\nhalved,24\n"
