"""Grid searches for a learning rate, and the record of those that find one rate for all networks.

The base rate (paper section 4) is the one that gives the base network the smallest training loss after one epoch,
averaged over seeds; of equal ones the largest. It holds for one network, data set, batch size and budget, and is never
carried to another. A network's own rate is chosen in the same way by its error on validation images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from nas_retrain.files.atomic import replacing
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Training


@dataclass(frozen=True)
class GridPoint:
    """One rate of the grid and the loss that each seed reached with it, infinite where it diverged: the training loss
    in nats or, where validation images were kept back, the percentage of them that was misclassified."""

    learning_rate: float
    losses: tuple[float, ...]

    @property
    def mean_loss(self) -> float:
        """The mean over seeds; infinite if any diverged."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class GridSearch:
    """A finished grid search for one network's learning rate."""

    grid: tuple[GridPoint, ...]

    @property
    def chosen(self) -> GridPoint:
        """The point of smallest mean loss; the largest rate of several."""
        return min(self.grid, key=lambda point: (point.mean_loss, -point.learning_rate))

    @property
    def at_edge(self) -> bool:
        """Whether the choice is the grid's lowest or highest rate, so that a better one may lie outside."""
        return self.chosen in (self.grid[0], self.grid[-1]) and len(self.grid) > 1


def finished_search(trainings: Iterable[Training], stored: StoredRuns) -> GridSearch | None:
    """The search's outcome from stored records; None while any of its trainings is missing."""
    losses: dict[float, list[float]] = {}
    for training in trainings:
        row = stored.rows.get(training.key)
        if row is None or training.learning_rate is None:
            return None
        losses.setdefault(training.learning_rate, []).append(_loss(stored, row, validated=training.validated))
    return GridSearch(tuple(GridPoint(rate, tuple(values)) for rate, values in sorted(losses.items())))


def _loss(stored: StoredRuns, row: int, *, validated: bool) -> float:
    loss = float(stored.column("train_loss")[row])
    if stored.column("status")[row] == "diverged" or math.isnan(loss):
        return math.inf
    return 100.0 - float(stored.column("test_accuracy")[row]) if validated else loss


def write_search(search: GridSearch, folder: Path, name: str) -> None:
    """Write <name>.json (the choice and the whole grid) and figures/<name>.png below a results folder, for a search on
    the base network."""
    grid = [
        {
            "learning_rate": point.learning_rate,
            "mean_train_loss": _finite(point.mean_loss),
            "train_losses": [_finite(loss) for loss in point.losses],
        }
        for point in search.grid
    ]
    found = {name: search.chosen.learning_rate, "at_edge_of_grid": search.at_edge, "grid": grid}
    path = folder / f"{name}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_of_newer_version(path, found) | found, indent=2) + "\n")
    _draw(search, folder / "figures" / f"{name}.png")


def _of_newer_version(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What an earlier file has beside what this version writes; nothing where it is damaged, since all else in it
    comes from the records."""
    try:
        before = from_json(path.read_bytes(), allow_inf_nan=False)
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in before.items() if key not in found} if isinstance(before, dict) else {}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _draw(search: GridSearch, path: Path) -> None:
    from matplotlib.figure import Figure

    rates = [point.learning_rate for point in search.grid]
    losses = np.array([point.losses for point in search.grid])
    losses[~np.isfinite(losses)] = np.nan
    means = np.array([point.mean_loss for point in search.grid])
    means[~np.isfinite(means)] = np.nan
    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(np.repeat(rates, losses.shape[1]), losses.ravel(), ".", color="0.6", label="one seed")
    axes.plot(rates, means, "-o", color="#0072B2", markersize=4, label="mean over seeds")
    chosen = search.chosen
    axes.axvline(chosen.learning_rate, color="#D55E00", linewidth=1, label=f"best: {chosen.learning_rate:.3g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (nats)")
    axes.set_title("Base network (skip-only cell)")
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
