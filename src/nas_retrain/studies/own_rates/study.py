"""Whose ranking is right, and what does it depend on? The recipes against the networks at their own best rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas_retrain.plan.plan import sensitivity_trainings
from nas_retrain.plan.study import Found, NothingYet, Records, Study
from nas_retrain.purpose import RateSearch, Recipe, Variant
from nas_retrain.settings import Settings
from nas_retrain.trainings.training import Training

if TYPE_CHECKING:
    import pandas as pd

    from nas_retrain.studies.own_rates.findings import OwnRates

FEWEST = 4
"""Networks that the rankings need in common."""


@dataclass(frozen=True)
class WhoseRanking:
    """What was found, and how (facts). varied: see `sensitivity.compare_variants`; None if nothing was varied."""

    own_rates: OwnRates
    varied: pd.DataFrame | None
    settings: Settings
    facts: dict[str, str]


def trainings(settings: Settings, found: Found) -> list[Training]:
    """The variants that tell what results depend on; own rates are those of a recipe, which the comparison trains."""
    return sensitivity_trainings(settings, found.base_rate, found.rates, found.only)


def analyse(records: Records, settings: Settings) -> WhoseRanking | None:
    """The recipes judged by the own rates; None without a recipe of own rates."""
    from nas_retrain.benches import registry
    from nas_retrain.reports.document import facts, tell_stage
    from nas_retrain.studies.own_rates import findings, sensitivity

    own, control = findings.own_recipe(settings), settings.analysis.control
    if own is None:
        return None
    bench, frame = registry.of(settings.bench), records.frame(Recipe, Variant, RateSearch)
    varying = frame["purpose"].map(lambda purpose: isinstance(purpose, Variant)).astype(bool)
    recipes = frame[~varying]
    both = recipes[recipes["recipe"].isin([own, control])].groupby("cell")["recipe"].nunique()
    if (both > 1).sum() < FEWEST:
        raise NothingYet(f"Nothing to judge yet: {own} and {control} need {FEWEST} cells in common.")
    varied = None
    if settings.sensitivity is not None and varying.any():
        varied = sensitivity.compare_variants(
            frame, settings.sensitivity.recipes, settings.training.epochs, settings.analysis, bench
        )
    dataset = settings.dataset
    made_with = facts(settings) | {
        "records": f"{len(frame):,} of {settings.results_dir / 'runs.parquet'}",
        "epochs": str(settings.training.epochs),
        "network": f"{settings.network.channels} channels, {settings.network.cells_per_stage} cell(s) a stage",
        "images": f"{dataset.images_per_epoch:,} of {dataset.image_size} x {dataset.image_size} pixels, batches of "
        f"{settings.training.batch_size}",
    }
    tell_stage("Whose ranking is right: the recipes against networks at their own rates")
    judged = findings.judge(recipes, own, settings, bench)
    return WhoseRanking(judged, varied, settings, made_with)


def write(found: WhoseRanking, folder: Path) -> list[str]:
    """Write the report below whose_ranking; returns its main findings and its path."""
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.studies.own_rates import report

    there = report.write(found.own_rates, found.varied, folder, found.settings, found.facts)
    return closing_lines(report.headline(found.own_rates), there / "report.html")


STUDY = Study(trainings, analyse, write)
