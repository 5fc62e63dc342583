"""The tables of a comparison, each a DataFrame that is written as CSV. Intervals are 95 % over network classes; those
of mean gains count the luck of seeds that all classes share as well (see `means`).

What is compared with is the control here, the first side of a comparison: the control recipe, or the table ORIGINAL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas_retrain.reports.document import tell_stage
from nas_retrain.settings import AnalysisSettings
from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.statistics.means import mean_interval
from nas_retrain.statistics.noise import Ceiling, NoiseLevel, by_decile, ceiling, noise_level, ranks
from nas_retrain.statistics.rankings import (
    LEVEL,
    TOP_PERCENTS,
    Comparison,
    Floats,
    Integers,
    agreement,
    align,
    bootstrap_interval,
    bootstrap_weights,
    common_classes,
    compare,
    shared_parts,
    top_counts,
)
from nas_retrain.statistics.significance import holm
from nas_retrain.theory.scaling import learning_rate_factor

BEYOND_NOISE = 4.0
"""A cell's change of rank is beyond noise if it exceeds so many standard deviations of what training again gives.
Among 15,625 normal numbers one is expected to."""

AGAINST_NOISE = (
    "tau_ceiling", "ceiling_low", "ceiling_high", "beyond_noise", "beyond_low", "beyond_high", "p_value", "p_holm",
    "tau_original_again", "tau_retrained_again",
)  # fmt: skip
"""The columns of the ranking change that need the noise to be known; see `ranking_change`."""


SIDES = ("original", "retrained")
"""What files and their columns call the control and the other side."""


@dataclass(frozen=True)
class Findings:
    """Everything computed about one comparison. Tables are described by the functions that make them.

    noise: of each of `SIDES`.
    """

    comparison: Comparison
    noise: dict[str, NoiseLevel | None]
    ceiling: Ceiling | None
    ranking_change: pd.DataFrame
    accuracy_gain: pd.DataFrame
    performance_gap: pd.DataFrame
    largest_moves: pd.DataFrame
    noise_levels: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        return {
            "ranking_change": self.ranking_change,
            "accuracy_gain": self.accuracy_gain,
            "performance_gap": self.performance_gap,
            "largest_moves": self.largest_moves,
            "noise": self.noise_levels,
        }


def find(control: Accuracies, other: Accuracies, settings: AnalysisSettings) -> Findings:
    """Compare two sources; raises NasRetrainError if they have fewer than two cells in common."""
    comparison = compare(control, other)
    noise = dict(zip(SIDES, (noise_level(control), noise_level(other)), strict=True))
    if None not in noise.values():
        tell_stage(f"The noise ceiling, from {settings.null_draws:,} draws of training again")
    again = ceiling(
        comparison,
        *noise.values(),
        draws=settings.null_draws,
        seed=settings.seed,
        by=_ranked_by(settings),
    )
    tell_stage(f"Intervals, from {settings.bootstrap_draws:,} draws of the bootstrap")
    weights = bootstrap_weights(comparison.classes, settings.bootstrap_draws, settings.seed)
    return Findings(
        comparison=comparison,
        noise=noise,
        ceiling=again,
        ranking_change=ranking_change(comparison, again, settings),
        accuracy_gain=accuracy_gain(comparison, again),
        performance_gap=performance_gap(comparison, weights),
        largest_moves=largest_moves(comparison, again, settings.largest_moves),
        noise_levels=noise_levels(noise),
    )


def _ranked_by(settings: AnalysisSettings) -> Literal["first", "second"]:
    return "first" if settings.top_by == SIDES[0] else "second"


def ranking_change(comparison: Comparison, again: Ceiling | None, settings: AnalysisSettings) -> pd.DataFrame:
    """Kendall's tau at each K beside its noise ceiling.

    tau_ceiling: mean tau if only the noise of training differed, and the range of 95 % of such taus. beyond_noise: by
    how much the observed tau lies below the mean, with the interval that tau's leaves. p_value: how often training
    again gives a tau as low. p_holm: the same, adjusted for there being several K. tau_original_again and
    tau_retrained_again: each side with its own repetition.
    """
    table = agreement(comparison, settings.bootstrap_draws, settings.seed, _ranked_by(settings))
    if again is None:
        return table.assign(**dict.fromkeys(AGAINST_NOISE, np.nan))
    taus = table["kendall_tau"].to_numpy()
    table["tau_ceiling"] = again.taus.mean(1)
    table["ceiling_low"], table["ceiling_high"] = np.quantile(again.taus, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    table["beyond_noise"] = table["tau_ceiling"] - taus
    table["beyond_low"] = table["tau_ceiling"] - table["tau_high"]
    table["beyond_high"] = table["tau_ceiling"] - table["tau_low"]
    table["p_value"] = again.p_values(taus)
    table["p_holm"] = holm(table["p_value"].to_numpy())
    table["tau_original_again"] = again.first_again
    table["tau_retrained_again"] = again.second_again
    return table


def accuracy_gain(comparison: Comparison, again: Ceiling | None) -> pd.DataFrame:
    """The other side's accuracy less the control's, in points: over all cells, per decile of the control's accuracy
    (1 is the lowest) and per learning-rate factor. A group of fewer than `rankings.FEWEST` network classes has no
    interval.

    selection: the part of a decile's mean gain that is there though nothing changed, since cells were sorted by an
    accuracy that holds noise.
    """
    control, other = comparison.first, comparison.second
    gain = other.accuracy - control.accuracy
    shared = shared_parts([(1.0, other), (-1.0, control)])
    groups: list[tuple[str, str, Integers]] = [("all", "all", np.arange(len(gain), dtype=np.int64))]
    groups += [("decile", str(n), part) for n, part in enumerate(by_decile(control.accuracy), start=1)]
    factors = learning_rate_factors(comparison)
    for factor in np.unique(factors[np.isfinite(factors)])[::-1]:
        groups.append(("learning_rate_factor", f"{factor:.6g}", np.flatnonzero(factors == factor).astype(np.int64)))
    rows = []
    for grouping, name, part in groups:
        if not len(part):
            continue
        low, high = mean_interval(gain[part], comparison.classes[part], [table[part] for table in shared])
        quartiles = np.quantile(gain[part], [0.05, 0.25, 0.5, 0.75, 0.95])
        selection = np.nan
        if again is not None:
            selection = again.selection[int(name) - 1] if grouping == "decile" else 0.0
        rows.append(
            {
                "grouping": grouping,
                "group": name,
                "cells": len(part),
                "mean_original": control.accuracy[part].mean(),
                "mean_gain": gain[part].mean(),
                "gain_low": low,
                "gain_high": high,
                "selection": selection,
                "median_gain": quartiles[2],
                "gain_5_percent": quartiles[0],
                "gain_25_percent": quartiles[1],
                "gain_75_percent": quartiles[3],
                "gain_95_percent": quartiles[4],
                "share_improved": float((gain[part] > 0).mean()),
            }
        )
    return pd.DataFrame(rows)


def weighted_means(values: Floats, weights: NDArray[np.float32]) -> Floats:
    """The mean of each resample, (draws,); NaN where none of the values was drawn."""
    totals = weights.sum(0, dtype=np.float64)
    sums = values @ weights.astype(np.float64)
    means: Floats = np.divide(sums, totals, out=np.full(len(totals), np.nan), where=totals > 0)
    return means


def learning_rate_factors(comparison: Comparison) -> Floats:
    """The rule's factor of each cell; NaN for a disconnected one."""
    found = {}
    for network_class in set(comparison.classes.tolist()):
        graph = comparison.bench.graph_at(network_class)
        found[network_class] = learning_rate_factor(graph, comparison.bench.base) if graph.connected else np.nan
    return np.array([found[network_class] for network_class in comparison.classes.tolist()])


def performance_gap(comparison: Comparison, weights: NDArray[np.float32]) -> pd.DataFrame:
    """The standard deviation of accuracy among each side's own top K percent, in points (the paper's third finding)."""
    columns: dict[str, list[float]] = {"top_percent": [float(percent) for percent in TOP_PERCENTS]}
    for name, side in zip(SIDES, comparison.sides, strict=True):
        order = np.argsort(-side.accuracy, kind="stable")
        spread: list[tuple[float, float, float]] = []
        for count in top_counts(side.accuracy).values():
            top = order[:count]
            values, drawn = side.accuracy[top], weights[top]
            means = weighted_means(values, drawn)
            squares = weighted_means((values - values.mean()) ** 2, drawn) - (means - values.mean()) ** 2
            deviations = np.sqrt(np.maximum(squares, 0.0))
            low, high = bootstrap_interval(deviations, len(np.unique(comparison.classes[top])))
            spread.append((float(values.std()), low, high))
        for position, suffix in enumerate(("", "_low", "_high")):
            columns[f"std_{name}{suffix}"] = [found[position] for found in spread]
    return pd.DataFrame(columns).astype({"top_percent": int})


def largest_moves(comparison: Comparison, again: Ceiling | None, number: int) -> pd.DataFrame:
    """The cells whose rank rises and falls most, beyond noise where the noise is known; at most `number` each way.

    rank 1 is the best; move is the rank under the control less that under the other side, so positive is up. noise:
    standard deviation of the move if the networks are merely trained again. Of one network class the first member
    stands for all.
    """
    control, other = comparison.first.accuracy, comparison.second.accuracy
    before, after = ranks(control), ranks(other)
    table = pd.DataFrame(
        {
            "index": comparison.cells,
            "network_class": comparison.classes,
            "accuracy_original": control,
            "accuracy_retrained": other,
            "rank_original": before,
            "rank_retrained": after,
            "move": before - after,
            "noise": again.moves if again is not None else np.nan,
        }
    )
    if again is not None:
        table = table[table["move"].abs() > BEYOND_NOISE * table["noise"]]
    rising = table[table["move"] > 0].sort_values("move", ascending=False, kind="stable")
    falling = table[table["move"] < 0].sort_values("move", kind="stable")
    chosen = pd.concat([part.drop_duplicates("network_class").head(number) for part in (rising, falling)])
    chosen.insert(1, "arch", [comparison.bench.arch_at(index) for index in chosen["index"]])
    return chosen.reset_index(drop=True)


def noise_levels(noise: Mapping[str, NoiseLevel | None]) -> pd.DataFrame:
    """How much one training scatters: a row a side and level of accuracy, from replicates of network classes.

    The rows whose accuracy is empty pool a side's levels.
    """
    rows = []
    for side, level in noise.items():
        if level is None:
            continue
        rows.append((side, np.nan, level.deviation, int(level.degrees.sum())))
        for accuracy, variance, degrees in zip(level.accuracy, level.variance, level.degrees, strict=True):
            rows.append((side, accuracy, float(np.sqrt(variance)), int(degrees)))
    return pd.DataFrame(rows, columns=["side", "accuracy", "standard_deviation", "degrees_of_freedom"])


def attribution(arms: Mapping[str, Accuracies], control: str) -> pd.DataFrame:
    """What each recipe gains over the control on the same cells, in points, and how the parts add up.

    A row a recipe; if both ablations were run beside the full recipe, a last row has what rate and initialisation
    together give beyond the sum of each alone ("interaction").
    """
    cells, sides = align(*arms.values())
    classes = common_classes(*arms.values())[cells]
    by_name = dict(zip(arms, sides, strict=True))
    effects = {name: [(1.0, side), (-1.0, by_name[control])] for name, side in by_name.items() if name != control}
    parts = ("architecture_aware", "learning_rate_only", "initialisation_only")
    if all(part in effects for part in parts):
        signs = (1.0, -1.0, -1.0, 1.0)
        effects["interaction"] = list(zip(signs, (by_name[name] for name in (*parts, control)), strict=True))
    rows = []
    for name, addends in effects.items():
        effect = sum((sign * side.accuracy for sign, side in addends), np.zeros(len(cells)))
        low, high = mean_interval(effect, classes, shared_parts(addends))
        rows.append((name, len(cells), float(effect.mean()), low, high, float((effect > 0).mean())))
    return pd.DataFrame(rows, columns=["recipe", "cells", "mean_gain", "gain_low", "gain_high", "share_improved"])
