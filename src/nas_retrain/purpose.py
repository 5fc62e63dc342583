"""What a training is for, as a value: a recipe, a variant of one, or one rate of a grid.

Records have a place for a name only, their column `recipe`. `recorded_as` is what stands there, and `is_search` reads
it where the settings that made a record are not at hand; nothing else takes these names apart.
"""

from __future__ import annotations

from dataclasses import dataclass

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


Purpose = Recipe | Variant | RateSearch | RateGrid


def is_search(recorded_as: str) -> bool:
    """Whether records under this name are those of a `RateSearch`, which no ranking is made of."""
    return recorded_as == BASE_RATE or recorded_as.endswith(SEARCH)
