"""The scoreboard's table, figure and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from nas_retrain.reports.document import write_document
from nas_retrain.reports.figures import BLUE, GREY, ORANGE, STYLE, draw_estimates, save
from nas_retrain.reports.tables import number_text, with_interval, write_tables
from nas_retrain.reports.template import render_markdown
from nas_retrain.settings import ScoreboardSettings

SHOWN = {
    "pearson": "r",
    "spearman": "rho",
    "excess_loss": "loss it costs",
    "gain_over_one_rate": "gain over one rate",
    "gain_over_permuted": "gain over its permutation",
}


TITLE = "Scaling rules, through the same tests"


def write(
    judged: Mapping[str, pd.DataFrame],
    slopes: Mapping[str, pd.DataFrame],
    wanted: ScoreboardSettings,
    folder: Path,
    facts: Mapping[str, str],
) -> Path:
    """Write tables/*.csv, figures/scoreboard.*, report.md and report.html below `folder`, and return it.

    judged: by part, see `findings.judge_rules`. slopes: by part, see `first_step.measure_slopes`, of those parts that
    have them. Raises NasRetrainError if the folder cannot be written.
    """
    rules = pd.concat([table.assign(part=part) for part, table in judged.items()], ignore_index=True)
    rules = rules[["part", *rules.columns.drop("part")]]
    tables = {"rules": rules}
    if slopes:
        tables["slopes"] = pd.concat([table.assign(part=part) for part, table in slopes.items()], ignore_index=True)
    write_tables(tables, folder)
    with rc_context(STYLE):
        save(_figure(judged), folder / "figures", "scoreboard")
    text = render_markdown(
        __package__,
        title=TITLE,
        statements=statements(judged),
        parts={part: _shown(table, slopes.get(part)) for part, table in judged.items()},
        rules={name: _called(name, wanted) for name in wanted.rules},
        facts=facts,
    )
    write_document(folder, text, TITLE)
    return folder


def statements(judged: Mapping[str, pd.DataFrame]) -> list[str]:
    """Which rules gain over one rate for all, and which of them because they know the network, by part."""
    return [_gaining(part, table) for part, table in judged.items()]


def _gaining(part: str, table: pd.DataFrame) -> str:
    gaining = table[table["gain_over_one_rate_low"] > 0]
    if gaining.empty:
        return f"{part}: no rule's gain over one rate for all networks has a 95 % interval above 0."
    best = gaining.nlargest(1, "gain_over_one_rate").iloc[0]
    gain = _with_ends(*(best[f"gain_over_one_rate{end}"] for end in ("", "_low", "_high")))
    knowing = gaining.loc[gaining["gain_over_permuted_low"] > 0, "rule"]
    return (
        f"{part}: {best['rule']} gains most over one rate for all networks, {gain} nats. "
        f"Of the rules that gain, these also gain over their own permutation: {', '.join(knowing) or 'none'}."
    )


def _called(name: str, wanted: ScoreboardSettings) -> str:
    rule = wanted.rules[name]
    given = ", ".join(f"{parameter}={value}" for parameter, value in rule.parameters.items())
    return rule.rule + (f" with {given}" if given else "")


def _shown(judged: pd.DataFrame, slopes: pd.DataFrame | None) -> pd.DataFrame:
    """The table that a reader sees: a row for each rule, numbers with their intervals."""
    table = pd.DataFrame({"rule": judged["rule"]})
    if slopes is not None:
        for sweep, rows in slopes.groupby("sweep", sort=False):
            exponents = rows.set_index("rule")["change_slope"].reindex(judged["rule"]).to_numpy()
            table[str(sweep)] = ["" if np.isnan(value) else f"{value:.2f}" for value in exponents]
    for column, name in SHOWN.items():
        ends = judged[[column, f"{column}_low", f"{column}_high"]].to_numpy(dtype=float)
        table[name] = ["" if np.isnan(value) else _with_ends(value, low, high) for value, low, high in ends]
    return table


def _with_ends(value: float, low: float, high: float) -> str:
    return number_text(value, ".2f") if np.isnan(low) else with_interval(value, low, high)


def _figure(judged: Mapping[str, pd.DataFrame]) -> Figure:
    rules = next(iter(judged.values()))["rule"].tolist()
    figure = Figure(figsize=(2.2 + 2.3 * len(judged), 1.2 + 0.3 * len(rules)), layout="constrained")
    places = np.arange(len(rules))[::-1]
    gains = (("gain_over_one_rate", BLUE, "o", 0.12), ("gain_over_permuted", ORANGE, "s", -0.12))
    panels = figure.subplots(1, len(judged), squeeze=False, sharey=True)[0]
    for axes, (part, table) in zip(panels, judged.items(), strict=True):
        axes.axvline(0, color=GREY, linewidth=0.8)
        for column, colour, marker, shift in gains:
            draw_estimates(
                axes, places + shift, table[column], table[f"{column}_low"], table[f"{column}_high"], colour=colour,
                marker=marker, sideways=True, label=SHOWN[column],
            )  # fmt: skip
        axes.set_title(part)
        axes.set_xlabel("gain (nats)")
        axes.set_yticks(places, rules)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
