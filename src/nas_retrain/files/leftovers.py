"""Files and folders that are written under a name of their own before they take their place, and what is left of them
when their writer is killed. The name says which process writes, so that no other one removes what is
still being written."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from nas_retrain.files.processes import has_ended, this_process

LONGEST_WRITE_SECONDS = 24 * 3600
"""A temporary of a process on another host, which cannot be asked, is left over once it is older than this."""

_TEMPORARY = re.compile(r"\..*~([^~]+@[^~]+)~\w{8}(\.[^~]*)?", re.DOTALL)


def temporary_prefix(path: Path) -> str:
    """How the name of a temporary for `path` begins, for `tempfile`."""
    name = path.name.encode(errors="surrogateescape")[:100].decode(errors="ignore")  # names have 255 bytes at most
    return f".{name}~{this_process()}~"


def remove_leftovers(folder: Path) -> None:
    """Remove the temporaries of dead processes at any depth below `folder`."""
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            found = _TEMPORARY.fullmatch(name)
            path = Path(parent, name)
            if found is None or not _is_left_over(path, found[1]):
                continue
            if name in folders:
                shutil.rmtree(path, ignore_errors=True)
                folders.remove(name)
            else:
                with suppress(OSError):
                    path.unlink()


def _is_left_over(path: Path, writer: str) -> bool:
    ended = has_ended(writer)
    if ended is not None:
        return ended
    try:
        return time.time() - path.stat().st_mtime > LONGEST_WRITE_SECONDS
    except OSError:
        return False
