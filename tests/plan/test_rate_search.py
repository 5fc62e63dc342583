"""The base-rate search: the paper's choice from a grid, and its record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import plan
from nas_retrain.plan.rate_search import GridPoint, GridSearch, finished_search, write_search
from nas_retrain.trainings.store import RunRecord, StoredRuns
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.plan.test_plan import as_stored

losses = st.one_of(st.sampled_from([0.5, 1.0, math.inf]), st.floats(0.0, 10.0))


@given(st.lists(st.lists(losses, min_size=3, max_size=3), min_size=1, max_size=8))
def test_the_choice_is_the_largest_rate_of_smallest_mean_loss(by_rate: list[list[float]]) -> None:
    grid = tuple(GridPoint(0.1 * 2**place, tuple(values)) for place, values in enumerate(by_rate))
    chosen = GridSearch(grid).chosen
    for point in grid:
        assert chosen.mean_loss <= point.mean_loss
        if point.mean_loss == chosen.mean_loss:
            assert chosen.learning_rate >= point.learning_rate


def stored_search(settings_losses: dict[float, float], search: list[Training]) -> list[RunRecord]:
    return [
        replace(
            as_stored(training),
            train_loss=settings_losses.get(training.learning_rate or 0.0),
            status="finished" if training.learning_rate in settings_losses else "diverged",
        )
        for training in search
    ]


def test_a_search_is_finished_when_every_training_is_stored(make_settings: MakeSettings) -> None:
    settings = make_settings("base_rate.points=4")
    search = plan.search_trainings(settings)
    rates = settings.base_rate.grid
    stored = stored_search({rates[0]: 2.0, rates[1]: 1.0, rates[2]: 1.5}, search)
    for missing in range(len(stored)):
        assert finished_search(search, StoredRuns.of(stored[:missing] + stored[missing + 1 :])) is None
    finished = finished_search(search, StoredRuns.of(stored))
    assert finished is not None
    assert finished.chosen.learning_rate == rates[1]
    assert not finished.at_edge
    assert [point.mean_loss for point in finished.grid] == [2.0, 1.0, 1.5, math.inf]


def test_a_choice_at_the_edge_is_known(make_settings: MakeSettings) -> None:
    settings = make_settings("base_rate.points=3")
    search = plan.search_trainings(settings)
    rates = settings.base_rate.grid
    finished = finished_search(
        search, StoredRuns.of(stored_search({rates[0]: 3.0, rates[1]: 2.0, rates[2]: 1.0}, search))
    )
    assert finished is not None
    assert finished.at_edge


@pytest.mark.parametrize("loss", [0.5, math.inf])
def test_the_whole_grid_is_written_and_drawn(tmp_path: Path, loss: float) -> None:
    grid = (GridPoint(0.1, (1.0, 1.2)), GridPoint(1.0, (loss, 0.6)))
    write_search(GridSearch(grid), tmp_path, "base_rate")
    written = json.loads((tmp_path / "base_rate.json").read_text())
    assert written["base_rate"] == (1.0 if math.isfinite(loss) else 0.1)
    assert [point["learning_rate"] for point in written["grid"]] == [0.1, 1.0]
    assert written["grid"][1]["train_losses"] == [loss if math.isfinite(loss) else None, 0.6]
    assert (tmp_path / "figures" / "base_rate.png").read_bytes().startswith(b"\x89PNG")


SEARCH = GridSearch((GridPoint(0.1, (1.0,)), GridPoint(1.0, (2.0,))))


@pytest.mark.parametrize("content", [b"", bytes(500), b"[]", b"null", b'{"base_rate": ', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_made_anew_from_the_records(tmp_path: Path, content: bytes) -> None:
    write_search(SEARCH, tmp_path, "base_rate")
    whole = (tmp_path / "base_rate.json").read_bytes()
    (tmp_path / "base_rate.json").write_bytes(content)
    write_search(SEARCH, tmp_path, "base_rate")
    assert (tmp_path / "base_rate.json").read_bytes() == whole


def test_what_a_newer_version_wrote_beside_stays_and_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "base_rate.json"
    path.write_text(json.dumps({"base_rate": 7.0, "novelty": {"on": True}}))
    write_search(SEARCH, tmp_path, "base_rate")
    written = json.loads(path.read_text())
    assert written["novelty"] == {"on": True}
    assert written["base_rate"] == 0.1
    path.unlink()
    path.mkdir()
    with pytest.raises(NasRetrainError, match=r"Cannot write .*base_rate\.json"):
        write_search(SEARCH, tmp_path, "base_rate")
