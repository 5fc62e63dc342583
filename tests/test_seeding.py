"""Which trainings share their draws: one network's under several recipes always, several networks' only if asked."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch

from nas_retrain import seeding
from nas_retrain.benches import build
from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import train as training
from nas_retrain.execution.steps import epoch_seed
from nas_retrain.plan import plan
from nas_retrain.plan.claims import claim_results_folder
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import RunRecord
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.strategies import NAS_BENCH_201

CPU = torch.device("cpu")
CELL = NAS_BENCH_201.index_of("|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")
OTHER = NAS_BENCH_201.index_of("|nor_conv_3x3~0|+|nor_conv_1x1~0|nor_conv_1x1~1|+|none~0|none~1|nor_conv_3x3~2|")


@cache
def split() -> tuple[int, int]:
    """A class whose members differ in their initialisation under "target"."""
    maps = NAS_BENCH_201.training_classes(None), NAS_BENCH_201.training_classes("target")
    return next((one, other) for other, (one, trained) in enumerate(zip(*maps, strict=True)) if trained == other != one)


def planned_trainings(settings: Settings) -> list[Training]:
    return plan.recipe_trainings(settings, 0.5)


def draws(planned: Training, settings: Settings) -> torch.Tensor:
    """What the first weights and the first three batches' labels are drawn to."""
    seed = training.seed_of_generator(planned, settings)
    graph = NAS_BENCH_201.graph_at(planned.cell)
    network = build.build(graph, settings, initialisation="stock", seed=seed)
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    drawn = batches.training_batches(data, 32, torch.Generator().manual_seed(epoch_seed(seed, 1)))
    labels = [batch[1].flatten() for batch in itertools.islice(drawn, 3)]
    return torch.cat([next(iter(network.parameters())).flatten().detach(), *labels])


def test_nested_seeds_differ_between_networks_and_are_one_network_s_in_all_recipes(make_settings: MakeSettings) -> None:
    recipes = "recipe=[benchmark,architecture_aware]"
    convention = "recipes.architecture_aware.in_degree=target"
    for which, shared in (("nested", False), ("shared", True)):
        settings = make_settings(
            f"cells=[{CELL},{OTHER},{split()[0]},{split()[1]}]", recipes, convention, f"seeding={which}"
        )
        by_network: dict[tuple[int, int], list[torch.Tensor]] = {}
        for planned in planned_trainings(settings):
            network = NAS_BENCH_201.training_classes(None)[planned.cell]
            by_network.setdefault((network, planned.seed), []).append(draws(planned, settings))
        assert len(by_network) == 3 * len(settings.seeds)
        assert max(map(len, by_network.values())) == 3  # both members of the split class, beside the benchmark's recipe
        for members in by_network.values():
            assert all(torch.equal(one, members[0]) for one in members)
        for (one, other), seed in itertools.product(itertools.combinations({key[0] for key in by_network}, 2), [777]):
            assert torch.equal(by_network[one, seed][0], by_network[other, seed][0]) == shared
        (first,) = {network for network, seed in by_network if network == NAS_BENCH_201.training_classes(None)[CELL]}
        assert not torch.equal(by_network[first, 777][0], by_network[first, 888][0])


def test_searches_and_verification_are_seeded_alike(make_settings: MakeSettings) -> None:
    settings = make_settings("base_rate.seeds=[1,2]", "base_rate.points=3")
    searches = plan.search_trainings(settings)
    assert len({training.seed_of_generator(one, settings) for one in searches}) == 2
    assert {training.seed_of_generator(one, settings) for one in searches}.isdisjoint({1, 2})
    verified = make_settings("cells=sample:3", "base_rate.seeds=[1]", config="verify")
    assert verified.seeding == "shared"
    verified = verified.model_copy(update={"seeding": "nested"})
    by_cell = {(one.cell, training.seed_of_generator(one, verified)) for one in plan.recipe_trainings(verified, None)}
    assert len(by_cell) == len({cell for cell, _ in by_cell}) == len({seed for _, seed in by_cell}) > 3


def test_the_seed_of_a_generator_is_the_same_on_every_machine_and_no_two_coincide() -> None:
    assert seeding.generator_seed("nested", 0, 777) == 4000424472086708465
    assert seeding.generator_seed("nested", 5374, 888) == 643791750062917157
    seeds = [0, -1, 7, 77, 777, 888, 999, 2**40]
    found = [seeding.generator_seed("nested", number, seed) for number in range(6000) for seed in seeds]
    assert len(set(found)) == len(found)
    assert 0 <= min(found) <= max(found) < 2**63
    assert [seeding.generator_seed("shared", number, 777) for number in (0, 5)] == [777, 777]


def train(
    group: list[Training], settings: Settings, checkpoint: Path, stop_after: int | None = None
) -> list[RunRecord]:
    data = batches.load(settings.dataset, settings.data_dir, CPU)
    steps = itertools.count()
    training.prepare_process(CPU)
    try:
        return training.train(
            group, settings, data, checkpoint, lambda: stop_after is not None and next(steps) == stop_after
        )
    finally:
        torch.use_deterministic_algorithms(mode=False)


@pytest.mark.parametrize(
    ("recipe", "config_hash", "train_loss", "test_loss"),
    [
        ("benchmark", "18a601f1f63e", 1.7751025390625, 1.75486159324646),
        ("architecture_aware", "4293a6d9cf7a", 1.9223050944010416, 1.608649492263794),
    ],
)
def test_shared_seeds_give_what_they_gave_before_there_was_a_choice(
    make_settings: MakeSettings, tmp_path: Path, recipe: str, config_hash: str, train_loss: float, test_loss: float
) -> None:
    """Figures of version 0.1.0, which other processors round otherwise in the last bits."""
    settings = make_settings(f"cells=[{CELL}]", f"recipe=[{recipe}]", "seeding=shared", "dataset.verify=true")
    planned = planned_trainings(settings)[0]
    assert planned.config_hash == config_hash
    (record,) = train([planned], settings, tmp_path / "checkpoint")
    assert record.seeding == "shared"
    assert record.train_loss == pytest.approx(train_loss, rel=1e-3)
    assert record.test_loss == pytest.approx(test_loss, rel=1e-3)


def test_a_nested_training_continues_and_trains_together_as_it_does_alone(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(
        f"cells=[{CELL}]", "recipe=[benchmark,architecture_aware]", "seeds=[1,2]", "training.epochs=1"
    )
    group = planned_trainings(settings)
    alone = [train([planned], settings, tmp_path / "none")[0] for planned in group]
    assert {record.seeding for record in alone} == {"nested"}
    with pytest.raises(training.Stopped):
        train(group[:1], settings, tmp_path / "checkpoint", stop_after=5)
    (resumed,) = train(group[:1], settings, tmp_path / "checkpoint")
    assert (resumed.train_loss, resumed.test_loss) == (alone[0].train_loss, alone[0].test_loss)
    for one, together in zip(alone, train(group, settings, tmp_path / "none"), strict=True):
        assert together.train_loss == pytest.approx(one.train_loss, rel=1e-3)
        assert (together.seed, together.seeding) == (one.seed, "nested")


def test_the_choice_is_part_of_what_results_are_known_by_and_shared_hashes_stay(make_settings: MakeSettings) -> None:
    nested, shared = make_settings("recipe=[benchmark]"), make_settings("recipe=[benchmark]", "seeding=shared")
    assert planned_trainings(nested)[0].config_hash != planned_trainings(shared)[0].config_hash
    assert (
        planned_trainings(nested)[0].key
        == replace(planned_trainings(shared)[0], config_hash=planned_trainings(nested)[0].config_hash).key
    )
    assert "seeding" not in shared.identity("benchmark")


@pytest.mark.parametrize("which", ["nested", "shared"])
def test_a_results_folder_keeps_its_seeding_and_an_old_one_is_shared(make_settings: MakeSettings, which: str) -> None:
    settings = make_settings(f"seeding={which}")
    path = settings.results_dir / "settings.json"
    claim_results_folder(settings)
    assert json.loads(path.read_text())["seeding"] == which
    changed = make_settings(f"seeding={'shared' if which == 'nested' else 'nested'}")
    with pytest.raises(NasRetrainError, match="seeding: "):
        claim_results_folder(changed)
    old = json.loads(path.read_text())
    del old["seeding"]
    path.write_text(json.dumps(old))
    if which == "shared":
        claim_results_folder(settings)
    else:
        with pytest.raises(NasRetrainError, match="seeding: shared there, nested now"):
            claim_results_folder(settings)


def test_committed_records_are_found_under_the_settings_that_made_them(make_settings: MakeSettings) -> None:
    root = Path(__file__).parents[1] / "results" / "reference" / "201" / "fashion_mnist"
    settings = make_settings(
        "dataset=fashion_mnist",
        "profile=reference",
        "dataset.verify=true",
        "recipe=[benchmark]",
        "sensitivity=null",
        "network.channels=8",
        "training.epochs=8",
    )
    assert settings.seeding == "shared"
    hashes = set(pd.read_parquet(root / "runs.parquet", columns=["config_hash"])["config_hash"])
    wanted = {planned.config_hash for planned in plan.recipe_trainings(settings, 1.0) if planned.recipe == "benchmark"}
    assert wanted <= hashes
