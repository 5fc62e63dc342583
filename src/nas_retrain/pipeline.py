"""The stages that a user runs: retrain, plan, status and analyse. Each is safe to run again at any time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch

from nas_retrain import base_rate as base_rates
from nas_retrain import cost as costs
from nas_retrain import launch, plan, store
from nas_retrain.analysis import stage as analysis
from nas_retrain.config import Settings
from nas_retrain.data import sources
from nas_retrain.errors import NasRetrainError
from nas_retrain.plan import Training
from nas_retrain.store import RunRecord
from nas_retrain.training import choose_device, device_name

say: Callable[..., None] = partial(print, flush=True)


@dataclass(frozen=True)
class Plan:
    """What the settings ask for and what of it is missing. Rates of a search not yet done are unknown: `base_rate`
    is None and the recipes' trainings are then planned with a rate of 1, for counting only."""

    search: list[Training]
    base_rate: float | None
    recipes: list[Training]
    missing: list[Training]

    @property
    def searching(self) -> bool:
        """Whether the base rate must be searched first."""
        return bool(self.search) and self.base_rate is None


def make_plan(settings: Settings, stored: list[RunRecord]) -> Plan:
    """Work out every training and which of them the store lacks."""
    search = plan.base_rate_trainings(settings) if plan.needs_base_rate(settings) else []
    rate = settings.dataset.base_rate
    if search:
        finished = base_rates.finished_search(search, stored)
        rate = finished.chosen.learning_rate if finished else None
    recipes = plan.recipe_trainings(settings, rate if rate is not None or not search else 1.0)
    return Plan(search, rate, recipes, plan.remaining(search + recipes, stored))


def print_plan(settings: Settings) -> None:
    """Say what `retrain` would do, what it would cost and what stands in its way; starts and writes nothing."""
    device = choose_device(settings.launcher.device)
    stored = _read_store(settings)
    made = make_plan(settings, stored)
    cost = _describe(made, stored, settings, device)
    for obstacle in _obstacles(cost, settings, device):
        say(f"  in the way     {obstacle}")


def retrain(settings: Settings) -> None:
    """Plan, search the base rate if none is recorded, train what is missing, merge the records and analyse them.

    Raises NasRetrainError, before anything is written, if data are missing and cannot be downloaded or if the plan
    costs more than launcher.max_hours; afterwards, if trainings failed.
    """
    device = choose_device(settings.launcher.device)
    stored = _read_store(settings)
    made = make_plan(settings, stored)
    cost = _describe(made, stored, settings, device)
    if made.missing:
        obstacles = _obstacles(cost, settings, device)
        if obstacles and cost.hours > settings.launcher.max_hours:
            raise NasRetrainError("Nothing was started.\n" + "\n".join(f"  - {obstacle}" for obstacle in obstacles))
        sources.fetch(settings.dataset, settings.data_dir)
    with launch.exclusive(settings.results_dir):
        plan.claim_results_folder(settings)
        failed = _train_missing(made, settings)
        store.merge(settings.results_dir)
        stored = _read_store(settings)
        _analyse_recipes(make_plan(settings, stored), stored, settings)
    if failed:
        raise NasRetrainError(
            f"{len(failed)} training(s) failed; {launch.failure_log(settings)} has each error. The others are stored: "
            "run the same command again to try those that failed."
        )


def _train_missing(made: Plan, settings: Settings) -> list[Training]:
    """Do what is missing, in two steps if the base rate must be found first; returns the trainings that failed."""
    try:
        if made.searching:
            tally = launch.run_here(plan.remaining(made.search, _read_store(settings)), settings, "base rate")
            if tally.failed:
                return tally.failed
            made = make_plan(settings, _read_store(settings))
        if made.search:
            search = base_rates.finished_search(made.search, _read_store(settings))
            if search is None:
                raise AssertionError("every training of the base-rate search was recorded, yet it is not finished")
            _tell_search(search, settings)
            base_rates.write_search(search, settings.results_dir)
        missing = plan.remaining(made.recipes, _read_store(settings))
        if not missing:
            say("Nothing left to train.")
            return []
        return launch.run_here(missing, settings, "retraining").failed
    except KeyboardInterrupt:
        say("\nStopped. What is finished is stored; the same command continues from the last checkpoints.")
        raise


def _tell_search(search: base_rates.BaseRateSearch, settings: Settings) -> None:
    chosen = search.chosen
    say(f"Base rate {chosen.learning_rate:.4g} (training loss {chosen.mean_loss:.4f}).")
    if search.at_edge:
        say(
            f"WARNING: that is the edge of the grid {settings.base_rate.lowest} to {settings.base_rate.highest}; a "
            "better rate may lie outside. Widen base_rate.lowest or base_rate.highest in a new results folder."
        )


def _read_store(settings: Settings) -> list[RunRecord]:
    stored = store.read_runs(settings.results_dir)
    for problem in stored.problems:
        say(f"note: {problem}", file=sys.stderr)
    return stored.records


def _describe(made: Plan, stored: list[RunRecord], settings: Settings, device: torch.device) -> costs.Cost:
    """Print the plan and its cost, and return the cost of what is missing."""
    workers = launch.worker_count(settings, device)
    cells = plan.chosen_cells(settings)
    classes = {training.network_class for training in made.recipes}
    say(f"nas-retrain: {settings.bench.name} on {settings.dataset.name}, profile {settings.profile}")
    say(f"  results        {settings.results_dir}")
    say(f"  cells          {len(cells):,} chosen, {len(classes):,} network classes")
    say(f"  recipes        {', '.join(settings.recipes)}; seeds {', '.join(map(str, settings.seeds))}")
    say(f"  base rate      {_describe_base_rate(made, settings)}")
    wanted = len(made.search) + len(made.recipes)
    say(f"  trainings      {wanted:,} wanted, {wanted - len(made.missing):,} stored, {len(made.missing):,} to do")
    cost = costs.estimate(made.missing, stored, settings, device, workers)
    if cost.trainings:
        say(f"  work           {cost.epochs:,} epochs, {cost.images:,} images")
        say(
            f"  speed          {_rounded(cost.slowest)} to {_rounded(cost.fastest)} images/s a worker on "
            f"{device_name(device)}, from {cost.measured_on}"
        )
        say(f"  time           about {_duration(cost.hours)} with {workers} worker(s)")
    return cost


def _describe_base_rate(made: Plan, settings: Settings) -> str:
    search = settings.base_rate
    if made.searching:
        return (
            f"to be searched: {search.points} rates from {search.lowest:g} to {search.highest:g}, "
            f"{len(search.seeds)} seed(s), {search.epochs} epoch(s) on the base network"
        )
    if made.base_rate is None or all(recipe.learning_rate != "rule" for recipe in settings.recipes.values()):
        return "not needed"
    return f"{made.base_rate:.4g} ({'searched here' if made.search else 'recorded in the data set configuration'})"


def _obstacles(cost: costs.Cost, settings: Settings, device: torch.device) -> list[str]:
    """What keeps `retrain` from doing all of its plan here and now, each with its remedy."""
    found = []
    missing = sources.missing_files(settings.dataset, settings.data_dir)
    if missing and cost.trainings:
        source = sources.SOURCES[settings.dataset.name]
        how = "they will be downloaded if the network allows" if source.archive else source.remedy
        found.append(f"{settings.dataset.name} lacks {len(missing)} file(s), the first {missing[0]}: {how}")
    if cost.hours > settings.launcher.max_hours:
        found.append(
            f"about {_duration(cost.hours)} on this machine ({device_name(device)}) is more than "
            f"launcher.max_hours={settings.launcher.max_hours:g}: use a faster machine, choose less (PROFILE=dry, "
            "ARGS='cells=sample:100 seeds=[777]'), or insist with ARGS='launcher.max_hours=...'"
        )
    return found


def _rounded(speed: float) -> str:
    return f"{float(f'{speed:.2g}'):,.0f}" if speed >= 1 else f"{speed:.2g}"


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{max(1.0, hours * 60):.0f} minute(s)"
    return f"{hours:.1f} hours" if hours < 100 else f"{hours:,.0f} hours"


def analyse(settings: Settings) -> None:
    """Compare `original` with `retrained` if an original is given, else the recipes of this results folder.

    Raises NasRetrainError for a source that cannot be read, and if there is nothing to compare.
    """
    if settings.original is not None:
        say(f"{analysis.compare_sources(settings)}/report.md")
        return
    stored = _read_store(settings)
    if not stored:
        raise NasRetrainError(
            f"{settings.results_dir} holds no records to compare. Run make retrain first, or give ORIGINAL=path."
        )
    store.merge(settings.results_dir)
    _analyse_recipes(make_plan(settings, stored), stored, settings)


def _analyse_recipes(made: Plan, stored: list[RunRecord], settings: Settings) -> None:
    wanted = {training.key for training in made.recipes}
    records = [record for record in stored if record.key in wanted]
    counts = Counter(record.status for record in records)
    say(f"{settings.results_dir}/runs.parquet: " + ", ".join(f"{n:,} {status}" for status, n in counts.items()))
    folders = analysis.compare_recipes(settings, store.to_frame(records))
    for folder in folders:
        say(f"{folder}/report.md")
    if not folders:
        say(f"Nothing to compare yet: {settings.analysis.control} and another recipe need two cells in common.")


def status(settings: Settings) -> None:
    """Print, for each recipe, how many trainings are finished, diverged, disconnected, failed, begun and to do."""
    stored = _read_store(settings)
    made = make_plan(settings, stored)
    by_key = {record.key: record for record in stored}
    failures = launch.failed_keys(settings)
    rows = []
    names = ([plan.BASE_RATE] if made.search else []) + list(settings.recipes)
    for name in names:
        trainings = [training for training in made.search + made.recipes if training.recipe == name]
        outcomes = Counter(by_key[training.key].status for training in trainings if training.key in by_key)
        absent = [training for training in trainings if training.key not in by_key]
        rows.append(
            {
                "recipe": name,
                "wanted": len(trainings),
                "finished": outcomes["finished"],
                "diverged": outcomes["diverged"],
                "disconnected": outcomes["disconnected"],
                "checkpointed": sum(launch.checkpoint_path(training, settings).exists() for training in absent),
                "failed": sum(training.key in failures for training in absent),
                "to do": len(absent),
            }
        )
    say(f"{settings.results_dir} ({launch.holder(settings.results_dir) or 'no run is working on it'})")
    say(pd.DataFrame(rows).to_string(index=False))
    for training in made.missing:
        if training.key in failures:
            say(f"failed: {training.label}: {failures[training.key].strip().splitlines()[-1]}")
