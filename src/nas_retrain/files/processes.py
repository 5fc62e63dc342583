"""Names for processes, by which another process can find out later whether they still run."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"(\d+)-(\d*)-(\d*)@(.+)")


def this_process() -> str:
    """The name of the process that asks: number, start (in clock ticks since the machine's), number space, host.

    Without /proc, start and number space are left out. The number alone is not enough: the system uses numbers
    again, and each container on a host counts its own.
    """
    host = socket.gethostname().replace("/", "_")
    return f"{os.getpid()}-{_start(os.getpid()) or ''}-{_number_space()}@{host}"


def has_ended(name: str) -> bool | None:
    """Whether the process of that name has ended; None if that cannot be known here or `name` is not such a name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    number, start, space, host = int(found[1]), found[2], found[3], found[4]
    if (space, host) != (_number_space(), socket.gethostname().replace("/", "_")):
        return None
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it lives, and is another user's
    return bool(start) and _start(number) != start


def _start(number: int) -> str | None:
    """When a process started; None if it does not run, or where there is no /proc."""
    with suppress(OSError):
        state, *others = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state in "ZX" else others[18]  # a zombie is only remembered; the order is that of proc(5)
    return None


def _number_space() -> str:
    with suppress(OSError):
        return "".join(re.findall(r"\d", str(Path("/proc/self/ns/pid").readlink())))
    return ""
