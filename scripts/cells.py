"""Write the table of all cells of a benchmark: results/<bench>/cells.csv."""

from nas_retrain.benches import registry
from nas_retrain.benches.cells import cells_table
from nas_retrain.commands.command_line import run
from nas_retrain.settings import Settings
from nas_retrain.trainings.store import replacing


def cells(settings: Settings) -> None:
    """One row a cell, in the benchmark's official order."""
    table = cells_table(registry.of(settings.bench))
    path = settings.results_dir.parent / "cells.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.17g")
    print(
        f"{path}: {len(table):,} cells, {table['network_class'].nunique():,} network classes, "
        f"{(~table['connected']).sum()} disconnected, {table['learning_rate_factor'].nunique()} learning-rate factors"
    )


if __name__ == "__main__":
    run(cells)
