"""Which learning rates must be searched so that every rule can be judged.

A rate is best for a way to draw and to train layers. Rules that decide the same about layers, for every network, share
their searches; what they decide about a network's rate is judged on them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas_retrain.benches import registry
from nas_retrain.plan.decisions import Decisions
from nas_retrain.plan.plan import chosen_cells
from nas_retrain.settings import RecipeSettings, RuleSettings, ScoreboardSettings, Settings

MEASURED = "measured"
ONE_RATE = "one_rate"


@dataclass(frozen=True)
class Arms:
    """settings: with a recipe for each search. searched_by: the recipe whose searches judge a rule, by the rule's
    name. cells: the networks, without the base network."""

    settings: Settings
    searched_by: Mapping[str, str]
    cells: tuple[int, ...]


def with_one_rate(wanted: ScoreboardSettings) -> ScoreboardSettings:
    """The same rules, and before them one rate for all networks if it is missing: all others are compared with it."""
    if any(rule.rule == ONE_RATE for rule in wanted.rules.values()):
        return wanted
    name = next(name for name in ("one rate", ONE_RATE, "one rate for all") if name not in wanted.rules)
    return wanted.model_copy(update={"rules": {name: RuleSettings(rule=ONE_RATE)} | wanted.rules})


def arms(settings: Settings, wanted: ScoreboardSettings, known: Mapping[str, Mapping[str, Any]] | None = None) -> Arms:
    """The searches that the rules of a scoreboard need. Raises NasRetrainError for a rule that cannot be used.

    known: the recipes that the results folder has (see `claimed_recipes`), whose names mean them and nothing else.
    """
    known = dict(known or {})
    space, cells = registry.of(settings.bench), chosen_cells(settings)
    recipes: dict[str, RecipeSettings] = {}
    named = {}
    for number, (name, rule) in enumerate(wanted.rules.items()):
        grids = grid_recipe(rule, wanted)
        named[name] = _name(grids, number, {had: one.identity for had, one in recipes.items()} | known)
        recipes[named[name]] = grids
    decisions = Decisions(settings.model_copy(update={"recipes": recipes}), cells)
    sharing: dict[str, list[str]] = {}
    for recipe in recipes:
        decided = [decisions.of(recipe, cell) for cell in dict.fromkeys((space.base_cell, *cells))]
        layers = json.dumps([each.layers_as_plain() if each is not None else None for each in decided])
        sharing.setdefault(layers, []).append(recipe)
    # The search of all that decide the same about layers is the one that there is already, or that of the first.
    chosen = {recipe: min(those, key=lambda one: one not in known) for those in sharing.values() for recipe in those}
    kept = {recipe: recipes[recipe] for recipe in dict.fromkeys(chosen.values())}
    base = space.base.network_class
    others = tuple(cell for cell in cells if space.graph_at(cell).connected)
    return Arms(
        settings.model_copy(update={"recipes": kept}),
        {name: chosen[recipe] for name, recipe in named.items()},
        tuple(cell for cell in others if space.graph_at(cell).network_class != base),
    )


def _name(recipe: RecipeSettings, number: int, known: Mapping[str, Mapping[str, Any]]) -> str:
    """The name under which a recipe is known, or a new one, with this number if that is free."""
    identity = recipe.identity
    new = (f"grid_{free}" for free in itertools.count(number) if f"grid_{free}" not in known)
    return next((name for name, one in known.items() if one == identity), next(new))


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
