"""Search algorithms replayed on two tables, which may be this folder's records. It asks for no training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nas_retrain.plan.study import Records, Study, no_trainings
from nas_retrain.settings import Settings

if TYPE_CHECKING:
    from nas_retrain.studies.search_algorithms.report import Replays


def analyse(records: Records, settings: Settings) -> Replays:  # noqa: ARG001 - the tables are those that are named
    """The algorithms on `original` and `retrained`; raises NasRetrainError for a source that it cannot use."""
    from nas_retrain.studies.comparison.stage import sources
    from nas_retrain.studies.search_algorithms import report

    original, retrained, _ = sources(settings)
    return report.find(original, retrained, settings.algorithms)


def write(found: Replays, folder: Path) -> list[str]:
    """Write the report below algorithms/<original>_to_<retrained>; returns its main findings and its path."""
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.studies.search_algorithms import report

    there = report.write(found, folder / "algorithms" / "_to_".join(found.names))
    return closing_lines(report.headline(found), there / "report.html")


STUDY = Study(no_trainings, analyse, write, by_command=True)
