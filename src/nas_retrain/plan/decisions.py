"""What the scaling rules of recipes decide for each network, and which cells are the same training under a rule."""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property

from nas_retrain.benches import registry
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Parametrisation, Peers, Rule, RuleVersion, find, layer_name

ASKED_TWICE = 3
"""For how many of its first cells a rule is asked twice, since one that answers otherwise each time makes a plan in
which nothing stored is ever found again."""


class Decisions:
    """The decisions of each recipe's rule, each worked out once.

    cells: those that the settings choose. Their connected network classes are what rules may set one against the
    others (`NetworkSize.peers`).
    """

    def __init__(self, settings: Settings, cells: tuple[int, ...]) -> None:
        self._settings, self._cells = settings, cells
        self._bench = registry.of(settings.bench)
        self._decided: dict[tuple[str, int], Parametrisation | None] = {}
        self._asked_twice: Counter[str] = Counter()

    def of(self, recipe: str, cell: int) -> Parametrisation | None:
        """What the recipe's rule decides for a cell; None for a recipe without a rule and a cell without a path.

        Raises NasRetrainError, naming the rule and the cell, if the rule cannot be found, decides what is impossible,
        or decides otherwise when it is asked again.
        """
        rule = self._rules.get(recipe)
        if rule is None:
            return None
        if (recipe, cell) not in self._decided:
            graph = registry.graph_of(cell, self._settings)
            self._decided[recipe, cell] = self._decide(recipe, rule, graph, cell) if graph.connected else None
        return self._decided[recipe, cell]

    def _decide(self, recipe: str, rule: Rule, graph: CellGraph, cell: int) -> Parametrisation:
        arguments = graph, self._size, self._bench.arch_at(cell)
        decided = rule.decide(*arguments)
        if self._asked_twice[recipe] < ASKED_TWICE:
            self._asked_twice[recipe] += 1
            if rule.decide(*arguments) != decided:
                raise NasRetrainError(
                    f"rule {rule.name} for cell {arguments[-1]}: it decided otherwise when it was asked again. Stored "
                    "trainings are found by what a rule decides, so it must decide the same each time: give whatever "
                    "it draws a fixed seed, and leave out the time and what was asked before."
                )
        return decided

    def rule(self, recipe: str, cell: int) -> RuleVersion | None:
        """Which rule decided what `of` tells; None where none did."""
        return None if self.of(recipe, cell) is None else self._rules[recipe].version

    def training_class(self, recipe: str, cell: int) -> int:
        """The cell whose training by the recipe stands for this one's.

        Members of one network class are one training, unless the rule decides for them what is not the same: it reads
        the graph as it is written, and may count a vertex or an edge that the network does not depend on.
        """
        network_class = self._bench.training_class(cell, self._settings.recipes[recipe].drawn_as)
        if self.of(recipe, cell) is None:
            return network_class
        wanted = self._formula(recipe, cell)
        members = self._bench.members(network_class)
        return next(member for member in members if self._formula(recipe, member) == wanted)

    def _formula(self, recipe: str, cell: int) -> str:
        """The network and all that was decided for it, equal for equal trainings."""
        decided, graph = self.of(recipe, cell), registry.graph_of(cell, self._settings)
        assert decided is not None  # members are connected or not together
        kinds = {}
        for edge in graph.layers + graph.constant_layers:
            values = [
                each.get(edge, default)
                for each, default in ((decided.variances, 0.0), (decided.layer_rates, 1.0), (decided.multipliers, 1.0))
            ]
            kinds[edge] = f"conv{edge.operation.kernel_size}{[f'{value:.9g}' for value in values]}"
        outside = [
            sorted((layer_name(layer), value) for layer, value in each.items() if isinstance(layer, str))
            for each in (decided.variances, decided.layer_rates)
        ]
        return f"{graph.formula(kinds)} {decided.learning_rate:.9g} {json.dumps(outside)}"

    @cached_property
    def _rules(self) -> dict[str, Rule]:
        return {
            name: find(recipe.rule, recipe.rule_parameters)
            for name, recipe in self._settings.recipes.items()
            if recipe.rule is not None
        }

    @cached_property
    def _size(self) -> NetworkSize:
        classes = dict.fromkeys(self._bench.training_class(cell, "stock") for cell in self._cells)
        graphs = [registry.graph_of(cell, self._settings) for cell in classes]
        peers: list[CellGraph] = [graph for graph in graphs if graph.connected]
        return registry.size_of(self._settings, Peers(tuple(peers)))
