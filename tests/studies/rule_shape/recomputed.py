"""The study's figures computed another way, from a data frame of records and nothing of the package but the graphs of
cells: with scipy's tests, by counting every search of three seeds, and by enumerating paths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import Akima1DInterpolator

Floats = NDArray[np.float64]

EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
"""Of a cell's string, in its order."""


def parts(records: pd.DataFrame) -> pd.DataFrame:
    """With the part of the study and the arm that each training belongs to."""
    named = records["recipe"].str.extract(r"^(?P<part>.+)\.(?P<arm>[a-z_]+)$")
    return records.assign(part=named["part"], arm=named["arm"]).dropna(subset=["part"])


def paths(arch: str) -> list[dict[tuple[int, int], str]]:
    """The operations by edge of each path from input to output."""
    names = [part.split("~")[0] for vertex in arch.strip("|").split("|+|") for part in vertex.split("|")]
    operations = dict(zip(EDGES, names, strict=True))
    found = [
        {edge: operations[edge] for edge in itertools.pairwise([0, *between, 3])}
        for between in [(), (1,), (2,), (1, 2)]
    ]
    return [path for path in found if "none" not in path.values()]


def log_factor(arch: str) -> float:
    """The logarithm to base 2 of the rule's factor: the base network has one path of depth 1, and depth counts two
    layers outside the cell."""
    depths = [1 + sum(name.startswith("nor_conv") for name in path.values()) for path in paths(arch)]
    return -0.5 * math.log2(sum(depth**3 for depth in depths))


def edges_without_weights(arch: str) -> int:
    """How many skips and poolings are on a path from input to output."""
    return sum(
        not name.startswith("nor_conv")
        for name in {edge: on for path in paths(arch) for edge, on in path.items()}.values()
    )


def difference(frame: pd.DataFrame, part: str, first: Sequence[str], second: Sequence[str]) -> Any:
    """Scipy's t-test of the mean over networks of accuracy in some arms less that in others."""
    ours = frame[frame["part"] == part]
    means = ours.pivot_table(index="cell", columns="arm", values="test_accuracy")
    values = means[[*first]].mean(axis=1) - means[[*second]].mean(axis=1)
    return stats.ttest_1samp(values, 0)


HYPOTHESES: Mapping[str, tuple[str, list[str], list[str]]] = {
    "H1": ("confirmation", ["stock_rule"], ["stock_one_rate"]),
    "H2": ("confirmation", ["source_rule"], ["source_one_rate"]),
    "H3": ("confirmation", ["stock_rule", "source_rule"], ["stock_permuted", "source_permuted"]),
    "H4": ("confirmation", ["source_one_rate"], ["stock_one_rate"]),
    "H6": ("plain_confirmation", ["target_rule"], ["target_permuted"]),
    "H7": ("plain_confirmation", ["target_rule"], ["target_one_rate"]),
}
"""But H5, which is read off the surface: see `ranking_difference`."""


def surface(frame: pd.DataFrame, part: str, arm: str) -> tuple[list[str], Floats, Floats]:
    """The networks' strings, the rates, and validation accuracies (networks, rates, seeds)."""
    ours = frame[(frame["part"] == part) & (frame["arm"] == arm)]
    table = ours.set_index(["cell", "learning_rate", "seed"])["test_accuracy"].sort_index()
    shape = [len(table.index.unique(level)) for level in range(3)]
    archs = ours.drop_duplicates("cell").sort_values("cell")["arch"].tolist()
    return archs, table.index.unique(1).to_numpy(dtype=float), table.to_numpy(dtype=float).reshape(shape)


def suiting_rates(rates: Floats, accuracy: Floats) -> tuple[list[float], list[float]]:
    """Of each network, the logarithm of the rate with the best mean accuracy, to a 32nd of an octave, and the largest
    rate of the grid at which every training was above 15 %."""
    x = np.log2(rates)
    tried = np.minimum(x[0] + np.arange(round((x[-1] - x[0]) * 32) + 1) / 32, x[-1])
    best, largest = [], []
    for network in accuracy:
        best.append(tried[Akima1DInterpolator(x, network.mean(1))(tried).argmax()])
        largest.append(
            max((rate for rate, trainings in zip(rates, network, strict=True) if min(trainings) > 15), default=0.0)
        )
    return best, largest


def own_variance(accuracy: Floats) -> float:
    """The covariance of two seeds' accuracies (networks, rates, seeds) without the means of rates and of networks."""
    first, second = (one - one.mean(0) - one.mean(1)[:, None] + one.mean() for one in np.moveaxis(accuracy, 2, 0))
    return float((first * second).mean())


def best_scalar(rates: Floats, accuracy: Floats, log_factors: Floats) -> float:
    """The geometric mean of rates m x factor at which accuracy (networks, rates) is best on average over networks,
    among values of m that differ by a 32nd of an octave."""
    x = np.log2(rates)
    relative = log_factors - log_factors.mean()
    curves = [Akima1DInterpolator(x, each) for each in accuracy]
    tried = x[0] + np.arange(round((x[-1] - x[0]) * 32) + 1) / 32
    means = [
        np.mean([curve(np.clip(one + by, x[0], x[-1])) for curve, by in zip(curves, relative, strict=True)])
        for one in tried
    ]
    return float(2 ** tried[int(np.argmax(means))])


def gain(rates: Floats, accuracy: Floats, log_factors: Floats, splits: int) -> Floats:
    """Points gained over one rate, for each of some ways to cut the networks into two halves: the scalars are tuned on
    one and judged on the other, both ways."""
    x = np.log2(rates)
    tried = x[0] + np.arange(round((x[-1] - x[0]) * 32) + 1) / 32
    curves = [Akima1DInterpolator(x, each) for each in accuracy]
    tables = []
    for relative in (log_factors - log_factors.mean(), np.zeros(len(accuracy))):
        at = [np.clip(tried + by, x[0], x[-1]) for by in relative]
        tables.append(np.array([curve(one) for curve, one in zip(curves, at, strict=True)]))
    random = np.random.default_rng(99)
    found = []
    for _ in range(splits):
        order = random.permutation(len(accuracy))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        levels = [
            sum(
                table[judged, table[tuned].mean(0).argmax()].sum()
                for tuned, judged in (halves, halves[::-1])
            ) / len(order)
            for table in tables
        ]  # fmt: skip
        found.append(levels[0] - levels[1])
    return np.array(found)


def ranking_difference(frame: pd.DataFrame, splits: int) -> Floats:
    """H5: by how much larger Kendall's tau with networks at their own best pair of initialisation and rate is under the
    paper's two rules than under one rate, for each of some ways to cut the networks into two halves."""
    archs, rates, stock = surface(frame, "surface", "stock")
    _, _, source = surface(frame, "surface", "source")
    x, networks = np.log2(rates), len(archs)
    factors = np.array([log_factor(arch) for arch in archs])
    tried = x[0] + np.arange(round((x[-1] - x[0]) * 32) + 1) / 32
    random = np.random.default_rng(99)
    orders = [random.permutation(networks) for _ in range(splits)]
    found = np.zeros(splits)
    for chooser, judge in ((0, 1), (1, 0)):
        pairs = np.concatenate([stock[:, :, chooser], source[:, :, chooser]], axis=1).argmax(1)
        own_best = np.concatenate([stock[:, :, judge], source[:, :, judge]], axis=1)[np.arange(networks), pairs]
        tables = []
        for accuracy, relative in ((source, factors - factors.mean()), (stock, np.zeros(networks))):
            curves = [Akima1DInterpolator(x, each) for each in accuracy[:, :, chooser]]
            at = [np.clip(tried + by, x[0], x[-1]) for by in relative]
            tables.append(np.array([curve(one) for curve, one in zip(curves, at, strict=True)]))
        for split, order in enumerate(orders):
            halves = order[: networks // 2], order[networks // 2 :]
            taus = []
            for table in tables:
                under = np.empty(networks)
                for tuned, judged in (halves, halves[::-1]):
                    under[judged] = table[judged, table[tuned].mean(0).argmax()]
                taus.append(stats.kendalltau(under, own_best).statistic)
            found[split] += (taus[0] - taus[1]) / 2
    return found


def shares_of_searches(frame: pd.DataFrame, arm: str, epochs: int) -> dict[float, float]:
    """How many of all searches with three of the seeds choose each rate, by the least mean training loss."""
    ours = frame[(frame["part"] == f"base_rate_{epochs}") & (frame["arm"] == arm)]
    losses = ours.pivot_table(index="learning_rate", columns="seed", values="train_loss", dropna=False).fillna(np.inf)
    chosen = [
        losses.index[losses.iloc[:, list(three)].mean(axis=1).argmin()]
        for three in itertools.combinations(range(losses.shape[1]), 3)
    ]
    return pd.Series(chosen).value_counts(normalize=True).to_dict()
