"""Plans: which trainings the settings ask for, once per network class, less what is stored."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.commands import retrain
from nas_retrain.commands.command_line import CONFIGS, compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import plan
from nas_retrain.purpose import Variant
from nas_retrain.settings import Settings
from nas_retrain.theory.scaling import InDegree
from nas_retrain.trainings.store import RunRecord, StoredRuns
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings, composed_once
from tests.strategies import NAS_BENCH_201
from tests.trainings.test_store import a_record


def as_stored(training: Training) -> RunRecord:
    """A record with this training's key."""
    shared = {field: getattr(training, field) for field in training.key._fields}
    return replace(a_record(), **shared)


def test_every_form_of_cells(make_settings: MakeSettings) -> None:
    assert plan.chosen_cells(make_settings("cells=all")) == tuple(range(15625))
    assert plan.chosen_cells(make_settings("cells=[5,0,5,6111]")) == (5, 0, 6111)
    assert plan.chosen_cells(make_settings("cells='100:103'")) == (100, 101, 102)
    assert plan.chosen_cells(make_settings("cells='15620:15625'")) == tuple(range(15620, 15625))
    sample = plan.chosen_cells(make_settings("cells=sample:40"))
    assert sample == plan.chosen_cells(make_settings("cells=sample:40"))
    assert sample != plan.chosen_cells(make_settings("cells=sample:40", "sample_seed=1"))
    assert len(set(sample)) == 40
    classes = NAS_BENCH_201.training_classes(None)
    assert all(classes[cell] == cell and NAS_BENCH_201.graph_at(cell).connected for cell in sample)
    assert len(plan.chosen_cells(make_settings("cells=sample:5460"))) == 5460


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ("some", "none of: all"),
        ("'5:'", "none of: all"),
        ("sample:0", "5,460 connected"),
        ("sample:5461", "5,460 connected"),
        (f"sample:{'9' * 5000}", "none of: all"),
        (f"'0:{'9' * 5000}'", "none of: all"),
        ("sample:99999999", "5,460 connected"),
        ("'7:7'", "0 <= a < b <= 15625"),
        ("'0:15626'", "0 <= a < b <= 15625"),
        ("[3,15625]", "15625 is out of range.*0 to 15624"),
        ("[-1]", "-1 is out of range"),
        ("[]", "chooses no cell"),
    ],
)
def test_cells_that_do_not_exist_are_told(make_settings: MakeSettings, cells: str, told: str) -> None:
    with pytest.raises(NasRetrainError, match=told):
        plan.chosen_cells(make_settings(f"cells={cells}"))


def test_the_whole_benchmark_is_one_training_per_class_recipe_and_seed(make_settings: MakeSettings) -> None:
    settings = make_settings("cells=all", "seeds=[1,2,3]")
    trainings = plan.recipe_trainings(settings, 1.0)
    assert len(trainings) == 5461 * 2 * 3
    assert len({training.key for training in trainings}) == len(trainings)
    assert len({training.label for training in trainings}) == len(trainings)
    never_trained = {training.network_class for training in trainings if training.learning_rate is None}
    assert len(never_trained) == 1
    assert not NAS_BENCH_201.graph_at(never_trained.pop()).connected


def test_members_of_one_class_share_one_training(make_settings: MakeSettings) -> None:
    classes = NAS_BENCH_201.training_classes(None)
    twin = next(cell for cell in range(15625) if classes[cell] != cell and NAS_BENCH_201.graph_at(cell).connected)
    trainings = plan.recipe_trainings(make_settings(f"cells=[{twin},{classes[twin]}]", "seeds=[1]"), 1.0)
    assert [training.cell for training in trainings] == [classes[twin]] * 2  # one for each recipe


@pytest.mark.parametrize("convention", ["target", "released"])
def test_members_that_a_convention_initialises_differently_are_trained_apart(
    make_settings: MakeSettings, convention: InDegree
) -> None:
    recipe = ("recipe=[initialisation_only]", f"recipes.initialisation_only.in_degree={convention}")
    trained = plan.recipe_trainings(make_settings("cells=all", "seeds=[1]", *recipe), None)
    assert {training.network_class for training in trained} == set(NAS_BENCH_201.training_classes(convention))
    assert len(trained) > 5461
    assert {training.initialisation for training in trained} == {convention}


EARLIER = [
    (
        "config",
        [
            "dataset=cifar10",
            "cells=[0,5,6111,131]",
            "recipe=[benchmark,architecture_aware,learning_rate_only,initialisation_only]",
        ],
        {
            "benchmark/0": "282446cca1e8",
            "architecture_aware/0": "590649c32b2a",
            "learning_rate_only/0": "78e8a395bce3",
            "initialisation_only/0": "11f1f29f2bc0",
            "benchmark/6111": "282446cca1e8",
            "architecture_aware/6111": "590649c32b2a",
            "learning_rate_only/6111": "78e8a395bce3",
            "initialisation_only/6111": "11f1f29f2bc0",
        },
    ),
    (
        "config",
        ["dataset=cifar100", "cells=[6111]", "recipes.architecture_aware.in_degree=target"],
        {
            "benchmark/6111": "f0c38d6a2d47",
            "architecture_aware/6111": "31b5c8110a9f",
        },
    ),
    (
        "config",
        ["dataset=digits", "profile=dry", "cells=[1,2,131]"],
        {
            "benchmark/1": "d8c8430006e6",
            "architecture_aware/1": "cba249daa90b",
        },
    ),
    (
        "config",
        ["dataset=fashion_mnist", "profile=reference", "cells=[8219,131]"],
        {
            "tuned_rate_search/3/0.01": "44ea5d79b101",
            "tuned_rate_search/3/0.1": "81634ee0286f",
            "tuned_rate_search/3/10.0": "19f93a66c656",
            "own_rate_search/8219/0.00625": "20aa45072ed2",
            "own_rate_search/8219/0.0125": "75f724fadb00",
            "own_rate_search/8219/0.025": "a4583d8f828b",
            "own_rate_search/8219/0.05": "fcebd9fab560",
            "own_rate_search/8219/0.1": "05c00c9499c2",
            "own_rate_search/8219/0.2": "7ccf10e7d833",
            "benchmark/8219": "d6f4831ff742",
            "tuned_rate/8219": "7a41f663c78c",
            "architecture_aware/8219": "7368ce16131b",
            "learning_rate_only/8219": "af4608f038eb",
            "initialisation_only/8219": "52ae4ee0ade2",
            "own_rate/8219": "7a7fc18dadbb",
            "benchmark/8219/epochs=1": "f1a9dc9ae034",
            "tuned_rate/8219/epochs=1": "c41b0df124d7",
            "architecture_aware/8219/epochs=1": "e29fe02155c8",
            "benchmark/8219/epochs=2": "9101c4173621",
            "tuned_rate/8219/epochs=2": "8a71b2bb68e1",
            "architecture_aware/8219/epochs=2": "7c7221c74408",
            "benchmark/8219/epochs=4": "42b81056838b",
            "tuned_rate/8219/epochs=4": "91054806fd8d",
            "architecture_aware/8219/epochs=4": "77495059a95a",
            "architecture_aware/8219/base_rate*0.25": "f6bd5b0322f3",
            "architecture_aware/8219/base_rate*0.5": "1e22630e0d49",
            "architecture_aware/8219/base_rate*2": "b79e8121848b",
            "architecture_aware/8219/base_rate*4": "fb3d2db3b630",
        },
    ),
    (
        "verify",
        ["dataset=digits", "profile=dry", "cells=[0,131,1]", "base_rate.points=1", "base_rate.seeds=[1]"],
        {
            "grid_he/0/0.01": "6e8be76d5117",
            "grid_mup/0/0.01": "64b03f59e6c8",
            "grid_source/0/0.01": "0cbc9d4c3a96",
            "grid_target/0/0.01": "36993389de50",
            "grid_he/3/0.01": "6e8be76d5117",
            "grid_mup/3/0.01": "64b03f59e6c8",
            "grid_source/3/0.01": "0cbc9d4c3a96",
            "grid_target/3/0.01": "36993389de50",
        },
    ),
    (
        "verify",
        ["bench=mlp", "dataset=digits", "profile=dry", "cells=[3,100]", "base_rate.points=1", "base_rate.seeds=[1]"],
        {
            "grid_he/27/0.005": "ecc495024771",
            "grid_mup/27/0.005": "581f22c8fda2",
            "grid_source/27/0.005": "8e889a23013d",
            "grid_target/27/0.005": "a91166714a5c",
        },
    ),
    (
        "verify",
        ["bench=cnn", "dataset=cifar10", "cells=[3]", "base_rate.points=1", "base_rate.seeds=[1]"],
        {
            "grid_he/81/0.01": "5f24b7f4b18b",
            "grid_mup/81/0.01": "536176d04fe3",
            "grid_source/81/0.01": "f399b1527627",
            "grid_target/81/0.01": "aa050f0c2683",
        },
    ),
]
"""Trainings of version 0.1.0, by recipe, cell and what else tells them apart, and the config_hash that it gave each."""


@pytest.mark.parametrize(("config", "overrides", "hashes"), EARLIER)
def test_records_of_earlier_versions_are_those_of_the_same_networks(
    config: str, overrides: list[str], hashes: dict[str, str]
) -> None:
    """Cell 131 has a convolution that 0.1.0 left out, so none of its records is what is planned now."""
    settings = compose(*overrides, "dataset.base_rate=0.46", "seeding=shared", config=config)
    found = {}
    for training in plan.make_plan(settings, StoredRuns.of([])).everything:
        which = training.slot.difference
        found["/".join(filter(None, (training.recipe, str(training.cell), which)))] = training.config_hash
    assert {name: found[name] for name in hashes} == hashes
    others = {config_hash for name, config_hash in found.items() if name.split("/")[1] == "131"}
    assert others.isdisjoint({config_hash for name, config_hash in found.items() if name.split("/")[1] != "131"})
    if "131" in str(overrides):
        assert others


def test_every_network_with_constants_has_another_hash_and_no_other_network(make_settings: MakeSettings) -> None:
    trained = plan.recipe_trainings(make_settings("cells=all", "seeds=[1]", "recipe=[benchmark]"), None)
    by_hash: dict[str, set[bool]] = {}
    for training in trained:
        constants = bool(NAS_BENCH_201.graph_at(training.cell).constants)
        by_hash.setdefault(training.config_hash, set()).add(constants)
    assert sorted(map(sorted, by_hash.values())) == [[False], [True]]


def test_the_reference_s_committed_trainings_are_in_use() -> None:
    """One of its 300 networks has a constant part, for which earlier versions had none; the others are all stored."""
    folder = CONFIGS.parent / "results" / "reference" / "201" / "fashion_mnist"
    settings = compose("dataset=fashion_mnist", "profile=reference", f"results_dir={folder}")
    cells = plan.chosen_cells(settings)
    assert len(cells) == 300
    assert set(cells) <= set(NAS_BENCH_201.training_classes(None))
    assert [cell for cell in cells if NAS_BENCH_201.graph_at(cell).constants] == [131]
    missing = plan.make_plan(settings, retrain.read_store(settings)).missing
    assert {training.cell for training in missing} <= {131}


@given(
    base_rate=st.floats(0.01, 10.0),
    cell=st.integers(0, 15624).filter(lambda cell: NAS_BENCH_201.graph_at(cell).connected),
)
def test_recipes_resolve_to_rates_and_initialisations(base_rate: float, cell: int) -> None:
    recipes = "recipe=[benchmark,architecture_aware,learning_rate_only,initialisation_only]"
    settings = composed_once(recipes, "seeds=[1]").model_copy(update={"cells": (cell,)})
    by_recipe = {training.recipe: training for training in plan.recipe_trainings(settings, base_rate)}
    depths = NAS_BENCH_201.graph_at(cell).path_depths()
    rule = base_rate * sum(paths * depth**3 for depth, paths in depths.items()) ** -0.5
    assert by_recipe["benchmark"].learning_rate == by_recipe["initialisation_only"].learning_rate == 0.1
    assert by_recipe["architecture_aware"].learning_rate == pytest.approx(rule)
    assert by_recipe["learning_rate_only"].learning_rate == pytest.approx(rule)
    assert by_recipe["benchmark"].initialisation == by_recipe["learning_rate_only"].initialisation == "stock"
    assert by_recipe["architecture_aware"].initialisation == by_recipe["initialisation_only"].initialisation == "source"


def test_the_key_changes_with_what_decides_the_result_only(make_settings: MakeSettings) -> None:
    def key(base_rate: float, *overrides: str) -> list[plan.RunKey]:
        return [training.key for training in plan.recipe_trainings(make_settings("cells=[5]", *overrides), base_rate)]

    assert key(1.0) == key(1.0, "launcher.checkpoint_every=1")
    other_rate = key(2.0)
    assert [a == b for a, b in zip(key(1.0), other_rate, strict=True)] == [True, True, False, False]
    assert not set(key(1.0)) & set(key(1.0, "training.epochs=7"))


def test_what_is_stored_is_not_planned_again(make_settings: MakeSettings) -> None:
    trainings = plan.recipe_trainings(make_settings("cells=sample:3"), 1.0)
    stored = [as_stored(training) for training in trainings[::2]]
    assert plan.remaining(trainings, StoredRuns.of(stored)) == trainings[1::2]
    assert plan.remaining(trainings, StoredRuns.of(map(as_stored, trainings))) == []


def test_a_rule_without_a_base_rate_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(NasRetrainError, match=r"architecture_aware.*base rate"):
        plan.recipe_trainings(make_settings(), None)
    assert plan.needs_base_rate(make_settings())
    assert not plan.needs_base_rate(make_settings("recipe=[benchmark]"))
    assert not plan.needs_base_rate(make_settings("dataset.base_rate=0.5"))


def test_the_search_trains_the_base_network_at_every_rate_and_seed(make_settings: MakeSettings) -> None:
    settings = make_settings("base_rate.points=4", "base_rate.seeds=[1,2]")
    search = plan.search_trainings(settings)
    assert {(t.learning_rate, t.seed) for t in search} == {(r, s) for r in settings.base_rate.grid for s in (1, 2)}
    assert len({training.key for training in search}) == 8
    assert {training.epochs for training in search} == {1}
    graph = NAS_BENCH_201.graph_at(search[0].cell)
    assert graph.layers == ()
    assert graph.path_depths() == {1: 1}
    # The seeds, cells and recipes of the comparison do not change what was searched.
    again = plan.search_trainings(
        make_settings("base_rate.points=4", "base_rate.seeds=[1,2]", "cells=[1]", "training.epochs=9")
    )
    assert again == search


def reference(make_settings: MakeSettings, *overrides: str) -> Settings:
    """The reference retraining's settings, on few cells."""
    small = ["training.epochs=8", "dataset.image_size=8", "dataset.train_subset=200", "own_rate.validation_images=50"]
    return make_settings("profile=reference", *small, *overrides)


def with_losses(trainings: list[Training], best: dict[str, float]) -> list[RunRecord]:
    """Records of searches in which each recipe has a best rate: the further from it, the worse."""
    stored = []
    for training in trainings:
        distance = abs(math.log((training.learning_rate or 1.0) / best[training.recipe]))
        stored.append(replace(as_stored(training), train_loss=distance, test_accuracy=90 - distance))
    return stored


def test_each_recipe_gets_the_rate_that_its_search_finds(make_settings: MakeSettings) -> None:
    settings = reference(make_settings, "cells=sample:6", "own_rate.classes=4", "sensitivity=null")
    grid, own_grid = settings.base_rate.grid, settings.own_rate.grid if settings.own_rate else ()
    planned = plan.make_plan(settings, StoredRuns.of([]))
    assert planned.searching
    searches = Counter(training.recipe for training in planned.search)
    assert searches == {"base_rate": 19 * 3, "tuned_rate_search": 19 * 3, "own_rate_search": 4 * 6 * 2}
    assert {training.validated for training in planned.search if training.recipe != "own_rate_search"} == {False}
    best = {"base_rate": grid[13], "tuned_rate_search": grid[7], "own_rate_search": own_grid[2]}
    made = plan.make_plan(settings, StoredRuns.of(with_losses(planned.search, best)))
    assert not made.searching
    assert made.base_rate == grid[13]
    rates = {(training.recipe, training.cell): training.learning_rate for training in made.recipes}
    cells = plan.chosen_cells(settings)
    assert [rates["tuned_rate", cell] for cell in cells] == [grid[7]] * 6
    assert [rates.get(("own_rate", cell)) for cell in cells] == [own_grid[2]] * 4 + [None] * 2
    assert made.missing == made.recipes
    seeds = {(training.recipe == "own_rate", training.seed) for training in made.recipes}
    assert seeds == {(False, 777), (False, 888), (False, 999), (True, 111), (True, 222), (True, 333)}
    before = {training.slot: training.key for training in planned.recipes}
    for training in made.recipes:  # a training is another one if the rate that was found is another
        assert (before[training.slot] == training.key) == (training.recipe in ("benchmark", "initialisation_only"))


def test_a_search_that_lacks_a_training_makes_only_its_own_recipe_wait(make_settings: MakeSettings) -> None:
    settings = reference(make_settings, "cells=sample:3", "own_rate.classes=2", "sensitivity=null")
    search = plan.search_trainings(settings)
    grid, own_grid = settings.base_rate.grid, settings.own_rate.grid if settings.own_rate else ()
    best = {"base_rate": grid[13], "tuned_rate_search": grid[7], "own_rate_search": own_grid[2]}
    whole = plan.make_plan(settings, StoredRuns.of(with_losses(search, best)))
    lacking = plan.make_plan(settings, StoredRuns.of(with_losses(search[:-1], best)))
    assert lacking.searching
    differing = {new.cell for old, new in zip(whole.recipes, lacking.recipes, strict=True) if old != new}
    recipes = {new.recipe for old, new in zip(whole.recipes, lacking.recipes, strict=True) if old != new}
    assert (recipes, differing) == ({"own_rate"}, {search[-1].cell})


def test_an_own_rate_is_chosen_by_the_validation_images(make_settings: MakeSettings) -> None:
    settings = reference(make_settings, "cells=sample:1", "own_rate.points=2", "own_rate.seeds=[1]", "sensitivity=null")
    search = plan.search_trainings(settings)
    stored = [as_stored(training) for training in search]
    low, high = (number for number, training in enumerate(search) if training.validated)
    stored[low] = replace(stored[low], train_loss=2.0, test_accuracy=80.0)
    stored[high] = replace(stored[high], train_loss=1.0, test_accuracy=70.0)
    rates = {t.learning_rate for t in plan.make_plan(settings, StoredRuns.of(stored)).recipes if t.recipe == "own_rate"}
    assert rates == {search[low].learning_rate}


def test_sensitivity_varies_the_epochs_and_the_base_rate(make_settings: MakeSettings) -> None:
    settings = reference(make_settings, "cells=sample:5", "sensitivity.classes=2")
    made = plan.make_plan(settings, StoredRuns.of([]))
    assert settings.sensitivity is not None
    assert {training.network_class for training in made.sensitivity} == set(plan.chosen_cells(settings)[:2])
    assert Counter(training.slot.difference for training in made.sensitivity) == {
        **{f"epochs={epochs}": 2 * 3 * 3 for epochs in (1, 2, 4)},
        **{f"base_rate*{factor:g}": 2 * 3 for factor in (0.25, 0.5, 2, 4)},
    }
    main = {(training.recipe, training.cell, training.seed): training for training in made.recipes}
    for training in made.sensitivity:
        of_main = main[training.recipe, training.cell, training.seed]
        assert isinstance(training.purpose, Variant)
        assert training.epochs == (training.purpose.epochs or of_main.epochs)
        factor = training.purpose.base_rate_factor
        assert training.learning_rate == pytest.approx(factor * (of_main.learning_rate or 0.0))
    for name in ("slot", "key", "label"):
        assert len({getattr(training, name) for training in made.everything}) == len(made.everything)


def test_a_part_of_the_plan_is_planned_as_in_the_whole(make_settings: MakeSettings) -> None:
    settings = reference(make_settings, "cells=sample:8", "own_rate.classes=5", "sensitivity.classes=3")
    whole = plan.make_plan(settings, StoredRuns.of([]))
    cells = set(plan.chosen_cells(settings)[3:7])
    part = plan.make_plan(settings, StoredRuns.of([]), cells)
    base = whole.search[0].cell
    expected = [t for t in whole.everything if t.cell in cells or (t.tries_rate and not t.validated and t.cell == base)]
    assert part.everything == expected


@given(lost=st.sets(st.integers(0, 23), min_size=1), together=st.integers(1, 7))
def test_what_was_lost_is_trained_in_the_group_that_it_was_in(lost: set[int], together: int) -> None:
    trainings = plan.recipe_trainings(composed_once("cells=sample:4", "seeds=[1,2,3]"), 1.0)
    groups = plan.groups(trainings, together)
    records = [replace(as_stored(t), group=plan.group_name(group)) for group in groups for t in group]
    kept = [record for number, record in enumerate(records) if number not in lost]
    gone = {trainings[number].key for number in lost}
    expected = [group for group in groups if gone & {training.key for training in group}]
    assert plan.groups_to_train(trainings, StoredRuns.of(kept), together) == expected


def test_a_new_recipe_or_seed_does_not_train_the_others_again(make_settings: MakeSettings) -> None:
    def trainings(*overrides: str) -> list[Training]:
        return plan.recipe_trainings(make_settings("cells=sample:3", *overrides), 1.0)

    before = trainings("seeds=[1]")
    stored = [replace(as_stored(t), group=plan.group_name(group)) for group in plan.groups(before, 9) for t in group]
    for after in (
        trainings("seeds=[1,2]"),
        trainings("seeds=[1]", "recipe=[benchmark,architecture_aware,learning_rate_only]"),
    ):
        to_train = [training for group in plan.groups_to_train(after, StoredRuns.of(stored), 9) for training in group]
        assert sorted(t.key for t in to_train) == sorted(t.key for t in plan.remaining(after, StoredRuns.of(stored)))


def test_grids_go_beside_other_recipes_and_are_the_same_trainings(make_settings: MakeSettings) -> None:
    def planned(recipes: str) -> list[Training]:
        settings = make_settings("cells=sample:3", "dataset.base_rate=0.3", f"recipe=[{recipes}]")
        return plan.make_plan(settings, StoredRuns.of([])).everything

    both = planned("benchmark,grid_he,architecture_aware")
    assert both == planned("benchmark,architecture_aware") + planned("grid_he")
