"""The retraining itself: every recipe's trainings, and each recipe's ranking against the control's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nas_retrain.plan.plan import recipe_trainings
from nas_retrain.plan.study import Found, NothingYet, Records, Study
from nas_retrain.purpose import Recipe
from nas_retrain.rate_policy import Grid
from nas_retrain.settings import Settings
from nas_retrain.trainings.training import Training

if TYPE_CHECKING:
    from nas_retrain.studies.comparison.stage import Report


def trainings(settings: Settings, found: Found) -> list[Training]:
    """Each recipe on each network class with each seed, save recipes of which a whole grid of rates is asked for."""
    recipes = {name: one for name, one in settings.recipes.items() if not isinstance(one.rate_policy, Grid)}
    if not recipes:
        return []
    compared = settings.model_copy(update={"recipes": recipes})
    return recipe_trainings(compared, found.base_rate, found.rates, found.only)


def analyse(records: Records, settings: Settings) -> list[Report] | None:
    """The comparison of the control with each other recipe; None without recipes to compare."""
    from nas_retrain.studies.comparison import stage

    if all(isinstance(recipe.rate_policy, Grid) for recipe in settings.recipes.values()):
        return None
    found = stage.compare_recipes(settings, records.frame(Recipe))
    if not found:
        raise NothingYet(
            f"Nothing to compare yet: {settings.analysis.control} and another recipe need two cells in common."
        )
    return found


def write(reports: list[Report], folder: Path) -> list[str]:
    """Write each report in its place below `folder`; returns what the main one found, and the paths of all."""
    from nas_retrain.reports.document import closing_lines
    from nas_retrain.studies.comparison import report, stage

    said = []
    for one in sorted(reports, key=lambda one: not one.place):  # the main one last, where it is seen
        there = stage.write(one, folder)
        findings = [] if one.place and len(reports) > 1 else report.headline(one.findings)
        said += [f"{one.title}:", *closing_lines(findings, there / "report.html", there / "explore.html")]
    return said


STUDY = Study(trainings, analyse, write)
