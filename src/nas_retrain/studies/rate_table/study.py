"""Each network's own best rate in the table `original` of trainings at several rates. It asks for no training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nas_retrain.errors import NasRetrainError
from nas_retrain.plan.study import Judged, Records, Study, no_trainings
from nas_retrain.settings import Settings

if TYPE_CHECKING:
    from nas_retrain.studies.rate_table.findings import TableFindings


def analyse(records: Records, settings: Settings) -> Judged[TableFindings]:  # noqa: ARG001 - the table is the one that is named
    """The own rates in `original`. Raises NasRetrainError for a table that cannot be read, or has too little or nothing
    at the budget asked for."""
    from nas_retrain.benches import registry
    from nas_retrain.reports.document import tell_stage
    from nas_retrain.statistics import rate_tables
    from nas_retrain.studies.rate_table import findings
    from nas_retrain.trainings.version import analysis_versions

    if settings.original is None:
        raise NasRetrainError(
            "There is no table of trainings at several learning rates: give ORIGINAL=path (original=path), such as the "
            "folder of NAS-HPO-Bench-II."
        )
    chosen, asked = settings.analysis, settings.rate_table
    bench = registry.of(settings.bench)
    table = rate_tables.read(settings.original, settings.dataset.name, bench, chosen.column, chosen.recipe)
    tell_stage(f"Own rates of the networks in {table.name}")
    found = findings.judge(table, settings, bench)
    facts = {
        "table": str(settings.original),
        "budget": str(found.budget),
        "draws": f"{chosen.bootstrap_draws:,} of the bootstrap, {chosen.null_draws:,} of training again, "
        f"{asked.permutations:,} permutations, seed {chosen.seed}",
        "versions": analysis_versions(),
    }
    return Judged(found, facts)


def write(judged: Judged[TableFindings], folder: Path) -> list[str]:
    """Write the report below own_rates/<table>; returns its main findings and its path."""
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.studies.rate_table import report

    table = judged.findings.table
    there = report.write(judged.findings, folder / "own_rates" / table.name, judged.facts)
    return closing_lines((*table.notes, *report.headline(judged.findings)), there / "report.html")


STUDY = Study(no_trainings, analyse, write, by_command=True)
