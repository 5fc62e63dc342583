"""What was looked for after the hypotheses had been decided: which networks make the differences, and why.

None of it is a test, since what is looked at was chosen by what had been seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nas_retrain.benches import registry
from nas_retrain.settings import Settings
from nas_retrain.statistics.rankings import Floats, Integers, rank_correlation
from nas_retrain.statistics.response_surface import Estimate
from nas_retrain.studies.rule_shape import design
from nas_retrain.studies.rule_shape.design import CONFIRMATION, ONE_RATE, PERMUTED, PLAIN_CONFIRMATION, RULE
from nas_retrain.studies.rule_shape.observed import Confirmed, Surface, highest_collapsed, mean_of


def edges_without_weights(settings: Settings, cells: Sequence[int]) -> Integers:
    """How many skips and poolings of each cell lie on a path from input to output."""
    space = registry.of(settings.bench)
    return np.array([sum(edge.operation.kind != "layer" for edge in space.graph_at(cell).live.edges) for cell in cells])


def by_edges(confirmed: Mapping[str, Confirmed], settings: Settings) -> pd.DataFrame:
    """The confirmation's differences by what cells are made of.

    A row for each part, initialisation, rival of the rule and number of edges without weights: networks, and difference
    in points with ends.
    """
    rows = []
    for part in (CONFIRMATION, PLAIN_CONFIRMATION):
        if part not in confirmed:
            continue
        of_part = confirmed[part]
        edges = edges_without_weights(settings, of_part.accuracy.index.tolist())
        for initialisation in design.confirmed(plain=part == PLAIN_CONFIRMATION):
            for rival in (ONE_RATE, PERMUTED):
                values = of_part.difference(RULE, rival, [initialisation])
                rows += [
                    {
                        "part": part,
                        "initialisation": initialisation,
                        "over": rival,
                        "edges": number,
                        "networks": int((edges == number).sum()),
                        **mean_of("difference", values[edges == number]),
                    }
                    for number in np.unique(edges).tolist()
                ]
    return pd.DataFrame(rows)


def correlations(surfaces: Mapping[tuple[str, str], Surface], settings: Settings) -> pd.DataFrame:
    """Whether networks that the rule gives a larger rate are those that a larger rate suits.

    A row for each normalisation, initialisation and what is compared (the rule's factor, the number of edges without
    weights): Spearman's correlation, with ends, with best_rate, at which a network's mean accuracy is best, and with
    largest_rate, the largest of the grid at which no training of the network collapsed. NaN where one side does not
    vary.
    """
    draws, rows = design.asked_for(settings).draws, []
    for (normalisation, initialisation), surface in surfaces.items():
        best = surface.curves.logarithms[surface.curves.accuracy.argmax(1)]
        collapsed = surface.accuracy.min(2) <= highest_collapsed(settings.dataset.classes)
        largest = np.where(collapsed, -1, np.arange(collapsed.shape[1])).max(1).astype(float)
        cells = surface.cells.tolist()
        random = np.random.default_rng(settings.analysis.seed)
        drawn = random.integers(0, len(cells), (draws, len(cells)))
        for name, values in (
            ("the rule's factor", design.log_factors(settings, cells)),
            ("edges without weights", edges_without_weights(settings, cells).astype(float)),
        ):
            rows.append(
                {
                    "normalisation": normalisation,
                    "initialisation": initialisation,
                    "compared": name,
                    "networks": len(cells),
                    **_spearman(values, best, drawn).columns("best_rate"),
                    **_spearman(values, largest, drawn).columns("largest_rate"),
                }
            )
    return pd.DataFrame(rows)


def _spearman(first: Floats, second: Floats, drawn: Integers) -> Estimate:
    """Spearman's correlation, and in resamples of networks, (draws, networks)."""
    return Estimate(float(rank_correlation(first, second)), rank_correlation(first[drawn], second[drawn]))


def initialisations(surfaces: Mapping[tuple[str, str], Surface], settings: Settings) -> pd.DataFrame:
    """What the paper's variances gain over PyTorch's on the surface where each has one rate for all, tuned on one half
    of the networks and judged on the other: a row for each normalisation, with networks and gain in points with ends.
    """
    rows = []
    for normalisation in dict.fromkeys(normalisation for normalisation, _ in surfaces):
        ours = {name: surface for (norm, name), surface in surfaces.items() if norm == normalisation}
        if len(ours) != 2 or len({tuple(surface.cells.tolist()) for surface in ours.values()}) != 1:
            continue
        (other,) = (name for name in ours if name != "stock")
        one_rate = np.zeros(len(ours[other].cells))
        papers, stock = (ours[name].rules(settings).level(one_rate) for name in (other, "stock"))
        rows.append(
            {
                "normalisation": normalisation,
                "initialisation": other,
                "networks": len(one_rate),
                **(papers - stock).columns("gain"),
            }
        )
    return pd.DataFrame(rows)
