"""One training to do, and the names that it goes by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from nas_retrain.purpose import AS_SET, Purpose, RateGrid, RateSearch, Setup, Trial, Variant
from nas_retrain.theory.rule import Parametrisation, RuleVersion
from nas_retrain.theory.scaling import Initialisation
from nas_retrain.trainings.store import RunKey


class Slot(NamedTuple):
    """Names a training among those of one results folder, whatever rates the searches will find; as a text it is
    "recipe/network_class/seed" or "recipe/network_class/seed/difference".

    recipe: what the training is recorded as. difference: the rate that is tried, or how a variant differs.
    """

    recipe: str
    network_class: int
    seed: int
    difference: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        """The slot that a text names; raises ValueError if it names none."""
        recipe, network_class, seed, *difference = text.split("/", 3)
        return cls(recipe, int(network_class), int(seed), *difference)

    def __str__(self) -> str:
        return "/".join(filter(None, map(str, self)))


@dataclass(frozen=True)
class Training:
    """One training to do, with every choice of the recipe resolved to a number.

    cell: the official index of the network class's representative. seeded_as: the network class whose generators it
    has, however it is initialised (see `seeding.generator_seed`). learning_rate is None where no path leads from input
    to output: nothing is trained then. decided: what the recipe's rule decided, if it has one; its factor of the
    learning rate is in learning_rate already, unless that is one of a search. rule: which one it was.
    """

    bench: str
    dataset: str
    purpose: Purpose
    cell: int
    arch: str
    network_class: int
    seed: int
    seeded_as: int
    epochs: int
    learning_rate: float | None
    initialisation: Initialisation
    config_hash: str
    decided: Parametrisation | None = None
    rule: RuleVersion | None = None

    @property
    def recipe(self) -> str:
        """What its record has as `recipe`."""
        return self.purpose.recorded_as

    @property
    def tries_rate(self) -> bool:
        """Whether its rate is one of a grid's, and so known before any search is over."""
        if isinstance(self.purpose, Trial):
            return self.purpose.tries_rate
        return isinstance(self.purpose, RateSearch | RateGrid)

    @property
    def validated(self) -> bool:
        """Whether accuracy and loss are measured on validation images instead of the test set (see
        `OwnRateSettings`)."""
        return isinstance(self.purpose, RateSearch | Trial) and self.purpose.validated

    @property
    def setup(self) -> Setup:
        """What it has otherwise than the settings say."""
        return self.purpose.setup if isinstance(self.purpose, Trial) else AS_SET

    @cached_property
    def key(self) -> RunKey:
        """What its record will be found by."""
        return RunKey(self.bench, self.dataset, self.recipe, self.network_class, self.seed, self.config_hash)

    @property
    def slot(self) -> Slot:
        """Its name for as long as searches are not over."""
        return Slot(self.recipe, self.network_class, self.seed, self._difference)

    @property
    def _difference(self) -> str:
        if self.tries_rate:
            return str(self.learning_rate)
        if not isinstance(self.purpose, Variant):
            return ""
        epochs, factor = self.purpose.epochs, self.purpose.base_rate_factor
        return f"epochs={epochs}" if epochs else f"base_rate*{factor:g}"

    @property
    def label(self) -> str:
        """A short name for messages and file names, unique among the trainings of one results folder."""
        return self.key.label
