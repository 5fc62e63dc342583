"""Retrain NAS benchmarks with architecture-aware hyperparameters and compare the rankings.

`nas_retrain.scale` applies the same rules to a network of your own (see nas_retrain.own_network).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run with any Python
    raise ImportError(f"nas-retrain needs Python 3.11 or later, and this is {sys.version.split()[0]}.")

if TYPE_CHECKING:
    from nas_retrain.own_network.tracing import scale as scale

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute
    """`scale`, imported when it is first asked for: nothing else of this package's root needs torch."""
    if name == "scale":
        from nas_retrain.own_network.tracing import scale

        return scale
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
