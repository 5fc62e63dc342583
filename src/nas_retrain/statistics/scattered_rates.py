"""From trainings at scattered learning rates to accuracies on a grid of rates, by a fit.

Where each network was trained at rates of its own, and with other things varied too, no two trainings can be set side
by side. So a curve is fitted: with t = log2 of the rate, less the mean of all,

    accuracy = b_0 + b_1 t + b_2 t^2 + what else was varied (each with a slope of its own in t) + u_c + s_c t + noise,

where the height u_c and the slope s_c of network class c are normal about 0 (a mixed model). The common part is
fitted by least squares, the variances by the EM algorithm, and u_c and s_c are their expectations given the class's
trainings: few trainings are drawn towards what all classes have in common, so that differences are rather too small
than too large. A class's own rate is where its parabola is highest.

Each class's trainings are dealt into parts, and u_c and s_c are fitted to each part alone. Parts then stand for
seeds: a rate chosen with some is judged by others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nas_retrain.errors import NasRetrainError
from nas_retrain.statistics.accuracy_grid import AccuracyGrid
from nas_retrain.statistics.rankings import Floats, Integers

PARTS = 3
RATES = 9
_ITERATIONS = 50
_KINDS = 50
"""Values that a covariate may have of which each is a column of its own."""


def fitted_grid(trainings: pd.DataFrame, covariates: Sequence[str], seed: int = 0) -> AccuracyGrid:
    """The fitted curves of the classes that have a training in every part.

    trainings: columns cell (a class's), learning_rate, valid, test and the covariates: numbers of many values count by
    their logarithm, linearly and squared, others by their values. Raises NasRetrainError, naming the covariate, for one
    of the former that has no logarithm and for one of the latter with too many values.
    """
    log_rate = np.log2(trainings["learning_rate"].to_numpy(dtype=float))
    centre = log_rate.mean()
    t = log_rate - centre
    cells, number = np.unique(trainings["cell"].to_numpy(), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(trainings))
    part = np.empty(len(trainings), dtype=np.int64)
    part[order] = pd.Series(number[order]).groupby(number[order]).cumcount().to_numpy() % PARTS
    unit = number * PARTS + part
    others = _centred([_effects(trainings[name]) for name in covariates], len(trainings))
    design = np.column_stack([np.ones_like(t), t, t**2, others, others * t[:, None]])
    shown = np.linspace(float(np.quantile(t, 0.02)), float(np.quantile(t, 0.98)), RATES)
    tables = []
    for which in ("valid", "test"):
        accuracy = trainings[which].to_numpy(dtype=float)
        common = np.linalg.lstsq(design, accuracy, rcond=None)[0]
        residual = accuracy - design @ common
        spread, noise = _variances(_Sums.of(number, t, residual, len(cells)))
        height, slope = _expected(_Sums.of(unit, t, residual, len(cells) * PARTS), spread, noise)[0].T
        curve = common[0] + common[1] * shown + common[2] * shown**2
        fitted = curve + height[:, None] + slope[:, None] * shown
        tables.append(fitted.reshape(len(cells), PARTS, RATES).transpose(0, 2, 1))
    whole = np.bincount(np.unique(unit) // PARTS, minlength=len(cells)) == PARTS
    return AccuracyGrid(cells[whole], 2.0 ** (shown + centre), tables[0][whole], tables[1][whole], shared=False)


def _effects(values: pd.Series) -> Floats:
    """Columns of a covariate: one for each value but the first, or the logarithm and its square."""
    number = values.nunique()
    if pd.api.types.is_float_dtype(values) and number > 10:
        numbers = values.to_numpy(dtype=float)
        wrong = numbers[~((numbers > 0) & np.isfinite(numbers))]
        if wrong.size:
            raise NasRetrainError(
                f"{values.name} has {number:,} values, so its logarithm counts, and {wrong[0]:g} has none. Leave these "
                "trainings out."
            )
        logarithm = np.log2(numbers)
        return np.column_stack([logarithm, (logarithm - logarithm.mean()) ** 2])
    if number > _KINDS:
        raise NasRetrainError(
            f"{values.name} has {number:,} values; at most {_KINDS} of what is no number with a logarithm can be told "
            "apart. Leave trainings out."
        )
    return pd.get_dummies(values.astype(str), drop_first=True).to_numpy(dtype=float)


def _centred(columns: Sequence[Floats], rows: int) -> Floats:
    """All columns, less their means, so that the common curve is that of the average training."""
    joined = np.column_stack([np.empty((rows, 0)), *columns])
    centred: Floats = joined - joined.mean(0)
    return centred


@dataclass(frozen=True)
class _Sums:
    """Of each unit's trainings: their number, and the sums that a straight line takes. squares: of all residuals."""

    count: Floats
    t: Floats
    tt: Floats
    r: Floats
    tr: Floats
    squares: float

    @staticmethod
    def of(unit: Integers, t: Floats, residual: Floats, units: int) -> _Sums:
        def summed(values: Floats) -> Floats:
            return np.bincount(unit, values, minlength=units).astype(float)

        return _Sums(
            count=summed(np.ones_like(t)),
            t=summed(t),
            tt=summed(t * t),
            r=summed(residual),
            tr=summed(t * residual),
            squares=float(residual @ residual),
        )

    @property
    def products(self) -> Floats:
        """Z'Z of each unit, for Z of the columns 1 and t: (units, 2, 2)."""
        return np.stack([np.stack([self.count, self.t], -1), np.stack([self.t, self.tt], -1)], -2)

    @property
    def right(self) -> Floats:
        """Z'r of each unit, (units, 2)."""
        return np.stack([self.r, self.tr], -1)


def _expected(sums: _Sums, spread: Floats, noise: float) -> tuple[Floats, Floats]:
    """The expectation of each unit's height and slope, (units, 2), and their covariance, (units, 2, 2)."""
    covariance: Floats = np.linalg.inv(np.linalg.inv(spread) + sums.products / noise).astype(float)
    expected: Floats = np.einsum("uij,uj->ui", covariance, sums.right) / noise
    return expected, covariance


def _variances(sums: _Sums) -> tuple[Floats, float]:
    """The covariance of heights and slopes, (2, 2), and the variance of the noise, by EM."""
    total = sums.count.sum()
    noise = max(sums.squares / total, 1e-9)
    spread = np.diag([noise, noise / max(float(sums.tt.sum() / total), 1e-9)])
    for _ in range(_ITERATIONS):
        expected, covariance = _expected(sums, spread, noise)
        moments = covariance + expected[:, :, None] * expected[:, None, :]
        spread = moments.mean(0) + 1e-9 * np.eye(2)
        explained = 2 * (expected * sums.right).sum() - (moments * sums.products).sum()
        noise = max(float((sums.squares - explained) / total), 1e-9)
    return spread, noise
