"""Coordinate check: does the signal, and its change in the first step, keep its size however a network is built?

Initial variances are right if the mean square of pre-activations is the same at every vertex, and the learning rate is
right if one step of gradient descent changes them by the same amount (paper eq. 3 and eq. 7): both flat against depth,
width, graph and kernel size. Measured on networks of the space, several seeds side by side, with real images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from nas_retrain.benches import build, registry
from nas_retrain.data.batches import DeviceData
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.scaling import Initialisation, learning_rate_factor

SEEDS = 8
IMAGES = 32
BASE_RATE = 0.01
"""Of the measured step: small, so that the change is the derivative's; it divides out of every comparison."""


@dataclass(frozen=True)
class Arm:
    """A way to choose hyperparameters: an initialisation, and whether the learning-rate rule is followed."""

    name: str
    initialisation: Initialisation
    rule: bool


ARMS = (
    Arm("rule, in-degree of the target", "target", rule=True),
    Arm("rule, in-degree of the source", "source", rule=True),
    Arm("He, one rate", "he", rule=False),
)


def measure(settings: Settings, data: DeviceData) -> pd.DataFrame:
    """A row for each arm, network and vertex of four sweeps.

    sweep and x: see `Sweep`; size: mean square of the vertex's pre-activations over units, images and seeds; change:
    the mean square of their change in the first step, over the square of the base rate.
    """
    rows = []
    for sweep in registry.of(settings.bench).sweeps(settings.bench):
        network = settings.network.model_copy(update={"channels": sweep.channels})
        sized = settings.model_copy(update={"network": network})
        for arm in ARMS:
            for vertex, size, change in _one_step(sweep.graph, arm, sized, data):
                last = vertex == sweep.graph.vertices - 1
                rows.append((sweep.name, sweep.x, arm.name, vertex, last, size, change))
    return pd.DataFrame(rows, columns=["sweep", "x", "arm", "vertex", "last", "size", "change"])


def signal_sizes(
    settings: Settings, data: DeviceData, cells: Iterable[tuple[Initialisation, int]]
) -> dict[tuple[Initialisation, int], float]:
    """The mean square of the last vertex's pre-activations at the start, for each initialisation and network."""
    space, sizes = registry.of(settings.bench), {}
    for initialisation, cell in cells:
        network, images = _several(space.graph_at(cell), initialisation, settings, data)
        with torch.no_grad():
            last = network.pre_activations(images)[-1]
        assert last is not None  # disconnected networks are not trained
        sizes[initialisation, cell] = mean_square(last)
    return sizes


def _several(
    graph: CellGraph, initialisation: Initialisation, settings: Settings, data: DeviceData
) -> tuple[build.Network, Tensor]:
    """A network of several seeds side by side, and the same images for each of them."""
    built = [build.build(graph, settings, initialisation=initialisation, seed=seed) for seed in range(SEEDS)]
    network = build.join(built).to(data.device)
    return network, data.test_images[:IMAGES].repeat(1, SEEDS, 1, 1)


def _one_step(graph: CellGraph, arm: Arm, settings: Settings, data: DeviceData) -> Iterator[tuple[int, float, float]]:
    bench = settings.bench
    rate = BASE_RATE
    if arm.rule:
        rate *= learning_rate_factor(
            graph,
            registry.of(bench).base,
            depth_offset=bench.depth_offset,
            kernel_factor=True,
            base_kernel_size=bench.base_kernel_size,
        )
    network, images = _several(graph, arm.initialisation, settings, data)
    labels = data.test_labels[:IMAGES].repeat_interleave(SEEDS)
    with torch.no_grad():
        before = network.pre_activations(images)
    logits = network(images).view(len(labels), -1)
    # The mean over images of each member's loss; members share no parameter, so their losses may be added.
    functional.cross_entropy(logits, labels, reduction="sum").div(len(images)).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
        after = network.pre_activations(images)
    for vertex, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is not None and new is not None:
            yield vertex, mean_square(old), mean_square(new - old) / BASE_RATE**2


def mean_square(values: Tensor) -> float:
    """Over all that the tensor holds."""
    return float(values.square().mean())
