"""NVIDIA's Multi-Process Service (MPS): the daemon through which several processes compute on one GPU at the same time.

Without it they take turns. A daemon belongs to the folder of its pipes, which processes find it by
(CUDA_MPS_PIPE_DIRECTORY); so one that is started here serves this process's children and nobody else's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
"""The program that starts the daemon, with -d, and sends it what it reads from its standard input."""

PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"

PATIENCE = 30.0
"""Seconds that the program may take to answer."""

QUIT_WITHIN = 10
"""Seconds after which the daemon, asked to end, ends whatever still uses it."""


@contextmanager
def running() -> Iterator[str]:
    """A context in which the processes that are started share GPUs through MPS. It yields an empty text, or why there
    is no MPS.

    A daemon that answers already, the site's or somebody else's, is used and left as it is. Otherwise one is started,
    with folders of its own for pipes and logs, and ended with the context.
    """
    if shutil.which(CONTROL) is None:
        yield f"there is no {CONTROL} on this machine, which comes with NVIDIA's driver"
        return
    if answers():
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="nas-retrain-mps-", ignore_cleanup_errors=True) as folder:
        own = {PIPES: f"{folder}/pipes", LOGS: f"{folder}/logs"}
        before = {name: os.environ.get(name) for name in own}
        for path in own.values():
            Path(path).mkdir()
        os.environ.update(own)
        try:
            why = _start(Path(own[LOGS]))
            try:
                yield why
            finally:
                if not why:
                    _ask(f"quit -t {QUIT_WITHIN}")
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def answers() -> bool:
    """Whether a daemon answers that processes started now would find."""
    return _ask("get_server_list")


def _ask(command: str) -> bool:
    """Send a command to the daemon; tells whether it did as it was told."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed name
            [CONTROL], input=f"{command}\n".encode(), capture_output=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _start(logs: Path) -> str:
    """Start a daemon in the folders that the environment names; returns why it could not be, or nothing."""
    # The daemon would number the GPUs that it is shown anew, and processes with the same variable then find none.
    shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    why = "it does not answer"
    try:
        # It lives on with what it inherits, so that a pipe for its output would never end.
        done = subprocess.run(  # noqa: S603 - a fixed name
            [CONTROL, "-d"],
            env=shown,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us, who end it once the workers have saved
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        why = str(error)
    else:
        if done.returncode == 0 and answers():
            return ""
        if done.returncode:
            why = f"exit code {done.returncode}"
    with suppress(OSError):
        told = (logs / "control.log").read_text(errors="replace").splitlines()
        why += f"; {told[-1]}" if told else ""
    return f"{CONTROL} -d failed: {why}"
