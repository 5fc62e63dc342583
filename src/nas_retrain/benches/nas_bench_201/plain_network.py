"""NAS-Bench-201's network written straight from its description, one module for each edge.

What the network of `network` must equal in every output and gradient (the tests), and be faster than (`make bench`).
Like the benchmark's own code it does not ask which edges lead anywhere: those without effect on the output are computed
too, unless `dead_edges` is False. `normalised=False` leaves out every BatchNorm. Nothing is trained with it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.benches.registry import Sizes


class PlainCell(nn.Module):
    """Four vertices; one module for each edge that has an operation."""

    def __init__(self, arch: str, channels: int, *, dead_edges: bool, normalised: bool = True) -> None:
        super().__init__()
        self.operations = dict(zip(space.EDGES, space.parse_operations(arch), strict=True))
        graph = space.parse(arch)
        graph = graph if normalised else graph.without_normalisation
        effective = {(edge.source, edge.target) for edge in graph.effective.edges}
        self.edges = nn.ModuleDict()
        for (source, target), operation in self.operations.items():
            if operation == "none" or not (dead_edges or (source, target) in effective):
                continue
            if operation in ("nor_conv_1x1", "nor_conv_3x3"):
                size = int(operation[-1])
                self.edges[f"{source}{target}"] = nn.Sequential(
                    nn.ReLU(),
                    nn.Conv2d(channels, channels, size, padding=size // 2, bias=False),
                    _norm(channels, normalised=normalised),
                )
            elif operation == "avg_pool_3x3":
                self.edges[f"{source}{target}"] = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
            else:
                self.edges[f"{source}{target}"] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        values = [x]
        for vertex in (1, 2, 3):
            names = {source: f"{source}{vertex}" for source in range(vertex)}
            sent = [self.edges[name](values[source]) for source, name in names.items() if name in self.edges]
            values.append(sum(sent[1:], sent[0]) if sent else torch.zeros_like(x))
        return values[-1]


class PlainReduction(nn.Module):
    """The residual block between stages."""

    def __init__(self, channels: int, *, normalised: bool = True) -> None:
        super().__init__()
        wide = 2 * channels
        first, second = (_norm(wide, normalised=normalised) for _ in range(2))
        self.a = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, wide, 3, 2, 1, bias=False), first)
        self.b = nn.Sequential(nn.ReLU(), nn.Conv2d(wide, wide, 3, 1, 1, bias=False), second)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(channels, wide, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width), even, to (batch, 2 channels, height / 2, width / 2)."""
        return cast("Tensor", self.b(self.a(x)) + self.downsample(x))


class PlainNetwork(nn.Module):
    """The whole network; maps images (batch, image_channels, height, width) to logits (batch, classes)."""

    def __init__(
        self,
        arch: str,
        *,
        channels: int,
        cells_per_stage: int,
        classes: int,
        image_channels: int,
        dead_edges: bool = True,
        normalised: bool = True,
    ) -> None:
        super().__init__()

        def cell(width: int) -> PlainCell:
            return PlainCell(arch, width, dead_edges=dead_edges, normalised=normalised)

        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, channels, 3, padding=1, bias=False), _norm(channels, normalised=normalised)
        )
        blocks: list[nn.Module] = [cell(channels) for _ in range(cells_per_stage)]
        for wide in (2 * channels, 4 * channels):
            blocks += [
                PlainReduction(wide // 2, normalised=normalised),
                *(cell(wide) for _ in range(cells_per_stage)),
            ]
        self.blocks = nn.Sequential(*blocks)
        norm = _norm(4 * channels, normalised=normalised)
        self.last = nn.Sequential(norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, classes)."""
        return cast("Tensor", self.classifier(self.last(self.blocks(self.stem(x)))))


def build(arch: str, sizes: Sizes, *, dead_edges: bool) -> PlainNetwork:
    """The network of a cell's string, with PyTorch's initialisation."""
    return PlainNetwork(
        arch,
        channels=sizes.channels,
        cells_per_stage=sizes.cells_per_stage,
        classes=sizes.classes,
        image_channels=sizes.image_channels,
        dead_edges=dead_edges,
        normalised=sizes.normalised,
    )


def _norm(channels: int, *, normalised: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if normalised else nn.Identity()
