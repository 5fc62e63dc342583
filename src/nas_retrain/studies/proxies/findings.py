"""Which recipe makes the better proxy? How cheap trainings, by recipe, rank networks as long trainings do.

A proxy is judged by Kendall's tau with the long trainings, beside the noise ceiling: the tau that trainings with so
much noise would have if the two rankings were truly the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from nas_retrain.benches import registry
from nas_retrain.benches.registry import Bench
from nas_retrain.errors import NasRetrainError
from nas_retrain.files import plain_table
from nas_retrain.purpose import is_search
from nas_retrain.settings import AnalysisSettings, Settings
from nas_retrain.statistics import accuracies, rate_tables
from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.statistics.noise import noise_level
from nas_retrain.statistics.rankings import FEWEST, align
from nas_retrain.statistics.significance import holm
from nas_retrain.studies.comparison.stage import read_source
from nas_retrain.studies.own_rates.findings import rankings
from nas_retrain.studies.rate_table.findings import recipes_of


@dataclass(frozen=True)
class Proxies:
    """What was found. long, cheap: what the sources are called. control: the recipe that others are compared with.

    rankings: see `own_rates.findings.OwnRates.rankings`, with the long trainings in the place of own rates.
    """

    long: str
    cheap: str
    control: str
    rankings: pd.DataFrame


def judge(settings: Settings) -> Proxies:
    """Compare each recipe of `retrained` with `original`; raises NasRetrainError for a source that cannot be used."""
    chosen, original, retrained = settings.analysis, settings.original, settings.retrained
    assert original is not None
    assert retrained is not None
    long = read_source(original, settings, chosen.column)
    recipes = read_recipes(retrained, settings)
    common = {name: len(align(long, recipe)[0]) for name, recipe in recipes.items()}
    kept = [name for name in recipes if common[name] > FEWEST]
    if not kept:
        raise NasRetrainError(
            f"{retrained} has no recipe with more than {FEWEST} networks in common with {original}: "
            + ", ".join(f"{name} has {number}" for name, number in common.items())
        )
    control = chosen.control if chosen.control in kept else kept[0]
    table = _rankings(long, {name: recipes[name] for name in kept}, control, chosen)
    # What is most often given is <data set>/runs.parquet.
    cheap = retrained.resolve().parent.name if retrained.name == "runs.parquet" else retrained.name.split(".")[0]
    return Proxies(long.name, cheap, control, table)


def _rankings(
    long: Accuracies, recipes: Mapping[str, Accuracies], control: str, chosen: AnalysisSettings
) -> pd.DataFrame:
    """Each recipe on the networks that it and the control have, with the control's on the same ones to compare with."""
    chosen = chosen.model_copy(update={"control": control})
    noise = {name: noise_level(source) for name, source in {long.name: long, **recipes}.items()}
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, recipe in recipes.items():
        cells = tuple(align(long, recipes[control], recipe)[0].tolist())
        if len(cells) > FEWEST:
            groups.setdefault(cells, []).append(name)
    parts = []
    for cells, names in groups.items():
        right = replace(long, runs=long.runs[long.runs["index"].isin(cells)])
        found = rankings(right, {name: recipes[name] for name in dict.fromkeys((control, *names))}, chosen, noise)
        parts.append(found[found["recipe"].isin(names)])
    table = pd.concat(parts, ignore_index=True)
    table["p_holm"] = holm(table["p_value"].to_numpy())
    return table


def read_recipes(path: Path, settings: Settings) -> dict[str, Accuracies]:
    """The accuracies of each recipe in a source: those of run records of ours, on whatever data set; ways to set the
    rate in NAS-HPO-Bench-II's folder; else the one recipe that the source holds."""
    bench = registry.of(settings.bench)
    if path.is_dir() and bench.rate_sources and bench.rate_sources[0].is_here(path):
        table = rate_tables.read(path, settings.dataset.name, bench)
        return recipes_of(table, settings)
    if path.suffix == ".parquet" and path.exists() and not plain_table.is_plain(path):
        return _of_records(plain_table.read_parquet(path), path, bench)
    found = read_source(path, settings, settings.analysis.column)
    return {found.name: found}


def _of_records(frame: pd.DataFrame, path: Path, bench: Bench) -> dict[str, Accuracies]:
    needed = {"bench", "dataset", "recipe", "config_hash", "cell", "seed", "test_accuracy", "in_degree"}
    if missing := needed - set(frame.columns):
        raise NasRetrainError(f"{path} is not a table of run records: it has no column {', '.join(sorted(missing))}.")
    frame = frame[(frame["bench"] == bench.name) & ~frame["recipe"].astype(str).map(is_search)]
    datasets = frame["dataset"].unique()
    found = {}
    for (dataset, name), part in frame.groupby(["dataset", "recipe"], sort=False):
        called = str(name) if len(datasets) == 1 else f"{dataset} {name}"
        found[called] = accuracies.from_runs(_of_one_budget(part), called, bench)
    return found


def _of_one_budget(part: pd.DataFrame) -> pd.DataFrame:
    """A recipe's records under the settings that most of them have; of a network that was never trained under these,
    such as one at a rate of its own, those under its only ones."""
    main = part["config_hash"].mode().iloc[0]
    networks = part.groupby("cell")["config_hash"]
    without = ~networks.transform(lambda hashes: (hashes == main).any())
    alone = networks.transform("nunique") == 1
    chosen: pd.DataFrame = part[(part["config_hash"] == main) | (without & alone)]
    return chosen
