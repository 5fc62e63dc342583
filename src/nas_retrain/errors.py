"""The one exception type for mistakes that a user can mend."""

from __future__ import annotations

import errno
from pathlib import Path


class NasRetrainError(Exception):
    """Something that the user can mend: a file, a key, a full disk.

    The message names the file or key, what was expected and the remedy; the command line prints it alone, without
    a traceback. Anything else that escapes is a defect of this package.
    """


def cannot_write(path: Path, error: OSError) -> NasRetrainError:
    """What to raise where the system refuses to write `path`: it says whether the disk is full, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NasRetrainError(
            f"Cannot write {path}: the disk or quota is full. Everything written before is kept; free some space and "
            "run the same command again."
        )
    return NasRetrainError(
        f"Cannot write {path}: {error.strerror or error}. Check the permissions, or give another folder with "
        "results_dir=..."
    )


def printable(text: str) -> str:
    """Text that may come from a file, with characters that could control a terminal written as escapes."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)
