"""The report on whose ranking is right: sentences, tables and figures, below whose_ranking in the results folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas_retrain.reports.document import write_document
from nas_retrain.reports.figures import BLUE, GREEN, GREY, ORANGE, STYLE, draw_estimates, drawn_name, save
from nas_retrain.reports.tables import with_interval, write_tables
from nas_retrain.reports.template import render_markdown
from nas_retrain.settings import Settings
from nas_retrain.statistics.rankings import FEWEST
from nas_retrain.statistics.significance import SIGNIFICANT
from nas_retrain.studies.own_rates.by_rate import BEST, HINDSIGHT, MEASURED, OWN, PAPERS
from nas_retrain.studies.own_rates.findings import OwnRates
from nas_retrain.studies.own_rates.sensitivity import BASE_RATE_FACTOR, EPOCHS

FOLDER = "whose_ranking"
COLOURS = (BLUE, ORANGE, GREEN)


def write(
    found: OwnRates, sensitivity: pd.DataFrame | None, folder: Path, settings: Settings, facts: Mapping[str, str]
) -> Path:
    """Write tables/*.csv, figures/*, report.md and report.html to whose_ranking below `folder`, and return that folder.

    sensitivity: see `sensitivity.compare_variants`; None if nothing was varied. Raises NasRetrainError if the
    folder cannot be written.
    """
    folder = folder / FOLDER
    tables = found.tables() | ({} if sensitivity is None else {"sensitivity": sensitivity})
    write_tables(tables, folder)
    with rc_context(STYLE):
        save(figure_of_rankings(found), folder / "figures", "whose_ranking")
        save(figure_of_explained(found), folder / "figures", "own_rates")
        if sensitivity is not None:
            save(_sensitivity(sensitivity), folder / "figures", "sensitivity")
    write_document(folder, _text(found, sensitivity, settings, facts), _title(settings))
    return folder


def statements(found: OwnRates, sensitivity: pd.DataFrame | None) -> list[str]:
    """What the numbers show, in plain sentences."""
    said = [_ranked(found, percent) for percent in found.rankings["top_percent"].unique()]
    said += _headroom(found)
    if "relative_gradient" in found.regret:
        said.append(_gradients(found))
    paper = _row(found.explained, "quantity", PAPERS)
    said.append(
        f"The paper's rule orders the networks' own best rates with Spearman's {_with_interval(paper, 'own_rate')}, "
        f"and how much they lean to large rates with {_with_interval(paper, 'lean')}"
        + (
            f", where a perfect prediction would reach about {found.reliability['own_rate']:.2f} and "
            f"{found.reliability['lean']:.2f}."
            if np.isfinite(found.reliability["own_rate"])
            else ". How far noise lets a prediction reach is unknown, for it takes several seeds."
        )
    )
    certain = found.explained[found.explained["lean_p"] <= SIGNIFICANT]
    if len(certain):
        best = certain.iloc[int(certain["lean_rho"].abs().argmax())]
        said.append(
            f"Of {len(found.explained)} quantities known before training, {len(certain)} go with the lean beyond "
            f"doubt; the strongest is {best['quantity']}, {_with_interval(best, 'lean')}."
        )
    else:
        said.append(f"None of {len(found.explained)} quantities known before training goes with the lean beyond doubt.")
    said += _fitted(found)
    return said if sensitivity is None else said + _robust(sensitivity)


def headline(found: OwnRates) -> list[str]:
    """The three sentences that matter most: whose ranking is right, what recipes lack, and what rules could gain."""
    return [_ranked(found, 100), *_headroom(found)]


def _ranked(found: OwnRates, percent: int) -> str:
    rows = found.rankings[found.rankings["top_percent"] == percent]
    among = "all" if percent == 100 else f"the best {percent} %, which are"
    taus = "; ".join(f"{row['recipe']} {_tau(row)}" for _, row in rows.iterrows())
    better = rows[rows["over_control_low"] > 0]["recipe"]
    worse = rows[rows["over_control_high"] < 0]["recipe"]
    verdicts = [
        f"{', '.join(names)} {verb} {found.control}"
        for names, verb in ((better, "beyond doubt nearer to it than"), (worse, "beyond doubt further from it than"))
        if len(names)
    ]
    verdict = "; ".join(verdicts) if verdicts else f"None differs from {found.control} beyond doubt"
    return (
        f"Kendall's tau with the ranking at own rates, over {among} {rows['cells'].iloc[0]} classes: {taus}. {verdict}."
    )


def _tau(row: pd.Series[Any]) -> str:
    noise = "" if np.isnan(row["tau_ceiling"]) else f" of at most {row['tau_ceiling']:.2f}"
    return f"{with_interval(row['kendall_tau'], row['tau_low'], row['tau_high'])}{noise}"


def _headroom(found: OwnRates) -> list[str]:
    costs = "; ".join(
        f"{row['recipe']} {with_interval(row['mean_regret'], row['regret_low'], row['regret_high'], '+.2f')}"
        for _, row in found.regret.iterrows()
    )
    own, hindsight = (_row(found.rules, "rule", name) for name in (OWN, HINDSIGHT))
    best = found.curves.iloc[int(found.curves["mean_accuracy"].argmax())]
    return [
        f"At its own best rate a network has, in points of test accuracy, more than with {costs}.",
        f"Over the best one rate of the grid for all ({best['learning_rate']:g}) own rates gain "
        f"{_with_interval(own, 'gain', '+.2f')} points of {found.judged_by}, chosen by some seeds and judged by the "
        f"others, and {_with_interval(hindsight, 'gain', '+.2f')} in hindsight: between these lies what the best rule "
        "could gain.",
    ]


def _gradients(found: OwnRates) -> str:
    shares = ", ".join(f"{row['relative_gradient']:.2f} with {row['recipe']}" for _, row in found.regret.iterrows())
    return f"At the first step the gradient is this share of the weights, before any learning rate: {shares}."


def _fitted(found: OwnRates) -> list[str]:
    hindsight, best, paper = (_row(found.rules, "rule", name) for name in (HINDSIGHT, BEST, PAPERS))
    said = [
        f"Fitted on one half of the classes and judged on the other, the paper's rule gains "
        f"{_with_interval(paper, 'gain', '+.2f')} points over one rate, and the best of all rules of one quantity "
        f"({best['quantity']}) {_with_interval(best, 'gain', '+.2f')}, of less than {hindsight['gain']:+.2f} that "
        "there are.",
    ]
    ordered = found.rules[found.rules["rho"].notna() & (found.rules["rule"] != BEST)]
    if len(ordered):
        row = ordered.iloc[int(ordered["rho"].argmax())]
        said.append(
            f"The rule that orders own rates best there is rate ~ ({row['rule']})^{row['slope']:.1f}: "
            f"rho {row['rho']:.2f}{of_noise(found)}, and "
            f"{_with_interval(row, 'gain', '+.2f')} points."
        )
    if not best["gain_low"] > 0:
        said.append("No rule was found that beats one rate for all.")
    return said


def _robust(sensitivity: pd.DataFrame) -> list[str]:
    said = []
    for keys, rows in sensitivity.groupby(["varied", "recipe", "control"], sort=False):
        varied, recipe, control = (str(key) for key in keys)
        signs = {"higher": int((rows["gain_low"] > 0).sum()), "lower": int((rows["gain_high"] < 0).sum())}
        certain = ", ".join(f"{word} at {number}" for word, number in signs.items() if number) or "neither at any"
        below = rows[rows["p_value"] <= SIGNIFICANT / len(rows)]
        gains = ", ".join(f"{row['mean_gain']:+.2f} at {row['value']:g}" for _, row in rows.iterrows())
        taus = ", ".join(f"{row['kendall_tau']:.2f}" for _, row in rows.iterrows())
        said.append(
            f"{recipe} against {control} by {varied}: {gains} points; beyond doubt {certain} of {len(rows)}. Tau "
            f"{taus}; below what noise explains at {len(below)} of {len(rows)}."
        )
    return said


def of_noise(found: OwnRates) -> str:
    """How far noise lets a correlation with own rates reach; nothing where single trainings do not tell."""
    reached = found.reliability["own_rate"]
    return f", of about {reached:.2f} that noise allows" if np.isfinite(reached) else ""


def _row(table: pd.DataFrame, column: str, value: str) -> pd.Series[Any]:
    return table[table[column] == value].iloc[0]


def _with_interval(row: pd.Series[Any], name: str, form: str = ".2f") -> str:
    value = row[f"{name}_rho"] if f"{name}_rho" in row else row[name]
    return with_interval(value, row[f"{name}_low"], row[f"{name}_high"], form)


def _title(settings: Settings) -> str:
    return f"Whose ranking is right? {settings.bench.name} on {settings.dataset.name}"


def _text(found: OwnRates, sensitivity: pd.DataFrame | None, settings: Settings, facts: Mapping[str, str]) -> str:
    return render_markdown(
        __package__,
        title=_title(settings),
        statements=statements(found, sensitivity),
        own=found,
        search=settings.own_rate,
        seeding=settings.seeding,
        fewest=FEWEST,
        measured=MEASURED,
        sensitivity=sensitivity,
        facts=facts,
    )


def figure_of_rankings(found: OwnRates) -> Figure:
    """Tau with the ranking at own rates, points lost, and accuracy by rate."""
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    tau, regret, curves = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _draw_taus(tau, found)
    _draw_regret(regret, found)
    _draw_curves(curves, found)
    return figure


def _draw_taus(axes: Axes, found: OwnRates) -> None:
    names = list(found.rankings["recipe"].unique())
    percents = list(found.rankings["top_percent"].unique())[:2]
    for percent, colour, marker in zip(percents, COLOURS, "os", strict=False):
        rows = found.rankings[found.rankings["top_percent"] == percent]
        y = np.arange(len(rows)) + (0.15 if percent == percents[-1] else -0.15)
        draw_estimates(
            axes, y, rows["kendall_tau"], rows["tau_low"], rows["tau_high"], colour=colour, marker=marker,
            sideways=True, label="all" if percent == 100 else f"best {percent} %",
        )  # fmt: skip
        draw_estimates(
            axes, y, rows["tau_ceiling"], rows["ceiling_low"], rows["ceiling_high"], colour=GREY, marker="|", size=7,
            width=0.8, sideways=True, label="noise ceiling" if percent == 100 else None,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [drawn_name(name).replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="Kendall's tau with the ranking at own rates")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, columnspacing=1, handletextpad=0.3)


def _draw_regret(axes: Axes, found: OwnRates) -> None:
    boxes = [
        {
            "med": row["regret_50_percent"],
            "q1": row["regret_25_percent"],
            "q3": row["regret_75_percent"],
            "whislo": row["regret_5_percent"],
            "whishi": row["regret_95_percent"],
            "fliers": [],
        }
        for _, row in found.regret.iterrows()
    ]
    y = np.arange(len(boxes))
    axes.bxp(boxes, positions=y, orientation="horizontal", widths=0.5, boxprops={"color": GREY},
             medianprops={"color": GREY}, whiskerprops={"color": GREY}, capprops={"color": GREY})  # fmt: skip
    mean, low, high = (found.regret[name] for name in ("mean_regret", "regret_low", "regret_high"))
    draw_estimates(axes, y, mean, low, high, colour=BLUE, marker="D", width=1.5, sideways=True)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set_yticks(y, [""] * len(y))
    axes.invert_yaxis()
    axes.set(xlabel="accuracy at own rate less the recipe's (points)")


def _draw_curves(axes: Axes, found: OwnRates) -> None:
    ordered = np.array_split(np.argsort(found.classes[PAPERS].to_numpy(), kind="stable"), 3)
    for part, colour, name in zip(ordered, COLOURS, ("smallest", "middle", "largest"), strict=True):
        if not len(part):
            continue
        accuracy = found.by_rate[part]
        relative = accuracy - accuracy.mean(1, keepdims=True)
        mean = relative.mean(0)
        half = 1.96 * relative.std(0, ddof=1) / np.sqrt(len(part)) if len(part) > 1 else np.nan
        draw_estimates(
            axes, found.curves["learning_rate"], mean, mean - half, mean + half, colour=colour, marker="o-", size=3,
            label=f"{name} factors",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="learning rate", ylabel="accuracy less each class's mean (points)")
    axes.set_xticks(found.curves["learning_rate"], [f"{rate:.2g}" for rate in found.curves["learning_rate"]])
    axes.minorticks_off()
    axes.legend()


def figure_of_explained(found: OwnRates) -> Figure:
    """What own rates go with, and what rules gain."""
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    correlations, gains = figure.subplots(1, 2)
    table = found.explained
    y = np.arange(len(table))
    targets = (("own_rate", BLUE, "o", "own rate"), ("lean", ORANGE, "s", "lean to large rates"))
    for offset, (target, colour, marker, label) in zip((-0.15, 0.15), targets, strict=True):
        draw_estimates(
            correlations, y + offset, table[f"{target}_rho"], table[f"{target}_low"], table[f"{target}_high"],
            colour=colour, marker=marker, sideways=True, label=label,
        )  # fmt: skip
    correlations.set_yticks(y, table["quantity"])
    correlations.set(xlabel="Spearman's rank correlation")
    correlations.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)
    rules = found.rules
    y = np.arange(len(rules))
    draw_estimates(gains, y, rules["gain"], rules["gain_low"], rules["gain_high"], colour=GREEN, sideways=True)
    gains.set_yticks(y, rules["rule"])
    gains.set(xlabel="points gained over one rate, on the other half")
    for axes in (correlations, gains):
        axes.axvline(0, color=GREY, linewidth=0.6)
        axes.invert_yaxis()
    return figure


def _sensitivity(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    grid = figure.subplots(2, 2, sharey="row")
    pairs = list(dict.fromkeys(zip(table["recipe"], table["control"], strict=True)))
    for column, varied in enumerate((EPOCHS, BASE_RATE_FACTOR)):
        gain, tau = grid[0][column], grid[1][column]
        for (recipe, control), colour, marker in zip(pairs, COLOURS, "osD", strict=False):
            rows = table[
                (table["varied"] == varied) & (table["recipe"] == recipe) & (table["control"] == control)
            ].sort_values("value")
            if rows.empty:
                continue
            label = drawn_name(f"{recipe} against {control}").replace("_", " ")
            for axes, name, prefix in ((gain, "mean_gain", "gain"), (tau, "kendall_tau", "tau")):
                draw_estimates(
                    axes, rows["value"], rows[name], rows[f"{prefix}_low"], rows[f"{prefix}_high"], colour=colour,
                    marker=f"{marker}-", label=label,
                )  # fmt: skip
            tau.plot(rows["value"], rows["tau_ceiling"], "--", color=colour, linewidth=0.8)
        gain.axhline(0, color=GREY, linewidth=0.6)
        ticks = sorted(table.loc[table["varied"] == varied, "value"].unique())
        for axes in (gain, tau):
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        tau.set_xlabel(varied)
    grid[0][0].set_ylabel("mean gain (points)")
    grid[1][0].set_ylabel("Kendall's tau\n(dashed: noise ceiling)")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(pairs))
    return figure
