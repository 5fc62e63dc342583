"""A plan in words, before anything starts: what is wanted, stored and to do, what it costs, what blocks it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nas_retrain.data import sources
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import slurm, tracking
from nas_retrain.execution.cost import Cost
from nas_retrain.execution.devices import Device
from nas_retrain.plan import plan
from nas_retrain.plan.plan import Plan
from nas_retrain.purpose import Trial
from nas_retrain.rate_policy import ByRule, Grid
from nas_retrain.settings import Settings, SlurmSettings
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Training


def wanted(made: Plan, settings: Settings) -> list[str]:
    """What the settings ask for and how much of it is stored."""
    cells = plan.chosen_cells(settings)
    classes = {training.network_class for training in made.recipes}
    if len(classes) > len(cells):
        chosen = f"{len(cells):,} and the base network"
    else:
        chosen = f"{len(cells):,} chosen, {len(classes):,} network classes"
    number, missing = len(made.everything), len(made.missing)
    searches = f" (with {len(made.search):,} that search learning rates)" if made.search else ""
    return [
        f"nas-retrain: {settings.bench.name} on {settings.dataset.name}, profile {settings.profile}",
        f"  results        {settings.results_dir}",
        f"  cells          {chosen}",
        f"  recipes        {', '.join(settings.recipes)}; {_seeds(settings)}",
        *_own_rules(made),
        f"  base rate      {_base_rate(made, settings)}",
        *_own_rates(made, settings),
        *_parts(made),
        f"  trainings      {number:,} wanted{searches}, {number - missing:,} stored, {missing:,} to do",
    ]


def _seeds(settings: Settings) -> str:
    search = settings.base_rate
    if all(isinstance(recipe.rate_policy, Grid) for recipe in settings.recipes.values()):
        return (
            f"{search.points} learning rates from {search.lowest:g} to {search.highest:g}, "
            f"{len(search.seeds)} seed(s), {search.epochs} epoch(s) each"
        )
    seeds = f"seeds {', '.join(map(str, settings.seeds))}"
    return f"{seeds}, as many as an expected tau of {settings.enough_tau} takes" if settings.enough_tau else seeds


def _own_rules(made: Plan) -> list[str]:
    """What rules of one's own decide for the networks of the plan, a line for each recipe with one."""
    lines = []
    for name in dict.fromkeys(training.recipe for training in made.recipes if training.rule and training.rule.own):
        by_class = {one.network_class: (one.rule, one.decided) for one in made.recipes if one.recipe == name}
        rule = next(rule for rule, _ in by_class.values() if rule is not None)
        decided = [each for _, each in by_class.values() if each is not None]
        parts = [f"learning rate times {_range(each.learning_rate for each in decided)}"]
        for kind in ("layer_rates", "variances", "multipliers"):
            if values := [value for each in decided for value in getattr(each, kind).values()]:
                parts.append(f"{kind.replace('_', ' ')} {_range(values)}")
        lines.append(f"  rule           {name}: {rule.name} (file {rule.checksum}): {', '.join(parts)}")
    return lines


def decided_otherwise(made: Plan, stored: StoredRuns) -> list[str]:
    """That a rule of one's own decided something else when stored trainings of the plan's networks were made, which are
    then to be made anew; a line for each recipe of which that is so."""
    planned: dict[str, dict[int, tuple[float, str]]] = {}
    for training in made.recipes:
        if training.rule and training.rule.own and training.decided:
            decided = training.decided.learning_rate, training.decided.layers_as_text()
            planned.setdefault(training.recipe, {})[training.network_class] = decided
    lines = []
    for name, of_class in planned.items():
        there = stored.only((stored.column("recipe") == name) & ~np.isnan(stored.column("rule_factor")))
        columns = (there.column(column) for column in ("network_class", "rule_factor", "rule_layers"))
        other = sum(of_class.get(cell, tuple(had)) != tuple(had) for cell, *had in zip(*columns, strict=True))
        if other:
            lines.append(f"  rule           {name}: {other:,} stored are of what it decided before; they stay")
    return lines


def _range(values: Iterable[float]) -> str:
    there = sorted(values)
    return f"{there[0]:.3g}" if there[0] == there[-1] else f"{there[0]:.3g} to {there[-1]:.3g}"


def _base_rate(made: Plan, settings: Settings) -> str:
    search = settings.base_rate
    if any(not training.validated for training in _searches_missing(made)):
        return (
            f"to be searched: {search.points} rates from {search.lowest:g} to {search.highest:g}, "
            f"{len(search.seeds)} seed(s), {search.epochs} epoch(s) on the base network"
        )
    if made.base_rate is None or not any(
        isinstance(recipe.rate_policy, ByRule) for recipe in settings.recipes.values()
    ):
        return "not needed"
    how = "searched here" if settings.dataset.base_rate is None else "recorded in the data set configuration"
    return f"{made.base_rate:.4g} ({how})"


def _searches_missing(made: Plan) -> list[Training]:
    """The trainings of searches that are still to do; those of a network's own rate are validated."""
    searches = {training.key for training in made.search}
    return [training for training in made.missing if training.key in searches]


def _own_rates(made: Plan, settings: Settings) -> list[str]:
    """What is still to be searched of the networks' own rates; nothing if there is nothing."""
    own = settings.own_rate
    networks = {training.network_class for training in _searches_missing(made) if training.validated}
    if own is None or not networks:
        return []
    return [
        f"  own rates      to be searched: {own.points} rates from {own.lowest:g} to {own.highest:g}, "
        f"{len(own.seeds)} seed(s), {settings.training.epochs} epoch(s) on each of {len(networks):,} network(s)"
    ]


def _parts(made: Plan) -> list[str]:
    """How many trainings each part of an experiment has; nothing if there is none."""
    parts = Counter(training.purpose.part for training in made.everything if isinstance(training.purpose, Trial))
    return [f"  parts          {', '.join(f'{part} {number:,}' for part, number in parts.items())}"] if parts else []


def cost_here(cost: Cost, workers: int) -> list[str]:
    """What the missing trainings cost on this machine."""
    if not cost.trainings:
        return []
    return [*_work(cost), f"  time           about {duration(cost.hours(workers))} with {workers} worker(s)"]


def _work(cost: Cost) -> list[str]:
    return [
        f"  work           {cost.epochs:,} epochs, {cost.images:,} images",
        f"  speed          {speeds(cost)}",
    ]


def speeds(cost: Cost) -> str:
    """The speed of the slowest and of the fastest network, and how it is known."""
    return f"{_rounded(cost.slowest)} to {_rounded(cost.fastest)} images/s a worker, from {cost.measured_on}"


def submission(
    units: Mapping[slurm.Purpose, Sequence[Sequence[Training]]],
    cost: Cost | None,
    largest_array: int,
    launcher: SlurmSettings,
    settings: Settings,
) -> list[str]:
    """What is to be submitted to SLURM and what it costs, in total and in time."""
    tasks = sum(map(len, units.values()))
    if not tasks:
        return []
    missing = [training for part in units.values() for unit in part for training in unit]
    arrays = sum(slurm.array_count(len(part), largest_array) for part in units.values())
    workers = slurm.task_workers(launcher)
    lines = [
        f"  to submit      {len(missing):,} trainings in {tasks:,} task(s) of {arrays} job array(s), at most "
        f"{launcher.parallelism} at once",
        f"  a task         {_task(launcher, workers)}",
        f"  files          some {3 * tasks + 10:,} in jobs/ until it is over, {tasks:,} in runs/",
    ]
    if cost is None:
        epochs = sum(training.epochs for training in missing if training.learning_rate is not None)
        return [
            *lines,
            f"  work           {epochs:,} epochs, {epochs * settings.dataset.images_per_epoch:,} images",
            "  cost           unknown until some trainings have run on a task's device (ARGS=cells=sample:20)",
        ]
    if not cost.trainings:
        return lines
    at_once = min(tasks, launcher.parallelism)
    hours = cost.hours(workers)
    charged = f"{duration(hours * launcher.gpus)} of GPUs" if launcher.gpus else f"{duration(hours)} of tasks"
    return [
        *lines,
        *_work(cost),
        f"  cost           about {charged}: {duration(hours / at_once)} with {at_once} task(s) at once",
    ]


def _task(launcher: SlurmSettings, workers: int) -> str:
    asked: dict[str, object] = {
        "partition": launcher.partition or "the site's",
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "gpus": launcher.gpus,
        "cpus": launcher.cpus or workers,
        "memory": f"{launcher.memory_gb:g} GB" if launcher.memory_gb else "the site's",
        "time": f"{launcher.time_hours:g} h",
        "workers": workers,
        **launcher.sbatch,
        "analysis on": launcher.analysis_partition,
    }
    return ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)


def too_long(hours: float, device: Device, settings: Settings) -> list[str]:
    """That a plan takes longer than this machine may work on it, and what to do."""
    if hours <= settings.launcher.max_hours:
        return []
    return [
        f"about {duration(hours)} on this machine ({device.name}) is more than launcher.max_hours="
        f"{settings.launcher.max_hours:g}: submit it to a cluster (LAUNCHER=slurm), choose less (PROFILE=dry, "
        "ARGS='cells=sample:100 seeds=[777]'), or insist with ARGS='launcher.max_hours=...'"
    ]


def missing_data(settings: Settings) -> list[str]:
    """That files of the data set are missing, and what to do."""
    missing = sources.missing_files(settings.dataset, settings.data_dir)
    if not missing:
        return []
    source = sources.source_of(settings.dataset)
    downloads = source.downloads(settings.data_dir)
    how = "they will be downloaded if the network allows" if downloads else source.remedy
    return [f"{settings.dataset.name} lacks {len(missing)} file(s), the first {missing[0]}: {how}"]


def untracked(settings: Settings) -> list[str]:
    """That the tracker cannot be used, and what to do."""
    try:
        tracking.check(settings)
    except NasRetrainError as error:
        return [str(error)]
    return []


def unwritable(folder: Path) -> list[str]:
    """That a results folder cannot be written, and what to do. Looking leaves nothing behind."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return []
    why = "is not a folder" if not there.is_dir() else "cannot be written by you"
    return [f"{there} {why}: mend that, or give another folder with ARGS='results_dir=...'"]


def _rounded(speed: float) -> str:
    return f"{float(f'{speed:.2g}'):,.0f}" if speed >= 1 else f"{speed:.2g}"


def duration(hours: float) -> str:
    """Hours as a person would say them."""
    if hours < 1:
        return f"{max(1.0, hours * 60):.0f} minute(s)"
    return f"{hours:.1f} hours" if hours < 100 else f"{hours:,.0f} hours"
