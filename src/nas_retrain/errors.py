"""The one exception type for mistakes that a user can mend."""

from __future__ import annotations

import errno
import reprlib
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


def printable(text: str, longest: int | None = None) -> str:
    """Text that may come from a file, with characters that could control a terminal written as escapes.

    longest: for a part of a line, whose line ends are escapes too: how many letters are shown, before three dots.
    """
    kept = "\n" if longest is None else ""
    plain = "".join(
        letter if letter.isprintable() or letter in kept else ascii(letter)[1:-1] for letter in text[:longest]
    )
    return plain if longest is None or len(text) <= longest else f"{plain}..."


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2
_BRIEF.maxtuple = 8
_BRIEF.maxstring = 60
_BRIEF.maxother = 1000


def shown(value: object, longest: int = 80) -> str:
    """A wrong value, of any kind, as a part of a line: as Python writes it, what holds much cut short; or its type."""
    try:
        text = _BRIEF.repr(value)
    except Exception:  # noqa: BLE001 - of a foreign class, or a whole number with more digits than Python prints
        text = ""
    return printable(text, longest) if 0 < len(text) <= longest else f"of type {type(value).__name__}"
