"""Search spaces: which networks there are, by number and name, and their graphs."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from nas_retrain.benches.dags import space as dags
from nas_retrain.benches.nas_bench_201 import space as nas_bench_201
from nas_retrain.settings import BenchSettings, DagSettings, DatasetSettings, NetworkSettings, Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import NetworkSize, Peers
from nas_retrain.theory.scaling import GAIN_SQUARED, HE_GAIN_SQUARED, Initialisation


class Space(Protocol):
    """What the pipeline asks of a search space. A cell is a network's number; unknown ones raise NasRetrainError."""

    @property
    def size(self) -> int:
        """How many cells there are, numbered from 0."""

    @property
    def base(self) -> CellGraph:
        """The base network of the learning-rate rule."""

    @property
    def base_cell(self) -> int:
        """Its number."""

    def arch_at(self, index: int) -> str:
        """A cell's string."""

    def graph_at(self, index: int) -> CellGraph:
        """A cell's graph."""

    def members(self, network_class: int) -> tuple[int, ...]:
        """The cells that are the same network as this one, in order."""

    def training_class(self, index: int, initialisation: Initialisation) -> int:
        """The cell whose training stands for this one's."""

    def sample(self, number: int, seed: int) -> tuple[int, ...]:
        """That many random connected cells, no two of them the same network."""

    def flops(self, graph: CellGraph, network: NetworkSettings, dataset: DatasetSettings) -> int:
        """Multiply-accumulates of one image."""


def graph_of(cell: int, settings: Settings) -> CellGraph:
    """The graph of the network that the settings make of a cell."""
    graph = of(settings.bench).graph_at(cell)
    return graph.without_normalisation if settings.network.normalisation == "none" else graph


def size_of(settings: Settings, peers: Peers | None = None) -> NetworkSize:
    """What scaling rules are told of the networks that the settings ask for, beside their graphs."""
    bench, dataset, channels = settings.bench, settings.dataset, settings.network.channels
    stages = 1 if isinstance(bench, DagSettings) else nas_bench_201.STAGES
    dense = isinstance(bench, DagSettings) and bench.name == "mlp"
    return NetworkSize(
        width=channels,
        readout_width=channels << (stages - 1),
        inputs=dataset.image_channels * (dataset.image_size**2 if dense else 9),
        classes=dataset.classes,
        stages=stages,
        cells_per_stage=1 if isinstance(bench, DagSettings) else settings.network.cells_per_stage,
        depth_offset=bench.depth_offset,
        base_kernel_size=bench.base_kernel_size,
        normalised=not isinstance(bench, DagSettings) and settings.network.normalisation == "batch",
        gain_squared=GAIN_SQUARED[bench.activation] if isinstance(bench, DagSettings) else HE_GAIN_SQUARED,
        peers=peers or Peers(),
    )


@cache
def of(bench: BenchSettings) -> Space:
    """The search space of a benchmark."""
    if isinstance(bench, DagSettings):
        return dags.DagSpace(bench.name, bench.vertices, bench.kernel_sizes)
    return nas_bench_201.NasBench201()
