"""The browser that the tests of pages drive: a Chromium or Chrome of this machine, else one that is fetched for them.

`python -m tests.browser`, which `make test` runs first, sees to it that there is one as far as it may.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPLICATIONS = ("Google Chrome", "Chromium")
STAMP = Path(sys.prefix) / ".browser"
"""Holds the path of the browser that was found; empty if none was to be had, so that fetching is tried only once."""

PATIENCE = 600
"""Seconds that fetching a browser, or installing one, may take."""

MISSING = (
    "NO BROWSER: the pages are not tested. Install Chromium or Chrome, by your system's packages or by "
    ".venv/bin/python -m playwright install --with-deps chromium"
)


def executable() -> str | None:
    """The browser that was found before, or else the first one of this machine that starts."""
    remembered = STAMP.read_text() if STAMP.exists() else ""
    if Path(remembered).is_file():
        return remembered
    return next(filter(starts, candidates()), None)


def candidates() -> Iterator[str]:
    """Where a browser may be on this machine."""
    yield from filter(None, map(shutil.which, NAMES))
    for name in APPLICATIONS:
        for folder in (Path("/Applications"), Path.home() / "Applications"):
            yield str(folder / f"{name}.app" / "Contents" / "MacOS" / name)
    try:
        with sync_playwright() as playwright:
            fetched = playwright.chromium.executable_path
    except Exception:  # noqa: BLE001 - it raises a plain one where its driver does not start
        return
    yield fetched


def starts(path: str) -> bool:
    """Whether a file is a browser that can be driven: some systems have a script of that name that installs one."""
    if not Path(path).is_file():
        return False
    try:
        with sync_playwright() as playwright:
            playwright.chromium.launch(executable_path=path).close()
    except Exception:  # noqa: BLE001 - of the browser, or a plain one where playwright's driver does not start
        return False
    return True


def fetch() -> None:
    """Have playwright fetch its Chromium; where there is no network, nothing comes of it."""
    _attempt(sys.executable, "-m", "playwright", "install", "chromium")


def install() -> None:
    """Install the system's Chromium, where that needs neither a password nor a question, and what playwright's driver
    needs beside it."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _attempt("apt-get", "update")
        _attempt("apt-get", "install", "--yes", "--no-install-recommends", "chromium", "libatomic1")


def _attempt(*command: str) -> None:
    print(f"No browser for the tests of pages: trying {' '.join(command)}", flush=True)
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(command, env=environment, timeout=PATIENCE, check=False, **quiet)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(error)


def main() -> int:
    """Find a browser, or get one; a machine of continuous integration must have one, any other may do without."""
    found = executable()
    if not STAMP.exists():
        for way in (fetch, install):
            if found is None:
                way()
                found = executable()
    STAMP.write_text(found or "")
    if found is None:
        print(MISSING)
    return int(found is None and bool(os.environ.get("CI")))


if __name__ == "__main__":
    sys.exit(main())
