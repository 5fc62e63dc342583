"""Which learning rates must be searched so that every rule can be judged.

A rate is best for a way to draw and to train layers. Rules that decide the same about layers, for every network, share
their searches; what they decide about a network's rate is judged on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from nas_retrain.benches import registry
from nas_retrain.plan.decisions import Decisions
from nas_retrain.plan.plan import chosen_cells
from nas_retrain.settings import RecipeSettings, RuleSettings, ScoreboardSettings, Settings

MEASURED = "measured"


@dataclass(frozen=True)
class Arms:
    """settings: with a recipe for each search. searched_by: the recipe whose searches judge a rule, by the rule's
    name. cells: the networks, without the base network."""

    settings: Settings
    searched_by: Mapping[str, str]
    cells: tuple[int, ...]


def arms(settings: Settings, wanted: ScoreboardSettings) -> Arms:
    """The searches that the rules of a scoreboard need. Raises NasRetrainError for a rule that cannot be used."""
    space, cells = registry.of(settings.bench), chosen_cells(settings)
    named = {f"grid_{number}": name for number, name in enumerate(wanted.rules)}
    recipes = {recipe: grid_recipe(wanted.rules[name], wanted) for recipe, name in named.items()}
    decisions = Decisions(settings.model_copy(update={"recipes": recipes}), cells)
    searches: dict[str, str] = {}
    searched_by = {}
    for recipe, name in named.items():
        decided = [decisions.of(recipe, cell) for cell in dict.fromkeys((space.base_cell, *cells))]
        layers = json.dumps([each.layers_as_plain() if each is not None else None for each in decided])
        searched_by[name] = searches.setdefault(layers, recipe)
    kept = {recipe: recipes[recipe] for recipe in dict.fromkeys(searches.values())}
    base = space.base.network_class
    others = tuple(cell for cell in cells if space.graph_at(cell).connected)
    return Arms(
        settings.model_copy(update={"recipes": kept}),
        searched_by,
        tuple(cell for cell in others if space.graph_at(cell).network_class != base),
    )


def grid_recipe(rule: RuleSettings, wanted: ScoreboardSettings) -> RecipeSettings:
    """The recipe that searches the rate of every network under a rule. What is still to be measured decides nothing
    about layers, so that it has one rate until then."""
    to_measure = rule.rule == MEASURED and "shares" not in rule.parameters
    return RecipeSettings(
        learning_rate="grid",
        initialisation=wanted.initialisation,
        in_degree="source",
        kernel_factor=False,
        rule="one_rate" if to_measure else rule.rule,
        rule_parameters={} if to_measure else rule.parameters,
    )
