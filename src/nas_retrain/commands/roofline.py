"""The least time of a training step on a GPU of given figures: operations, bytes and kernels of each class."""

import sys

from tqdm import tqdm

from nas_retrain.commands.retrain import say
from nas_retrain.execution import roofline as bounds
from nas_retrain.files.atomic import replacing
from nas_retrain.plan.plan import chosen_cells
from nas_retrain.settings import Settings


def roofline(settings: Settings) -> None:
    """Write a table with a row for each cell into the folder `roofline` beside the results folder, and print means."""
    cells, gpu, precision = chosen_cells(settings), settings.gpu, settings.training.precision
    with tqdm(total=len(cells), unit="cell", file=sys.stderr) as bar:
        table = bounds.measure(cells, settings, lambda _: bar.update())
    path = settings.results_dir.parent / "roofline" / f"{settings.dataset.name}-{gpu.short_name}-{precision}.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g")
    say(f"{gpu.name}: {gpu.gigabytes_per_second:g} GB/s, {gpu.teraflops[precision]:g} Tflop/s in {precision}")
    say(f"A step of {settings.training.batch_size} images of {settings.dataset.name}, over {len(cells):,} networks:")
    say(table.drop(columns=["cell", "arch"]).describe().loc[["mean", "min", "max"]].to_string(float_format="%.4g"))
    say("The milliseconds are a bound below: see docs for what they leave out.")
    say(path)
