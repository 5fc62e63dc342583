"""From settings to trainings: cells x recipes x seeds, one training per network class, less what is stored. Before them
the searches for learning rates, after them the trainings that tell what results depend on."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from nas_retrain.benches import registry
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import listed_rates
from nas_retrain.plan.decisions import Decisions
from nas_retrain.plan.rate_search import GridSearch, finished_search
from nas_retrain.plan.seeds import expected_tau
from nas_retrain.plan.study import Found, Rates, studies
from nas_retrain.purpose import Purpose, RateGrid, RateSearch, Recipe, Variant
from nas_retrain.rate_policy import ByRule, Fixed, Grid, Listed, Own, Tuned
from nas_retrain.settings import GridSettings, OwnRateSettings, RecipeSettings, Settings, digest
from nas_retrain.theory.rule import Parametrisation, RuleVersion
from nas_retrain.theory.scaling import Initialisation
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Slot, Training

_NUMBER = re.compile("[0-9]{1,18}")


def chosen_cells(settings: Settings) -> tuple[int, ...]:
    """The official indices that `cells` asks for, without repeats; `sample:n` gives class representatives.

    A sample is drawn among connected classes, since the disconnected one has nothing to train. Raises
    NasRetrainError for a form or index that does not exist.
    """
    wanted, bench = settings.cells, registry.of(settings.bench)
    if isinstance(wanted, tuple):
        if not wanted:
            raise NasRetrainError("cells=[] chooses no cell.")
        for index in wanted:
            bench.arch_at(index)
        return tuple(dict.fromkeys(wanted))
    if wanted == "all":
        return tuple(range(bench.size))
    first, colon, last = wanted.partition(":")
    if first == "sample" and _NUMBER.fullmatch(last):
        return bench.sample(int(last), settings.sample_seed)
    if colon and _NUMBER.fullmatch(first) and _NUMBER.fullmatch(last):
        if not 0 <= int(first) < int(last) <= bench.size:
            raise NasRetrainError(f"cells={wanted} is out of range: a:b takes 0 <= a < b <= {bench.size}.")
        return tuple(range(int(first), int(last)))
    raise NasRetrainError(f"cells={wanted!r} is none of: all, a list [0,5,6111], a range '0:100', sample:60.")


def needs_base_rate(settings: Settings) -> bool:
    """Whether some recipe follows the learning-rate rule while no base rate is recorded for the data set."""
    return settings.dataset.base_rate is None and any(
        isinstance(recipe.rate_policy, ByRule) for recipe in settings.recipes.values()
    )


def recipe_trainings(
    settings: Settings, base_rate: float | None, found: Rates | None = None, only: Collection[int] | None = None
) -> list[Training]:
    """Every training that the settings ask for, cell by cell, without searches and sensitivity.

    base_rate: of the learning-rate rule; may be None if no recipe follows it. found: the rates of recipes that search
    one. only: leave out other network classes. Members of one network class share one training, named after the
    class's lowest index. Under conventions by which members of a class are initialised differently, and under rules
    that decide differently for them, it is split (see `Bench.training_classes` and `Decisions`). Where grids
    are all that a recipe trains, the base network is trained too, since predictions start from its best rate.
    """
    trainings: list[Training] = []
    bench = registry.of(settings.bench)
    cells = list(chosen_cells(settings))
    if any(isinstance(recipe.rate_policy, Grid) for recipe in settings.recipes.values()):
        cells.append(bench.base_cell)
    own = set(_own_classes(settings))
    decisions = Decisions(settings, chosen_cells(settings))
    of_class = _class_trainings(settings, base_rate, found, decisions)
    done: set[tuple[str, int]] = set()
    for cell in cells:
        for name, recipe in settings.recipes.items():
            network_class = decisions.training_class(name, cell)
            if (name, network_class) in done or (only is not None and network_class not in only):
                continue
            done.add((name, network_class))
            if isinstance(recipe.rate_policy, Grid):
                trainings += _grid(
                    settings,
                    RateGrid(name),
                    network_class,
                    settings.base_rate,
                    settings.base_rate.epochs,
                    recipe.drawn_as,
                    decisions,
                )
            elif not isinstance(recipe.rate_policy, Own) or network_class in own:
                trainings += of_class(Recipe(name), network_class)
    return trainings


def sensitivity_trainings(
    settings: Settings, base_rate: float | None, found: Rates | None = None, only: Collection[int] | None = None
) -> list[Training]:
    """The trainings of `sensitivity`, none without it: its recipes on the first of the classes, with each other number
    of epochs, and with multiples of the base rate where they follow the rule."""
    wanted = settings.sensitivity
    if wanted is None:
        return []
    trainings: list[Training] = []
    of_class = _class_trainings(settings, base_rate, found, Decisions(settings, chosen_cells(settings)))
    for network_class in _first_classes(settings, wanted.classes):
        if only is not None and network_class not in only:
            continue
        for epochs in wanted.epochs:
            for name in wanted.recipes:
                trainings += of_class(Variant(name, epochs=epochs), network_class)
        for factor in wanted.base_rate_factors:
            for name in wanted.recipes:
                if isinstance(settings.recipes[name].rate_policy, ByRule):
                    trainings += of_class(Variant(name, base_rate_factor=factor), network_class)
    return trainings


def _first_classes(settings: Settings, number: int) -> list[int]:
    """That many connected network classes, in the order of `cells`; all if there are fewer."""
    bench = registry.of(settings.bench)
    classes = dict.fromkeys(bench.training_class(cell, "stock") for cell in chosen_cells(settings))
    return list(itertools.islice((cell for cell in classes if bench.graph_at(cell).connected), number))


def _training_class(bench: registry.Bench, recipe: RecipeSettings, cell: int) -> int:
    return bench.training_class(cell, recipe.drawn_as)


def _own_classes(settings: Settings) -> list[int]:
    return _first_classes(settings, settings.own_rate.classes) if settings.own_rate else []


def has_constants(settings: Settings, cell: int) -> bool:
    """Whether a network has parts that depend on no input (see `CellGraph.constants`)."""
    return bool(registry.of(settings.bench).graph_at(cell).constants)


def identity(
    settings: Settings,
    name: str,
    *,
    base_rate: float | None,
    learning_rate: float | None,
    constants: bool,
    epochs: int | None = None,
    decided: Parametrisation | None = None,
) -> dict[str, Any]:
    """Everything that decides what a recipe's training comes to, save the cell and the seed: its hash is config_hash.

    base_rate: of the rule, if the recipe follows it. learning_rate: what a search found, if the recipe searches.
    epochs: in place of training.epochs. constants: see `has_constants`. Version 0.1.0 trained networks without these
    parts, so an entry tells its records of such cells from those of the whole network; all others keep their hash.
    decided: by the recipe's rule, if it has one. The factor of a rate that is each network's own does not count.
    """
    found = settings.identity(name)
    match settings.recipes[name].rate_policy:
        case Fixed() | Listed():
            pass
        case ByRule():
            found |= {"base_rate": base_rate}
        case _:
            found |= {"rate": learning_rate}
    if epochs is not None:
        found["training"] |= {"epochs": epochs}
    if decided is not None:
        own = isinstance(settings.recipes[name].rate_policy, Own)
        found |= {"decided": decided.layers_as_plain() if own else decided.as_plain()}
    return found | _CONSTANTS if constants else found


_CONSTANTS = {"constants": True}


def _class_trainings(
    settings: Settings, base_rate: float | None, found: Rates | None, decisions: Decisions
) -> Callable[[Recipe | Variant, int], list[Training]]:
    """What makes trainings by these settings. It works out once what does not change from class to class: of a hundred
    thousand trainings, most share their hash with all of their recipe."""
    bench = registry.of(settings.bench)
    policies = {name: recipe.rate_policy for name, recipe in settings.recipes.items()}
    fresh_seeds = settings.own_rate.fresh_seeds if settings.own_rate else settings.seeds
    listed = {
        name: listed_rates.by_class(
            name, policy, bench, chosen_cells(settings), partial(_training_class, bench, settings.recipes[name])
        )
        for name, policy in policies.items()
        if isinstance(policy, Listed)
    }

    @cache
    def factor_of(policy: ByRule, network_class: int) -> float:
        return policy.factor(
            bench.graph_at(network_class),
            bench.base,
            depth_offset=settings.bench.depth_offset,
            base_kernel_size=settings.bench.base_kernel_size,
        )

    def learning_rate(name: str, network_class: int) -> float:
        decided = decisions.of(name, network_class)
        decided_factor = 1.0 if decided is None else decided.learning_rate
        match policies[name]:
            case Fixed(rate):
                return rate * decided_factor
            case Listed():
                return listed[name][network_class]
            case ByRule() as policy:
                assert base_rate is not None
                return base_rate * (factor_of(policy, network_class) if decided is None else decided_factor)
            case policy if found is None:
                raise NasRetrainError(f"Recipe {name} needs the learning rates that its search finds.")
            case Tuned():
                return found[RateSearch(name), bench.base_cell] * decided_factor
            case _:
                return found[RateSearch(name, validated=True), network_class]

    @cache
    def config_hash(
        name: str,
        base_rate: float | None,
        learning_rate: float | None,
        constants: bool,
        epochs: int | None,
        decided: Parametrisation | None,
    ) -> str:
        return digest(
            identity(
                settings,
                name,
                base_rate=base_rate,
                learning_rate=learning_rate,
                constants=constants,
                epochs=epochs,
                decided=decided,
            )
        )

    def of_class(purpose: Recipe | Variant, network_class: int) -> list[Training]:
        name, policy = purpose.recipe, policies[purpose.recipe]
        epochs, factor = None, 1.0
        if isinstance(purpose, Variant):
            epochs, factor = purpose.epochs, purpose.base_rate_factor
        if isinstance(policy, ByRule) and base_rate is None:
            raise NasRetrainError(f"Recipe {name} follows the learning-rate rule and needs a base rate.")
        rate = factor * learning_rate(name, network_class) if bench.graph_at(network_class).connected else None
        if rate is not None and not 0 < rate < math.inf:  # though the numbers that it is made of are
            rule = decisions.rule(name, network_class)
            which = f"rule {rule.name} for cell {bench.arch_at(network_class)}" if rule else f"Recipe {name}"
            raise NasRetrainError(f"{which}: the learning rate comes to {rate:g}; a positive, finite one belongs here.")
        made_with = config_hash(
            name,
            factor * base_rate if isinstance(policy, ByRule) and base_rate is not None else None,
            rate if isinstance(policy, Tuned | Own) else None,
            has_constants(settings, network_class),
            epochs,
            decisions.of(name, network_class),
        )
        return seeded_trainings(
            fresh_seeds if isinstance(policy, Own) else settings.seeds,
            settings,
            purpose,
            network_class,
            epochs=epochs or settings.training.epochs,
            learning_rate=rate,
            initialisation=settings.recipes[name].drawn_as,
            config_hash=made_with,
            decided=decisions.of(name, network_class),
            rule=decisions.rule(name, network_class),
        )

    return of_class


def search_trainings(settings: Settings, only: Collection[int] | None = None) -> list[Training]:
    """The trainings of all searches that recipes need: on the base network (paper section 4) at each rate of the grid
    with each seed, once for the rule and once for each recipe with one tuned rate; and of each network whose own rate
    is wanted."""
    base, own = settings.base_rate, settings.own_rate
    base_cell = registry.of(settings.bench).base_cell
    decisions = Decisions(settings, chosen_cells(settings))
    trainings = []
    if needs_base_rate(settings):
        trainings += _grid(settings, RateSearch(None), base_cell, base, base.epochs, base.in_degree, decisions)
    for name, recipe in settings.recipes.items():
        if isinstance(recipe.rate_policy, Tuned):
            trainings += _grid(settings, RateSearch(name), base_cell, base, base.epochs, recipe.drawn_as, decisions)
        if isinstance(recipe.rate_policy, Own) and own is not None:
            search = RateSearch(name, validated=True)
            for cell in _own_classes(settings):
                if only is None or cell in only:
                    epochs = settings.training.epochs
                    trainings += _grid(settings, search, cell, own, epochs, recipe.drawn_as, decisions)
    return trainings


def _grid(
    settings: Settings,
    purpose: RateSearch | RateGrid,
    cell: int,
    grid: GridSettings,
    epochs: int,
    initialisation: Initialisation,
    decisions: Decisions,
) -> list[Training]:
    """One network at each rate of a grid with each seed; none for a disconnected cell.

    What the rule of the recipe decided about the learning rate, if there is one, has no part in this.
    """
    bench = registry.of(settings.bench)
    if not bench.graph_at(cell).connected:
        return []
    shared = settings.identity(next(iter(settings.recipes)))
    shared["training"] |= {"epochs": epochs}
    if isinstance(grid, OwnRateSettings):
        shared["validation_images"] = grid.validation_images
    if has_constants(settings, cell):
        shared |= _CONSTANTS
    how: dict[str, Any] = {"in_degree" if purpose == RateSearch(None) else "initialisation": initialisation}
    name = purpose.recipe
    decided, rule = (None, None) if name is None else (decisions.of(name, cell), decisions.rule(name, cell))
    if decided is not None and (of_layers := decided.layers_as_plain()):
        how["decided"] = of_layers
    trainings: list[Training] = []
    for rate in grid.grid:
        trainings += seeded_trainings(
            grid.seeds,
            settings,
            purpose,
            cell,
            epochs=epochs,
            learning_rate=rate,
            initialisation=initialisation,
            config_hash=digest(shared | {"recipe": {"learning_rate": rate} | how}),
            decided=decided,
            rule=rule,
        )
    return trainings


def seeded_trainings(
    seeds: Sequence[int],
    settings: Settings,
    purpose: Purpose,
    cell: int,
    *,
    epochs: int,
    learning_rate: float | None,
    initialisation: Initialisation,
    config_hash: str,
    decided: Parametrisation | None = None,
    rule: RuleVersion | None = None,
) -> list[Training]:
    """A training of a network with each of these seeds.

    cell: stands for its network class. decided: by the recipe's rule, if it has one. rule: which one that is.
    """
    bench = registry.of(settings.bench)
    arch, seeded_as = bench.arch_at(cell), bench.training_class(cell, "stock")
    return [
        Training(
            bench=settings.bench.name,
            dataset=settings.dataset.name,
            purpose=purpose,
            cell=cell,
            arch=arch,
            network_class=cell,
            seed=seed,
            seeded_as=seeded_as,
            epochs=epochs,
            learning_rate=learning_rate,
            initialisation=initialisation,
            config_hash=config_hash,
            decided=decided,
            rule=rule,
        )
        for seed in seeds
    ]


@dataclass(frozen=True)
class Plan:
    """What the settings ask for and what of it is missing.

    search: the trainings of all searches. found: what those came to that are finished, by what they are for and their
    cell. Trainings that wait for others are planned with a rate of 1, for counting only.
    asked: what the studies ask for, in their order. groups: what to train together so that nothing is missing any more
    (see `groups_to_train`).
    """

    search: list[Training]
    found: dict[tuple[RateSearch, int], GridSearch]
    base_rate: float | None
    asked: list[Training]
    missing: list[Training]
    groups: list[list[Training]]

    @property
    def everything(self) -> list[Training]:
        """All trainings, in the order in which they are done."""
        return self.search + self.asked

    @property
    def recipes(self) -> list[Training]:
        """The trainings of the recipes as the settings give them."""
        return [training for training in self.asked if isinstance(training.purpose, Recipe | RateGrid)]

    @property
    def sensitivity(self) -> list[Training]:
        """The trainings of variants of recipes."""
        return [training for training in self.asked if isinstance(training.purpose, Variant)]

    @property
    def searching(self) -> bool:
        """Whether learning rates must be searched first."""
        searches = {training.key for training in self.search}
        return any(training.key in searches for training in self.missing)

    @property
    def done_slots(self) -> set[Slot]:
        """The slots of the trainings that are stored."""
        return {training.slot for training in self.everything} - {training.slot for training in self.missing}


def make_plan(settings: Settings, stored: StoredRuns, only: Collection[int] | None = None) -> Plan:
    """Work out every training and which of them the store lacks; only: of these network classes and the base network
    alone."""
    # How many seeds are enough depends on all networks: a part of them is then cut out at the end.
    planned = only if settings.enough_tau is None else None
    search = search_trainings(settings, planned)
    of_cell: dict[tuple[RateSearch, int], list[Training]] = {}
    for training in search:
        assert isinstance(training.purpose, RateSearch)
        of_cell.setdefault((training.purpose, training.cell), []).append(training)
    outcomes = {which: finished_search(trainings, stored) for which, trainings in of_cell.items()}
    found = {which: outcome for which, outcome in outcomes.items() if outcome is not None}
    rates = {which: found[which].chosen.learning_rate if which in found else 1.0 for which in outcomes}
    base = next((rate for (search, _), rate in rates.items() if search == RateSearch(None)), settings.dataset.base_rate)
    given = Found(base, rates, planned, stored)
    search += [training for study in studies().values() for training in study.searches(settings, given)]
    asked = _asked_for(settings, given)
    if settings.enough_tau is not None:
        asked = _deciding_seeds(asked, stored, settings.enough_tau)
        if only is not None:
            asked = [training for training in asked if training.network_class in only]
            search = [training for training in search if training.network_class in only]
    everything = search + asked
    return Plan(
        search,
        found,
        base,
        asked,
        remaining(everything, stored),
        groups_to_train(everything, stored, settings.launcher.together),
    )


def _asked_for(settings: Settings, found: Found) -> list[Training]:
    """What the studies ask for, each training once."""
    asked = itertools.chain.from_iterable(study.trainings(settings, found) for study in studies().values())
    return list({training.key: training for training in asked}.values())


def _deciding_seeds(trainings: Sequence[Training], stored: StoredRuns, enough_tau: float) -> list[Training]:
    """The trainings without the seeds that a recipe does not need, or not yet: those after the first two are
    wanted one by one, as long as two trainings of everything would agree by less than `enough_tau`."""
    accuracies = dict(zip(stored.rows, stored.column("test_accuracy").tolist(), strict=True))
    wanted: set[tuple[str, int]] = set()
    plain = [training for training in trainings if isinstance(training.purpose, Recipe)]
    for recipe in dict.fromkeys(training.recipe for training in plain):
        ours = [training for training in plain if training.recipe == recipe]
        seeds = list(dict.fromkeys(training.seed for training in ours))
        for number in range(min(2, len(seeds)), len(seeds) + 1):
            known = [
                [accuracies.get(training.key, math.nan) for training in ours if training.seed == seed]
                for seed in seeds[:number]
            ]
            table = np.array(known).T
            unfinished = bool(np.isnan(table).any())
            if unfinished or number == len(seeds) or (len(table) > 1 and expected_tau(table) >= enough_tau):
                wanted |= {(recipe, seed) for seed in seeds[:number]}
                break
    return [
        training
        for training in trainings
        if not isinstance(training.purpose, Recipe) or (training.recipe, training.seed) in wanted
    ]


def groups(trainings: Sequence[Training], together: int) -> list[list[Training]]:
    """Cut trainings, in their order, into groups of one network class, budget and setup, of at most `together` members.

    A disconnected cell's trainings have nothing to share and stay alone.
    """
    if together == 1:
        return [[training] for training in trainings]
    found: list[list[Training]] = []
    for training in trainings:
        last = found[-1][-1] if found else None
        if (
            last is not None
            and len(found[-1]) < together
            and training.learning_rate is not None
            and (training.network_class, training.epochs) == (last.network_class, last.epochs)
            and (training.tries_rate, training.validated) == (last.tries_rate, last.validated)
            and training.setup == last.setup
        ):
            found[-1].append(training)
        else:
            found.append([training])
    return found


def group_name(group: Sequence[Training]) -> str:
    """What tells a group from others; nothing for a training that is alone."""
    return "" if len(group) == 1 else digest({"labels": [training.label for training in group]})


def groups_to_train(trainings: Sequence[Training], stored: StoredRuns, together: int) -> list[list[Training]]:
    """The groups that give every training that is not stored.

    What a training comes to depends, in its last bits, on the others of its group. So where a part of a group was
    lost, the whole group is trained again; where it grew instead (by a recipe or a seed), only what is new.
    """
    names, rows = stored.column("group"), stored.rows
    found: list[list[Training]] = []
    for group in groups(trainings, together):
        missing = [training for training in group if training.key not in rows]
        if missing:
            trained = {names[rows[training.key]] for training in group if training.key in rows}
            found.append(group if trained == {group_name(group)} else missing)
    return found


def work_units(
    groups: Sequence[Sequence[Training]], size: Callable[[Training], float], largest: float
) -> list[list[Training]]:
    """Put whole groups, in their order, into units of a total size of at most `largest`; a larger one is a unit."""
    units: list[list[Training]] = []
    room = 0.0
    for group in groups:
        total = sum(map(size, group))
        if not units or total > room:
            units.append([])
            room = largest
        units[-1] += group
        room -= total
    return units


def remaining(trainings: Iterable[Training], stored: StoredRuns) -> list[Training]:
    """The trainings of which no record is stored."""
    rows = stored.rows
    return [training for training in trainings if training.key not in rows]
