"""NATS-Bench's size space: its names, costs and networks, and its published files and exports against its package."""

from __future__ import annotations

import bz2
import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nats_bench import create

from nas_retrain.benches import build, registry
from nas_retrain.benches.nats_size.space import GENOTYPE, SizedGraph, SizeSpace, parse
from nas_retrain.commands.export import export
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import plan
from nas_retrain.settings import Settings
from nas_retrain.statistics import accuracies
from nas_retrain.theory.rule import find
from nas_retrain.theory.scaling import in_degree_of, learning_rate_factor
from nas_retrain.trainings import store
from nas_retrain.trainings.store import RunRecord
from tests.conftest import MakeSettings

SPACE = SizeSpace()
PUBLISHED = {0: ("8:8:8:8:8", 0.011714, 4.481114), 11: ("8:8:8:16:32", 0.049202, 6.84065)}
PUBLISHED |= {284: ("8:8:40:32:40", 0.144834, 21.827994)}
"""Names, millions of parameters and of multiply-accumulates of the cells' files in the package's repository
(fake_torch_dir of D-X-Y/NATS-Bench), which count the readout's biases among the latter."""

MANY = "64:48:16:8:40"


def sizes(make_settings: MakeSettings, *overrides: str) -> Settings:
    return make_settings("bench=sss", "network.channels=16", *overrides)


@pytest.mark.parametrize("cell", PUBLISHED)
def test_names_and_costs_are_the_published_ones(cell: int) -> None:
    arch, parameters, flops = PUBLISHED[cell]
    graph = SPACE.graph_at(cell)
    assert SPACE.arch_at(cell) == SPACE.archs[cell] == arch
    assert SPACE.parameters(graph, SPACE.sizes) / 1e6 == pytest.approx(parameters, abs=1e-12)
    assert (SPACE.flops(graph, SPACE.sizes) + SPACE.sizes.classes) / 1e6 == pytest.approx(flops, abs=1e-12)


def test_networks_are_numbered_and_each_is_its_own_class() -> None:
    assert len(set(SPACE.archs)) == SPACE.size == 8**5
    some = range(0, SPACE.size, 997)
    assert [SPACE.archs.index(SPACE.arch_at(cell)) for cell in some] == list(some)
    assert len({SPACE.graph_at(cell).network_class for cell in some}) == len(some)
    assert SPACE.arch_at(SPACE.base_cell) == "32:32:32:32:32"
    for wrong in ("8:8:8:8", "8:8:8:8:9", "8:8:8:8:8:8", "08:8:8:8:8", ""):
        with pytest.raises(NasRetrainError, match="Malformed network"):
            parse(wrong)
    with pytest.raises(NasRetrainError, match="out of range"):
        SPACE.arch_at(8**5)


def test_the_paper_s_rules_treat_all_networks_alike(make_settings: MakeSettings) -> None:
    settings = sizes(make_settings, "cells=[0, 11, 284, 32767]")
    rates = {training.learning_rate for training in plan.recipe_trainings(settings, 0.3)}
    assert rates == {0.1, 0.3}
    assert {learning_rate_factor(SPACE.graph_at(cell), SPACE.base) for cell in range(0, 8**5, 997)} == {1.0}
    size = registry.size_of(settings)
    for rule in ("paper", "depth", "effective_depth", "one_rate", "he"):
        decided = find(rule).decide(SPACE.base, size, "the base network")
        assert decided.learning_rate == 1
        for cell in (0, 11, 284, 32767):
            assert find(rule).decide(SPACE.graph_at(cell), size, SPACE.arch_at(cell)) == decided
    with pytest.raises(NasRetrainError, match="width"):
        find("mup").decide(SPACE.graph_at(0), registry.size_of(settings), SPACE.arch_at(0))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("stock", "he", "target")]


@pytest.mark.parametrize("initialisation", ["source", *SLOW])
def test_members_come_to_what_each_comes_to_alone(make_settings: MakeSettings, initialisation: Any) -> None:
    settings = sizes(make_settings)
    graph = parse(MANY)
    alone = [build.build(graph, settings, initialisation=initialisation, seed=seed) for seed in range(3)]
    joined = build.join(alone).double()
    alone = [network.double() for network in alone]
    assert sum(part.numel() for part in alone[0].parameters()) == SPACE.parameters(graph, registry.Sizes.of(settings))
    for network in (joined, *alone):
        rows = [sum(block.rows for block in blocks) for blocks in network.parameter_blocks]
        assert rows == [len(part) // network.members for part in network.parameters()]
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = torch.cat([network(images) for network in alone], 1)
    found = joined(images.repeat(1, 3, 1, 1))
    torch.testing.assert_close(found, outputs, rtol=1e-9, atol=1e-9)
    found.square().sum().backward()
    outputs.square().sum().backward()
    for together, *apart in zip(joined.parameters(), *(network.parameters() for network in alone), strict=True):
        expected = torch.cat([part.grad for part in apart if part.grad is not None])
        torch.testing.assert_close(together.grad, expected, rtol=1e-8, atol=1e-9)


def test_a_network_is_its_description_edge_by_edge(make_settings: MakeSettings) -> None:
    """The widths of what each convolution reads and puts out, in order."""
    network = build.build(parse(MANY), sizes(make_settings, "network.channels=64"), initialisation="stock", seed=0)
    shapes = [tuple(part.shape[:2]) + part.shape[2:3] for part in network.parameters() if part.ndim == 4]

    def cell(before: int, width: int) -> list[tuple[int, int, int]]:
        skip = [] if before == width else [(width, before, 1)]
        return [(width, before, 3), (width, before, 3), *skip, *[(width, width, 3)] * 3]

    expected = [(64, 1, 3), *cell(64, 64)]
    expected += [(48, 64, 3), (48, 48, 3), (48, 64, 1), *cell(48, 16)]
    expected += [(8, 16, 3), (8, 8, 3), (8, 16, 1), *cell(8, 40)]
    assert shapes == expected
    with pytest.raises(NasRetrainError, match="one cell a stage"):
        build.build(parse(MANY), sizes(make_settings, "network.cells_per_stage=2"), initialisation="he", seed=0)


def test_normalisation_cannot_be_chosen(make_settings: MakeSettings) -> None:
    with pytest.raises(NasRetrainError, match=r"network\.normalisation has no meaning for bench sss"):
        sizes(make_settings, "network.normalisation=none")


def published(folder: Path) -> dict[tuple[int, int, int], float]:
    """Write three cells' files in the published form; returns accuracies by cell, seed and epochs."""
    folder.mkdir()
    random, expected = np.random.default_rng(0), {}
    for cell in PUBLISHED:
        arch = SPACE.arch_at(cell)
        budgets = {}
        for epochs, seeds in ((1, [777]), (12, [777, 888, 999]), (90, [777])):
            results = {}
            for seed in seeds:
                tests = itertools.product(("x-valid", "x-test", "ori-test"), range(epochs))
                accuracy = {f"{test}@{epoch}": float(random.uniform(10, 90)) for test, epoch in tests}
                expected[cell, seed, epochs] = accuracy[f"ori-test@{epochs - 1}"]
                curve = {epoch: float(random.uniform(0, 3)) for epoch in range(epochs)}
                results["cifar100", seed] = {
                    "name": "cifar100", "net_state_dict": None, "train_acc1es": curve, "train_acc5es": curve,
                    "train_losses": curve, "train_times": curve, "seed": f"{seed:04d}", "epochs": epochs,
                    "arch_config": {"name": "infer.shape.tiny", "channels": arch, "arch_str": arch,
                                    "genotype": GENOTYPE, "class_num": 100},
                    "params": np.float64(0.01), "flop": 4.4, "latency": [np.float64(0.01)],
                    "eval_names": ["x-valid", "x-test", "ori-test"], "eval_acc1es": accuracy, "eval_times": {},
                    "eval_losses": accuracy,
                }  # fmt: skip
            budgets[f"{epochs:02d}"] = {
                "arch_index": cell, "arch_str": arch, "all_results": results, "dataset_seed": {"cifar100": seeds},
                "clear_net_done": True,
            }  # fmt: skip
        (folder / f"{cell:06d}.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps(budgets, protocol=4)))
    meta = {"meta_archs": list(SPACE.archs), "total_archs": SPACE.size, "arch2infos": None,
            "evaluated_indexes": list(PUBLISHED)}  # fmt: skip
    (folder / "meta.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps(meta, protocol=4)))
    return expected


def test_published_files_are_read_as_their_package_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "NATS-sss-v1_0-50262-simple"
    expected = published(folder)
    api = create(str(folder), "sss", fast_mode=True, verbose=False)
    for epochs in (1, 12, 90):
        found = accuracies.read(folder, "cifar100", SPACE, recipe="", epochs=epochs).runs
        ours = dict(zip(zip(found["index"], found["seed"], strict=True), found["accuracy"], strict=True))
        assert ours == {(cell, seed): value for (cell, seed, its), value in expected.items() if its == epochs}
        for cell in PUBLISHED:
            theirs = api.query_by_index(cell, "cifar100", f"{epochs:02d}")
            values = {seed: one.get_eval("ori-test")["accuracy"] for seed, one in theirs.items()}
            assert values == {seed: value for (its, seed), value in ours.items() if its == cell}


def test_an_export_is_opened_by_its_package(make_settings: MakeSettings) -> None:
    settings = sizes(make_settings, "cells=[0, 11, 284]", "training.epochs=3", "dataset.base_rate=0.3", "seeds=[1,2]")
    random = np.random.default_rng(1)
    records = [
        RunRecord(
            bench=training.bench, dataset=training.dataset, recipe=training.recipe, cell=training.cell,
            arch=training.arch, network_class=training.network_class, seed=training.seed, epochs=training.epochs,
            learning_rate=training.learning_rate, in_degree=in_degree_of(training.initialisation), status="finished",
            train_loss=1.0, train_accuracy=50.0, test_loss=1.0, test_accuracy=random.uniform(20, 100), seconds=1.0,
            images_per_second=1000.0, device="cpu", torch="2", code_version="0", config_hash=training.config_hash,
            started="", finished="",
        )
        for training in plan.recipe_trainings(settings, 0.3)
    ]  # fmt: skip
    with store.RunWriter(settings.results_dir / "runs", "local") as writer:
        writer.append(*records)
    folder = export(settings)
    (nats,) = folder.glob("NATS-sss-*")
    assert not list(folder.glob("*.pth"))
    api = create(str(nats), "sss", fast_mode=True, verbose=False)
    for record in records:
        if record.recipe == settings.analysis.recipe:
            info = api.get_more_info(record.cell, "digits", hp="03", is_random=record.seed)
            assert info["valtest-accuracy"] == record.test_accuracy
            assert api.get_net_config(record.cell, "digits")["channels"] == record.arch
    back = accuracies.read(nats, "digits", SPACE, recipe="", epochs=3).runs
    assert len(back) == 6
    card = (folder / "README.md").read_text()
    assert card.startswith("# NATS-sss's cells on digits")
    assert '"sss", fast_mode=True' in card


def test_a_graph_has_its_widths_and_is_told_apart_by_them() -> None:
    one, other = parse("8:8:8:8:8"), parse("8:8:8:8:16")
    assert isinstance(one, SizedGraph)
    assert one.live.edges == other.live.edges
    assert one != other
    assert replace(one, widths=other.widths) == other
    assert list(itertools.islice(SPACE.archs, 3)) == ["8:8:8:8:8", "8:8:8:8:16", "8:8:8:8:24"]
