"""Networks as the released code has them, against one module for each edge."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from nas_retrain.benches import build, registry
from nas_retrain.benches.dags import space
from nas_retrain.benches.dags.network import Network
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.rule import find
from tests.conftest import MakeSettings

ARCHS = {"mlp": "2_12_022", "cnn": "2_12_022/5"}


def settings_of(make_settings: MakeSettings, kind: str, *overrides: str) -> Settings:
    given = (f"bench={kind}", "dataset.image_size=6", "bench.as_released=true", "bench.depth_offset=3", *overrides)
    return make_settings(*given, config="verify")


class OneModuleForEachEdge(nn.Module):
    """Linear or convolution, then ReLU, on every edge; sums in the vertices; a linear readout of the last one."""

    def __init__(self, graph: CellGraph, settings: Settings) -> None:
        super().__init__()
        self.graph, self.convolutional = graph, settings.bench.name == "cnn"
        width, data = settings.network.channels, settings.dataset
        self.window = max(edge.operation.kernel_size for edge in graph.layers)
        inputs = data.image_channels * (1 if self.convolutional else data.image_size**2)
        self.stem = self._block(inputs, width)
        self.edges = nn.ModuleList(
            self._block(width, width) if edge.operation.kind == "layer" else nn.Identity()
            for edge in sorted(graph.edges)
        )
        self.readout = nn.Linear(width, data.classes)

    def _block(self, inputs: int, outputs: int) -> nn.Sequential:
        if self.convolutional:
            return nn.Sequential(nn.Conv2d(inputs, outputs, self.window, padding=self.window // 2), nn.ReLU())
        return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())

    @property
    def layers(self) -> list[nn.Module]:
        """In the order of the network's `weights`."""
        blocks = [self.stem, *(edge for edge in self.edges if not isinstance(edge, nn.Identity))]
        return [cast("nn.Sequential", block)[0] for block in blocks] + [self.readout]

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor] = [self.stem(x if self.convolutional else x.flatten(1))]
        for vertex in range(1, self.graph.vertices):
            sent = [
                module(values[edge.source])
                for edge, module in zip(sorted(self.graph.edges), self.edges, strict=True)
                if edge.target == vertex
            ]
            values.append(sum(sent[1:], sent[0]))
        return self.readout(values[-1].mean((2, 3)) if self.convolutional else values[-1])


def built(settings: Settings, kind: str, seed: int, initialisation: str = "source") -> Network:
    network = build.build(space.parse(ARCHS[kind]), settings, initialisation=initialisation, seed=seed)
    with torch.no_grad():
        for bias in network.biases:
            bias.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(seed))
    return network.double()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_outputs_and_gradients_equal_one_module_for_each_edge(kind: str, make_settings: MakeSettings) -> None:
    settings = settings_of(make_settings, kind)
    alone, oracles = [built(settings, kind, seed) for seed in range(2)], []
    for network in alone:
        oracle = OneModuleForEachEdge(network.graph, settings).double()
        with torch.no_grad():
            for layer, weight, bias in zip(oracle.layers, network.weights.values(), network.biases, strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        oracles.append(oracle)
    joined = build.join([network.float() for network in alone]).double()
    for network, oracle in zip(alone, oracles, strict=True):
        oracle.load_state_dict(oracle.float().double().state_dict())
        network.double()
    data = settings.dataset
    shape = (5, data.image_channels, data.image_size, data.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = [oracle(images) for oracle in oracles]
    torch.testing.assert_close(joined(images.repeat(1, 2, 1, 1)), torch.cat(expected, 1), rtol=1e-9, atol=1e-9)
    ours = alone[0](images)
    torch.testing.assert_close(ours, expected[0], rtol=1e-9, atol=1e-9)
    for output in (ours, expected[0]):
        output.square().sum().backward()
    theirs = [(layer.weight.grad, layer.bias.grad) for layer in oracles[0].layers]
    for (weight, bias), layer in zip(theirs, zip(alone[0].weights.values(), alone[0].biases, strict=True), strict=True):
        torch.testing.assert_close(layer[0].grad, weight, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(layer[1].grad, bias, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_variances_go_by_fan_out_and_biases_are_zero(kind: str, make_settings: MakeSettings) -> None:
    settings = settings_of(make_settings, kind, "network.channels=64", "dataset.classes=100")
    graph = space.parse(ARCHS[kind])
    decided = find("paper").decide(graph, registry.size_of(settings), "a cell")
    for options in ({"initialisation": "source"}, {"initialisation": "stock", "decided": decided}):
        network = build.build(graph, settings, seed=1, **options)
        window = 25 if kind == "cnn" else 1
        assert float(network.first.detach().var()) == pytest.approx(2 / (64 * window), rel=0.1)
        of_edges = dict(zip([(e.source, e.target) for e in network.layer_edges], network.layers, strict=True))
        assert float(of_edges[2, 3].detach().var()) == pytest.approx(2 / 2 / (64 * window), rel=0.1)
        assert float(network.readout.detach().std()) == pytest.approx(2 / 100, rel=0.05)
        assert "decided" in options or not any(bias.any() for bias in network.biases)


def test_networks_as_usual_keep_their_hashes(make_settings: MakeSettings) -> None:
    usual = make_settings("bench=mlp", config="verify")
    assert "as_released" not in usual.identity("grid_mup")["bench"]
    assert settings_of(make_settings, "mlp").identity("grid_mup")["bench"]["as_released"] is True
