"""Search algorithms of a user's own, and Optuna's samplers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from nas_retrain.errors import NasRetrainError
from nas_retrain.studies.search_algorithms import asked, replay, report
from nas_retrain.studies.search_algorithms.algorithms import ALGORITHMS, random_search
from tests.studies.search_algorithms.test_algorithms import alone, chosen, separable, small_space

OWN = """
def drawn(space, generator):
    return (lambda: int(generator.integers(space.cells))), (lambda cell, accuracy: None)


def climber(space, generator):
    known = {}

    def ask():
        if not known:
            return int(generator.integers(space.cells))
        best = max(known, key=known.get)
        untried = [int(cell) for cell in space.neighbours[best] if int(cell) not in known]
        return untried[0] if untried else best

    def tell(cell, accuracy):
        known[cell] = accuracy

    return ask, tell


def far(space, generator):
    return (lambda: space.cells), (lambda cell, accuracy: None)


def broken(space, generator):
    raise KeyError("oops")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Where the functions above are."""
    (tmp_path / "mine.py").write_text(OWN)
    return str(tmp_path / "mine.py")


def final_regret(name: str) -> float:
    """Mean regret after 40 trainings in a space of 81 cells."""
    space, settings = small_space(), chosen()
    table = alone(separable(space))
    seen = np.broadcast_to(table.accuracy, (settings.searches, space.cells))
    queries = asked.algorithm(name)(seen, space, settings, np.random.default_rng(0))
    return float((table.accuracy.max() - table.accuracy[queries].max(1)).mean())


def test_a_search_of_one_s_own_is_told_what_it_asked_for(own: str) -> None:
    assert final_regret(f"{own}:climber") == 0  # a separable accuracy has one hill, which 40 trainings climb
    assert final_regret(f"{own}:drawn") > 0


def test_the_same_seed_gives_the_same_searches_and_each_search_its_own_draws(own: str) -> None:
    space, settings = small_space(), chosen()
    seen = np.zeros((settings.searches, space.cells))
    drawn = asked.algorithm(f"{own}:drawn")
    one, again = (drawn(seen, space, settings, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert len(np.unique(one, axis=0)) == settings.searches


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_samplers_search() -> None:
    random, parzen = (final_regret(f"optuna:{name}") for name in ("RandomSampler", "TPESampler"))
    assert parzen < random


def test_others_are_replayed_after_ours_and_change_none_of_them(own: str) -> None:
    space = small_space()
    table = alone(separable(space))
    plain, more = chosen(), chosen(others=[f"{own}:climber"])
    ours = replay.play(table, space, plain, np.random.default_rng(0))
    found = replay.play(table, space, more, np.random.default_rng(0))
    assert list(replay.algorithms(more)) == [*ALGORITHMS, "climber"]
    assert found.shape[0] == len(ALGORITHMS) + 1
    np.testing.assert_array_equal(found[:-1], ours)
    outcome = replay.outcome((table, table), (found, found))
    assert outcome.superiority.shape[-1] == len(outcome.pairs) == 15


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("{}:far", r"ask\(\) gave 81; an official index from 0 to 80 was expected"),
        ("{}:broken", "broken: KeyError: 'oops'"),
        ("{}:absent", "has no function absent"),
        ("no_such_module:search", "cannot be imported"),
        ("optuna:MagicSampler", "Optuna has no sampler MagicSampler. It has .*TPESampler"),
    ],
)
def test_what_cannot_search_is_named(own: str, name: str, told: str) -> None:
    with pytest.raises(NasRetrainError, match=rf"^algorithms\.others=.*{told}"):
        final_regret(name.replace("{}", own))


def test_two_algorithms_of_one_name_are_refused(own: str, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(OWN)
    with pytest.raises(NasRetrainError, match="two algorithms are called the same"):
        replay.algorithms(chosen(others=[f"{own}:drawn", f"{tmp_path}/other.py:drawn"]))


def test_without_optuna_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(NasRetrainError, match="pip install optuna"):
        asked.algorithm("optuna:TPESampler")


SLOW = """
import time


def slow(space, generator):
    known = []

    def ask():
        time.sleep(0.001 * len(known))  # as a Gaussian process, the slower the more it knows
        return int(generator.integers(space.cells))

    return ask, (lambda cell, accuracy: known.append(cell))
"""


def test_what_searches_take_is_told_from_below_before_they_start(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    space, name = small_space(), f"{tmp_path}/slow.py:slow"
    settings, searches = chosen(queries=200, others=[name, f"{own}:drawn"]), 1000
    monkeypatch.setattr(asked, "_TRIED_SECONDS", 0.1)
    truly = searches * 0.001 * sum(range(200)) / 3600
    assert 0.05 * truly < asked.hours_at_least(asked.algorithm(name), space, settings, searches) < 1.2 * truly
    report._tell_slow_ones(space, settings, pairs=50)
    (told,) = capsys.readouterr().err.splitlines()
    assert re.match(r"slow will take at least \d\.\d hours for 3,000 searches of 200 trainings; algorithms\.null", told)


def test_a_search_of_few_trainings_is_tried_whole(own: str) -> None:
    settings = chosen(queries=1)
    assert 0 < asked.hours_at_least(asked.algorithm(f"{own}:drawn"), small_space(), settings, 1) < 0.001


def test_ours_are_found_by_no_import_path() -> None:
    assert ALGORITHMS["random search"] is random_search
    assert list(replay.algorithms(chosen())) == list(ALGORITHMS)
