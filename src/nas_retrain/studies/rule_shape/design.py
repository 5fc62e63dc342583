"""The trainings of each stage, and the rates that the surface gives the later ones.

| part | networks | rates |
| --- | --- | --- |
| base_rate_<epochs> | the base network | a grid |
| surface | some | a grid |
| confirmation | others | one rate, the rule's, the rule's permuted, with the scalars that the surface gives |
| longer_<weight decay> | the first of these | one rate and the rule's, with the same scalars |
| plain_surface, plain_confirmation | the first of both | likewise, without BatchNorm |
| ladder_<pixels>_<channels> | the first of the surface's | a grid |
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from nas_retrain.benches import registry
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan.plan import has_constants, seeded_trainings
from nas_retrain.plan.study import Found
from nas_retrain.purpose import AS_SET, Setup, Trial
from nas_retrain.settings import GridSettings, RuleShapeSettings, Settings, SurfaceSettings, digest
from nas_retrain.statistics.accuracy_grid import best_places
from nas_retrain.statistics.rankings import Floats
from nas_retrain.statistics.response_surface import Curves
from nas_retrain.theory.scaling import Initialisation, learning_rate_factor
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Training

INITIALISATIONS: tuple[Initialisation, ...] = ("stock", "source")
"""PyTorch's and the paper's, as its experiments had it."""

PLAIN_INITIALISATIONS: tuple[Initialisation, ...] = ("stock", "target")
"""Without BatchNorm: PyTorch's and the one that the paper derives, with which the signal keeps its scale where all
edges have weights (eq. 3)."""

ONE_RATE, RULE, PERMUTED = "one_rate", "rule", "permuted"
ARMS = (ONE_RATE, RULE, PERMUTED)

SURFACE, CONFIRMATION = "surface", "confirmation"
PLAIN_SURFACE, PLAIN_CONFIRMATION = f"plain_{SURFACE}", f"plain_{CONFIRMATION}"
PLAIN = Setup(normalisation="none")

WAITING = 1.0
"""Stands for a rate that the surface has not given yet, for counting only."""


def initialisations(*, plain: bool) -> tuple[Initialisation, ...]:
    """Those of networks with BatchNorm, or plain ones."""
    return PLAIN_INITIALISATIONS if plain else INITIALISATIONS


def confirmed(*, plain: bool) -> tuple[Initialisation, ...]:
    """Those of the confirmation's networks: without BatchNorm only the derived one."""
    return PLAIN_INITIALISATIONS[1:] if plain else INITIALISATIONS


def asked_for(settings: Settings) -> RuleShapeSettings:
    """The study's settings, of a run that asks for it."""
    assert settings.rule_shape is not None
    return settings.rule_shape


@dataclass(frozen=True)
class Networks:
    """The network classes of the study; no network is in both parts."""

    surface: tuple[int, ...]
    confirmation: tuple[int, ...]


def networks(settings: Settings) -> Networks:
    """Those that are drawn at random with `sample_seed`."""
    shape = asked_for(settings)
    first = shape.surface.classes
    drawn = registry.of(settings.bench).sample(first + shape.confirmation.classes, settings.sample_seed)
    return Networks(drawn[:first], drawn[first:])


def log_factors(settings: Settings, cells: Sequence[int]) -> Floats:
    """The logarithms to base 2 of the factors that the paper's rule gives networks."""
    space = registry.of(settings.bench)
    return np.array(
        [
            math.log2(learning_rate_factor(space.graph_at(cell), space.base, depth_offset=settings.bench.depth_offset))
            for cell in cells
        ]
    )


@dataclass(frozen=True)
class Scalars:
    """What a surface says of the confirmation's rates, as logarithms to base 2: for each arm the geometric mean of the
    rates at which accuracy is best, and what to take off the logarithms of factors so that they are relative to it."""

    mean: Mapping[str, float]
    offset: float

    def rates(self, arm: str, factors: Floats) -> list[float]:
        """The rate of each network, given the logarithms of their factors, permuted where the arm is."""
        relative = np.zeros(len(factors)) if arm == ONE_RATE else factors - self.offset
        return [float(f"{2.0**value:.4g}") for value in self.mean[arm] + relative]


def scalars(curves: Curves, factors: Floats) -> Scalars:
    """Each arm's scalar, tuned on all networks of a surface.

    factors: the logarithms of the factors of the surface's networks. The permuted arm's scalar is best on average over
    all permutations.
    """
    means = {
        ONE_RATE: curves.accuracy.mean(0),
        RULE: curves.by_scalar(factors).mean(0),
        PERMUTED: curves.by_scalar_if_permuted(factors),
    }
    tuned = {arm: float(curves.logarithms[int(best_places(mean[None])[0])]) for arm, mean in means.items()}
    return Scalars(tuned, float(factors.mean()))


Rates = dict[tuple[Initialisation, str], dict[int, list[float]]]
"""Of each initialisation and arm, the rates of networks by seed."""


@dataclass(frozen=True)
class Place:
    """Where an arm of the confirmation lies on the grid that its scalar was tuned on.

    scalar: the geometric mean of its rates on the surface. lowest, highest: of its rates in the confirmation. below,
    above: octaves from the grid's ends to the scalar.
    outside_below, outside_above: the shares of the confirmation's rates beyond each end.
    """

    initialisation: Initialisation
    arm: str
    scalar: float
    lowest: float
    highest: float
    below: float
    above: float
    outside_below: float
    outside_above: float

    @property
    def outside(self) -> float:
        """The share of the confirmation's rates beyond the grid."""
        return self.outside_below + self.outside_above

    @property
    def nears_lowest(self) -> bool:
        """Whether the grid's lower end is the one beyond which more rates lie, or else the nearer one."""
        return (-self.outside_below, self.below) < (-self.outside_above, self.above)

    @classmethod
    def of(
        cls, initialisation: Initialisation, arm: str, scalar: float, grid: Sequence[float], rates: Sequence[float]
    ) -> Place:
        """From the logarithm of the scalar to base 2, the grid's rates and the confirmation's."""
        at, tolerance = np.asarray(rates), 1e-3  # rates are written with four digits
        outside = (at < grid[0] * (1 - tolerance)).mean(), (at > grid[-1] * (1 + tolerance)).mean()
        below, above = round(scalar - math.log2(grid[0]), 3), round(math.log2(grid[-1]) - scalar, 3)
        return cls(initialisation, arm, 2.0**scalar, min(rates), max(rates), below, above, *map(float, outside))


def permuted(values: Floats, seed: str) -> Floats:
    """The values handed to other networks at random, the same at each call."""
    order = list(range(len(values)))
    random.Random(seed).shuffle(order)
    return values[order]


class Design:
    """The trainings of all stages; the scalars of a surface are found in the runs that are stored."""

    def __init__(self, settings: Settings, stored: StoredRuns | None = None) -> None:
        self.settings, self.shape, self.networks = settings, asked_for(settings), networks(settings)
        self.stored = stored
        self._identity, self._hash = cache(self._identity_of), cache(self._hash_of)
        self.scalars, self.check_ends = cache(self._scalars_of), cache(self._check_ends)

    def wanted(self, *stages: str) -> bool:
        """Whether one of these stages is asked for."""
        return bool({*stages} & {*self.shape.stages})

    def surface(self, *, plain: bool, only: Sequence[Initialisation] | None = None) -> list[Training]:
        """The networks with BatchNorm or without at each rate, under some initialisations or all."""
        name, grid, setup = SURFACE, self.surface_grid(plain=plain), AS_SET
        if plain:
            name, setup = PLAIN_SURFACE, PLAIN
        cells = self.networks.surface[: grid.classes]
        wanted = initialisations(plain=plain) if only is None else only
        return self._grid(name, cells, grid, self.settings.training.epochs, setup, wanted)

    def surface_grid(self, *, plain: bool) -> SurfaceSettings:
        """Networks, rates and seeds of a surface."""
        return self.shape.plain if plain else self.shape.surface

    def searches(self) -> list[Training]:
        """Those of which later ones take their rates."""
        with_norm = self.surface(plain=False) if self.wanted("surface", "confirmation", "longer") else []
        return with_norm + (self.surface(plain=True) if self.wanted("plain") else [])

    def base_rate(self, epochs: int) -> list[Training]:
        """The base network at each rate, trained so long; its accuracies are of validation images."""
        cell = registry.of(self.settings.bench).base_cell
        return self._grid(f"base_rate_{epochs}", [cell], self.shape.base_rate, epochs, AS_SET, INITIALISATIONS)

    def ladder(self, image_size: int, channels: int) -> list[Training]:
        """Networks of one size at each rate."""
        grid, setup = self.shape.ladder, Setup(image_size=image_size, channels=channels)
        cells = self.networks.surface[: grid.classes]
        name = ladder_part(image_size, channels)
        return self._grid(name, cells, grid, self.settings.training.epochs, setup, INITIALISATIONS[:1])

    def confirmation(self, *, plain: bool) -> list[Training]:
        """All arms on other networks."""
        name, number, setup = CONFIRMATION, self.shape.confirmation.classes, AS_SET
        if plain:
            name, number, setup = PLAIN_CONFIRMATION, self.shape.plain.confirmation_classes, PLAIN
        self.check_ends(plain=plain)
        seeds, epochs = self.shape.confirmation.seeds, self.settings.training.epochs
        return list(self._arms(name, number, epochs, setup, self._rates(seeds, plain=plain)))

    def longer(self, weight_decay: float) -> list[Training]:
        """One rate and the rule, trained longer."""
        self.check_ends(plain=False)
        longer, setup = self.shape.longer, Setup(weight_decay=weight_decay)
        rates = self._rates(longer.seeds, plain=False)
        unpermuted = {arm: of_arm for arm, of_arm in rates.items() if arm[1] != PERMUTED}
        return list(self._arms(longer_part(weight_decay), longer.classes, longer.epochs, setup, unpermuted))

    def trainings(self) -> list[Training]:
        """All trainings of the stages that are asked for, beside `searches`."""
        shape, found = self.shape, list[Training]()
        if self.wanted("base_rate"):
            found += [training for epochs in shape.base_rate.epochs for training in self.base_rate(epochs)]
        if self.wanted("confirmation"):
            found += self.confirmation(plain=False)
        if self.wanted("longer"):
            found += [training for decay in shape.longer.weight_decays for training in self.longer(decay)]
        if self.wanted("plain"):
            found += self.confirmation(plain=True)
        if self.wanted("ladder"):
            found += [training for size in shape.ladder.sizes for training in self.ladder(*size)]
        return found

    def _scalars_of(self, initialisation: Initialisation, *, plain: bool) -> Scalars | None:
        """What the surface gives under an initialisation; None while any of its trainings is missing."""
        trainings, stored = self.surface(plain=plain, only=[initialisation]), self.stored
        if stored is None or any(training.key not in stored for training in trainings):
            return None
        rows = [stored.rows[training.key] for training in trainings]
        grid = self.surface_grid(plain=plain)
        accuracies = stored.column("test_accuracy")[rows].reshape(-1, grid.points, len(grid.seeds))
        cells = list(dict.fromkeys(training.cell for training in trainings))
        return scalars(Curves.of(np.array(grid.grid), accuracies.mean(2)), log_factors(self.settings, cells))

    def _rates(self, seeds: Sequence[int], *, plain: bool) -> Rates:
        """The rate of each of the confirmation's networks in each arm with each seed; every seed has a permutation of
        its own, so that no single one decides."""
        cells = self._confirmed(plain=plain)
        factors = log_factors(self.settings, cells)
        wrong = {seed: permuted(factors, f"{self.settings.analysis.seed}/{seed}") for seed in seeds}
        rates: Rates = {}
        for initialisation in confirmed(plain=plain):
            found = self.scalars(initialisation, plain=plain)
            for arm in ARMS:
                rates[initialisation, arm] = {
                    seed: found.rates(arm, wrong[seed] if arm == PERMUTED else factors)
                    if found
                    else [WAITING] * len(cells)
                    for seed in seeds
                }
        return rates

    def _confirmed(self, *, plain: bool) -> tuple[int, ...]:
        return self.networks.confirmation[: self.shape.plain.confirmation_classes if plain else None]

    def places(self, *, plain: bool) -> list[Place]:
        """Where the arms lie of which the surface gives the rates."""
        seeds, grid = self.shape.confirmation.seeds, self.surface_grid(plain=plain).grid
        rates, places = self._rates(seeds, plain=plain), []
        for initialisation in confirmed(plain=plain):
            if (found := self.scalars(initialisation, plain=plain)) is None:
                continue
            for arm in ARMS:
                of_arm = [rate for of_seed in rates[initialisation, arm].values() for rate in of_seed]
                places.append(Place.of(initialisation, arm, found.mean[arm], grid, of_arm))
        return places

    def _check_ends(self, *, plain: bool) -> None:
        """Raises NasRetrainError if an arm's rates cannot be read off the surface, since they are too near to an end of
        its grid."""
        ends, grid = self.shape.ends, self.surface_grid(plain=plain)
        for place in self.places(plain=plain):
            if min(place.below, place.above) >= ends.octaves and place.outside <= ends.outside:
                continue
            section, surface = ("plain", "surface without BatchNorm") if plain else ("surface", "surface")
            step = (grid.highest / grid.lowest) ** (1 / max(1, grid.points - 1))
            longer = {"lowest": grid.lowest / step**2, "highest": grid.highest * step**2}
            name = "lowest" if place.nears_lowest else "highest"
            raise NasRetrainError(
                f"The best scalar of {place.initialisation}_{place.arm} on the {surface} is {place.scalar:.4g}, and "
                f"{place.outside:.1%} of the confirmation's rates lie beyond the grid from {grid.lowest:g} to "
                f"{grid.highest:g}. A scalar must be {ends.octaves:g} octaves from both ends, and at most "
                f"{ends.outside:.1%} of rates beyond them. Make the grid longer by two rates: "
                f"rule_shape.{section}.{name}={longer[name]:.6g} rule_shape.{section}.points={grid.points + 2}."
            )

    def _grid(
        self,
        part: str,
        cells: Sequence[int],
        grid: GridSettings,
        epochs: int,
        setup: Setup,
        wanted: Sequence[Initialisation],
    ) -> list[Training]:
        found: list[Training] = []
        for cell in cells:
            for initialisation in wanted:
                trial = Trial(part, initialisation, validated=True, tries_rate=True, setup=setup)
                for rate in grid.grid:
                    found += self._trainings(trial, cell, grid.seeds, epochs, rate, initialisation)
        return found

    def _arms(
        self,
        part: str,
        number: int,
        epochs: int,
        setup: Setup,
        rates: Rates,
    ) -> Iterator[Training]:
        for place, cell in enumerate(self.networks.confirmation[:number]):
            for (initialisation, arm), of_arm in rates.items():
                trial = Trial(part, f"{initialisation}_{arm}", setup=setup)
                for seed, of_seed in of_arm.items():
                    yield from self._trainings(trial, cell, [seed], epochs, of_seed[place], initialisation)

    def _trainings(
        self, trial: Trial, cell: int, seeds: Sequence[int], epochs: int, rate: float, initialisation: Initialisation
    ) -> list[Training]:
        constants = has_constants(self.settings, cell)
        return seeded_trainings(
            seeds,
            self.settings,
            trial,
            cell,
            epochs=epochs,
            learning_rate=rate,
            initialisation=initialisation,
            config_hash=self._hash(trial.setup, trial.validated, epochs, rate, initialisation, constants),
        )

    def _hash_of(
        self, setup: Setup, validated: bool, epochs: int, rate: float, initialisation: Initialisation, constants: bool
    ) -> str:
        found = self._identity(setup, validated, epochs, constants)
        return digest(found | {"recipe": {"learning_rate": rate, "initialisation": initialisation}})

    def _identity_of(self, setup: Setup, validated: bool, epochs: int, constants: bool) -> dict[str, Any]:
        found = self.settings.under(setup).identity(next(iter(self.settings.recipes)))
        found["training"] |= {"epochs": epochs}
        if validated:
            found["validation_images"] = self.shape.validation_images
        return found | ({"constants": True} if constants else {})


def longer_part(weight_decay: float) -> str:
    """What the longer trainings with this weight decay are recorded as."""
    return f"longer_{weight_decay:g}"


def series(part: str) -> str:
    """What a part has in common with those that differ from it in one number, as the sizes of the ladder."""
    return next((name for name in ("base_rate", "longer", "ladder") if part.startswith(f"{name}_")), part)


def ladder_part(image_size: int, channels: int) -> str:
    """What the trainings of this size are recorded as."""
    return f"ladder_{image_size}_{channels}"


def _of(trainings: list[Training], only: Collection[int] | None) -> list[Training]:
    return trainings if only is None else [training for training in trainings if training.network_class in only]


def searches(settings: Settings, found: Found) -> list[Training]:
    """The surfaces, whose scalars the confirmation's rates are made with."""
    return [] if settings.rule_shape is None else _of(Design(settings).searches(), found.only)


def trainings(settings: Settings, found: Found) -> list[Training]:
    """The other trainings of every stage; rates that wait for a surface are 1."""
    return [] if settings.rule_shape is None else _of(Design(settings, found.stored).trainings(), found.only)
