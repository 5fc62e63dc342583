"""Retrain NAS benchmarks with architecture-aware hyperparameters and compare the rankings.

What `__all__` lists is public, beside the modules of `theory` and `statistics`. It is imported when it is first asked
for, so that importing the package needs neither torch nor pandas.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run with any Python
    raise ImportError(f"nas-retrain needs Python 3.11 or later, and this is {sys.version.split()[0]}.")

if TYPE_CHECKING:
    from nas_retrain.commands.command_line import compose
    from nas_retrain.errors import NasRetrainError
    from nas_retrain.own_network.tracing import Scaled, scale
    from nas_retrain.statistics.accuracies import Accuracies, read, read_csv, read_published, read_recipe
    from nas_retrain.statistics.noise import Ceiling, NoiseLevel, ceiling, noise_level
    from nas_retrain.statistics.rankings import Comparison, agreement, compare

__version__ = "0.2.0"

__all__ = [
    "Accuracies",
    "Ceiling",
    "Comparison",
    "NasRetrainError",
    "NoiseLevel",
    "Scaled",
    "agreement",
    "ceiling",
    "compare",
    "compose",
    "noise_level",
    "read",
    "read_csv",
    "read_published",
    "read_recipe",
    "scale",
]

_HOMES = {
    "commands.command_line": ("compose",),
    "errors": ("NasRetrainError",),
    "own_network.tracing": ("Scaled", "scale"),
    "statistics.accuracies": ("Accuracies", "read", "read_csv", "read_published", "read_recipe"),
    "statistics.noise": ("Ceiling", "NoiseLevel", "ceiling", "noise_level"),
    "statistics.rankings": ("Comparison", "agreement", "compare"),
}
"""The modules in which public names are defined."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute
    """A public name, imported from its module."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion shows: the public names."""
    return [*__all__, "__version__"]
