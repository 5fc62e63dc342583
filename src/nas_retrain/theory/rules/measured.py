"""A rate by what was measured: how large the first gradient is beside the weights."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Parametrisation

COLUMNS = ("network_class", "relative_gradient")


def rule(
    graph: CellGraph, size: NetworkSize, *, shares: Mapping[str, float] | str, exponent: float = -1.0
) -> Parametrisation:
    """The rate (share / share of the base network)^exponent, where a network's share is the root mean square over its
    layers of |gradient| / |weights| at the first step: `relative_gradient` in the records of trainings.

    shares: what was measured, by the formula of the network (`CellGraph.network_class`), with the base network's
    ("out=x" in most spaces); or the path of a CSV file with the columns network_class and relative_gradient.
    exponent: -1 makes the first step change the weights of every network by the same share, as in LARS (You, Gitman and
    Ginsburg 2017, arXiv 1708.03888), which does so layer by layer and at every step.

    Limits: a share holds for the initialisation, width and data that it was measured with. One seed's is noisy.
    """
    measured = _read(str(shares)) if isinstance(shares, str) else shares
    return Parametrisation((_share(measured, graph, size) / _share(measured, size.base, size)) ** exponent)


def _share(measured: Mapping[str, float], graph: CellGraph, size: NetworkSize) -> float:
    formula = graph.network_class
    if formula not in measured:
        which = "the base network" if formula == size.base.network_class else "the network"
        raise NasRetrainError(f"shares has no measurement of {which} {formula}; measure it first")
    share = measured[formula]
    if not (math.isfinite(share) and share > 0):
        raise NasRetrainError(f"shares has {share!r} for {formula}, where a positive, finite number was expected")
    return share


@cache
def _read(path: str) -> Mapping[str, float]:
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {row[COLUMNS[0]]: float(row[COLUMNS[1]]) for row in rows}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise NasRetrainError(
            f"shares={path} cannot be read ({error}); a CSV file with the columns {' and '.join(COLUMNS)} was expected"
        ) from None
