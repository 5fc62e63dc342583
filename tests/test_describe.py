"""A plan in words says what is searched, and for which recipes."""

from __future__ import annotations

import pytest

from nas_retrain import describe
from nas_retrain.plan import make_plan
from nas_retrain.store import StoredRuns
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
