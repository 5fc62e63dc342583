"""How many seeds a ranking needs: none beyond those that settle it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def expected_tau(accuracies: NDArray[np.float64]) -> float:
    """Kendall's tau to expect between this ranking and that of everything trained again with as many seeds.

    accuracies: in percent, of shape (network classes, seeds), two or more of each. The mean over seeds is taken as the
    class's own accuracy plus noise of one variance, both normal: two such means correlate by the share r of their
    variance that is the classes' own, and normal variables that correlate by r have tau = 2/pi asin r (Greiner).
    """
    seeds = accuracies.shape[1]
    noise = accuracies.var(axis=1, ddof=1).mean() / seeds
    total = accuracies.mean(axis=1).var(ddof=1)
    if total == 0:
        return 0.0
    return 2 / math.pi * math.asin(max(0.0, 1 - noise / total))
