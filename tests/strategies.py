"""Hypothesis strategies: random cell graphs and random NAS-Bench-201 cells."""

from __future__ import annotations

from hypothesis import strategies as st

from nas_retrain.benches import registry
from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.theory.graph import CellGraph, Edge, Operation

OPERATIONS = [None, Operation("skip"), Operation("pool", 3), Operation("layer", 1), Operation("layer", 3)]
NORMALISED = [*OPERATIONS, None, Operation("layer", 1, normalised=True), Operation("layer", 3, normalised=True)]


@st.composite
def cell_graphs(draw: st.DrawFn, operations: list[Operation | None] = OPERATIONS, most: int = 6) -> CellGraph:
    vertices = draw(st.integers(2, most))
    edges = [
        Edge(source, target, operation)
        for target in range(1, vertices)
        for source in range(target)
        if (operation := draw(st.sampled_from(operations))) is not None
    ]
    return CellGraph(vertices, tuple(draw(st.permutations(edges))))


NAS_BENCH_201 = registry.default()

cells = st.integers(0, 15624).map(NAS_BENCH_201.arch_at)
cells_with_constants = cells.filter(lambda arch: bool(space.parse(arch).constants))
