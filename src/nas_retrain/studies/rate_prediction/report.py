"""The report of a verification: predicted against searched rates, the arms' losses, and the coordinate check."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from nas_retrain.benches import registry
from nas_retrain.reports.document import write_document
from nas_retrain.reports.figures import BLUE, GREEN, GREY, ORANGE, STYLE, save
from nas_retrain.reports.tables import with_interval, write_tables
from nas_retrain.reports.template import render_markdown
from nas_retrain.settings import Settings
from nas_retrain.studies.rate_prediction.findings import (
    LOUD,
    ONE_RATE,
    RULES,
    TOO_FEW,
    Verification,
    main_rule,
    slopes,
    without_loud,
)
from nas_retrain.theory.scaling import InDegree, Initialisation

COLOURS = (BLUE, GREEN, ORANGE)
SWEEPS = {
    "depth": "layers of a chain",
    "width": "width of a chain of 3 layers",
    "graph": "sum over paths of depth³, random graphs",
    "kernel": "kernel size of a chain of 3 layers",
}
LABELS = {
    "stock": "PyTorch's default initialisation",
    "he": "He's initialisation",
    "mup": "muP's initialisation",
    "source": "the paper's initialisation, in-degree of the source",
    "target": "the paper's initialisation, in-degree of the target",
    "released": "the paper's initialisation, in-degree of the source with dead edges counted",
}


def write(
    found: Verification,
    coordinates: pd.DataFrame | None,
    folder: Path,
    settings: Settings,
    facts: Mapping[str, str],
) -> Path:
    """Write tables/*.csv, figures/*, report.md and report.html below `folder`, and return it.

    coordinates: see `coordinates.measure`; None where it was not measured. Raises NasRetrainError if the folder cannot
    be written.
    """
    rule = main_rule(registry.of(settings.bench))
    tables = {"rates": found.rates, "rules": found.rules, "arms": found.arms(rule)}
    if coordinates is not None:
        tables |= {"coordinates": coordinates, "coordinate_slopes": slopes(coordinates)}
    write_tables(tables, folder)
    with rc_context(STYLE):
        save(_predicted(found, rule, settings), folder / "figures", "predicted_rates")
        if coordinates is not None:
            save(_coordinates(coordinates), folder / "figures", "coordinates")
    write_document(folder, _text(found, tables, settings, facts), _title(settings))
    return folder


def statements(found: Verification, settings: Settings) -> list[str]:
    """What the numbers show, in plain sentences."""
    said = _correlations(found, settings)
    edges = found.rates["at_edge"]
    if edges.any():
        said.append(
            f"{edges.sum()} of {len(edges)} searches chose the lowest or highest rate of the grid, so that their best "
            "rate may lie outside: widen base_rate.lowest or base_rate.highest."
        )
    return [*said, *_best_orders(found), *_cheapest(found)]


def headline(found: Verification, settings: Settings) -> list[str]:
    """The sentences that matter most: how predicted and searched rates correlate, and the rules that do best."""
    return [part[0] for part in (_correlations(found, settings), _best_orders(found), _cheapest(found)) if part]


def _correlations(found: Verification, settings: Settings) -> list[str]:
    bench = registry.of(settings.bench)
    rule = main_rule(bench)
    said = []
    conventions: tuple[Initialisation, ...] = get_args(InDegree)
    for initialisation in conventions:
        row = found.judged(initialisation, rule)
        if row is None:
            continue
        ceiling = found.ceiling[initialisation]
        if (networks := found.networks(initialisation)) <= TOO_FEW:
            said.append(
                f"With {LABELS[initialisation]}: {networks} networks are too few for a correlation of predicted and "
                f"searched rates. The median prediction is {2 ** row['off_by_octaves']:.2f} times off."
            )
            continue
        said.append(
            f"With {LABELS[initialisation]}: predicted and searched rates correlate with Pearson's r = "
            + _with_interval(row, "pearson")
            + (f", beside the paper's {bench.reported_correlation} on CIFAR-10" if bench.reported_correlation else "")
            + f"; on logarithms {_with_interval(row, 'pearson_log')}, on ranks {_with_interval(row, 'spearman')}. "
            f"The median prediction is {2 ** row['off_by_octaves']:.2f} times off."
            + (
                ""
                if math.isnan(ceiling)
                else f" The search is noisy itself: a perfect prediction would reach about {ceiling:.2f} on logarithms."
            )
        )
        loud, r = without_loud(found, initialisation, rule)
        if loud:
            said.append(
                f"There, {loud} networks start with a signal at their last vertex of more than {LOUD:g} times the base "
                "network's, since skips add up copies of one signal, which no variance of a layer makes up for and the "
                "rule for the rate does not see. "
                + ("The others are too few for a correlation." if math.isnan(r) else f"Without them r = {r:.3f}.")
            )
    return said


def _best_orders(found: Verification) -> list[str]:
    enough = found.rules["initialisation"].map(found.networks) > TOO_FEW
    varied = found.rules[found.rules["spearman"].notna() & enough].sort_values(
        "spearman", ascending=False, kind="stable"
    )
    return [
        f"Of the rules, '{row['rule']}' orders the searched rates best with {LABELS[row['initialisation']]}: "
        f"Spearman's {_with_interval(row, 'spearman')}."
        for _, row in varied.drop_duplicates("initialisation").iterrows()
    ]


def _cheapest(found: Verification) -> list[str]:
    cheapest = found.rules.sort_values("excess_loss", kind="stable").drop_duplicates("initialisation")
    return [
        f"'{row['rule']}' costs least with {LABELS[row['initialisation']]}: "
        f"{_with_interval(row, 'excess_loss')} of training loss above each network's best rate."
        for _, row in cheapest.iterrows()
    ]


def _with_interval(row: Mapping[str, float] | pd.Series[float], name: str) -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], ".3f")


def _title(settings: Settings) -> str:
    return f"{settings.bench.name} on {settings.dataset.name}: predicted against searched learning rates"


def _text(found: Verification, tables: Mapping[str, pd.DataFrame], settings: Settings, facts: Mapping[str, str]) -> str:
    correlations = [f"{name}{end}" for name in ("pearson", "pearson_log", "spearman") for end in ("", "_low", "_high")]
    return render_markdown(
        __package__,
        title=_title(settings),
        statements=statements(found, settings),
        networks=found.rates["cell"].nunique(),
        search=settings.base_rate,
        seeding=settings.seeding,
        arms=tables["arms"][["arm", "off_by_octaves", "excess_loss", "excess_loss_low", "excess_loss_high", "loss"]],
        agreement=tables["rules"][["initialisation", "rule", *correlations]],
        rules={name: RULES[name] for name in tables["rules"]["rule"]},
        slopes=tables.get("coordinate_slopes"),
        facts=facts,
    )


def _predicted(found: Verification, rule: str, settings: Settings) -> Figure:
    panels = [name for name in get_args(InDegree) if name in set(found.rates["initialisation"])]
    panels = panels or list(dict.fromkeys(found.rates["initialisation"]))
    figure = Figure(figsize=(4.2 * len(panels), 3.9), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rates = found.rates[found.rates["initialisation"] == name]
        sizes = 12 + 60 * rates["seeds_deviation"]
        inside = ~rates["at_edge"]
        for chosen, face in ((inside, BLUE), (~inside, "none")):
            axes.scatter(
                rates.loc[chosen, "searched_rate"],
                rates.loc[chosen, rule],
                s=sizes[chosen],
                facecolor=face,
                edgecolor=BLUE,
                alpha=0.6,
                linewidth=0.8,
            )
        base = rates[ONE_RATE].iloc[0]
        axes.plot(base, base, "D", color=ORANGE, markersize=5, label="base network")
        both = rates[["searched_rate", rule, ONE_RATE]].to_numpy(dtype=float)
        ends = [both.min() / 1.3, both.max() * 1.3]
        axes.plot(ends, ends, color=GREY, linewidth=0.8, label="equal")
        axes.set(xscale="log", yscale="log", xlabel="searched learning rate", ylabel="predicted learning rate")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        row = found.judged(name, rule)
        assert row is not None
        r = "too few networks for a correlation"
        if found.networks(name) > TOO_FEW:
            r = f"r = {_with_interval(row, 'pearson')}"
        axes.set_title(
            f"{LABELS[name]}\n{r}"
            + (f", paper {papers}" if (papers := registry.of(settings.bench).reported_correlation) else "")
        )
        axes.legend(loc="upper left")
    return figure


def _coordinates(coordinates: pd.DataFrame) -> Figure:
    sweeps = list(dict.fromkeys(coordinates["sweep"]))
    arms = list(dict.fromkeys(coordinates["arm"]))
    figure = Figure(figsize=(3.0 * len(sweeps), 5.2), layout="constrained")
    grid = figure.subplots(2, len(sweeps), squeeze=False, sharey="row")
    last = coordinates[coordinates["last"]]
    for column, sweep in enumerate(sweeps):
        for line, what in enumerate(("size", "change")):
            axes: Axes = grid[line][column]
            for arm, colour, marker in zip(arms, COLOURS, "osx", strict=False):
                rows = last[(last["sweep"] == sweep) & (last["arm"] == arm)].sort_values("x")
                style = "" if sweep == "graph" else "-"
                axes.plot(rows["x"], rows[what], marker + style, color=colour, markersize=4, alpha=0.8, label=arm)
            axes.set_xscale("log")
            if (last[what] > 0).any():
                axes.set_yscale("log")
            if sweep != "graph":
                ticks = np.unique(last.loc[last["sweep"] == sweep, "x"])
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                axes.xaxis.set_minor_formatter("")
        grid[1][column].set_xlabel(SWEEPS[sweep])
    grid[0][0].set_ylabel("mean square, at the start")
    grid[1][0].set_ylabel("mean square of the first step's\nchange / base rate²")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(arms))
    return figure
