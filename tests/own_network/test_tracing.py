"""A user's own network against hand-built graphs, simulation and closed forms."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy import integrate, special, stats
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

import nas_retrain
from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.benches.nas_bench_201.plain_network import PlainCell, PlainNetwork
from nas_retrain.errors import NasRetrainError
from nas_retrain.own_network.tracing import Scaled, scale
from nas_retrain.theory.graph import CellGraph, Edge, Operation
from nas_retrain.theory.scaling import GAIN_SQUARED, InDegree
from tests.strategies import NAS_BENCH_201, cells
from tests.theory.test_graph import paths

IMAGES = torch.zeros(2, 3, 8, 8)
VECTORS = torch.zeros(2, 16)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Everything here is too small to be shared by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cell_network(*archs: str, channels: int = 4) -> nn.Sequential:
    """A stem, cells of NAS-Bench-201 and a readout: the benchmark's network without its reduction blocks."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        *(PlainCell(arch, channels, dead_edges=True) for arch in archs),
        nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(channels, 10),
    )


def layers_on(path: list[space.Edge]) -> int:
    return sum(edge.operation.kind == "layer" for edge in path)


@settings(max_examples=40)
@given(cells, cells)
def test_paths_are_those_listed_on_hand_built_graphs(first: str, second: str) -> None:
    listed = [paths(space.parse(arch)) for arch in (first, second)]
    network = cell_network(first, second)
    if not all(listed):
        with pytest.raises(NasRetrainError, match="No path with a layer"):
            scale(network, IMAGES, base_rate=0.46)
        return
    depths = Counter(1 + layers_on(one) + layers_on(other) for one, other in itertools.product(*listed))
    scaled = scale(network, IMAGES, base_rate=0.46)
    assert scaled.path_depths == depths
    assert (scaled.paths, scaled.deepest) == (sum(depths.values()), max(depths))
    expected = sum(paths * depth**3 for depth, paths in depths.items()) ** -0.5
    assert math.isclose(scaled.factor, expected, rel_tol=1e-12)
    assert scaled.learning_rate == 0.46 * scaled.factor


unskipped = st.lists(st.sampled_from([op for op in space.OPERATIONS if op != "skip_connect"]), min_size=6, max_size=6)


@settings(max_examples=25)
@given(unskipped, st.sampled_from(["source", "target"]))
def test_weights_are_drawn_with_the_in_degrees_of_hand_built_graphs(operations: list[str], in_degree: InDegree) -> None:
    """Without skips, which a trace cannot tell from the vertex they copy, a cell's vertices are the trace's."""
    arch = space.format_cell(tuple(operations))
    on_paths = {edge for path in paths(space.parse(arch)) for edge in path}
    if not on_paths:
        return
    network = cell_network(arch, channels=32)
    scaled = scale(network, IMAGES, base_rate=1.0, in_degree=in_degree, seed=1)
    rows = {layer.name: layer for layer in scaled.layers}
    incoming = Counter(edge.target for edge in on_paths)
    expected = {"0": (2 / 27, 1), "4": ((2 / 32) ** 2, 1)}
    for edge in on_paths:
        if edge.operation.kind == "layer":
            degree = max(1, incoming[edge.source if in_degree == "source" else edge.target])
            expected[f"2.edges.{edge.source}{edge.target}.1"] = (
                2 / degree / (32 * edge.operation.kernel_size**2),
                degree,
            )
    assert rows.keys() == expected.keys()
    for name, (variance, degree) in expected.items():
        weight = network.get_submodule(name).weight.detach()
        assert rows[name].in_degree == degree
        assert rows[name].standard_deviation == pytest.approx(math.sqrt(variance), rel=1e-12)
        assert rows[name].fan_in == weight[0].numel()
        deviations = 5 * math.sqrt(2 / weight.numel())  # of a sample variance, in units of the variance
        assert float(weight.square().mean()) == pytest.approx(variance, rel=deviations)
    unused = {name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)} - rows.keys()
    assert any("left as it was" in note for note in scaled.notes) == bool(unused)


@pytest.mark.parametrize("in_degree", ["source", "target"])
@pytest.mark.parametrize("kernel_factor", [False, True])
def test_the_base_network_keeps_the_base_rate_and_he_initialisation_exactly(
    in_degree: InDegree, kernel_factor: bool
) -> None:
    network = nn.Sequential(nn.Linear(16, 300), nn.ReLU(), nn.Linear(300, 10))
    scaled = scale(network, VECTORS, base_rate=0.3, in_degree=in_degree, kernel_factor=kernel_factor, seed=0)
    assert (scaled.learning_rate, scaled.factor, scaled.path_depths, scaled.notes) == (0.3, 1.0, {1: 1}, ())
    first, readout = scaled.layers
    assert (first.role, readout.role) == ("first", "readout")
    assert first.standard_deviation == nn.init.calculate_gain("relu") / math.sqrt(16)
    assert float(network[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 16), rel=0.05)
    assert float(network[2].weight.detach().std()) == pytest.approx(2 / 300, rel=0.05)
    assert not network[0].bias.any()
    assert not network[2].bias.any()


class Dag(nn.Module):
    """A random network of fully connected layers; every vertex is a sum of layers."""

    def __init__(self, seed: int, activation: Callable[[Tensor], Tensor], width: int = 256, vertices: int = 6) -> None:
        super().__init__()
        self.activation = activation
        random = np.random.default_rng(seed)
        self.sources = [
            [source for source in range(target) if source == target - 1 or random.random() < 0.6]
            for target in range(1, vertices)
        ]
        self.first = nn.Linear(width, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for sources in self.sources for _ in sources)
        self.readout = nn.Linear(width, 10)

    def vertices(self, x: Tensor) -> list[Tensor]:
        z = [self.first(x)]
        layers = iter(self.hidden)
        for sources in self.sources:
            terms = [next(layers)(self.activation(z[source])) for source in sources]
            z.append(sum(terms))
        return z

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.activation(self.vertices(x)[-1]))


@pytest.mark.parametrize(("activation", "first"), [(torch.relu, 2.0), (functional.gelu, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_target_in_degrees_keep_the_signal_at_every_sum(
    activation: Callable[[Tensor], Tensor], first: float, seed: int
) -> None:
    """The information-flow condition, paper eq. 3."""
    network = Dag(seed, activation)
    x = functional.normalize(torch.randn(50, 256, generator=torch.Generator().manual_seed(100 + seed))) * 256**0.5
    found = []
    for draw in range(12):
        scale(network, x[:2], base_rate=1.0, seed=draw)
        with torch.no_grad():
            found.append([float(z.square().mean()) for z in network.vertices(x)])
    assert np.mean(found, axis=0) == pytest.approx([first] * 6, rel=0.1)


def test_gelu_s_gain_is_one_over_its_mean_square() -> None:
    def gelu(z: float) -> float:
        return z * special.ndtr(z)

    mean_square, _ = integrate.quad(lambda z: gelu(z) ** 2 * stats.norm.pdf(z), -np.inf, np.inf)
    assert GAIN_SQUARED["gelu"] == pytest.approx(1 / mean_square, rel=1e-9)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert functional.gelu(z).tolist() == pytest.approx([gelu(float(value)) for value in z])


class Sums(nn.Module):
    """Three branches in one sum, which is read again only if `again`."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.a, self.b, self.c, self.d = (nn.Linear(16, 16) for _ in range(4))
        self.readout = nn.Linear(16, 10)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        r = functional.relu(z)
        inner = self.a(r) + self.b(r)
        total = torch.add(inner, self.c(r))
        if self.again:
            total = total.add(self.d(inner.relu()))
        return self.readout(functional.relu(total))


@pytest.mark.parametrize(("again", "in_degrees"), [(False, [3, 3, 3]), (True, [2, 2, 3, 3])])
def test_a_value_that_one_sum_alone_reads_is_part_of_the_sum(again: bool, in_degrees: list[int]) -> None:
    scaled = scale(Sums(again=again), VECTORS, base_rate=1.0)
    assert [layer.in_degree for layer in scaled.layers if layer.role == "hidden"] == in_degrees
    assert scaled.path_depths == ({2: 3, 3: 2} if again else {2: 3})


def test_resnet18_s_paths_are_those_of_a_polynomial() -> None:
    """Coefficient of x^d: paths with d layers. Blocks multiply, branches add; the readout is one x."""
    x = Polynomial([0, 1])
    blocks = [1 + x**2, 1 + x**2] + [x + x**2, 1 + x**2] * 3
    expected = math.prod(blocks, start=x)
    sum_of_cubes = sum(paths * depth**3 for depth, paths in enumerate(expected.coef))

    network = torchvision.models.resnet18(weights=None)
    network.train()
    network.layer1.eval()
    modes = {name: part.training for name, part in network.named_modules()}
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    random_state = torch.get_rng_state()
    scaled = scale(
        network, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), base_rate=0.1, seed=5
    )

    assert scaled.paths == 2**8 == expected(1)
    assert scaled.deepest == 17
    assert scaled.factor == pytest.approx(sum_of_cubes**-0.5, rel=1e-12)
    assert [layer.name for layer in scaled.layers if layer.role == "first"] == ["conv1"]
    assert [layer.name for layer in scaled.layers if layer.role == "readout"] == ["fc"]
    assert len(scaled.layers) == 21
    for layer in scaled.layers:
        assert layer.in_degree == (2 if "conv2" in layer.name or "downsample" in layer.name else 1)
        if layer.role == "hidden":
            weight = network.get_submodule(layer.name).weight.detach()
            assert float(weight.var()) * weight[0].numel() == pytest.approx(2 / layer.in_degree, rel=0.06)
    assert any("no normalisation: bn1" in note for note in scaled.notes)
    assert any("activated" in note and "add" in note for note in scaled.notes)
    assert any("Max pooling (maxpool)" in note for note in scaled.notes)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: part.training for name, part in network.named_modules()} == modes
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, statistics[name])
    network.eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
    printed = str(scaled).splitlines()
    assert printed[0].startswith(f"learning rate {scaled.learning_rate:.4g}")
    assert "256 paths" in printed[0]
    assert [line.split()[0] for line in printed[2:23]] == [layer.name for layer in scaled.layers]
    assert printed[23:] == list(scaled.notes)


class PreActivation(nn.Module):
    """A residual block that activates first; in place, its skip carries what the activation left."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=inplace)
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.relu(x))


def residual(blocks: int, *, inplace: bool = False) -> nn.Sequential:
    stack = [PreActivation(inplace=inplace) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(16, 16), *stack, nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 10))


def test_deep_networks_have_more_paths_than_can_be_listed() -> None:
    with pytest.warns(UserWarning, match="learning rate is 5.3e-12: no weight would move"):
        scaled = scale(residual(60), VECTORS, base_rate=1.0)
    assert "10^18.1 paths" in str(scaled)
    assert scaled.path_depths == {1 + layers: math.comb(60, layers) for layers in range(61)}
    assert scaled.factor == pytest.approx(sum(math.comb(60, n) * (1 + n) ** 3 for n in range(61)) ** -0.5, rel=1e-12)


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_in_place_changes_what_the_skip_carries(inplace: bool) -> None:
    scaled = scale(residual(2, inplace=inplace), VECTORS, base_rate=1.0)
    assert scaled.path_depths == {1: 1, 2: 2, 3: 1}
    assert any("activated values" in note for note in scaled.notes) == inplace


class Forward(nn.Module):
    """Whatever function, over a few modules."""

    def __init__(self, forward: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        self.parts = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> object:
        return self.function(self.parts, x)


def network(middle: Callable[[nn.ModuleDict, Tensor], object], **modules: nn.Module) -> Forward:
    """A first layer and a ReLU, `middle`, and a readout."""
    first, readout = nn.Linear(16, 16), nn.Linear(16, 10)
    modules = {"first": first, "layer": nn.Linear(16, 16), "readout": readout, **modules}
    return Forward(lambda parts, x: parts.readout(middle(parts, parts.first(x).relu())), **modules)


def image_network(middle: Callable[[nn.ModuleDict, Tensor], object], **modules: nn.Module) -> Forward:
    modules = {"first": nn.Conv2d(3, 16, 3, padding=1), "readout": nn.Linear(16, 10), **modules}
    return Forward(lambda p, x: p.readout(middle(p, p.first(x).relu()).mean((2, 3))), **modules)


def twice(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    return parts.layer(parts.layer(x).relu()).relu()


def recurrent(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    hidden, _ = parts.lstm(x)
    return hidden


def attended(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    return parts.attention(x, x, x)[0]


def branches(_: nn.ModuleDict, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def tied() -> nn.Sequential:
    tied = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    tied[2].weight = tied[0].weight
    return tied


REFUSALS: dict[str, tuple[nn.Module, Tensor, str]] = {
    "concatenation": (network(lambda _, x: torch.cat([x, x], 1)[:, :16]), VECTORS, "node cat.*concatenates"),
    "multiplication": (network(lambda p, x: x * p.layer(x)), VECTORS, "node mul.*multiplies"),
    "matrix product": (network(lambda _, x: x @ x.T @ x), VECTORS, "node getattr_1.*cannot be read"),
    "attention": (
        network(attended, attention=nn.MultiheadAttention(16, 2)),
        VECTORS,
        r"node parts_attention \(module parts.attention\).*attention",
    ),
    "reused layer": (network(twice), VECTORS, r"node parts_layer_1 \(module parts.layer\).*more than once"),
    "tied weights": (tied(), VECTORS, r"node _2 \(module 2\).*more than once"),
    "transposed convolution": (
        image_network(lambda p, x: p.up(x), up=nn.ConvTranspose2d(16, 16, 2, 2)),
        IMAGES,
        r"node parts_up \(module parts.up\).*transposed convolution",
    ),
    "softmax module": (
        nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4), nn.Softmax(1)),
        VECTORS,
        r"node _3 \(module 3\).*softmax",
    ),
    "softmax function": (network(lambda _, x: torch.softmax(x, 1)), VECTORS, "node softmax.*logits"),
    "no activation before a layer": (
        network(lambda p, x: p.layer(x) + x),
        VECTORS,
        r"node parts_readout \(module parts.readout\).*no activation precedes",
    ),
    "recurrent layer": (network(recurrent, lstm=nn.LSTM(16, 16)), VECTORS, r"\(module parts.lstm\).*recurrent"),
    "branch on values": (network(branches), VECTORS, "cannot trace Forward beyond node gt"),
    "several outputs": (Forward(lambda p, x: (p.a(x), x), a=nn.Linear(16, 4)), VECTORS, "node output.*several outputs"),
    "several tensors": (network(lambda _, x: x.chunk(2)[0]), VECTORS, "node chunk.*cannot be read"),
    "pooling with indices": (
        image_network(lambda p, x: p.pool(x)[0], pool=nn.MaxPool2d(2, return_indices=True)),
        IMAGES,
        r"node parts_pool \(module parts.pool\).*several tensors",
    ),
    "other activation": (network(lambda p, x: functional.silu(p.layer(x))), VECTORS, "node silu.*ReLU and GELU"),
    "leaky ReLU": (nn.Sequential(nn.Linear(16, 4), nn.LeakyReLU()), VECTORS, r"node _1 \(module 1\).*ReLU and GELU"),
    "two activations": (network(lambda _, x: functional.gelu(x)), VECTORS, "node gelu.*activated already"),
    "functional layer": (
        network(lambda p, x: functional.linear(x, p.layer.weight).relu()),
        VECTORS,
        "node linear.*as a function",
    ),
    "added constant": (network(lambda _, x: x + 1.0), VECTORS, "node add.*a number"),
    "scaled sum": (network(lambda p, x: torch.add(x, p.layer(x), alpha=2)), VECTORS, "node add.*a number"),
    "broadcast sum": (
        image_network(lambda _, x: (x + x.mean((2, 3), keepdim=True)).relu()),
        IMAGES,
        "node add.*different shapes",
    ),
    "mean over channels": (image_network(lambda _, x: x.mean(1, keepdim=True)), IMAGES, "node mean.*more than pixels"),
    "mean over all": (network(lambda _, x: x.mean()), VECTORS, "node mean.*more than pixels"),
    "batch reshaped": (image_network(lambda _, x: x.view(-1, 16, 4, 4)), IMAGES, "node view.*the batch"),
    "activated output": (nn.Sequential(nn.Linear(16, 4), nn.ReLU()), VECTORS, "node output.*activated"),
    "linear skip to the output": (
        Forward(lambda p, x: p.b(p.a(x).relu()) + p.c(x), a=nn.Linear(16, 4), b=nn.Linear(4, 4), c=nn.Linear(16, 4)),
        VECTORS,
        r"node parts_c \(module parts.c\).*without an activation",
    ),
    "skip to the output": (
        Forward(lambda p, x: p.b(p.a(x).relu()) + x, a=nn.Linear(16, 4), b=nn.Linear(4, 16)),
        VECTORS,
        "node add.*without a last layer",
    ),
    "one layer": (nn.Sequential(nn.Linear(16, 4)), VECTORS, r"node _0 \(module 0\).*without an activation"),
    "no layer": (nn.Flatten(), VECTORS, "No path with a layer"),
    "weight normalisation": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 4)), nn.ReLU(), nn.Linear(4, 4)),
        VECTORS,
        "Module 0 has no weight that can be set",
    ),
    "the benchmark's reduction block": (
        PlainNetwork(NAS_BENCH_201.arch_at(0), channels=4, cells_per_stage=1, classes=10, image_channels=3),
        IMAGES,
        r"\(module blocks.1.downsample.1\).*no activation precedes",
    ),
    "wrong number of features": (network(lambda _, x: x), torch.zeros(2, 15), r"node parts_first.*\(2, 15\)"),
    "missing dimension": (image_network(lambda _, x: x), torch.zeros(3, 8, 8), r"node mean.*\(3, 8, 8\)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_theory_does_not_cover_is_refused_and_nothing_is_changed(case: str) -> None:
    module, example, message = REFUSALS[case]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(NasRetrainError, match=message):
        scale(module, example, base_rate=0.1)
    assert module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"base_rate": rate}, f"base_rate is {re.escape(shown)}; give a positive learning rate")
            for rate, shown in (
                *((0.0, "0.0"), (-0.1, "-0.1"), (math.nan, "nan"), (math.inf, "inf"), ("0.1", "'0.1'"), (b"1", "b'1'")),
                *((True, "True"), (np.True_, "np.True_"), (None, "None"), (1j, "1j"), (10**5000, "of type int")),
                *(
                    (np.ones(2), "array([1., 1.])"),
                    (torch.ones(2), "tensor([1., 1.])"),
                    (Decimal("NaN"), "Decimal('NaN')"),
                ),
            )
        ),
        *(
            ({"base_rate": 1.0, "seed": seed}, f"seed is {re.escape(shown)}; give a whole number of 64 bits")
            for seed, shown in (
                *(
                    (True, "True"),
                    (np.False_, "np.False_"),
                    (3.0, "3.0"),
                    (np.float64(3), "np.float64(3.0)"),
                    ("3", "'3'"),
                ),
                *(
                    (2**64, str(2**64)),
                    (10**5000, "of type int"),
                    (Decimal(3), "Decimal('3')"),
                    ([3], "[3]"),
                ),
            )
        ),
        ({"base_rate": 1.0, "in_degree": ["target"]}, "'source' or 'target'"),
        ({"base_rate": 1.0, "in_degree": None}, "'source' or 'target'"),
        ({"base_rate": 1.0, "in_degree": "both"}, "'source' or 'target'"),
        ({"base_rate": 1.0, "kernel_factor": True}, "parts.layer is not"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, object], message: str) -> None:
    module = network(lambda p, x: p.layer(x).relu())
    before = parameters(module)
    with pytest.raises(NasRetrainError, match=message):
        scale(module, VECTORS, **arguments)
    assert torch.equal(parameters(module), before)


def parameters(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((2, 16), "example_input is a tuple"),
        (np.zeros((2, 16), np.float32), "example_input is a ndarray"),
        (None, "example_input is a NoneType"),
        (torch.zeros(0, 16), "example_input is empty"),
        (torch.zeros(2, 16, device="meta"), "example_input is on the meta device"),
        (torch.zeros(2, 16, dtype=torch.long), r"node parts_first.*\(2, 16\) and type torch.int64 on cpu"),
        (torch.zeros(2, 16, dtype=torch.float64), r"node parts_first.*\(2, 16\) and type torch.float64 on cpu"),
        (torch.tensor(1.0), r"node parts_first.*shape \(\)"),
    ],
)
def test_examples_that_do_not_fit_are_named(example: Any, message: str) -> None:
    with pytest.raises(NasRetrainError, match=message):
        scale(network(lambda _, x: x), example, base_rate=1.0)


@pytest.mark.parametrize(
    "number", [Decimal("0.25"), np.float32(0.25), np.array(0.25), torch.tensor(0.25), Fraction(1, 4)]
)
def test_a_base_rate_may_be_any_kind_of_number(number: Any) -> None:
    rate = scale(network(lambda _, x: x), VECTORS, base_rate=number).learning_rate
    assert (rate, type(rate)) == (0.25, float)


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_a_seed_may_be_any_kind_of_whole_number(seed: Any) -> None:
    drawn = []
    for one in (3, seed):
        module = network(lambda _, x: x)
        scale(module, VECTORS, base_rate=1.0, seed=one)
        drawn.append([*module.parts.first.parameters(), *module.parts.readout.parameters()])
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))


def changed(change: Callable[[nn.Sequential], object]) -> nn.Sequential:
    module = two_layers()
    change(module)
    return module


def keeps(value: Callable[[nn.Sequential], object]) -> nn.Sequential:
    return changed(lambda module: setattr(module[0], "kept", value(module)))


def with_weights(first: Tensor, last: Tensor) -> nn.Sequential:
    module = two_layers()
    module[0].weight, module[2].weight = nn.Parameter(first), nn.Parameter(last)
    return module


def quietly(make: Callable[[], nn.Module]) -> nn.Module:
    """torch warns that some of its ways are old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Keyword(nn.Module):
    def forward(self, x: Tensor, *, flag: bool) -> Tensor:
        return x if flag else -x


class Nothing(nn.Module):
    def forward(self) -> Tensor:
        return VECTORS


def nested(depth: int) -> nn.Sequential:
    module = two_layers()
    for _ in range(depth):
        module = nn.Sequential(module)
    return module


SHARED = torch.zeros(40, 16)
LINEAR = {nn.Linear}
MISFITS: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (lambda: nn.Linear, "module is <class.*give a torch.nn.Module"),
    "a function": (lambda: torch.relu, "module is .*give a torch.nn.Module"),
    "scripted": (
        lambda: quietly(lambda: torch.jit.script(two_layers())),
        "Module RecursiveScriptModule is compiled to TorchScript",
    ),
    "traced": (
        lambda: quietly(lambda: torch.jit.trace(two_layers(), VECTORS)),
        "Module TopLevelTracedModule is compiled to Torch",
    ),
    "a scripted part": (
        lambda: nn.Sequential(quietly(lambda: torch.jit.script(nn.Linear(16, 16))), nn.ReLU(), nn.Linear(16, 4)),
        "Module 0 is compiled to TorchScript",
    ),
    "compiled": (lambda: torch.compile(two_layers()), "Module OptimizedModule is compiled.*_orig_mod"),
    "data parallel": (lambda: nn.DataParallel(two_layers()), "Module DataParallel spreads a module"),
    "keeps an activation": (
        lambda: keeps(lambda module: module(VECTORS)),
        r"Module 0 cannot be copied.*attribute kept \(Tensor\).*detached",
    ),
    "keeps losses": (
        lambda: keeps(lambda module: [{"loss": module(VECTORS).sum()}]),
        r"Module 0.*attribute kept \(list\)",
    ),
    "keeps a lock": (lambda: keeps(lambda _: threading.Lock()), r"Module 0 cannot be copied.*attribute kept \(lock\)"),
    "keeps a generator": (lambda: keeps(lambda module: (part for part in module)), r"attribute kept \(generator\)"),
    "lazy layer": (lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 4)), "Module 0 is lazy"),
    "lazy batch normalisation": (lambda: two_layers().insert(1, nn.LazyBatchNorm1d()), "Module 1 is lazy"),
    "lazy statistics": (lambda: two_layers().insert(1, nn.LazyBatchNorm1d(affine=False)), "Module 1 is lazy"),
    "lazy instance normalisation": (
        lambda: two_layers().insert(1, nn.LazyInstanceNorm1d(affine=True)),
        "Module 1 is lazy.*Run the network once",
    ),
    "meta": (lambda: two_layers().to("meta"), "Module 0 is on the meta device"),
    "one meta layer": (lambda: changed(lambda module: module[2].to("meta")), "Module 2 is on the meta device"),
    "meta buffer": (
        lambda: two_layers().insert(1, nn.BatchNorm1d(16, affine=False, device="meta")),
        "Module 1 is on the meta",
    ),
    "inference parameters": (
        lambda: torch.inference_mode()(two_layers)(),
        "weight of module 0 was made in torch.inference",
    ),
    "frozen": (lambda: two_layers().requires_grad_(False), "weight of module 0 is frozen"),
    "frozen bias": (lambda: changed(lambda module: module[2].bias.requires_grad_(False)), "bias of module 2 is frozen"),
    "frozen normalisation": (
        lambda: two_layers().insert(1, nn.BatchNorm1d(16).requires_grad_(False)),
        "weight of module 1 is frozen",
    ),
    "weight normalisation by hooks": (
        lambda: quietly(lambda: changed(lambda module: nn.utils.weight_norm(module[2]))),
        "Module 2 has no weight that can",
    ),
    "spectral normalisation by hooks": (
        lambda: changed(lambda module: nn.utils.spectral_norm(module[2])),
        "Module 2 has no weight that can be set",
    ),
    "spectral normalisation": (
        lambda: changed(lambda module: nn.utils.parametrizations.spectral_norm(module[2])),
        "Module 2 has no weight",
    ),
    "parametrised bias": (
        lambda: changed(lambda module: nn.utils.parametrize.register_parametrization(module[0], "bias", nn.Identity())),
        "Module 0 has no weight",
    ),
    "parametrised normalisation": (
        lambda: two_layers().insert(
            1, nn.utils.parametrize.register_parametrization(nn.BatchNorm1d(16), "weight", nn.Identity())
        ),
        "Module 1 has no weight",
    ),
    "pruned": (
        lambda: changed(lambda module: prune.random_unstructured(module[0], "weight", 0.5)),
        "Module 0 has no weight",
    ),
    "hook that doubles": (
        lambda: changed(lambda module: module[0].register_forward_hook(lambda _, __, out: 2 * out)),
        "Module 0 has a forward hook",
    ),
    "hook before": (
        lambda: changed(lambda module: module[0].register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))),
        "Module 0 has a forward hook",
    ),
    "hook of the whole": (
        lambda: changed(lambda module: module.register_forward_hook(lambda _, __, out: out.softmax(1))),
        "Module Sequential has a forward hook",
    ),
    "complex": (
        lambda: quietly(lambda: two_layers().to(torch.complex64)),
        "Module 0 has weights of type torch.complex64",
    ),
    "eight bits": (lambda: two_layers().to(torch.float8_e4m3fn), "Module 0 has weights of type torch.float8_e4m3fn"),
    "quantised": (
        lambda: quietly(lambda: torch.ao.quantization.quantize_dynamic(two_layers(), LINEAR)),
        r"node _0 \(module 0\).*torch.ao.nn.quantized.* cannot be read",
    ),
    "tied by their data": (lambda: with_weights(SHARED[:16], SHARED[:10]), "2.weight and 0.weight share their memory"),
    "weights that overlap": (
        lambda: with_weights(SHARED[:16], SHARED[8:18]),
        "0.weight and 2.weight share their memory",
    ),
    "a weight that an unused layer has too": (
        lambda: changed(
            lambda m: (m[2].register_module("other", nn.Linear(16, 10)), setattr(m[2].other, "weight", m[2].weight))
        ),
        "2.other.weight and 2.weight share their memory",
    ),
    "a part of a parameter of all": (
        lambda: changed(
            lambda m: (
                setattr(m[2], "weight", nn.Parameter(SHARED[4:14])),
                m.register_parameter("flat", nn.Parameter(SHARED)),
            )
        ),
        "flat and 2.weight share their memory",
    ),
    "an expanded weight": (
        lambda: with_weights(torch.zeros(1, 16).expand(16, 16), torch.zeros(10, 16)),
        "weight of module 0 is no tensor of its own",
    ),
    "no values": (
        lambda: quietly(lambda: nn.Sequential(nn.Linear(16, 0), nn.ReLU(), nn.Linear(0, 4))),
        "0 has the shape.*no values",
    ),
    "two inputs": (Two, "forward of Two cannot be called with one input alone: missing a required argument: 'y'"),
    "a keyword without a default": (Keyword, "forward of Keyword cannot be called with one input.*'flag'"),
    "no input": (Nothing, "forward of Nothing cannot be called with one input"),
    "too deeply nested": (lambda: nested(400), "Sequential are nested too deeply.*setrecursionlimit"),
    "one output in a tuple": (
        lambda: Forward(lambda p, x: (p.b(p.a(x).relu()),), a=nn.Linear(16, 4), b=nn.Linear(4, 4)),
        "node output.*in a tuple",
    ),
    "outputs by name": (
        lambda: Forward(lambda p, x: {"logits": p.b(p.a(x).relu())}, a=nn.Linear(16, 4), b=nn.Linear(4, 4)),
        "node output.*dict",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_module_that_cannot_be_read_or_set_is_refused_and_nothing_is_changed(case: str) -> None:
    make, message = MISFITS[case]
    module = make()
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
    tensors = [tensor for tensor in tensors if not (is_lazy(tensor) or tensor.is_meta)]
    before = [tensor.detach().clone() for tensor in tensors]
    random_state = torch.get_rng_state()
    with pytest.raises(NasRetrainError, match=message) as raised:
        scale(module, VECTORS, base_rate=0.1)
    assert len(str(raised.value)) < 500
    assert torch.equal(torch.get_rng_state(), random_state)
    for one, other in zip(tensors, before, strict=True):
        assert torch.equal(one, other)


def test_what_a_hook_or_parametrisation_would_hide_works_once_it_is_removed() -> None:
    module = two_layers()
    handle = module[0].register_forward_hook(lambda _, __, out: 2 * out)
    nn.utils.parametrizations.spectral_norm(module[2])
    handle.remove()
    nn.utils.parametrize.remove_parametrizations(module[2], "weight")
    assert scale(module, VECTORS, base_rate=0.1).factor == 1.0


class Flags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def run(self, x: Tensor, again: bool, mask: Tensor | None) -> Tensor:
        x = self.a(x).relu()
        if again:
            x = self.b(x).relu()
        return self.c(x if mask is None else x * mask)


class Defaults(Flags):
    def forward(self, x: Tensor, flag: bool = False, mask: Tensor | None = None) -> Tensor:
        return self.run(x, flag, mask)


class AnotherDefault(Flags):
    def forward(self, x: Tensor, flag: bool = True, mask: Tensor | None = None) -> Tensor:
        return self.run(x, flag, mask)


class KeywordDefaults(Flags):
    def forward(self, x: Tensor, *, flag: bool = True, sizes: tuple[int, ...] = (1, 2)) -> Tensor:
        return self.run(x, flag and len(sizes) == 2, None)


class AnyKeywords(Flags):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.run(x, options.get("flag", True), options.get("mask"))


class AnyInputs(Flags):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(inputs[0], len(inputs) == 1, None)


@pytest.mark.parametrize(
    ("kind", "depth"), [(Defaults, 1), (AnotherDefault, 2), (KeywordDefaults, 2), (AnyKeywords, 2), (AnyInputs, 2)]
)
def test_further_arguments_of_forward_have_their_defaults(kind: type[Flags], depth: int) -> None:
    module = kind()
    assert module(VECTORS).shape == (2, 4)
    assert scale(module, VECTORS, base_rate=1.0).path_depths == {depth: 1}


def same_twice(how: Callable[[Tensor], Tensor]) -> Forward:
    return Forward(lambda p, x: p.b(how(p.a(x)).relu()), a=nn.Linear(16, 16), b=nn.Linear(16, 4))


def added_in_place(x: Tensor) -> Tensor:
    x += x
    return x


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x + x,
        lambda x: torch.add(x, x),
        lambda x: sum([x, x]),
        lambda x: x + functional.dropout(x),
        lambda x: x + x.view(2, 16),
        added_in_place,
    ],
)
def test_a_value_added_to_itself_counts_twice_and_is_noted(how: Callable[[Tensor], Tensor]) -> None:
    scaled = scale(same_twice(how), VECTORS, base_rate=1.0)
    assert scaled.path_depths == {1: 2}
    assert "added to itself in " in scaled.notes[0]
    assert "itself" not in "".join(scale(same_twice(lambda x: x), VECTORS, base_rate=1.0).notes)


def test_a_value_that_a_longer_sum_has_twice_is_noted() -> None:
    def forward(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        x = parts.a(x)
        return parts.c((x + parts.b(x.relu()) + x).relu())

    module = Forward(forward, **{name: nn.Linear(16, 16) for name in "abc"})
    scaled = scale(module, VECTORS, base_rate=1.0)
    assert scaled.path_depths == {1: 2, 2: 1}
    assert "added to itself in add, add_1" in scaled.notes[0]


@pytest.mark.parametrize("additions", [1100, 2500])
def test_paths_beyond_any_float_give_the_rule_s_rate_or_zero_with_a_warning(additions: int) -> None:
    """Adding a value to itself n times doubles its paths n times: the factor is 2 ** (-n / 2), or 0."""

    def doubled(x: Tensor) -> Tensor:
        for _ in range(additions):
            x = x + x
        return x

    with pytest.warns(
        UserWarning, match="no weight would move" if additions < 2200 else "small for a float, and so is 0"
    ):
        scaled = scale(same_twice(doubled), VECTORS, base_rate=1.0)
    assert scaled.factor == pytest.approx(2.0 ** (-additions / 2), rel=1e-11, abs=0.0)
    assert scaled.path_depths == {1: 2**additions}
    assert f"10^{additions * math.log10(2):.1f} paths" in str(scaled)


def test_a_number_of_paths_with_more_digits_than_python_prints_is_printed() -> None:
    skips = tuple(Edge(vertex, vertex + 1, Operation("skip")) for vertex in range(15000) for _ in range(2))
    assert "(about 10^4515.4 paths, the deepest of depth 1)" in str(
        Scaled(0.0, 0.0, CellGraph(15001, skips), (), (), "sgd", 0.0)
    )


def test_a_chain_of_more_layers_than_python_recurses() -> None:
    layers = [part for _ in range(1100) for part in (nn.ReLU(), nn.Linear(2, 2))]
    scaled = scale(nn.Sequential(nn.Linear(2, 2), *layers), torch.zeros(2, 2), base_rate=1.0)
    assert scaled.factor == pytest.approx(1100**-1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_lengths(dtype: torch.dtype) -> None:
    module = two_layers().to(dtype)
    scale(module, VECTORS.to(dtype), base_rate=1.0, seed=0)
    assert module[0].weight.dtype == dtype
    assert float(module[0].weight.detach().double().std()) == pytest.approx(math.sqrt(2 / 16), rel=0.1)


def test_inside_inference_mode_a_network_is_scaled_as_outside_and_stays_trainable() -> None:
    inside, outside = two_layers(), two_layers()
    with torch.inference_mode():
        scale(inside, VECTORS, base_rate=1.0, seed=1)
    scale(outside, VECTORS, base_rate=1.0, seed=1)
    assert torch.equal(parameters(inside), parameters(outside))
    inside(VECTORS + 1).sum().backward()
    assert inside[0].weight.grad is not None


def test_a_network_that_draws_while_it_is_traced_leaves_torch_s_generator_alone() -> None:
    module = Forward(
        lambda p, x: p.b(p.a(x).relu()) if torch.rand(()) < 2 else x, a=nn.Linear(16, 4), b=nn.Linear(4, 4)
    )
    before = torch.get_rng_state()
    scale(module, VECTORS, base_rate=1.0, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_hooks_of_gradients_and_compilation_in_place_are_not_in_the_way() -> None:
    module = two_layers().eval()
    called = []
    module.register_full_backward_hook(lambda *_: called.append(1))
    module[0].register_full_backward_hook(lambda *_: called.append(1))
    module.compile()
    assert scale(module, VECTORS, base_rate=1.0).factor == 1.0
    assert not module.training
    assert not called
    assert len(module._backward_hooks) == 1


def test_reshapes_pools_and_means_count_nothing() -> None:
    """One network written in two ways, with modules and with functions, and both are the base network."""
    modules = nn.Sequential(
        *(
            nn.AvgPool2d(1),
            nn.Conv2d(3, 8, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Dropout2d(),
            nn.Identity(),
        ),
        *(nn.Flatten(), nn.Linear(32, 10)),
    )

    def functions(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        x = functional.relu(functional.max_pool2d(parts.first(x), 2), inplace=True)
        x = functional.dropout2d(functional.adaptive_avg_pool2d(x, 2))
        return parts.last(x.contiguous().view(x.size(0), -1))

    written = Forward(functions, first=nn.Conv2d(3, 8, 3), last=nn.Linear(32, 10))
    state = torch.get_rng_state()
    for module in (modules, written):
        scaled = scale(module, IMAGES, base_rate=0.2, seed=0)
        assert (scaled.factor, [layer.fan_in for layer in scaled.layers]) == (1.0, [27, 32])
        assert "Max pooling" in scaled.notes[0]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(modules.parameters(), written.parameters(), strict=True):
        assert torch.equal(one, other)


def test_convolutions_of_any_dimension_and_groups() -> None:
    one = nn.Sequential(nn.Conv1d(4, 8, 5), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv1d(8, 2, 1))
    scaled = scale(one, torch.zeros(2, 4, 20), base_rate=1.0, kernel_factor=True)
    assert [layer.fan_in for layer in scaled.layers] == [20, 6, 8]
    assert scaled.layers[1].standard_deviation == pytest.approx(math.sqrt(2 / 6))
    assert scaled.factor == pytest.approx(2**-1.5)  # one hidden layer with the base network's kernel
    three = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 5, padding=2), nn.ReLU(), nn.Conv3d(4, 2, 1))
    three.append(nn.AdaptiveAvgPool3d(1)).append(nn.Flatten())  # the readout may be averaged
    scaled = scale(three, torch.zeros(2, 1, 6, 6, 6), base_rate=1.0, kernel_factor=True)
    assert [(layer.kernel_size, layer.role) for layer in scaled.layers] == [
        *(((3, 3, 3), "first"), ((5, 5, 5), "hidden"), ((1, 1, 1), "readout"))
    ]
    assert scaled.factor == pytest.approx(2**-1.5 * 3 / 5)


def test_several_first_layers_and_readouts() -> None:
    """Two layers read the input and meet in a sum; two read the last values and meet in the output."""
    parts = {name: nn.Linear(16, 16) for name in "abcd"}

    def forward(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        hidden = (parts.a(x) + parts.b(x)).relu()
        return parts.c(hidden) + parts.d(hidden)

    module = Forward(forward, **parts)
    scaled = scale(module, VECTORS, base_rate=1.0)
    assert scaled.path_depths == {1: 4}
    assert [(layer.role, layer.in_degree) for layer in scaled.layers] == [("first", 2)] * 2 + [("readout", 1)] * 2
    assert scaled.layers[0].standard_deviation == pytest.approx(math.sqrt(2 / 2 / 16))


def test_layers_that_lead_nowhere_are_named_and_left_alone() -> None:
    def forward(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        parts.nowhere(x)
        return parts.last((parts.first(x) + parts.dead(torch.zeros_like(x).relu())).relu())

    parts = {name: nn.Linear(16, 16) for name in ("first", "nowhere", "dead", "never", "last")}
    module = Forward(forward, **parts)
    before = {name: part.weight.clone() for name, part in parts.items()}
    scaled = scale(module, VECTORS, base_rate=1.0)
    assert [(layer.name, layer.in_degree) for layer in scaled.layers] == [("parts.first", 1), ("parts.last", 1)]
    assert [name for name, part in parts.items() if torch.equal(part.weight, before[name])] == [
        "nowhere",
        "dead",
        "never",
    ]
    assert scaled.notes[-1].endswith("left as it was: parts.nowhere, parts.dead, parts.never.")


def test_normalisation_layers_are_reset_and_named() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.LayerNorm(288))
    module.append(nn.Linear(288, 4)).insert(2, nn.BatchNorm2d(8, affine=False))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 7.0)
    scaled = scale(module, IMAGES, base_rate=1.0)
    for place in (1, 5):
        assert (module[place].weight == 1).all()
        assert not module[place].bias.any()
    assert scaled.factor == 1.0
    assert "1, 2, 5 counted as the identity" in scaled.notes[0]


def test_weights_depend_on_the_seed_or_the_generator_alone() -> None:
    def weights(seed: int | torch.Generator | None) -> Tensor:
        module = network(lambda p, x: p.layer(x).relu())
        scale(module, VECTORS, base_rate=1.0, seed=seed)
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    assert torch.equal(weights(3), weights(3))
    assert torch.equal(weights(3), weights(torch.Generator().manual_seed(3)))
    assert not torch.equal(weights(3), weights(4))

    def global_weights() -> Tensor:
        module = network(lambda p, x: p.layer(x).relu())
        torch.manual_seed(3)
        scale(module, VECTORS, base_rate=1.0)
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    with torch.random.fork_rng(devices=[]):
        assert torch.equal(global_weights(), weights(3))


def test_the_package_offers_scale_without_importing_torch() -> None:
    code = "import sys, nas_retrain; assert 'torch' not in sys.modules; assert not hasattr(nas_retrain, 'rescale')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert nas_retrain.scale is scale


def test_an_activated_term_of_a_sum_stays_a_vertex_of_its_own() -> None:
    def forward(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        x = parts.first(x).relu()
        return parts.last((parts.a(x).relu() + parts.b(x)).relu())

    scaled = scale(
        Forward(forward, **{name: nn.Linear(16, 16) for name in ("first", "a", "b", "last")}), VECTORS, base_rate=1.0
    )
    assert [layer.in_degree for layer in scaled.layers] == [1, 1, 2, 1]
    assert "activated values" in scaled.notes[0]


def test_the_example_is_not_written_to() -> None:
    """A layer that reads an activated input counts like any other."""
    example = -torch.ones(2, 16)
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    assert scale(module, example, base_rate=1.0).path_depths == {2: 1}
    assert (example == -1).all()
