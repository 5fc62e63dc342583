"""The stages that a user runs: retrain, plan, cancel and analyse. Each is safe to run again at any time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial

from nas_retrain.commands import describe
from nas_retrain.data import sources
from nas_retrain.errors import NasRetrainError, printable
from nas_retrain.execution import devices, slurm, tracking, workers
from nas_retrain.execution.cost import estimate
from nas_retrain.execution.devices import Device
from nas_retrain.execution.slurm import Queue, Submitted, Task
from nas_retrain.files import leftovers, locks
from nas_retrain.files.locks import Lock
from nas_retrain.plan import last_run, plan, rate_search
from nas_retrain.plan.claims import claim_results_folder, other_settings
from nas_retrain.plan.plan import Plan, make_plan
from nas_retrain.plan.rate_search import GridSearch
from nas_retrain.plan.study import NothingYet, Records, Study, studies
from nas_retrain.purpose import RateGrid, Recipe
from nas_retrain.settings import Settings, SlurmSettings
from nas_retrain.trainings import store
from nas_retrain.trainings.store import StoredRuns
from nas_retrain.trainings.training import Training

say: Callable[..., None] = partial(print, flush=True)


def print_plan(settings: Settings) -> None:
    """Say what `retrain` would do, what it would cost and what blocks it; starts and writes nothing."""
    stored = read_store(settings)
    made = make_plan(settings, stored)
    launcher = _on_slurm(settings)
    obstacles = describe.missing_data(settings) if made.missing else []
    if differing := other_settings(settings):
        obstacles.append(f"{differing}: use those again, or give this run a folder of its own, ARGS='results_dir=...'")
    if launcher is None:
        obstacles += describe.too_long(_forecast_here(made, stored, settings), _device(settings), settings)
    else:
        queue = slurm.queue(settings.results_dir)
        _forecast_submission(made, stored, queue, slurm.largest_array(), launcher, settings)
        obstacles += slurm.refused(launcher)
    obstacles += describe.unwritable(settings.results_dir) + describe.untracked(settings)
    for obstacle in obstacles:
        say(f"  blocked by     {obstacle}")


def retrain(settings: Settings) -> None:
    """Plan, search the base rate if none is recorded, train what is missing, merge the records and analyse them: here,
    or by submitting all of it to SLURM and returning at once.

    Raises NasRetrainError, before anything is written, if data are missing and cannot be downloaded or if the plan
    costs more than launcher.max_hours here; afterwards, if trainings failed.
    """
    launcher = _on_slurm(settings)
    if launcher is None:
        retrain_here(settings, _merge_and_analyse)
    else:
        _retrain_on_slurm(settings, launcher)


def _on_slurm(settings: Settings) -> SlurmSettings | None:
    """The settings for SLURM, if that is where trainings are to run."""
    launcher = settings.launcher
    if isinstance(launcher, SlurmSettings) and (launcher.name == "slurm" or slurm.answers()):
        return launcher
    return None


def retrain_here(settings: Settings, analyse: Callable[[Settings], None] | None) -> None:
    """Train on this machine what is missing, and then merge the records and `analyse` the results folder, if asked to.

    Raises NasRetrainError, before anything is written, if the plan costs more than launcher.max_hours or the tracker
    cannot be used; afterwards, if trainings failed.
    """
    folder = settings.results_dir
    tracking.check(settings)
    with locks.exclusive(folder) as lock:  # first of all: a plan holds only while nobody else trains
        stored = read_store(settings)
        made = make_plan(settings, stored)
        hours = _forecast_here(made, stored, settings)
        if made.missing:
            if too_long := describe.too_long(hours, _device(settings), settings):
                obstacles = describe.missing_data(settings) + too_long
                raise NasRetrainError("Nothing was started.\n" + "\n".join(f"  - {obstacle}" for obstacle in obstacles))
            sources.fetch(settings.dataset, settings.data_dir)
        _leave_to_slurm(made, settings)
        lock.check()
        claim_results_folder(settings)
        last_run.write(settings)
        workers.forget_recorded(made.groups, stored, settings)
        leftovers.remove_leftovers(folder)
        try:
            failed = _train_missing(made, settings, lock)
            lock.check()
            if analyse is None:
                _told(store.merge(folder))
            else:
                analyse(settings)
        finally:
            leftovers.remove_leftovers(folder)
        lock.check()
    if failed:
        raise NasRetrainError(
            f"{len(failed)} training(s) failed; {folder}/logs has each error. The others are stored: "
            "run the same command again to try those that failed."
        )


def _leave_to_slurm(made: Plan, settings: Settings) -> None:
    """Raise NasRetrainError if SLURM works on this results folder, or may do so on what is missing."""
    folder = settings.results_dir
    queue = slurm.queues([folder])[folder]
    if queue.tasks:
        raise NasRetrainError(f"SLURM has tasks of {folder} (make status shows them). Wait for them, or make cancel.")
    if queue.silence and queue.was_given({training.slot for training in made.missing}):
        raise NasRetrainError(
            f"Trainings of {folder} were given to SLURM, and whether it still works on them is unknown. "
            f"{queue.silence} Where nobody answers but you know that they are over, remove {folder}/jobs."
        )


def _train_missing(made: Plan, settings: Settings, lock: Lock) -> list[Training]:
    """Do what is missing, in two steps if learning rates must be found first; returns the trainings that failed.

    Raises KeyboardInterrupt if it was stopped.
    """
    failed: list[Training] = []
    if made.searching:
        failed = _train_here(made, made.search, settings, "learning rates", lock)
        if failed:
            return failed
        made = make_plan(settings, read_store(settings))
        if made.searching:
            raise AssertionError("every training of the searches was recorded, yet they are not finished")
        for name, search in _on_base_network(made).items():
            _tell_search(name, search, settings)
    if not made.missing:
        say("Nothing left to train.")
    while made.missing and not failed:  # more than once where seeds are added until they are enough
        failed = _train_here(made, made.everything, settings, "retraining", lock)
        made = make_plan(settings, read_store(settings))
    return failed


def _train_here(made: Plan, part: Sequence[Training], settings: Settings, title: str, lock: Lock) -> list[Training]:
    """Train what is missing of a part of the plan."""
    lock.check()
    keys = {training.key for training in part}
    groups = [group for group in made.groups if group[0].key in keys]
    tally = workers.run_here(groups, keys & {training.key for training in made.missing}, settings, title)
    lock.check()
    if tally.stopped_by:
        say("\nStopped. What is finished is stored; the same command continues where each training stood.")
        raise KeyboardInterrupt
    return tally.failed


def _forecast_here(made: Plan, stored: StoredRuns, settings: Settings) -> float:
    """Print the plan for this machine, and return the hours that it will take."""
    device = _device(settings)
    number = workers.worker_count(settings, device)
    known = stored.only(stored.column("device") == device.name)
    cost = estimate(made.missing, known, settings, device.type)
    assert cost is not None
    told = describe.wanted(made, settings) + describe.decided_otherwise(made, stored)
    say("\n".join(told + describe.cost_here(cost, number)))
    return cost.hours(number)


def _device(settings: Settings) -> Device:
    return devices.found(settings.launcher.device)


def _retrain_on_slurm(settings: Settings, launcher: SlurmSettings) -> None:
    """Submit what is missing and not on its way already; once nothing is either, analyse here."""
    folder = settings.results_dir
    tracking.check(settings)
    with locks.exclusive(folder):
        queue = slurm.queue(folder)
        stored = read_store(settings)  # after asking what is on its way, since a task may end in between
        made = make_plan(settings, stored)
        if made.missing:
            sources.fetch(settings.dataset, settings.data_dir)
        claim_results_folder(settings)
        last_run.write(settings)
        workers.forget_recorded(made.groups, stored, settings)
        leftovers.remove_leftovers(folder)
        largest_array = slurm.largest_array()
        units = _forecast_submission(made, stored, queue, largest_array, launcher, settings)
        slurm.forget_finished(folder, queue, made.done_slots)
        if not made.missing and not queue.tasks:
            say("Nothing left to train.")
            _merge_and_analyse(settings)
            return
        submitted = _submit(units, queue.tasks, largest_array, settings)
    say("Submitted:" if submitted else "Everything is on its way already: nothing was submitted.")
    for one in submitted:
        say(f"  job {one.job:<10} {one.purpose:<10} {one.tasks:,} task(s)")
    say("make status tells how far it is; make cancel stops it. When it is over, the tables and figures are in")
    say(f"{folder}. Should something be missing then, make retrain submits just that.")


def _forecast_submission(
    made: Plan,
    stored: StoredRuns,
    queue: Queue,
    largest_array: int,
    launcher: SlurmSettings,
    settings: Settings,
) -> dict[slurm.Purpose, list[list[Training]]]:
    """Print the plan for SLURM, and return what is to be submitted: the trainings of each task."""
    missing = [training for training in made.missing if training.slot not in queue.slots]
    say("\n".join(describe.wanted(made, settings) + describe.decided_otherwise(made, stored)))
    if len(missing) < len(made.missing):
        say(f"  on their way   {len(made.missing) - len(missing):,} in {len(queue.tasks):,} task(s) of SLURM")
    cost = estimate(missing, stored, settings, _device_like_a_tasks(launcher))
    sizes: Sequence[float] = [1.0] * len(missing)
    largest_unit = float(launcher.trainings_per_task)
    if launcher.hours_per_task is not None:
        if cost is None:
            raise NasRetrainError(
                "launcher.hours_per_task needs a measured speed, and this machine is not like a task's. Let a few "
                "trainings run first (ARGS=cells=sample:20), or set launcher.trainings_per_task instead."
            )
        sizes, largest_unit = cost.seconds, launcher.hours_per_task * 3600 * slurm.task_workers(launcher)
    sized = dict(zip(missing, sizes, strict=True))
    units: dict[slurm.Purpose, list[list[Training]]] = {}
    purposes: list[tuple[slurm.Purpose, list[Training]]] = [
        ("base-rate", made.search),
        ("training", made.asked),
    ]
    for purpose, wanted in purposes:
        keys = {training.key for training in wanted if training in sized}
        groups = [group for group in made.groups if any(training.key in keys for training in group)]
        units[purpose] = plan.work_units(groups, lambda training: sized.get(training, 0.0), largest_unit)
    for line in describe.submission(units, cost, largest_array, launcher, settings):
        say(line)
    return units


def _device_like_a_tasks(launcher: SlurmSettings) -> str | None:
    """The device of this machine to measure a task's speed on; None if there is none of its kind."""
    if launcher.gpus and launcher.device in ("auto", "cuda"):
        import torch

        return "cuda" if torch.cuda.is_available() else None
    return "cpu"


def _submit(
    units: dict[slurm.Purpose, list[list[Training]]], tasks: Sequence[Task], largest: int, settings: Settings
) -> list[Submitted]:
    """Submit units, the recipes' after the search for the base rate, and an analysis after all."""
    submitted: list[Submitted] = []
    if units["base-rate"]:
        submitted += slurm.submit("base-rate", units["base-rate"], settings, largest, [])
    if units["training"]:
        searching = {task.job for task in tasks if task.purpose == "base-rate"} | {one.job for one in submitted}
        submitted += slurm.submit("training", units["training"], settings, largest, sorted(searching, key=int))
    if submitted or not any(task.purpose == "analysis" for task in tasks):
        training = {task.job for task in tasks if task.purpose != "analysis"} | {one.job for one in submitted}
        submitted.append(slurm.submit_analysis(analyse, settings, sorted(training, key=int)))
    return submitted


def _on_base_network(made: Plan) -> dict[str, GridSearch]:
    """The finished searches for one rate of all networks, by what is found."""
    return {search.finds: outcome for (search, _), outcome in made.found.items() if not search.validated}


def _tell_search(name: str, search: GridSearch, settings: Settings) -> None:
    chosen = search.chosen
    told = name.replace("_", " ").capitalize()
    say(f"{told} {chosen.learning_rate:.4g} (training loss {chosen.mean_loss:.4f}).")
    if search.at_edge:
        say(
            f"WARNING: that is the edge of the grid {settings.base_rate.lowest} to {settings.base_rate.highest}; a "
            "better rate may lie outside. Widen base_rate.lowest or base_rate.highest in a new results folder."
        )


def read_store(settings: Settings) -> StoredRuns:
    """The stored records; what is wrong with the files goes to stderr, once."""
    return _told(store.read_runs(settings.results_dir))


def _told(stored: StoredRuns) -> StoredRuns:
    for problem in stored.problems:
        _note(problem)
    return stored


@cache
def _note(problem: str) -> None:
    say(f"note: {printable(problem)}", file=sys.stderr)


def analyse(settings: Settings) -> None:
    """Compare `original` with `retrained` if an original is given, else the recipes of this results folder.

    Raises NasRetrainError for a source that cannot be read, and if there is nothing to compare.
    """
    if settings.original is not None:
        from nas_retrain.studies.comparison import stage, study

        say("\n".join(study.write([stage.compare_sources(settings)], settings.results_dir)))
        return
    stored = _told(store.merge(settings.results_dir))
    if not stored:
        raise NasRetrainError(
            f"{settings.results_dir} holds no records to compare. Run make retrain first, or give ORIGINAL=path."
        )
    made = make_plan(settings, stored)
    if not any(training.key in stored for training in made.everything):
        which = other_settings(settings) or f"{settings.results_dir} holds records, but none that these settings made"
        raise NasRetrainError(f"{which}. Give those of the run again: DATASET=..., PROFILE=... and ARGS='...'")
    _analyse(made, stored, settings)


def _merge_and_analyse(settings: Settings) -> None:
    stored = _told(store.merge(settings.results_dir))
    _analyse(make_plan(settings, stored), stored, settings)


def _analyse(made: Plan, stored: StoredRuns, settings: Settings) -> None:
    for name, search in _on_base_network(made).items():
        rate_search.write_search(search, settings.results_dir, name)
    records = Records(made.everything, stored)
    counts = Counter(records.frame(Recipe, RateGrid)["status"])
    if not counts and set(stored.column("recipe")) & set(settings.recipes):
        raise NasRetrainError(
            f"{settings.results_dir} has trainings, but none that these settings ask for. Give those of the run again: "
            f"PROFILE=... and ARGS='...' (see {settings.results_dir / 'settings.json'})."
        )
    say(f"{settings.results_dir}/runs.parquet: " + ", ".join(f"{n:,} {status}" for status, n in counts.items()))
    for study in studies().values():
        if not study.by_command:
            conclude(study, records, settings)


def conclude(study: Study, records: Records, settings: Settings) -> None:
    """Have a study look at the records and write what it finds; tell that, or what it lacks."""
    try:
        found = study.analyse(records, settings)
    except NothingYet as reason:
        say(f"{reason}")
        return
    if found is not None:
        for line in study.write(found, settings.results_dir):
            say(line)


def cancel(settings: Settings) -> None:
    """Cancel this results folder's jobs, and no others; running trainings are saved first."""
    jobs = slurm.cancel(settings.results_dir)
    say(f"Cancelled job(s) {', '.join(jobs)}; make retrain continues." if jobs else "SLURM has no task of this run.")
