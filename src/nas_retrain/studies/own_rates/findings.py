"""Whose ranking is right? Each recipe against the networks at their own best learning rates.

That two rankings differ does not say which is better. The ranking of networks that each train at their own best rate
does; a rule for the rate stands in for it. Own rates are chosen on validation images and judged on the test set with
seeds of their own, so neither the choice nor a shared training counts as agreement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nas_retrain.benches.registry import Bench
from nas_retrain.purpose import RateSearch
from nas_retrain.rate_policy import Own
from nas_retrain.settings import AnalysisSettings, Settings
from nas_retrain.statistics import luck
from nas_retrain.statistics.accuracies import Accuracies, from_runs, seeding_of
from nas_retrain.statistics.accuracy_grid import AccuracyGrid
from nas_retrain.statistics.means import mean_interval
from nas_retrain.statistics.noise import NoiseLevel, ceiling, noise_level
from nas_retrain.statistics.rankings import (
    Comparison,
    Floats,
    agreement,
    bootstrap_interval,
    bootstrap_taus,
    bootstrap_weights,
    compare,
    middle,
    shared_parts,
    top_taus,
)
from nas_retrain.statistics.significance import holm
from nas_retrain.studies.own_rates import by_rate
from nas_retrain.studies.own_rates.by_rate import MEASURED

TOP = (100, 50, 20)
"""The top K percent, by the accuracies at own rates, among which rankings are compared."""


@dataclass(frozen=True)
class OwnRates:
    """What was found; every interval is 95 %, over network classes, and counts shared seeds (see `means` and
    `luck`).

    rankings: a row a recipe and K: Kendall's tau between its ranking and that at own rates, the noise ceiling, how
    often noise alone gives a tau as low, and by how much tau exceeds the control's.
    regret: a row a recipe: points of test accuracy below the own rate's, their mean and distribution over classes, and
    the mean of the first step's relative_gradient (see `RunRecord`).
    curves: a row a rate of the grid: the mean validation accuracy of all classes and how often it is the best rate.
    by_rate: each class's mean validation accuracy at each rate, (classes, rates), in percent.
    classes: a row a network class: its own rate, the lean (points per doubling of the rate) and what may explain them.
    explained: a row a quantity: rank correlations with the own rate and the lean, p-values adjusted for their number.
    rules: a row a rule for the rate: how it ranks classes that it was not fitted to, and the points of validation
    accuracy that it gains there over the best one rate for all.
    reliability: rank correlation that a perfect prediction of the own rate, or of the lean, would have with what was
    measured from so many seeds.
    judged_by: what gains are points of.
    """

    own: str
    control: str
    rankings: pd.DataFrame
    regret: pd.DataFrame
    curves: pd.DataFrame
    by_rate: Floats
    classes: pd.DataFrame
    explained: pd.DataFrame
    rules: pd.DataFrame
    reliability: dict[str, float]
    judged_by: str = "validation accuracy"

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        names = ("rankings", "regret", "curves", "classes", "explained", "rules")
        return {name: getattr(self, name) for name in names}


def own_recipe(settings: Settings) -> str | None:
    """The recipe with a rate for each network; None if there is none."""
    return next((name for name, recipe in settings.recipes.items() if isinstance(recipe.rate_policy, Own)), None)


def judge(frame: pd.DataFrame, own: str, settings: Settings, space: Bench) -> OwnRates:
    """Compare all recipes with `own`.

    frame: records of the recipes and of own's search, with the columns of `RunRecord`. Recipes that do not have two
    classes in common with `own` are left out.
    """
    chosen = settings.analysis
    cells = set(frame.loc[frame["recipe"] == own, "cell"])
    shared = frame[frame["cell"].isin(cells)].groupby("recipe")["cell"].nunique()
    others = [name for name in settings.recipes if name != own and shared.get(name, 0) > 1]
    search = frame[frame["recipe"] == RateSearch(own, validated=True).recorded_as]
    grid = _validation_accuracies(search, 100 / settings.dataset.classes)
    classes = by_rate.describe_classes(grid, settings, space)
    measured = frame[frame["recipe"] == chosen.control].groupby("cell")[["gradient_norm", "relative_gradient"]].mean()
    classes[list(MEASURED)] = measured.reindex(grid.cells).to_numpy()
    drawn = np.random.default_rng(chosen.seed).integers(0, len(classes), (chosen.bootstrap_draws, len(classes)))
    explained = by_rate.explained(classes, drawn)
    right = from_runs(frame[frame["recipe"] == own], own, space)
    recipes = {name: from_runs(frame[frame["recipe"] == name], name, space) for name in others}
    gradients = frame[frame["cell"].isin(right.runs["index"])].groupby("recipe")["relative_gradient"].mean()
    return OwnRates(
        own=own,
        control=chosen.control,
        rankings=rankings(right, recipes, chosen),
        regret=regret(right, recipes).merge(gradients, left_on="recipe", right_index=True, how="left"),
        curves=by_rate.curves(grid),
        by_rate=grid.valid.mean(2),
        classes=classes,
        explained=explained,
        rules=by_rate.rules(grid, classes, list(explained["quantity"]), chosen.seed),
        reliability=by_rate.reliability(grid),
    )


def _validation_accuracies(search: pd.DataFrame, chance: float) -> AccuracyGrid:
    table = search.pivot_table(index="cell", columns=["learning_rate", "seed"], values="test_accuracy")
    whole = table.dropna().sort_index(axis=1)
    rates = np.unique(whole.columns.get_level_values(0))
    accuracy = whole.to_numpy().reshape(len(whole), len(rates), -1)
    shared = seeding_of(search) == "shared"
    accuracy = np.maximum(accuracy, chance)
    return AccuracyGrid(whole.index.to_numpy(), rates.astype(float), accuracy, accuracy, shared)


def rankings(
    right: Accuracies,
    others: Mapping[str, Accuracies],
    chosen: AnalysisSettings,
    noise: Mapping[str, NoiseLevel | None] | None = None,
) -> pd.DataFrame:
    """See `OwnRates.rankings`. right: at own rates. noise: of `right` and of the others by name, where the trainings
    compared do not tell it themselves."""
    if noise is None:
        noise = {name: noise_level(accuracies) for name, accuracies in {right.name: right, **others}.items()}
    tables, draws, sides = [], {}, {}
    for name, recipe in others.items():
        comparison = compare(right, recipe)
        sides[name] = comparison
        table = agreement(comparison, chosen.bootstrap_draws, chosen.seed)
        table = table[table["top_percent"].isin(TOP)].reset_index(drop=True)
        weights = bootstrap_weights(comparison.classes, chosen.bootstrap_draws, chosen.seed)
        draws[name] = bootstrap_taus(comparison.first.accuracy, comparison.second.accuracy, weights, TOP)
        again = ceiling(
            comparison, noise[right.name], noise[name], draws=chosen.null_draws, seed=chosen.seed, percents=TOP
        )
        table.insert(0, "recipe", name)
        table["tau_ceiling"] = np.nan if again is None else again.taus.mean(1)
        table["ceiling_low"], table["ceiling_high"] = (np.nan, np.nan) if again is None else middle(again.taus, axis=1)
        table["p_value"] = np.nan if again is None else again.p_values(table["kendall_tau"].to_numpy())
        tables.append(table)
    found = pd.concat(tables, ignore_index=True)
    found["p_holm"] = holm(found["p_value"].to_numpy())
    control = found[found["recipe"] == chosen.control].set_index("top_percent")["kendall_tau"]
    rows = [
        (tau - control.get(percent, np.nan), *_difference(draws, sides, name, percent, chosen.control, number))
        for name, percent, tau, number in found[["recipe", "top_percent", "kendall_tau", "cells"]].itertuples(
            index=False
        )
    ]
    found[["over_control", "over_control_low", "over_control_high"]] = rows
    return found.drop(columns=["spearman", "overlap", "ties"])


def _difference(
    draws: Mapping[str, Floats],
    sides: Mapping[str, Comparison],
    recipe: str,
    percent: int,
    control: str,
    number: int,
) -> tuple[float, float]:
    """The interval of a recipe's tau less the control's, on the same resamples, with what `luck` adds."""
    if recipe == control or control not in draws:
        return np.nan, np.nan
    place, right = TOP.index(percent), sides[recipe].first
    resampled = draws[recipe][place] - draws[control][place]
    compared = (right, sides[recipe].second, sides[control].second)

    def differences(own: Floats, varied: Floats, fixed: Floats) -> Floats:
        return top_taus(own, varied, (percent,)) - top_taus(own, fixed, (percent,))

    excess = luck.excess_variance(
        [side.by_seed for side in compared],
        [side.seeds if side.shared else () for side in compared],
        sides[recipe].classes,
        differences,
    )
    return luck.widened(
        float(differences(*(side.accuracy for side in compared))[0]),
        bootstrap_interval(resampled, number),
        resampled,
        number,
        [(float(part[0]), free) for part, free in excess],
    )


def regret(right: Accuracies, others: Mapping[str, Accuracies]) -> pd.DataFrame:
    """See `OwnRates.regret`, but for the gradients. right: at own rates."""
    rows = []
    for name, recipe in others.items():
        comparison = compare(right, recipe)
        lost = comparison.first.accuracy - comparison.second.accuracy
        shared = shared_parts([(1.0, comparison.first), (-1.0, comparison.second)])
        low, high = mean_interval(lost, comparison.classes, shared)
        spread = dict(zip((5, 25, 50, 75, 95), np.quantile(lost, [0.05, 0.25, 0.5, 0.75, 0.95]), strict=True))
        rows.append(
            {"recipe": name, "classes": len(lost), "mean_regret": lost.mean(), "regret_low": low}
            | {"regret_high": high, "share_better_at_own_rate": float((lost > 0).mean())}
            | {f"regret_{percent}_percent": value for percent, value in spread.items()}
        )
    return pd.DataFrame(rows)
