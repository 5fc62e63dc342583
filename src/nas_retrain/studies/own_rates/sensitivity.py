"""Which conclusions depend on the budget and on the base rate? Gains and rankings of a few classes under each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pandas as pd

from nas_retrain.benches.registry import Bench
from nas_retrain.purpose import Purpose, Recipe, Variant
from nas_retrain.settings import AnalysisSettings
from nas_retrain.statistics import accuracies
from nas_retrain.statistics.means import mean_interval
from nas_retrain.statistics.noise import ceiling, noise_level
from nas_retrain.statistics.rankings import (
    bootstrap_taus,
    bootstrap_weights,
    compare,
    kendall_tau,
    middle,
    shared_parts,
    tau_excess,
    tau_interval,
)

EPOCHS, BASE_RATE_FACTOR = "epochs", "base rate factor"


def compare_variants(
    frame: pd.DataFrame, recipes: Sequence[str], epochs: int, settings: AnalysisSettings, space: Bench
) -> pd.DataFrame:
    """A row for each budget or factor and pair of recipes, of which the first is the control: the mean gain in points,
    Kendall's tau between the two rankings, each with its 95 % interval over network classes (which count shared seeds,
    see `means` and `luck`), and tau's noise ceiling.

    frame: records with the columns of `RunRecord` and `purpose` (see `Training`). Of the recipes themselves, only the
    classes that have variants count. epochs: of the recipes themselves.
    """
    classes = set(frame.loc[[isinstance(purpose, Variant) for purpose in frame["purpose"]], "cell"])
    frame = frame[frame["cell"].isin(classes)]
    rows = []
    for what, value, recipe, control, varied, fixed in _pairs(frame, recipes, epochs):
        ours, theirs = accuracies.from_runs(varied, recipe, space), accuracies.from_runs(fixed, control, space)
        comparison = compare(theirs, ours)
        weights = bootstrap_weights(comparison.classes, settings.bootstrap_draws, settings.seed)
        x, y = comparison.first.accuracy, comparison.second.accuracy
        shared = shared_parts([(1.0, comparison.second), (-1.0, comparison.first)])
        gain_low, gain_high = mean_interval(y - x, comparison.classes, shared)
        tau = kendall_tau(x, y)
        excess = tau_excess(comparison.first, comparison.second, comparison.classes, (100,))
        tau_low, tau_high = tau_interval(
            tau,
            bootstrap_taus(x, y, weights, (100,))[0],
            len(np.unique(comparison.classes)),
            [(part[0], free) for part, free in excess],
        )
        noise = noise_level(theirs), noise_level(ours)
        again = ceiling(comparison, *noise, draws=settings.null_draws, seed=settings.seed, percents=(100,))
        rows.append(
            {
                "varied": what,
                "value": value,
                "recipe": recipe,
                "control": control,
                "cells": len(comparison),
                "mean_accuracy": float(y.mean()),
                "mean_gain": float((y - x).mean()),
                "gain_low": gain_low,
                "gain_high": gain_high,
                "kendall_tau": tau,
                "tau_low": tau_low,
                "tau_high": tau_high,
                "tau_ceiling": np.nan if again is None else float(again.taus.mean()),
                "ceiling_low": np.nan if again is None else float(middle(again.taus, axis=1)[0, 0]),
                "ceiling_high": np.nan if again is None else float(middle(again.taus, axis=1)[1, 0]),
                "p_value": np.nan if again is None else float(again.p_values(np.array([tau]))[0]),
            }
        )
    return pd.DataFrame(rows)


def _pairs(
    frame: pd.DataFrame, recipes: Sequence[str], epochs: int
) -> Iterator[tuple[str, float, str, str, pd.DataFrame, pd.DataFrame]]:
    """What is varied, its value, recipe and control, and the records of each. A budget is varied on both sides, the
    base rate on the recipe's only."""
    found = {cast("Purpose", purpose): part for purpose, part in frame.groupby("purpose", sort=False)}
    for control, recipe in itertools.combinations(recipes, 2):
        ours = [purpose for purpose in found if isinstance(purpose, Variant) and purpose.recipe == recipe]
        budgets = {float(variant.epochs): variant for variant in ours if variant.epochs}
        factors = {variant.base_rate_factor: variant for variant in ours if not variant.epochs}
        for what, variants, unvaried in ((EPOCHS, budgets, epochs), (BASE_RATE_FACTOR, factors, 1)):
            if not variants:
                continue
            values: dict[float, Recipe | Variant] = {**variants, float(unvaried): Recipe(recipe)}
            for value, purpose in sorted(values.items(), key=lambda item: item[0]):
                fixed = found.get(replace(purpose, recipe=control) if what == EPOCHS else Recipe(control))
                varied = found.get(purpose)
                if fixed is not None and varied is not None:
                    yield what, value, recipe, control, varied, fixed
