"""Write the table of all cells of a benchmark: results/<bench>/cells.csv."""

from nas_retrain.cli import run
from nas_retrain.config import Settings
from nas_retrain.spaces import nas_bench_201
from nas_retrain.store import replacing


def cells(settings: Settings) -> None:
    """One row a cell, in the benchmark's official order."""
    table = nas_bench_201.cells_table()
    path = settings.results_dir.parent / "cells.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.17g")
    print(
        f"{path}: {len(table):,} cells, {table['network_class'].nunique():,} network classes, "
        f"{(~table['connected']).sum()} disconnected, {table['learning_rate_factor'].nunique()} learning-rate factors"
    )


if __name__ == "__main__":
    run(cells)
