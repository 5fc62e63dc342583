"""Algorithms that are asked for one cell after another: a user's own, and Optuna's samplers.

A user's own is a function `search(space, generator)`, called once for each search, that returns a pair of functions:
`ask()` gives the official index of the cell to train next, and `tell(cell, accuracy)` hands back what the search sees,
in percent. `space` is an `algorithms.Space`, `generator` numpy's, to draw from. It is named as
package.module:function or folder/file.py:function. A sampler of Optuna's is named as optuna:TPESampler; it chooses an
operation for each edge.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import own_code
from nas_retrain.settings import AlgorithmsSettings
from nas_retrain.studies.search_algorithms.algorithms import Algorithm, Floats, Integers, Space

KEY = "algorithms.others"

Ask = Callable[[], int]
Tell = Callable[[int, float], None]
Search = Callable[[Space, np.random.Generator], tuple[Ask, Tell]]

OPTUNA = "optuna:"


def label(name: str) -> str:
    """What reports call the algorithm of this name."""
    return f"Optuna's {name.removeprefix(OPTUNA)}" if name.startswith(OPTUNA) else name.rpartition(":")[2]


def algorithm(name: str) -> Algorithm:
    """The algorithm of this name; raises NasRetrainError if there is none."""
    if name.startswith(OPTUNA):
        return asking(_optuna(name), name)
    return asking(own_code.load(name, KEY), name)


def asking(search: Search, name: str) -> Algorithm:
    """The algorithm that makes each search by asking `search`. What goes wrong in it is a NasRetrainError that tells
    its name."""

    def replay(seen: Floats, space: Space, settings: AlgorithmsSettings, generator: np.random.Generator) -> Integers:
        queries = np.empty((len(seen), settings.queries), dtype=np.int64)
        for row, values, stream in zip(queries, seen, generator.spawn(len(seen)), strict=True):
            try:
                ask, tell = search(space, stream)
                for step in range(len(row)):
                    row[step] = cell = _cell(ask(), space)
                    tell(cell, float(values[cell]))
            except Exception as error:
                raise NasRetrainError(f"{KEY}={name}: {type(error).__name__}: {error}") from error
        return queries

    return replay


LONG_HOURS = 0.1
"""Of an algorithm that takes longer it is told before it starts."""

_TRIED_SECONDS = 0.5
"""How long one search lasts that shows how fast an algorithm is."""


def hours_at_least(algorithm: Algorithm, space: Space, settings: AlgorithmsSettings, searches: int) -> float:
    """How many hours so many searches of an algorithm that is asked for one cell after another take at least.

    It is tried with one search of 1 training, 2, 4 and so on, until that lasts half a second or has as many as are
    asked for. The rest of them is taken to be as fast as the last that were tried; a Gaussian process slows down.
    """
    seen = np.random.default_rng(settings.seed).uniform(10, 90, (1, space.cells))

    def seconds(queries: int) -> float:
        short = settings.model_copy(update={"queries": queries})
        started = time.perf_counter()
        algorithm(seen, space, short, np.random.default_rng(settings.seed))
        return time.perf_counter() - started

    queries, took, each = 0, 0.0, 0.0
    while queries < settings.queries and (took < _TRIED_SECONDS or queries < 2):
        more = min(max(1, 2 * queries), settings.queries)
        longer = min(seconds(more), seconds(more))  # the first time may import a library
        queries, took, each = more, longer, max(longer - took, 0.0) / (more - queries)
    return searches * (took + each * (settings.queries - queries)) / 3600


def _cell(asked: object, space: Space) -> int:
    if not isinstance(asked, Integral) or not 0 <= int(asked) < space.cells:
        raise ValueError(f"ask() gave {asked!r}; an official index from 0 to {space.cells - 1:,} was expected")
    return int(asked)


def _optuna(name: str) -> Search:
    try:
        import optuna
    except ModuleNotFoundError:
        raise NasRetrainError(f"{KEY}={name} needs Optuna, which is not installed: pip install optuna.") from None
    wanted = name.removeprefix(OPTUNA)
    kind: Any = getattr(optuna.samplers, wanted, None)
    if not (isinstance(kind, type) and issubclass(kind, optuna.samplers.BaseSampler)):
        there = [one for one in optuna.samplers.__all__ if one.endswith("Sampler") and one != "BaseSampler"]
        raise NasRetrainError(f"{KEY}={name}: Optuna has no sampler {wanted}. It has {', '.join(there)}.")
    sampler: Any = kind  # Optuna's base class does not say that all of them take a seed
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def search(space: Space, generator: np.random.Generator) -> tuple[Ask, Tell]:
        choices = optuna.distributions.CategoricalDistribution(range(space.operations))
        edges: dict[str, Any] = {f"edge {edge}": choices for edge in range(space.edges)}
        study = optuna.create_study(direction="maximize", sampler=sampler(seed=int(generator.integers(2**31))))
        trials: list[Any] = []

        def ask() -> int:
            trials.append(study.ask(edges))
            return int(space.find(np.array([trials[-1].params[edge] for edge in edges])))

        def tell(_: int, accuracy: float) -> None:
            study.tell(trials[-1], accuracy)

        return ask, tell

    return search
