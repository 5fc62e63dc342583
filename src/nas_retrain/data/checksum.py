"""MD5 sums of a data set's files, by which the published contents are recognised."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from nas_retrain.errors import NasRetrainError
from nas_retrain.files.file_kind import seems


def of(file: io.BufferedIOBase) -> str:
    """The sum of what `file` holds from its position on, in hexadecimal digits."""
    return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def altered(path: Path, remedy: str) -> NasRetrainError:
    """The error for a file with other contents than the published one."""
    what = seems(path) or "it is damaged, incomplete or another version"
    return NasRetrainError(
        f"{path} has not the published contents, by its MD5 sum: {what}. {remedy}, or take the files as they are: "
        "ARGS='dataset.verify=false'."
    )
