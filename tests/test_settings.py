"""The real configuration files compose, and a mistake is told by its key."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nas_retrain.commands.command_line import CONFIGS
from nas_retrain.commands.command_line import compose as composed
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import BaseRateSettings, digest
from tests.conftest import MakeSettings, run_script

ROOT = Path(__file__).parents[1]
GROUPS = {group.name: [path.stem for path in group.glob("*.yaml")] for group in CONFIGS.iterdir() if group.is_dir()}


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
    assert settings.training.identity == {
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
        ("launcher.compile=true", "launcher.compile: this key is no more.*leave the key out"),
        ("+traning.epochs=3", "traning: there is no such key"),
        ("training.epochs=0", "training.epochs: .*greater than 0.*got 0"),
        ("bench.depth_offset=0", "bench.*depth_offset: .*greater than 0.*got 0"),
        ("training.epochs=many", "training.epochs: .*got 'many'"),
        ("training.momentum=1", "training.momentum: .*less than 1"),
        ("seeds=[]", "seeds: "),
        ("seeds=9223372036854775808", "seeds: .*less than 9223372036854775808"),
        ("recipe=[]", "recipes: "),
        ("recipe=[[benchmark]]", "the name of a file was expected"),
        ("profile=[dry,[full]]", "the name of a file was expected"),
        ("dataset=[{a:b}]", "the name of a file was expected"),
        ("dataset.test_images=true", "dataset: test_images is true or false"),
        ("seeds=[true,5]", "seeds is true or false"),
        ("cells=[false]", "cells is true or false"),
        ("dataset.std=[1,true,1]", "dataset: std is true or false"),
        ("training.momentum=false", "training: momentum is true or false"),
        ("training.weight_decay=inf", "training.weight_decay: .*finite"),
        ("dataset.mean=[inf,0,0]", "dataset.mean.0: .*finite"),
        ("launcher.time_hours=inf", "launcher.time_hours: .*finite"),
        ("launcher.memory_gb=inf", "launcher.memory_gb: .*finite"),
        ("launcher.time_hours=1e308", "launcher.time_hours: .*less than"),
        ("analysis.bootstrap_draws=99999999999999999999999", "analysis.bootstrap_draws: .*less than"),
        ("network.channels=2147483648", "network.channels: .*less than"),
        ("base_rate.points=100000000", "base_rate.points: .*less than"),
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


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("seeds=[777,777]",), "seeds"),
        (("seeds=[1,2,3,2]",), "seeds"),
        (("base_rate.seeds=[5,6,5]",), "base_rate.seeds"),
        (("profile=reference", "own_rate.seeds=[11,11]"), "own_rate.seeds"),
        (("profile=reference", "own_rate.fresh_seeds=[1,2,1]"), "own_rate.fresh_seeds"),
        (("profile=reference", "sensitivity.epochs=[1,2,2]"), "sensitivity.epochs"),
        (("profile=reference", "sensitivity.base_rate_factors=[0.5,2,0.50]"), "sensitivity.base_rate_factors"),
        (("profile=reference", "sensitivity.recipes=[benchmark,benchmark]"), "sensitivity.recipes"),
        (("algorithms.flop_limits=[30,30.0]",), "algorithms.flop_limits"),
        (("base_rate.lowest=0.1", "base_rate.highest=0.1"), "base_rate"),
    ],
)
def test_what_is_listed_twice_would_count_twice_and_is_refused(overrides: tuple[str, ...], key: str) -> None:
    with pytest.raises(NasRetrainError, match=rf"\n  {key}: .*(more than once|not all different)"):
        composed("dataset=fashion_mnist", *overrides)


def test_kernel_sizes_are_listed_once(make_settings: MakeSettings) -> None:
    with pytest.raises(NasRetrainError, match=r"bench.kernel_sizes: 3 is listed more than once"):
        make_settings("bench=cnn", "bench.kernel_sizes=[3,5,3]", config="verify")


def test_bfloat16_is_told_from_that_of_version_0_1_0_which_rounded_at_other_places(make_settings: MakeSettings) -> None:
    identities = {
        precision: make_settings(f"training.precision={precision}").identity("benchmark")
        for precision in ("float32", "tf32", "bfloat16")
    }
    assert [told["training"]["precision"] for told in identities.values()][:2] == ["float32", "tf32"]
    then = identities["bfloat16"]
    then = then | {"training": then["training"] | {"precision": "bfloat16"}}
    assert digest(then) not in {digest(told) for told in identities.values()}


def test_settings_that_decide_nothing_leave_the_identity_alone(make_settings: MakeSettings) -> None:
    plain = make_settings()
    for harmless in ("launcher.workers=3", "cells=all", "seeds=[1]", "results_dir=x"):
        assert make_settings(harmless).identity("benchmark") == plain.identity("benchmark"), harmless
    for deciding in (
        "training.epochs=3",
        "network.channels=5",
        "dataset.padding=0",
        "recipes.benchmark.learning_rate=1",
        "seeding=shared",
    ):
        changed = make_settings(deciding)
        assert digest(changed.identity("benchmark")) != digest(plain.identity("benchmark")), deciding


HASHES = {
    ("config", "201", "cifar10", "full"): {
        "benchmark": "282446cca1e8",
        "tuned_rate": "d1a9bd461094",
        "architecture_aware": "f0b6c65ed8d5",
        "learning_rate_only": "169f9d8c1509",
        "initialisation_only": "11f1f29f2bc0",
    },
    ("config", "201", "fashion_mnist", "reference"): {
        "benchmark": "d6f4831ff742",
        "tuned_rate": "d109b2817524",
        "architecture_aware": "91a048c16b99",
        "learning_rate_only": "64e8fdbe699f",
        "initialisation_only": "52ae4ee0ade2",
        "own_rate": "0c71077ee2be",
    },
    ("verify", "201", "digits", "dry"): {
        "grid_he": "f82767893069",
        "grid_mup": "50f2c8716c88",
        "grid_source": "c154f0bd14f4",
        "grid_stock": "d79fd808ded9",
        "grid_target": "121bbf708723",
    },
    ("verify", "mlp", "digits", "dry"): {
        "grid_he": "3658772ca888",
        "grid_mup": "d034cabfe3c5",
        "grid_source": "0d4d233ac543",
        "grid_stock": "586a48f6f770",
        "grid_target": "c393482deb79",
    },
    ("verify", "cnn", "cifar100", "full"): {
        "grid_he": "1e434fc3b36c",
        "grid_mup": "5d7f2f78e7c5",
        "grid_source": "be16615d4c88",
        "grid_stock": "527faf376afa",
        "grid_target": "3220df167b51",
    },
}
"""What decides a training, by the configuration, bench, data set and profile, and the recipe. Records of a results
folder count as done only as long as these stay."""


@pytest.mark.parametrize(("config", "bench", "dataset", "profile"), HASHES)
def test_what_decides_a_training_has_the_hash_that_its_records_have(
    config: str, bench: str, dataset: str, profile: str
) -> None:
    expected = HASHES[(config, bench, dataset, profile)]
    chosen = (f"bench={bench}", f"dataset={dataset}", f"profile={profile}", f"recipe=[{','.join(expected)}]")
    settings = composed(*chosen, "seeding=shared", config=config)
    assert {name: digest(settings.identity(name)) for name in settings.recipes} == expected
    assert list(settings.recipes) == list(expected)


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
        assert set(written) == set(composed(f"dataset={dataset}").dataset.model_dump()) - {"source", "checksum"}


ANY_CHARACTER = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
PATH_TEXT = st.text(
    st.one_of(st.sampled_from(r"""'"\\${}[](),=:#&%~ *?;|<>!`^@+-./\t\n"""), ANY_CHARACTER), min_size=1, max_size=15
)


@hypothesis_settings(max_examples=25)
@given(st.lists(PATH_TEXT.filter(lambda path: path != "null" and not path.startswith("~")), min_size=4, max_size=4))
@example(["${dataset.name}", r"\${x}", r"a\\${b}\\", "$HOME"])
@example(["josé (copy)", "größe", "a=b,c", "[1]"])
@example(["'a'", '"b"', "c\\'", "true"])
@example(["1", "1e3", " a ", "null/null"])
def test_a_path_is_taken_as_it_is(paths: list[str]) -> None:
    keys = ("results_dir", "data_dir", "original", "retrained")
    found = composed(*(f"{key}={path}" for key, path in zip(keys, paths, strict=True)))
    assert [getattr(found, key) for key in keys] == [Path(path) for path in paths]


@pytest.mark.parametrize("key", ["results_dir", "data_dir", "original", "retrained"])
def test_a_tilde_in_a_path_is_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "josé"))
    assert getattr(composed(f"{key}=~/runs"), key) == tmp_path / "josé" / "runs"
    assert getattr(composed(f"{key}=~"), key) == tmp_path / "josé"
    assert getattr(composed(f"{key}=~of nobody/x"), key) == Path("~of nobody/x")
    with pytest.raises(NasRetrainError, match=f"{key}: .*a path was expected"):
        composed(f"{key}=")


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("cells=5", "cells", (5,)),
        ("seeds=777", "seeds", (777,)),
        ("base_rate.seeds=1", "base_rate.seeds", (1,)),
        ("dataset.mean=[1,2,3]", "dataset.mean", (1.0, 2.0, 3.0)),
        ("algorithms.flop_limits=30", "algorithms.flop_limits", (30.0,)),
        ("cells=sample:5", "cells", "sample:5"),
    ],
)
def test_one_value_is_a_list_of_one(override: str, key: str, expected: object) -> None:
    found: object = composed(override)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == expected


@pytest.mark.parametrize(
    ("override", "asked"),
    [
        ("epochs=12", "training.epochs"),
        ("training.epoch=3", "training.epochs"),
        ("+training.epoch=3", "training.epochs"),
        ("traning.epochs=3", "training.epochs"),
        ("datset=digits", "dataset"),
        ("training.batch-size=8", "training.batch_size"),
        ("workers=2", "launcher.workers"),
        ("launcher.timehours=2", "launcher.time_hours"),
        ("recipes.benchmark.learn_rate=1", "recipes.benchmark.learning_rate"),
        ("recipe.benchmark.learning_rate=1", "recipes.benchmark.learning_rate"),
        ("recipe.own_rate.in_degree=target", "recipes.own_rate.in_degree"),
    ],
)
def test_an_unknown_key_is_answered_with_those_that_may_be_meant(override: str, asked: str) -> None:
    with pytest.raises(NasRetrainError, match=rf"there is no such key\. Did you mean {re.escape(asked)}\b"):
        composed(override)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recipes.benchmark.learning_rate=fast", "recipes.benchmark.learning_rate: Input"),
        ("cells=[1,x]", "cells.1: Input"),
        ("launcher.workers=x", "launcher.workers: Input"),
        ("own_rate={lowest:x}", "own_rate.lowest: Input"),
        ("sensitivity={epochs:[x]}", "sensitivity.epochs.0: Input"),
    ],
)
def test_a_bad_value_is_named_by_its_key_alone_whatever_types_it_was_checked_as(override: str, told: str) -> None:
    with pytest.raises(NasRetrainError) as error:
        composed(override)
    assert f"\n  {told}" in str(error.value)
    assert all(re.match(r"  [\w.]+: |See ", line) for line in str(error.value).splitlines()[1:])


@pytest.mark.parametrize(
    "override", ["seeds=1,2", "recipe=benchmark,own_rate", "base_rate.seeds=[1],[2]", "cells=1:3,5"]
)
def test_several_values_without_brackets_are_answered_with_the_list(override: str) -> None:
    key, _, values = override.partition("=")
    with pytest.raises(NasRetrainError) as error:
        composed(override)
    assert str(error.value) == f"{override}: several values are given as a list, {key}=[{values}]."


@pytest.mark.parametrize("override", ["(1)", "results", "2024"])
def test_a_word_that_is_no_setting_is_answered_with_quotes(override: str) -> None:
    with pytest.raises(NasRetrainError, match="with a blank in it in quotes: ARGS=\"'results_dir=my results'\""):
        composed(override)


@pytest.mark.parametrize("override", ["xyzzy=1", "hydra.xyzzy=1"])
def test_nothing_is_asked_where_no_key_is_like_it(override: str) -> None:
    with pytest.raises(NasRetrainError, match="there is no such key") as error:
        composed(override)
    assert "mean" not in str(error.value).replace("meaning", "")


@pytest.mark.parametrize("group", ["bench", "dataset", "recipe", "profile", "launcher", "site"])
def test_an_unknown_file_of_a_group_is_answered_with_those_that_there_are(group: str) -> None:
    there = GROUPS[group] if group != "site" else ["cpu_nodes", "gpu_preemptible"]
    for chosen in ("nonesuch", "größe", "7"):
        with pytest.raises(NasRetrainError, match=f"^{group}={chosen}: there is none of this name") as error:
            composed(f"{group}={chosen}")
        assert str(error.value).endswith(f"There are {', '.join(sorted(there))}.")


def test_an_unknown_one_among_several_recipes_is_answered_likewise() -> None:
    with pytest.raises(NasRetrainError, match=r"^recipe=nonesuch: .*There are architecture_aware, benchmark, "):
        composed("recipe=[benchmark,nonesuch]")


@pytest.mark.parametrize("config", ["config", "verify"])
@pytest.mark.parametrize("bench", ["mlp", "cnn"])
def test_a_profile_that_a_bench_lacks_is_answered_with_those_it_has(bench: str, config: str) -> None:
    with pytest.raises(NasRetrainError, match=f"profile=reference: bench {bench} has no such .* has dry, full\\.$"):
        composed(f"bench={bench}", "profile=reference", config=config)


def test_a_bench_that_is_not_to_be_verified_says_what_would_make_it_so() -> None:
    with pytest.raises(NasRetrainError, match=r"bench=sss: .*sss\.yaml .* Set profiles\.dry\.verify there"):
        composed("bench=sss", "profile=dry", config="verify")


@pytest.mark.parametrize("override", ["cifar10", "cells=[1", "", "=1", "cells=${nothing}", "dataset=cifar10,digits"])
def test_what_is_no_setting_is_one_error(override: str) -> None:
    with pytest.raises(NasRetrainError):
        composed(override)


def test_a_misspelt_key_on_the_command_line_is_named() -> None:
    done = run_script("cells", "training.epoch=3")
    assert done.returncode != 0
    assert "epoch" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_groups_and_keys() -> None:
    done = run_script("cells", "--help")
    assert done.returncode == 0
    for word in ("dataset: cifar10", "architecture_aware", "max_hours", "sample:60"):
        assert word in done.stdout


def test_files_with_the_published_contents_leave_the_identity_as_it_was(make_settings: MakeSettings) -> None:
    verified = make_settings("dataset=cifar10", "dataset.verify=true").identity("benchmark")
    unverified = make_settings("dataset=cifar10").identity("benchmark")
    assert "verify" not in verified["dataset"]
    assert digest(verified) != digest(unverified)


def test_networks_without_batch_norm_are_others_and_those_with_it_keep_their_hashes(
    make_settings: MakeSettings,
) -> None:
    usual, without = make_settings(), make_settings("network.normalisation=none")
    assert "normalisation" not in usual.identity("benchmark")["network"]
    assert without.identity("benchmark")["network"] == usual.identity("benchmark")["network"] | {
        "normalisation": "none"
    }
    with pytest.raises(NasRetrainError, match=r"network\.normalisation has no meaning for bench mlp"):
        make_settings("bench=mlp", "network.normalisation=none", config="verify")


@pytest.mark.parametrize("extra", [["site=cpu_nodes"], ["+launcher.partition=x"]])
def test_what_slurm_alone_has_is_refused_on_this_machine_in_one_sentence(extra: list[str]) -> None:
    with pytest.raises(NasRetrainError, match=r"^launcher\.\w+ is SLURM's, .*LAUNCHER=slurm") as told:
        composed("launcher=local", *extra)
    assert "\n" not in str(told.value)


def test_a_key_named_without_its_section_is_asked_for() -> None:
    with pytest.raises(NasRetrainError, match=r"epochs: there is no such key. Did you mean training\.epochs"):
        composed("epochs=12")
    assert composed("cells=5", "seeds=777").cells == (5,)
    assert composed("cells=5", "seeds=777").seeds == (777,)
