"""Where a retraining stands, from the store and from SLURM's queue."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Container
from pathlib import Path

import pandas as pd

from nas_retrain import cost as costs
from nas_retrain import describe, devices, launch, slurm
from nas_retrain.config import Settings, SlurmSettings, is_search
from nas_retrain.errors import NasRetrainError
from nas_retrain.failures import read_failures
from nas_retrain.pipeline import read_store, say
from nas_retrain.plan import Plan, make_plan
from nas_retrain.slurm import Task
from nas_retrain.store import RunKey, StoredRuns, read_runs

LOGS_SHOWN = 3
LOG_LINES_SHOWN = 6


def status(settings: Settings) -> None:
    """Print, for each recipe, how many trainings are done, on their way, failed and to do; the speed, the time left,
    and why trainings and tasks failed. Data sets in the folders beside this one are counted too."""
    folder = settings.results_dir
    tasks = slurm.tasks_on_their_way(folder)
    on_their_way = slurm.slots_on_their_way(folder, tasks)
    stored = read_store(settings)
    made = make_plan(settings, stored)
    failures, unread = read_failures(folder)
    for problem in unread:
        say(f"note: {problem}", file=sys.stderr)
    rows = _rows(made, stored, on_their_way, failures, settings)
    for other in sorted(folder.parent.glob("*/settings.json")):
        if other.parent != folder:
            rows += _rows_beside(other.parent)
    say(pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="{:.0f}".format))
    say(f"{folder}: {_who_works(folder, tasks)}")
    running = [task for task in tasks if task.running and task.purpose != "analysis"]
    cost = costs.estimate(made.missing, stored, settings, None)
    if cost is not None and cost.trainings:
        say(f"speed: {describe.speeds(cost)}")
        workers = 0
        if running and isinstance(settings.launcher, SlurmSettings):
            workers = len(running) * slurm.task_workers(settings.launcher)
        elif launch.holder(folder):
            workers = launch.worker_count(settings, devices.found(settings.launcher.device))
        if workers:
            say(f"time left: about {describe.duration(cost.hours(workers))} with the {workers} worker(s) that run now")
    for training in made.missing:
        if training.key in failures and training.slot not in on_their_way:
            say(f"failed: {training.label}: {failures[training.key].strip().splitlines()[-1]}")
    _tell_lost_tasks(made, tasks, folder)


def _rows(
    made: Plan,
    stored: StoredRuns,
    on_their_way: dict[str, bool],
    failures: Container[RunKey],
    settings: Settings,
) -> list[dict[str, object]]:
    states = stored.column("status")
    checkpoints = {path.name for path in (settings.results_dir / "checkpoints").glob("*.pt")}
    saved = {
        training.slot
        for group in (made.groups if checkpoints else [])
        if launch.checkpoint_path(group, settings).name in checkpoints
        for training in group
    }
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(training.recipe for training in made.everything):
        trainings = [training for training in made.everything if training.recipe == name]
        outcomes = Counter(states[stored.rows[training.key]] for training in trainings if training.key in stored)
        absent = [training for training in trainings if training.key not in stored]
        idle = [training for training in absent if training.slot not in on_their_way]
        rows.append(
            {
                "data set": settings.dataset.name,
                "recipe": name,
                "wanted": len(trainings),
                "finished": outcomes["finished"],
                "diverged": outcomes["diverged"],
                "disconnected": outcomes["disconnected"],
                "running": sum(on_their_way.get(training.slot, False) for training in absent),
                "queued": sum(not on_their_way.get(training.slot, True) for training in absent),
                "failed": sum(training.key in failures for training in idle),
                "to do": len(absent),
                "checkpointed": sum(training.slot in saved for training in absent),
            }
        )
    return rows


def _rows_beside(folder: Path) -> list[dict[str, object]]:
    """Another results folder of the benchmark, as far as it tells without its settings."""
    columns = ("recipe", "network_class", "seed", "status")
    try:
        stored = read_runs(folder)
    except NasRetrainError as error:
        say(f"note: {error}", file=sys.stderr)
        return []
    records = [row for row in zip(*map(stored.column, columns), strict=True) if not is_search(row[0])]
    recorded = {f"{recipe}/{network_class}/{seed}" for recipe, network_class, seed, _ in records}
    on_their_way = slurm.slots_on_their_way(folder, slurm.tasks_on_their_way(folder))
    waiting = {slot: running for slot, running in on_their_way.items() if slot not in recorded}
    waiting = {slot: running for slot, running in waiting.items() if not is_search(slot.split("/")[0])}
    recipes = dict.fromkeys([recipe for recipe, *_ in records] + [slot.split("/")[0] for slot in waiting])
    name = os.fsencode(folder.name).decode(errors="backslashreplace")  # whatever encoding it is in
    rows: list[dict[str, object]] = []
    for recipe in recipes:
        outcomes = Counter(status for name, _, _, status in records if name == recipe)
        states = Counter(running for slot, running in waiting.items() if slot.split("/")[0] == recipe)
        row = {"data set": name, "recipe": recipe, "running": states[True], "queued": states[False]}
        rows.append(row | {status: outcomes[status] for status in ("finished", "diverged", "disconnected")})
    return rows


def _who_works(folder: Path, tasks: list[Task]) -> str:
    if tasks:
        running = sum(task.running for task in tasks)
        jobs = ", ".join(sorted({task.job for task in tasks}, key=int))
        return f"{running:,} task(s) of SLURM running, {len(tasks) - running:,} queued (jobs {jobs})"
    return launch.holder(folder) or "no run is working on it"


def _tell_lost_tasks(made: Plan, tasks: list[Task], folder: Path) -> None:
    """Say which tasks ended without all of their trainings, and show the ends of some of their logs."""
    missing = {training.slot for training in made.missing} - slurm.slots_on_their_way(folder, tasks).keys()
    alive = {(task.name, task.unit) for task in tasks}
    lost = [
        (name, number)
        for name, units in slurm.submissions(folder).items()
        for number, slots in enumerate(units)
        if (name, number) not in alive and not missing.isdisjoint(slots)
    ]
    if not lost:
        return
    say(f"{len(lost):,} task(s) ended with trainings undone; make retrain submits these again. The last logs:")
    for name, number in lost[-LOGS_SHOWN:]:
        log = slurm.log_of(folder, name, number)
        say(f"--- {log or f'{name}, task {number}: no log, it never started'}")
        if log is not None:
            say("\n".join(log.read_text(errors="replace").strip().splitlines()[-LOG_LINES_SHOWN:]))
