"""How long the stages take on a results folder that is as full as it gets: a record for every network class, several
recipes and seeds, spread over the files of hundreds of tasks.

A part of `make bench`, and a program of its own: `python -m benchmarks.results profile=dry dataset=digits`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nas_retrain.commands.command_line import compose, run
from nas_retrain.errors import NasRetrainError
from nas_retrain.files.atomic import replacing
from nas_retrain.plan.plan import make_plan
from nas_retrain.settings import Settings
from nas_retrain.theory.scaling import in_degree_of
from nas_retrain.trainings.store import RunRecord, RunWriter, StoredRuns
from nas_retrain.trainings.training import Training

STAGES = ("analyze", "status", "plan")  # as they are run after a merge, when the records are there twice
FILES = 300
CHANCE = 10.0

FULL = (
    "dataset=cifar10",
    "profile=full",
    "launcher=local",
    "launcher.device=cpu",
    "cells=all",
    "seeds=[111,222,333,777,888,999]",
    "recipe=[benchmark,architecture_aware,learning_rate_only]",
    "dataset.base_rate=0.46",
)
"""The whole benchmark with three recipes and six seeds: more than 95,000 records."""


def overrides(folder: Path, *others: str) -> list[str]:
    """What the stages are told to find in `folder` what `fill` wrote there."""
    return [*FULL, f"results_dir={folder}", *others]


def fill(settings: Settings, files: int = FILES) -> int:
    """Write a made-up record of every planned training into runs/ of the results folder; returns how many."""
    trainings = make_plan(settings, StoredRuns.of([])).everything
    random = np.random.default_rng(0)
    noise = random.normal(size=len(trainings))
    ability = random.normal(size=max(training.cell for training in trainings) + 1)
    for number in range(files):
        part = range(number, len(trainings), files)
        with RunWriter(settings.results_dir / "runs", f"training-{number:05}") as writer:
            writer.append(*(_record(trainings[place], ability, float(noise[place])) for place in part))
    return len(trainings)


def _record(training: Training, ability: np.ndarray[tuple[int], np.dtype[np.float64]], noise: float) -> RunRecord:
    record = RunRecord(
        *training.key[:3], cell=training.cell, arch=training.arch, network_class=training.network_class,
        seed=training.seed, epochs=training.epochs, learning_rate=training.learning_rate,
        in_degree=in_degree_of(training.initialisation), status="finished", train_loss=0.1 + 0.01 * abs(noise),
        train_accuracy=99.0, test_loss=0.3 + 0.01 * abs(noise),
        test_accuracy=float(np.clip(90 + 2 * ability[training.cell] + 0.3 * noise, 0, 100)), seconds=1000 + noise,
        images_per_second=5000 + 100 * noise, device="cpu", torch="2", code_version="0",
        config_hash=training.config_hash,
        started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:20:00+00:00", gradient_norm=1.0,
        relative_gradient=0.1,
    )  # fmt: skip
    if training.learning_rate is None:
        return replace(
            record, status="disconnected", train_loss=None, test_loss=None, train_accuracy=CHANCE, test_accuracy=CHANCE,
            images_per_second=None, gradient_norm=None, relative_gradient=None,
        )  # fmt: skip
    return record


def measure_results(folder: Path, stages: Sequence[str] = STAGES) -> pd.DataFrame:
    """A row for each stage, in a process of its own on a full folder that is made in `folder`: records, seconds
    (wall-clock), processor_seconds, and memory (the most that was resident, in MB)."""
    settings = compose(*overrides(folder))
    records = fill(settings)
    return pd.DataFrame([{"stage": stage, "records": records} | _run(stage, folder) for stage in stages])


_MEASURED = """
import json, resource, subprocess, sys, time
begun = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""A small process between this one and the measured one: Linux counts what a process holds when it starts another
towards the most that the other held."""


def _run(stage: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "nas_retrain.commands.command_line", stage, *overrides(folder)]
    done = subprocess.run([sys.executable, "-c", _MEASURED, *command], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise NasRetrainError(f"{' '.join(command)} failed.\n{done.stderr}")
    seconds, processor_seconds, memory = json.loads(done.stdout)
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "memory": memory / (1e6 if sys.platform == "darwin" else 1e3),
    }


def summary(results: pd.DataFrame) -> str:
    """The figures as lines of Markdown."""
    rows = [
        f"| {row.stage} | {row.seconds:.1f} s | {row.processor_seconds:.1f} s | {row.memory:,.0f} MB |"
        for row in results.itertuples()
    ]
    return "\n".join(
        [
            f"# Results folders of {results['records'].iloc[0]:,} records in {FILES} files",
            "",
            "| stage | time, start to end | of a processor | memory |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def measure(digits: Settings) -> None:
    """Write a table and a summary into the folder `speed` beside the results folder; two minutes on two cores."""
    folder = digits.results_dir.parent / "speed"
    with tempfile.TemporaryDirectory() as scratch:
        stages = measure_results(Path(scratch) / "results")  # without others beside it, which status would count
    with replacing(folder / "results.csv") as temporary:
        stages.to_csv(temporary, index=False, float_format="%.5g")
    text = summary(stages)
    with replacing(folder / "results.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{folder}")  # noqa: T201 - what the command tells


if __name__ == "__main__":
    run(measure)
