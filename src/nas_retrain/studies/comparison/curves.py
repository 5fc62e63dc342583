"""What run records know of each epoch of a comparison's networks, for its page to draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.statistics.rankings import Floats, Integers
from nas_retrain.trainings.curves import by_epoch


@dataclass(frozen=True)
class Curves:
    """The curves of one side's networks.

    row: (cells,), where in `means` a cell's network is, -1 for one without curves. epochs: (epochs,), from 1. means: by
    quantity (networks, epochs), over the network's trainings that have the epoch, NaN where none has.
    """

    row: Integers
    epochs: Integers
    means: dict[str, Floats]

    def at_most(self, points: int) -> Curves:
        """The same at so many epochs, spread evenly from the first to the last."""
        chosen = np.unique(np.linspace(0, len(self.epochs) - 1, min(points, len(self.epochs))).round().astype(int))
        return Curves(self.row, self.epochs[chosen], {name: means[:, chosen] for name, means in self.means.items()})


def of_side(source: Accuracies, records: pd.DataFrame, cells: Integers) -> Curves | None:
    """The curves of cells, by the run records that `source` was made of; None if no record has any."""
    found = by_epoch(records)
    if found.empty:
        return None
    classes = np.array(source.classes)
    network = classes[records["cell"].to_numpy()[found["record"]]]
    networks, epochs = pd.Index(np.unique(network)), np.arange(1, found["epoch"].max() + 1)
    means = {
        name: found.pivot_table(name, [network], "epoch").reindex(index=networks, columns=epochs).to_numpy()
        for name in found.columns.drop(["record", "epoch"])
    }
    return Curves(networks.get_indexer(classes[cells]).astype(np.int64), epochs, means)
