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
from nas_retrain.reports.markup import bullets, escaped
from nas_retrain.reports.tables import as_markdown
from nas_retrain.statistics.rankings import FEWEST
from nas_retrain.studies.comparison.figures import BLUE, GREY, ORANGE, STYLE, save
from nas_retrain.studies.comparison.report import SIGNIFICANT, with_interval, write_tables
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
    write_document(folder, "\n\n".join(_sections(found, facts)) + "\n", _title(found))
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
    null = f"{row['permuted_gain']:+.2f} [{row['permuted_low']:+.2f}, {row['permuted_high']:+.2f}]"
    better = "beyond doubt better than" if row["p_holm"] <= SIGNIFICANT else "no better than"
    return (
        f"{row['rule']}: it orders own rates with Spearman's {rho}. With its scalar tuned it has {gain} points "
        f"over one rate, {better} its factors shuffled between networks, {null} (p = {row['p_holm']:.3f})."
    )


def _sections(found: TableFindings, facts: Mapping[str, str]) -> list[str]:
    grid, own = found.grid, found.found
    shown = ["cell", "arch", "own_rate", "own_rate_low", "own_rate_high", "certainty", "lean"]
    split = (
        "Each ranking is of single trainings: one seed ranks the networks at a rate, another one at their own, and the "
        "others choose these; all is averaged over such splits."
        if grid.seeds > 2
        else "There are too few seeds to split, so trainings are shared: agreement and gains are too large."
    )
    return [
        f"# {escaped(_title(found))}",
        bullets(found.table.notes),
        bullets(statements(found)),
        "![Whose ranking is right](figures/whose_ranking.png)",
        f"*{len(grid):,} networks at {len(grid.rates)} rates from {grid.rates[0]:.3g} to {grid.rates[-1]:.3g}, "
        f"{grid.seeds} seed(s), {escaped(found.budget)}. Rates are chosen by validation accuracy, all else is "
        "judged by test accuracy where the table has both. Left: Kendall's tau with the ranking at own rates, "
        "beside the noise ceiling. Middle: points that the other ways to set the rate lack (boxes: the middle "
        "half, whiskers: 90 %, diamonds: means). Right: accuracy by rate, for three groups by the factor that "
        "the paper's rule gives. Intervals are 95 %, over networks, of which "
        f"they take {FEWEST}.*",
        "## Rankings",
        as_markdown(own.rankings),
        f"*The top K % are by the accuracies at own rates. {split} Noise ceiling: the mean tau if both rankings "
        "were truly the same and only noise differed, and 95 % of such taus; p: how often noise gives a "
        "tau as low (twice the mean over splits), also adjusted for their number. Over control: tau less that "
        f"of {escaped(own.control)}. Luck of "
        "seeds that favours a kind of network is not in these intervals.*",
        "## Points below own rates",
        as_markdown(own.regret),
        "*Test accuracy at the own rate, chosen by the other seeds, less that of each way to set the rate with "
        "the same "
        "seed.*",
        as_markdown(own.curves, 3),
        "*All networks with one rate, on validation images; Share best: how many have it as their own.*",
        "## What explains the own rate",
        "![What explains own rates](figures/own_rates.png)",
        as_markdown(own.explained),
        "*Rank correlations (rho) with the own rate and with the lean, which is the slope of validation accuracy on "
        "log2 of the rate; p-values are adjusted for the number of quantities.*",
        as_markdown(own.rules),
        "*Rules log2 rate = a + b log2 quantity (of 1 + quantity, if it may be 0), fitted on one half of the "
        "networks and judged on the other, both ways. For the paper's b is 1 and the quantity its factor. own "
        "rate: chosen with some "
        "seeds and judged with the others; in hindsight: judged with the same.*",
        as_markdown(found.permuted),
        "*Rules with nothing but a scalar tuned, on one half and judged on the other, beside their own factors "
        "shuffled "
        "between networks.*",
        "## Batch sizes and epochs",
        "![Budgets](figures/budgets.png)",
        as_markdown(found.budgets),
        "*Own gain: what own rates gain over the best one rate, chosen by some seeds and judged by others; "
        "Hindsight gain: by the same. Tau benchmark: between the rankings at the benchmark's rate and at own "
        "rates, of single trainings. "
        "Paper rho: rank correlation of own rates with the paper's rule.*",
        "## Networks",
        as_markdown(own.classes.nsmallest(MOST_CLASSES, "cell")[shown], 3),
        f"*The first {MOST_CLASSES}; tables/classes.csv has all. In brackets: where 95 % of the "
        "own rates are that "
        "other trainings would give. Certainty: how many of these are the same rate, at most.*",
        "## Made with",
        bullets(f"{name}: {value}" for name, value in facts.items()),
    ]


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
        ends = [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
        axes.errorbar(x, rows[name], yerr=ends, fmt=f"{marker}-", color=colour, markersize=4, linewidth=1, label=label)
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
