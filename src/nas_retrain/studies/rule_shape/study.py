"""Does the shape of the learning-rate rule help? Stages of trainings, of which later ones take rates from earlier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nas_retrain.plan.study import Records, Study
from nas_retrain.settings import Settings
from nas_retrain.studies.rule_shape.design import searches, trainings

if TYPE_CHECKING:
    from nas_retrain.studies.rule_shape.findings import Findings


def analyse(records: Records, settings: Settings) -> Findings | None:
    """What the records of the study say; None if the settings do not ask for it."""
    if settings.rule_shape is None:
        return None
    from nas_retrain.studies.rule_shape import findings

    return findings.find_all(records, settings)


def write(found: Findings, folder: Path) -> list[str]:
    """Write the report below rule_shape; returns what is missing, what the hypotheses came to, and its path."""
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.studies.rule_shape import report

    path = report.write(found, folder)
    return closing_lines(report.headline(found), path)


STUDY = Study(trainings, analyse, write, searches=searches)
