"""The real configuration files compose, and a mistake is told by its key."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain import cli
from nas_retrain.cli import CONFIGS
from nas_retrain.config import BaseRateSettings, Settings, digest, to_settings
from nas_retrain.errors import NasRetrainError
from tests.conftest import MakeSettings

ROOT = Path(__file__).parents[1]
GROUPS = {group.name: [path.stem for path in group.glob("*.yaml")] for group in CONFIGS.iterdir() if group.is_dir()}


def composed(*overrides: str) -> Settings:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return to_settings(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize(
    ("dataset", "profile"),
    [*itertools.product(sorted(GROUPS["dataset"]), ("dry", "full")), ("fashion_mnist", "reference")],
)
def test_every_data_set_composes_under_every_profile(dataset: str, profile: str) -> None:
    settings = composed(f"dataset={dataset}", f"profile={profile}")
    assert settings.dataset.name == dataset
    assert settings.profile == profile
    if profile == "dry":
        assert settings.dataset.base_rate is None


def test_every_recipe_composes_and_has_its_own_name() -> None:
    searching = {name for name in GROUPS["recipe"] if name.startswith("grid_")}
    reference = ["profile=reference", "dataset=fashion_mnist", "sensitivity=null"]
    for names in (searching, set(GROUPS["recipe"]) - searching):
        recipes = composed(*reference, f"recipe=[{','.join(names)}]").recipes
        assert recipes.keys() == names
        assert {recipe.learning_rate == "grid" for recipe in recipes.values()} == {names == searching}


def test_the_defaults_are_the_benchmark_as_published() -> None:
    settings = composed()
    assert settings.training.model_dump() == {
        "epochs": 200, "batch_size": 256, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
        "precision": "float32",
    }  # fmt: skip
    assert (settings.network.channels, settings.network.cells_per_stage) == (16, 5)
    assert settings.seeds == (777, 888, 999)
    assert settings.recipes["benchmark"].learning_rate == 0.1
    assert settings.dataset.base_rate == 0.46


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+training.epoch=3", "training.epoch: there is no such key"),
        ("+traning.epochs=3", "traning: there is no such key"),
        ("training.epochs=0", "training.epochs: .*greater than 0.*got 0"),
        ("training.epochs=many", "training.epochs: .*got 'many'"),
        ("training.momentum=1", "training.momentum: .*less than 1"),
        ("seeds=[]", "seeds: "),
        ("recipe=[]", "recipes: "),
        ("recipes.benchmark.learning_rate=rool", "recipes.benchmark.learning_rate"),
        ("recipes.benchmark.learning_rate=-1", "recipes.benchmark.learning_rate"),
        ("launcher.device=tpu", "launcher.device: .*got 'tpu'"),
        ("base_rate.lowest=20", "base_rate: lowest is above highest"),
        ("dataset.train_subset=60000", "dataset: train_subset 60000 is larger than the 50000 training images"),
        ("dataset.mean=[1,2]", "dataset: mean and std need one value for each of the 3"),
    ],
)
def test_a_bad_value_is_one_error_that_names_the_key(override: str, told: str) -> None:
    with pytest.raises(NasRetrainError, match=told) as error:
        composed(override)
    assert "configs/" in str(error.value)


def test_settings_that_decide_nothing_leave_the_identity_alone(make_settings: MakeSettings) -> None:
    plain = make_settings()
    for harmless in ("launcher.workers=3", "cells=all", "seeds=[1]", "results_dir=x"):
        assert make_settings(harmless).identity("benchmark") == plain.identity("benchmark"), harmless
    for deciding in (
        "training.epochs=3",
        "network.channels=5",
        "dataset.padding=0",
        "recipes.benchmark.learning_rate=1",
    ):
        changed = make_settings(deciding)
        assert digest(changed.identity("benchmark")) != digest(plain.identity("benchmark")), deciding


@given(lowest=st.floats(1e-4, 1.0), ratio=st.floats(1.5, 1e4), points=st.integers(2, 40))
def test_the_grid_rises_evenly_from_lowest_to_highest(lowest: float, ratio: float, points: int) -> None:
    search = BaseRateSettings(
        lowest=lowest, highest=lowest * ratio, points=points, epochs=1, seeds=(1,), in_degree="source"
    )
    grid = search.grid
    assert len(grid) == points
    assert grid[0] == pytest.approx(lowest, rel=1e-3)
    assert grid[-1] == pytest.approx(lowest * ratio, rel=1e-3)
    for one, two in itertools.pairwise(grid):
        assert two / one == pytest.approx(ratio ** (1 / (points - 1)), rel=2e-3)


def test_every_key_of_the_files_is_a_setting_with_a_comment_or_a_plain_name() -> None:
    """No dead keys: whatever a group's file sets must reach the settings."""
    for dataset in GROUPS["dataset"]:
        written = yaml.safe_load((CONFIGS / "dataset" / f"{dataset}.yaml").read_text())
        assert set(written) == set(composed(f"dataset={dataset}").dataset.model_dump())


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize(("group", "there"), [("bench", "201"), ("dataset", "cifar100"), ("recipe", "benchmark")])
def test_a_file_that_does_not_exist_is_told_with_those_that_do(group: str, there: str) -> None:
    done = run_script("plan", f"{group}=nonesuch")
    assert done.returncode != 0
    assert "nonesuch" in done.stderr
    assert there in done.stderr


def test_a_misspelt_key_on_the_command_line_is_named() -> None:
    done = run_script("plan", "training.epoch=3")
    assert done.returncode != 0
    assert "epoch" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_groups_and_keys() -> None:
    done = run_script("retrain", "--help")
    assert done.returncode == 0
    for word in ("dataset: cifar10", "architecture_aware", "max_hours", "sample:60"):
        assert word in done.stdout


@pytest.mark.parametrize("config", ["config", "verify"])
@pytest.mark.parametrize("bench", ["mlp", "cnn"])
def test_a_profile_that_a_bench_does_not_have_is_told(config: str, bench: str) -> None:
    with pytest.raises(NasRetrainError, match=rf"Profile reference is not meant for bench {bench}.*PROFILE=dry"):
        cli.compose(f"bench={bench}", "profile=reference", "dataset=fashion_mnist", config=config)


def test_files_with_the_published_contents_leave_the_identity_as_it_was(make_settings: MakeSettings) -> None:
    verified = make_settings("dataset=cifar10", "dataset.verify=true").identity("benchmark")
    unverified = make_settings("dataset=cifar10").identity("benchmark")
    assert "verify" not in verified["dataset"]
    assert digest(verified) != digest(unverified)
