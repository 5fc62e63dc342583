"""Proxies: a recipe whose cheap trainings rank like the long ones is told from one whose do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nas_retrain.commands.command_line import compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan.study import Records
from nas_retrain.settings import Settings
from nas_retrain.studies.proxies import findings, report
from nas_retrain.studies.proxies.study import STUDY
from nas_retrain.trainings.store import StoredRuns
from tests import published_tables
from tests.statistics.worlds import CLASSES
from tests.strategies import NAS_BENCH_201

CELLS = CLASSES[::40]
"""136 connected networks."""

SEEDS = (1, 2, 3)


def records(recipe: str, accuracy: np.ndarray, cells: np.ndarray, config_hash: str = "a") -> pd.DataFrame:
    parts = [
        pd.DataFrame({"bench": "201", "dataset": "digits", "recipe": recipe, "config_hash": config_hash, "cell": cells,
                      "network_class": cells, "seed": seed, "epochs": 2, "in_degree": None,
                      "test_accuracy": accuracy[:, place]})
        for place, seed in enumerate(SEEDS)
    ]  # fmt: skip
    return pd.concat(parts)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Long trainings as a table with seeds, and records of three recipes: benchmark ranks alike but for noise, changed
    ranks otherwise, and few has a third of the networks."""
    folder = tmp_path_factory.mktemp("proxies")
    random = np.random.default_rng(0)
    truth = random.normal(90, 2, len(CELLS))
    long = [
        pd.DataFrame({"index": CELLS, "arch": [NAS_BENCH_201.arch_at(cell) for cell in CELLS], "seed": seed,
                      "accuracy": (truth + random.normal(0, 0.3, len(CELLS))).clip(0, 100)})
        for seed in SEEDS
    ]  # fmt: skip
    pd.concat(long).to_csv(folder / "long.csv", index=False)
    noisy = {
        "benchmark": truth - 30 + random.normal(0, 0.5, (3, len(CELLS))),
        "changed": truth - 30 + random.normal(0, 2.5, len(CELLS)) + random.normal(0, 0.5, (3, len(CELLS))),
    }
    parts = [records(name, values.T, CELLS) for name, values in noisy.items()]
    parts.append(records("few", noisy["benchmark"].T[::3] + random.normal(0, 0.1, (len(CELLS[::3]), 3)), CELLS[::3]))
    varied = records("benchmark", noisy["changed"].T[:40], CELLS[:40], "another budget")
    searched = records("own_rate_search", noisy["changed"].T, CELLS)
    (folder / "digits").mkdir()
    path = folder / "digits" / "runs.parquet"
    pd.concat([*parts, varied, searched], ignore_index=True).to_parquet(path)
    return folder / "long.csv", path


def settings(original: Path, retrained: Path, *more: str) -> Settings:
    quick = ("analysis.bootstrap_draws=200", "analysis.null_draws=60")
    return compose(f"original={original}", f"retrained={retrained}", *quick, *more)


def test_the_better_proxy_is_told_from_the_worse(sources: tuple[Path, Path], tmp_path: Path) -> None:
    found = findings.judge(settings(*sources))
    assert (found.long, found.cheap, found.control) == ("long", "digits", "benchmark")
    rows = found.rankings.set_index(["recipe", "top_percent"])
    assert set(rows.index.get_level_values(0)) == {"benchmark", "changed", "few"}  # searches are no recipes
    long = pd.read_csv(sources[0]).groupby("index")["accuracy"].mean()
    frame = pd.read_parquet(sources[1])
    for name in ("benchmark", "changed", "few"):
        there = frame[(frame["recipe"] == name) & (frame["config_hash"] == "a")]
        mean = there.groupby("cell")["test_accuracy"].mean()
        expected = stats.kendalltau(long[mean.index], mean).statistic
        assert rows.loc[(name, 100), "kendall_tau"] == pytest.approx(expected)
        assert rows.loc[(name, 100), "cells"] == len(mean)
    assert rows.loc[("changed", 100), "over_control_high"] < 0
    assert rows.loc[("changed", 100), "p_holm"] < 0.15  # of 60 draws
    assert rows.loc[("benchmark", 100), "p_holm"] > 0.15
    assert rows.loc[("benchmark", 100), "kendall_tau"] == pytest.approx(
        rows.loc[("benchmark", 100), "tau_ceiling"], abs=0.08
    )
    assert abs(rows.loc[("few", 100), "over_control"]) < 0.1
    told = " ".join(report.statements(found))
    assert "changed is a worse proxy than benchmark beyond doubt" in told
    path = report.write(found, tmp_path, {"original": "a|b"})
    assert "figures/proxies.png" in (path / "report.md").read_text()
    assert len(pd.read_csv(tmp_path / "tables" / "proxies.csv")) == len(found.rankings)


def test_rates_of_a_published_table_are_recipes_too(tmp_path: Path) -> None:
    published_tables.write_nas_hpo_bench(tmp_path / "nhb", 0.7, batch_sizes=(256,), every=9)
    recipes = findings.read_recipes(tmp_path / "nhb", settings(tmp_path / "long.csv", tmp_path / "nhb"))
    assert set(recipes) == {"rate 0.1", "paper's rule", "own rate"}
    assert all(len(recipe.runs) == len(recipes["rate 0.1"].runs) for recipe in recipes.values())


def test_sources_that_have_too_little_in_common_are_told(
    sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(sources[0])
    table[table["index"].isin(CELLS[:5])].to_csv(tmp_path / "five.csv", index=False)
    with pytest.raises(NasRetrainError, match=r"no recipe with more than 8 networks in common.*benchmark has 5"):
        STUDY.analyse(Records((), StoredRuns.of([])), settings(tmp_path / "five.csv", sources[1]))
    assert f"rank the networks of {tmp_path / 'five.csv'}" in capsys.readouterr().err
    pd.read_parquet(sources[1]).drop(columns="in_degree").to_parquet(tmp_path / "other.parquet")
    with pytest.raises(NasRetrainError, match="no column in_degree"):
        findings.judge(settings(sources[0], tmp_path / "other.parquet"))
