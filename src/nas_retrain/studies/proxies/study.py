"""How the recipes of `retrained` stand for the long trainings of `original`. It asks for no training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nas_retrain.errors import NasRetrainError
from nas_retrain.plan.study import Judged, Records, Study, no_trainings
from nas_retrain.settings import Settings

if TYPE_CHECKING:
    from nas_retrain.studies.proxies.findings import Proxies


def analyse(records: Records, settings: Settings) -> Judged[Proxies]:  # noqa: ARG001 - the sources are those that are named
    """The recipes of `retrained` beside `original`. Raises NasRetrainError for a source that cannot be read, and if the
    two have too few networks in common."""
    from nas_retrain.reports.document import tell_stage
    from nas_retrain.studies.proxies import findings
    from nas_retrain.trainings.version import analysis_versions

    if settings.original is None or settings.retrained is None:
        raise NasRetrainError(
            "Proxies are cheap trainings beside long ones: give ORIGINAL=path of the long ones and "
            "RETRAINED=path of the cheap ones, such as results/reference/201/fashion_mnist/runs.parquet."
        )
    facts = {"original": str(settings.original), "retrained": str(settings.retrained)}
    tell_stage(f"How the recipes in {settings.retrained} rank the networks of {settings.original}")
    return Judged(findings.judge(settings), facts | {"versions": analysis_versions()})


def write(judged: Judged[Proxies], folder: Path) -> list[str]:
    """Write the report below proxies/<cheap>_for_<long>; returns its main findings and its path."""
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.studies.proxies import report

    found = judged.findings
    there = report.write(found, folder / "proxies" / f"{found.cheap}_for_{found.long}", judged.facts)
    return closing_lines(report.headline(found), there / "report.html")


STUDY = Study(no_trainings, analyse, write, by_command=True)
