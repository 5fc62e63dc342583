"""`make roofline`: the least time that a training step can take on a GPU of given figures, for each network."""

from __future__ import annotations

import sys

from tqdm import tqdm

from nas_retrain.benches.registry import graph_of
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import roofline
from nas_retrain.files.atomic import replacing
from nas_retrain.plan.plan import chosen_cells
from nas_retrain.settings import Settings


def print_roofline(settings: Settings) -> None:
    """Write a table with a row for each connected cell into the folder `roofline` beside the results folder, and print
    means. Raises NasRetrainError if no chosen cell is connected."""
    gpu, precision = settings.gpu, settings.training.precision
    cells = [cell for cell in chosen_cells(settings) if graph_of(cell, settings).connected]
    if not cells:
        raise NasRetrainError(f"cells={settings.cells}: none is connected, and only connected cells are trained.")
    with tqdm(total=len(cells), unit="cell", file=sys.stderr) as bar:
        table = roofline.measure(cells, settings, bar.update)
    path = settings.results_dir.parent / "roofline" / f"{settings.dataset.name}-{gpu.short_name}-{precision}.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g")
    figures = table.drop(columns=["cell", "arch"]).describe().loc[["mean", "min", "max"]]
    lines = [
        f"{gpu.name}: {gpu.gigabytes_per_second:g} GB/s, {gpu.teraflops[precision]:g} Tflop/s in {precision}.",
        f"A step of {settings.training.batch_size} images of {settings.dataset.name}, over {len(cells):,} networks:",
        figures.to_string(float_format="%.4g"),
        "The milliseconds are the least that these figures allow: nothing was measured on a GPU.",
        str(path),
    ]
    print("\n".join(lines))  # noqa: T201 - this is the command line
