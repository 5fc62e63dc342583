"""What all figures share: their looks, their files, and how an estimate and its interval are drawn.

Colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nas_retrain.files.atomic import replacing
from nas_retrain.reports.markup import visible

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,
}


def drawn_name(name: str) -> str:
    """A name from outside as it is to be drawn: what matplotlib takes for a formula is none."""
    return visible(name).replace("$", r"\$")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write <name>.png and <name>.pdf; raises NasRetrainError if the folder cannot be written."""
    for suffix in ("png", "pdf"):
        metadata = {"CreationDate": None} if suffix == "pdf" else {}
        with replacing(folder / f"{name}.{suffix}") as temporary:
            # "tight" takes in all that was drawn, as a legend that is wider than its figure.
            figure.savefig(temporary, dpi=150, metadata=metadata, bbox_inches="tight")


def draw_estimates(
    axes: Axes,
    places: ArrayLike,
    estimates: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    colour: str,
    marker: str = "o",
    size: float = 4,
    width: float = 1,
    sideways: bool = False,
    label: str | None = None,
) -> None:
    """Draw estimates as markers, and their intervals as bars from `low` to `high`.

    A bar is drawn between its own ends, for an interval need not hold its estimate: that of a percentile bootstrap may
    lie beside it. places: where on the other axis each estimate stands. marker: as matplotlib's formats have it, so
    that "o-" also joins the estimates by a line. sideways: estimates along x, and places along y. An estimate that is
    NaN has no marker, and an interval of which an end is NaN has no bar.
    """
    bars, x, y = (axes.hlines, estimates, places) if sideways else (axes.vlines, places, estimates)
    bars(places, low, high, color=colour, linewidth=width)
    axes.plot(x, y, marker, color=colour, markersize=size, linewidth=width, label=label)
