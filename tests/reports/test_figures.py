"""Figures: an interval is drawn where it is, also where it does not hold its estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nas_retrain.reports.figures import BLUE, draw_estimates
from nas_retrain.studies.comparison import figures
from nas_retrain.studies.own_rates import report as own_rates
from nas_retrain.studies.own_rates.by_rate import PAPERS
from nas_retrain.studies.own_rates.findings import OwnRates
from nas_retrain.studies.proxies import report as proxies
from nas_retrain.studies.proxies.findings import Proxies
from nas_retrain.studies.rate_table import report as rate_table
from nas_retrain.studies.rule_shape import report as rule_shape
from nas_retrain.studies.scoreboard import report as scoreboard

ENDS = (0.3, 0.4)
"""Of every interval here, whose estimates are 0.1: below, as a percentile interval's estimate may be."""


def bars(figure: Figure) -> list[list[tuple[float, float]]]:
    """The bars of each set of estimates: the ends of each, along the axis of the estimates."""
    found = []
    for axes in figure.axes:
        for lines in axes.collections:
            if isinstance(lines, LineCollection):
                segments = [np.asarray(segment) for segment in lines.get_segments() if len(segment)]  # NaN has none
                # A bar lies along one axis, so that the other one's coordinates are the same.
                found.append([tuple(part[:, int(np.ptp(part[:, 0]) == 0)].tolist()) for part in segments])
    return found


@pytest.mark.parametrize("sideways", [False, True])
def test_an_interval_that_does_not_hold_its_estimate_is_drawn_between_its_ends(sideways: bool) -> None:
    figure = Figure()
    axes = figure.subplots()
    estimates, low, high = [0.1, 0.9, 0.5, np.nan], [0.3, 0.3, np.nan, np.nan], [0.4, 0.4, np.nan, np.nan]
    draw_estimates(axes, range(4), estimates, low, high, colour=BLUE, sideways=sideways, label="mine")
    (drawn,) = bars(figure)
    assert drawn == [ENDS, ENDS]
    (line,) = axes.lines
    x, y = (np.asarray(part, dtype=float) for part in line.get_data())
    np.testing.assert_array_equal(x if sideways else y, estimates)
    np.testing.assert_array_equal(y if sideways else x, range(4))
    assert axes.get_legend_handles_labels()[1] == ["mine"]


def test_estimates_without_any_interval_are_drawn() -> None:
    figure = Figure()
    draw_estimates(figure.subplots(), [1, 2], pd.Series([0.1, 0.2]), np.nan, np.nan, colour=BLUE)  # warnings are errors
    assert len(figure.axes[0].lines) == 1


def outside(*columns: str, **others: Any) -> pd.DataFrame:
    """A row of estimates that lie beside their intervals."""
    cells: dict[str, Any] = {}
    for name in columns:
        stem = name.removeprefix("kendall_").removeprefix("mean_").removesuffix("_rho")
        stem = {"tau_ceiling": "ceiling"}.get(stem, stem)
        cells |= {name: 0.1, f"{stem}_low": ENDS[0], f"{stem}_high": ENDS[1]}
    return pd.DataFrame([cells | others])


def found_outside() -> OwnRates:
    quartiles = {f"regret_{percent}_percent": 0.1 for percent in (5, 25, 50, 75, 95)}
    return OwnRates(
        own="own",
        control="control",
        rankings=outside("kendall_tau", "tau_ceiling", recipe="control", top_percent=100),
        regret=outside("mean_regret", recipe="control", **quartiles),
        curves=pd.DataFrame({"learning_rate": [0.1, 0.2]}),
        by_rate=np.zeros((3, 2)),  # a class in each group, whose means have no interval then
        classes=pd.DataFrame({PAPERS: [0.2, 0.4, 0.6]}),
        explained=outside("own_rate_rho", "lean_rho", quantity="depth"),
        rules=outside("gain", rule="depth"),
        reliability={},
    )


def drawn_alone(draw: Callable[[Axes], None]) -> Figure:
    figure = Figure()
    draw(figure.subplots())
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "own rates, rankings": lambda: own_rates.figure_of_rankings(found_outside()),
    "own rates, explained": lambda: own_rates.figure_of_explained(found_outside()),
    "own rates, sensitivity": lambda: own_rates._sensitivity(
        outside("mean_gain", "kendall_tau", varied="epochs", value=8.0, recipe="a", control="b", tau_ceiling=1.0)
    ),
    "rate table": lambda: drawn_alone(
        lambda axes: rate_table._draw_budgets(
            axes, outside("own_gain", "hindsight_gain", batch_size=64.0, best_one_rate=0.1), "batch_size"
        )
    ),
    "scoreboard": lambda: scoreboard._figure(
        {"part": outside("gain_over_one_rate", "gain_over_permuted", rule="paper")}
    ),
    "rule shape": lambda: rule_shape.figure_of_exponents(
        outside(
            "gain",
            normalisation="batch",
            initialisation="stock",
            networks=9,
            exponent=1,
            permuted_low=0,
            permuted_high=0.2,
        )
    ),
    "rule shape, sizes": lambda: rule_shape.figure_of_sizes(
        outside("over_one_rate", "over_permuted", image_size=7, channels=8, networks=9)
    ),
    "proxies": lambda: proxies._figure(
        Proxies("long", "cheap", "mine", outside("kendall_tau", "tau_ceiling", recipe="mine", top_percent=100))
    ),
    "comparison": lambda: drawn_alone(lambda axes: figures._draw_gains(axes, outside("mean_gain", group="1"))),
}


@pytest.mark.parametrize("name", [*FIGURES])
def test_a_report_s_figure_draws_intervals_between_their_own_ends(name: str) -> None:
    assert {ends for drawn in bars(FIGURES[name]()) for ends in drawn} == {ENDS}
