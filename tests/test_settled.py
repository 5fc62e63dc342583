"""What the study of the rule's shape has found, computed another way from its committed records."""

from __future__ import annotations

import pandas as pd
import pytest

from nas_retrain.commands.command_line import ROOT, compose
from nas_retrain.settings import Settings
from tests.studies.rule_shape import recomputed, test_recomputed

SIX_DIGITS = {"rel": 1e-5}
"""What files have of numbers."""

FOLDER = ROOT / "results" / "reference" / "201" / "settled"


@pytest.fixture(scope="module")
def settings() -> Settings:
    return compose("profile=rule_shape", "dataset=fashion_mnist")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return recomputed.parts(pd.read_parquet(FOLDER / "runs.parquet"))


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in (FOLDER / "rule_shape" / "tables").glob("*.csv")}


@pytest.mark.parametrize("place", test_recomputed.SURFACES)
def test_surfaces(place: test_recomputed.Place, frame: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    test_recomputed.test_surfaces_are_read_as_plain_loops_read_them(place, frame, tables, SIX_DIGITS)


@pytest.mark.parametrize("name", recomputed.HYPOTHESES)
def test_hypotheses(name: str, frame: pd.DataFrame, tables: dict[str, pd.DataFrame], settings: Settings) -> None:
    test_recomputed.test_hypotheses_are_scipys_t_tests(name, frame, tables, settings, SIX_DIGITS)


@pytest.mark.parametrize("place", test_recomputed.SURFACES)
def test_rates_that_suit_networks(
    place: test_recomputed.Place, frame: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> None:
    test_recomputed.test_what_orders_the_rates_that_suit_networks(place, frame, tables, SIX_DIGITS)


def test_what_cells_are_made_of(frame: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    test_recomputed.test_differences_by_what_cells_are_made_of(frame, tables, SIX_DIGITS)


@pytest.mark.parametrize("decay", ["0.0005", "0.02"])
@pytest.mark.parametrize("arm", ["stock", "source"])
def test_longer_trainings(decay: str, arm: str, frame: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    test_recomputed.test_longer_trainings_are_compared_network_by_network(decay, arm, frame, tables, SIX_DIGITS)


def test_larger_images(frame: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    test_recomputed.test_sizes_are_read_as_plain_loops_read_them(frame, tables)


def test_the_ranking(frame: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    test_recomputed.test_the_ranking_is_that_of_scipys_tau(frame, tables)


def test_the_confirmations_rates(frame: pd.DataFrame) -> None:
    test_recomputed.test_the_confirmations_rates_are_those_that_the_surface_says(frame)


@pytest.mark.parametrize("arm", ["stock", "source"])
@pytest.mark.parametrize("epochs", [1, 2, 8])
def test_base_rates(
    arm: str, epochs: int, frame: pd.DataFrame, tables: dict[str, pd.DataFrame], settings: Settings
) -> None:
    test_recomputed.test_base_rates_are_those_of_all_searches_with_three_seeds(arm, epochs, frame, tables, settings)


def test_what_is_there_is_what_was_planned(frame: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    wanted = tables["trainings"].set_index("part")
    assert frame["part"].value_counts().to_dict() == wanted.loc[wanted["stored"] > 0, "stored"].to_dict()
    assert wanted["wanted"].sum() == 34_100
