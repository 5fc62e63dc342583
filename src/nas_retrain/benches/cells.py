"""The table of a benchmark's cells, for `make cells`."""

from __future__ import annotations

import json

import pandas as pd

from nas_retrain.benches.registry import Bench
from nas_retrain.theory.scaling import learning_rate_factor


def cells_table(bench: Bench) -> pd.DataFrame:
    """One row a cell, by number: index, arch, network_class, connected, path_depths and in_degrees (JSON lists),
    learning_rate_factor (empty when not connected), convolutions, parameters and flops of a network of `Bench.sizes`.

    Depths, degrees, convolutions and flops are of what the input passes through; parameters has the constants too.
    """
    rows = []
    for index, (arch, network_class) in enumerate(zip(bench.archs, bench.training_classes(None), strict=True)):
        graph = bench.graph_at(index)
        rows.append(
            {
                "index": index,
                "arch": arch,
                "network_class": network_class,
                "connected": graph.connected,
                "path_depths": json.dumps(sorted(graph.path_depths().elements())),
                "in_degrees": json.dumps(graph.in_degrees),
                "learning_rate_factor": learning_rate_factor(graph, bench.base) if graph.connected else None,
                "convolutions": len(graph.layers),
                "parameters": bench.parameters(graph, bench.sizes),
                "flops": bench.flops(graph, bench.sizes),
            }
        )
    return pd.DataFrame(rows)
