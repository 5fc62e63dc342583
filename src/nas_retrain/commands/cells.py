"""Write the table of all cells of a benchmark: results/<bench>/cells.csv."""

from nas_retrain.benches import registry
from nas_retrain.benches.cells import cells_table
from nas_retrain.files.atomic import replacing
from nas_retrain.settings import Settings


def cells(settings: Settings) -> None:
    """One row a cell, in the benchmark's official order."""
    table = cells_table(registry.of(settings.bench))
    path = settings.results_dir.parent / "cells.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.17g")
    print(  # noqa: T201 - what the command tells
        f"{path}: {len(table):,} cells, {table['network_class'].nunique():,} network classes, "
        f"{(~table['connected']).sum()} disconnected, {table['learning_rate_factor'].nunique()} learning-rate factors"
    )
