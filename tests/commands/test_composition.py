"""Recipes and other groups in files of a user's own: where a file's keys go is told by its folder and its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nas_retrain.commands.command_line import CONFIGS, compose
from nas_retrain.commands.composition import FOLDERS, PACKAGES, from_command_line
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings

RECIPE = "learning_rate: 0.3\ninitialisation: stock\nin_degree: source\nkernel_factor: false\n"
FLAGS = {
    "--config-name verify": ["--config-name", "verify"],
    "--config-name=verify": ["--config-name=verify"],
    "-cn verify": ["-cn", "verify"],
}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def own(folder: Path, *arguments: str) -> Settings:
    """The settings of a command line with a folder of one's own."""
    (found,) = from_command_line([*arguments, "--config-dir", str(folder)])
    return found


@pytest.mark.parametrize(
    "line", ["", "# @package recipes.benchmark\n", "# @package _global_\n", "#@package training\n"]
)
@pytest.mark.parametrize("name", ["mine", "7", "größe", "a-b"])
def test_a_recipe_has_the_name_of_its_file_whatever_a_line_in_it_says(tmp_path: Path, name: str, line: str) -> None:
    write(tmp_path, f"recipe/{name}", line + RECIPE)
    settings = own(tmp_path, f"recipe=[benchmark,{name}]")
    assert {name: recipe.learning_rate for name, recipe in settings.recipes.items()} == {"benchmark": 0.1, name: 0.3}


def test_a_copy_of_every_shipped_recipe_is_a_recipe_of_its_own(tmp_path: Path) -> None:
    for shipped in sorted((CONFIGS / "recipe").glob("*.yaml")):
        grid = shipped.stem.startswith("grid_")
        write(tmp_path, f"recipe/copy_of_{shipped.stem}", shipped.read_text())
        chosen = [f"recipe=[{shipped.stem},copy_of_{shipped.stem}]", "profile=reference", "sensitivity=null"]
        recipes = own(tmp_path, *chosen, "dataset=fashion_mnist").recipes
        assert list(recipes) == [shipped.stem, f"copy_of_{shipped.stem}"], grid
        assert len(set(map(repr, recipes.values()))) == 1


def test_a_recipe_may_build_on_another_and_be_overridden(tmp_path: Path) -> None:
    write(tmp_path, "recipe/derived", "defaults: [benchmark]\nlearning_rate: 0.5\n")
    recipes = own(tmp_path, "recipe=[derived,benchmark]", "recipes.derived.in_degree=target").recipes
    assert list(recipes) == ["derived", "benchmark"]
    assert recipes["derived"].learning_rate == 0.5
    assert recipes["derived"].in_degree == "target"
    assert recipes["benchmark"].in_degree == "source"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("short", "learning_rate: 0.1\n", r"recipes\.short\.in_degree: Field required \(in recipe/short\.yaml\)"),
        ("empty", "", r"recipes\.empty\.learning_rate: Field required \(in recipe/empty\.yaml\)"),
        ("wrong", RECIPE + "rate: 1\n", r"recipes\.wrong\.rate: there is no such key.*recipe/wrong\.yaml"),
        ("odd", RECIPE.replace("stock", "stok"), r"recipes\.odd\.initialisation: .*stok.*recipe/odd\.yaml"),
        ("broken", "a: [\n", r"recipe/broken\.yaml cannot be read as YAML"),
        ("list", "- 1\n", r"recipe/list\.yaml holds a list"),
        ("dotted.name", RECIPE, r"recipe/dotted\.name\.yaml: a recipe has its file's name"),
        ("below/mine", RECIPE, r"recipe/below/mine\.yaml: files of recipe lie in the folder recipe itself"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_named_by_its_file(tmp_path: Path, name: str, text: str, told: str) -> None:
    write(tmp_path, f"recipe/{name}", text)
    with pytest.raises(NasRetrainError, match=told):
        own(tmp_path, f"recipe={name}")


@pytest.mark.parametrize("name", ["recipe/benchmark", "dataset/cifar10", "site/cpu_nodes", "config"])
def test_a_file_with_the_name_of_a_shipped_one_is_an_error_that_names_both(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, RECIPE)
    with pytest.raises(NasRetrainError, match=rf"{name}\.yaml has the name of .*{name}\.yaml"):
        own(tmp_path)


@pytest.mark.parametrize("line", ["", "# @package recipes.benchmark\n"])
@pytest.mark.parametrize("group", sorted(PACKAGES))
def test_a_copied_file_of_any_group_gives_what_its_original_gives(tmp_path: Path, group: str, line: str) -> None:
    shipped = next(path for folder in FOLDERS for path in sorted((folder / group).glob("*.yaml")))
    write(tmp_path, f"{group}/copy", line + shipped.read_text())
    also = ["launcher=slurm"] if group == "site" else []
    before, after = (own(tmp_path, f"{group}={chosen}", *also) for chosen in (shipped.stem, "copy"))
    if group == "recipe":
        assert (before.recipes[shipped.stem],) == tuple(after.recipes.values())
    else:
        assert before == after


@pytest.mark.parametrize("config", ["config", "verify"])
def test_what_a_bench_has_below_a_profile_goes_with_copies_of_both(tmp_path: Path, config: str) -> None:
    write(tmp_path, "bench/copy", (CONFIGS / "bench" / "201.yaml").read_text())
    write(tmp_path, "profile/small", (CONFIGS / "profile" / "dry.yaml").read_text())
    chosen = (["bench=201", "profile=dry"], ["bench=copy", "profile=small"], ["bench=201", "profile=full"])
    before, after, other = (own(tmp_path, *one, "dataset=digits", f"--config-name={config}") for one in chosen)
    assert before == after
    assert (before.network.channels, before.training.batch_size) == (8, 32)
    assert (other.network.channels, other.training.batch_size) == (16, 256)
    assert (before.cells == "sample:60") == (config == "config")


def test_no_shipped_file_says_where_its_keys_go() -> None:
    for file in (file for folder in FOLDERS for file in folder.rglob("*.yaml")):
        assert not re.search("@package", file.read_text()), file
        assert file.parent.name in {*PACKAGES, "configs"}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("place", range(4))
def test_flags_stand_anywhere(flag: str, place: int) -> None:
    settings = ["bench=mlp", "results_dir=a b", "seeds=5"]
    (found,) = from_command_line([*settings[:place], *FLAGS[flag], *settings[place:]])
    assert (found.bench.name, found.results_dir, found.seeds) == ("mlp", Path("a b"), (5,))
    assert all(recipe.learning_rate == "grid" for recipe in found.recipes.values())


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_sweep_leaves_no_folder(place: int, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["dataset=cifar100,digits", "results_dir=x, 'y' ${z}"]
    found = from_command_line([*settings[:place], flag, *settings[place:]])
    assert [one.dataset.name for one in found] == ["cifar100", "digits"]
    assert {one.results_dir for one in found} == {Path("x, 'y' ${z}")}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        (["--cfg", "job"], "results_dir: ü b"),
        (["-c", "job", "-p", "training"], "epochs: 3"),
        (["--info"], "Config search path"),
        (["--info", "defaults"], "dataset"),
        (["--info=searchpath"], "nas-retrain"),
        (["--help"], "max_hours"),
        (["-h"], "architecture_aware"),
        (["--hydra-help"], "--multirun"),
    ],
)
def test_flags_that_show_something_stand_anywhere_and_run_nothing(
    flag: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status: set[object] = set()
    settings = ["training.epochs=3", "results_dir=ü b"]
    for place in range(3):
        try:
            assert from_command_line([*settings[:place], *flag, *settings[place:]]) == []
        except SystemExit as ended:
            status.add(ended.code)
        output = capsys.readouterr().out
        assert told in output or flag[0].startswith("--info")  # which goes through a log's handler, set up once
    assert status <= {0, None}


def test_a_config_dir_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(NasRetrainError, match="nothing here: there is no such folder"):
        own(tmp_path / "nothing here")


def test_a_config_dir_may_have_any_name_and_stand_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("josé (copy)", "${x} [a], =b #c %41 'q'"):
        write(tmp_path / name, "recipe/mine", RECIPE)
        write(tmp_path / name, "study", "defaults: [config, _self_, {override recipe: [mine, benchmark]}]\nseeds: 4\n")
        (found,) = from_command_line(["-cn", "study", "-cd", f"~/{name}"])
        assert list(found.recipes) == ["mine", "benchmark"]
        assert found.seeds == (4,)
    (plain,) = from_command_line([])  # and it is forgotten afterwards
    assert list(plain.recipes) == ["benchmark", "architecture_aware"]


def test_a_file_may_be_given_by_its_path(tmp_path: Path) -> None:
    write(tmp_path, "a b/mine", RECIPE)
    (found,) = from_command_line([f"recipe=[benchmark,{tmp_path}/a b/mine.yaml]"])
    assert {name: recipe.learning_rate for name, recipe in found.recipes.items()} == {"benchmark": 0.1, "mine": 0.3}


def test_a_shipped_file_may_be_given_by_its_path() -> None:
    (found,) = from_command_line([f"dataset={CONFIGS}/dataset/digits.yaml"])
    assert found.dataset.name == "digits"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recipe={}/benchmark.yaml", r"benchmark\.yaml has the name of .*recipe/benchmark\.yaml"),
        ("recipe=[{}/mine.yaml,{}/other/mine.yaml]", r"another file chosen has its name"),
        ("recipe={}/absent.yaml", r"recipe=.*absent\.yaml: there is no such file"),
    ],
)
def test_a_path_that_cannot_be_used_is_told(tmp_path: Path, override: str, told: str) -> None:
    for name in ("benchmark", "mine", "other/mine"):
        write(tmp_path, name, RECIPE)
    with pytest.raises(NasRetrainError, match=told):
        from_command_line([override.replace("{}", str(tmp_path))])


BESIDE = """
recipe: [benchmark, mine]
dataset: digits
seeds: [5, 6]
training: {epochs: 3, nesterov: false}
results_dir: "a, ${b} 'c'"
enough_tau: null
"""


@pytest.mark.parametrize("config_dir", ["", "config_dir: files\n"])
def test_a_file_in_the_working_directory_holds_settings_and_marks_files_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / ("files" if config_dir else ""), "recipe/mine", RECIPE)
    write(tmp_path, "nas_retrain", config_dir + BESIDE)
    monkeypatch.chdir(tmp_path)
    (found,) = from_command_line(["seeds=7"])
    assert list(found.recipes) == ["benchmark", "mine"]
    assert (found.dataset.name, found.seeds, found.training.epochs, found.training.nesterov) == (
        "digits",
        (7,),
        3,
        False,
    )
    assert found.results_dir == Path("a, ${b} 'c'")
    assert str(tmp_path / "nas_retrain.yaml") in capsys.readouterr().err
    (found,) = from_command_line(["dataset=cifar100", "recipe=mine"])
    assert (found.dataset.name, list(found.recipes), found.seeds) == ("cifar100", ["mine"], (5, 6))
    (tmp_path / "elsewhere").mkdir()
    (found,) = from_command_line(["--config-dir", "elsewhere"])
    assert list(found.recipes) == ["benchmark", "architecture_aware"]


@pytest.mark.parametrize("text", ["training: {epoch: 3}", "a: [", "- 1", "config_dir: nowhere"])
def test_a_file_in_the_working_directory_that_cannot_be_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    write(tmp_path, "nas_retrain", text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NasRetrainError, match=r"nas_retrain\.yaml|training\.epoch: |nowhere"):
        from_command_line([])


@pytest.mark.parametrize(
    "path", ["my rules/\N{LATIN SMALL LETTER U WITH DIAERESIS}.py:f", "a [c]={d}.py:f", "${x}.py:f"]
)
def test_a_rule_s_file_is_named_as_it_is(path: str) -> None:
    chosen = compose("recipe=[by_rule]", f"recipes.by_rule.rule={path}")
    assert chosen.recipes["by_rule"].rule == path
    board = compose(f"+scoreboard.rules.mine.rule={path}", config="scoreboard").scoreboard
    assert board is not None
    assert board.rules["mine"].rule == path


def test_a_sweep_over_rules_is_one() -> None:
    swept = from_command_line(["-m", "recipe=[by_rule]", "recipes.by_rule.rule=depth,my_module:my_rule"])
    assert [one.recipes["by_rule"].rule for one in swept] == ["depth", "my_module:my_rule"]
