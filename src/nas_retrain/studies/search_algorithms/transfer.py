"""Which network to take from a table of accuracies, and how sure that is: the best of many is also the luckiest."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas_retrain.errors import NasRetrainError
from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.statistics.noise import NoiseLevel, true_accuracies
from nas_retrain.statistics.rankings import LEVEL, Floats, middle

SIDES = ("original", "retrained")
DESCRIBED = ["cell", "arch", "flops", "parameters", "accuracy_original", "accuracy_retrained"]


def network_classes(original: Accuracies, retrained: Accuracies) -> pd.DataFrame:
    """A row a network class with a path: its lowest cell, flops, parameters, mean accuracies over all trainings of all
    members (percent), how many those are, and whether it is on each table's Pareto front of accuracy against FLOPs.
    Classes are told apart further where a side's initialisation does so (see `Accuracies`).

    flops: multiply-accumulates as in the table of cells. Raises KeyError if a side lacks a
    class.
    """
    cells = np.unique(np.array([original.classes, retrained.classes]), axis=1, return_index=True)[1]
    bench = original.bench
    graphs = {cell: graph for cell in np.sort(cells) if (graph := bench.graph_at(cell)).connected}
    table = pd.DataFrame({"cell": list(graphs)})
    table["arch"] = [bench.arch_at(cell) for cell in graphs]
    table["flops"] = [bench.flops(graph, bench.sizes) for graph in graphs.values()]
    table["parameters"] = [bench.parameters(graph, bench.sizes) for graph in graphs.values()]
    for side, accuracies in zip(SIDES, (original, retrained), strict=True):
        classes = np.array(accuracies.classes)
        grouped = accuracies.runs.groupby(classes[accuracies.runs["index"]])["accuracy"]
        table[f"accuracy_{side}"] = grouped.mean().loc[classes[table["cell"]]].to_numpy()
        table[f"trainings_{side}"] = grouped.size().loc[classes[table["cell"]]].to_numpy()
        table[f"front_{side}"] = pareto_front(table["flops"].to_numpy(), table[f"accuracy_{side}"].to_numpy())
    return table


def pareto_front(cost: NDArray[np.int64], accuracy: Floats) -> NDArray[np.bool_]:
    """Which are better than everything that costs as little or less; of equals the first."""
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(accuracy[order])
    front = np.zeros(len(cost), dtype=bool)
    front[order] = accuracy[order] > np.concatenate([[-np.inf], best[:-1]])
    return front


def drawn_truth(classes: pd.DataFrame, noise: NoiseLevel, draws: int, generator: np.random.Generator) -> Floats:
    """What the classes may truly reach, by the posterior of the retrained side: (draws, classes), percent."""
    means, trainings = (classes[f"{name}_retrained"].to_numpy(float) for name in ("accuracy", "trainings"))
    truth = true_accuracies(means, trainings, noise)
    return np.stack([truth.draw(generator) for _ in range(draws)])


def pick(classes: pd.DataFrame, limits: tuple[float, ...], truth: Floats | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which of `classes` to take under limits of FLOPs: the picks, and the classes tied with the best.

    limits: millions of multiply-accumulates, to which none (infinite) is added. truth: as of `drawn_truth`, None if
    the noise is unknown. A row of the picks is a limit and the table that chose. true_retrained, true_low, true_high:
    what the pick truly reaches. behind, behind_low, behind_high: how far below the retrained table's own pick that is.
    probability_best: that no class within the limit is truly better. tied: the size of the smallest set that has the
    truly best one in it with 95 %; in_tied: whether the pick is in it. The second table lists these sets. Raises
    NasRetrainError for a limit that no class keeps.
    """
    rows, sets = [], []
    for limit in (*limits, np.inf):
        within = np.flatnonzero(classes["flops"] <= limit * 1e6)
        if not len(within):
            raise NasRetrainError(f"No cell is within {limit:g} million FLOPs: raise algorithms.flop_limits.")
        chosen = {side: within[classes[f"accuracy_{side}"].to_numpy()[within].argmax()] for side in SIDES}
        described = {side: classes.loc[place, DESCRIBED].to_dict() for side, place in chosen.items()}
        picks = pd.DataFrame([{"limit_mflops": limit, "chosen_by": side} | row for side, row in described.items()])
        places = np.array(list(chosen.values()))
        if truth is None:
            picks[[*_OF_THE_TRUTH]] = np.nan
        else:
            probability = np.bincount(within[truth[:, within].argmax(1)], minlength=len(classes)) / len(truth)
            order = np.argsort(-probability, kind="stable")
            tied = order[: np.searchsorted(probability[order].cumsum(), LEVEL - 1e-9) + 1]
            reached, behind = truth[:, places], truth[:, [chosen["retrained"]]] - truth[:, places]
            columns = (reached.mean(0), *middle(reached, 0), behind.mean(0), *middle(behind, 0), probability[places])
            picks[[*_OF_THE_TRUTH]] = np.column_stack([*columns, np.full(2, len(tied)), np.isin(places, tied)])
            members = classes.loc[tied, DESCRIBED].assign(probability_best=probability[tied])
            members["true_retrained"] = truth[:, tied].mean(0)
            members.insert(0, "limit_mflops", limit)
            sets.append(members)
        rows.append(picks)
    nothing = pd.DataFrame(columns=["limit_mflops", *DESCRIBED, "probability_best", "true_retrained"])
    return pd.concat(rows, ignore_index=True), pd.concat(sets, ignore_index=True) if sets else nothing


_OF_THE_TRUTH = (
    "true_retrained", "true_low", "true_high", "behind", "behind_low", "behind_high", "probability_best", "tied",
    "in_tied",
)  # fmt: skip
