"""Tables in reports: headers that a reader understands, and each number with its interval in one column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from nas_retrain.files.atomic import replacing
from nas_retrain.reports.markup import escaped, write_csv
from nas_retrain.statistics.rankings import FEWEST, Floats

HEADERS = {
    "arch": "architecture",
    "kendall_tau": "tau",
    "high_90": "high (90 %)",
    "limit_mflops": "limit (MFLOPs)",
    "low_90": "low (90 %)",
    "mean_gain": "mean gain (points)",
    "mean_original": "mean accuracy, original",
    "off_by_octaves": "off by octaves",
    "p_adjusted": "p, adjusted",
    "p_holm": "p, adjusted",
    "p_value": "p",
    "share_improved": "share higher",
    "tau_ceiling": "noise ceiling",
    "top_percent": "top K %",
}
"""Headers of columns whose names, with spaces, would not do."""

INTERVAL = "[95 %]"
"""What a header says of a column of numbers with their intervals."""


def as_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, its texts escaped. A number and the columns x_low and x_high of its interval are one column,
    "0.37 [0.21, 0.53]"; where there is no interval the number stands alone."""
    shown = {}
    for name, low, high in with_ends(table):
        head = header(name) + (f" {INTERVAL}" if low is not None else "")
        shown[head] = _column(table[[part for part in (name, low, high) if part in table]])
    return pd.DataFrame(shown, index=table.index).to_markdown(index=False, disable_numparse=True)


def header(name: str) -> str:
    """What a reader is shown in place of a column's name."""
    return HEADERS.get(name, name.replace("_", " "))


def with_ends(table: pd.DataFrame) -> Iterator[tuple[str, str | None, str | None]]:
    """The columns to show, each with those of its interval's ends. Ends of no column stand for themselves, by what they
    have in common.

    The ends tau_low and tau_high are those of the last column before them that begins or ends with tau, as kendall_tau.
    """
    names = [str(name) for name in table]
    ends: dict[str, str] = {}
    alone: dict[str, str] = {}
    for place, name in enumerate(names):
        stem = name.removesuffix("_low")
        if stem == name or f"{stem}_high" not in names:
            continue
        before = [one for one in names[:place] if f"_{one}_".startswith(f"_{stem}_") or one.endswith(f"_{stem}")]
        of = [one for one in before if one not in ends and not one.endswith(("_low", "_high"))]
        if of:
            ends[of[-1]] = stem
        else:
            alone[name] = stem
    bounds = {f"{stem}{end}" for stem in (*ends.values(), *alone.values()) for end in ("_low", "_high")}
    for name in names:
        if name in alone:
            yield alone[name], name, f"{alone[name]}_high"
        elif name in ends:
            yield name, f"{ends[name]}_low", f"{ends[name]}_high"
        elif name not in bounds:
            yield name, None, None


def _column(part: pd.DataFrame) -> list[str]:
    """The cells of one column: of text or of a number, with or without the ends of its interval, or of the ends."""
    first = part.iloc[:, 0]
    if pd.api.types.is_bool_dtype(first):
        return ["yes" if value else "no" for value in first]
    if not pd.api.types.is_numeric_dtype(first):
        return [escaped(value) for value in first]
    values = part.to_numpy(dtype=float, na_value=np.nan)
    name = str(first.name)
    if name.startswith("p_") or name.endswith("_p"):
        return [_cell([p_text(value) for value in row]) for row in values]
    form = _form(values)
    return [_cell(["" if np.isnan(value) else number_text(value, form) for value in row]) for row in values]


def _form(values: Floats) -> str:
    """How to show the numbers of a column, (rows, 1), of numbers with their ends, (rows, 3), or of ends, (rows, 2).

    With ends: to two digits of the intervals' usual half width. Alone: what spans a decade, as rates do, and what is
    below 0.1 to four significant digits; others to two decimals, or three where all are below 1.
    """
    finite = values[np.isfinite(values)]
    if (finite % 1 == 0).all():
        return ",.0f"
    if values.shape[1] > 1:
        widths = values[:, -1] - values[:, -2]
        widths = widths[np.isfinite(widths) & (widths > 0)]
        if len(widths):
            return f".{int(np.clip(1 - np.floor(np.log10(np.median(widths) / 2)), 2, 4))}f"
    elif (finite >= 0).all() and (finite.max() >= 10 * finite[finite > 0].min() or finite.max() < 0.1):
        return ".4g"
    return ".3f" if (np.abs(finite) < 1).all() else ".2f"


def _cell(numbers: list[str]) -> str:
    *first, low, high = ["", *numbers] if len(numbers) == 2 else [*numbers, "", ""] if len(numbers) == 1 else numbers
    return " ".join(part for part in (*first, f"[{low}, {high}]" if low and high else "") if part)


def number_text(value: float, form: str) -> str:
    """A number in this form of Python's; what ends in g has no exponent. What is not 0 never looks like 0, since the
    sign of an interval's end decides what follows from it: it has one significant digit at least."""
    text, digits = f"{value + 0.0:{form}}", 1  # adding 0 takes the sign of -0
    if form.endswith("g"):
        digits = int(form[-2])
    elif not value or text.strip("+-0.,"):
        return text
    return np.format_float_positional(
        value, digits, unique=False, fractional=False, trim="-", sign=form.startswith("+")
    )


def p_text(value: float) -> str:
    """A p-value, so that what is below a level does not look like it: 0.0496 is not 0.05."""
    return "" if np.isnan(value) else f"{value:.3g}"


def with_interval(value: float, low: float, high: float, form: str = ".2f") -> str:
    """A number and its interval, or that there is none."""
    return f"{number_text(value, form)} {interval_text(low, high, form)}" if np.isfinite(value) else "undefined"


def interval_text(low: float, high: float, form: str) -> str:
    """An interval in brackets; of too few network classes there is none."""
    if np.isnan(low):
        return f"[no interval: it takes {FEWEST} network classes]"
    return f"[{number_text(low, form)}, {number_text(high, form)}]"


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write tables/<name>.csv below `folder`; raises NasRetrainError if it cannot be written."""
    for name, table in tables.items():
        with replacing(folder / "tables" / f"{name}.csv") as temporary:
            write_csv(table, temporary, float_format="%.6g")
