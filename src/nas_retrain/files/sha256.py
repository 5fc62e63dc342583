"""The SHA-256 of a file, by which its contents are known wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path


def of(path: Path) -> str:
    """The sum in hexadecimal digits; raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_bytes(content: bytes) -> str:
    """The same of what is in memory."""
    return hashlib.sha256(content).hexdigest()
