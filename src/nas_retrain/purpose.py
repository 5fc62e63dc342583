"""What a training is for, as a value: a recipe, a variant of one, or one rate of a grid.

Records have a place for a name only, their column `recipe`. `recorded_as` is what stands there, and `is_search` reads
it where the settings that made a record are not at hand; nothing else takes these names apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BASE_RATE = "base_rate"
"""What the search for the base rate is recorded as, and the name of what it finds."""

SEARCH = "_search"
"""What follows a recipe's name where the search for its rate is recorded."""


@dataclass(frozen=True)
class Recipe:
    """To train a network by a recipe, as the settings give it."""

    recipe: str

    @property
    def recorded_as(self) -> str:
        """The recipe's name."""
        return self.recipe


@dataclass(frozen=True)
class Variant:
    """To train a network by a recipe with something else changed, to see what results depend on.

    epochs: in place of training.epochs; None: those. base_rate_factor: a multiple of the base rate that the
    learning-rate rule starts from.
    """

    recipe: str
    epochs: int | None = None
    base_rate_factor: float = 1.0

    @property
    def recorded_as(self) -> str:
        """The recipe's name; another config_hash tells its records from the recipe's own."""
        return self.recipe


@dataclass(frozen=True)
class RateSearch:
    """To try one rate of a grid, of which the best is then trained with.

    recipe: whose rate is searched; None: the base rate of the learning-rate rule. validated: whether the rates are
    compared by the accuracy on validation images (of each network), or by the training loss (of the base network).
    """

    recipe: str | None
    validated: bool = False

    @property
    def finds(self) -> str:
        """The name of the rate that it finds."""
        return BASE_RATE if self.recipe is None else self.recipe

    @property
    def recorded_as(self) -> str:
        """A name that no recipe has."""
        return BASE_RATE if self.recipe is None else self.recipe + SEARCH


@dataclass(frozen=True)
class RateGrid:
    """To try one rate of a grid, where the whole grid of a network is what is asked for."""

    recipe: str

    @property
    def recorded_as(self) -> str:
        """The recipe's name."""
        return self.recipe


@dataclass(frozen=True)
class Setup:
    """What a training has otherwise than the settings say; None: as they say.

    image_size: of the data set's images, in pixels. channels: of the network's first stage.
    """

    normalisation: Literal["batch", "none"] | None = None
    weight_decay: float | None = None
    image_size: int | None = None
    channels: int | None = None


AS_SET = Setup()


@dataclass(frozen=True)
class Trial:
    """To train a network in one arm of an experiment.

    part: of the experiment; all trainings of a part have one setup and one number of epochs. arm: what is compared
    within it. validated: whether accuracy and loss are measured on validation images instead of the test set.
    tries_rate: whether the rate is one of a grid's, and so known from the start.
    """

    part: str
    arm: str
    validated: bool = False
    tries_rate: bool = False
    setup: Setup = AS_SET

    @property
    def recorded_as(self) -> str:
        """Part and arm, which no recipe is named after."""
        return f"{self.part}.{self.arm}"


Purpose = Recipe | Variant | RateSearch | RateGrid | Trial


def is_search(recorded_as: str) -> bool:
    """Whether records under this name are those of a `RateSearch`, which no ranking is made of."""
    return recorded_as == BASE_RATE or recorded_as.endswith(SEARCH)
