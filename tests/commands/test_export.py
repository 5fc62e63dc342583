"""Exports against the unmodified packages that they are made for, and against this project's own readers."""

from __future__ import annotations

import ast
import json
import re
import resource
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import pandas as pd
import pytest
import torch
from nas_201_api import NASBench201API
from nats_bench import create

from nas_retrain.benches import registry
from nas_retrain.commands import export as export_module
from nas_retrain.commands.command_line import compose
from nas_retrain.commands.export import export
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import train
from nas_retrain.plan import plan
from nas_retrain.settings import Settings, digest
from nas_retrain.statistics import accuracies as benchmark
from nas_retrain.theory.rule import find
from nas_retrain.theory.scaling import in_degree_of
from nas_retrain.trainings import store
from nas_retrain.trainings.store import RunRecord
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.reports.test_markup import Seen
from tests.strategies import NAS_BENCH_201

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "results" / "reference" / "201" / "digits" / "runs.parquet"
SEEDS = (777, 888, 999)
NETWORKS = NAS_BENCH_201.training_classes(None)
DISCONNECTED = NETWORKS[NAS_BENCH_201.index_of("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")]
SHARED = next(
    cell for cell in range(12, len(NETWORKS)) if NETWORKS.count(NETWORKS[cell]) == 8 and NETWORKS[cell] == cell
)
"""A class of eight cells."""
CLASSES = (0, 11, SHARED, DISCONNECTED)
"""Made up below: 0 is whole, 11 has lost a seed, SHARED has a training that diverged."""
NOT_COVERED = 1

Figures = dict[tuple[int, int], RunRecord]
"""What each cell and seed is to answer with."""


def members(network_class: int) -> list[int]:
    return [cell for cell, its in enumerate(NETWORKS) if its == network_class]


def asked(dataset: str, epochs: int) -> list[str]:
    return [f"dataset={dataset}", f"training.epochs={epochs}", "dataset.base_rate=0.46", f"seeds={list(SEEDS)}"]


def made_up(settings: Settings, cells: tuple[int, ...] = CLASSES) -> list[RunRecord]:
    """Records that trainings of these classes could have left under both recipes."""
    random = np.random.default_rng(5)
    found = []
    for training in plan.recipe_trainings(settings.model_copy(update={"cells": cells}), 0.46):
        if (training.cell, training.seed) == (11, 888):
            continue
        record = RunRecord(
            bench=training.bench, dataset=training.dataset, recipe=training.recipe, cell=training.cell,
            arch=training.arch, network_class=training.network_class, seed=training.seed, epochs=training.epochs,
            learning_rate=training.learning_rate, in_degree=in_degree_of(training.initialisation), status="finished",
            train_loss=random.uniform(0, 3), train_accuracy=random.uniform(20, 100), test_loss=random.uniform(0, 3),
            test_accuracy=random.uniform(20, 100), seconds=random.uniform(1, 9), images_per_second=1000.0,
            device="cpu", torch="2", code_version="0", config_hash=training.config_hash, started="", finished="",
        )  # fmt: skip
        chance = 100 / settings.dataset.classes
        none: dict[str, Any] = {"train_loss": None, "test_loss": None}
        none |= {"train_accuracy": chance, "test_accuracy": chance}
        if training.learning_rate is None:
            record = replace(record, status="disconnected", seconds=0.0, images_per_second=None, **none)
        elif (training.cell, training.seed) == (SHARED, 999):
            record = replace(record, status="diverged", **none)
        found.append(record)
    return found


def stored(settings: Settings, cells: tuple[int, ...] = CLASSES) -> list[RunRecord]:
    """Store made-up records, and return those that an export is to hold."""
    records = made_up(settings, cells)
    with store.RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(*records)
    return [record for record in records if record.recipe == settings.analysis.recipe]


def of_cells(records: list[RunRecord]) -> Figures:
    return {(cell, record.seed): record for record in records for cell in members(record.network_class)}


@dataclass(frozen=True)
class Exported:
    """An export, the records that it is to hold, and the packages' own APIs on it, called as they ask to be."""

    settings: Settings
    records: list[RunRecord]
    folder: Path

    @cached_property
    def figures(self) -> Figures:
        return of_cells(self.records)

    @cached_property
    def nas_201(self) -> Any:
        return NASBench201API(str(only(self.folder, "*.pth")), verbose=False)

    @cached_property
    def nats(self) -> Any:
        return create(str(only(self.folder, "NATS-tss-*")), "tss", fast_mode=True, verbose=False)

    def api(self, package: str) -> Any:
        return {"nas_201_api": lambda: self.nas_201, "nats_bench": lambda: self.nats}[package]()

    @property
    def name(self) -> str:
        """What the packages call the data set."""
        return benchmark.published_name(NAS_BENCH_201, self.settings.dataset.name)

    @property
    def hp(self) -> str:
        return str(self.settings.training.epochs)


Exports = Callable[[str, int], Exported]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Exports of made-up records by data set and epochs, each made once."""

    @cache
    def make(dataset: str, epochs: int) -> Exported:
        results = tmp_path_factory.mktemp("results")
        tiny = ["profile=dry", "launcher=local", "network.channels=4", f"results_dir={results}"]
        settings = compose(*tiny, *asked(dataset, epochs))
        records = stored(settings)
        return Exported(settings, records, export(settings))

    return make


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


BOTH = pytest.mark.parametrize("package", ["nas_201_api", "nats_bench"])
WORLDS = pytest.mark.parametrize(
    ("dataset", "epochs"), [("cifar10", 200), ("cifar100", 12), ("imagenet16_120", 200), ("digits", 12)]
)


def same(found: Any, expected: float | None) -> bool:
    return bool(np.isnan(found)) if expected is None else found == expected


def check_every_figure(one: Exported, package: str) -> None:
    api, name, hp = one.api(package), one.name, one.hp
    test = "test" if name == "cifar10" else "valtest"
    for (cell, seed), record in one.figures.items():
        info = api.get_more_info(cell, name, hp=hp, is_random=seed)
        assert info[f"{test}-accuracy"] == record.test_accuracy
        assert same(info[f"{test}-loss"], record.test_loss)
        assert info["train-accuracy"] == record.train_accuracy
        assert same(info["train-loss"], record.train_loss)
        assert info["train-all-time"] == pytest.approx(record.seconds)
        assert info["train-per-time"] == pytest.approx(record.seconds / record.epochs)
        assert info[f"{test}-all-time"] is None
        assert "valid-accuracy" not in info
    for cell in {record.cell for record in one.records}:
        ours = {seed: record for (its, seed), record in one.figures.items() if its == cell}
        assert list(api.query_by_index(cell, name, hp)) == sorted(ours)  # no seed lost, none made up
        mean = api.get_more_info(NAS_BENCH_201.arch_at(cell), name, hp=hp, is_random=False)[f"{test}-accuracy"]
        assert mean == pytest.approx(np.mean([record.test_accuracy for record in ours.values()]))
        assert api.get_latency(cell, name, hp) is None
        if package == "nats_bench" or hp == "12":
            assert api.get_net_config(cell, name) == {
                "name": "infer.tiny",
                "C": one.settings.network.channels,
                "N": one.settings.network.cells_per_stage,
                "arch_str": NAS_BENCH_201.arch_at(cell),
                "num_classes": one.settings.dataset.classes,
            }


def check_read(one: Exported, path: Path) -> None:
    found = benchmark.read(path, one.settings.dataset.name, NAS_BENCH_201, recipe="", epochs=int(one.hp)).runs
    accuracies = dict(zip(zip(found["index"], found["seed"], strict=True), found["accuracy"], strict=True))
    assert accuracies == {key: record.test_accuracy for key, record in one.figures.items()}


@BOTH
@WORLDS
def test_the_packages_answer_with_every_figure(exported: Exports, dataset: str, epochs: int, package: str) -> None:
    check_every_figure(exported(dataset, epochs), package)


@WORLDS
def test_this_projects_readers_find_every_accuracy(exported: Exports, dataset: str, epochs: int) -> None:
    one = exported(dataset, epochs)
    for pattern in ("*.pth", "NATS-tss-*"):
        check_read(one, only(one.folder, pattern))


def test_the_committed_dry_run_is_exported_with_every_figure(tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path)
    settings = compose("dataset=digits", "profile=dry", f"results_dir={tmp_path}")
    frame = pd.read_parquet(DIGITS)
    frame = frame[frame["recipe"] == "architecture_aware"]
    records = [RunRecord(**{str(key): value for key, value in row.items()}) for row in frame.to_dict("records")]
    one = Exported(settings, records, export(settings))
    assert len({record.key for record in records}) == 120
    for package in ("nas_201_api", "nats_bench"):
        for (cell, seed), record in one.figures.items():
            info = one.api(package).get_more_info(cell, "digits", hp="12", is_random=seed)
            assert (info["valtest-accuracy"], info["valtest-loss"]) == (record.test_accuracy, record.test_loss)
    for pattern in ("*.pth", "NATS-tss-*"):
        check_read(one, only(one.folder, pattern))


def test_torch_reads_the_file_as_plain_data(exported: Exports) -> None:
    one = exported("cifar10", 200)
    content = torch.load(only(one.folder, "*.pth"), weights_only=True)
    assert content["evaluated_indexes"] == {cell for cell, _ in one.figures}
    assert "Not the published NAS-Bench-201" in content["origin"]


@BOTH
def test_costs_are_the_published_ones_in_the_published_units(make_settings: MakeSettings, package: str) -> None:
    """Cell 0 of the real NATS-Bench folder: 0.129306 MB and 15.64737 MFLOPs, which count 10 of the readout's biases."""
    settings = make_settings(*asked("cifar10", 200), "network.channels=16", "network.cells_per_stage=5")
    records = stored(settings, (0,))
    costs = Exported(settings, records, export(settings)).api(package).get_cost_info(0, "cifar10", hp="200")
    assert costs["params"] == pytest.approx(0.129306, abs=1e-9)
    assert costs["flops"] == pytest.approx(15.64737 - 10 / 1e6, abs=1e-9)


@BOTH
def test_what_was_not_measured_is_an_error_in_the_package(exported: Exports, package: str) -> None:
    one = exported("cifar10", 200)
    api = one.api(package)
    for epoch in range(199):
        with pytest.raises(KeyError, match=f"^{epoch}$"):
            api.get_more_info(0, "cifar10", iepoch=epoch, hp="200", is_random=False)
    last = api.get_more_info(0, "cifar10", iepoch=199, hp="200", is_random=777)
    assert last["test-accuracy"] == one.figures[0, 777].test_accuracy
    for result in api.query_by_index(0, "cifar10", "200").values():
        assert set(result.train_acc1es) == set(result.train_losses) == {199}
        assert set(result.eval_acc1es) == set(result.eval_losses) == {"ori-test@199"}
        assert (result.eval_times, result.latency, result.train_acc5es, result.net_state_dict) == ({}, None, None, None)
    absent: dict[str, Callable[[], Any]] = {
        "^'(cifar10|12)'$": lambda: api.get_more_info(0, "cifar10"),  # 12 epochs, the packages' default
        "^'cifar10-valid'$": lambda: api.get_more_info(0, "cifar10-valid", hp="200"),
        "cifar10-valid": lambda: api.simulate_train_eval(0, "cifar10", hp="200"),
        "cifar100": lambda: api.get_more_info(0, "cifar100", hp="200"),
        "can not find random seed": lambda: api.get_more_info(11, "cifar10", hp="200", is_random=888),
        "x-valid": lambda: api.query_by_index(0, None, "200").get_metrics("cifar10", "x-valid"),
    }
    for message, ask in absent.items():
        with pytest.raises((KeyError, ValueError), match=message):
            ask()
    assert NOT_COVERED not in {cell for cell, _ in one.figures}
    for ask in (
        lambda: api.get_more_info(NOT_COVERED, "cifar10", hp="200"),
        lambda: api.query_by_index(NOT_COVERED, "cifar10", "200"),
        lambda: api.get_cost_info(NOT_COVERED, "cifar10", "200"),
        lambda: api.simulate_train_eval(NOT_COVERED, "cifar10", hp="200"),
    ):
        with pytest.raises((ValueError, AssertionError), match=r"find 1 |\[1\]|/1\.pickle"):
            ask()


@BOTH
def test_halves_of_the_test_images_are_an_error_in_the_package(exported: Exports, package: str) -> None:
    api = exported("cifar100", 12).api(package)
    for ask in (
        lambda: api.simulate_train_eval(0, "cifar100"),
        lambda: api.query_by_arch(0, "12"),
        lambda: api.find_best("cifar100", "valid"),
        lambda: api.query_by_index(0, None, "12").get_metrics("cifar100", "x-test"),
    ):
        with pytest.raises(KeyError, match=r"valid|x-test"):
            ask()


@BOTH
def test_the_best_cell_is_found_among_those_that_are_there(exported: Exports, package: str) -> None:
    one = exported("cifar10", 200)
    table = pd.DataFrame([(cell, record.test_accuracy) for (cell, _), record in one.figures.items()])
    means = table.groupby(0)[1].mean()
    some: dict[str, Any] = {}
    if package == "nats_bench":
        with pytest.raises(AssertionError, match=rf"/{NOT_COVERED}\.pickle"):
            one.nats.find_best("cifar10", "test", hp="200")
        for cell in means.index:
            one.nats.get_more_info(int(cell), "cifar10", hp="200")
        some = {"enforce_all": False}
    best, accuracy = one.api(package).find_best("cifar10", "test", hp="200", **some)
    assert accuracy == pytest.approx(means.max())
    assert means[best] == pytest.approx(means.max())


@BOTH
def test_a_cell_is_printed_with_its_figures(
    exported: Exports, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    one = exported("cifar10", 200)
    api = one.api(package)
    mean = np.mean([one.figures[0, seed].test_accuracy for seed in SEEDS])
    assert f"top1 = {mean:.2f}%" in api.query_by_arch(NAS_BENCH_201.arch_at(0), "200")
    assert "latency=None" in api.query_by_arch(0, "200")
    if package == "nas_201_api":
        assert api.query_by_arch(NOT_COVERED, "200") is None
        assert "not evaluated" in capsys.readouterr().out
    else:
        with pytest.raises(AssertionError, match=rf"/{NOT_COVERED}\.pickle"):
            api.query_by_arch(NOT_COVERED, "200")


def test_tables_hold_every_training_and_mark_its_copies(exported: Exports) -> None:
    one = exported("cifar100", 12)
    table = pd.read_parquet(one.folder / "accuracies.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(one.folder / "accuracies.csv"), table, check_dtype=False, rtol=1e-15)
    assert list(zip(table["index"], table["seed"], strict=True)) == sorted(one.figures)
    for row in table.to_dict("records"):
        record = one.figures[row["index"], row["seed"]]
        for name in ("network_class", "status", "test_accuracy", "train_accuracy", "seconds", "epochs", "dataset"):
            assert row[name] == getattr(record, name)
        for name in ("test_loss", "train_loss", "learning_rate"):
            assert same(row[name], getattr(record, name))
        assert row["arch"] == NAS_BENCH_201.arch_at(row["index"])
        assert row["representative"] == record.cell
        assert row["copied"] == (row["index"] != record.cell)
    assert (~table["copied"]).sum() == len(one.records)
    assert set(table["status"]) == {"finished", "diverged", "disconnected"}
    for _, group in table.groupby("representative"):  # members of a class are one network
        assert group[["parameters", "flops"]].drop_duplicates().shape == (1, 2)


def test_under_the_target_convention_only_cells_with_the_same_initialisation_share_a_training(
    make_settings: MakeSettings,
) -> None:
    trained = NAS_BENCH_201.training_classes("target")
    split = next(cell for cell, its in enumerate(trained) if its == cell and its != NETWORKS[cell])
    settings = make_settings(*asked("cifar10", 12), "recipes.architecture_aware.in_degree=target")
    stored(settings, (split,))
    table = pd.read_parquet(export(settings) / "accuracies.parquet")
    assert sorted(set(table["index"])) == [cell for cell, its in enumerate(trained) if its == split]
    assert set(table["network_class"]) == {NETWORKS[split]}
    assert set(table["representative"]) == {split}


def test_a_budget_without_a_place_in_the_official_file_goes_to_nats_bench_alone(make_settings: MakeSettings) -> None:
    settings = make_settings(*asked("cifar10", 30))
    records = stored(settings, (0, SHARED))
    one = Exported(settings, records, export(settings))
    assert not list(one.folder.glob("*.pth"))
    check_every_figure(one, "nats_bench")
    check_read(one, only(one.folder, "NATS-tss-*"))
    card = (one.folder / "README.md").read_text()
    assert "Trained for 30 epochs" in card
    assert "nas_201_api" not in card


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_records_give_the_same_bytes_from_whichever_file_and_in_any_order(make_settings: MakeSettings) -> None:
    settings = make_settings(*asked("cifar10", 200))
    stored(settings, (0, SHARED))
    folder = export(settings)
    before = content(folder)
    (folder / "left over").write_text("from an earlier export")
    assert content(export(settings)) == before
    store.merge(settings.results_dir)
    shutil.rmtree(settings.results_dir / "runs")
    assert content(export(settings)) == before
    with store.RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(*reversed(made_up(settings, (0, SHARED))))
    assert content(export(settings)) == before
    assert [path.name for path in folder.parent.iterdir()] == ["architecture_aware"]


def test_on_a_full_disk_the_earlier_export_stays(make_settings: MakeSettings) -> None:
    """A limit on the size of files stands in for the full disk; it falls on each of the larger files in turn."""
    settings = make_settings(*asked("cifar10", 200))
    stored(settings, (0, SHARED))
    folder = export(settings)
    before = content(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("accuracies.parquet", "accuracies.csv", only(folder, "*.pth").name):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[name]) - 1, hard))
            with pytest.raises(NasRetrainError, match=r"Cannot write .*export/architecture_aware: .*File too large"):
                export(settings)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert content(folder) == before
        assert [path.name for path in folder.parent.iterdir()] == ["architecture_aware"]


@WORLDS
def test_the_code_of_the_data_card_runs_and_its_settings_have_the_hash(
    exported: Exports, monkeypatch: pytest.MonkeyPatch, dataset: str, epochs: int
) -> None:
    one = exported(dataset, epochs)
    card = (one.folder / "README.md").read_text()
    (written,) = re.findall(r"```json\n(.*?)```", card, re.DOTALL)
    identity = json.loads(written)
    assert identity.pop("config_hash") == digest(identity) == one.records[0].config_hash
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(one.folder)
    for block in blocks:
        exec(block, {})
    assert f"- {sum(len(members(its)) for its in CLASSES):,} of 15,625 cells, which are 4 of 5,461 different" in card
    assert "- 11 trainings: 4 with seed 777, 3 with seed 888, 4 with seed 999." in card
    assert "- 7 trainings finished, 1 diverged, 3 are of disconnected cells." in card
    assert "The network has 4 channels" in card
    assert ("digits is no data set of NAS-Bench-201" in card) == (dataset == "digits")
    assert ("Trained on 5,000 of the" in card) == (dataset != "digits")
    assert dataset in only(one.folder, "*.pth").name


@pytest.mark.parametrize("of_an_earlier_version", [False, True])
def test_networks_with_constants_are_exported_if_they_were_trained_whole(
    make_settings: MakeSettings, of_an_earlier_version: bool
) -> None:
    """Version 0.1.0 left a part of them out, and gave their trainings the hash of all others."""
    settings = make_settings(*asked("cifar10", 12), "analysis.recipe=benchmark", "cells=[0]")
    constants = next(cell for cell in NETWORKS if NAS_BENCH_201.graph_at(cell).constants)
    plain, having = (
        [record for record in made_up(settings, (cell,)) if record.recipe == "benchmark"] for cell in (0, constants)
    )
    if of_an_earlier_version:
        having = [replace(record, config_hash=plain[0].config_hash) for record in having]
    with store.RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(*plain, *having)
    exported = pd.read_parquet(export(settings) / "accuracies.parquet")
    expected = members(0) if of_an_earlier_version else sorted(members(0) + members(constants))
    assert sorted(set(exported["index"])) == expected


def test_the_recipe_is_the_one_of_the_settings(make_settings: MakeSettings) -> None:
    settings = make_settings(*asked("cifar10", 12), "analysis.recipe=benchmark")
    records = stored(settings, (0, SHARED))
    one = Exported(settings, records, export(settings))
    assert one.folder.name == "benchmark"
    assert {record.recipe for record in records} == {"benchmark"}
    check_every_figure(one, "nas_201_api")


def test_what_cannot_be_exported_is_one_clear_error(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(*asked("cifar10", 12))
    with pytest.raises(NasRetrainError, match="results holds no records"):
        export(settings)
    stored(settings, (0,))
    for more, message in (
        (["analysis.recipe=learning_rate_only"], "has no records of the recipe learning_rate_only; it has archi"),
        (["training.epochs=13"], "none that these settings made"),
        (["dataset.base_rate=0.5"], "none that these settings made"),
        (["recipe=[benchmark]"], "is none of the recipes benchmark"),
    ):
        with pytest.raises(NasRetrainError, match=message):
            export(make_settings(*asked("cifar10", 12), *more))
    assert not (settings.results_dir / "export").exists()
    for spoiled in (b"nothing of the kind", None):
        elsewhere = tmp_path / f"elsewhere{spoiled is None}"
        elsewhere.mkdir()
        if spoiled is None:
            pd.DataFrame({"cell": [1]}).to_parquet(elsewhere / "runs.parquet")
        else:
            (elsewhere / "runs.parquet").write_bytes(spoiled)
        with pytest.raises(NasRetrainError, match=r"runs\.parquet cannot be read as a table of run records"):
            export(make_settings(f"results_dir={elsewhere}"))


def test_the_script_says_where_the_export_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DIGITS, tmp_path)
    monkeypatch.setenv("NAS_RETRAIN_ARGS", "bench='201' dataset='digits' profile='dry'")
    monkeypatch.setattr(sys, "argv", ["export.py", f"results_dir={tmp_path}"])
    runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")
    *_, finding, opening, last = capsys.readouterr().out.splitlines()
    assert finding.startswith("- architecture_aware on digits: ")
    assert opening == "Open"
    card = Path(last.strip())
    assert card == tmp_path / "export" / "architecture_aware" / "README.md"
    assert "NATS-tss-digits-architecture_aware-simple" in card.read_text()


def test_the_data_card_takes_names_for_text_and_its_code_for_code(make_settings: MakeSettings) -> None:
    """Recipe and data set are called by files, devices and versions are as records have them."""
    name, harm = 'a"b\\ `c` */x', "</code><script>alert(1)</script>|*d*\n\n# e"
    plain = make_settings(*asked("digits", 200))
    records = [
        replace(record, recipe=name, device=harm, torch=harm, code_version=harm)
        for record in made_up(plain)
        if record.recipe == plain.analysis.recipe
    ]
    settings = plain.model_copy(
        update={
            "analysis": plain.analysis.model_copy(update={"recipe": name}),
            "dataset": plain.dataset.model_copy(update={"name": name}),
        }
    )
    found = export_module._Chosen(records, NETWORKS, {"recipe": name})
    card = export_module._data_card(export_module._table(export_module._by_cell(found), settings), found, settings)
    fences = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
    codes = [code for kind, code in fences.findall(card) if kind == "python"]
    called = [
        node.args[0] for code in codes for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and node.args
    ]
    said = {node.value for node in called if isinstance(node, ast.Constant)}
    assert {
        export_module._nats_name(settings, NAS_BENCH_201.published),
        export_module._pth_name(settings),
        name,
    } <= said
    seen = Seen(markdown.markdown(fences.sub("", card)))
    assert set(seen.elements) <= {"h1", "h2", "p", "ul", "li", "strong", "code"}
    shown = seen.text.replace("\\", "")
    assert shown.startswith(f"NAS-Bench-201's cells on {name}, retrained: {name} ".replace("\\", ""))
    assert f"NATS-tss-{name}-{name}-simple".replace("\\", "") in shown
    assert shown.count("</code><script>alert(1)</script>|*d* # e") == 3


@pytest.mark.parametrize("normalisation", ["batch", "none"])
def test_data_card_and_files_name_a_normalisation_that_is_not_the_benchmarks(
    make_settings: MakeSettings, normalisation: str
) -> None:
    settings = make_settings(*asked("digits", 200), f"network.normalisation={normalisation}")
    records = [record for record in made_up(settings, (0,)) if record.recipe == settings.analysis.recipe]
    found = export_module._Chosen(records, NETWORKS, {})
    card = export_module._data_card(export_module._table(export_module._by_cell(found), settings), found, settings)
    without = normalisation == "none"
    assert ("**The networks were trained without normalisation; NAS-Bench-201's have BatchNorm.**" in card) == without
    assert (", without BatchNorm." in export_module._origin(settings)) == without


def test_curves_are_a_table_of_their_own_where_there_are_any(make_settings: MakeSettings) -> None:
    settings = make_settings("analysis.recipe=benchmark", "seeds=[777,888,999]", "training.epochs=3")
    plain = stored(settings)
    folder = export(settings)
    assert not (folder / "curves.parquet").exists()
    assert "curves" not in (folder / "README.md").read_text()
    curves = {
        record.key: tuple(float(record.network_class + record.seed + epoch) for epoch in range(3))
        for record in plain
        if record.seed != 888 and record.status == "finished"
    }
    shutil.rmtree(settings.results_dir / "runs")
    with store.RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(*(replace(record, train_loss_curve=curves.get(record.key)) for record in plain))
    assert export(settings) == folder
    found = pd.read_parquet(folder / "curves.parquet")
    rows = found[["index", "network_class", "dataset", "recipe", "seed", "epoch", "train_loss"]]
    assert [tuple(row) for row in rows.itertuples(index=False)] == [
        (record.cell, record.network_class, "digits", "benchmark", record.seed, epoch + 1, value)
        for record in sorted(plain, key=lambda record: (record.network_class, record.seed))
        for epoch, value in enumerate(curves.get(record.key, ()))
    ]
    assert list(found.columns) == list(rows.columns)
    card = (folder / "README.md").read_text()
    assert f"of the {len(curves)} of {len(plain)} trainings that\n  have curves: train_loss." in card
    assert "epochs before the last (save in `curves.parquet`), validation" in card


@pytest.mark.parametrize("table", ["accuracies.csv", "accuracies.parquet"])
def test_an_export_is_read_as_the_records_that_it_was_made_of(make_settings: MakeSettings, table: str) -> None:
    settings = make_settings("analysis.recipe=benchmark", "seeds=[777,888,999]")
    stored(settings)
    folder = export(settings)
    store.merge(settings.results_dir)
    ours = benchmark.read(settings.results_dir / "runs.parquet", "digits", NAS_BENCH_201, recipe="benchmark")
    back = benchmark.read(folder / table, "digits", NAS_BENCH_201, recipe="another")
    assert (back.name, back.per_class) == ("benchmark", ours.per_class)
    pd.testing.assert_frame_equal(back.runs, ours.runs)
    losses = benchmark.read(folder / table, "digits", NAS_BENCH_201, recipe="", column="train_accuracy")
    assert not losses.runs["accuracy"].equals(ours.runs["accuracy"])
    with pytest.raises(NasRetrainError, match="no accuracies on cifar10; it has digits"):
        benchmark.read(folder / table, "cifar10", NAS_BENCH_201, recipe="benchmark")


@pytest.mark.parametrize("pattern", ["*.pth", "NATS-tss-*-simple"])
def test_the_exported_files_of_the_packages_are_read(make_settings: MakeSettings, pattern: str) -> None:
    settings = make_settings("analysis.recipe=benchmark", "seeds=[777,888,999]", "training.epochs=12")
    records = stored(settings)
    found = benchmark.read(only(export(settings), pattern), "digits", NAS_BENCH_201, recipe="", epochs=12)
    assert set(zip(found.runs["index"], found.runs["seed"], strict=True)) == set(of_cells(records))


def test_what_the_package_reads_otherwise_than_it_was_stored_is_no_export(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(*asked("cifar10", 200))
    stored(settings, (0,))
    before = (export(settings) / "README.md").read_bytes()
    write = export_module._write_pth

    def wrong(states: dict[int, dict[str, Any]], *rest: Any) -> None:
        (result, *_) = states[0]["all_results"].values()
        result["eval_acc1es"]["ori-test@199"] += 0.01
        write(states, *rest)

    monkeypatch.setattr(export_module, "_write_pth", wrong)
    with pytest.raises(NasRetrainError, match=r"nas-bench-201 reads 1 accuracies of .*\.pth otherwise"):
        export(settings)
    folder = settings.results_dir / "export" / settings.analysis.recipe
    assert (folder / "README.md").read_bytes() == before
    monkeypatch.setattr(export_module, "_write_pth", lambda _, path, *__: path.write_bytes(b"PK\3\4 cut short"))
    with pytest.raises(NasRetrainError, match="nas-bench-201"):
        export(settings)
    assert (folder / "README.md").read_bytes() == before


def recorded(training: Training, test_accuracy: float) -> RunRecord:
    """What a training could have left."""
    return RunRecord(
        bench=training.bench, dataset=training.dataset, recipe=training.recipe, cell=training.cell,
        arch=training.arch, network_class=training.network_class, seed=training.seed, epochs=training.epochs,
        learning_rate=training.learning_rate, in_degree=in_degree_of(training.initialisation), status="finished",
        train_loss=1.0, train_accuracy=50.0, test_loss=1.0, test_accuracy=test_accuracy, seconds=1.0,
        images_per_second=1000.0, device="cpu", torch="2", code_version="0", config_hash=training.config_hash,
        started="", finished="", **train._decided(training),
    )  # fmt: skip


AT_ONCE = NAS_BENCH_201.index_of(
    "|avg_pool_3x3~0|+|avg_pool_3x3~0|none~1|+|nor_conv_3x3~0|avg_pool_3x3~1|nor_conv_1x1~2|"
)
IN_TWO = NAS_BENCH_201.index_of(
    "|avg_pool_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_1x1~1|skip_connect~2|"
)
"""One network, for which a rule that counts additions decides two rates."""


def test_under_a_rule_each_cell_has_the_training_that_was_made_by_what_is_decided_for_it(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings(
        "recipe=[benchmark,by_rule]", "analysis.recipe=by_rule", "dataset.base_rate=0.4", "seeds=[1,2]",
        f"cells=[{AT_ONCE},{IN_TWO},{SHARED}]",
    )  # fmt: skip
    random = np.random.default_rng(0)
    records = [recorded(one, random.uniform(20, 100)) for one in plan.recipe_trainings(settings, 0.4)]
    with store.RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(*records)
    folder = export(settings)
    table = pd.read_parquet(folder / "accuracies.parquet")
    size, rule = registry.size_of(settings), find("effective_depth")

    def factor(cell: int) -> float:
        return rule.decide(NAS_BENCH_201.graph_at(cell), size, "a cell").learning_rate

    accuracy = {(record.cell, record.seed): record.test_accuracy for record in records if record.recipe == "by_rule"}
    for index, representative, seed, found, rate, decided in table[
        ["index", "representative", "seed", "test_accuracy", "learning_rate", "rule_factor"]
    ].itertuples(index=False):
        assert decided == factor(index)
        assert rate == pytest.approx(0.4 * decided)
        assert found == accuracy[representative, seed]
    trained = {(NETWORKS[cell], factor(cell)) for cell, _ in accuracy}
    alike = {*members(NETWORKS[AT_ONCE]), *members(SHARED)}
    assert set(table["index"]) == {cell for cell in alike if (NETWORKS[cell], factor(cell)) in trained}
    of_two = table.set_index("index")["rule_factor"]
    assert set(of_two[AT_ONCE]) != set(of_two[IN_TWO])
    assert set(table["rule"]) == {"effective_depth"}
    assert "what the recipe's rule decided for it" in (folder / "README.md").read_text()
    # Without a rule there are no such columns, and one hash for all.
    plain = settings.model_copy(update={"analysis": settings.analysis.model_copy(update={"recipe": "benchmark"})})
    folder = export(plain)
    assert not {"rule", "rule_layers"} & set(pd.read_parquet(folder / "accuracies.parquet").columns)
    assert "each training carried it" in (folder / "README.md").read_text()
    # The records are one recipe for an analysis too, unless they are of two states of the rule.
    store.merge(settings.results_dir)
    table_of_records = settings.results_dir / "runs.parquet"
    assert len(benchmark.read_recipe(table_of_records, "digits", "by_rule").runs) == len(accuracy)
    with store.RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(
            *(replace(one, config_hash=f"2{one.config_hash}", rule_factor=0.1) for one in records if one.rule)
        )
    store.merge(settings.results_dir)
    with pytest.raises(NasRetrainError, match="by_rule under several settings"):
        benchmark.read_recipe(table_of_records, "digits", "by_rule")


def test_networks_at_rates_of_their_own_are_all_exported(make_settings: MakeSettings) -> None:
    settings = make_settings(
        "recipe=[benchmark,own_rate]", "analysis.recipe=own_rate", f"cells=[0,11,{SHARED}]", "seeds=[1]",
        "own_rate={classes: 3, lowest: 0.01, highest: 0.1, points: 3, seeds: [11], fresh_seeds: [111], "
        "validation_images: 100}",
    )  # fmt: skip
    best = {NETWORKS[0]: 0.01, NETWORKS[11]: 0.1, SHARED: 0.1}
    searches = [
        recorded(one, 90.0 if one.learning_rate == best[one.network_class] else 50.0)
        for one in plan.search_trainings(settings)
    ]
    made = plan.make_plan(settings, store.StoredRuns.of(searches))
    with store.RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(*searches, *(recorded(one, 80.0) for one in made.recipes))
    folder = export(settings)
    table = pd.read_parquet(folder / "accuracies.parquet")
    assert dict(zip(table["network_class"], table["learning_rate"], strict=True)) == best
    assert "a learning rate that was searched for it" in (folder / "README.md").read_text()
