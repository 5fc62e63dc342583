"""Where a retraining stands, from the store and from SLURM's queue."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path

import pandas as pd

from nas_retrain.commands import describe
from nas_retrain.commands.retrain import read_store, say
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import devices, slurm
from nas_retrain.execution.cost import estimate
from nas_retrain.execution.slurm import Queue
from nas_retrain.execution.workers import checkpoint_path, worker_count
from nas_retrain.files import locks
from nas_retrain.plan import last_run
from nas_retrain.plan.claims import other_settings
from nas_retrain.plan.plan import Plan, make_plan
from nas_retrain.purpose import is_search
from nas_retrain.settings import Settings, SlurmSettings
from nas_retrain.trainings.failures import first_line, read_failures
from nas_retrain.trainings.store import RunKey, StoredRuns, read_runs
from nas_retrain.trainings.training import Slot, Training

LOGS_SHOWN = 3
LOG_LINES_SHOWN = 6
RUNS_SHOWN = 5


def status_of_folder(settings: Settings) -> None:
    """`status` by the settings of the folder's last run, which need not be given again."""
    folder = settings.results_dir
    found = last_run.read(folder)
    if found is None and not folder.exists() and (begun := last_run.begun_beside(folder)):
        say(f"{folder}: no run has begun there. The last runs are in:")
        for other in begun[:RUNS_SHOWN]:
            say(f"  RESULTS={other}")
        return
    status(settings if found is None else found)


def status(settings: Settings) -> None:
    """Print, for each recipe, how many trainings are done, on their way, failed and to do; the speed, the time left,
    and why trainings and tasks failed. Data sets in the folders beside this one are counted too."""
    folder = settings.results_dir
    others = [path.parent for path in sorted(folder.parent.glob("*/settings.json")) if path.parent != folder]
    queues = slurm.queues([folder, *others])
    queue = queues[folder]
    stored = read_store(settings)
    made = make_plan(settings, stored)
    if differing := other_settings(settings):
        say(f"note: {differing}. What follows counts by the settings of now", file=sys.stderr)
    failures, unread = read_failures(folder)
    for problem in unread:
        say(f"note: {problem}", file=sys.stderr)
    here = worker_count(settings, devices.found(settings.launcher.device)) if locks.holder(folder) else 0
    rows = _rows(made, stored, queue, failures, settings, here)
    for other in others:
        rows += _rows_beside(other, queues[other])
    say(pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="{:.0f}".format))
    say(f"{folder}: {_who_works(folder, queue)}")
    running = [task for task in queue.tasks if task.running and task.purpose != "analysis"]
    cost = estimate(made.missing, stored, settings, None)
    if cost is not None and cost.trainings:
        say(f"speed: {describe.speeds(cost)}")
        workers = 0
        if running and isinstance(settings.launcher, SlurmSettings):
            workers = len(running) * slurm.task_workers(settings.launcher)
        elif locks.holder(folder):
            workers = here
        if workers:
            say(f"time left: about {describe.duration(cost.hours(workers))} with the {workers} worker(s) that run now")
    for training in made.missing:
        if training.key in failures and training.slot not in queue.slots:
            say(f"failed: {training.label}: {first_line(failures[training.key])}")
    _tell_lost_tasks(made, queue, folder)


def _rows(
    made: Plan,
    stored: StoredRuns,
    queue: Queue,
    failures: Container[RunKey],
    settings: Settings,
    workers: int,
) -> list[dict[str, object]]:
    """workers: how many work here; they take the groups in their order."""
    at_work = {training.slot for group in made.groups[:workers] for training in group}
    states = stored.column("status")
    checkpoints = {path.name for path in (settings.results_dir / "checkpoints").glob("*.pt")}
    saved = {
        training.slot
        for group in (made.groups if checkpoints else [])
        if checkpoint_path(group, settings).name in checkpoints
        for training in group
    }
    by_recipe: dict[str, list[Training]] = {}
    for training in made.everything:
        by_recipe.setdefault(training.recipe, []).append(training)
    rows: list[dict[str, object]] = []
    for name, trainings in by_recipe.items():
        places = [stored.rows.get(training.key) for training in trainings]
        outcomes = Counter(states[[place for place in places if place is not None]].tolist())
        absent = [training for training, place in zip(trainings, places, strict=True) if place is None]
        idle = [training for training in absent if training.slot not in queue.slots]
        rows.append(
            {
                "data set": settings.dataset.name,
                "recipe": name,
                "wanted": len(trainings),
                "finished": outcomes["finished"],
                "diverged": outcomes["diverged"],
                "disconnected": outcomes["disconnected"],
                **_on_their_way(queue, [training.slot for training in absent], at_work),
                "failed": sum(training.key in failures for training in idle),
                "to do": len(absent),
                "checkpointed": sum(training.slot in saved for training in absent),
            }
        )
    return rows


def _on_their_way(queue: Queue, slots: Iterable[Slot], at_work: Container[Slot] = ()) -> dict[str, object]:
    """How many of these trainings are running and queued, "?" where SLURM does not say.

    at_work: those that run here.
    """
    if queue.silence:
        return {"running": "?", "queued": "?"}
    slots = list(slots)
    states = Counter(queue.slots[slot] for slot in slots if slot in queue.slots)
    here = sum(slot in at_work and slot not in queue.slots for slot in slots)
    return {"running": states[True] + here, "queued": states[False]}


def _rows_beside(folder: Path, queue: Queue) -> list[dict[str, object]]:
    """Another results folder of the benchmark, as far as it tells without its settings."""
    columns = ("recipe", "network_class", "seed", "status")
    try:
        stored = read_runs(folder)
    except NasRetrainError as error:
        say(f"note: {error}", file=sys.stderr)
        return []
    records = [row for row in zip(*map(stored.column, columns), strict=True) if not is_search(row[0])]
    recorded = {Slot(recipe, network_class, seed) for recipe, network_class, seed, _ in records}
    waiting = [slot for slot in queue.slots if slot not in recorded and not is_search(slot.recipe)]
    recipes = dict.fromkeys([recipe for recipe, *_ in records] + [slot.recipe for slot in waiting])
    name = os.fsencode(folder.name).decode(errors="backslashreplace")  # whatever encoding it is in
    rows: list[dict[str, object]] = []
    for recipe in recipes:
        outcomes = Counter(status for name, _, _, status in records if name == recipe)
        row: dict[str, object] = {"data set": name, "recipe": recipe}
        row |= _on_their_way(queue, [slot for slot in waiting if slot.recipe == recipe])
        rows.append(row | {status: outcomes[status] for status in ("finished", "diverged", "disconnected")})
    return rows


def _who_works(folder: Path, queue: Queue) -> str:
    if queue.tasks:
        running = sum(task.running for task in queue.tasks)
        jobs = ", ".join(sorted({task.job for task in queue.tasks}, key=int))
        return f"{running:,} task(s) of SLURM running, {len(queue.tasks) - running:,} queued (jobs {jobs})"
    if holder := locks.holder(folder):
        return holder
    if queue.silence:
        return f"whether SLURM works on it is unknown. {queue.silence}"
    return "no run is working on it" if folder.exists() else "there is no such folder yet, no run has begun"


def _tell_lost_tasks(made: Plan, queue: Queue, folder: Path) -> None:
    """Say which tasks ended without all of their trainings, and show the ends of some of their logs."""
    for name, units in queue.submitted.items():
        if units is None:
            say(f"note: {folder / 'jobs' / name / 'units.json'} cannot be read: what that submission does is unknown")
    missing = {training.slot for training in made.missing} - queue.slots.keys()
    alive = {(task.name, task.unit) for task in queue.tasks}
    lost = [
        (name, number)
        for name, units in queue.submitted.items()
        for number, slots in enumerate(units or [])
        if (name, number) not in alive and not missing.isdisjoint(slots)
    ]
    if not lost:
        return
    if queue.silence:
        say(f"{len(lost):,} task(s) have trainings undone and may be on their way or over. The last logs:")
    else:
        say(f"{len(lost):,} task(s) ended with trainings undone; make retrain submits these again. The last logs:")
    for name, number in lost[-LOGS_SHOWN:]:
        log = slurm.log_of(folder, queue, name, number)
        never = "no log" if queue.silence else "no log, it never started"
        say(f"--- {log or f'{name}, task {number}: {never}'}")
        if log is not None:
            say("\n".join(log.read_text(errors="replace").strip().splitlines()[-LOG_LINES_SHOWN:]))
