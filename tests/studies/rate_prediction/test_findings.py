"""Predicted against searched rates: rules against listed paths, and what is found in worlds made to be known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nas_retrain.benches import registry
from nas_retrain.benches.dags import space as dags
from nas_retrain.benches.nas_bench_201 import space as nas_bench_201
from nas_retrain.plan.rate_search import GridPoint, GridSearch
from nas_retrain.settings import Settings
from nas_retrain.studies.rate_prediction import findings, report
from nas_retrain.studies.rate_prediction.findings import Searched
from nas_retrain.theory.scaling import Initialisation
from tests.conftest import MakeSettings
from tests.strategies import cells
from tests.theory.test_graph import paths


@pytest.mark.slow
@given(cells, st.integers(1, 2))
def test_the_rules_of_201_are_sums_over_listed_paths(arch: str, cells_per_stage: int) -> None:
    from nas_retrain.commands.command_line import compose

    graph = nas_bench_201.parse(arch)
    if not graph.connected:
        return
    settings = compose("dataset=digits", "profile=dry", config="verify")
    rules = findings.rules_of(settings.bench, registry.of(settings.bench), cells_per_stage)
    listed = [[edge.operation for edge in path] for path in paths(graph)]
    kernels = [[operation.kernel_size for operation in path if operation.kind == "layer"] for path in listed]
    by_path = sum((1 + len(path)) ** 3 * (np.mean(path) if path else 3.0) ** 2 for path in kernels) / 9
    assert math.isclose(rules[findings.KERNEL_BY_PATH](graph), by_path**-0.5)
    deepest = max(map(len, kernels))
    assert math.isclose(rules[findings.DEEPEST](graph), (1 + deepest) ** -1.5)
    assert rules[findings.ONE_RATE](graph) == 1.0
    if len(kernels) ** (3 * cells_per_stage) < 3000:
        blocks = [0, 2]  # a reduction block's shortcut and its branch

        def total(depths: list[int]) -> int:
            stages = [depths] * cells_per_stage
            ways = itertools.product(*stages, blocks, *stages, blocks, *stages)
            return sum((1 + sum(way)) ** 3 for way in ways)

        expected = (total([len(path) for path in kernels]) / total([0])) ** -0.5
        assert math.isclose(rules[findings.STACKED](graph), expected)


GRID = tuple(0.001 * 2.0**step for step in range(14))


def search_with_best(rate: float, seeds: int = 3) -> GridSearch:
    """Losses that are a parabola in the logarithm of the rate, diverging far above the best."""
    return GridSearch(
        tuple(
            GridPoint(
                point,
                tuple(
                    math.inf if point > 30 * rate else 0.5 + 0.05 * math.log2(point / rate) ** 2 for _ in range(seeds)
                ),
            )
            for point in GRID
        )
    )


def a_world(settings: Settings, exponent: float, noise: float) -> list[Searched]:
    """Networks whose best rate is the paper's prediction to some power, off by noise in its logarithm."""
    space = registry.of(settings.bench)
    rule = findings.rules_of(settings.bench, space, 1)[findings.PATHS]
    random = np.random.default_rng(0)
    found = []
    for cell in (*space.sample(40, seed=2), space.base_cell):
        off = noise * random.standard_normal() if cell != space.base_cell else 0.0
        best = 1.024 * rule(space.graph_at(cell)) ** exponent * math.exp(off)
        nearest = min(GRID, key=lambda point: abs(math.log(point / best)))
        found.append(Searched("target", cell, search_with_best(nearest)))
    return found


def test_a_world_in_which_the_rule_holds(make_settings: MakeSettings) -> None:
    settings = make_settings("bench=mlp", config="verify")
    found = findings.verify(a_world(settings, 1.0, 0.0), settings, registry.of(settings.bench))
    row = found.judged("target", findings.PATHS)
    assert row is not None
    assert row["pearson_log"] > 0.9  # the grid's steps are all that is between them
    assert row["pearson_low"] <= row["pearson"] <= row["pearson_high"]
    assert row["off_by_octaves"] <= 0.5
    assert row["excess_loss"] < 0.05
    one_rate = found.judged("target", findings.ONE_RATE)
    assert one_rate is not None
    assert math.isnan(one_rate["spearman"])
    assert one_rate["excess_loss_low"] > row["excess_loss_high"]
    assert found.ceiling["target"] == pytest.approx(1.0)
    assert list(found.arms(findings.PATHS)["arm"]) == ["the paper's rules, in-degree of the target"]


@pytest.mark.parametrize(("exponent", "noise"), [(0.0, 1.0), (-1.0, 0.1)])
def test_worlds_in_which_it_does_not(make_settings: MakeSettings, exponent: float, noise: float) -> None:
    settings = make_settings("bench=mlp", config="verify")
    found = findings.verify(a_world(settings, exponent, noise), settings, registry.of(settings.bench))
    row = found.judged("target", findings.PATHS)
    assert row is not None
    if exponent:
        assert row["spearman_high"] < 0
    else:
        assert row["spearman_low"] < 0 < row["spearman_high"]


def test_correlations_are_scipy_s(make_settings: MakeSettings) -> None:
    settings = make_settings("bench=mlp", config="verify")
    found = findings.verify(a_world(settings, 1.0, 0.8), settings, registry.of(settings.bench))
    row, rates = found.judged("target", findings.PATHS), found.rates
    assert row is not None
    x, y = rates[findings.PATHS], rates["searched_rate"]
    assert row["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert row["pearson_log"] == pytest.approx(stats.pearsonr(np.log(x), np.log(y)).statistic)
    assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_diverged_training_costs_no_more_than_knowing_nothing(make_settings: MakeSettings) -> None:
    settings = make_settings("bench=mlp", config="verify")
    space = registry.of(settings.bench)
    cold = [Searched("he", cell, search_with_best(GRID[2])) for cell in space.sample(2, seed=0)]
    hot = Searched("he", space.base_cell, search_with_best(GRID[-1]))
    found = findings.verify([*cold, hot], settings, space)
    row = found.judged("he", findings.ONE_RATE)
    assert row is not None
    assert row["excess_loss"] == pytest.approx(math.log(10) - 0.5)


def test_slopes_are_exponents() -> None:
    table = pd.DataFrame({"sweep": "depth", "x": [1.0, 2.0, 4.0], "arm": "a", "last": True, "vertex": 1})
    table["size"], table["change"] = 3 * table["x"] ** 2.5, 5.0
    (row,) = findings.slopes(table).to_dict("records")
    assert row["size_slope"] == pytest.approx(2.5)
    assert row["change_slope"] == pytest.approx(0.0)


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_of_a_signal_that_is_no_positive_number_there_is_no_exponent(value: float) -> None:
    table = pd.DataFrame({"sweep": "depth", "x": [1.0, 2.0, 4.0], "arm": "a", "last": True, "vertex": 1})
    table["size"], table["change"] = table["x"] ** 2, [3.0, value, 5.0]
    (row,) = findings.slopes(table).to_dict("records")
    assert row["size_slope"] == pytest.approx(2.0)
    assert np.isnan(row["change_slope"])
    (row,) = findings.slopes(table[:1]).to_dict("records")
    assert np.isnan(row["size_slope"])


def test_a_signal_of_0_is_no_division_by_it(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("bench=mlp", "analysis.bootstrap_draws=20", config="verify")
    space, world = registry.of(settings.bench), a_world(settings, 1.0, 0.5)[-9:]
    for silent, expected in ((space.base_cell, np.nan), (world[0].cell, 0.0)):
        signals = {("target", one.cell): 0.0 if one.cell == silent else 2.0 for one in world}
        found = findings.verify(world, settings, space, signals)  # type: ignore[arg-type]
        signal = found.rates.set_index("cell")["signal"]
        np.testing.assert_equal(signal[world[0].cell], expected)
        assert "start with a signal" not in " ".join(report.statements(found, settings))  # loud is none of them
    silent_step = pd.DataFrame({"sweep": "depth", "x": [1.0, 2.0], "arm": "a", "last": True, "vertex": 1})
    report.write(found, silent_step.assign(size=[1.0, 2.0], change=0.0), tmp_path, settings, {})
    assert "nan" not in (tmp_path / "report.md").read_text()


def test_dag_spaces_have_the_rules_that_differ_there(make_settings: MakeSettings) -> None:
    for bench, number in (("mlp", 3), ("cnn", 5)):
        settings = make_settings(f"bench={bench}", config="verify")
        rules = findings.rules_of(settings.bench, registry.of(settings.bench), 1)
        assert len(rules) == number
        assert all(math.isclose(rule(dags.BASE), 1.0) for rule in rules.values())


def test_three_networks_are_too_few_for_a_correlation(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("bench=mlp", config="verify")
    space = registry.of(settings.bench)
    few = [*a_world(settings, 1.0, 0.5)[:3], a_world(settings, 1.0, 0.5)[-1]]
    signals = {("target", one.cell): 1.0 if one.cell == space.base_cell else 9.0 for one in few}
    found = findings.verify(few, settings, space, signals)  # type: ignore[arg-type]
    said = " ".join(report.statements(found, settings))
    assert "3 networks are too few for a correlation" in said
    assert "nan" not in said
    assert "orders the searched rates best" not in said
    assert len(report.headline(found, settings)) == 2
    report.write(found, None, tmp_path, settings, {})
    assert "nan" not in (tmp_path / "report.md").read_text()
    four = findings.verify(a_world(settings, 1.0, 0.5)[-5:], settings, space)
    assert "r = " in " ".join(report.statements(four, settings))


@pytest.mark.parametrize("initialisation", [*get_args(Initialisation)])
def test_every_initialisation_that_can_be_searched_has_a_name(
    make_settings: MakeSettings, initialisation: Initialisation
) -> None:
    settings = make_settings("bench=mlp", "analysis.bootstrap_draws=20", config="verify")
    searched = [replace(one, initialisation=initialisation) for one in a_world(settings, 1.0, 0.5)[-12:]]
    found = findings.verify(searched, settings, registry.of(settings.bench))
    assert f"with {report.LABELS[initialisation]}: Spearman's" in " ".join(report.statements(found, settings))
