"""What the scripts share: run a stage with the settings that the command line asks for, and tell errors in a sentence.

Nothing heavy is imported before it is needed: `nas-retrain --version` answers at once, and Ctrl-C is quiet while
modules load.
"""

from __future__ import annotations

import gc
import io
import os
import runpy
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from nas_retrain.errors import NasRetrainError, printable

if TYPE_CHECKING:
    from nas_retrain.settings import Settings

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parents[1]
"""Where configs, scripts and slurm lie: in an installed package, or in a checkout."""

CONFIGS = ROOT / "configs"

INTERRUPTED = 130
"""The exit status after Ctrl-C."""


def compose(*overrides: str, config: str = "config") -> Settings:
    """The settings that these overrides of the defaults in configs/<config>.yaml give; raises NasRetrainError."""
    from nas_retrain.commands import composition

    return composition.compose(overrides, config)


def run(stage: Callable[[Settings], None], config: str = "config") -> None:
    """Run a stage with the settings that the command line asks for; exits with 2 and a message on a user's mistake."""
    from nas_retrain.commands import composition

    for stream in (sys.stdout, sys.stderr):  # names of files may hold bytes that no text has
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A plan is hundreds of thousands of small objects, none of them in a cycle: looking for cycles among them again and
    # again, as Python would by default, takes as long as all else.
    gc.set_threshold(100_000, 20, 100)
    try:
        for settings in composition.from_command_line([*sys.argv[1:], *given_to_make(os.environ)], config):
            stage(settings)
    except NasRetrainError as error:
        print(f"\nnas-retrain: {printable(str(error))}", file=sys.stderr)  # noqa: T201 - this is the command line
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def given_to_make(environment: Mapping[str, str]) -> list[str]:
    """The settings in the variables that the Makefile hands over as they are: those named after a key, and ARGS, split
    as a shell would, which none does. Raises NasRetrainError for ARGS with an open quote."""
    named = ("BENCH", "DATASET", "PROFILE", "LAUNCHER", "SITE", "ORIGINAL", "RETRAINED")
    given = {name.lower(): environment.get(f"NAS_RETRAIN_{name}") for name in named}
    given["rate_table.batch_size"] = environment.get("NAS_RETRAIN_BATCH")
    arguments = environment.get("NAS_RETRAIN_ARGS", "")
    try:
        return [*(f"{key}={value}" for key, value in given.items() if value), *shlex.split(arguments)]
    except ValueError as error:
        raise NasRetrainError(f"ARGS={arguments}: {error}. Quote as in a shell: ARGS=\"key='a value'\".") from None


def main() -> None:
    """The command nas-retrain: run the stage that its first argument names, with the others as settings."""
    stages = {path.stem: path for path in sorted((ROOT / "scripts").glob("*.py"))}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "--version":
        from nas_retrain.trainings.version import code_version

        print(f"nas-retrain {code_version()}")  # noqa: T201
        return
    if name not in stages:
        print(f"usage: nas-retrain {{{','.join(stages)}}} [key=value ...]", file=sys.stderr)  # noqa: T201
        print("nas-retrain retrain --help lists the keys.", file=sys.stderr)  # noqa: T201
        sys.exit(0 if name in ("-h", "--help") else 2)
    sys.argv = [str(stages[name]), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _quietly  # scripts import this module before those that take seconds
