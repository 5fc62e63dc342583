"""What a rule decided stands in the records of the trainings that it was decided for."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch

from nas_retrain.commands import describe
from nas_retrain.data import batches
from nas_retrain.execution import train
from nas_retrain.plan.plan import make_plan
from nas_retrain.settings import Settings
from nas_retrain.trainings.schema import Schema
from nas_retrain.trainings.store import SCHEMA, RunRecord, RunWriter, StoredRuns, merge, read_runs
from tests.conftest import MakeSettings
from tests.strategies import NAS_BENCH_201
from tests.trainings.test_store import a_record

RULE = """
from nas_retrain.theory.rule import Parametrisation


def by_layers(graph, size, *, by=2):
    return Parametrisation(
        1 / by,
        layer_rates={"vectors": 0.25, "readout": 2} | {edge: 0.1 for edge in graph.layers},
        variances={edge: 1 / 3 for edge in graph.layers},
        multipliers={edge: 0.5 for edge in graph.layers},
    )
"""
CELL = NAS_BENCH_201.index_of("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")
LAYERS = ("0-1/3", "0-2/3", "1-2", "2-3/3")
OF_RULES = ("rule", "rule_checksum", "rule_factor", "rule_layers")


def settings_of(make_settings: MakeSettings, *overrides: str) -> Settings:
    return make_settings(
        "recipe=[benchmark,by_rule]", "recipes.by_rule.rule='rule_in_records:by_layers'", f"cells=[{CELL}]",
        "seeds=[1,2]", "training.epochs=1", "dataset.train_subset=64", "launcher.together=4",
        "recipes.by_rule.learning_rate=0.1", *overrides,
    )  # fmt: skip


def write_rule(text: str) -> str:
    """Write the rule as a process finds it that starts now; returns its checksum."""
    Path("rule_in_records.py").write_text(text)
    sys.modules.pop("rule_in_records", None)
    shutil.rmtree("__pycache__", ignore_errors=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def trained(settings: Settings) -> list[RunRecord]:
    """Train what is missing and store it."""
    train.prepare_process(torch.device("cpu"))
    data = batches.load(settings.dataset, settings.data_dir, torch.device("cpu"))
    records = []
    for group in make_plan(settings, read_runs(settings.results_dir)).groups:
        records += train.train(group, settings, data, settings.results_dir.parent / "checkpoint")
    with RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(*records)
    return records


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_records_of_members_that_were_joined_tell_each_its_own(make_settings: MakeSettings) -> None:
    checksum = write_rule(RULE)
    settings = settings_of(make_settings)
    records = trained(settings)
    assert [record.recipe for record in records] == ["benchmark", "benchmark", "by_rule", "by_rule"]
    assert len({record.group for record in records}) == 1
    for record in records[:2]:
        assert [getattr(record, name) for name in OF_RULES] == [None] * 4
    for record in records[2:]:
        assert (record.rule, record.rule_checksum, record.rule_factor) == ("rule_in_records:by_layers", checksum, 0.5)
        assert record.learning_rate == 0.1 * record.rule_factor
        assert record.rule_layers is not None
        assert json.loads(record.rule_layers) == {
            "layer_rates": {"vectors": 0.25, "readout": 2.0} | dict.fromkeys(LAYERS, 0.1),
            "variances": dict.fromkeys(LAYERS, 1 / 3),
            "multipliers": dict.fromkeys(LAYERS, 0.5),
        }
    # Lines, the merged table, and the table alone.
    folder = settings.results_dir
    assert read_runs(folder).records == records
    assert sorted(merge(folder).records, key=records.index) == records
    shutil.rmtree(folder / "runs")
    assert sorted(read_runs(folder).records, key=records.index) == records
    frame = pd.read_parquet(folder / "runs.parquet").set_index("recipe")
    assert frame.loc["benchmark", list(OF_RULES)].isna().all(axis=None)
    assert (frame.loc["by_rule", "rule_factor"] == 0.5).all()


def test_a_rule_that_changed_is_another_recipe_and_its_old_trainings_stay(make_settings: MakeSettings) -> None:
    before = write_rule(RULE)
    settings = settings_of(make_settings)
    first = trained(settings)
    assert trained(settings) == []
    # What it decides stays when only its words change.
    reworded = write_rule(RULE + "\n# It is a rule.\n")
    assert trained(settings) == []
    stored = read_runs(settings.results_dir)
    assert describe.decided_otherwise(make_plan(settings, stored), stored) == []
    after = write_rule(RULE.replace("0.25", "0.75"))
    second = trained(settings)
    assert [record.recipe for record in second] == ["by_rule", "by_rule"]
    assert {record.rule_checksum for record in first} == {None, before}
    assert {record.rule_checksum for record in second} == {after}
    assert len({before, reworded, after}) == 3
    assert [json.loads(record.rule_layers or "")["layer_rates"]["vectors"] for record in second] == [0.75, 0.75]
    assert {record.train_loss for record in first[2:]}.isdisjoint(record.train_loss for record in second)
    assert set(merge(settings.results_dir).records) == {*first, *second}
    plan = make_plan(settings, read_runs(settings.results_dir))
    assert plan.missing == []
    assert describe.decided_otherwise(plan, read_runs(settings.results_dir)) == [
        "  rule           by_rule: 2 stored are of what it decided before; they stay"
    ]
    assert {training.key for training in plan.everything} == {record.key for record in first[:2] + second}


def test_a_search_records_the_rule_that_drew_its_networks(make_settings: MakeSettings) -> None:
    checksum = write_rule(RULE)
    settings = settings_of(
        make_settings, "recipes.by_rule.learning_rate=tuned", "base_rate.points=2", "base_rate.seeds=[1]"
    )
    plan = make_plan(settings, read_runs(settings.results_dir))
    assert {(training.rule.name, training.rule.checksum) for training in plan.search if training.rule} == {
        ("rule_in_records:by_layers", checksum)
    }
    assert all(training.rule and training.rule.own and training.decided for training in plan.search)


def test_the_plan_tells_briefly_what_a_rule_of_one_s_own_decides(make_settings: MakeSettings) -> None:
    checksum = write_rule(RULE.replace("1 / by", "1 / (1 + len(graph.layers))"))
    base = NAS_BENCH_201.index_of("|skip_connect~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    settings = settings_of(make_settings, f"cells=[{CELL},{base}]")
    lines = describe.wanted(make_plan(settings, StoredRuns.of([])), settings)
    (told,) = (line for line in lines if line.startswith("  rule "))
    assert told == (
        f"  rule           by_rule: rule_in_records:by_layers (file {checksum}): learning rate times 0.2 to 1, "
        "layer rates 0.1 to 2, variances 0.333, multipliers 0.5"
    )
    shipped = settings_of(make_settings, "recipes.by_rule.rule=depth")
    assert not any(
        line.startswith("  rule ") for line in describe.wanted(make_plan(shipped, StoredRuns.of([])), shipped)
    )


WITH_RULE = replace(
    a_record(),
    rule="mine.py:rule",
    rule_checksum="0123456789ab",
    rule_factor=0.5,
    rule_layers='{"variances":{"readout":0.1}}',
)
OLDER = Schema(tuple(column for column in SCHEMA.columns if column.name not in OF_RULES))
"""What a version without rules in records reads."""


def line(record: RunRecord) -> bytes:
    return json.dumps(asdict(record)).encode()


def test_older_versions_keep_what_rules_decided() -> None:
    without = a_record(778)
    read = OLDER.from_lines([line(WITH_RULE), line(without)])
    assert read.faults == {}
    assert OLDER.unknown(read.table) == sorted(OF_RULES)
    again = SCHEMA.from_table(read.table)
    assert StoredRuns(again.table).records == [WITH_RULE, without]
    # All of whose records lack a rule, too.
    none = SCHEMA.from_table(OLDER.from_lines([line(without)]).table)
    assert StoredRuns(none.table).records == [without]


def test_records_of_older_versions_have_no_rule(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    old = {name: value for name, value in asdict(a_record()).items() if name not in OF_RULES}
    (tmp_path / "runs" / "a.jsonl").write_bytes(json.dumps(old).encode() + b"\n" + line(replace(WITH_RULE, seed=1)))
    assert read_runs(tmp_path).records == [a_record(), replace(WITH_RULE, seed=1)]
    assert read_runs(tmp_path).problems == []
    table = SCHEMA.from_table(pa.Table.from_pylist([old])).table
    assert StoredRuns(table).records == [a_record()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rule", 3), ("rule_checksum", ["a"]), ("rule_factor", "x"), ("rule_factor", -0.5), ("rule_factor", True),
        ("rule_layers", {"variances": {}}),
    ],
)  # fmt: skip
def test_what_no_rule_decided_is_no_record(name: str, value: Any) -> None:
    checked = SCHEMA.from_lines([json.dumps(asdict(WITH_RULE) | {name: value}).encode()])
    assert len(checked.table) == 0
    assert f"{name} is {value!r}" in checked.faults[0]
