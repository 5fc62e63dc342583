"""Cells computed from the definition of their operations, with no notion of what is live, dead or constant.

An independent oracle for `graph.py`: every edge is computed, whatever it leads to. Images are rows of pixels with one
channel. Weights and biases are handed in, so that the same cell can be computed with all ways to hand them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from nas_retrain.theory.graph import Operation

Floats = NDArray[np.float64]
Ends = tuple[int, int]


def simulate(
    operations: Mapping[Ends, Operation | None],
    vertices: int,
    weights: Mapping[Ends, Floats],
    biases: Mapping[Ends, Floats],
    images: Floats,
) -> Floats:
    """The last vertex's value, of shape (hands, batch, pixels), for images of shape (batch, pixels).

    weights, biases: of each layer, of shape (hands, 1, 1). Layers and pooling are not linear, so that no two
    expressions come to the same by accident.
    """
    hands = max((len(weight) for weight in weights.values()), default=1)
    values = [np.zeros((hands, *images.shape)) for _ in range(vertices)]
    values[0] += images
    for source, target in sorted(operations):
        operation, read = operations[source, target], values[source]
        if operation is None:
            continue
        if operation.kind == "skip":
            values[target] += read
        elif operation.kind == "pool":
            values[target] += _pool(read)
        else:
            made = _window(np.sin(weights[source, target] * read), operation.kernel_size)
            if operation.normalised:
                deviation = np.sqrt(made.var(axis=(1, 2), keepdims=True) + 1e-5)
                made = (made - made.mean(axis=(1, 2), keepdims=True)) / deviation + biases[source, target]
            values[target] += made
    return values[-1]


def _window(values: Floats, kernel_size: int) -> Floats:
    """A convolution with weights 1, 2, ... and zero padding."""
    padding = kernel_size // 2
    padded = np.pad(values, ((0, 0), (0, 0), (padding, padding)))
    pixels = values.shape[2]
    made: Floats = sum(  # type: ignore[assignment]
        (place + 1) * padded[:, :, place : place + pixels] for place in range(kernel_size)
    )
    return made


def _pool(values: Floats) -> Floats:
    """Each pixel moved by what the mean over its window without padding differs; what is uniform stays as it is."""
    counts = np.convolve(np.ones(values.shape[2]), np.ones(3), "same")
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1)))
    mean = (padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]) / counts
    pooled: Floats = values + np.sinh(values) * (mean - values)
    return pooled


def handed_out(edges: Iterable[Ends], draw: Callable[[], float]) -> dict[Ends, Floats]:
    """One number for each edge."""
    return {edge: np.full((1, 1, 1), draw()) for edge in edges}
