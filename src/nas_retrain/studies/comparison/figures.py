"""The figures of a comparison, as PNG and PDF."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from nas_retrain.benches.registry import Bench
from nas_retrain.reports.figures import BLUE, GREY, ORANGE, STYLE, draw_estimates, drawn_name, save
from nas_retrain.studies.comparison.tables import SIDES, Findings


def draw_all(findings: Findings, folder: Path) -> list[str]:
    """Draw every figure that the findings allow; returns their names, in the order of the report."""
    with rc_context(STYLE):
        drawn = {
            "ranking_change": _three_panels(findings),
            "accuracy_gain": _gains(findings),
            "largest_moves": draw_moves(findings),
        }
        for name, figure in drawn.items():
            if figure is not None:
                save(figure, folder, name)
    return [name for name, figure in drawn.items() if figure is not None]


def _three_panels(findings: Findings) -> Figure:
    """The paper's figure 4: accuracies, tau among the top K percent, spread among the top K percent."""
    figure = Figure(figsize=(10.0, 3.2), layout="constrained")
    scatter, tau, gap = figure.subplots(1, 3)
    _scatter(scatter, findings)
    _tau(tau, findings)
    _gap(gap, findings)
    return figure


def _scatter(axes: Axes, findings: Findings) -> None:
    control, other = findings.comparison.first, findings.comparison.second
    many = len(control.accuracy) > 500
    x_low, y_low = _low_end(control.accuracy), _low_end(other.accuracy)
    shown = (control.accuracy >= x_low) & (other.accuracy >= y_low)
    size, alpha = (2, 0.3) if many else (5, 0.7)
    x, y = control.accuracy[shown], other.accuracy[shown]
    axes.plot(x, y, ".", color=BLUE, markeredgewidth=0, rasterized=True, markersize=size, alpha=alpha)
    low = max(axes.get_xlim()[0], axes.get_ylim()[0])
    high = min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low < high:
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, label="equal")
        axes.legend(loc="upper left")
    axes.set(xlabel=f"{drawn_name(control.name)}, accuracy (%)", ylabel=f"{drawn_name(other.name)}, accuracy (%)")
    hidden = int((~shown).sum())
    axes.set_title(f"{len(shown):,} cells" + (f" ({hidden:,} weak ones outside)" if hidden else ""))


def _low_end(accuracy: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Where the axis starts: outliers far below the rest would squeeze what is to be seen."""
    quarter, middle = np.quantile(accuracy, [0.1, 0.5])
    return float(quarter - 1.5 * (middle - quarter)) if middle > quarter else float(accuracy.min())


def _tau(axes: Axes, findings: Findings) -> None:
    table = findings.ranking_change
    x = table["top_percent"]
    axes.fill_between(x, table["tau_low"], table["tau_high"], color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(x, table["kendall_tau"], "o-", color=BLUE, markersize=3, label="tau, 95 % interval")
    if findings.ceiling is not None:
        axes.fill_between(x, table["ceiling_low"], table["ceiling_high"], color=ORANGE, alpha=0.25, linewidth=0)
        axes.plot(x, table["tau_ceiling"], "--", color=ORANGE, label="noise ceiling, 95 % of retrainings")
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set(xlabel="top K % of cells", ylabel="Kendall's tau", xlim=(103, -2), ylim=(None, 1.02))
    axes.legend(loc="lower left")
    axes.set_title("Agreement of the rankings")


def _gap(axes: Axes, findings: Findings) -> None:
    table = findings.performance_gap
    for name, side, colour, marker in zip(SIDES, findings.comparison.sides, (GREY, BLUE), "os", strict=True):
        low, high = table[f"std_{name}_low"], table[f"std_{name}_high"]
        axes.fill_between(table["top_percent"], low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            table["top_percent"],
            table[f"std_{name}"],
            marker=marker,
            markersize=3,
            color=colour,
            label=drawn_name(side.name),
        )
    axes.set(
        xlabel="top K % of cells, by own ranking", ylabel="standard deviation of accuracy (points)", xlim=(103, -2)
    )
    values = table[[f"std_{name}" for name in SIDES]].to_numpy()
    if values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower left")
    axes.set_title("Spread among the best")


def _gains(findings: Findings) -> Figure:
    figure = Figure(figsize=(10.0, 3.5), layout="constrained")
    decile, factor = figure.subplots(1, 2)
    table = findings.accuracy_gain
    rows = table[table["grouping"] == "decile"]
    _draw_gains(decile, rows)
    if rows["selection"].notna().any():
        decile.plot(
            rows["group"].astype(int),
            rows["selection"],
            "_",
            color=ORANGE,
            markersize=14,
            label="from sorting by noise alone",
        )
        figure.legend(*decile.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    control = drawn_name(findings.comparison.first.name)
    decile.set(
        xlabel=f"decile of the accuracy of {control} (1: weakest)", ylabel="mean gain (points)", xticks=range(1, 11)
    )
    overall = table.iloc[0]
    ends = f" [{overall['gain_low']:+.2f}, {overall['gain_high']:+.2f}]" if np.isfinite(overall["gain_low"]) else ""
    decile.set_title(
        f"Mean gain {overall['mean_gain']:+.2f}{ends} points, {overall['share_improved']:.0%} of cells improve"
    )
    rows = table[table["grouping"] == "learning_rate_factor"]
    _draw_gains(factor, rows)
    factor.set(xlabel="learning-rate factor of the cell", ylabel="mean gain (points)", xscale="log")
    factor.set_title("By learning-rate factor")
    factor.set_xticks([0.1, 0.2, 0.5, 1.0], ["0.1", "0.2", "0.5", "1"])
    factor.xaxis.set_minor_formatter("")
    return figure


def _draw_gains(axes: Axes, rows: pd.DataFrame) -> None:
    axes.axhline(0, color=GREY, linewidth=0.6)
    draw_estimates(
        axes, rows["group"].astype(float), rows["mean_gain"], rows["gain_low"], rows["gain_high"], colour=BLUE,
        width=1.5, label="mean, 95 % interval",
    )  # fmt: skip


def draw_moves(findings: Findings) -> Figure | None:
    """The cells that rise and fall most, drawn."""
    table, bench = findings.largest_moves, findings.comparison.bench
    rising, falling = table[table["move"] > 0].head(4), table[table["move"] < 0].head(4)
    if table.empty:
        return None
    columns = max(len(rising), len(falling))
    rows = [part for part in (rising, falling) if len(part)]
    figure = Figure(figsize=(2.5 * columns + 0.2, 1.9 * len(rows) + 0.5), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)  # type: ignore[union-attr,call-arg]
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, part in zip(grid, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (_, cell) in zip(line, part.iterrows(), strict=False):
            draw_cell(axes, bench, int(cell["index"]))
            axes.set_title(
                f"cell {cell['index']}: rank {_rank(cell['rank_original'])} to {_rank(cell['rank_retrained'])}\n"
                f"{cell['accuracy_original']:.2f} % to {cell['accuracy_retrained']:.2f} %"
            )
    handles = [
        FancyArrowPatch((0, 0), (1, 0), color=option.colours[0], label=option.name, arrowstyle="-", linewidth=2)
        for option in bench.drawing.options
        if option.colours
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, columns + 1))
    return figure


def _rank(rank: float) -> str:
    return f"{math.floor(rank):,}"


def draw_cell(axes: Axes, bench: Bench, cell: int) -> None:
    """Draw a cell as its benchmark says: vertices from left to right, edges coloured by operation, those without effect
    thin and dotted."""
    drawing = bench.drawing
    for (source, target), number, alive in zip(drawing.places, bench.chosen(cell), bench.effective(cell), strict=True):
        colours = drawing.options[number].colours
        if colours is None:
            continue
        axes.add_patch(
            FancyArrowPatch(
                drawing.vertices[source],
                drawing.vertices[target],
                arrowstyle="-|>",
                mutation_scale=9,
                shrinkA=7,
                shrinkB=7,
                connectionstyle="arc3,rad=0.0",
                color=colours[0],
                linewidth=2 if alive else 0.8,
                linestyle="-" if alive else ":",
            )
        )
    for vertex, (x, y) in enumerate(drawing.vertices):
        axes.plot(x, y, "o", markersize=13, color="white", markeredgecolor="black", markeredgewidth=0.8)
        axes.annotate(str(vertex), (x, y), ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.4, len(drawing.vertices) - 0.6), ylim=(-1.15, 1.15))
    axes.set_aspect("equal")
