"""The committed reference results: tables and findings say what the committed records say, computed another way."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "reference" / "201" / "fashion_mnist"
TABLES = FOLDER / "whose_ranking" / "tables"
RECIPES = ("benchmark", "tuned_rate", "architecture_aware", "learning_rate_only", "initialisation_only")

WITH_CONSTANTS = 131
"""The one cell of the 300 whose network has constant parts (tests/test_plan.py)."""


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return pd.read_parquet(FOLDER / "runs.parquet")


@pytest.fixture(scope="module")
def means(records: pd.DataFrame) -> pd.DataFrame:
    """Each recipe's mean accuracy by cell, with the epochs and base rate that most cells were trained with."""
    own = records[records["recipe"] == "own_rate"]
    columns = {"own_rate": own.groupby("cell")["test_accuracy"].mean()}
    for recipe in RECIPES:
        part = records[records["recipe"] == recipe]
        commonest = part["config_hash"].value_counts().idxmax()
        # Networks that have parts of no input have a hash of their own; the sensitivity does not vary this one.
        alone = (part["cell"] == WITH_CONSTANTS) & (part["epochs"] == 8)
        columns[recipe] = part[(part["config_hash"] == commonest) | alone].groupby("cell")["test_accuracy"].mean()
    return pd.DataFrame(columns)


def test_the_run_has_every_training_once(records: pd.DataFrame, means: pd.DataFrame) -> None:
    assert len(records) == 8454
    assert not records.duplicated(["recipe", "network_class", "seed", "config_hash"]).any()
    assert means.notna().sum().to_dict() == {"own_rate": 100} | dict.fromkeys(RECIPES, 300)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 10e6


def test_rankings_and_regrets_are_those_of_the_records(means: pd.DataFrame) -> None:
    both = means.dropna()
    rankings = pd.read_csv(TABLES / "rankings.csv").set_index(["recipe", "top_percent"])
    regret = pd.read_csv(TABLES / "regret.csv").set_index("recipe")
    best = both.nlargest(20, "own_rate")
    for recipe in RECIPES:
        tau = stats.kendalltau(both["own_rate"], both[recipe]).statistic
        assert rankings.loc[(recipe, 100), "kendall_tau"] == pytest.approx(tau, abs=1e-5)
        tau = stats.kendalltau(best["own_rate"], best[recipe]).statistic
        assert rankings.loc[(recipe, 20), "kendall_tau"] == pytest.approx(tau, abs=1e-5)
        assert regret.loc[recipe, "mean_regret"] == pytest.approx((both["own_rate"] - both[recipe]).mean(), abs=1e-5)


def test_own_rates_are_the_best_on_validation_images(records: pd.DataFrame) -> None:
    search = records[records["recipe"] == "own_rate_search"]
    accuracy = search.groupby(["cell", "learning_rate"])["test_accuracy"].mean()
    best = accuracy[accuracy == accuracy.groupby("cell").transform("max")].reset_index().groupby("cell").last()
    classes = pd.read_csv(TABLES / "classes.csv").set_index("cell")
    assert best["learning_rate"].to_dict() == classes["own_rate"].to_dict()
    trained = records[records["recipe"] == "own_rate"].groupby("cell")["learning_rate"].first()
    assert trained.to_dict() == classes["own_rate"].to_dict()


def test_sensitivity_to_the_epochs_is_that_of_the_records(records: pd.DataFrame) -> None:
    table = pd.read_csv(TABLES / "sensitivity.csv")
    table = table[(table["recipe"] == "architecture_aware") & (table["control"] == "benchmark")]
    gains = table[table["varied"] == "epochs"].set_index("value")["mean_gain"]
    assert len(gains) == 4
    assert gains.index.max() == 8 * gains.index.min()
    for epochs in gains.index.drop(8):
        part = records[(records["epochs"] == epochs) & records["recipe"].isin(RECIPES)].pivot_table(
            index="cell", columns="recipe", values="test_accuracy"
        )
        assert len(part) == 60
        assert gains[epochs] == pytest.approx((part["architecture_aware"] - part["benchmark"]).mean(), abs=1e-4)


def test_the_findings_say_what_the_tables_say(means: pd.DataFrame) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "findings.md").read_text(), re.MULTILINE
    )
    rankings = pd.read_csv(TABLES / "rankings.csv").set_index(["recipe", "top_percent"])
    regret = pd.read_csv(TABLES / "regret.csv").set_index("recipe")
    assert {row[0] for row in rows} == set(regret.index)
    for recipe, accuracy, tau, points in rows:
        assert accuracy.strip() == f"{means[recipe].mean():.2f}"
        row = rankings.loc[(recipe, 100)]
        assert tau.strip() == f"{row['kendall_tau']:.2f} [{row['tau_low']:.2f}, {row['tau_high']:.2f}]"
        row = regret.loc[recipe]
        assert points.strip() == f"{row['mean_regret']:.2f} [{row['regret_low']:.2f}, {row['regret_high']:.2f}]"
