"""Benchmarks: all that plan, trainings, analysis, page and exports ask of one, and which there are.

A benchmark is a folder beside this module. Its `space.py` holds the cells, without torch, and names the class of it as
`BENCH`; its `network.py` builds the networks (see `build`). Nothing else has to know it: configs/bench has a file of
settings for each of its names.
"""

from __future__ import annotations

import pkgutil
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

from nas_retrain import benches
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import BenchSettings, Settings
from nas_retrain.theory.graph import CellGraph, Operation, lowest_member
from nas_retrain.theory.rule import NetworkSize, Peers
from nas_retrain.theory.scaling import InDegree, Initialisation, in_degree_of, variance_factors


@dataclass(frozen=True)
class Sizes:
    """What a cell's network is built for: channels of the first stage, cells in each stage, classes of the data set,
    the channels and the side of its images in pixels, and whether its convolutions end in a BatchNorm where the
    benchmark has them."""

    channels: int
    cells_per_stage: int
    classes: int
    image_channels: int
    image_size: int
    normalised: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The sizes that the settings have."""
        network, dataset = settings.network, settings.dataset
        return cls(
            channels=network.channels,
            cells_per_stage=network.cells_per_stage,
            classes=dataset.classes,
            image_channels=dataset.image_channels,
            image_size=dataset.image_size,
            normalised=network.normalisation == "batch",
        )


@dataclass(frozen=True)
class Option:
    """What may stand at a place of a cell. label: its short name in drawings. colours: on a light and on a dark ground,
    as #rrggbb; None for what is not drawn."""

    name: str
    label: str
    colours: tuple[str, str] | None


@dataclass(frozen=True)
class Drawing:
    """How cells are told apart and drawn: one of the same options at each of several places.

    places: the vertices that each place joins. vertices: where these are drawn, to the right and upwards. label_at: how
    far along each place its label stands, from 0 to 1. pattern: a cell's string, with {} for the name of each place's
    option, in order; None where strings are not made of such names.
    """

    places: tuple[tuple[int, int], ...]
    options: tuple[Option, ...]
    vertices: tuple[tuple[float, float], ...]
    label_at: tuple[float, ...]
    pattern: str | None = None


@dataclass(frozen=True)
class PublishedFile:
    """A benchmark's one file with all cells (.pth), for a package of its own.

    package: its name. budgets: the file's places for trainings, by the number of epochs. example: how to open the file,
    in Python, with the fields pth, cell, name, epochs and accuracy. remarks: what the package's answers are like.
    read_back: what the package itself finds in a file, given the data set's name there and the epochs: the test
    accuracies of all cells and seeds.
    """

    package: str
    budgets: Mapping[int, str]
    example: str
    remarks: tuple[str, ...]
    read_back: Callable[[Path, str, int], Mapping[tuple[int, int], float]]


@dataclass(frozen=True)
class Published:
    """The form of a benchmark's published files, which is that of its exports: nats_bench's folder of a file a cell,
    and for some benchmarks one file with all.

    datasets: what they call our data sets. space: what nats_bench calls the benchmark. digits: how many digits it
    writes a number of epochs with, at least. times_evaluation: whether its answers need the time of evaluation, for
    which exports have NaN, since nobody measured it. file: the one file, if there is such.
    """

    datasets: Mapping[str, str]
    space: str
    digits: int = 1
    times_evaluation: bool = False
    file: PublishedFile | None = None


@dataclass(frozen=True)
class Sweep:
    """A network of the coordinate check. name: which property grows over the networks of the same name, and x its
    value; channels: the network's width."""

    name: str
    x: float
    graph: CellGraph
    channels: int


class Bench(ABC):
    """A benchmark's cells, numbered from 0. Whatever takes a number raises NasRetrainError if there is no such cell.

    What is not abstract follows from the graphs, and is overridden where a benchmark has it otherwise or sooner.
    """

    names: ClassVar[tuple[str, ...]]
    """The values of bench.name that mean it."""

    settings_kind: ClassVar[type[BenchSettings]] = BenchSettings
    """What checks its settings."""

    name: str
    """The one of `names` that this is."""

    title: str
    """What reports call it."""

    authors: str = ""
    """Whose benchmark it is, in a sentence for data cards."""

    published: Published | None = None
    sizes: Sizes = Sizes(channels=16, cells_per_stage=5, classes=10, image_channels=3, image_size=32)
    """Of the networks whose costs tables of cells have: the published ones', where there are any."""

    stages: int = 0
    """How many stages of stacked cells a network has, with a reduction block between two; 0 if it is one graph."""

    kernels_differ: bool = True
    """Whether kernel sizes can have a part in learning rates."""

    kernel_factor: bool = False
    """Whether the paper's experiments on it followed eq. 9 rather than eq. 8."""

    reported_correlation: float | None = None
    """Pearson's correlation of predicted and searched rates that the paper reports, on CIFAR-10."""

    @classmethod
    def of(cls, _settings: BenchSettings) -> Bench:
        """The benchmark that these settings choose: one object for all of them, where cells do not depend on them."""
        return _only(cls)

    @property
    @abstractmethod
    def size(self) -> int:
        """How many cells there are."""

    @property
    @abstractmethod
    def base(self) -> CellGraph:
        """The base network of the learning-rate rule."""

    @abstractmethod
    def arch_at(self, index: int) -> str:
        """A cell's string."""

    @abstractmethod
    def graph_at(self, index: int) -> CellGraph:
        """A cell's graph."""

    @abstractmethod
    def flops(self, graph: CellGraph, sizes: Sizes) -> int:
        """Multiply-accumulates of one image."""

    @abstractmethod
    def parameters(self, graph: CellGraph, sizes: Sizes) -> int:
        """Trainable parameters of a cell's network."""

    @cached_property
    def base_cell(self) -> int:
        """The number of the lowest cell that is the base network."""
        wanted = self.base.network_class
        found = (index for index in range(self.size) if self.graph_at(index).network_class == wanted)
        try:
            return next(found)
        except StopIteration:
            raise NasRetrainError(f"{self.title} has no cell that is its base network.") from None

    @cached_property
    def archs(self) -> tuple[str, ...]:
        """All cells' strings, by number."""
        return tuple(map(self.arch_at, range(self.size)))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """All cells' numbers, by their strings."""
        return {arch: index for index, arch in enumerate(self.archs)}

    def index_of(self, arch: str) -> int:
        """The number of a cell's string; raises NasRetrainError if there is no such cell."""
        if arch not in self.numbers:
            raise NasRetrainError(f"{arch[:200]!r} is no cell of {self.title}.")
        return self.numbers[arch]

    @cached_property
    def connected(self) -> tuple[bool, ...]:
        """Of each cell whether a path leads from input to output."""
        of_class = {index: self.graph_at(index).connected for index in set(self.training_classes(None))}
        return tuple(of_class[index] for index in self.training_classes(None))

    def training_classes(self, in_degree: InDegree | None) -> tuple[int, ...]:
        """The class of every cell within which one training stands for all, named by the lowest member's number.

        in_degree: the convention of the initialisation, None for the stock one. Under "source" and stock these are the
        network classes: cells that are the same network. Under "target" and "released" cells are told apart too if
        their initial variances differ: contracting a skip moves edges from one vertex to another, and edges without
        effect are counted in the latter.
        """
        dividing = None if in_degree == "source" else in_degree
        if dividing not in self._classes:
            self._classes[dividing] = training_classes(self._graphs(), dividing)
        return self._classes[dividing]

    @cached_property
    def _classes(self) -> dict[InDegree | None, tuple[int, ...]]:
        return {}

    def _graphs(self) -> list[CellGraph]:
        return [self.graph_at(index) for index in range(self.size)]

    @cached_property
    def _members(self) -> dict[int, tuple[int, ...]]:
        members: dict[int, list[int]] = {}
        for cell, network_class in enumerate(self.training_classes(None)):
            members.setdefault(network_class, []).append(cell)
        return {network_class: tuple(cells) for network_class, cells in members.items()}

    def members(self, network_class: int) -> tuple[int, ...]:
        """The cells of a network class, in order."""
        return self._members[network_class]

    def training_class(self, index: int, initialisation: Initialisation) -> int:
        """The cell whose training stands for this one's, see `training_classes`."""
        self.arch_at(index)
        return self.training_classes(in_degree_of(initialisation))[index]

    def sample(self, number: int, seed: int) -> tuple[int, ...]:
        """That many random connected cells, no two of them the same network.

        Raises NasRetrainError if there are fewer.
        """
        classes = [cell for cell in sorted(set(self.training_classes(None))) if self.graph_at(cell).connected]
        if not 0 < number <= len(classes):
            raise NasRetrainError(
                f"cells=sample:{number} is out of range: "
                f"it draws at least 1 of {len(classes):,} connected network classes."
            )
        return tuple(random.Random(seed).sample(classes, number))

    def network_size(self, settings: Settings, peers: Peers) -> NetworkSize:
        """What scaling rules are told of the networks that the settings ask for, beside their graphs."""
        channels, stages = settings.network.channels, max(1, self.stages)
        return NetworkSize(
            width=channels,
            readout_width=channels << (stages - 1),
            inputs=settings.dataset.image_channels * 9,
            classes=settings.dataset.classes,
            stages=stages,
            cells_per_stage=settings.network.cells_per_stage if self.stages else 1,
            depth_offset=settings.bench.depth_offset,
            base_kernel_size=settings.bench.base_kernel_size,
            normalised=settings.network.normalisation == "batch",
            peers=peers,
        )

    def sweeps(self, _settings: BenchSettings) -> Iterator[Sweep]:
        """The networks of the coordinate check: none where the theory is not that of the benchmark's networks."""
        return iter(())

    @cached_property
    def drawing(self) -> Drawing:
        """How its cells are drawn: by default an option for each operation that there is, and for none."""
        graphs = self._graphs()
        vertices = max(graph.vertices for graph in graphs)
        places = tuple((source, target) for target in range(1, vertices) for source in range(target))
        operations = sorted({edge.operation for graph in graphs for edge in graph.edges})
        drawn = zip(map(_written, operations), cycle(COLOURS), strict=False)
        return Drawing(
            places=places,
            options=(Option("none", "", None), *(Option(name, name, colours) for name, colours in drawn)),
            vertices=zigzag(vertices),
            label_at=(0.5,) * len(places),
        )

    def chosen(self, index: int) -> tuple[int, ...]:
        """Which of the drawing's options a cell has at each place."""
        options = {option.name: number for number, option in enumerate(self.drawing.options)}
        there = {(edge.source, edge.target): options[_written(edge.operation)] for edge in self.graph_at(index).edges}
        return tuple(there.get(place, 0) for place in self.drawing.places)

    def effective(self, index: int) -> tuple[bool, ...]:
        """At which places of the drawing a cell's output depends on what stands there."""
        edges = {(edge.source, edge.target) for edge in self.graph_at(index).effective.edges}
        return tuple(place in edges for place in self.drawing.places)

    @property
    def rate_sources(self) -> tuple[ModuleType, ModuleType] | None:
        """The readers of published trainings of its cells at several learning rates: of a folder, and of a table; None
        where there are none."""
        return None

    def network_config(self, index: int, _sizes: Sizes) -> dict[str, object]:
        """What published files tell of a cell's network beside its number of classes."""
        return {"arch_str": self.arch_at(index)}

    def read_published_file(self, path: Path) -> dict[int, dict[str, Any]]:
        """What a benchmark's one published file holds of each cell, by number: the states of trainings by budget.

        Raises NasRetrainError if the file is damaged or foreign, or if the benchmark was not published so.
        """
        raise NasRetrainError(f"{path} cannot be read: {self.title} was not published as such a file.")


COLOURS = (
    ("#767676", "#a5a5a5"),
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#f0803c"),
    ("#008560", "#2fc298"),
    ("#a8487f", "#cc79a7"),
    ("#916400", "#e69f00"),
    ("#6b3fa0", "#a98bd6"),
    ("#6f6300", "#f0e442"),
)
"""After Okabe and Ito's, which the colour-blind can tell apart: on a light ground, and lighter on a dark one."""


def zigzag(vertices: int) -> tuple[tuple[float, float], ...]:
    """Places for vertices from left to right, the first and the last on one line and those between above and below."""
    heights = [0.0, *(0.75 if number % 2 else -0.75 for number in range(1, vertices - 1)), 0.0]
    return tuple((float(number), height) for number, height in enumerate(heights))


def _written(operation: Operation) -> str:
    return operation.kind if operation.kind == "skip" else f"{operation.kind} {operation.kernel_size}"


def training_classes(graphs: Iterable[CellGraph], in_degree: InDegree | None) -> tuple[int, ...]:
    """See `Bench.training_classes`: for each of all graphs, the first one whose training stands for its own."""
    if in_degree in (None, "source"):
        return tuple(lowest_member(graph.network_class for graph in graphs))
    return tuple(lowest_member(_initialised_formula(graph, in_degree) for graph in graphs))


def _initialised_formula(graph: CellGraph, in_degree: InDegree | None) -> str:
    """A graph's formula with the variances of its layers: equal for networks that are initialised alike."""
    factors = variance_factors(graph, in_degree)
    return graph.formula({edge: f"conv{edge.operation.kernel_size}[{factor:.4g}]" for edge, factor in factors.items()})


def graph_of(cell: int, settings: Settings) -> CellGraph:
    """The graph of the network that the settings make of a cell."""
    graph = of(settings.bench).graph_at(cell)
    return graph.without_normalisation if settings.network.normalisation == "none" else graph


def size_of(settings: Settings, peers: Peers | None = None) -> NetworkSize:
    """What scaling rules are told of the networks that the settings ask for, beside their graphs."""
    return of(settings.bench).network_size(settings, peers or Peers())


@cache
def _kinds() -> dict[str, type[Bench]]:
    """The benchmarks by their names, in the order of their folders."""
    folders = sorted(module.name for module in pkgutil.iter_modules(benches.__path__) if module.ispkg)
    kinds: list[type[Bench]] = [import_module(f"{benches.__name__}.{folder}.space").BENCH for folder in folders]
    return {name: kind for kind in kinds for name in kind.names}


def settings_kinds() -> dict[str, type[BenchSettings]]:
    """What checks each benchmark's settings, by the benchmark's name."""
    return {name: kind.settings_kind for name, kind in _kinds().items()}


DEFAULT = "201"
"""The name of the benchmark whose cells a table is of where nothing else is said."""


def default() -> Bench:
    """NAS-Bench-201, whose cells a table is of where nothing else is said."""
    return _only(_kinds()[DEFAULT])


@cache
def _only(kind: type[Bench]) -> Bench:
    """The one object of a benchmark's class: what is costly to find about its cells is found once."""
    return kind()


def of(settings: BenchSettings) -> Bench:
    """The benchmark that settings choose; raises NasRetrainError if they are none of a benchmark that there is."""
    if not isinstance(settings, BenchSettings):
        raise NasRetrainError(
            f"{settings!r} was given, where the settings of a benchmark were expected (the section bench of all "
            f"settings). There are the benchmarks {', '.join(_kinds())}."
        )
    return _chosen(settings)


@cache
def _chosen(settings: BenchSettings) -> Bench:
    kind = _kinds().get(settings.name)
    if kind is None:
        raise NasRetrainError(f"There is no benchmark {settings.name!r}; there are {', '.join(_kinds())}.")
    if not isinstance(settings, kind.settings_kind):
        raise NasRetrainError(
            f"The settings of bench {settings.name} lack its own keys: they are {type(settings).__name__}, and "
            f"{kind.settings_kind.__name__} was expected."
        )
    return kind.of(settings)
