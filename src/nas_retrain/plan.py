"""From settings to trainings: cells x recipes x seeds, one training per network class, less what is stored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_retrain import spaces
from nas_retrain.base_rate import BASE_RATE, GridSearch, finished_search
from nas_retrain.config import Settings, digest
from nas_retrain.errors import NasRetrainError
from nas_retrain.scaling import Initialisation, learning_rate_factor
from nas_retrain.seeds import expected_tau
from nas_retrain.store import RunKey, RunRecord, replacing


@dataclass(frozen=True)
class Training:
    """One training to do, with every choice of the recipe resolved to a number.

    cell: the official index of the network class's representative. learning_rate is None where no path leads from
    input to output: nothing is trained then. searched: whether that rate is one of a grid's.
    """

    bench: str
    dataset: str
    recipe: str
    cell: int
    arch: str
    network_class: int
    seed: int
    epochs: int
    learning_rate: float | None
    initialisation: Initialisation
    config_hash: str
    searched: bool = False

    @property
    def key(self) -> RunKey:
        """What its record will be found by."""
        return RunKey(self.bench, self.dataset, self.recipe, self.network_class, self.seed, self.config_hash)

    @property
    def slot(self) -> str:
        """Names the training among those of one results folder, whatever base rate a search will find."""
        rate = f"/{self.learning_rate}" if self.searched else ""
        return f"{self.recipe}/{self.network_class}/{self.seed}{rate}"

    @property
    def label(self) -> str:
        """A short name for messages and file names, unique among the trainings of one results folder."""
        return f"{self.recipe}-{self.network_class}-{self.seed}-{self.config_hash}"


def chosen_cells(settings: Settings) -> tuple[int, ...]:
    """The official indices that `cells` asks for, without repeats; `sample:n` gives class representatives.

    A sample is drawn among connected classes, since the disconnected one has nothing to train. Raises
    NasRetrainError for a form or index that does not exist.
    """
    wanted, space = settings.cells, spaces.of(settings.bench)
    if isinstance(wanted, tuple):
        if not wanted:
            raise NasRetrainError("cells=[] chooses no cell.")
        for index in wanted:
            space.arch_at(index)
        return tuple(dict.fromkeys(wanted))
    if wanted == "all":
        return tuple(range(space.size))
    first, colon, last = wanted.partition(":")
    if first == "sample" and last.isdecimal():
        return space.sample(int(last), settings.sample_seed)
    if colon and first.isdecimal() and last.isdecimal():
        if not 0 <= int(first) < int(last) <= space.size:
            raise NasRetrainError(f"cells={wanted} is out of range: a:b takes 0 <= a < b <= {space.size}.")
        return tuple(range(int(first), int(last)))
    raise NasRetrainError(f"cells={wanted!r} is none of: all, a list [0,5,6111], a range '0:100', sample:60.")


def needs_base_rate(settings: Settings) -> bool:
    """Whether some recipe follows the learning-rate rule while no base rate is recorded for the data set."""
    return settings.dataset.base_rate is None and any(
        recipe.learning_rate == "rule" for recipe in settings.recipes.values()
    )


def recipe_trainings(settings: Settings, base_rate: float | None) -> list[Training]:
    """Every training that the settings ask for, cell by cell.

    base_rate: of the learning-rate rule; may be None if no recipe follows it. Members of one network class share
    one training, named after the class's lowest index. Under the "target" convention, classes whose members are
    initialised differently are split (see `nas_bench_201.training_classes`). Where a recipe's rate is searched, the
    base network is trained too, since predictions start from its best rate.
    """
    trainings: list[Training] = []
    space = spaces.of(settings.bench)
    cells = list(chosen_cells(settings))
    if any(recipe.learning_rate == "grid" for recipe in settings.recipes.values()):
        cells.append(space.base_cell)
    done: set[tuple[str, int]] = set()
    for cell in cells:
        for recipe, chosen in settings.recipes.items():
            network_class = space.training_class(cell, chosen.drawn_as)
            if (recipe, network_class) in done:
                continue
            done.add((recipe, network_class))
            trainings += _class_trainings(settings, recipe, network_class, base_rate)
    return trainings


def _class_trainings(settings: Settings, name: str, network_class: int, base_rate: float | None) -> Iterable[Training]:
    recipe, space = settings.recipes[name], spaces.of(settings.bench)
    graph = space.graph_at(network_class)
    identity = settings.identity(name)
    learning_rate: float | None
    if recipe.learning_rate == "grid":
        return _grid(settings, name, network_class)
    if recipe.learning_rate == "rule":
        if base_rate is None:
            raise NasRetrainError(f"Recipe {name} follows the learning-rate rule and needs a base rate.")
        identity |= {"base_rate": base_rate}
        learning_rate = base_rate
        if graph.connected:
            learning_rate *= learning_rate_factor(
                graph,
                space.base,
                depth_offset=settings.bench.depth_offset,
                kernel_factor=recipe.kernel_factor,
                base_kernel_size=settings.bench.base_kernel_size,
            )
    else:
        learning_rate = recipe.learning_rate
    config_hash = digest(identity)
    return [
        Training(
            bench=settings.bench.name,
            dataset=settings.dataset.name,
            recipe=name,
            cell=network_class,
            arch=space.arch_at(network_class),
            network_class=network_class,
            seed=seed,
            epochs=settings.training.epochs,
            learning_rate=learning_rate if graph.connected else None,
            initialisation=recipe.drawn_as,
            config_hash=config_hash,
        )
        for seed in settings.seeds
    ]


def base_rate_trainings(settings: Settings) -> list[Training]:
    """The grid search's trainings: the base network at each rate of the grid with each seed (paper section 4)."""
    return _grid(settings, BASE_RATE, spaces.of(settings.bench).base_cell)


def _grid(settings: Settings, recipe: str, cell: int) -> list[Training]:
    """One network at each rate of the grid with each seed, as the base-rate search does or a recipe says; none for a
    disconnected cell."""
    search, space = settings.base_rate, spaces.of(settings.bench)
    if not space.graph_at(cell).connected:
        return []
    shared = settings.identity(next(iter(settings.recipes)))
    shared["training"] |= {"epochs": search.epochs}
    initialisation: Initialisation = search.in_degree
    how: dict[str, object] = {"in_degree": search.in_degree}
    if recipe != BASE_RATE:
        initialisation = settings.recipes[recipe].drawn_as
        how = {"initialisation": initialisation}
    return [
        Training(
            bench=settings.bench.name,
            dataset=settings.dataset.name,
            recipe=recipe,
            cell=cell,
            arch=space.arch_at(cell),
            network_class=cell,
            seed=seed,
            epochs=search.epochs,
            learning_rate=rate,
            initialisation=initialisation,
            config_hash=digest(shared | {"recipe": {"learning_rate": rate} | how}),
            searched=True,
        )
        for rate in search.grid
        for seed in search.seeds
    ]


@dataclass(frozen=True)
class Plan:
    """What the settings ask for and what of it is missing. While a search's outcome is unknown, `found` and
    `base_rate` are None and the recipes' trainings are planned with a rate of 1, for counting only."""

    search: list[Training]
    found: GridSearch | None
    base_rate: float | None
    recipes: list[Training]
    missing: list[Training]

    @property
    def searching(self) -> bool:
        """Whether the base rate must be searched first."""
        return bool(self.search) and self.found is None

    @property
    def done_slots(self) -> set[str]:
        """The slots of the trainings that are stored."""
        return {training.slot for training in self.search + self.recipes} - {training.slot for training in self.missing}


def make_plan(settings: Settings, stored: Sequence[RunRecord]) -> Plan:
    """Work out every training and which of them the store lacks."""
    search = base_rate_trainings(settings) if needs_base_rate(settings) else []
    found = finished_search(search, stored) if search else None
    rate = found.chosen.learning_rate if found else settings.dataset.base_rate
    recipes = recipe_trainings(settings, 1.0 if search and found is None else rate)
    if settings.enough_tau is not None:
        recipes = _deciding_seeds(recipes, stored, settings.seeds, settings.enough_tau)
    return Plan(search, found, rate, recipes, remaining(search + recipes, stored))


def _deciding_seeds(
    trainings: Sequence[Training], stored: Iterable[RunRecord], seeds: Sequence[int], enough_tau: float
) -> list[Training]:
    """The trainings without the seeds that their recipe does not need, or not yet: those after the first two are
    wanted one by one, as long as two trainings of everything would agree by less than `enough_tau`."""
    accuracies = {record.key: record.test_accuracy for record in stored}
    wanted: set[tuple[str, int]] = set()
    for recipe in dict.fromkeys(training.recipe for training in trainings):
        ours = [training for training in trainings if training.recipe == recipe]
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
    return [training for training in trainings if (training.recipe, training.seed) in wanted]


def groups(trainings: Sequence[Training], together: int) -> list[list[Training]]:
    """Cut trainings, in their order, into groups of one network class and budget, of at most `together` members.

    A disconnected cell's trainings have nothing to share and stay alone.
    """
    found: list[list[Training]] = []
    for training in trainings:
        last = found[-1][-1] if found else None
        if (
            last is not None
            and len(found[-1]) < together
            and training.learning_rate is not None
            and (training.network_class, training.epochs) == (last.network_class, last.epochs)
            and training.searched == last.searched
        ):
            found[-1].append(training)
        else:
            found.append([training])
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


def remaining(trainings: Iterable[Training], stored: Iterable[RunRecord]) -> list[Training]:
    """The trainings of which no record is stored."""
    done = {record.key for record in stored}
    return [training for training in trainings if training.key not in done]


def claim_results_folder(settings: Settings) -> None:
    """Make the results folder this configuration's own, or check that it is.

    What decides results is written to settings.json at the first run; recipes may be added later, and cells and
    seeds extended. Raises NasRetrainError naming each key that differs, or the path that cannot be written.
    """
    path = settings.results_dir / "settings.json"
    now = _deciding(settings)
    if path.exists():
        try:
            before: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise NasRetrainError(f"{path} cannot be read ({error}). Give another folder: results_dir=...") from error
        differences = [
            f"\n  {key}: {known} there, {_flat(now)[key]} now"
            for key, known in _flat(before).items()
            if key in _flat(now) and _flat(now)[key] != known
        ]
        if differences:
            raise NasRetrainError(
                f"{settings.results_dir} holds results made with other settings:{''.join(differences)}\n"
                "Use those settings again, or give these results a folder of their own: ARGS='results_dir=...'"
            )
        now["recipes"] = before.get("recipes", {}) | now["recipes"]
        if now == before:
            return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(now, indent=2) + "\n")


def _deciding(settings: Settings) -> dict[str, Any]:
    sections = ("bench", "dataset", "network", "training", "base_rate", "recipes")
    return settings.model_dump(mode="json", include=set(sections), exclude={"dataset": {"dry_train_subset"}})


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
