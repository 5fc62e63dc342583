"""Made-up accuracies whose truth is known: a true ranking, noise, and a change that may be planted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nas_retrain.statistics.accuracies import Accuracies
from tests.strategies import NAS_BENCH_201

CLASSES = np.array(
    [cell for cell in sorted(set(NAS_BENCH_201.training_classes(None))) if NAS_BENCH_201.graph_at(cell).connected]
)


def two_trainings(
    seed: int, cells: int = 200, seeds: tuple[int, int] = (2, 2), planted: float = 0.0
) -> tuple[Accuracies, Accuracies]:
    """The same networks under two recipes: one true ranking unless a change (points) is planted, noise that grows
    towards the weak cells, and another scale on the second side."""
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(CLASSES, cells, replace=False))
    lost = generator.gamma(1.5, 2.0, cells)
    sides = []
    for count, truth in zip(seeds, (94 - lost, 75 - 1.5 * lost + planted * generator.normal(size=cells)), strict=True):
        noise = (0.3 + 0.05 * lost)[:, None] * generator.normal(size=(cells, count))
        runs = pd.DataFrame(
            {
                "index": np.repeat(chosen, count),
                "seed": np.tile(np.arange(count), cells),
                "accuracy": (truth[:, None] + noise).clip(0, 100).ravel(),
            }
        )
        sides.append(Accuracies(f"{count} seeds", runs, NAS_BENCH_201, per_class=True))
    return sides[0], sides[1]
