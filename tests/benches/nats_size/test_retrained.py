"""The size space retrained in miniature: a placebo, since the paper's rule gives all of its networks one rate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from nats_bench import create
from scipy.stats import kendalltau

from nas_retrain.benches.nats_size.space import SizeSpace
from nas_retrain.commands import retrain
from nas_retrain.commands.command_line import compose
from nas_retrain.commands.export import export
from nas_retrain.data import batches
from nas_retrain.execution import train
from nas_retrain.plan import plan
from nas_retrain.trainings.store import read_runs
from tests.conftest import MakeSettings

ROOT = Path(__file__).parents[3]
SPACE = SizeSpace()
NETWORKS = 4
RATE = 0.2
TINY = [
    "bench=sss", "dataset=digits", "profile=dry", "launcher=local", "launcher.device=cpu", "launcher.workers=1",
    "network.channels=8", "dataset.train_subset=128", "training.epochs=1", "seeds=[1,2]", f"cells=sample:{NETWORKS}",
    f"dataset.base_rate={RATE}", "analysis.bootstrap_draws=20", "analysis.null_draws=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the command."""
    folder = tmp_path_factory.mktemp("sss") / "results"
    command = [sys.executable, str(ROOT / "scripts" / "retrain.py"), *TINY, f"results_dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_papers_rule_gives_all_networks_one_rate(results: Path) -> None:
    runs = pd.DataFrame([vars(record) for record in read_runs(results).records])
    assert len(runs) == 2 * NETWORKS * 2
    by_recipe = dict(iter(runs.groupby("recipe")))
    assert by_recipe["architecture_aware"]["learning_rate"].tolist() == [RATE] * NETWORKS * 2
    assert set(by_recipe["architecture_aware"]["in_degree"]) == {"source"}
    assert set(by_recipe["benchmark"]["learning_rate"]) == {0.1}
    assert runs["train_loss"].nunique() == len(runs)
    change = pd.read_csv(results / "tables" / "ranking_change.csv").set_index("top_percent")
    means = runs.pivot_table(index="cell", columns="recipe", values="test_accuracy")
    expected = kendalltau(means["benchmark"], means["architecture_aware"]).statistic
    assert change.loc[100, "kendall_tau"] == pytest.approx(expected, abs=1e-5)
    assert "architecture_aware against benchmark" in (results / "report.md").read_text()
    assert (results / "explore.html").stat().st_size > 10_000


def test_a_placebo_trains_what_the_benchmark_trains(make_settings: MakeSettings, tmp_path: Path) -> None:
    """The paper's rule for the learning rate, on the benchmark's own: a factor of 1 and nothing else."""
    settings = make_settings(
        *TINY[:1], *TINY[6:], "recipe=[benchmark,by_rule]", "recipes.by_rule.rule=paper", "seeds=[1]", "cells=sample:2",
        "+recipes.by_rule.rule_parameters.initialisation=false", "recipes.by_rule.learning_rate=0.1",
    )  # fmt: skip
    train.prepare_process(torch.device("cpu"))
    data = batches.load(settings.dataset, settings.data_dir, torch.device("cpu"))
    records = [train.train([one], settings, data, tmp_path / "c")[0] for one in plan.recipe_trainings(settings, RATE)]
    placebo, control = ([record for record in records if record.recipe == name] for name in ("by_rule", "benchmark"))
    assert [record.rule_factor for record in placebo] == [1.0, 1.0]
    for measured in ("cell", "learning_rate", "train_loss", "test_loss", "test_accuracy"):
        assert [getattr(record, measured) for record in placebo] == [getattr(record, measured) for record in control]
    assert control[0].train_loss != control[1].train_loss


@pytest.mark.slow
def test_it_is_ranked_against_published_tables_and_exported(results: Path, tmp_path: Path) -> None:
    cells = sorted({record.cell for record in read_runs(results).records if record.recipe == "benchmark"})
    original = tmp_path / "published.csv"
    published = pd.DataFrame({"index": cells, "arch": [SPACE.arch_at(cell) for cell in cells]})
    published.assign(accuracy=[40.0 + 7 * place for place in range(len(cells))]).to_csv(original, index=False)
    ranked = ["analysis.recipe=benchmark", "analysis.epochs=1"]
    settings = compose(*TINY, f"results_dir={results}", f"original={original}", *ranked)
    retrain.analyse(settings)
    compared = results / "comparisons" / "published_to_benchmark"
    change = pd.read_csv(compared / "tables" / "ranking_change.csv")
    assert change["cells"].max() == NETWORKS
    exported = export(settings)
    (nats,) = exported.glob("NATS-sss-*")
    api = create(str(nats), "sss", fast_mode=True, verbose=False)
    for record in read_runs(results).records:
        if record.recipe == "benchmark":
            info = api.get_more_info(record.cell, "digits", hp="01", is_random=record.seed)
            assert info["valtest-accuracy"] == record.test_accuracy
