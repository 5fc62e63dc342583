"""What the scripts share: compose the configuration with Hydra, run a stage, and tell errors in a sentence."""

from __future__ import annotations

import gc
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from nas_retrain.config import Settings, to_settings
from nas_retrain.errors import NasRetrainError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parents[1]
"""Where configs, scripts and slurm lie: in an installed package, or in a checkout."""

CONFIGS = ROOT / "configs"
SITES = f"hydra.searchpath=[file://{ROOT / 'slurm'}]"
"""Makes slurm/site a group of the configuration, beside those in configs."""


def compose(*overrides: str, config: str = "config") -> Settings:
    """The settings that these overrides of the defaults in configs/<config>.yaml give, inside a stage or outside."""
    inside = GlobalHydra.instance().is_initialized()
    with nullcontext() if inside else hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return to_settings(hydra.compose(config, overrides=[SITES, *overrides]))


def run(stage: Callable[[Settings], None], config: str = "config") -> None:
    """Run a stage with the settings that the command line asks for; exits with 2 and a message on a user's mistake."""

    @hydra.main(config_path=str(CONFIGS), config_name=config, version_base="1.3")
    def main(composed: DictConfig) -> None:
        for stream in (sys.stdout, sys.stderr):  # names of files may hold bytes that no text has
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            stage(to_settings(composed))
        except NasRetrainError as error:
            sys.exit(_tell(error))
        except KeyboardInterrupt:
            sys.exit(130)

    # A plan is hundreds of thousands of small objects, none of them in a cycle: looking for cycles among them again and
    # again, as Python would by default, takes as long as all else.
    gc.set_threshold(100_000, 20, 100)
    # What make was given arrives in the environment, split here: no shell reads it.
    given = [*shlex.split(os.environ.get("NAS_RETRAIN_ARGS", "")), *sys.argv[1:]]
    # Hydra reads 201 as a number, but names of group files are strings.
    given = [re.sub(r"^bench=(\d+)$", r"bench='\1'", argument) for argument in given]
    sys.argv = [sys.argv[0], SITES, *given]
    main()


def main() -> None:
    """The command nas-retrain: run the stage that its first argument names, with the others as settings."""
    stages = {path.stem: path for path in sorted((ROOT / "scripts").glob("*.py"))}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in stages:
        print(f"usage: nas-retrain {{{','.join(stages)}}} [key=value ...]", file=sys.stderr)  # noqa: T201
        print("nas-retrain retrain --help lists the keys.", file=sys.stderr)  # noqa: T201
        sys.exit(0 if name in ("-h", "--help") else 2)
    sys.argv = [str(stages[name]), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _tell(error: NasRetrainError) -> int:
    print(f"\nnas-retrain: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
    return 2
