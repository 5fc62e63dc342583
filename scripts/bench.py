"""Measure training speed on this machine: one process on all cores against one process a core."""

from nas_retrain.cli import run
from nas_retrain.config import Settings
from nas_retrain.speed import measure_workers
from nas_retrain.store import replacing


def bench(settings: Settings) -> None:
    """Write speed.csv in the results folder and print the ratios."""
    table = measure_workers(settings)
    path = settings.results_dir / "speed.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g")
    summary = table.groupby("cell")[["one_process", "worker_processes", "ratio"]].median()
    print(summary.to_string(float_format="{:,.2f}".format))
    ratio = summary["ratio"]
    print(
        f"{path}: on {table['cores'][0]} cores, one process a core trains {ratio.median():.2f} times as many images as "
        f"one process on all cores (median of {len(summary)} cells; {ratio.min():.2f} to {ratio.max():.2f})"
    )


if __name__ == "__main__":
    run(bench)
