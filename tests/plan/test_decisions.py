"""Recipes that name a rule: what it decides is planned, hashed and trained with."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas_retrain.benches import registry
from nas_retrain.data import batches
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import train
from nas_retrain.plan import plan
from nas_retrain.plan.decisions import Decisions
from nas_retrain.settings import Settings
from nas_retrain.theory.rule import Parametrisation, find
from nas_retrain.trainings.training import Training
from tests.conftest import MakeSettings
from tests.strategies import NAS_BENCH_201

OWN_RULE = """
from nas_retrain.theory.rule import Parametrisation


def slower(graph, size, *, by=2.0):
    layers = {edge: 0.5 for edge in graph.layers} | {"vectors": 0.25, "readout": 2.0}
    return Parametrisation(1 / by, layer_rates=layers, multipliers={edge: 0.5 for edge in graph.layers})
"""


def planned(settings: Settings, recipe: str = "by_rule", base_rate: float = 0.3) -> dict[int, Training]:
    return {one.cell: one for one in plan.recipe_trainings(settings, base_rate) if one.recipe == recipe}


def with_rule(make_settings: MakeSettings, rule: str, *overrides: str) -> Settings:
    return make_settings("recipe=[by_rule]", f"recipes.by_rule.rule='{rule}'", "seeds=[777]", *overrides)


def test_a_rule_decides_the_rate_of_each_network(make_settings: MakeSettings) -> None:
    settings = with_rule(make_settings, "depth", "cells=sample:8", "+recipes.by_rule.rule_parameters.exponent=-1.0")
    size = registry.size_of(settings)
    for cell, one in planned(settings).items():
        decided = find("depth", {"exponent": -1.0}).decide(NAS_BENCH_201.graph_at(cell), size, one.arch)
        assert one.learning_rate == 0.3 * decided.learning_rate
        assert one.decided == decided
    fixed = with_rule(make_settings, "depth", "cells=sample:8", "recipes.by_rule.learning_rate=0.1")
    assert [one.learning_rate for one in planned(fixed).values()] == pytest.approx(
        [0.1 * one.decided.learning_rate for one in planned(fixed).values() if one.decided]
    )


def test_another_decision_is_another_recipe(make_settings: MakeSettings) -> None:
    def hashes(rule: str, *overrides: str) -> list[str]:
        return [one.config_hash for one in planned(with_rule(make_settings, rule, "cells=[0,5]", *overrides)).values()]

    usual = hashes("depth")
    assert hashes("depth") == usual
    changed = [hashes("effective_depth"), hashes("depth", "+recipes.by_rule.rule_parameters.exponent=-1.0")]
    for other in changed:
        assert not set(other) & set(usual)


def test_the_hash_has_what_was_decided_and_not_how(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule whose code changes makes other trainings as soon as it decides otherwise."""
    monkeypatch.chdir(tmp_path)
    found = []
    for text in (OWN_RULE, OWN_RULE.replace("0.25", "0.125"), OWN_RULE + "# a comment\n"):
        (tmp_path / "rule_that_changes.py").write_text(text)
        sys.modules.pop("rule_that_changes", None)
        found.append(planned(with_rule(make_settings, "rule_that_changes:slower", "cells=[5]"))[5].config_hash)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert found[0] == found[2] != found[1]


def test_a_rule_that_cannot_be_used_names_itself_and_the_cell(make_settings: MakeSettings) -> None:
    with pytest.raises(NasRetrainError, match=r"rule papper: there is none of this name"):
        planned(with_rule(make_settings, "papper", "cells=[5]"))
    with pytest.raises(NasRetrainError, match=r"rule measured for cell \|.*no measurement of the network"):
        planned(with_rule(make_settings, "measured", "cells=[5]", "+recipes.by_rule.rule_parameters.shares={}"))
    with pytest.raises(NasRetrainError, match=r"is added with a plus, \+recipes"):
        with_rule(make_settings, "depth", "recipes.by_rule.rule_parameters.exponent=2")
    with pytest.raises(NasRetrainError, match=r"recipes\.by_rule: a recipe with a rule takes initialisation"):
        with_rule(make_settings, "paper", "recipes.by_rule.initialisation=in_degree")


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("random.random()", True),
        ("1 / next(count)", True),
        ("time.perf_counter()", True),
        ("random.Random(len(graph.layers)).random()", False),
    ],
)
def test_a_rule_that_answers_differently_each_time_is_refused(
    make_settings: MakeSettings, tmp_path: Path, answer: str, refused: bool
) -> None:
    """Whether in the learning rate or in what it decides for a layer."""
    (tmp_path / "fickle.py").write_text(
        "import itertools, random, time\n"
        "from nas_retrain.theory.rule import Parametrisation\n"
        "count = itertools.count(1)\n"
        f"def rate(graph, size):\n    return Parametrisation({answer})\n"
        f"def layers(graph, size):\n    return Parametrisation(variances={{'readout': {answer}}})\n"
    )
    for function in ("rate", "layers"):
        settings = with_rule(make_settings, f"{tmp_path}/fickle.py:{function}", "cells=[5]")
        if refused:
            with pytest.raises(NasRetrainError, match=rf"fickle\.py:{function} for cell \|.* when it was asked again"):
                planned(settings)
        else:
            assert len(planned(settings)) == 1


def test_cells_for_which_a_rule_decides_differently_are_not_one_training(make_settings: MakeSettings) -> None:
    """Two ways to write one network: a sum of three, and a sum of two that goes on into another sum."""
    at_once = NAS_BENCH_201.index_of(
        "|avg_pool_3x3~0|+|avg_pool_3x3~0|none~1|+|nor_conv_3x3~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    )
    in_two = NAS_BENCH_201.index_of(
        "|avg_pool_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_1x1~1|skip_connect~2|"
    )
    assert NAS_BENCH_201.training_classes(None)[at_once] == NAS_BENCH_201.training_classes(None)[in_two]
    cells = f"cells=[{at_once},{in_two}]"
    by_depth = with_rule(make_settings, "depth", cells)
    assert len(planned(by_depth)) == 1
    by_additions = with_rule(make_settings, "effective_depth", cells)
    assert len(planned(by_additions)) == 2
    # One training is named after the lowest member for which the same is decided, whatever cells are chosen.
    decisions = Decisions(by_additions, (in_two,))
    named = decisions.training_class("by_rule", in_two)
    assert decisions.of("by_rule", named) == decisions.of("by_rule", in_two)
    assert decisions.training_class("by_rule", named) == named


@pytest.mark.parametrize("value", ["nan", "-inf", "[1,nan]", "{a: {1: 2}}"])
def test_parameters_that_no_file_can_hold_are_refused(make_settings: MakeSettings, value: str) -> None:
    with pytest.raises(NasRetrainError, match=r"recipes\.by_rule\.rule_parameters: may hold texts, finite numbers"):
        with_rule(make_settings, "depth", "cells=[5]", f"+recipes.by_rule.rule_parameters.exponent={value}")


def test_a_rate_that_no_float_can_be_names_rule_and_cell(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for factor, rate in (("1e308", "1e10"), ("1e-320", "1e-10")):
        path = tmp_path / f"rule_{factor}.py"
        path.write_text(
            "from nas_retrain.theory.rule import Parametrisation\n"
            f"def rule(graph, size):\n    return Parametrisation({factor})\n"
        )
        settings = with_rule(make_settings, f"{path}:rule", "cells=[5]", f"recipes.by_rule.learning_rate={rate}")
        with pytest.raises(NasRetrainError, match=r"^rule .*:rule for cell \|.*: the learning rate comes to (inf|0);"):
            planned(settings)


CELL = NAS_BENCH_201.index_of("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")


def test_the_papers_rule_as_a_rule_trains_what_the_papers_recipe_trains(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    train.prepare_process(torch.device("cpu"))
    settings = make_settings(
        "recipe=[architecture_aware,by_rule]", "recipes.by_rule.rule=paper", f"cells=[{CELL}]", "seeds=[1]"
    )
    data = batches.load(settings.dataset, settings.data_dir, torch.device("cpu"))
    records = [
        train.train([one], settings, data, tmp_path / one.recipe)[0] for one in plan.recipe_trainings(settings, 0.3)
    ]
    assert records[0].config_hash != records[1].config_hash
    assert records[0].train_loss == records[1].train_loss
    assert records[0].test_loss == records[1].test_loss


def test_rates_of_layers_work_in_joined_networks(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.prepare_process(torch.device("cpu"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule_of_layers.py").write_text(OWN_RULE)
    for normalisation in ("batch", "none"):
        settings = make_settings(
            "recipe=[benchmark,by_rule]", "recipes.by_rule.rule='rule_of_layers:slower'", f"cells=[{CELL}]",
            "seeds=[1,2]", f"network.normalisation={normalisation}", "training.epochs=1", "dataset.train_subset=200",
            "recipes.by_rule.initialisation=he",
        )  # fmt: skip
        data = batches.load(settings.dataset, settings.data_dir, torch.device("cpu"))
        group = plan.recipe_trainings(settings, 0.3)
        assert [one.recipe for one in group] == ["benchmark", "benchmark", "by_rule", "by_rule"]
        together = train.train(group, settings, data, tmp_path / f"together_{normalisation}")
        for one, joined in zip(group, together, strict=True):
            (alone,) = train.train([one], settings, data, tmp_path / f"alone_{normalisation}")
            assert joined.train_loss == pytest.approx(alone.train_loss, rel=1e-3)
        plain = [replace(one, decided=Parametrisation(0.5)) if one.decided else one for one in group]
        without = train.train(plain, settings, data, tmp_path / f"plain_{normalisation}")
        assert without[0].train_loss == together[0].train_loss
        assert without[2].train_loss != pytest.approx(together[2].train_loss, rel=1e-2)
