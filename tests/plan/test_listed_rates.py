"""A recipe whose learning rates a table of the user's own lists."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from nas_retrain.commands.command_line import compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import claims, last_run
from nas_retrain.plan.plan import make_plan
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Training
from tests.strategies import NAS_BENCH_201

CELLS = tuple(sorted(set(NAS_BENCH_201.training_classes(None)))[5:45:8])
RATES = {cell: round(0.01 * (1 + place), 2) for place, cell in enumerate(CELLS)}
LISTED = pd.DataFrame({"index": RATES.keys(), "learning_rate": RATES.values()})


def chosen(table: Path, results: Path, *overrides: str) -> Settings:
    return compose(
        "dataset=digits", "profile=dry", "launcher=local", "recipe=[benchmark]", f"results_dir={results}",
        f"cells=[{','.join(map(str, CELLS))}]", f"recipes.benchmark.learning_rate={table}", *overrides,
    )  # fmt: skip


def planned(settings: Settings) -> list[Training]:
    return make_plan(settings, StoredRuns.of([])).everything


def written(table: pd.DataFrame, path: Path, **how: str) -> Path:
    table.to_csv(path, index=False, **how)  # type: ignore[call-overload]
    return path


def test_each_network_has_the_rate_of_its_row(tmp_path: Path) -> None:
    by_arch = LISTED.assign(arch=[NAS_BENCH_201.arch_at(cell) for cell in CELLS])
    for number, table in enumerate((LISTED, by_arch, by_arch.drop(columns="index"), LISTED.iloc[::-1])):
        trainings = planned(chosen(written(table, tmp_path / f"{number}.csv"), tmp_path))
        assert {training.cell: training.learning_rate for training in trainings} == RATES
        assert len(trainings) == len(CELLS) * 2  # seeds


def test_the_hash_is_of_the_table_s_contents_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = (written(LISTED, tmp_path / name) for name in ("a.csv", "elsewhere/b.csv"))
    other = written(LISTED.replace({"learning_rate": {0.01: 0.011}}), tmp_path / "other.csv")
    hashes = [[one.config_hash for one in planned(chosen(path, tmp_path))] for path in (here, there, other)]
    assert hashes[0] == hashes[1]
    assert not set(hashes[0]) & set(hashes[2])
    settings = chosen(here, tmp_path / "results")
    settings.results_dir.mkdir()
    claims.claim_results_folder(settings)
    claims.claim_results_folder(chosen(there, tmp_path / "results"))
    with pytest.raises(NasRetrainError, match=r"recipes\.benchmark\.learning_rate: table"):
        claims.claim_results_folder(chosen(other, tmp_path / "results"))


def test_a_folder_of_one_rate_for_all_is_not_continued_with_a_table(tmp_path: Path) -> None:
    plain = chosen(written(LISTED, tmp_path / "a.csv"), tmp_path, "recipes.benchmark.learning_rate=0.1")
    claims.claim_results_folder(plain)
    with pytest.raises(NasRetrainError, match=r"recipes\.benchmark\.learning_rate: 0\.1 there, table"):
        claims.claim_results_folder(chosen(tmp_path / "a.csv", tmp_path))


def test_a_table_that_changes_under_a_run_is_told(tmp_path: Path) -> None:
    settings = chosen(written(LISTED, tmp_path / "a.csv"), tmp_path)
    last_run.write(settings)
    assert last_run.read(tmp_path) == settings
    written(LISTED.iloc[:-1], tmp_path / "a.csv")
    with pytest.raises(NasRetrainError, match=r"a\.csv: the table of learning rates has changed"):
        planned(settings)
    (tmp_path / "a.csv").unlink()
    with pytest.raises(NasRetrainError, match=r"a\.csv: the table of learning rates cannot be read"):
        planned(chosen(written(LISTED, tmp_path / "b.csv"), tmp_path).model_copy(update={"recipes": settings.recipes}))


MEMBERS = next(
    (cell, NAS_BENCH_201.training_classes(None)[cell])
    for cell in range(15625)
    if NAS_BENCH_201.training_classes(None)[cell] in CELLS and cell not in CELLS
)

WRONG = {
    "few": (LISTED.iloc[4:], r"cells .* and 1 more are missing"),
    "missing": (LISTED.iloc[2:], rf"cells {CELLS[0]}, {CELLS[1]} are missing"),
    "one missing": (LISTED.iloc[1:], rf"cell {CELLS[0]} is missing"),
    "empty": (LISTED.iloc[:0], "lists no cell"),
    "no number": (LISTED.replace({"learning_rate": {0.02: None}}), r"1 learning rate cannot .* in row 2 of .*, nan"),
    "negative": (LISTED.replace({"learning_rate": {0.02: -1.0}}), r"in row 2 of the table, -1.0. Numbers above 0"),
    "several": (LISTED.assign(learning_rate="x"), r"5 learning rates cannot .* in row 1 of the table, x\."),
    "infinite": (LISTED.replace({"learning_rate": {0.02: float("inf")}}), r"row 2 of the table, inf"),
    "twice": (pd.concat([LISTED, LISTED.iloc[:1]]), rf"cell {CELLS[0]} is listed more than once"),
    "outside": (pd.concat([LISTED, pd.DataFrame({"index": [15625], "learning_rate": 1.0})]), "outside 0 to 15624"),
    "no rates": (LISTED.rename(columns={"learning_rate": "lr"}), "has the columns index or arch, and learning_rate;"),
    "no cells": (LISTED[["learning_rate"]], "has the columns index or arch, and learning_rate;"),
    "no cell": (LISTED.drop(columns="index").assign(arch="|x|"), "Malformed cell"),
    "other arch": (LISTED.assign(arch=NAS_BENCH_201.arch_at(CELLS[0])), r"index and arch .* are the index"),
    "two of a class": (
        pd.concat([LISTED, pd.DataFrame({"index": [MEMBERS[0]], "learning_rate": 7.0})]),
        rf"cells {MEMBERS[1]} and {MEMBERS[0]} are the same network, which is trained once, .* and 7\.",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_each_fault_of_a_table_is_one_error(tmp_path: Path, fault: str) -> None:
    table, told = WRONG[fault]
    with pytest.raises(NasRetrainError, match=told) as error:
        planned(chosen(written(table, tmp_path / "rates.csv"), tmp_path))
    assert str(error.value).startswith(f"{tmp_path / 'rates.csv'}: ")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["recipes.benchmark.learning_rate=none.csv"], r"none.csv cannot be read \(No such file"),
        (["recipes.benchmark.kernel_factor=true"], "beside which there is no rule and no kernel_factor"),
        (["recipes.benchmark.rule=paper"], "beside which there is no rule and no kernel_factor"),
        (["recipes.benchmark.learning_rate=rates.txt"], "the path of a table, whose name ends in .csv"),
    ],
)
def test_what_cannot_go_with_a_table_is_told(tmp_path: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(NasRetrainError, match=told):
        chosen(written(LISTED, tmp_path / "rates.csv"), tmp_path, *overrides)


def test_a_recipe_s_file_names_the_table_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe").mkdir()
    written(LISTED, tmp_path / "recipe" / "rates ${x}.csv", sep=";")
    (tmp_path / "recipe" / "mine.yaml").write_text("defaults: [benchmark]\nlearning_rate: 'rates \\${x}.csv'\n")
    monkeypatch.chdir("/")
    settings = compose(f"recipe={tmp_path}/recipe/mine.yaml", "dataset=digits", "cells=[0]")
    found = settings.recipes["mine"].learning_rate
    assert re.search(r"/recipe/rates \$\{x\}\.csv$", str(found))
