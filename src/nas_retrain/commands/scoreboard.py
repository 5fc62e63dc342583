"""Put every scaling rule through the same tests; run again to continue."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from nas_retrain.benches import registry
from nas_retrain.commands import composition
from nas_retrain.commands.command_line import given_to_make
from nas_retrain.commands.retrain import read_store, retrain_here, say
from nas_retrain.data import batches, sources
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan.claims import claimed_recipes
from nas_retrain.plan.plan import make_plan
from nas_retrain.plan.rate_search import finished_search
from nas_retrain.settings import ScoreboardSettings, Settings
from nas_retrain.studies.scoreboard.arms import Arms, arms, with_one_rate
from nas_retrain.studies.scoreboard.findings import Searches, judge_rules
from nas_retrain.trainings.training import Training

if TYPE_CHECKING:
    import pandas as pd


def scoreboard(settings: Settings) -> None:
    """Search learning rates in every part, judge all rules, and write one table and one figure.

    Each part is trained in a folder of its own below the results folder. Raises NasRetrainError for a rule that cannot
    be used for a network of any part, before anything is trained, and if trainings failed.
    """
    from nas_retrain.execution.train import choose_device
    from nas_retrain.reports.document import closing_lines, facts, tell_stage
    from nas_retrain.studies.scoreboard import report
    from nas_retrain.studies.scoreboard.first_step import measure_slopes

    if settings.scoreboard is None:
        raise NasRetrainError("scoreboard is null: its settings are in configs/scoreboard.yaml (make scoreboard).")
    wanted = with_one_rate(settings.scoreboard)
    parts = {part: _arms(settings, part, overrides, wanted) for part, overrides in wanted.parts.items()}
    judged: dict[str, pd.DataFrame] = {}
    slopes: dict[str, pd.DataFrame] = {}
    for part, found in parts.items():
        say(f"\n{part}: {' '.join(wanted.parts[part])}")
        retrain_here(found.settings, analyse=None)
        tell_stage(f"{part}: what each rule's rates come to, and with its factors in the wrong networks")
        judged[part] = judge_rules(found, finished_searches(found), wanted)
        bench = found.settings.bench
        if any(registry.of(bench).sweeps(bench)):
            tell_stage(f"{part}: how far the first step moves networks of many shapes under each rule")
            sources.fetch(found.settings.dataset, found.settings.data_dir)
            device = choose_device(found.settings.launcher.device)
            data = batches.load(found.settings.dataset, found.settings.data_dir, device)
            slopes[part] = measure_slopes(found.settings, data, wanted)
    made_with = facts(settings) | {
        "networks": f"{settings.cells} in each part",
        "search": f"{settings.base_rate.points} rates, seeds {', '.join(map(str, settings.base_rate.seeds))}",
    }
    there = report.write(judged, slopes, wanted, settings.results_dir, made_with)
    say("\n" + "\n".join(closing_lines(report.statements(judged), there / "report.html")))


def _arms(settings: Settings, part: str, overrides: tuple[str, ...], wanted: ScoreboardSettings) -> Arms:
    """What is to be searched in one part."""
    composed = _composed(settings, part, overrides)
    try:
        return arms(composed, wanted, claimed_recipes(composed))
    except NasRetrainError as error:
        said = str(error).rstrip(".")
        raise NasRetrainError(f"{said} (in part {part} of the scoreboard). Nothing was trained.") from error


def _composed(settings: Settings, part: str, overrides: tuple[str, ...]) -> Settings:
    """The settings of one part: those that the command line asks for, with what makes the part."""
    given = [*sys.argv[1:], *given_to_make(os.environ)]
    if named := [one for one in given if one.startswith("bench=")]:
        raise NasRetrainError(f"{named[0]}: make scoreboard runs the parts of scoreboard.parts, each with its bench.")
    composed = composition.from_command_line([*given, *overrides], "scoreboard")[0]
    return composed.model_copy(update={"results_dir": settings.results_dir / part})


def finished_searches(found: Arms) -> dict[str, Searches]:
    """The finished searches of each recipe."""
    stored = read_store(found.settings)
    made = make_plan(found.settings, stored)
    frame = stored.frame(training.key for training in made.recipes)
    shares = frame.groupby(["recipe", "cell"])["relative_gradient"].mean()
    by_cell: dict[tuple[str, int], list[Training]] = {}
    searches: dict[str, Searches] = {}
    for training in made.recipes:
        by_cell.setdefault((training.recipe, training.cell), []).append(training)
    for recipe in found.settings.recipes:
        grids = {
            cell: search
            for (name, cell), trainings in by_cell.items()
            if name == recipe and (search := finished_search(trainings, stored)) is not None
        }
        searches[recipe] = Searches(grids, shares[recipe].to_dict())
    wanted = {*found.cells, registry.of(found.settings.bench).base_cell}
    for recipe, of_recipe in searches.items():
        if missing := wanted - of_recipe.grids.keys():
            raise NasRetrainError(
                f"{found.settings.results_dir}: {recipe} lacks the searches of cells {sorted(missing)}."
            )
    return searches
