"""What was looked for after the hypotheses had been decided: which networks make the differences, and why.

None of it is a test, since what is looked at was chosen by what had been seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from nas_retrain.benches import registry
from nas_retrain.settings import Settings
from nas_retrain.statistics.rankings import Floats, Integers
from nas_retrain.statistics.response_surface import Curves, Estimate, Halves, Rules
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
        curves = Curves.of(surface.rates, surface.accuracy.mean(2))
        best = curves.logarithms[curves.accuracy.argmax(1)]
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
    of_all = _pearson_of_ranks(first[None], second[None])
    return Estimate(float(of_all[0]), _pearson_of_ranks(first[drawn], second[drawn]))


def _pearson_of_ranks(first: Floats, second: Floats) -> Floats:
    """By row, NaN where one side does not vary."""
    ranks = [rankdata(side, axis=1) for side in (first, second)]
    a, b = (side - side.mean(1, keepdims=True) for side in ranks)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    found: Floats = np.divide((a * b).sum(1), scale, out=np.full(len(scale), np.nan), where=scale > 0)
    return found


def initialisations(surfaces: Mapping[tuple[str, str], Surface], settings: Settings) -> pd.DataFrame:
    """What the paper's variances gain over PyTorch's on the surface where each has one rate for all, tuned on one half
    of the networks and judged on the other: a row for each normalisation, with networks and gain in points with ends.
    """
    rows = []
    for normalisation in dict.fromkeys(normalisation for normalisation, _ in surfaces):
        ours = {name: surface for (norm, name), surface in surfaces.items() if norm == normalisation}
        if len(ours) != 2 or len({tuple(surface.cells.tolist()) for surface in ours.values()}) != 1:
            continue
        random = np.random.default_rng(settings.analysis.seed)
        halves = Halves.drawn(len(ours["stock"].cells), design.asked_for(settings).draws, random)
        (other,) = (name for name in ours if name != "stock")
        levels = [
            Rules(Curves.of(ours[name].rates, ours[name].accuracy.mean(2)), halves).level(np.zeros(len(halves.first)))
            for name in (other, "stock")
        ]
        rows.append(
            {
                "normalisation": normalisation,
                "initialisation": other,
                "networks": len(halves.first),
                **(levels[0] - levels[1]).columns("gain"),
            }
        )
    return pd.DataFrame(rows)
