"""Where a recipe's learning rates come from: one type for each policy, made from the settings in one place.

Every choice that depends on the policy is made by its type, here or with isinstance, and never by the word in a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.scaling import learning_rate_factor

Word = Literal["rule", "tuned", "own", "grid"]
"""What a recipe's file may say in place of a number."""


@dataclass(frozen=True)
class Fixed:
    """One rate for every network, given."""

    rate: float


@dataclass(frozen=True)
class ByRule:
    """The base rate times a factor that a rule gives each network's graph."""

    kernel_factor: bool

    def factor(self, graph: CellGraph, base: CellGraph, *, depth_offset: int, base_kernel_size: float) -> float:
        """The rate of a network over the base rate (see `learning_rate_factor`)."""
        return learning_rate_factor(
            graph,
            base,
            depth_offset=depth_offset,
            kernel_factor=self.kernel_factor,
            base_kernel_size=base_kernel_size,
        )


@dataclass(frozen=True)
class Listed:
    """A rate of each network, given in a table (see `plan.listed_rates`). checksum: SHA-256 of its file."""

    path: Path
    checksum: str


@dataclass(frozen=True)
class Tuned:
    """One rate for every network, the best of a grid on the base network."""


@dataclass(frozen=True)
class Own:
    """Each network's own best rate, of a grid and by its accuracy on validation images."""


@dataclass(frozen=True)
class Grid:
    """Every rate of a grid for every network: what is asked for is which one is best."""


RatePolicy = Fixed | Listed | ByRule | Tuned | Own | Grid


def rate_policy(learning_rate: float | str, *, kernel_factor: bool, checksum: str | None) -> RatePolicy:
    """The policy that a recipe's settings ask for. learning_rate: a number, a `Word`, or the path of a table, whose
    checksum is given too."""
    match learning_rate:
        case "rule":
            return ByRule(kernel_factor)
        case "tuned":
            return Tuned()
        case "own":
            return Own()
        case "grid":
            return Grid()
        case str() as path:
            assert checksum is not None
            return Listed(Path(path), checksum)
        case rate:
            return Fixed(rate)
