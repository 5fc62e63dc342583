"""The page to explore a comparison: every cell's accuracies in one HTML file that needs no other and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas_retrain.files.atomic import replacing
from nas_retrain.reports.markup import render
from nas_retrain.statistics.noise import ranks
from nas_retrain.statistics.rankings import Comparison, Floats, Side
from nas_retrain.studies.comparison.curves import Curves
from nas_retrain.studies.comparison.tables import learning_rate_factors

CURVE_BYTES = 2_500_000
"""How much of a page the numbers of all curves may be, before they are encoded in 4/3 of it. Where the networks are too
many for every epoch, each curve is drawn through fewer of its epochs: through some 20 of them for all cells of
NAS-Bench-201 on both sides."""


def write(
    comparison: Comparison,
    path: Path,
    *,
    title: str,
    noise: Floats | None = None,
    curves: Sequence[Curves | None] = (None, None),
) -> None:
    """Write the page: explore.html of this package with the comparison inside, some 50 bytes a cell beside the curves.

    noise: (cells,), the standard deviation of each cell's move in rank if the networks were merely trained again;
    None where it is unknown. curves: of the control and of the other side. Raises NasRetrainError if `path` cannot
    be written.
    """
    content = render("explore.html", package=__package__, comparison=_content(comparison, title, noise, curves))
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _content(
    comparison: Comparison, title: str, noise: Floats | None, curves: Sequence[Curves | None]
) -> dict[str, Any]:
    """What the page reads: lists for the few, packed columns for what each cell has."""
    drawn = sum(means.shape[0] for side in curves if side for means in side.means.values())
    points = max(2, CURVE_BYTES // (4 * max(1, drawn)))
    control, other = (side and side.at_most(points) for side in curves)
    bench, cells = comparison.bench, comparison.cells.tolist()
    drawing = bench.drawing
    factors = learning_rate_factors(comparison)
    distinct = np.unique(factors[np.isfinite(factors)])
    return {
        "title": title,
        "operations": [
            {"name": option.name, "label": option.label, "colours": option.colours} for option in drawing.options
        ],
        "edges": drawing.places,
        "vertices": drawing.vertices,
        "label_at": drawing.label_at,
        # A cell's string is made of the names of its operations, or else told.
        "pattern": drawing.pattern,
        "archs": [] if drawing.pattern else [bench.arch_at(cell) for cell in cells],
        "factors": distinct.tolist(),
        "index": _packed(comparison.cells, "Uint16"),
        "network_class": _packed(comparison.classes, "Uint16"),
        "edge_operations": _packed([bench.chosen(cell) for cell in cells], "Uint8"),
        "edge_live": _packed([bench.effective(cell) for cell in cells], "Uint8"),
        # Its place among the distinct factors; their number where there is no path, hence no factor.
        "factor": _packed(np.searchsorted(distinct, factors), "Uint8"),
        "control": _side(comparison.first, control),
        "other": _side(comparison.second, other),
        "noise": None if noise is None else _packed(noise, "Float32"),
    }


def _side(side: Side, curves: Curves | None) -> dict[str, Any]:
    return {
        "name": side.name,
        "accuracy": _packed(side.accuracy, "Float32"),
        "rank": _packed(ranks(side.accuracy), "Float32"),
        "curves": curves
        and {
            "row": _packed(curves.row + 1, "Uint16"),  # 0 for a cell without curves
            "epochs": curves.epochs.tolist(),
            "means": {name: _packed(means, "Float32") for name, means in curves.means.items()},
        },
    }


def _packed(values: Any, kind: str) -> dict[str, str]:  # noqa: ANN401 - whatever numpy makes an array of
    """A column as the bytes of JavaScript's typed array of that kind (little-endian), in base64."""
    array = np.asarray(values).astype(np.dtype(kind.lower()).newbyteorder("<"))
    return {"kind": kind, "bytes": base64.b64encode(array.tobytes()).decode()}
