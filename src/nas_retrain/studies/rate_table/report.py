"""The report on own best rates in a table of trainings: the reference study's sentences, tables and figures, and what a
table tells beyond them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas_retrain.reports.document import write_document
from nas_retrain.reports.figures import BLUE, GREY, ORANGE, STYLE, draw_estimates, save
from nas_retrain.reports.tables import p_text, with_interval, write_tables
from nas_retrain.reports.template import render_markdown
from nas_retrain.statistics.rankings import FEWEST
from nas_retrain.statistics.significance import SIGNIFICANT
from nas_retrain.studies.own_rates import report
from nas_retrain.studies.rate_table.findings import TableFindings

MOST_CLASSES = 20
"""Rows of the table of networks that the report shows."""


def write(found: TableFindings, folder: Path, facts: Mapping[str, str]) -> Path:
    """Write tables/*.csv, figures/*, report.md and report.html below `folder`, and return it. Raises NasRetrainError if
    the folder cannot be written."""
    write_tables(found.tables(), folder)
    with rc_context(STYLE):
        save(report.figure_of_rankings(found.found), folder / "figures", "whose_ranking")
        save(report.figure_of_explained(found.found), folder / "figures", "own_rates")
        save(_figure_of_budgets(found.budgets), folder / "figures", "budgets")
    write_document(folder, _text(found, facts), _title(found))
    return folder


def statements(found: TableFindings) -> list[str]:
    """What the numbers show, in plain sentences."""
    return [*_own_rates(found), *_depends(found), *report.statements(found.found, None), *map(_permuted, _rows(found))]


def headline(found: TableFindings) -> list[str]:
    """The three sentences that matter most: the own rates, what they go with, and the rule that gains most."""
    rules = sorted(_rows(found), key=lambda row: -float(row["gain"]))
    return [_own_rates(found)[0], *_depends(found), *map(_permuted, rules[:1])]


def _title(found: TableFindings) -> str:
    return f"Own best learning rates in {found.table.name}"


def _rows(found: TableFindings) -> list[pd.Series]:
    return [row for _, row in found.permuted.iterrows()]


def _own_rates(found: TableFindings) -> list[str]:
    classes, grid = found.found.classes, found.grid
    rates, counts = np.unique(classes["own_rate"], return_counts=True)
    shares = ", ".join(f"{rate:.3g} for {count:,}" for rate, count in zip(rates, counts, strict=True))
    said = [f"Best rates of the {len(classes):,} networks ({found.budget}): {shares}."]
    if at_edge := int(classes["at_edge"].sum()):
        said.append(f"For {at_edge:,} that is an end of the grid, so that their best rate may lie beyond it.")
    if grid.seeds > 1:
        sure = float((classes["own_rate_low"] == classes["own_rate_high"]).mean())
        said.append(
            f"With other seeds at least {1 - classes['certainty'].mean():.0%} of the networks would have another best "
            f"rate; it is beyond doubt for {sure:.0%}. Between two rates next to each other the difference is "
            "often less than noise."
        )
    return said


def _depends(found: TableFindings) -> list[str]:
    """Whether own rates go with what is known of the graph, and with what most."""
    explained = found.found.explained
    certain = explained[explained["own_rate_p"] <= SIGNIFICANT]
    if certain.empty:
        return [f"Own rates go with none of the {len(explained)} quantities known before training beyond doubt."]
    best = certain.iloc[int(certain["own_rate_rho"].abs().argmax())]
    rho = with_interval(best["own_rate_rho"], best["own_rate_low"], best["own_rate_high"])
    return [
        f"Own rates go with {len(certain)} of the {len(explained)} quantities known before training beyond doubt, most "
        f"with {best['quantity']}: Spearman's {rho}{report.of_noise(found.found)}."
    ]


def _permuted(row: pd.Series) -> str:
    rho = with_interval(row["rho"], row["rho_low"], row["rho_high"])
    gain = with_interval(row["gain"], row["gain_low"], row["gain_high"], "+.2f")
    null = with_interval(row["permuted_gain"], row["permuted_low"], row["permuted_high"], "+.2f")
    better = "beyond doubt better than" if row["p_holm"] <= SIGNIFICANT else "not shown to be better than"
    return (
        f"{row['rule']}: it orders own rates with Spearman's {rho}. With its scalar tuned it has {gain} points "
        f"over one rate, {better} its factors shuffled between networks, {null} (p = {p_text(row['p_holm'])})."
    )


def _text(found: TableFindings, facts: Mapping[str, str]) -> str:
    shown = ["cell", "arch", "own_rate", "own_rate_low", "own_rate_high", "certainty", "lean"]
    return render_markdown(
        __package__,
        title=_title(found),
        notes=found.table.notes,
        statements=statements(found),
        grid=found.grid,
        budget=found.budget,
        fewest=FEWEST,
        own=found.found,
        permuted=found.permuted,
        budgets=found.budgets,
        classes=found.found.classes.nsmallest(MOST_CLASSES, "cell")[shown],
        classes_shown=MOST_CLASSES,
        facts=facts,
    )


def _figure_of_budgets(budgets: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    for axes, varied, label in zip(
        figure.subplots(1, 2), ("batch_size", "epochs"), ("batch size", "epochs"), strict=True
    ):
        fixed = "epochs" if varied == "batch_size" else "batch_size"
        trained = budgets[budgets["accuracies"] == "trained"]
        rows = trained
        if len(trained) and trained[fixed].notna().any():
            rows = trained[trained[fixed] == trained[fixed].mode().iloc[0]]
        rows = rows[rows[varied].notna()].sort_values(varied)
        _draw_budgets(axes, rows, varied)
        axes.set(xlabel=label, ylabel="points gained by own rates")
    return figure


def _draw_budgets(axes: Axes, rows: pd.DataFrame, varied: str) -> None:
    x = rows[varied].to_numpy(dtype=float)
    for name, colour, marker, label in (
        ("own_gain", BLUE, "o", "judged by other seeds"),
        ("hindsight_gain", ORANGE, "s", "in hindsight"),
    ):
        draw_estimates(
            axes, x, rows[name], rows[f"{name}_low"], rows[f"{name}_high"], colour=colour, marker=f"{marker}-",
            label=label,
        )  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.6)
    if varied == "batch_size" and len(x):
        axes.set_xscale("log", base=2)
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    rates = axes.twinx()
    rates.plot(x, rows["best_one_rate"], "D--", color=GREY, markersize=3, linewidth=0.8, label="best one rate")
    rates.set(ylabel="learning rate")
    if len(x):
        rates.set_yscale("log")
    handles, labels = axes.get_legend_handles_labels()
    more, names = rates.get_legend_handles_labels()
    axes.legend(handles + more, labels + names, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3, fontsize=7)
