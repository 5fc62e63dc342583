"""Which code made a record."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from nas_retrain import __version__


@cache
def code_version() -> str:
    """The package's version and, in a git checkout, its commit ("+" where files were changed since)."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return __version__
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({described.stdout.strip()})"


def analysis_versions() -> str:
    """The versions that a report's figures depend on."""
    packages = [f"{name} {version(name)}" for name in ("numpy", "pandas", "scipy", "matplotlib")]
    return ", ".join([f"nas-retrain {code_version()}", *packages])
