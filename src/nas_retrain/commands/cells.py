"""Write the table of all cells of a benchmark: results/<bench>/cells.csv."""

from nas_retrain.benches.nas_bench_201 import space as nas_bench_201
from nas_retrain.files.atomic import replacing
from nas_retrain.settings import Settings


def cells(settings: Settings) -> None:
    """One row a cell, in the benchmark's official order."""
    table = nas_bench_201.cells_table()
    path = settings.results_dir.parent / "cells.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.17g")
    print(  # noqa: T201 - what the command tells
        f"{path}: {len(table):,} cells, {table['network_class'].nunique():,} network classes, "
        f"{(~table['connected']).sum()} disconnected, {table['learning_rate_factor'].nunique()} learning-rate factors"
    )
