"""A rule in a file outside the package, from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]

RULE = '''
"""A rate by the number of layers, and a readout with half of it."""

from nas_retrain.theory.rule import Parametrisation


def by_layers(graph, size, *, power=-1.0):
    return Parametrisation((1 + len(graph.layers)) ** power, layer_rates={"readout": 0.5})
'''

TINY = [
    "launcher=local", "launcher.device=cpu", "launcher.workers=1", "network.channels=4", "dataset.verify=false",
    "base_rate.points=3", "base_rate.seeds=1", "analysis.bootstrap_draws=20", "analysis.null_draws=20",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_rules.py").write_text(RULE)
    return tmp_path


def run(script: str, folder: Path, *arguments: str) -> str:
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "NAS_RETRAIN_"))}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *TINY, *arguments],
        cwd=folder, env=outside, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_rule_in_a_file_of_one_s_own_is_retrained_with(folder: Path) -> None:
    given = [
        "dataset=digits", "profile=dry", "recipe=[benchmark,by_rule]", "cells=sample:4", "seeds=[1]",
        "training.epochs=1", "recipes.by_rule.learning_rate=0.1", "recipes.by_rule.rule=my_rules:by_layers",
        "results_dir=found", "dataset.train_subset=64",
    ]  # fmt: skip
    run("retrain.py", folder, *given)
    runs = pd.read_parquet(folder / "found" / "runs.parquet")
    ours, theirs = (
        runs[runs["recipe"] == recipe].set_index("cell").sort_index() for recipe in ("by_rule", "benchmark")
    )
    layers = ours["arch"].str.count("nor_conv")
    assert (ours["learning_rate"] * (1 + layers)).round(9).eq(0.1).mean() >= 0.5  # dead layers are not counted
    assert ours["train_loss"].ne(theirs["train_loss"]).all()
    (folder / "my_rules.py").write_text(RULE.replace("0.5", "0.25"))  # another rule is another recipe
    assert "4 to do" in run("plan.py", folder, *given)


@pytest.mark.slow
def test_a_rule_in_a_file_of_one_s_own_is_on_the_scoreboard(folder: Path) -> None:
    given = [
        "cells=sample:5", "base_rate.epochs=1", "dataset.train_subset=64", "scoreboard.permutations=5",
        "~scoreboard.parts.cnn", "~scoreboard.parts.mlp_released", "~scoreboard.parts.cnn_released",
        "~scoreboard.parts.nas_bench_201", "~scoreboard.parts.nas_bench_201_none",
        "+scoreboard.rules.mine.rule=my_rules:by_layers", "results_dir=found",
    ]  # fmt: skip
    assert run("scoreboard.py", folder, *given).splitlines()[-2:] == ["Open", "  found/report.html"]
    rules = pd.read_csv(folder / "found" / "tables" / "rules.csv")
    assert rules.loc[rules["rule"] == "mine", "part"].tolist() == ["mlp"]
    slopes = pd.read_csv(folder / "found" / "tables" / "slopes.csv").set_index(["rule", "sweep"])["change_slope"]
    assert abs(slopes["muP", "width"]) < 0.3 < slopes["He", "width"]
    assert abs(slopes["the paper's, target", "depth"]) < 0.7 < slopes["one rate", "depth"]
    report = (folder / "found" / "report.md").read_text()
    assert "mine" in report
    assert (folder / "found" / "figures" / "scoreboard.png").stat().st_size > 10_000
