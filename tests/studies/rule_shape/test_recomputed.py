"""The study's tables say what its records say, computed another way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nas_retrain.commands.command_line import compose
from nas_retrain.plan.study import Records
from nas_retrain.settings import Settings
from nas_retrain.statistics.rankings import FEWEST
from nas_retrain.studies.rule_shape import findings
from nas_retrain.studies.rule_shape.study import STUDY
from tests.studies.rule_shape import recomputed
from tests.studies.rule_shape.test_findings import SMALL, made_up


@pytest.fixture(scope="module")
def settings() -> Settings:
    return compose(*SMALL)


@pytest.fixture(scope="module")
def records(settings: Settings) -> Records:
    return made_up(settings, {"batch": 0.5, "none": 1.0}, better_by=1.0)


@pytest.fixture(scope="module")
def within() -> dict[str, float]:
    """How nearly numbers agree that are the same but for the order of sums; in files they have six digits."""
    return {"abs": 1e-9}


@pytest.fixture(scope="module")
def frame(records: Records) -> pd.DataFrame:
    return recomputed.parts(records.stored.frame())


@pytest.fixture(scope="module")
def tables(records: Records, settings: Settings) -> dict[str, pd.DataFrame]:
    found = STUDY.analyse(records, settings)
    assert isinstance(found, findings.Findings)
    return found.tables


@pytest.mark.parametrize("name", recomputed.HYPOTHESES)
def test_hypotheses_are_scipys_t_tests(
    name: str, frame: pd.DataFrame, tables: dict[str, pd.DataFrame], settings: Settings, within: dict[str, float]
) -> None:
    row = tables["hypotheses"].set_index("hypothesis").loc[name]
    test = recomputed.difference(frame, *recomputed.HYPOTHESES[name])
    interval = test.confidence_interval(0.95)
    assert row["networks"] == test.df + 1
    assert row["difference_low"] == pytest.approx(interval.low, **within)
    assert row["difference_high"] == pytest.approx(interval.high, **within)
    narrow = test.confidence_interval(0.9)
    assert row["equivalent"] == (-row["margin"] < narrow.low and narrow.high < row["margin"])
    # Two tests of one mean, which agree within what so many random signs tell.
    assert settings.rule_shape is not None
    assert row["p_value"] == pytest.approx(test.pvalue, abs=2 / settings.rule_shape.draws**0.5)


def test_the_ranking_is_that_of_scipys_tau(frame: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    row = tables["hypotheses"].set_index("hypothesis").loc["H5"]
    differences = recomputed.ranking_difference(frame, 30)
    assert abs(row["difference"] - differences.mean()) < 4 * differences.std() + 0.002


Place = tuple[str, str, str]
"""Of a surface: its normalisation, part and arm."""

SURFACES: list[Place] = [
    ("batch", "surface", "stock"),
    ("batch", "surface", "source"),
    ("none", "plain_surface", "stock"),
    ("none", "plain_surface", "target"),
]


@pytest.mark.parametrize("place", SURFACES)
def test_surfaces_are_read_as_plain_loops_read_them(
    place: Place, frame: pd.DataFrame, tables: dict[str, pd.DataFrame], within: dict[str, float]
) -> None:
    normalisation, part, arm = place
    archs, rates, accuracy = recomputed.surface(frame, part, arm)
    factors = np.array([recomputed.log_factor(arch) for arch in archs])

    def row(table: str) -> pd.DataFrame:
        of = tables[table]
        return of[(of["normalisation"] == normalisation) & (of["initialisation"] == arm)]

    assert row("attainable")["own"].item() == pytest.approx(recomputed.own_variance(accuracy), **within)
    exponents = row("exponents").set_index("exponent")
    for exponent in (0, 1):
        expected = recomputed.best_scalar(rates, accuracy.mean(2), exponent * factors)
        assert exponents.loc[exponent, "scalar"] == pytest.approx(expected, rel=0.03)  # the place of a flat maximum
    gains = recomputed.gain(rates, accuracy.mean(2), factors, 100)
    assert abs(exponents.loc[1, "gain"] - gains.mean()) < 4 * gains.std() + 0.01


def test_sizes_are_read_as_plain_loops_read_them(frame: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    own, *larger = tables["ladder"].itertuples()
    assert len(larger) == 3
    parts = {own: "surface"} | {row: f"ladder_{row.image_size}_{row.channels}" for row in larger}
    of_ladder = frame[frame["part"].str.startswith("ladder_")]
    rates = of_ladder["learning_rate"].round(6)
    kept = frame["cell"].isin(of_ladder["cell"]) & frame["learning_rate"].round(6).between(rates.min(), rates.max())
    for row, part in parts.items():
        archs, tried, accuracy = recomputed.surface(frame[kept], part, "stock")
        assert (row.networks, row.seeds) == (len(archs), accuracy.shape[2])
        factors = np.array([recomputed.log_factor(arch) for arch in archs])
        gains = recomputed.gain(tried, accuracy.mean(2), factors, 100)
        assert abs(row.over_one_rate - gains.mean()) < 4 * gains.std() * (2 / 100) ** 0.5 + 0.01
        random = np.random.default_rng(5)
        permuted = [recomputed.gain(tried, accuracy.mean(2), random.permutation(factors), 4).mean() for _ in range(50)]
        spread = 4 * np.std(permuted) / 50**0.5 + 0.02
        assert abs(row.over_permuted - (gains.mean() - np.mean(permuted))) < spread


@pytest.mark.parametrize("place", SURFACES)
def test_what_orders_the_rates_that_suit_networks(
    place: Place, frame: pd.DataFrame, tables: dict[str, pd.DataFrame], within: dict[str, float]
) -> None:
    normalisation, part, arm = place
    archs, rates, accuracy = recomputed.surface(frame, part, arm)
    suiting = recomputed.suiting_rates(rates, accuracy)
    table = tables["correlations"].set_index(["normalisation", "initialisation", "compared"])
    for compared, of in (
        ("the rule's factor", recomputed.log_factor), ("edges without weights", recomputed.edges_without_weights),
    ):  # fmt: skip
        row, values = table.loc[(normalisation, arm, compared)], [of(arch) for arch in archs]
        for column, rate in zip(("best_rate", "largest_rate"), suiting, strict=True):
            expected = stats.spearmanr(values, rate).statistic if len(set(rate)) > 1 else np.nan
            assert row[column] == pytest.approx(expected, nan_ok=True, **within)
            assert not row[column] < row[f"{column}_low"]
            assert not row[column] > row[f"{column}_high"]


def test_differences_by_what_cells_are_made_of(
    frame: pd.DataFrame, tables: dict[str, pd.DataFrame], within: dict[str, float]
) -> None:
    ours = frame[frame["part"] == "plain_confirmation"]
    edges = ours["arch"].map(recomputed.edges_without_weights)
    table = tables["by_edges"].set_index(["part", "over", "edges"])
    for number, of_number in ours.groupby(edges):
        for over in ("one_rate", "permuted"):
            row = table.loc[("plain_confirmation", over, number)]
            assert row["networks"] == of_number["cell"].nunique()
            if row["networks"] >= FEWEST:
                test = recomputed.difference(of_number, "plain_confirmation", ["target_rule"], [f"target_{over}"])
                interval = test.confidence_interval(0.95)
                assert row["difference_low"] == pytest.approx(interval.low, **within)
                assert row["difference_high"] == pytest.approx(interval.high, **within)


@pytest.mark.parametrize("arm", ["stock", "source"])
@pytest.mark.parametrize("epochs", [1, 2, 8])
def test_base_rates_are_those_of_all_searches_with_three_seeds(
    arm: str, epochs: int, frame: pd.DataFrame, tables: dict[str, pd.DataFrame], settings: Settings
) -> None:
    table = tables["base_rates"]
    table = table[(table["initialisation"] == arm) & (table["epochs"] == epochs)]
    shares = recomputed.shares_of_searches(frame, arm, epochs)
    assert settings.rule_shape is not None
    noise = 5 / settings.rule_shape.draws**0.5 / 2
    for _, row in table.iterrows():
        assert row["share"] == pytest.approx(shares.get(row["learning_rate"], 0.0), abs=noise)


@pytest.mark.parametrize("decay", ["0.0005", "0.02"])
@pytest.mark.parametrize("arm", ["stock", "source"])
def test_longer_trainings_are_compared_network_by_network(
    decay: str, arm: str, frame: pd.DataFrame, tables: dict[str, pd.DataFrame], within: dict[str, float]
) -> None:
    table = tables["longer"].set_index(["part", "initialisation"])
    test = recomputed.difference(frame, f"longer_{decay}", [f"{arm}_rule"], [f"{arm}_one_rate"])
    row = table.loc[(f"longer_{decay}", arm)]
    assert row["difference_low"] == pytest.approx(test.confidence_interval(0.95).low, **within)


def test_the_confirmations_rates_are_those_that_the_surface_says(frame: pd.DataFrame) -> None:
    """Each network's own under the rule, one for all, and a permutation of the rule's with every seed."""
    archs, rates, accuracy = recomputed.surface(frame, "surface", "stock")
    factors = np.array([recomputed.log_factor(arch) for arch in archs])
    ours = frame[frame["part"] == "confirmation"]
    one = ours.loc[ours["arm"] == "stock_one_rate", "learning_rate"].unique()
    assert one == pytest.approx([recomputed.best_scalar(rates, accuracy.mean(2), 0 * factors)], rel=0.03)
    rule = ours[ours["arm"] == "stock_rule"]
    scalar = recomputed.best_scalar(rates, accuracy.mean(2), factors)
    expected = [scalar * 2 ** (recomputed.log_factor(arch) - factors.mean()) for arch in rule["arch"]]
    assert rule["learning_rate"].tolist() == pytest.approx(expected, rel=0.03)
    permuted = ours[ours["arm"] == "stock_permuted"]
    for _, of_seed in permuted.groupby("seed"):
        relative = np.sort(np.log2(of_seed["learning_rate"]))
        its = np.sort([recomputed.log_factor(arch) for arch in of_seed["arch"]])
        assert relative - relative.mean() == pytest.approx(its - its.mean(), abs=0.01)
        assert of_seed["learning_rate"].tolist() != rule["learning_rate"].tolist()[: len(of_seed)]
