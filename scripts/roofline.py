"""The least time that a training step can take on a GPU of given figures: operations, bytes and kernels of each class."""

import sys

from tqdm import tqdm

from nas_retrain.commands.command_line import run
from nas_retrain.execution import roofline
from nas_retrain.plan.plan import chosen_cells
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import replacing


def main(settings: Settings) -> None:
    """Write a table with a row for each cell into the folder `roofline` beside the results folder, and print means."""
    cells, gpu, precision = chosen_cells(settings), settings.gpu, settings.training.precision
    with tqdm(total=len(cells), unit="cell", file=sys.stderr) as bar:
        table = roofline.measure(cells, settings, lambda _: bar.update())
    path = settings.results_dir.parent / "roofline" / f"{settings.dataset.name}-{gpu.short_name}-{precision}.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g")
    print(f"{gpu.name}: {gpu.gigabytes_per_second:g} GB/s, {gpu.teraflops[precision]:g} Tflop/s in {precision}")
    print(f"A step of {settings.training.batch_size} images of {settings.dataset.name}, over {len(cells):,} networks:")
    print(table.drop(columns=["cell", "arch"]).describe().loc[["mean", "min", "max"]].to_string(float_format="%.4g"))
    print("The milliseconds are a bound below: see docs for what they leave out.")
    print(path)


if __name__ == "__main__":
    run(main)
