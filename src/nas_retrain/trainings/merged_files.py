"""Which files of lines runs.parquet holds whole, so that what was merged is not read twice.

The note tells the table and the files by digests of their contents. A file that was written to since, or a table that
was changed or replaced, is not what the note speaks of, and is read as if there were none. A file is whole if each of
its lines is a row of the table as it stands there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from nas_retrain.errors import NasRetrainError
from nas_retrain.files.atomic import opened, replacing

NOTE = "merged.json"

_LONGEST = 4 << 20
"""Bytes of a note that is read; one of 10,000 files has a million."""

Digests = Mapping[str, str]
"""The SHA-256 of files, in hexadecimal digits, by their names."""


def read(folder: Path, table_digest: str) -> Digests:
    """The files that the table with this digest holds, with every line of theirs; none if nothing says so."""
    try:
        with opened(folder / NOTE) as file:
            note = json.loads(file.read(_LONGEST + 1)[:_LONGEST])
        files = note["files"] if note["table"] == table_digest else {}
        return dict(files.items())
    except (NasRetrainError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        return {}  # whatever it is, all files are read then


def write(folder: Path, table_digest: str, files: Digests) -> None:
    """Say so, where the folder can be written: a note spares time and nothing else."""
    with suppress(NasRetrainError), replacing(folder / NOTE) as temporary:
        temporary.write_text(json.dumps({"table": table_digest, "files": dict(files)}, indent=0))


def still_is(path: Path, digest: str | None) -> bool:
    """Whether a file has this digest; raises NasRetrainError if it is not a regular file or cannot be read."""
    if digest is None:
        return False
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest
