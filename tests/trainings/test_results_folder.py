"""A results folder as a user finds it: copied in part, damaged, or of another version; nothing in it is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nas_retrain.commands import retrain, status
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import slurm, workers
from nas_retrain.plan import claims, plan
from nas_retrain.plan.claims import claim_results_folder
from nas_retrain.purpose import RateSearch
from nas_retrain.settings import Settings
from nas_retrain.trainings.failures import read_failures
from nas_retrain.trainings.store import RunKey, RunRecord, RunWriter, StoredRuns, merge, read_runs
from tests.conftest import MakeSettings, run_script
from tests.plan.test_plan import as_stored

FEW = ("cells=sample:3", "seeds=[1,2]", "dataset.base_rate=0.3")
FEW_DRAWS = ("analysis.bootstrap_draws=20", "analysis.null_draws=20")


def made_up(settings: Settings) -> list[RunRecord]:
    """A record of every training that is planned."""
    trainings = plan.make_plan(settings, StoredRuns.of([])).everything
    return [
        replace(as_stored(training), cell=training.cell, arch=training.arch, test_accuracy=50.0 + number)
        for number, training in enumerate(trainings)
    ]


def keep(folder: Path, records: list[RunRecord], *, table_only: bool = False) -> None:
    with RunWriter(folder / "runs", "local") as writer:
        writer.append(*records)
    if table_only:
        merge(folder)
        shutil.rmtree(folder / "runs")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every training an error."""

    def refuse(groups: list[object], *_: object, **__: object) -> workers.Tally:
        assert groups == [], "what is stored is trained again"
        return workers.Tally()

    monkeypatch.setattr(workers, "run_here", refuse)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("chosen", ["sample:3", "sample:2", "sample:1"])
def test_what_only_the_table_holds_is_not_trained_again_and_stays_whatever_is_asked_for(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], chosen: str
) -> None:
    records = made_up(make_settings(*FEW))
    settings = make_settings(*FEW, f"cells={chosen}", *FEW_DRAWS)
    keep(settings.results_dir, records, table_only=True)
    before = (settings.results_dir / "runs.parquet").read_bytes()
    assert plan.make_plan(settings, read_runs(settings.results_dir)).missing == []
    retrain.retrain(settings)
    retrain.analyse(settings)
    assert "Nothing left to train" in capsys.readouterr().out
    assert (settings.results_dir / "runs.parquet").read_bytes() == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("files", [0, 1])
def test_analyse_with_a_part_of_the_files_keeps_the_whole_table(make_settings: MakeSettings, files: int) -> None:
    settings = make_settings(*FEW, *FEW_DRAWS)
    records = made_up(settings)
    keep(settings.results_dir, records, table_only=True)
    keep(settings.results_dir, records[: 4 * files])
    retrain.analyse(settings)
    table = pd.read_parquet(settings.results_dir / "runs.parquet")
    assert sorted(table["test_accuracy"]) == [record.test_accuracy for record in records]


@pytest.mark.usefixtures("no_training")
def test_a_task_of_slurm_knows_what_only_the_table_holds(make_settings: MakeSettings) -> None:
    settings = make_settings(*FEW, "launcher=slurm")
    records = made_up(settings)
    keep(settings.results_dir, records, table_only=True)
    everything = plan.make_plan(settings, StoredRuns.of([])).everything
    slurm.train_unit(settings, "name", [training.slot for training in everything])


def claim(settings: Settings) -> dict[str, object]:
    claim_results_folder(settings)
    written: dict[str, object] = json.loads((settings.results_dir / "settings.json").read_text())
    return written


def test_the_same_settings_may_come_again_with_other_cells_seeds_and_machines(make_settings: MakeSettings) -> None:
    first = claim(make_settings())
    assert claim(make_settings("cells=all", "seeds=[5]", "launcher.workers=7", "data_dir=/x")) == first


def test_recipes_may_be_added(make_settings: MakeSettings) -> None:
    claim(make_settings("recipe=[benchmark]"))
    both = claim(make_settings("recipe=[initialisation_only]"))
    assert set(both["recipes"]) == {"benchmark", "initialisation_only"}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.epochs=3", "training.epochs: 2 there, 3 now"),
        ("dataset=cifar10", "dataset.name: digits there, cifar10 now"),
        ("recipes.benchmark.learning_rate=0.2", "recipes.benchmark.learning_rate: 0.1 there, 0.2 now"),
        ("base_rate.points=5", "base_rate.points: 19 there, 5 now"),
    ],
)
def test_other_settings_are_refused_key_by_key(make_settings: MakeSettings, override: str, told: str) -> None:
    before = claim(make_settings())
    other = make_settings(override)
    with pytest.raises(NasRetrainError, match=told) as error:
        claim_results_folder(other)
    assert "results_dir=" in str(error.value)
    assert json.loads((other.results_dir / "settings.json").read_text()) == before


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.epochs=3", "training.epochs: 2 there, 3 now"),
        ("seeding=shared", "seeding: nested there, shared now"),
        ("recipes.benchmark.learning_rate=0.3", "recipes.benchmark.learning_rate: 0.1 there, 0.3 now"),
    ],
)
def test_commands_that_only_look_say_that_a_folder_is_of_other_settings(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], override: str, told: str
) -> None:
    settings = make_settings(*FEW, "training.epochs=2")
    other = make_settings(*FEW, "training.epochs=2", override)
    keep(settings.results_dir, made_up(settings))
    claim_results_folder(settings)
    for look in (retrain.print_plan, status.status):
        look(settings)
        assert "other settings" not in "".join(capsys.readouterr())
        look(other)
        assert f"holds results made with other settings ({told}" in "".join(capsys.readouterr())


@pytest.mark.parametrize("there", [True, False])
def test_a_status_says_whether_there_is_a_folder(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    settings = make_settings(*FEW)
    if there:
        settings.results_dir.mkdir(parents=True, exist_ok=True)
    status.status(settings)
    told = "no run is working on it" if there else "there is no such folder yet, no run has begun"
    assert f"{settings.results_dir}: {told}\n" in capsys.readouterr().out


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("override", ["training.epochs=3", "seeding=shared", "network.channels=5"])
def test_nothing_is_analysed_where_no_record_is_of_these_settings(
    make_settings: MakeSettings, override: str, known: bool
) -> None:
    settings = make_settings(*FEW, "training.epochs=2")
    keep(settings.results_dir, made_up(settings))
    if known:
        claim_results_folder(settings)
    told = "other settings" if known else "none that these settings made"
    with pytest.raises(NasRetrainError, match=told):
        retrain.analyse(make_settings(*FEW, "training.epochs=2", override))


SPOILED = {
    "empty": b"",
    "zeroed": bytes(600),
    "cut": b'{"bench": {"name": "201", "dep',
    "no object": b'["bench", "dataset"]',
    "nothing": b"{}",
    "nothing at all": b"null",
    "foreign": b'{"editor.fontSize": 12, "dataset": {"name": "digits"}}',
    "sections that are none": b'{"bench": "201", "dataset": "digits", "training": 3, "recipes": []}',
    "no UTF-8": b"\xff\xfe{\x00}\x00",
    "nested beyond reason": b'{"bench": ' + b"[" * 100_000,
    "not a number": b'{"bench": {}, "dataset": {}, "training": {"epochs": NaN}, "recipes": {}}',
}


@pytest.mark.parametrize("content", SPOILED.values(), ids=SPOILED)
def test_damaged_or_foreign_settings_are_put_aside_and_made_anew_where_the_records_agree(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    settings = make_settings(*FEW)
    whole = claim(settings)
    keep(settings.results_dir, made_up(settings), table_only=True)
    path = settings.results_dir / "settings.json"
    path.write_bytes(content)
    assert claim(settings) == whole
    assert (settings.results_dir / "settings.set-aside-0.json").read_bytes() == content
    told = capsys.readouterr().err
    assert f"{path} " in told
    assert "settings.set-aside-0.json" in told


@pytest.mark.parametrize("content", [*SPOILED.values(), None], ids=[*SPOILED, "absent"])
@pytest.mark.parametrize("override", ["training.epochs=3", "network.channels=5", "recipes.benchmark.learning_rate=0.3"])
def test_they_are_not_made_anew_where_other_settings_made_the_records(
    make_settings: MakeSettings, content: bytes | None, override: str
) -> None:
    settings = make_settings(*FEW)
    keep(settings.results_dir, made_up(settings))
    path = settings.results_dir / "settings.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NasRetrainError, match=r"records of benchmark.* that other settings made.*good copy"):
        claim_results_folder(make_settings(*FEW, override))
    assert (path.read_bytes() if path.exists() else None) == content
    claim_results_folder(make_settings(*FEW, "seeds=[1,2,3]", "cells=sample:5"))


@pytest.mark.parametrize("stage", ["status", "plan", "analyze"])
def test_nothing_in_a_table_tells_the_terminal_what_to_do(make_settings: MakeSettings, stage: str) -> None:
    settings = make_settings(*FEW)
    keep(settings.results_dir, made_up(settings), table_only=True)
    path = settings.results_dir / "runs.parquet"
    hostile = "\x1b[2J\x1b]0;x\x07\x9b31m"
    table = pd.read_parquet(path).assign(**{f"new{hostile}": 1})
    table.loc[0, ["status", "in_degree"]] = hostile
    table.loc[1:, "in_degree"] = [f"{hostile}{row % 2}" for row in range(len(table) - 1)]
    table.to_parquet(path)
    done = run_script(stage, "dataset=digits", "launcher=local", *FEW, f"results_dir={settings.results_dir}")
    assert "newer version" in done.stderr
    assert not {letter for letter in done.stdout + done.stderr if ord(letter) < 32 or 127 <= ord(letter) < 160} - {"\n"}


CONSTANTS, PLAIN, DISCONNECTED = "[185,222]", "[37,111]", "[0]"


@pytest.mark.parametrize("override", [None, "training.epochs=3"])
@pytest.mark.parametrize("recipe", ["benchmark", "architecture_aware", "own_rate"])
@pytest.mark.parametrize(
    ("stored", "chosen"), [(CONSTANTS, PLAIN), (PLAIN, CONSTANTS), (CONSTANTS, DISCONNECTED), (DISCONNECTED, PLAIN)]
)
def test_records_of_other_cells_by_the_same_settings_are_this_folder_s_own(
    make_settings: MakeSettings, stored: str, chosen: str, recipe: str, override: str | None
) -> None:
    """Networks with constants, and those of another rate, have hashes of their own."""
    own = ("own_rate={classes:2,lowest:0.1,highest:1,points:2,seeds:[5],fresh_seeds:[6],validation_images:100}",)
    chosen_recipe = (f"recipe=[{recipe}]", "dataset.base_rate=0.3", *(own if recipe == "own_rate" else ()))
    before = make_settings(*chosen_recipe, f"cells={stored}")
    for _ in range(2):  # the searches' trainings, and those that they decide
        there = read_runs(before.results_dir)
        made = plan.make_plan(before, there)
        missing = [
            training for training in made.missing if isinstance(training.purpose, RateSearch) or not made.searching
        ]
        with RunWriter(before.results_dir / "runs", "local") as writer:
            writer.append(*(as_stored(training) for training in missing))
    now = make_settings(*chosen_recipe, f"cells={chosen}", *([override] if override else []))
    if override and read_runs(now.results_dir):
        with pytest.raises(NasRetrainError, match="that other settings made"):
            claim_results_folder(now)
    else:
        claim_results_folder(now)


@pytest.mark.parametrize("kind", ["folder", "dangling link", "pipe"])
def test_settings_that_the_system_does_not_give_are_named(make_settings: MakeSettings, kind: str) -> None:
    settings = make_settings(*FEW)
    path = settings.results_dir / "settings.json"
    path.parent.mkdir()
    {"folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere"), "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(NasRetrainError, match=r"settings\.json cannot be read: .*move it out"):
        claim_results_folder(settings)


def test_what_a_newer_version_wrote_into_the_settings_stays_there(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(*FEW)
    newer: Any = claim(settings)
    newer["novelty"] = {"on": True}
    newer["training"]["mixup"] = 0.1
    newer["recipes"]["benchmark"]["warm_up"] = 5
    newer["recipes"]["another"] = {"learning_rate": "by magic"}
    (settings.results_dir / "settings.json").write_text(json.dumps(newer))
    assert claim(settings) == newer
    assert "newer version: this one does not know novelty.on, recipes.benchmark.warm_up" in capsys.readouterr().err
    added: Any = claim(make_settings(*FEW, "recipe=[benchmark,initialisation_only]"))
    assert added["recipes"].pop("initialisation_only")
    assert added == newer


def test_what_an_older_version_did_not_write_is_what_held_then(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(*FEW)
    older: Any = claim(settings)
    del older["training"]["precision"]
    path = settings.results_dir / "settings.json"
    path.write_text(json.dumps(older))
    monkeypatch.setattr(claims, "OF_OLDER_VERSIONS", {"training.precision": "float32"})
    with pytest.raises(NasRetrainError, match=r"training\.precision: float32 there, bfloat16 now"):
        claim_results_folder(make_settings(*FEW, "training.precision=bfloat16"))
    claim_results_folder(settings)
    assert json.loads(path.read_text())["training"]["precision"] == "float32"


def test_the_section_of_own_rates_stays_when_a_run_does_not_ask_for_them(make_settings: MakeSettings) -> None:
    claimed = claim(
        make_settings(
            "profile=reference",
            "dataset.train_subset=200",
            "own_rate.validation_images=50",
            "sensitivity=null",
            "cells=sample:4",
        )
    )
    assert claimed["own_rate"]
    assert (
        claim(
            make_settings(
                "profile=reference",
                "cells=sample:4",
                "dataset.train_subset=200",
                "own_rate=null",
                "sensitivity=null",
                "recipe=[benchmark]",
            )
        )
        == claimed
    )


FAILURE = {"key": ["201", "digits", "benchmark", 3, 777, "abc"], "when": "2026", "error": "Traceback\nValueError: x"}
FOREIGN = [
    {"key": [["201"], "digits", "benchmark", 3, 777, "abc"], "error": "x"},
    {"key": ["201", "digits", "benchmark", 3, 777], "error": "x"},
    {"key": ["201", "digits", "benchmark", True, 777, "abc"], "error": "x"},
    {"key": "201/digits", "error": "x"},
    {"key": FAILURE["key"], "error": None},
    {"key": FAILURE["key"], "error": {"a": 1}},
    {"key": FAILURE["key"], "error": " \n"},
    [], None, 3, "x",
]  # fmt: skip


def test_the_log_of_failures_tells_what_can_be_read_of_it(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert read_failures(tmp_path) == ({}, [])
    logs.mkdir()
    lines = [json.dumps(line).encode() for line in [*FOREIGN, FAILURE]]
    (logs / "failures-local.jsonl").write_bytes(b"\xff\xfe\n" + bytes(100) + b"\n" + b"\n".join(lines))
    (logs / "failures-a.jsonl").mkdir()
    (logs / "failures-b.jsonl").symlink_to("nowhere")
    (logs / "failures-c.jsonl").write_bytes(json.dumps(FAILURE).encode()[:-20])
    failures = read_failures(tmp_path)
    assert failures.errors == {RunKey(*FAILURE["key"]): FAILURE["error"]}  # type: ignore[misc]
    assert [problem.split(" cannot")[0] for problem in failures.problems] == [
        str(logs / f"failures-{name}.jsonl") for name in "ab"
    ]


def test_folders_beside_that_are_damaged_or_named_in_other_encodings_do_not_end_a_status(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(*FEW)
    claim(settings)
    for name in (b"gr\xf6\xdfe", b"a\xffb", b"unreadable", "日本".encode()):
        beside = settings.results_dir.parent / os.fsdecode(name)
        shutil.copytree(settings.results_dir, beside)
        keep(beside, made_up(settings)[:3])
    (settings.results_dir.parent / "unreadable" / "runs.parquet").mkdir()
    status.status(settings)
    assert "unreadable/runs.parquet cannot be read" in capsys.readouterr().err


def test_the_command_line_prints_names_in_any_encoding(make_settings: MakeSettings) -> None:
    settings = make_settings(*FEW)
    claim(settings)
    beside = settings.results_dir.parent / os.fsdecode(b"gr\xf6\xdfe")
    shutil.copytree(settings.results_dir, beside)
    keep(beside, made_up(settings)[:3])
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "scripts/status.py"), f"results_dir={settings.results_dir}", "dataset=digits"]
    done = subprocess.run(
        [*command, "profile=dry", "launcher=local"], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfe" in done.stdout
