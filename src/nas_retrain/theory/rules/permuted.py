"""Another rule's rates handed to the wrong networks: the null that a rule for single networks must be better than."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Parametrisation, Peers, find


def rule(
    graph: CellGraph,
    size: NetworkSize,
    *,
    of: str = "paper",
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Parametrisation:
    """All that the rule `of` decides, but each network gets the learning-rate factor of another network.

    The networks are `NetworkSize.peers`: the connected network classes of the plan. A permutation of them is drawn from
    `seed` alone, whatever their order: each one has one other's factor, so that the factors are the same as a whole. If
    the true factors do no better, the rule's spread and mean are all that counts. The base network, where it is none of
    them, keeps its own. parameters: of the rule `of`.

    Limits: with other networks in the plan, it is another permutation. Rates of single layers, variances and
    multipliers belong to the layers of a graph and stay.
    """
    partners = {size.base.network_class: graph} | _permutation(size.peers, seed)
    formula = graph.network_class
    if formula not in partners:
        raise NasRetrainError("it is none of the networks among which factors are permuted")
    permuted = find(of, parameters)
    own, other = permuted.decide(graph, size, formula), partners[formula]
    factor = permuted.decide(other, size, other.network_class).learning_rate
    return Parametrisation(factor, own.layer_rates, own.variances, own.multipliers)


@lru_cache(maxsize=16)
def _permutation(peers: Peers, seed: int) -> dict[str, CellGraph]:
    """For each network, by its formula, the one whose factor it has."""
    by_formula = {graph.network_class: graph for graph in peers.graphs}
    formulas = sorted(by_formula)
    shuffled = random.Random(seed).sample(formulas, len(formulas))
    return {formula: by_formula[other] for formula, other in zip(formulas, shuffled, strict=True)}
