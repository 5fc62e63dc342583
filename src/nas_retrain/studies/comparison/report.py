"""The report of a comparison: report.md, and report.html in one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from nas_retrain.reports.document import tell_stage, write_document
from nas_retrain.reports.tables import interval_text, with_interval, write_tables
from nas_retrain.reports.template import render_markdown
from nas_retrain.statistics.means import countable
from nas_retrain.statistics.rankings import FEWEST, Comparison
from nas_retrain.statistics.significance import SIGNIFICANT
from nas_retrain.studies.comparison import figures, page
from nas_retrain.studies.comparison.curves import Curves
from nas_retrain.studies.comparison.tables import BEYOND_NOISE, SIDES, Findings

LOW_CEILING = 0.7
"""A noise ceiling below which a comparison of rankings is an illustration only."""

RANKING_SHOWN = [
    *("top_percent", "cells", "kendall_tau", "tau_low", "tau_high", "tau_ceiling", "ceiling_low", "ceiling_high"),
    *("beyond_noise", "beyond_low", "beyond_high", "p_holm"),
]
GAIN_SHOWN = [
    *("grouping", "group", "cells", "mean_original", "mean_gain", "gain_low", "gain_high", "selection"),
    "share_improved",
]
"""The columns of these tables that the report shows; the files have all."""

_EXPLORE = Markup("[explore.html](explore.html) shows every cell to point at, filter and search, offline too.")


def write(
    findings: Findings,
    folder: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    attribution: pd.DataFrame | None = None,
    curves: Sequence[Curves | None] = (None, None),
) -> None:
    """Write tables/*.csv, figures/*, report.md, report.html and explore.html below `folder`.

    facts: what the report says of its settings, by name. attribution: see `tables.attribution`. curves: of the control
    and of the other side, for explore.html. Raises NasRetrainError if the folder cannot be written.
    """
    tables = findings.tables() | ({} if attribution is None else {"attribution": attribution})
    write_tables(tables, folder)
    tell_stage("Figures")
    drawn = figures.draw_all(findings, folder / "figures")
    text = _text(findings, title, facts, drawn, attribution)
    write_document(folder, text, title, left_out=_EXPLORE)
    tell_stage("The page of all cells, explore.html")
    again = findings.ceiling
    noise = None if again is None else again.moves
    page.write(findings.comparison, folder / "explore.html", title=title, noise=noise, curves=curves)


def _text(
    findings: Findings, title: str, facts: Mapping[str, str], drawn: Sequence[str], attribution: pd.DataFrame | None
) -> str:
    gains, moves, noise = findings.accuracy_gain, findings.largest_moves, findings.noise_levels
    return render_markdown(
        __package__,
        title=title,
        statements=statements(findings),
        explore=_EXPLORE,
        drawn=drawn,
        control=findings.comparison.first.name,
        other=findings.comparison.second.name,
        fewest=FEWEST,
        findings=findings,
        ranking_change=findings.ranking_change[RANKING_SHOWN],
        gains=gains.loc[gains["grouping"] != "learning_rate_factor", GAIN_SHOWN],
        attribution=attribution,
        moves=moves.groupby(moves["move"] > 0, sort=False).head(10).drop(columns="network_class"),
        beyond_noise=f"{BEYOND_NOISE:g}",
        noise=_noise_text(findings),
        noise_levels=noise[noise["accuracy"].isna()].drop(columns="accuracy") if len(noise) else noise,
        facts=facts,
    )


def _noise_text(findings: Findings) -> str:
    names = {name: side.name for name, side in zip(SIDES, findings.comparison.sides, strict=True)}
    unknown = [names[side] for side, level in findings.noise.items() if level is None]
    if unknown:
        return (
            f"No network class was trained twice in {' and '.join(unknown)}: its noise is unknown, and so is the noise "
            "ceiling. Train at least two seeds."
        )
    known = [
        f"{names[side]}: {level.deviation:.2f} points, from {level.classes:,} network classes"
        for side, level in findings.noise.items()
        if level is not None
    ]
    return f"One training scatters by (standard deviation) {'; '.join(known)} that were trained more than once."


def statements(findings: Findings) -> list[str]:
    """What the numbers show and do not show, in plain sentences."""
    found = [_agreement(findings)]
    if findings.ceiling is None:
        found.append(_unknown_noise(findings))
    else:
        found += _against_ceiling(findings.ranking_change, findings.ceiling.taus.shape[1])
    found += [_gain(findings), *_of_seeds(findings.comparison)]
    deciles = findings.accuracy_gain[findings.accuracy_gain["grouping"] == "decile"].tail(5)
    if len(deciles) == 5 and deciles["gain_low"].notna().all():
        better = int((deciles["gain_low"] > deciles["selection"].fillna(0.0).clip(lower=0)).sum())
        found.append(
            f"Of the five deciles of the strongest cells by the accuracy of {findings.comparison.first.name}, "
            f"{better or 'none'} gain on average beyond doubt."
        )
    found.append(
        "That two rankings differ does not say which of them is better: that needs each network at its own best "
        "hyperparameters."
    )
    return found


def headline(findings: Findings) -> list[str]:
    """The three sentences that matter most: agreement, whether noise explains it, and the gain."""
    again = findings.ceiling
    noise = _unknown_noise(findings) if again is None else _changed(findings.ranking_change, again.taus.shape[1])
    return [_agreement(findings), noise, _gain(findings)]


def _agreement(findings: Findings) -> str:
    overall = findings.ranking_change.iloc[0]
    tau = with_interval(overall["kendall_tau"], overall["tau_low"], overall["tau_high"], ".3f")
    return f"Kendall's tau between the rankings: {tau} ({overall['cells']:,.0f} cells)."


def _unknown_noise(findings: Findings) -> str:
    return f"{_noise_text(findings)} Nothing can be said of what is beyond noise."


def _gain(findings: Findings) -> str:
    control, other = findings.comparison.first.name, findings.comparison.second.name
    gain = findings.accuracy_gain.iloc[0]
    direction = "higher" if gain["mean_gain"] > 0 else "lower"
    certain = gain["gain_low"] > 0 or gain["gain_high"] < 0
    return (
        f"{other} is {abs(gain['mean_gain']):.2f} points {direction} than {control} on average "
        f"{interval_text(gain['gain_low'], gain['gain_high'], '+.2f')}"
        f"{'' if certain else ', which may be no difference'}; {gain['share_improved']:.0%} of cells are higher."
    )


def _changed(table: pd.DataFrame, draws: int) -> str:
    """At which K the ranking changed by more than noise, or that so few draws of noise cannot tell."""
    tests = table["p_holm"].notna().sum()
    if tests > SIGNIFICANT * (draws + 1):
        return (
            f"Whether the ranking changed more than training again explains cannot be told: {draws:,} draws of it are "
            f"too few. They give no p-value below {1 / (draws + 1):.2g}, so that none of {tests} tests can "
            f"reach the 5 % level: set analysis.null_draws to {round(tests / SIGNIFICANT):,} at least."
        )
    changed = table.loc[table["p_holm"] <= SIGNIFICANT, "top_percent"]
    level = f"(5 % level, adjusted for {tests} tests)"
    if changed.empty:
        return f"At no K did the ranking change more than training again explains {level}."
    among = ", ".join(map(str, changed))
    return f"The ranking changed more than training again explains {level} among the top {among} %."


def _of_seeds(comparison: Comparison) -> list[str]:
    """What the interval of the mean gain makes of seeds that all networks share."""
    sides = [side for side in comparison.sides if side.shared]
    counted = [side.name for side in sides if countable(side.by_seed)]
    unknown = [side.name for side in sides if not countable(side.by_seed)]
    said = []
    if counted:
        said.append(
            f"All networks of {' and '.join(counted)} share their seeds, so a seed's luck is in every gain: intervals "
            "of mean gains count it as a part of the variance that more networks do not reduce, estimated from how the "
            "seeds' own means differ (Student's t with Satterthwaite's degrees of freedom)."
        )
    if unknown:
        said.append(
            f"{' and '.join(unknown)} {'does' if len(unknown) == 1 else 'do'} not tell several seeds apart: if all "
            "networks shared their seeds, as those of published benchmarks do, that luck is not in the intervals, "
            "which are then too narrow."
        )
    return said


def _against_ceiling(table: pd.DataFrame, draws: int) -> list[str]:
    ceiling = _number(table.iloc[0]["tau_ceiling"])
    distance, low, high = (table.iloc[0][name] for name in ("beyond_noise", "beyond_low", "beyond_high"))
    beyond = with_interval(distance, low, high, ".3f")
    found = [
        f"Trained again with nothing changed they would agree to {ceiling} (the noise ceiling). This ceiling less "
        f"the observed tau is {beyond}."
    ]
    found.append(_changed(table, draws))
    if table.iloc[0]["tau_ceiling"] < LOW_CEILING and (table["p_holm"] <= SIGNIFICANT).any():
        found.append(
            f"A ceiling of {ceiling} means that noise alone shuffles these rankings a lot: what is said of them as a "
            "whole holds, but a single network's rank means little."
        )
    elif table.iloc[0]["tau_ceiling"] < LOW_CEILING:
        found.append(
            f"A ceiling of {ceiling} means that these accuracies hardly rank the networks at all: take this report as "
            "an illustration of the pipeline, not as evidence on the recipes."
        )
    return found


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"
