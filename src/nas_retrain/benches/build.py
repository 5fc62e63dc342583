"""From a cell graph to a network: one module for each kind of network, chosen by the settings here."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nas_retrain.benches.dags import network as dags
from nas_retrain.benches.nas_bench_201 import network as nas_bench_201
from nas_retrain.settings import DagSettings, Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.scaling import Initialisation

Network = nas_bench_201.Network | dags.Network


def build(graph: CellGraph, settings: Settings, *, initialisation: Initialisation, seed: int) -> Network:
    """A network on the CPU, initialised from `seed` alone and laid out channels-last."""
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
        return network.to(memory_format=torch.channels_last)


def join(networks: Sequence[Network]) -> Network:
    """One network that has those of one graph and size, each with one member, as its members, with their values."""
    if len(networks) == 1:
        return networks[0]
    first = networks[0]
    joined: Network = type(first)(first.graph, **first.sizes, members=len(networks))
    states = [network.state_dict() for network in networks]
    stacked = {
        name: value if value.ndim == 0 else torch.cat([state[name] for state in states])
        for name, value in states[0].items()
    }
    joined.load_state_dict(stacked)
    return joined.to(memory_format=torch.channels_last)
