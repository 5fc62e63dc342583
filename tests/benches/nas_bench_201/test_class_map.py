"""Every cell gets the accuracy of the record of its own training, however its recipe initialises networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas_retrain.plan import plan
from nas_retrain.statistics import accuracies as benchmark
from nas_retrain.statistics import noise, rankings
from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.studies.comparison import tables
from nas_retrain.studies.search_algorithms import replay, transfer
from tests.conftest import MakeSettings
from tests.strategies import NAS_BENCH_201

CONVENTIONS = (None, "source", "target")
NETWORKS = np.array(NAS_BENCH_201.training_classes(None))
CELLS = np.arange(len(NETWORKS))


def records(make_settings: MakeSettings, in_degree: str | None, scatter: float = 0.1) -> pd.DataFrame:
    """What a whole retraining would leave: each training's accuracy is made up from its network and initialisation."""
    recipe = "benchmark" if in_degree is None else "initialisation_only"
    chosen = () if in_degree is None else (f"recipes.{recipe}.in_degree={in_degree}",)
    settings = make_settings("cells=all", f"recipe=[{recipe}]", "seeds=[1,2]", *chosen)
    random = np.random.default_rng(1)
    planned = plan.recipe_trainings(settings, 0.5)
    return pd.DataFrame(
        {
            "dataset": "digits",
            "recipe": recipe,
            "config_hash": [training.config_hash for training in planned],
            "cell": [training.cell for training in planned],
            "seed": [training.seed for training in planned],
            "in_degree": in_degree,
            "test_accuracy": [
                20 + training.cell / 250 + scatter * random.normal() if training.learning_rate else 10.0
                for training in planned
            ],
        }
    )


@pytest.mark.parametrize("in_degree", CONVENTIONS)
def test_a_cell_s_accuracy_is_that_of_its_own_training(
    make_settings: MakeSettings, tmp_path: Path, in_degree: str | None
) -> None:
    frame = records(make_settings, in_degree)
    frame.to_parquet(tmp_path / "runs.parquet")
    found = benchmark.read(tmp_path / "runs.parquet", "digits", NAS_BENCH_201, recipe=frame["recipe"][0])
    trained = NAS_BENCH_201.training_classes(in_degree)  # type: ignore[arg-type]
    expected = frame.groupby("cell")["test_accuracy"].mean()[list(trained)].to_numpy()
    table = benchmark.per_cell(found)
    assert table.index.tolist() == CELLS.tolist()
    np.testing.assert_array_equal(table["accuracy"], expected)
    assert table["unit"].nunique() == len(set(trained)) == frame["cell"].nunique()

    every_cell = Accuracies("table", pd.DataFrame({"index": CELLS, "seed": 0, "accuracy": 50.0}), NAS_BENCH_201)
    comparison = rankings.compare(every_cell, found)
    np.testing.assert_array_equal(comparison.cells, CELLS)
    np.testing.assert_array_equal(comparison.second.accuracy, expected)
    np.testing.assert_array_equal(comparison.classes, NETWORKS)
    np.testing.assert_array_equal(replay.table(found).accuracy, expected)
    judged = transfer.network_classes(every_cell, found)
    np.testing.assert_allclose(judged["accuracy_retrained"], expected[judged["cell"]])
    assert (judged["trainings_retrained"] == 2).all()
    assert len(judged) == len({one for one in trained if NAS_BENCH_201.graph_at(one).connected})


@pytest.mark.parametrize("one", CONVENTIONS)
@pytest.mark.parametrize("other", CONVENTIONS)
def test_recipes_are_compared_on_every_pair_of_trainings_that_a_cell_has(
    make_settings: MakeSettings, one: str | None, other: str | None
) -> None:
    sides = [
        benchmark.from_runs(records(make_settings, convention), str(convention), NAS_BENCH_201)
        for convention in (one, other)
    ]
    comparison = rankings.compare(*sides)
    maps = [np.array(NAS_BENCH_201.training_classes(convention)) for convention in (one, other)]  # type: ignore[arg-type]
    pairs = set(zip(*(map_.tolist() for map_ in maps), strict=True))
    assert sorted(zip(*(map_[comparison.cells].tolist() for map_ in maps), strict=True)) == sorted(pairs)
    for side, map_, accuracies in zip((comparison.first, comparison.second), maps, sides, strict=True):
        means = accuracies.runs.groupby("index")["accuracy"].mean()
        np.testing.assert_allclose(side.accuracy, means[map_[comparison.cells]])
        same = side.unit[:, None] == side.unit[None, :500]
        np.testing.assert_array_equal(same, map_[comparison.cells][:, None] == map_[comparison.cells][None, :500])


def test_members_that_are_initialised_differently_are_no_replicates(make_settings: MakeSettings) -> None:
    exact = benchmark.from_runs(records(make_settings, "target", scatter=0.1), "target", NAS_BENCH_201)
    level = noise.noise_level(exact)
    assert level is not None
    assert level.deviation == pytest.approx(0.1, rel=0.05)


def test_attribution_counts_each_arm_s_own_trainings(make_settings: MakeSettings) -> None:
    arms = {
        name: benchmark.from_runs(records(make_settings, convention), name, NAS_BENCH_201)
        for name, convention in (("benchmark", None), ("source", "source"), ("target", "target"))
    }
    table = tables.attribution(arms, "benchmark").set_index("recipe")
    trained = np.array(NAS_BENCH_201.training_classes("target"))
    cells = np.unique(trained)
    means = {name: benchmark.per_cell(arm)["accuracy"].to_numpy()[cells] for name, arm in arms.items()}
    for name in ("source", "target"):
        assert table.loc[name, "cells"] == len(cells)
        assert table.loc[name, "mean_gain"] == pytest.approx((means[name] - means["benchmark"]).mean())
