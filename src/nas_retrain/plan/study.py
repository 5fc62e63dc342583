"""A study: the trainings that it asks for, what it finds in their records, and the report that it writes.

A study is a module or a folder of `nas_retrain.studies` with one line, `STUDY = Study(...)`. It is found by that line:
a plan has the trainings of all studies, and once they are done each looks at the records. So what a study looks at
need not be what it asked for: one that asks for nothing can count what the others made.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nas_retrain.purpose import Purpose, RateSearch
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import RunKey, StoredRuns
from nas_retrain.trainings.training import Training

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "nas_retrain.studies"
"""Where studies lie. It stands above this room, which knows of it no more than this name."""

Rates = Mapping[tuple[RateSearch, int], float]
"""The rates that searches found, by search and the cell that it trained."""


@dataclass(frozen=True)
class Found:
    """What the searches for learning rates came to; while they are not over, 1 stands for a rate, for counting only.

    base_rate: of the learning-rate rule; None if no recipe follows it. only: the network classes to plan trainings of;
    None: of all. stored: all records, for rates that a study finds itself (see `Study.searches`).
    """

    base_rate: float | None
    rates: Rates
    only: Collection[int] | None = None
    stored: StoredRuns | None = None


@dataclass(frozen=True)
class Records:
    """The trainings of a plan and the records that are stored, of them and of others."""

    trainings: Sequence[Training]
    stored: StoredRuns

    def frame(self, *purposes: type[Purpose]) -> pd.DataFrame:
        """The records of the plan's trainings for these purposes, all without any: a row each, with the fields of
        `RunRecord` and `purpose`."""
        import pandas as pd

        of_key = {
            training.key: training.purpose
            for training in self.trainings
            if not purposes or isinstance(training.purpose, purposes)
        }
        frame = self.stored.frame(of_key)
        keys = frame[list(RunKey._fields)].itertuples(index=False, name=None)
        return frame.assign(purpose=pd.Series([of_key[RunKey(*key)] for key in keys], frame.index, dtype=object))


Findings = TypeVar("Findings")


@dataclass(frozen=True)
class Judged(Generic[Findings]):
    """What a study found, and how: the facts, by name, of which its report ends with a list."""

    findings: Findings
    facts: dict[str, str]


class NothingYet(Exception):  # noqa: N818 - it is no error
    """A study has too few records to find anything in; its text says how many it takes."""


@dataclass(frozen=True)
class Study:
    """A study, as three functions.

    trainings: what it asks for, given the settings and what the searches for learning rates found. Two studies may ask
    for the same training.
    analyse: what it finds in the records; None if the settings do not ask for this study. May raise NothingYet, and
    NasRetrainError for what a user can mend.
    write: write reports, tables and figures of what was found below the results folder; returns what to tell at the
    end: the main findings in two or three sentences, and the files to open (see `reports.document.closing_lines`).
    by_command: whether it looks at records only if its own command is given, and not whenever trainings are done.
    searches: those of its trainings that decide the rates of others of them. They are done first; while they are not
    all stored, `trainings` may have 1 in the place of a rate.
    """

    trainings: Callable[[Settings, Found], list[Training]]
    analyse: Callable[[Records, Settings], Any]
    write: Callable[[Any, Path], list[str]]
    by_command: bool = False
    searches: Callable[[Settings, Found], list[Training]] = lambda _settings, _found: []


def no_trainings(settings: Settings, found: Found) -> list[Training]:  # noqa: ARG001 - as every study is asked
    """None: for a study of what others asked for, or of tables that lie elsewhere."""
    return []


@cache
def studies() -> dict[str, Study]:
    """Every study by the name of its module or folder, in the order of these names."""
    package = importlib.import_module(PACKAGE)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in names}
    return {name: module.STUDY for name, module in modules.items() if hasattr(module, "STUDY")}
