"""What counts as beyond chance, also where several things are tested at once."""

from __future__ import annotations

import numpy as np

from nas_retrain.statistics.rankings import Floats

SIGNIFICANT = 0.05
"""A p-value, adjusted where there are several, up to which a difference is said to be beyond chance."""


def holm(p_values: Floats) -> Floats:
    """p-values adjusted for their number by Holm's step-down rule; NaN stays NaN and does not count."""
    adjusted = np.full(len(p_values), np.nan)
    defined = np.flatnonzero(np.isfinite(p_values))
    order = defined[np.argsort(p_values[defined])]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
