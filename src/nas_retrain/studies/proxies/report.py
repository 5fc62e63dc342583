"""The report on proxies: sentences, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from nas_retrain.reports.document import write_document
from nas_retrain.reports.figures import BLUE, GREEN, GREY, ORANGE, STYLE, draw_estimates, drawn_name, save
from nas_retrain.reports.tables import with_interval, write_tables
from nas_retrain.reports.template import render_markdown
from nas_retrain.statistics.rankings import FEWEST
from nas_retrain.statistics.significance import SIGNIFICANT
from nas_retrain.studies.proxies.findings import Proxies


def write(found: Proxies, folder: Path, facts: Mapping[str, str]) -> Path:
    """Write tables/proxies.csv, figures/proxies.*, report.md and report.html below `folder`, and return it. Raises
    NasRetrainError if the folder cannot be written."""
    write_tables({"proxies": found.rankings}, folder)
    with rc_context(STYLE):
        save(_figure(found), folder / "figures", "proxies")
    title = f"Cheap trainings for long ones: {found.cheap} for {found.long}"
    text = render_markdown(
        __package__, title=title, statements=statements(found), found=found, fewest=FEWEST, facts=facts
    )
    write_document(folder, text, title)
    return folder


def headline(found: Proxies) -> list[str]:
    """The sentences that matter most: the first on all networks, the last on what is beyond noise."""
    said = statements(found)
    return [said[0], said[-1]]


def statements(found: Proxies) -> list[str]:
    """What the numbers show, in plain sentences."""
    said = []
    for percent, rows in found.rankings.groupby("top_percent", sort=False):
        among = "all" if percent == 100 else f"the best {percent} %, which are"
        taus = "; ".join(
            f"{row['recipe']} {with_interval(row['kendall_tau'], row['tau_low'], row['tau_high'])}"
            + ("" if np.isnan(row["tau_ceiling"]) else f" of at most {row['tau_ceiling']:.2f}")
            for _, row in rows.iterrows()
        )
        better = list(rows.loc[rows["over_control_low"] > 0, "recipe"])
        worse = list(rows.loc[rows["over_control_high"] < 0, "recipe"])
        verdicts = [
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} a {word} proxy than {found.control} beyond doubt"
            for names, word in ((better, "better"), (worse, "worse"))
            if names
        ]
        verdict = "; ".join(verdicts) or f"None differs from {found.control} beyond doubt"
        said.append(
            f"Kendall's tau with {found.long}, over {among} up to {rows['cells'].max():,} networks: {taus}. {verdict}."
        )
    changed = found.rankings[(found.rankings["top_percent"] == 100) & (found.rankings["p_holm"] <= SIGNIFICANT)]
    names = ", ".join(changed["recipe"])
    said.append(
        f"More than noise stands between the long trainings' ranking and that of {names}."
        if names
        else "No ranking differs from the long trainings' by more than noise."
    )
    return said


def _figure(found: Proxies) -> Figure:
    names = list(found.rankings["recipe"].unique())
    figure = Figure(figsize=(7.0, 0.6 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    percents = list(found.rankings["top_percent"].unique())
    for place, (percent, colour) in enumerate(zip(percents, (BLUE, ORANGE, GREEN), strict=False)):
        rows = found.rankings[found.rankings["top_percent"] == percent]
        y = np.array([names.index(name) for name in rows["recipe"]]) + 0.22 * (place - 1)
        draw_estimates(
            axes, y, rows["kendall_tau"], rows["tau_low"], rows["tau_high"], colour=colour, sideways=True,
            label="all" if percent == 100 else f"best {percent} %",
        )  # fmt: skip
        draw_estimates(
            axes, y, rows["tau_ceiling"], rows["ceiling_low"], rows["ceiling_high"], colour=GREY, marker="|", size=7,
            width=0.8, sideways=True, label="noise ceiling" if place == 0 else None,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [drawn_name(name).replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="Kendall's tau with the long trainings")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=4)
    return figure
