"""Which settings a results folder belongs to: those that decided its results, in settings.json.

Records carry a hash of the settings that made them. So where settings.json is lost or damaged, the hashes tell whether
the present settings are those of the folder, and the file is made anew from them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from nas_retrain.benches import registry
from nas_retrain.errors import NasRetrainError, printable
from nas_retrain.files.atomic import read_whole, replacing, set_aside
from nas_retrain.plan.plan import chosen_cells, make_plan
from nas_retrain.purpose import RateSearch
from nas_retrain.rate_policy import Fixed, Listed, Own
from nas_retrain.settings import BEFORE, OwnRateSettings, RecipeSettings, Settings
from nas_retrain.trainings.store import StoredRuns, read_runs

SECTIONS = ("bench", "dataset", "network", "training", "base_rate", "own_rate", "recipes", "seeding")
"""Of the settings, those that decide results; one that this version does not have is passed over."""

OF_OLDER_VERSIONS = {"seeding": "shared", "network.normalisation": "batch", "bench.as_released": False} | {
    f"training.{key}": value for key, value in BEFORE.items()
}
"""What held, by key ("training.epochs"), before there was the key: it is read where a file lacks it."""


def claim_results_folder(settings: Settings) -> None:
    """Make the results folder this configuration's own, or check that it is.

    What decides results is written to settings.json at the first run; recipes may be added later, and cells and
    seeds extended. Keys that a newer version wrote are kept. A damaged file is put aside and made anew if no stored
    record was made with other settings than the present ones. Raises NasRetrainError naming each key that differs, the
    recipe whose records do, or the path that cannot be read or written.
    """
    path, now = _file(settings), _deciding(settings)
    before: dict[str, Any] = {}
    damage = ""
    try:
        before = _read(path, now)
    except ValueError as error:
        damage = str(error)
    if differences := _differences(before, now):
        differing = "".join(f"\n  {one}" for one in differences)
        raise NasRetrainError(
            f"{settings.results_dir} holds results made with other settings:{differing}\n"
            "Use those settings again, or give these results a folder of their own: ARGS='results_dir=...'"
        )
    unknown = _unknown(before, now)
    if not before or unknown:
        _check_records(settings, damage, path)
    if damage:
        _note(f"{path} {damage}: it was put aside as {set_aside(path).name} and made anew")
    if unknown:
        _note(f"{path}: written by a newer version: this one does not know {', '.join(unknown)}, which is kept")
    joined = _joined(now, before)
    if joined != before:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(joined, indent=2) + "\n")


def other_settings(settings: Settings) -> str | None:
    """Why a results folder would be refused by `claim_results_folder`, in a sentence, if its settings.json tells; for
    commands that only look at the folder."""
    now = _deciding(settings)
    try:
        differences = _differences(_read(_file(settings), now), now)
    except (ValueError, NasRetrainError):  # damaged or not to be read, which the next run says
        return None
    if not differences:
        return None
    more = f"; and {len(differences) - 1:,} more" if len(differences) > 1 else ""
    return f"{settings.results_dir} holds results made with other settings ({differences[0]}{more})"


def claimed_recipes(settings: Settings) -> dict[str, dict[str, Any]]:
    """The recipes that a results folder's settings.json has, by name, each as `RecipeSettings.identity` tells it; none
    if the file does not tell, which the next run says."""
    try:
        recipes: dict[str, dict[str, Any]] = _read(_file(settings), _deciding(settings)).get("recipes", {})
    except (ValueError, NasRetrainError):
        return {}
    return recipes


def _file(settings: Settings) -> Path:
    return settings.results_dir / "settings.json"


def _deciding(settings: Settings) -> dict[str, Any]:
    told = settings.model_dump(mode="json", include=set(SECTIONS), exclude={"dataset": settings.dataset.undeciding})
    return told | {"recipes": {name: recipe.identity for name, recipe in settings.recipes.items()}}


def _read(path: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says, nothing if there is none; raises ValueError, saying why, if that cannot be settings."""
    content = read_whole(path)
    if content is None:
        return {}
    try:
        found = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"is damaged ({error})" if content.strip(b"\0 \n") else "is empty") from None
    if not isinstance(found, dict) or not found:
        raise ValueError("holds no settings")
    for name in ("bench", "dataset", "training", "recipes"):
        if not isinstance(found.get(name), dict):
            raise ValueError(f"holds no settings of ours: {name} is missing")
    for name, section in now.items():
        if isinstance(section, dict) and not isinstance(found.get(name, section), dict | None):
            raise ValueError(f"holds no settings of ours: {name} is {str(found[name])[:50]}")
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What each key that the two have and that differs is in both."""
    flat = _flat(now)
    there = (OF_OLDER_VERSIONS if before else {}) | _flat(before)
    differing = {key: known for key, known in there.items() if key in flat and flat[key] != known}
    return [f"{key}: {known} there, {flat[key]} now" for key, known in differing.items()]


def _unknown(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys that this version does not have, in the section of any recipe too."""
    optional = {
        "recipes": {*RecipeSettings.model_fields},
        "own_rate": {"own_rate", *OwnRateSettings.model_fields},
    }
    known = _flat(now).keys()
    return sorted(
        key
        for key in _flat(before)
        if key not in known and key.rpartition(".")[2] not in optional.get(key.partition(".")[0], set())
    )


def _joined(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What a file is to say: the present settings, and of what it says already the recipes and keys that they lack."""
    joined = dict(before)
    for key, value in now.items():
        known = before.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            joined[key] = _joined(value, known)
        elif value is not None or known is None:
            joined[key] = value
    return joined


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_records(settings: Settings, damage: str, path: Path) -> None:
    """Raise NasRetrainError if records were made with other settings, where settings.json does not tell."""
    others = recipes_of_other_settings(settings, read_runs(settings.results_dir))
    if others:
        raise NasRetrainError(
            f"{settings.results_dir} holds records of {', '.join(others)} that other settings made, and "
            f"{path.name} {damage or 'does not tell which'}. Put a good copy of it in its place, use those settings "
            "again, or give these results a folder of their own: ARGS='results_dir=...'"
        )


def recipes_of_other_settings(settings: Settings, stored: StoredRuns) -> list[str]:
    """The recipes that are stored, but under none of the hashes that they have by these settings.

    What waits for a search has no hash yet and is not judged, nor are recipes that the settings do not have.
    """
    made = make_plan(_with_networks_of(stored, settings), stored)
    wanted: dict[str, set[str]] = {}
    for training in made.everything:
        recipe = settings.recipes.get(training.recipe)
        if not made.searching or training.tries_rate or (recipe and isinstance(recipe.rate_policy, Fixed | Listed)):
            wanted.setdefault(training.recipe, set()).add(training.config_hash)
    known: dict[str, set[str]] = {}
    for name, config_hash in set(zip(stored.column("recipe"), stored.column("config_hash"), strict=True)):
        known.setdefault(name, set()).add(config_hash)
    return [name for name, hashes in wanted.items() if name in known and not hashes & known[name]]


def _with_networks_of(stored: StoredRuns, settings: Settings) -> Settings:
    """The settings with the networks of all records among their cells. A hash depends on properties of the network too,
    so that records of other cells have others. Own rates are those of the networks that were searched, if any were."""
    recipes, networks = stored.column("recipe"), stored.column("network_class")
    ours = (stored.column("bench") == settings.bench.name) & (networks < registry.of(settings.bench).size)
    searches = {
        RateSearch(name, validated=True).recorded_as
        for name, recipe in settings.recipes.items()
        if isinstance(recipe.rate_policy, Own)
    }
    searched = sorted(
        {network for network, name in zip(networks[ours], recipes[ours], strict=True) if name in searches}
    )
    cells = dict.fromkeys(map(int, [*searched, *chosen_cells(settings), *sorted(set(networks[ours]))]))
    changed: dict[str, object] = {"cells": tuple(cells)}
    if searched and settings.own_rate is not None:
        changed["own_rate"] = settings.own_rate.model_copy(update={"classes": len(searched)})
    return settings.model_copy(update=changed)


def _note(sentence: str) -> None:
    print(f"note: {printable(sentence)}", file=sys.stderr, flush=True)  # noqa: T201 - as the pipeline tells what it reads
