"""What `make gpu-check` found, in one file: a verdict for each kind of GPU with each version of the software."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_retrain.errors import cannot_write
from nas_retrain.execution import devices
from nas_retrain.files.atomic import replacing
from nas_retrain.trainings.version import code_version

FILE = Path("results/gpu_check.json")
"""Relative to the working directory, as the default results folders are: what is found holds for all of them."""


def key() -> dict[str, str]:
    """What a verdict holds for: the kind of GPU that is here, torch, cuDNN, and this code."""
    import torch

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cudnn": devices.cudnn_version(),
        "code": code_version(),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The verdicts that a file holds; none if it is absent or no such file."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    listed = found.get("checks") if isinstance(found, dict) else None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def write(path: Path, verdict: Mapping[str, Any]) -> None:
    """Add a verdict, in place of an earlier one with the same key. Raises NasRetrainError if that cannot be."""
    others = [one for one in read(path) if one.get("key") != verdict["key"]]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"checks": [*others, verdict]}, indent=1) + "\n")


def missing(path: Path) -> str:
    """Why trainings on this machine's GPU are not known to be right, in a sentence; empty if they are."""
    try:
        here = key()
    except RuntimeError as error:
        return f"the first GPU cannot be asked for its name, so that nobody knows whether it was checked: {error}"
    named = f"{here['gpu']} with torch {here['torch']}, cuDNN {here['cudnn']} and nas-retrain {here['code']}"
    found = next((one for one in read(path) if one.get("key") == here), None)
    if found is None:
        return f"{path} has no check of {named}. Run make gpu-check here first; it takes minutes."
    if found.get("verdict") != "passed":
        return f"{path} says that {named} did not pass: {found.get('told', '')}"
    return ""
