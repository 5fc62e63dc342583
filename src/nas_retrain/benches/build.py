"""From a cell graph to a network: one module for each kind of network, chosen by the settings here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nas_retrain.benches import parametrised
from nas_retrain.benches.dags import network as dags
from nas_retrain.benches.nas_bench_201 import network as nas_bench_201
from nas_retrain.settings import DagSettings, Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import Parametrisation
from nas_retrain.theory.scaling import Initialisation

Network = nas_bench_201.Network | dags.Network


def build(
    graph: CellGraph,
    settings: Settings,
    *,
    initialisation: Initialisation,
    seed: int,
    decided: Parametrisation | None = None,
) -> Network:
    """A network on the CPU, initialised from `seed` alone and laid out channels-last.

    decided: what a rule decided; layers that it leaves out are drawn as `initialisation` says.
    """
    dataset, channels = settings.dataset, settings.network.channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(settings.bench, DagSettings):
            dag = dags.Network(
                graph,
                kind=settings.bench.name,
                activation=settings.bench.activation,
                channels=channels,
                classes=dataset.classes,
                image_channels=dataset.image_channels,
                image_size=dataset.image_size,
            )
            dags.initialise(dag, initialisation)
            if decided is not None:
                parametrised.initialise(list(dag.parameters()), dag.parameter_blocks, decided)
            return dag.to(memory_format=torch.channels_last)
        network = nas_bench_201.Network(
            graph,
            channels=channels,
            cells_per_stage=settings.network.cells_per_stage,
            classes=dataset.classes,
            image_channels=dataset.image_channels,
            normalised=settings.network.normalisation == "batch",
        )
        nas_bench_201.initialise(network, initialisation)
        if decided is not None:
            parametrised.initialise(list(network.parameters()), network.parameter_blocks, decided)
        return network.to(memory_format=torch.channels_last)


def join(networks: Sequence[Network]) -> Network:
    """One network that has those of one graph and size, each with one member, as its members, with their values."""
    if len(networks) == 1:
        return networks[0]
    first = networks[0]
    joined: Network = type(first)(first.graph, **first.sizes, members=len(networks))
    joined.to(memory_format=torch.channels_last)
    load(joined, stacked([network.state_dict() for network in networks]))
    return joined


def stacked(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters and buffers by name, those of several networks of one graph and size stacked along the first
    dimension."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def load(network: Network, state: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers by name into a network, each into the memory where it lies."""
    for name, tensor in network.state_dict().items():
        tensor.copy_(state[name])
