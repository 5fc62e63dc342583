"""Measure training speed on this machine against the straightforward way of training, and what the benchmark costs."""

from benchmarks import results, speed
from nas_retrain.commands.command_line import compose, run
from nas_retrain.files.atomic import replacing
from nas_retrain.settings import Settings


def measure(digits: Settings) -> None:
    """Write tables and summaries into the folder `speed` beside the results folder; minutes on two cores."""
    full = compose("dataset=cifar10", "profile=full", "launcher=local", f"launcher.device={digits.launcher.device}")
    folder = digits.results_dir.parent / "speed"
    cells = speed.sample_of_cells(full, 24)
    steps = speed.measure_steps(full, cells)
    workers = speed.measure_workers(digits, cells[:8])
    data, peaks = speed.measure_data(full), speed.measure_peaks(full)
    profile = speed.measure_profile(full, cells[:8])
    tables = {"steps": steps, "workers": workers, "data": data, "peaks": peaks, "profile": profile}
    for name, table in tables.items():
        with replacing(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.5g")
    text = speed.summary(steps, workers, data, peaks, profile, full)
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{folder}")  # noqa: T201 - what the command tells
    results.measure(digits)


if __name__ == "__main__":
    run(measure)
