"""The analysis stage: which accuracies are compared, and where the report goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nas_retrain.benches import registry
from nas_retrain.errors import NasRetrainError
from nas_retrain.files.parquet import read_table
from nas_retrain.rate_policy import Own
from nas_retrain.reports.document import facts
from nas_retrain.settings import Settings
from nas_retrain.statistics import accuracies
from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.studies.comparison import curves, report, tables
from nas_retrain.studies.comparison.curves import Curves
from nas_retrain.studies.comparison.tables import Findings
from nas_retrain.trainings.store import CURVES, SCHEMA


@dataclass(frozen=True)
class Report:
    """A comparison and what its report says of it. place: where it goes, below the results folder. attribution: see
    `tables.attribution`. curves: of the control and of the other side."""

    findings: Findings
    place: str
    title: str
    facts: dict[str, str]
    attribution: pd.DataFrame | None = None
    curves: tuple[Curves | None, ...] = (None, None)


def compare_sources(settings: Settings) -> Report:
    """Compare `original` with `retrained` (by default this results folder's records).

    The report is to go to comparisons/<original>_to_<retrained>. Raises NasRetrainError for a source that cannot be
    read.
    """
    original, retrained, paths = sources(settings)
    records = [_records(Path(path), settings) for path in paths.values()]
    place = f"comparisons/{original.name}_to_{retrained.name}"
    return _report(original, retrained, place, settings, paths, records)


def _records(path: Path, settings: Settings) -> pd.DataFrame:
    """The run records that a source's accuracies are from, if they have curves; none for other sources."""
    try:
        if path.suffix != ".parquet" or not set(CURVES) & set(pq.read_schema(path).names):
            return pd.DataFrame()
        frame: pd.DataFrame = SCHEMA.from_table(read_table(path)).table.to_pandas()
    except (ValueError, pa.ArrowException, OSError):  # accuracies can be read from less than whole records
        return pd.DataFrame()
    return frame[(frame["dataset"] == settings.dataset.name) & (frame["recipe"] == settings.analysis.recipe)]


def write(made: Report, folder: Path) -> Path:
    """Write a report in its place below `folder`, and return that place."""
    there = folder / made.place
    report.write(
        made.findings, there, title=made.title, facts=made.facts, attribution=made.attribution, curves=made.curves
    )
    return there


def sources(settings: Settings) -> tuple[Accuracies, Accuracies, dict[str, str]]:
    """The two sources, and where they are."""
    if settings.original is None:
        raise NasRetrainError("There is nothing to compare with: give ORIGINAL=path (original=path).")
    chosen = settings.analysis
    retrained_path = settings.retrained or settings.results_dir / "runs.parquet"
    if settings.retrained is None and not retrained_path.exists():
        raise NasRetrainError(
            f"{settings.results_dir} holds no trainings to compare with. Give a second table (RETRAINED=...), another "
            "results folder (RESULTS=...), or make retrain first."
        )
    original = read_source(settings.original, settings, chosen.column)
    retrained = read_source(retrained_path, settings, chosen.retrained_column or chosen.column)
    return original, retrained, {"original": str(settings.original), "retrained": str(retrained_path)}


def read_source(path: Path, settings: Settings, column: str | None) -> Accuracies:
    """The accuracies in one source, of the recipe, epochs and test set that the settings name."""
    chosen = settings.analysis
    return accuracies.read(
        path,
        settings.dataset.name,
        registry.of(settings.bench),
        recipe=chosen.recipe,
        column=column,
        epochs=chosen.epochs,
        test_set=chosen.test_set,
    )


def compare_recipes(settings: Settings, frame: pd.DataFrame) -> list[Report]:
    """Compare the control recipe with each other recipe of `frame`.

    frame: the run records that these settings ask for, as far as they are there. The report of `analysis.recipe` (or
    of the only other recipe) goes to the results folder itself, others below comparisons/. Empty if the control
    and another recipe do not have two cells in common.
    """
    control, recipes = settings.analysis.control, [name for name in settings.recipes if name in set(frame["recipe"])]
    bench = registry.of(settings.bench)
    arms = {name: accuracies.from_runs(frame[frame["recipe"] == name], name, bench) for name in recipes}
    cells = {name: set(arm.runs["index"]) for name, arm in arms.items()}
    others = [name for name in arms if name != control and len(cells.get(control, set()) & cells[name]) > 1]
    if not others:
        return []
    main = settings.analysis.recipe if settings.analysis.recipe in others else others[0]
    # A recipe of own rates has some of the classes only.
    whole = [name for name in others if not isinstance(settings.recipes[name].rate_policy, Own)]
    attribution = tables.attribution({name: arms[name] for name in (control, *whole)}, control)
    reports = []
    for name in others:
        compared = frame[frame["recipe"].isin([control, name])]
        particulars = {
            "records": f"{len(compared):,} of {settings.results_dir / 'runs.parquet'}",
            "trainings": ", ".join(f"{n:,} {status}" for status, n in compared["status"].value_counts().items())
            + "; a diverged or disconnected one counts with the accuracy of chance",
            "epochs": str(settings.training.epochs),
            "network": f"{settings.network.channels} channels, {settings.network.cells_per_stage} cell(s) a stage",
        }
        place = "" if name == main else f"comparisons/{control}_to_{name}"
        table = attribution if name == main else None
        records = [frame[frame["recipe"] == of] for of in (control, name)]
        reports.append(_report(arms[control], arms[name], place, settings, particulars, records, table))
    return reports


def _report(
    control: Accuracies,
    other: Accuracies,
    place: str,
    settings: Settings,
    particulars: dict[str, str],
    records: Sequence[pd.DataFrame],
    attribution: pd.DataFrame | None = None,
) -> Report:
    chosen = settings.analysis
    findings = tables.find(control, other, chosen)
    made_with = (
        particulars
        | {
            "top K % by": f"the ranking of {(control if chosen.top_by == 'original' else other).name}",
            "draws": f"{chosen.bootstrap_draws:,} of the bootstrap, {chosen.null_draws:,} of training again, "
            f"seed {chosen.seed}",
        }
        | facts(settings)
    )
    title = f"{settings.dataset.name}: {other.name} against {control.name}"
    cells = findings.comparison.cells
    drawn = tuple(curves.of_side(side, its, cells) for side, its in zip((control, other), records, strict=True))
    return Report(findings, place, title, made_with, attribution, drawn)
