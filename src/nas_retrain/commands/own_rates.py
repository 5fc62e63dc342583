"""The stages on tables of trainings: own best learning rates, and cheap trainings as proxies of long ones."""

from __future__ import annotations

from functools import partial

from nas_retrain.benches import registry as spaces
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings

say = partial(print, flush=True)


def own_rates(settings: Settings) -> None:
    """Report on each network's own best rate in the table `original`, below own_rates/ in the results folder.

    Raises NasRetrainError for a table that cannot be read, or has too little or nothing at the budget asked for.
    """
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.statistics import rate_tables
    from nas_retrain.studies.comparison import stage as analysis
    from nas_retrain.studies.own_rates import table_findings, table_report

    if settings.original is None:
        raise NasRetrainError(
            "There is no table of trainings at several learning rates: give ORIGINAL=path (original=path), such as the "
            "folder of NAS-HPO-Bench-II."
        )
    chosen, asked = settings.analysis, settings.rate_table
    space = spaces.of(settings.bench)
    table = rate_tables.read(settings.original, settings.dataset.name, space, chosen.column, chosen.recipe)
    found = table_findings.judge(table, settings, space)
    facts = {
        "table": str(settings.original),
        "budget": str(found.budget),
        "draws": f"{chosen.bootstrap_draws:,} of the bootstrap, {chosen.null_draws:,} of training again, "
        f"{asked.permutations:,} permutations, seed {chosen.seed}",
        "versions": analysis.facts(settings)["versions"],
    }
    there = table_report.write(found, settings.results_dir / "own_rates" / table.name, facts)
    for line in closing_lines((*table.notes, *table_report.headline(found)), there / "report.html"):
        say(line)


def proxies(settings: Settings) -> None:
    """Report how well the recipes of `retrained` stand for the long trainings of `original`, below proxies/ in the
    results folder.

    Raises NasRetrainError for a source that cannot be read, and if the two have too few networks in common.
    """
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.studies.comparison import stage as analysis
    from nas_retrain.studies.proxies import findings, report

    if settings.original is None or settings.retrained is None:
        raise NasRetrainError(
            "Proxies are cheap trainings beside long ones: give ORIGINAL=path of the long ones and "
            "RETRAINED=path of the cheap ones, such as results/reference/201/fashion_mnist/runs.parquet."
        )
    found = findings.judge(settings)
    facts = {"original": str(settings.original), "retrained": str(settings.retrained)}
    facts |= {"versions": analysis.facts(settings)["versions"]}
    there = report.write(found, settings.results_dir / "proxies" / f"{found.cheap}_for_{found.long}", facts)
    for line in closing_lines(report.headline(found), there / "report.html"):
        say(line)
