"""How the learning rate goes from epoch to epoch. It is a share of each training's own rate, the same for all."""

from __future__ import annotations

import math

from nas_retrain.settings import TrainingSettings


def share_of_rate(recipe: TrainingSettings, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch, counted from 0, as a share of the training's own.

    It rises in equal steps over `warmup_epochs` epochs, of which none has the whole rate, and then follows the schedule
    over the epochs that are left. epochs: how many there are, which a training of another budget has in place of
    `training.epochs`.
    """
    warmup = min(recipe.warmup_epochs, epochs - 1)
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    epoch, epochs = epoch - warmup, epochs - warmup
    match recipe.schedule:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
        case "linear":
            return 1.0 - epoch / epochs
        case "step":
            return math.prod(recipe.step_factor for step in recipe.steps if epoch >= step * epochs)
        case "constant":
            return 1.0
