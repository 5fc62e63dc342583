"""The commands, and how one is run: with the settings that its arguments ask for, and errors told in a sentence.

Nothing heavy is imported before it is needed: `nas-retrain --version` answers at once, and Ctrl-C is quiet while
modules load.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import io
import os
import select
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from nas_retrain.errors import NasRetrainError, printable

if TYPE_CHECKING:
    from nas_retrain.settings import Settings

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parents[1]
"""Where configs and slurm lie: in an installed package, or in a checkout."""

CONFIGS = ROOT / "configs"

INTERRUPTED = 130
"""The exit status after Ctrl-C."""

NOBODY_READS = 141
"""The exit status where the reader of the output has gone, as in `nas-retrain plan | head -1`."""


@dataclass(frozen=True)
class Command:
    """What a command does in one line, the function that does it (module:name), and the file in configs/ that holds
    its defaults."""

    summary: str
    function: str
    config: str = "config"

    def load(self) -> Callable[[Settings], None]:
        """The function, whose modules take seconds to import."""
        module, _, name = self.function.partition(":")
        function: Callable[[Settings], None] = getattr(importlib.import_module(module), name)
        return function


COMMANDS = {
    "retrain": Command(
        "plan, search rates, train what is missing and analyse; run again to continue",
        "nas_retrain.commands.retrain:retrain",
    ),
    "plan": Command(
        "print what retrain would do, what it would cost and what blocks it; starts and writes nothing",
        "nas_retrain.commands.retrain:print_plan",
    ),
    "status": Command("tell where a retraining stands", "nas_retrain.commands.status:status_of_folder"),
    "cancel": Command("cancel a retraining's jobs on SLURM, and no others", "nas_retrain.commands.retrain:cancel"),
    "verify": Command(
        "search the learning rates of sampled networks and compare them with the rule's",
        "nas_retrain.commands.retrain:retrain",
        "verify",
    ),
    "scoreboard": Command(
        "put every scaling rule through the same tests; run again to continue",
        "nas_retrain.commands.scoreboard:scoreboard",
        "scoreboard",
    ),
    "analyze": Command(
        "compare the rankings of two tables of accuracies, or of a results folder's recipes",
        "nas_retrain.commands.retrain:analyse",
    ),
    "algorithms": Command(
        "replay search algorithms on one or two tables of accuracies",
        "nas_retrain.commands.by_study:algorithms",
    ),
    "own_rates": Command(
        "find each network's own best learning rate in a table of trainings at several rates",
        "nas_retrain.commands.by_study:own_rates",
    ),
    "proxies": Command(
        "tell how well cheap trainings stand for long ones, by recipe", "nas_retrain.commands.by_study:proxies"
    ),
    "export": Command(
        "write the accuracies for nas-bench-201, nats_bench and as tables, below the results folder",
        "nas_retrain.commands.export:print_export",
    ),
    "cells": Command("write the table of all cells of a benchmark", "nas_retrain.commands.cells:cells"),
    "gpu_check": Command(
        "check that trainings on this machine's GPU are right, and tune how they are launched there",
        "nas_retrain.commands.gpu_check:gpu_check",
    ),
    "roofline": Command("bound a step's time on a GPU by its figures", "nas_retrain.commands.roofline:print_roofline"),
}


def compose(*overrides: str, config: str = "config") -> Settings:
    """The settings that these overrides of the defaults in configs/<config>.yaml give; raises NasRetrainError."""
    from nas_retrain.commands import composition

    return composition.compose(overrides, config)


def run(stage: Callable[[Settings], None], config: str = "config") -> None:
    """Run a stage with the settings that the command line asks for; exits with 2 and a message on a user's mistake."""
    with _as_a_command():
        _run(stage, config)


def run_command(name: str) -> None:
    """Run the command of this name as `run` does."""
    command = COMMANDS[name]
    with _as_a_command():
        with _interrupts_end_at_once():
            from nas_retrain.commands import composition  # noqa: F401 - takes seconds, too

            stage = command.load()
        _run(stage, command.config)


@contextmanager
def _interrupts_end_at_once() -> Iterator[None]:
    """Ctrl-C ends the process without a word, while modules are imported: nothing has begun that would be lost, and
    some extension modules would report the interrupt as an error of their own."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's background is deaf to Ctrl-C
    if heeded:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    yield
    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(stage: Callable[[Settings], None], config: str) -> None:
    from nas_retrain.commands import composition

    # A plan is hundreds of thousands of small objects, none of them in a cycle: looking for cycles among them again and
    # again, as Python would by default, takes as long as all else.
    gc.set_threshold(100_000, 20, 100)
    for settings in composition.from_command_line([*sys.argv[1:], *given_to_make(os.environ)], config):
        stage(settings)


@contextmanager
def _as_a_command() -> Iterator[None]:
    """Tell a user's mistake in a sentence and exit with 2; be quiet about Ctrl-C and about a reader that has gone."""
    for stream in (sys.stdout, sys.stderr):  # names of files may hold bytes that no text has
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    shown, warnings.showwarning = warnings.showwarning, _as_a_note
    try:
        try:
            yield
        finally:
            warnings.showwarning = shown
            if _nobody_reads():
                sys.exit(NOBODY_READS)
    except NasRetrainError as error:
        print(f"\nnas-retrain: {printable(str(error))}", file=sys.stderr)  # noqa: T201 - this is the command line
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _as_a_note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,  # noqa: ARG001 - as warnings calls it
    line: str | None = None,
) -> None:
    """Tell a warning in a sentence; of one that is meant for programmers, tell the line of code too."""
    for_users = category is UserWarning
    told = str(message) if for_users else warnings.formatwarning(message, category, filename, lineno, line).strip()
    print(f"note: {printable(told)}", file=sys.stderr)  # noqa: T201 - this is the command line


def _nobody_reads() -> bool:
    """Whether whoever was to read the standard output has closed it. What is still to be written then goes nowhere."""
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    try:
        output = sys.stdout.fileno()
    except (io.UnsupportedOperation, ValueError):  # it is no file
        return False
    polling = select.poll()
    polling.register(output, 0)
    if not any(event & select.POLLERR for _, event in polling.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True


def given_to_make(environment: Mapping[str, str]) -> list[str]:
    """The settings in the variables that the Makefile hands over as they are: those named after a key, and ARGS, split
    as a shell would, which none does. Raises NasRetrainError for ARGS with an open quote."""
    named = ("BENCH", "DATASET", "PROFILE", "LAUNCHER", "SITE", "ORIGINAL", "RETRAINED")
    given = {name.lower(): environment.get(f"NAS_RETRAIN_{name}") for name in named}
    given["results_dir"] = environment.get("NAS_RETRAIN_RESULTS")
    given["rate_table.batch_size"] = environment.get("NAS_RETRAIN_BATCH")
    arguments = environment.get("NAS_RETRAIN_ARGS", "")
    try:
        return [*(f"{key}={value}" for key, value in given.items() if value), *shlex.split(arguments)]
    except ValueError as error:
        raise NasRetrainError(f"ARGS={arguments}: {error}. Quote as in a shell: ARGS=\"key='a value'\".") from None


def main() -> None:
    """The program nas-retrain: run the command that its first argument names, with the others as settings."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name.replace("-", "_") in COMMANDS:  # make's targets have hyphens
        name = name.replace("-", "_")
        sys.argv = [f"nas-retrain {name}", *sys.argv[2:]]
        run_command(name)
        return
    with _as_a_command():
        if name == "--version":
            from nas_retrain.trainings.version import code_version

            print(f"nas-retrain {code_version()}")  # noqa: T201
        elif name in ("-h", "--help"):
            print(_usage())  # noqa: T201
        else:
            print(_usage(), file=sys.stderr)  # noqa: T201
            meant = difflib.get_close_matches(name, COMMANDS, n=1)
            asked = f" Did you mean {meant[0]}?" if meant else ""
            raise NasRetrainError(f"{name}: there is no such command.{asked}" if name else "which command?")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: nas-retrain COMMAND [key=value ...]",
            "",
            "Retrain NAS benchmarks with architecture-aware hyperparameters and see how the rankings change.",
            "",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "nas-retrain COMMAND --help lists the keys; nas-retrain --version tells the version.",
        ]
    )


def _quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _quietly

if __name__ == "__main__":
    main()
