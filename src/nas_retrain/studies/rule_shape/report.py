"""The study's tables, its one figure and its report, which says first what holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas_retrain.reports.document import write_document
from nas_retrain.reports.figures import BLUE, GREY, ORANGE, STYLE, draw_estimates, save
from nas_retrain.reports.tables import interval_text, number_text, p_text, with_interval, write_tables
from nas_retrain.reports.template import render_markdown
from nas_retrain.studies.rule_shape.design import PERMUTED, PLAIN_CONFIRMATION
from nas_retrain.studies.rule_shape.findings import Findings

FOLDER = "rule_shape"
TITLE = "Does the shape of the learning-rate rule help?"

NORMALISATION = {"batch": "with BatchNorm", "none": "without BatchNorm"}
INITIALISATION = {
    "stock": "PyTorch's initialisation",
    "source": "the paper's initialisation",
    "target": "the initialisation that the paper derives",
}


Row = Any
"""A row of a table: its values by column."""


def write(found: Findings, folder: Path) -> Path:
    """Write tables/*.csv, figures/gain_by_exponent.*, figures/gain_by_size.*, report.md and report.html to rule_shape
    below `folder`; returns the path of report.html. Raises NasRetrainError if the folder cannot be written."""
    folder = folder / FOLDER
    write_tables(found.tables, folder)
    with rc_context(STYLE):
        save(figure_of_exponents(found.tables["exponents"]), folder / "figures", "gain_by_exponent")
        if "ladder" in found.tables:
            save(figure_of_sizes(found.tables["ladder"]), folder / "figures", "gain_by_size")
    text = render_markdown(
        __package__,
        title=TITLE,
        headline=headline(found),
        described=described(found),
        tables={name: _ordered(table) for name, table in found.tables.items()},
        facts=found.facts,
    )
    write_document(folder, text, TITLE)
    return folder / "report.html"


def headline(found: Findings) -> list[str]:
    """Whether the study is whole, what follows from its hypotheses, and what they came to."""
    said = _what_is_missing(found.tables["trainings"])
    if "hypotheses" in found.tables:
        said += conclusions(found.tables["hypotheses"], found.tables.get("contrasts", pd.DataFrame()))
        said += [_of_hypothesis(row) for _, row in found.tables["hypotheses"].iterrows()]
    return said


def conclusions(hypotheses: pd.DataFrame, contrasts: pd.DataFrame) -> list[str]:
    """What follows from the hypotheses of which all that it takes are there: whether the rule works, with BatchNorm and
    without, and what H5 is attributed to. The conditions are those that were written down before the data.

    hypotheses, contrasts: the tables of `findings.hypotheses` and `findings.contrasts`.
    """
    rows = {row["hypothesis"]: row for _, row in hypotheses.iterrows()}
    said = []
    if {"H1", "H2", "H3"} <= rows.keys():
        over_one_rate = {"stock": rows["H1"], "source": rows["H2"]}
        said.append(_whether_it_works("With BatchNorm", over_one_rate, rows["H3"], contrasts))
    if {"H6", "H7"} <= rows.keys():
        where = "Without BatchNorm, the positive control,"
        said.append(_whether_it_works(where, {"target": rows["H7"]}, rows["H6"], contrasts))
    if {"H2", "H4", "H5"} <= rows.keys() and _differs(rows["H5"]):
        said.append(_attributed(rows))
    return said


def _better(row: Row) -> bool:
    """Whether a difference is for the rule: decided, and not too small to matter."""
    return bool(row["verdict"] == "better")


def _differs(row: Row) -> bool:
    return bool(row["verdict"].startswith(("better", "worse")))


def _whether_it_works(where: str, over_one_rate: Mapping[str, Row], permuted: Row, contrasts: pd.DataFrame) -> str:
    """A rule works where it does better than permuted factors and than one rate."""
    better = [initialisation for initialisation, row in over_one_rate.items() if _better(row)]
    reasons = [
        f"it {_against(row)} one rate under {INITIALISATION[initialisation]} ({row['hypothesis']})"
        for initialisation, row in over_one_rate.items()
    ]
    reasons.append(f"it {_against(permuted)} its own factors in the wrong networks ({permuted['hypothesis']})")
    if not _better(permuted):
        verdict = "is not shown to work"
    elif not better:
        verdict = "knows something of the networks, and not enough"
    else:
        alone = contrasts[contrasts["over"] == PERMUTED].set_index("initialisation")["difference_low"]
        works = [initialisation for initialisation in better if alone[initialisation] > 0]
        verdict = f"works under {_listed(works)}" if works else "is not shown to work"
        reasons += [
            f"it is not told apart from these under {INITIALISATION[initialisation]} alone"
            for initialisation in better
            if initialisation not in works
        ]
    return f"{where} the rule {verdict}: {'; '.join(reasons)}."


def _against(row: Row) -> str:
    """How the rule compares with a rival, as a verb."""
    margin = f"{row['margin']:g} points"
    return {
        "better": "does better than",
        "worse": "does worse than",
        "within the margin": f"differs by less than {margin} from",
        "better, within the margin": f"does better, by less than {margin}, than",
        "worse, within the margin": f"does worse, by less than {margin}, than",
        "open": "is not told apart from",
    }[row["verdict"]]


def _listed(initialisations: Iterable[str]) -> str:
    return " and under ".join(INITIALISATION[initialisation] for initialisation in initialisations)


def _attributed(rows: Mapping[str, Row]) -> str:
    """What a difference of H5 comes from: the rates (H2) and the initialisation (H4), each if it differs from 0 on the
    same side."""
    sign = np.sign(rows["H5"]["difference"])
    causes = [
        cause
        for cause, name in (("the rates (H2)", "H2"), ("the initialisation (H4)", "H4"))
        if min(sign * rows[name]["difference_low"], sign * rows[name]["difference_high"]) > 0
    ]
    return (
        "Rates and initialisation change at once in H5. Its difference is attributed to "
        f"{' and '.join(causes) or 'neither of them alone'}."
    )


def described(found: Findings) -> dict[str, list[str]]:
    """By table, what it says in sentences, each of which follows from an interval; none of it tests a hypothesis."""
    of_row = {
        "attainable": _of_own_rates,
        "procedure": _of_procedure,
        "contrasts": _of_contrast,
        "correlations": _of_correlation,
        "longer": _of_longer,
        "ladder": _of_size,
    }
    of_rows = {
        "exponents": (_of_surface, ["normalisation", "initialisation"]),
        "base_rates": (_of_base_rate, ["initialisation", "epochs"]),
    }
    said = {}
    for name, table in found.tables.items():
        if name in of_row:
            said[name] = [of_row[name](row) for _, row in table.iterrows()]
        elif name in of_rows:
            sentence, by = of_rows[name]
            said[name] = [sentence(rows) for _, rows in table.groupby(by, sort=False)]
    return said


def _what_is_missing(trainings: pd.DataFrame) -> list[str]:
    left = trainings["wanted"] - trainings["stored"]
    if not left.any():
        return []
    numbers = zip(trainings["part"], left, strict=True)
    of_parts = ", ".join(f"{number:,} of {part}" for part, number in numbers if number)
    return [
        f"The study is not whole yet: {left.sum():,} of its {trainings['wanted'].sum():,} trainings are to be done "
        f"({of_parts}). What needs them is not in this report."
    ]


def _interval(row: Row, name: str, form: str = "+.2f") -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], form)


def _of_hypothesis(row: Row) -> str:
    unit = "points of accuracy" if row["unit"] == "points" else "of Kendall's tau"
    verdicts = {
        "better": "a gain",
        "worse": "a loss",
        "within the margin": f"no difference as large as {row['margin']:g}",
        "better, within the margin": f"a gain of less than {row['margin']:g}",
        "worse, within the margin": f"a loss of less than {row['margin']:g}",
        "open": f"open, since it is neither decided nor within {row['margin']:g}",
    }
    narrow = interval_text(row["low_90"], row["high_90"], "+.3f")
    return (
        f"{row['hypothesis']}, {row['claim']}: {_interval(row, 'difference', '+.3f')} {unit} on {row['networks']} "
        f"networks, 90 % {narrow}, p = {p_text(row['p_holm'])} after Holm: {verdicts[row['verdict']]}."
    )


def _of_surface(rows: pd.DataFrame) -> str:
    first, best = rows.iloc[0], rows.iloc[int(rows["gain"].argmax())]
    rule = rows[rows["exponent"] == 1].iloc[0]
    beyond = rule["gain"] < rule["permuted_low"], rule["gain"] > rule["permuted_high"]
    beside = {(True, False): "It is below", (False, True): "It is above"}.get(beyond, "It is not told apart from")
    return (
        f"{_where(first)}, with every scalar tuned, the rule gains {_interval(rule, 'gain')} points of validation "
        f"accuracy over one rate, and its factors handed to the wrong networks {_interval(rule, 'permuted')}. "
        f"{beside} what permuted factors do. Of the exponents that were tried, {best['exponent']:g} gains most."
    )


def _where(row: Row) -> str:
    return f"{_named(row['normalisation'])} under {INITIALISATION[row['initialisation']]}"


def _named(normalisation: str) -> str:
    said = NORMALISATION[normalisation]
    return said[0].upper() + said[1:]


def _of_procedure(row: Row) -> str:
    return (
        f"The paper's procedure, whose base rate three seeds find after {_epochs(row)} under "
        f"{INITIALISATION[row['initialisation']]}, gives {_interval(row, 'over_benchmark')} points over the "
        f"benchmark's rate under PyTorch's initialisation, and {_interval(row, 'over_tuned')} over the best one rate; "
        "the interval is of a single such search."
    )


def _epochs(row: Row) -> str:
    return "one epoch" if row["epochs"] == 1 else f"{row['epochs']} epochs"


def _of_base_rate(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    often = rows[rows["share"] >= 0.01].sort_values("share", ascending=False)
    found = ", ".join(f"{row['learning_rate']:g} in {row['share']:.0%}" for _, row in often.iterrows())
    best = rows.iloc[int(rows["mean_loss"].argmin())]
    return (
        f"Searches with three seeds after {_epochs(first)} under {INITIALISATION[first['initialisation']]} "
        f"find the base rate {found}; all {first['seeds']} seeds together find {best['learning_rate']:g}."
    )


def _of_contrast(row: Row) -> str:
    return (
        f"{_confirmed_where(row)} the rule less {_rival(row)} comes to {_interval(row, 'difference', '+.3f')} points "
        f"of test accuracy on {row['networks']} networks, with a median of {row['median']:+.3f}; {row['worse']:.0%} of "
        f"the networks do worse under the rule. Of the {row['steady_networks']} networks none of whose trainings under "
        f"the two collapsed, it is {_interval(row, 'steady', '+.3f')}."
    )


def _confirmed_where(row: Row) -> str:
    normalisation = "none" if row["part"] == PLAIN_CONFIRMATION else "batch"
    return f"{_named(normalisation)} under {INITIALISATION[row['initialisation']]}"


def _rival(row: Row) -> str:
    return "its own factors in the wrong networks" if row["over"] == PERMUTED else "one rate"


def _of_correlation(row: Row) -> str:
    return (
        f"{_where(row)}, {row['compared']} and the best rate of {row['networks']} networks have a rank correlation of "
        f"{_interval(row, 'best_rate')}, and with the largest rate that a network bears it is "
        f"{_interval(row, 'largest_rate')}."
    )


def _of_longer(row: Row) -> str:
    decay = row["part"].removeprefix("longer_")
    return (
        f"Trained longer with a weight decay of {decay}, the rule less one rate under "
        f"{INITIALISATION[row['initialisation']]} comes to {_interval(row, 'difference')} points of test accuracy on "
        f"{row['networks']} networks."
    )


def _of_own_rates(row: Row) -> str:
    if row["gain_low"] > 0:
        follows = "That much can be gained at least."
    else:
        finds = "loses" if row["gain_high"] < 0 else "shows no gain"
        follows = f"So a choice by one seed {finds}, which says nothing against better choices."
    return (
        f"{_where(row)}, accuracies vary by {number_text(row['total'], '.2f')} points^2 beside the means of rates and "
        f"of networks, of which {_interval(row, 'own')} are a network's own, and within an octave of the best one rate "
        f"{_interval(row, 'own_near', '+.3f')}. Networks that have their own best rates, chosen with one "
        f"seed and judged with the other, gain {_interval(row, 'gain')} points over one rate, and "
        f"{_interval(row, 'over_permuted')} over the same rates in the wrong networks. {follows}"
    )


def _of_size(row: Row) -> str:
    return (
        f"At {row['image_size']:.0f}x{row['image_size']:.0f} pixels and {row['channels']:.0f} channels the rule gains "
        f"{_interval(row, 'over_one_rate')} points over one rate, with a median of {row['median']:+.2f}, and "
        f"{_interval(row, 'over_permuted')} over permuted factors, on {row['networks']:.0f} networks with "
        f"{row['seeds']:.0f} seed(s)."
    )


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """With what a row is about first."""
    about = [name for name in ("normalisation", "initialisation") if name in table]
    return table[[*about, *table.columns.drop(about)]]


def figure_of_exponents(exponents: pd.DataFrame) -> Figure:
    """Gain over exponent 0 by exponent: a row with BatchNorm and one without, a panel for each initialisation."""
    names = [name for name in NORMALISATION if (exponents["normalisation"] == name).any()]
    figure = Figure(figsize=(8.4, 1.2 + 2.9 * len(names)), layout="constrained")
    grid = figure.add_gridspec(len(names), 2)
    for place, name in enumerate(names):
        ours, axes = exponents[exponents["normalisation"] == name], None
        for column, (initialisation, rows) in enumerate(ours.groupby("initialisation", sort=False)):
            axes = figure.add_subplot(grid[place, column], sharey=axes)
            _draw(axes, rows.sort_values("exponent"))
            its = INITIALISATION[str(initialisation)]
            axes.set_title(f"{_named(name)}, {its}\n({rows['networks'].iloc[0]} networks)")
            axes.set_xlabel("$\\alpha$, the power of the rule's factor")
            axes.set_ylabel("validation accuracy gained\nover one rate for all (points)")
        if axes is not None:
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.12 * (high - low))  # room for the names of the exponents
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1)
    figure.suptitle(
        "Do rates that follow the rule do better than one rate, and than the rule's rates in the wrong networks?"
    )
    return figure


def _draw(axes: Axes, rows: pd.DataFrame) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    x = rows["exponent"].to_numpy(dtype=float)
    axes.fill_between(
        x, rows["permuted_low"].to_numpy(dtype=float), rows["permuted_high"].to_numpy(dtype=float),
        color=GREY, alpha=0.35, linewidth=0, label="the same rates in the wrong networks (95 % of permutations)",
    )  # fmt: skip
    draw_estimates(
        axes, x, rows["gain"], rows["gain_low"], rows["gain_high"], colour=BLUE, marker="-o", width=1.2,
        label="rate = m x factor$^{\\,\\alpha}$, with m tuned for each $\\alpha$ (bars: 95 % intervals)",
    )  # fmt: skip
    for exponent, name in ((-1, "the rule\nturned round"), (0, "one rate"), (1, "the rule")):
        axes.axvline(exponent, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            name, (exponent, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
            verticalalignment="top", fontsize=8,
        )  # fmt: skip


def figure_of_sizes(ladder: pd.DataFrame) -> Figure:
    """What the rule gains over one rate and over permuted factors, by the size of images and networks."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=0.8)
    places = np.arange(len(ladder), dtype=float)
    for column, name, colour, shift in (
        ("over_one_rate", "the rule less one rate for all (bars: 95 % of resampled networks)", BLUE, -0.06),
        ("over_permuted", "the rule less its rates in the wrong networks (bars: 95 % of permutations)", ORANGE, 0.06),
    ):
        draw_estimates(
            axes, places + shift, ladder[column], ladder[f"{column}_low"], ladder[f"{column}_high"], colour=colour,
            size=5, width=1.2, label=name,
        )  # fmt: skip
    sizes = zip(ladder["image_size"], ladder["channels"], strict=True)
    axes.set_xticks(places, [f"{side:.0f}x{side:.0f} pixels\n{channels:.0f} channels" for side, channels in sizes])
    axes.set_xlim(-0.5, len(ladder) - 0.5)
    axes.set_ylabel("validation accuracy gained (points)")
    axes.set_title(
        "Does the rule gain more on larger images and in wider networks?\n"
        f"({ladder['networks'].min():.0f} networks with BatchNorm, PyTorch's initialisation)"
    )
    figure.legend(loc="outside lower center", ncols=1)
    return figure
