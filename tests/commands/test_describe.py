"""A plan in words says what is searched, and for which recipes."""

from __future__ import annotations

import pytest

from nas_retrain.commands import describe
from nas_retrain.plan.plan import make_plan
from nas_retrain.trainings.store import StoredRuns
from tests.conftest import MakeSettings

OWN = "own_rate={classes: 2, lowest: 0.01, highest: 0.1, points: 3, seeds: [11], fresh_seeds: [111], "
OWN += "validation_images: 100}"


@pytest.mark.parametrize(
    ("recipes", "base", "own"),
    [
        ("benchmark", "not needed", False),
        ("benchmark,own_rate", "not needed", True),
        ("own_rate", "not needed", True),
        ("benchmark,architecture_aware", "to be searched", False),
        ("benchmark,tuned_rate", "to be searched", False),
        ("benchmark,tuned_rate,own_rate", "to be searched", True),
    ],
)
def test_only_what_is_searched_is_said_to_be(make_settings: MakeSettings, recipes: str, base: str, own: bool) -> None:
    settings = make_settings(f"recipe=[{recipes}]", OWN, "cells=sample:3")
    said = describe.wanted(make_plan(settings, StoredRuns.of([])), settings)
    (line,) = (line for line in said if line.startswith("  base rate"))
    assert base in line
    assert any(line.startswith("  own rates      to be searched: 3 rates") for line in said) == own


@pytest.mark.parametrize(
    ("recipes", "told"),
    [
        ("benchmark", "6 wanted, 0"),
        ("benchmark,architecture_aware", "18 wanted (with 6 that search learning rates), 0"),
        ("benchmark,tuned_rate,architecture_aware", "30 wanted (with 12 that search learning rates), 0"),
    ],
)
def test_trainings_that_search_are_told_from_those_that_count(
    make_settings: MakeSettings, recipes: str, told: str
) -> None:
    few = ("cells=sample:3", "seeds=[1,2]", "base_rate.points=3", "base_rate.seeds=[1,2]")
    settings = make_settings(f"recipe=[{recipes}]", *few)
    said = describe.wanted(make_plan(settings, StoredRuns.of([])), settings)
    assert any(line.startswith(f"  trainings      {told} stored") for line in said)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ("[0,1]", "2 and the base network"),
        ("[0,0,1,2]", "3 and the base network"),
    ],
)
def test_more_classes_than_cells_are_explained_by_the_base_network(
    make_settings: MakeSettings, cells: str, told: str
) -> None:
    settings = make_settings("recipe=[grid_he]", f"cells={cells}", "seeds=[1]")
    said = describe.wanted(make_plan(settings, StoredRuns.of([])), settings)
    assert f"  cells          {told}" in said
