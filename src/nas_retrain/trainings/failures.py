"""The log of trainings that failed (logs/failures-*.jsonl), as far as it can be read: it decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic_core import from_json

from nas_retrain.errors import NasRetrainError
from nas_retrain.files.atomic import read_whole
from nas_retrain.trainings.store import RunKey


class Failures(NamedTuple):
    """The trainings that failed at any time, with their last error, and a sentence for each file that cannot be
    read."""

    errors: dict[RunKey, str]
    problems: list[str]


def read_failures(folder: Path) -> Failures:
    """The failures that a results folder tells of, one JSON object a line: key, when, error; a later success does not
    remove them. Torn and foreign lines tell nothing."""
    errors: dict[RunKey, str] = {}
    problems: list[str] = []
    for path in sorted((folder / "logs").glob("failures-*.jsonl")):
        try:
            content = read_whole(path) or b""
        except NasRetrainError as error:
            problems.append(f"{error} Only why trainings failed is not known then.")
            continue
        for line in content.split(b"\n"):
            if (failure := _failure(line)) is not None:
                errors[failure[0]] = failure[1]
    return Failures(errors, problems)


def _failure(line: bytes) -> tuple[RunKey, str] | None:
    try:
        found = from_json(line, allow_inf_nan=False)
    except ValueError:
        return None
    key, error = (found.get("key"), found.get("error")) if isinstance(found, dict) else (None, None)
    if not isinstance(key, list) or len(key) != len(RunKey._fields) or not isinstance(error, str) or not error.strip():
        return None
    kinds = (str, str, str, int, int, str)
    if any(type(part) is not kind for part, kind in zip(key, kinds, strict=True)):
        return None
    return RunKey(*key), error


def first_line(trace: str) -> str:
    """What a traceback, or another message, says first of the error itself; torch appends hints on how to debug."""
    lines = trace.strip().splitlines() or [""]
    last_call = max((number for number, line in enumerate(lines) if line.startswith("  File ")), default=-1)
    after = lines[last_call + 1 :] if last_call >= 0 else lines
    return next((line.strip() for line in after if not line.startswith(" ")), lines[-1].strip())
