"""Whether trainings on this machine's GPU are right, and how to launch them there."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from nas_retrain.commands.command_line import compose
from nas_retrain.commands.retrain import say
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import gpu_verdicts
from nas_retrain.settings import Settings

CELLS = 8

MINUTES = 10
"""That all of it may take on a GPU."""


def gpu_check(settings: Settings) -> None:
    """Run every check that can be run here, tell and store the findings, and tune the launcher if all passed.

    On a machine without a GPU it runs what can be run on the CPU, with small networks, and stores nothing. Raises
    NasRetrainError if a check failed.
    """
    import torch

    from nas_retrain.execution import devices, gpu_check, gpu_tuning
    from nas_retrain.execution.gpu_check import Finding
    from nas_retrain.execution.train import choose_device

    begun = time.perf_counter()
    kind = choose_device(settings.launcher.device).type
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    devices.take(device, 1)
    chosen = ["dataset=digits", "profile=dry", "launcher=local", f"launcher.device={kind}", "dataset.verify=false"]
    with tempfile.TemporaryDirectory() as folder:
        learnable = compose(*chosen, f"results_dir={folder}/digits", f"data_dir={folder}/data")
        trained = settings if kind == "cuda" else learnable
        subject = gpu_check.Subject(device, trained, covering_cells(settings), learnable, Path(folder))

        def tell(name: str, found: Finding) -> None:
            say(f"{found.verdict:8} {name}: {found.told}")

        findings = gpu_check.run(subject, gpu_check.CHECKS, tell)
        failed = [name for name, found in findings.items() if found.verdict == "failed"]
        untried = [name for name, found in findings.items() if found.verdict == "not run"]
        tuned: dict[str, Any] = {}
        if kind == "cuda" and not failed and not untried:
            tuned = gpu_tuning.tune(subject, say, 60 * MINUTES - (time.perf_counter() - begun))
    if kind != "cuda":
        say(f"Nothing is stored: {gpu_check.NO_GPU}. What could be run here took {time.perf_counter() - begun:.0f} s.")
    else:
        verdict = "failed" if failed else "incomplete" if untried else "passed"
        told = "failed: " + ", ".join(failed) if failed else "not run: " + ", ".join(untried) if untried else ""
        gpu_verdicts.write(
            gpu_verdicts.FILE,
            {
                "key": gpu_verdicts.key(),
                "verdict": verdict,
                "told": told,
                "seconds": round(time.perf_counter() - begun),
                "findings": {name: vars(found) for name, found in findings.items()},
                "tuning": tuned,
            },
        )
        say(f"{gpu_verdicts.FILE}: {verdict}")
        if tuned:
            path = gpu_tuning.write_site(tuned, Path("slurm/site"), settings)
            say(f"{path}: choose it with SITE={path.stem}. For SLURM, name partition and account in it first.")
    if failed:
        raise NasRetrainError(
            f"{', '.join(failed)} failed on {devices.called(str(device))}: do not train there. If another GPU of the "
            "same kind passes, this one is at fault; if none does, the driver, torch or this code is."
        )


def covering_cells(settings: Settings) -> tuple[int, ...]:
    """Cells that have every operation of the space between them, always the same ones."""
    from nas_retrain.benches import registry
    from nas_retrain.benches.registry import Sizes
    from nas_retrain.plan import plan

    chosen = plan.chosen_cells(settings.model_copy(update={"cells": f"sample:{CELLS}", "sample_seed": 0}))
    bench = registry.of(settings.bench)
    return tuple(sorted(chosen, key=lambda cell: bench.flops(bench.graph_at(cell), Sizes.of(settings))))
