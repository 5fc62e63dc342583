"""What a results folder holds: lines and tables of records, settings, searches, logs of failures."""

from __future__ import annotations

import functools
import json
import random as randoms
from contextlib import suppress
from dataclasses import asdict, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from nas_retrain.commands.command_line import compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import rate_search
from nas_retrain.plan.claims import claim_results_folder
from nas_retrain.plan.plan import make_plan, recipe_trainings
from nas_retrain.settings import Settings
from nas_retrain.trainings import merged_files
from nas_retrain.trainings.failures import read_failures
from nas_retrain.trainings.store import CURVES, RunRecord, RunWriter, StoredRuns, merge, read_runs
from tests.fuzz.mutation import damaged
from tests.trainings.test_store import a_record

VALUES: list[Any] = [
    None, True, 0, -1, 7, 2**53 + 1, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "7",
    "\ud800", "\x00", [], [1], [[]], {}, {"a": 1}, {"": [None]}, "finished", "2026-01-01T00:00:00",
]  # fmt: skip


@functools.cache
def _settings() -> Settings:
    return compose(
        "dataset=digits", "profile=dry", "launcher=local", "cells=sample:3", "seeds=[1,2]", "dataset.base_rate=0.3",
        "recipe=[benchmark,architecture_aware,by_rule]", "recipes.by_rule.rule=paper",
    )  # fmt: skip


@functools.cache
def _records() -> list[RunRecord]:
    """What these settings ask for."""
    return [
        replace(
            a_record(),
            **{name: getattr(training, name) for name in training.key._fields},
            cell=training.cell,
            rule=training.rule and training.rule.name,
            rule_factor=training.decided and training.decided.learning_rate,
            rule_layers=training.decided and training.decided.layers_as_text(),
        )
        for training in recipe_trainings(_settings(), 0.3)
    ]


def _line(record: RunRecord, **values: object) -> bytes:
    return json.dumps(asdict(record) | values).encode() + b"\n"


def _check(folder: Path, known: set[RunRecord]) -> None:
    """Whatever else there is, what is known to be whole is read, merging drops nothing, and a plan can be made."""
    before = read_runs(folder)
    read = {record.key: record for record in before.records}
    for record in known:  # which lacks curves that a later line of the same training may bring
        absent = {name: None for name in CURVES if getattr(record, name) is None}
        assert replace(read[record.key], **absent) == record
    assert set(merge(folder).records) == set(before.records)
    assert set(read_runs(folder).records) == set(before.records)
    make_plan(_settings(), before)


def _whole(random: randoms.Random, folder: Path) -> set[RunRecord]:
    """Records in a file that nothing happens to, which is read before the others."""
    whole = random.sample(_records(), random.randint(1, 4))
    with RunWriter(folder / "runs", "a") as writer:
        writer.append(*whole)
    return set(whole)


def fuzz_lines(random: randoms.Random, folder: Path) -> None:
    """Bytes of a file of lines."""
    known = _whole(random, folder)
    content = b"".join(_line(record) for record in random.sample(_records(), 3))
    (folder / "runs" / "b.jsonl").write_bytes(damaged(content, random))
    _check(folder, known)


def fuzz_values(random: randoms.Random, folder: Path) -> None:
    """Values of lines, of known names and new ones."""
    known = _whole(random, folder)
    names = [*(field.name for field in fields(RunRecord)), "novelty", "another", ""]
    lines = [
        _line(
            random.choice(_records()),
            **{random.choice(names): random.choice(VALUES) for _ in range(random.randint(1, 3))},
        )
        for _ in range(5)
    ]
    (folder / "runs" / "b.jsonl").write_bytes(b"".join(lines))
    _check(folder, known)


def fuzz_note(random: randoms.Random, folder: Path) -> None:
    """The note of what was merged, and files of lines that something happens to after it."""
    known = _whole(random, folder)
    path = folder / "runs" / "b.jsonl"
    path.write_bytes(b"".join(_line(record) for record in random.sample(_records(), 3)))
    merge(folder)
    if random.random() < 0.7:
        path.write_bytes(damaged(path.read_bytes(), random))
    if random.random() < 0.7:
        note = folder / merged_files.NOTE
        note.write_bytes(damaged(note.read_bytes(), random))
    _check(folder, known)


@functools.cache
def _table() -> bytes:
    content = BytesIO()
    StoredRuns.of(_records()).frame().to_parquet(content, index=False)
    return content.getvalue()


def fuzz_table(random: randoms.Random, folder: Path) -> None:
    """Bytes of runs.parquet, alone or beside lines."""
    known = _whole(random, folder) if random.random() < 0.5 else set()
    (folder / "runs.parquet").write_bytes(damaged(_table(), random))
    _check(folder, known)


def fuzz_columns(random: randoms.Random, folder: Path) -> None:
    """Columns of runs.parquet: dropped, of other types, doubled, new."""
    known = _whole(random, folder)
    frame = pd.read_parquet(BytesIO(_table()))
    for _ in range(random.randint(1, 3)):
        name = random.choice([*frame.columns, "novelty"])
        if random.random() < 0.3:
            frame = frame.drop(columns=name, errors="ignore")
            continue
        values: list[Any] = [random.choice(VALUES)] * len(frame)
        if random.random() < 0.5 and name in frame:
            values = [*frame[name][:-1], values[0]]
        with suppress(Exception):  # what no table can hold is no case
            changed = frame.assign(**{name: values})
            changed.to_parquet(folder / "runs.parquet", index=False)
            frame = changed
    _check(folder, known)


def fuzz_settings(random: randoms.Random, folder: Path) -> None:
    """settings.json beside records of the same settings: a whole file in the end, and nothing lost."""
    settings = _settings().model_copy(update={"results_dir": folder})
    _whole(random, folder)
    claim_results_folder(settings)
    path = folder / "settings.json"
    spoiled = damaged(path.read_bytes(), random)
    path.write_bytes(spoiled)
    try:
        claim_results_folder(settings)
    except NasRetrainError:
        assert path.read_bytes() == spoiled
        raise
    assert json.loads(path.read_bytes())["dataset"]["name"] == "digits"
    claim_results_folder(settings)


def fuzz_searches(random: randoms.Random, folder: Path) -> None:
    """base_rate.json that is written anew."""
    path = folder / "base_rate.json"
    path.write_bytes(damaged(b'{"base_rate": 0.1, "grid": [{"learning_rate": 0.1}], "novelty": {"on": [1]}}', random))
    json.dumps(rate_search._of_newer_version(path, {"base_rate": 0.2}))


def fuzz_failures(random: randoms.Random, folder: Path) -> None:
    """Logs of failures, in bytes and in values."""
    key = [random.choice([part, part, part, *VALUES]) for part in _records()[0].key]
    lines = [json.dumps({"key": key, "error": random.choice(["x", *VALUES])}).encode() for _ in range(3)]
    (folder / "logs").mkdir()
    (folder / "logs" / "failures-local.jsonl").write_bytes(damaged(b"\n".join(lines), random))
    for error in read_failures(folder).errors.values():
        assert error.strip().splitlines()[-1]
