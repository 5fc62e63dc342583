"""Is the rule right? Every rate of a grid for every network, and the best ones against those that rules predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas_retrain.plan.plan import recipe_trainings
from nas_retrain.plan.rate_search import finished_search
from nas_retrain.plan.study import Found, NothingYet, Records, Study
from nas_retrain.purpose import RateGrid
from nas_retrain.rate_policy import Grid
from nas_retrain.settings import Settings
from nas_retrain.theory.scaling import Initialisation
from nas_retrain.trainings.training import Training

if TYPE_CHECKING:
    import pandas as pd

    from nas_retrain.studies.rate_prediction.findings import Verification

FEWEST = 3
"""Networks that a correlation takes, beside the base network."""


@dataclass(frozen=True)
class Verified:
    """What was found, and how (facts). coordinates: see `coordinates.measure`; None where it was not measured."""

    verification: Verification
    coordinates: pd.DataFrame | None
    settings: Settings
    facts: dict[str, str]


def trainings(settings: Settings, found: Found) -> list[Training]:
    """The grids of every recipe that asks for them, on each network and on the base network, from whose best rate
    predictions start."""
    grids = {name: recipe for name, recipe in settings.recipes.items() if isinstance(recipe.rate_policy, Grid)}
    if not grids:
        return []
    searched = settings.model_copy(update={"recipes": grids})
    return recipe_trainings(searched, found.base_rate, found.rates, found.only)


def analyse(records: Records, settings: Settings) -> Verified | None:
    """Predicted against searched rates; None without recipes that ask for grids."""
    from nas_retrain.benches import registry
    from nas_retrain.data import batches
    from nas_retrain.execution.train import choose_device
    from nas_retrain.reports.document import facts, tell_stage
    from nas_retrain.studies.rate_prediction import coordinates, findings

    searches: dict[tuple[Initialisation, int], list[Training]] = {}
    for training in records.trainings:
        # What rules decide of layers is the scoreboard's to judge.
        if isinstance(training.purpose, RateGrid) and training.decided is None:
            searches.setdefault((training.initialisation, training.cell), []).append(training)
    if not searches:
        return None
    bench = registry.of(settings.bench)
    finished = [
        findings.Searched(initialisation, cell, found)
        for (initialisation, cell), tried in searches.items()
        if (found := finished_search(tried, records.stored)) is not None
    ]
    based = {one.initialisation for one in finished if one.cell == bench.base_cell}
    finished = [one for one in finished if one.initialisation in based]
    if len({one.cell for one in finished}) <= FEWEST:
        raise NothingYet(f"Nothing to compare yet: {FEWEST} networks and the base network must have been searched.")
    checked, signals = None, {}
    if any(True for _ in bench.sweeps(settings.bench)):
        tell_stage("The coordinate check: how far one step moves the outputs of networks of many shapes")
        data = batches.load(settings.dataset, settings.data_dir, choose_device(settings.launcher.device))
        checked = coordinates.measure(settings, data)
        signals = coordinates.signal_sizes(settings, data, ((one.initialisation, one.cell) for one in finished))
    stored = sum(training.key in records.stored for tried in searches.values() for training in tried)
    made_with = facts(settings) | {
        "records": f"{stored:,} of {settings.results_dir / 'runs.parquet'}",
        "network": f"width {settings.network.channels}, batch size {settings.training.batch_size}",
    }
    tell_stage(f"Predicted against searched rates, from {settings.analysis.bootstrap_draws:,} draws of the bootstrap")
    return Verified(findings.verify(finished, settings, bench, signals), checked, settings, made_with)


def write(found: Verified, folder: Path) -> list[str]:
    """Write the report in `folder` itself, or in verify below it where recipes are compared, whose report is there;
    returns its main findings and its path."""
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.studies.rate_prediction import report

    if not all(isinstance(recipe.rate_policy, Grid) for recipe in found.settings.recipes.values()):
        folder = folder / "verify"
    there = report.write(found.verification, found.coordinates, folder, found.settings, found.facts)
    return closing_lines(report.headline(found.verification, found.settings), there / "report.html")


STUDY = Study(trainings, analyse, write)
