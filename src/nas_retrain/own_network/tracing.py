"""The paper's two rules for a network of your own: its initial weights, set in place, and its learning rate.

The module is traced by torch.fx and read as a `CellGraph`. A vertex is a pre-activation: what a layer, a pooling or a
sum gives. Vertex 0 is the network's input and the last vertex its output. An edge is a layer (ReLU or GELU, then a
Linear or Conv module), a pooling or a skip.

- A path's depth L_p is the number of activated layers on it. The first layers read the raw input and count nothing; the
  readout counts one, as the rule's depth offset. So both are skips of the graph, and the base network, input -> hidden
  -> readout, is a single path of depth 1 whose factor is exactly 1.
- A value that is read by one sum alone is part of that sum: a + b + c is one vertex of in-degree 3, and a convolution
  that ends in a sum is divided by the sum's in-degree.
- A skip or a pooling counts nothing, whether it carries a pre-activation (as in the paper) or an activated value (as in
  ResNets that activate after the sum).
- Normalisation, dropout and reshaping count as the identity; `Scaled.notes` says that the theory has no normalisation.

All paths of the network count; the paper's NAS-Bench-201 experiments count those inside one cell and not the stacking
of cells. Whatever the theory does not cover is refused rather than guessed at.

Source: Chen, Wu, Wang, Hanin, "Principled Architecture-aware Scaling of Hyperparameters", ICLR 2024, eq. 4, 8, 9, 12.
"""

from __future__ import annotations

import inspect
import math
import operator
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsFloat, SupportsIndex, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from nas_retrain.errors import NasRetrainError
from nas_retrain.own_network import by_rule
from nas_retrain.own_network.by_rule import LayerSize, NetworkDecision, Optimiser
from nas_retrain.own_network.preconditions import (
    LAYERS,
    copied,
    generator_of,
    positive,
    require_example,
    require_one_input,
    require_readable,
    require_settable,
    said,
)
from nas_retrain.theory.graph import ONE_LAYER, CellGraph, Edge, Operation
from nas_retrain.theory.rule import Layer
from nas_retrain.theory.scaling import (
    GAIN_SQUARED,
    HE_GAIN_SQUARED,
    Activation,
    InDegree,
    learning_rate_factor,
    variance_factors,
)

Role = Literal["first", "hidden", "readout"]

SMALLEST_RATE = torch.finfo(torch.float32).eps
"""Learning rates below this get a warning: in 32 bits, a weight of 1 less the rate times a gradient of 1 is still 1."""


@dataclass(frozen=True)
class ScaledLayer:
    """A layer on some path from input to output, and how it was initialised.

    name: its path in the module. kind: its class. kernel_size: the window's sides, () for Linear. in_degree: what
    divides its variance, 1 for readouts and under a named rule. standard_deviation: of its weights; biases are 0.
    learning_rate: of its weights. multiplier: what a rule multiplies it by, which is in its weights and its rate.
    """

    name: str
    kind: str
    kernel_size: tuple[int, ...]
    fan_in: int
    in_degree: int
    standard_deviation: float
    role: Role
    learning_rate: float
    multiplier: float = 1.0


@dataclass(frozen=True)
class Scaled:
    """What `scale` found and did; print it to read it.

    learning_rate: the base rate times `factor`. graph: the network as the rules see it, poolings without their windows.
    layers: in the order in which they run. notes: sentences on what lies outside the theory or was left alone.
    optimiser: which one the rates are for. vector_rate: the learning rate of biases and normalisation layers.
    """

    learning_rate: float
    factor: float
    graph: CellGraph
    layers: tuple[ScaledLayer, ...]
    notes: tuple[str, ...]
    optimiser: Optimiser
    vector_rate: float

    def parameter_groups(self, module: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """The parameters of the module that was scaled, in groups of one learning rate and weight decay, for an
        optimiser: `torch.optim.SGD(scaled.parameter_groups(module), momentum=0.9)`.

        weight_decay: of the network as the rule has it. A layer whose multiplier is in its weights decays as it would
        without. Raises NasRetrainError for a module that has not the layers of the one that was scaled, as one that
        wraps it.
        """
        of_layers = {layer.name: layer for layer in self.layers}
        there = dict(module.named_modules())
        if missing := [name for name in of_layers if not isinstance(there.get(name), LAYERS)]:
            raise NasRetrainError(
                f"{type(module).__name__} has no layer {missing[0]}, as the module that was scaled. Give that module "
                "itself: of a compiled one its _orig_mod, of one that is spread over devices its module."
            )
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        seen: set[nn.Parameter] = set()
        for path, part in module.named_modules():
            layer = of_layers.get(path)
            multiplier = layer.multiplier if layer else 1.0
            power = 2 if self.optimiser == "sgd" else 1
            for parameter in [each for each in part.parameters(recurse=False) if each not in seen]:
                seen.add(parameter)
                rate = self.learning_rate
                if layer is not None and parameter is part.weight:
                    rate = layer.learning_rate
                elif parameter.ndim < 2:
                    rate = self.vector_rate * multiplier**power
                groups.setdefault((rate, weight_decay / multiplier**power), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()
        ]

    @property
    def path_depths(self) -> Counter[int]:
        """How many input-to-output paths have each depth, the readout counted."""
        return self.graph.path_depths()

    @property
    def paths(self) -> int:
        """How many paths lead from input to output."""
        return self.path_depths.total()

    @property
    def deepest(self) -> int:
        """The depth of the deepest path."""
        return max(self.path_depths)

    def table(self) -> str:
        """The layers, one a line, in aligned columns."""
        rows: list[tuple[str, ...]] = [("layer", "kind", "kernel", "fan-in", "in-degree", "std", "role")]
        by_layer = any(layer.learning_rate != self.learning_rate for layer in self.layers)
        if by_layer:
            rows = [(*rows[0], "rate")]
        for layer in self.layers:
            kernel = "x".join(map(str, layer.kernel_size)) or "-"
            std = f"{layer.standard_deviation:.4g}"
            row = (layer.name, layer.kind, kernel, str(layer.fan_in), str(layer.in_degree), std, layer.role)
            rows.append((*row, f"{layer.learning_rate:.4g}") if by_layer else row)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def __str__(self) -> str:
        number = f"{self.paths:,}" if self.paths < 10**15 else f"about 10^{math.log10(self.paths):.1f}"
        paths = "1 path" if self.paths == 1 else f"{number} paths, the deepest"
        rate = f"learning rate {self.learning_rate:.4g} = base rate x {self.factor:.4g}"
        return "\n".join([f"{rate} ({paths} of depth {self.deepest})", self.table(), *self.notes])


def scale(
    module: nn.Module,
    example_input: Tensor,
    *,
    base_rate: SupportsFloat,
    in_degree: InDegree = "target",
    kernel_factor: bool = False,
    seed: SupportsIndex | torch.Generator | None = None,
    rule: str | None = None,
    rule_parameters: Mapping[str, Any] | None = None,
    optimiser: Optimiser = "sgd",
) -> Scaled:
    """Initialise a module in place by a scaling rule, the paper's by default, and return the learning rates that go
    with it.

    module: Linear and Conv layers, ReLU or GELU, sums, pooling, reshaping, dropout and normalisation, with one input
    and one output; further arguments of its forward have their defaults. A copy of it runs once; the module's mode and
    all that is not a parameter stay as they are.
    example_input: a batch of inputs, of shape (batch, ...), of the type and on the device that the module takes. Its
    values do not matter.
    base_rate: the best learning rate of the base network (input -> hidden layer -> readout) on the same data.
    in_degree: whose in-degree divides a variance. "target" keeps the signal's scale where layers meet (eq. 3, 12);
    "source" is eq. 4 as printed.
    kernel_factor: also divide the rate by the mean kernel size of the hidden layers over 3 (eq. 9).
    seed: of the weights: a whole number of 64 bits, a torch.Generator, or None for torch's own generator.
    rule: in place of the paper's, one of `nas_retrain.theory.rules` by its name or one of your own,
    "my_package.my_module:my_rule", with rule_parameters. optimiser: "sgd", or "adam" where the rule says what holds for
    it. `Scaled.parameter_groups` gives an optimiser what it needs.

    Without `rule`:
    Hidden weights are drawn from N(0, C / fan-in) with C = 2 / in-degree (2.3516 after GELU); first layers likewise, or
    with C = 1 / in-degree in networks with GELU, whose gain wants pre-activations of unit variance, hence standardised
    inputs. Readouts have variance (2 / fan-in)^2. Biases are 0; normalisation layers have weight 1 and bias 0.

    Warns if the rate is below `SMALLEST_RATE`. Raises NasRetrainError, with the module unchanged, for an argument or
    example that does not fit, for a module whose weights cannot be set, and for what the theory does not cover, naming
    the traced node and the module it is in.
    """
    base_rate, generator = positive(base_rate), generator_of(seed)
    if rule is not None and (in_degree != "target" or kernel_factor):
        raise NasRetrainError("in_degree and kernel_factor are parameters of the rule paper: give rule_parameters.")
    if rule is None and (rule_parameters or optimiser != "sgd"):
        raise NasRetrainError("rule_parameters and optimiser go with a rule, and the paper's rules are for 'sgd' only.")
    if in_degree not in ("source", "target"):
        raise NasRetrainError(f"in_degree is {in_degree!r}; choose 'source' or 'target'.")
    reader = _read(module, example_input)
    arrows = _network(reader.arrows, reader.last)
    graph = _cell_graph(arrows, module)
    if kernel_factor:
        _require_square_windows(arrows, module)
    require_settable(module, [arrow.layer for arrow in arrows if arrow.layer], reader.normalisations)
    if rule is None:
        factor, vectors = learning_rate_factor(graph, ONE_LAYER, kernel_factor=kernel_factor), 1.0
        layers = _layers(arrows, graph, module, in_degree, base_rate * factor)
    else:
        normalised = bool(reader.normalisations)
        sizes = _layer_sizes(arrows, graph, module)
        gain = GAIN_SQUARED["gelu" if any(arrow.activation == "gelu" for arrow in arrows) else "relu"]
        decided = by_rule.decide(
            rule, rule_parameters, optimiser, graph, sizes,
            normalised=normalised, gain_squared=gain, name=type(module).__name__,
        )  # fmt: skip
        factor, vectors = decided.learning_rate, decided.vectors
        layers = _layers_by_rule(arrows, module, decided, base_rate * factor)
    rate, notes = base_rate * factor, _notes(reader, arrows, module)
    if not math.isfinite(rate):
        raise NasRetrainError(f"base_rate {base_rate:g} times the rule's {factor:g} is more than a float can be.")
    if rate < SMALLEST_RATE:
        small = f"{rate:.2g}" if rate else "too small for a float, and so is 0"
        notes = (
            f"The learning rate is {small}: no weight would move. The network has more or deeper paths than the "
            "rule is good for; search its learning rate instead.",
            *notes,
        )
        warnings.warn(notes[0], stacklevel=2)
    _initialise(module, layers, reader.normalisations, generator)
    return Scaled(rate, factor, graph, layers, notes, optimiser, rate * vectors)


_Meaning = Literal[
    "layer", "relu", "gelu", "normalisation", "sum", "pool", "max-pool", "mean", "view", "dropout", "zeros"
]


def _pools(kind: str) -> list[object]:
    modules = [getattr(nn, f"{prefix}{kind}Pool{n}d") for prefix in ("", "Adaptive") for n in (1, 2, 3)]
    function = f"{kind.lower()}_pool"
    return modules + [getattr(functional, f"{prefix}{function}{n}d") for prefix in ("", "adaptive_") for n in (1, 2, 3)]


_COVERED: dict[_Meaning, list[object]] = {
    "layer": [*LAYERS],
    "relu": [nn.ReLU, functional.relu, functional.relu_, torch.relu, torch.relu_, "relu", "relu_"],
    "gelu": [nn.GELU, functional.gelu],
    "normalisation": [nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm],
    "sum": [operator.add, operator.iadd, torch.add, "add", "add_"],
    "pool": _pools("Avg"),
    "max-pool": _pools("Max"),
    "mean": [torch.mean, "mean"],
    "view": [
        *(nn.Identity, nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze),
        *("flatten", "reshape", "view", "squeeze", "contiguous"),
    ],
    "dropout": [
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
        *(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d),
    ],
    "zeros": [torch.zeros_like],
}
"""What can be read: classes of modules, functions, and names of tensor methods."""

_ELSE = "or search this network's learning rate instead."

_REFUSED: list[tuple[str, list[object]]] = [
    (
        f"It concatenates, and the paper's graphs only add. Add branches of equal width instead, {_ELSE}",
        [torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack],
    ),
    (
        f"It multiplies (a gate, a scale, attention), and the paper's graphs only add. Leave it out, {_ELSE}",
        [
            *(operator.mul, operator.imul, operator.matmul, operator.truediv, torch.mul, torch.multiply, torch.div),
            *(torch.matmul, torch.bmm, torch.einsum, functional.scaled_dot_product_attention, nn.MultiheadAttention),
            *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Bilinear, "mul", "mul_", "div", "matmul"),
        ],
    ),
    (
        "It is a transposed convolution, which sums over more inputs at some pixels than at others and so has no one "
        f"fan-in. Use an ordinary convolution, {_ELSE}",
        [
            nn.modules.conv._ConvTransposeNd,
            *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
        ],
    ),
    (
        "It is a softmax, and the theory ends with the logits. Leave the softmax to the loss.",
        [
            *(nn.Softmax, nn.Softmax2d, nn.LogSoftmax, functional.softmax, functional.log_softmax),
            *(torch.softmax, torch.log_softmax, "softmax", "log_softmax"),
        ],
    ),
    (
        "It is a recurrent layer, which uses its weights again at every step; in the theory each weight is used once. "
        f"Use a feed-forward network, {_ELSE}",
        [nn.RNNBase, nn.RNNCellBase],
    ),
    (
        f"It is an activation whose gain is not known here; those of ReLU and GELU are. Use one of them, {_ELSE}",
        [
            *(nn.CELU, nn.ELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.RReLU),
            *(nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh, functional.celu, functional.elu),
            *(functional.hardsigmoid, functional.hardswish, functional.hardtanh, functional.leaky_relu),
            *(functional.mish, functional.prelu, functional.relu6, functional.rrelu, functional.selu),
            *(functional.silu, functional.sigmoid, functional.softplus, functional.tanh),
            *(torch.sigmoid, torch.tanh, "sigmoid", "tanh"),
        ],
    ),
    (
        "It applies weights as a function, which leaves no layer to initialise. Use nn.Linear, nn.Conv1d, nn.Conv2d or "
        "nn.Conv3d itself, not a subclass of it.",
        [functional.linear, functional.conv1d, functional.conv2d, functional.conv3d],
    ),
]

_MEANINGS: dict[object, _Meaning] = {key: meaning for meaning, keys in _COVERED.items() for key in keys}
_REASONS: dict[object, str] = {key: reason for reason, keys in _REFUSED for key in keys}


_INPUT = 0


@dataclass(frozen=True)
class _Value:
    """What a tensor holds: a vertex, perhaps activated. Pooling makes a vertex of its own of pre-activations alone."""

    vertex: int
    activation: Activation | None = None


@dataclass(frozen=True)
class _Arrow:
    """An edge as it was traced.

    activation: of the source vertex, before the operation. layer: the module's path, "" for skips and poolings.
    """

    source: int
    target: int
    kind: Literal["skip", "pool", "layer"]
    activation: Activation | None
    node: fx.Node
    layer: str = ""
    role: Role = "hidden"


def _read(module: nn.Module, example_input: Tensor) -> _Reader:
    """Trace a copy of the module as it stands, and run it in evaluation mode: the module itself stays as it is."""
    require_example(example_input)
    require_readable(module)
    try:
        require_one_input(module, example_input)
        used = [tensor for tensor in (example_input, *module.parameters()) if tensor.is_cuda]
        devices = {tensor.device.index for tensor in used}
        with torch.no_grad(), torch.random.fork_rng(devices):  # forward may draw, and functional dropout does
            copy = copied(module)
            tracer = _Tracer()
            try:
                graph = tracer.trace(copy)
            except RecursionError:
                raise
            except Exception as error:
                *_, last = tracer.graph.nodes
                raise NasRetrainError(
                    f"torch.fx cannot trace {type(module).__name__} beyond {_at(last)}: {said(error)}. What a network "
                    "runs must not depend on the values of tensors: take such branches and loops out of forward."
                ) from error
            reader = _Reader(fx.GraphModule(copy, graph).eval(), example_input)
            reader.run(example_input.clone())
    except RecursionError as error:
        raise NasRetrainError(
            f"The modules of {type(module).__name__} are nested too deeply to be read within Python's recursion limit "
            f"of {sys.getrecursionlimit():,}. Nest them less, or raise the limit with sys.setrecursionlimit."
        ) from error
    return reader


class _Tracer(fx.Tracer):
    """Traces forward as a function of its first argument: the others have their defaults, as when it is called so."""

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,  # noqa: ARG002 - as the base class has it
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,  # noqa: ARG002
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The function and its arguments: the module and the one input."""
        _, name, *_ = inspect.signature(root_fn).parameters
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]


class _Reader(fx.Interpreter):
    """Runs a traced module once, and reads of which vertices and edges it is made.

    Tensors that share memory have one owner, and values are by owner: what is done in place is done to all of them.
    """

    def __init__(self, traced: fx.GraphModule, example: Tensor) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.example = f"shape {tuple(example.shape)} and type {example.dtype} on {example.device}"
        self.vertices = 0
        self.last = _INPUT
        self.arrows: list[_Arrow] = []
        self.owners: dict[fx.Node, fx.Node] = {}
        self.values: dict[fx.Node, _Value] = {}
        self.weights: set[int] = set()
        self.normalisations: list[str] = []
        self.max_pools: list[fx.Node] = []

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - as the base class has it
        """Run a node, then read it."""
        try:
            result = super().run_node(n)
        except Exception as error:
            raise NasRetrainError(
                f"The network fails at {_at(n)} on an example_input of {self.example}: {said(error)}. "
                "Give a batch of the shape and type that the network takes, on its device, as its one input."
            ) from error
        if n.op == "output":
            self._read_output(n)
        elif n.op == "placeholder" and not self.values:
            self._hold(n, _Value(self._new_vertex()))
        elif n.op in ("call_module", "call_function", "call_method"):
            if isinstance(result, Tensor):
                self._read_tensor(n, result)
            elif isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result):
                self._meaning(n)
                raise _refusal(n, f"It gives several tensors, where the paper's graphs have one. Leave it out, {_ELSE}")
        return result

    def _read_tensor(self, node: fx.Node, result: Tensor) -> None:
        meaning = self._meaning(node)
        if meaning == "zeros":
            self._hold(node, _Value(self._new_vertex()))
            return
        if meaning == "sum":
            self._read_sum(node, result)
            return
        source = node.all_input_nodes[0]
        value, before = self._value(source, node), self.env[source]
        if meaning == "layer":
            self._read_layer(node, value)
        elif meaning in ("relu", "gelu"):
            if value.activation not in (None, "relu") or (value.activation and meaning == "gelu"):
                raise _refusal(
                    node, f"It activates a value that is activated already. Leave one of the two out, {_ELSE}"
                )
            self._hold(node, replace(value, activation=meaning), in_place_of=source if self._in_place(node) else None)
        elif meaning == "view":
            if result.shape[:1] != before.shape[:1]:
                raise _refusal(node, "It changes the first dimension, which is the batch. Keep it, as flatten(1) does.")
            self.owners[node] = self.owners[source]
        elif meaning in ("normalisation", "dropout"):
            if meaning == "normalisation":
                self.normalisations.append(str(node.target))
            self._hold(node, value)
        else:
            if meaning == "max-pool":
                self.max_pools.append(node)
            if meaning == "mean" and not _averages_pixels(node, before.ndim):
                raise _refusal(node, "It averages over more than pixels. Name the dimensions, as in mean((2, 3)).")
            self._read_pool(node, value)

    def _read_layer(self, node: fx.Node, value: _Value) -> None:
        name = str(node.target)
        weight = id(_layer(self.module, name).weight)
        if weight in self.weights:
            raise _refusal(
                node,
                f"Its weights are used more than once; in the theory each is used once. Make it two layers, {_ELSE}",
            )
        if value.activation is None and value.vertex != _INPUT:
            raise _refusal(
                node,
                "It is a layer that reads a value which no activation precedes; in the theory every layer but the "
                f"first reads an activated one. Put a ReLU before it, {_ELSE}",
            )
        self.weights.add(weight)
        vertex = self._new_vertex()
        self.arrows.append(_Arrow(value.vertex, vertex, "layer", value.activation, node, name))
        self._hold(node, _Value(vertex))

    def _read_pool(self, node: fx.Node, value: _Value) -> None:
        if value.activation or value.vertex == _INPUT:
            self._hold(node, value)
            return
        vertex = self._new_vertex()
        self.arrows.append(_Arrow(value.vertex, vertex, "pool", None, node))
        self._hold(node, _Value(vertex))

    def _read_sum(self, node: fx.Node, result: Tensor) -> None:
        operands = (*node.args, *node.kwargs.values())
        terms = [term for term in operands if isinstance(term, fx.Node) or term != 0]  # Python's sum starts with 0
        values = [self._value(term, node) for term in terms]
        sources = node.all_input_nodes
        if len(values) == 1:
            self.owners[node] = self.owners[sources[0]]
            return
        if any(self.env[source].shape != result.shape for source in sources):
            raise _refusal(node, f"It adds tensors of different shapes. Add feature maps of one shape, {_ELSE}")
        vertex = self._new_vertex()
        for value in values:
            self.arrows.append(_Arrow(value.vertex, vertex, "skip", value.activation, node))
        self._hold(node, _Value(vertex), in_place_of=sources[0] if self._in_place(node) else None)

    def _read_output(self, node: fx.Node) -> None:
        returned = node.args[0]
        if not isinstance(returned, fx.Node):
            raise _refusal(
                node, "It returns several outputs, none, or one in a tuple or dict. Return the logits, a tensor."
            )
        value = self._value(returned, node)
        if value.activation:
            raise _refusal(node, "The output is activated. Return what the last layer gives, the logits.")
        self.last = value.vertex

    def _meaning(self, node: fx.Node) -> _Meaning:
        keys: Sequence[object] = (node.target,)
        if node.op == "call_module":
            keys = type(self.module.get_submodule(str(node.target))).__mro__
        for key in keys:
            if key in _MEANINGS:
                return _MEANINGS[key]
            if key in _REASONS:
                raise _refusal(node, _REASONS[key])
        name = getattr(keys[0], "__name__", keys[0])
        if node.op == "call_module":
            name = f"{keys[0].__module__}.{name}"
        raise _refusal(
            node,
            f"{name} cannot be read; layers (Linear, Conv), ReLU, GELU, sums, pooling, reshaping, dropout and "
            f"normalisation modules can. Replace it, {_ELSE}",
        )

    def _value(self, term: object, reader: fx.Node) -> _Value:
        if not isinstance(term, fx.Node) or term not in self.owners:
            raise _refusal(
                reader,
                f"It reads a number, a parameter or a constant beside the network's values. Leave it out, {_ELSE}",
            )
        return self.values[self.owners[term]]

    def _hold(self, node: fx.Node, value: _Value, in_place_of: fx.Node | None = None) -> None:
        self.owners[node] = self.owners[in_place_of] if in_place_of else node
        self.values[self.owners[node]] = value

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.module.get_submodule(str(node.target)), "inplace", False))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        given = node.kwargs.get("inplace") is True or any(argument is True for argument in node.args)
        return given or name.endswith("_") or node.target is operator.iadd

    def _new_vertex(self) -> int:
        self.vertices += 1
        return self.vertices - 1


def _at(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"node {node.name}" + (f" (module {stack[-1][0]})" if stack else "")


def _refusal(node: fx.Node, reason: str) -> NasRetrainError:
    return NasRetrainError(f"The rules do not cover {_at(node)}. {reason}")


def _averages_pixels(node: fx.Node, dimensions: int) -> bool:
    """Whether a mean names its dimensions and they come after the batch and the channels."""
    named = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    over = [named] if isinstance(named, int) else list(cast("Sequence[int]", named or ()))
    return bool(over) and all(dimension % dimensions >= 2 for dimension in over)


def _network(traced: list[_Arrow], output: int) -> list[_Arrow]:
    """The arrows on paths from input to output, vertices numbered anew, each layer with its role.

    A vertex that one sum alone reads, unchanged, becomes part of the sum. A pooling of the output is left out, so that
    the layer before it is the readout.
    """
    arrows = _live(traced, output)
    while [arrow.kind for arrow in arrows if arrow.target == output] == ["pool"]:
        output = next(arrow.source for arrow in arrows if arrow.target == output)
        arrows = [arrow for arrow in arrows if arrow.source != output]
    readers = Counter(arrow.source for arrow in arrows)
    merged: dict[int, int] = {}
    for arrow in sorted(arrows, key=lambda arrow: -arrow.target):  # whether the sum itself is merged is known by then
        if arrow.kind == "skip" and not arrow.activation and readers[arrow.source] == 1:
            merged[arrow.source] = merged.get(arrow.target, arrow.target)
    arrows = [replace(a, target=merged.get(a.target, a.target)) for a in arrows if a.source not in merged]
    number = {vertex: n for n, vertex in enumerate(sorted({end for a in arrows for end in (a.source, a.target)}))}
    return [replace(a, source=number[a.source], target=number[a.target], role=_role(a, output)) for a in arrows]


def _live(arrows: list[_Arrow], output: int) -> list[_Arrow]:
    """The arrows on paths from input to output; raises NasRetrainError if there is no layer on them."""
    earlier = [arrow for arrow in arrows if arrow.target <= output]  # later vertices cannot lead to it
    ends: set[tuple[int, int]] = set()
    if output != _INPUT:
        graph = CellGraph(output + 1, tuple(Edge(a.source, a.target, Operation(a.kind)) for a in earlier))
        ends = {(edge.source, edge.target) for edge in graph.live.edges}
    live = [arrow for arrow in earlier if (arrow.source, arrow.target) in ends]
    if not any(arrow.layer for arrow in live):
        raise NasRetrainError(
            "No path with a layer leads from the network's input to its output: there is nothing to scale."
        )
    return live


def _role(arrow: _Arrow, output: int) -> Role:
    first = bool(arrow.layer) and arrow.source == _INPUT and not arrow.activation
    if arrow.target != output:
        return "first" if first else "hidden"
    if not arrow.layer:
        raise _refusal(arrow.node, f"It leads to the output without a last layer. Let one layer read the sum, {_ELSE}")
    if first:
        raise _refusal(
            arrow.node,
            f"It leads from the input to the output without an activation. Put a hidden layer before it, {_ELSE}",
        )
    return "readout"


def _cell_graph(arrows: list[_Arrow], module: nn.Module) -> CellGraph:
    """The arrows as edges, in the same order."""

    def operation(arrow: _Arrow) -> Operation:
        if not arrow.layer:
            return Operation(arrow.kind)
        if arrow.role != "hidden":
            return Operation("skip")  # first layers count nothing, and the rule's depth offset counts the readout
        return Operation("layer", max(_window(module, arrow.layer), default=1))

    edges = tuple(Edge(arrow.source, arrow.target, operation(arrow)) for arrow in arrows)
    return CellGraph(1 + max(edge.target for edge in edges), edges)


def _layer(module: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    return cast("nn.Linear | nn.Conv2d", module.get_submodule(name))  # or nn.Conv1d or nn.Conv3d, which are alike


def _window(module: nn.Module, layer: str) -> tuple[int, ...]:
    return tuple(getattr(module.get_submodule(layer), "kernel_size", ()))


def _require_square_windows(arrows: list[_Arrow], module: nn.Module) -> None:
    for arrow in arrows:
        if arrow.layer and arrow.role == "hidden" and len(set(_window(module, arrow.layer))) != 1:
            raise NasRetrainError(
                "kernel_factor=True needs hidden layers that are convolutions with square windows, and "
                f"{arrow.layer} is not. Leave it False."
            )


def _layer_sizes(arrows: list[_Arrow], graph: CellGraph, module: nn.Module) -> list[LayerSize]:
    """The layers as rules see them, in the arrows' order."""
    sizes = []
    for arrow, edge in zip(arrows, graph.edges, strict=True):
        if arrow.layer:
            weight = _layer(module, arrow.layer).weight
            key: Layer = edge if arrow.role == "hidden" else arrow.role
            sizes.append(LayerSize(key, weight[0].numel(), len(weight)))
    return sizes


def _layers_by_rule(
    arrows: list[_Arrow], module: nn.Module, decided: NetworkDecision, rate: float
) -> tuple[ScaledLayer, ...]:
    layers = []
    for arrow, one in zip([arrow for arrow in arrows if arrow.layer], decided.layers, strict=True):
        part, window = _layer(module, arrow.layer), _window(module, arrow.layer)
        kind, fan_in = type(part).__name__, part.weight[0].numel()
        deviation, its_rate = one.standard_deviation, rate * one.rate_factor
        layers.append(
            ScaledLayer(arrow.layer, kind, window, fan_in, 1, deviation, arrow.role, its_rate, one.multiplier)
        )
    return tuple(layers)


def _layers(
    arrows: list[_Arrow], graph: CellGraph, module: nn.Module, in_degree: InDegree, rate: float
) -> tuple[ScaledLayer, ...]:
    factors = variance_factors(graph, in_degree)
    has_gelu = any(arrow.activation == "gelu" for arrow in arrows)
    layers = []
    for arrow, edge in zip(arrows, graph.edges, strict=True):
        if not arrow.layer:
            continue
        part = _layer(module, arrow.layer)
        fan_in = part.weight[0].numel()
        degree = graph.in_degrees[edge.target if in_degree == "target" else edge.source]
        if arrow.role == "readout":
            degree, deviation = 1, HE_GAIN_SQUARED / fan_in
        elif arrow.role == "first":
            deviation = math.sqrt((1.0 if has_gelu else HE_GAIN_SQUARED) / degree / fan_in)
        else:
            gain = GAIN_SQUARED[arrow.activation or "relu"]
            deviation = math.sqrt(factors[edge] * (gain / HE_GAIN_SQUARED) / fan_in)
        window = _window(module, arrow.layer)
        kind = type(part).__name__
        layers.append(ScaledLayer(arrow.layer, kind, window, fan_in, degree, deviation, arrow.role, rate))
    return tuple(layers)


def _initialise(
    module: nn.Module,
    layers: Sequence[ScaledLayer],
    normalisations: Sequence[str],
    generator: torch.Generator | None,
) -> None:
    with torch.no_grad():
        drawn = []  # all, before the first is set: should memory run out, nothing is changed
        for layer in layers:
            weight = _layer(module, layer.name).weight
            new = torch.empty_like(weight, device=generator.device if generator else weight.device)
            drawn.append(new.normal_(0.0, layer.standard_deviation, generator=generator))
        for layer, new in zip(layers, drawn, strict=True):
            part = _layer(module, layer.name)
            part.weight.copy_(new)
            if part.bias is not None:
                part.bias.zero_()
        for name in normalisations:
            norm = cast("nn.GroupNorm", module.get_submodule(name))
            if norm.weight is not None:
                norm.weight.fill_(1.0)
            if norm.bias is not None:
                norm.bias.zero_()


def _notes(reader: _Reader, arrows: list[_Arrow], module: nn.Module) -> tuple[str, ...]:
    notes = []
    if reader.normalisations:
        notes.append(
            f"The theory covers no normalisation: {_listed(reader.normalisations)} counted as the identity, with "
            "weight 1 and bias 0."
        )
    if any(arrow.activation == "gelu" for arrow in arrows):
        notes.append(
            "The paper derives its rules for ReLU. GELU enters by its gain, which holds for pre-activations of unit "
            "variance: standardise the inputs."
        )
    if activated := dict.fromkeys(arrow.node.name for arrow in arrows if not arrow.layer and arrow.activation):
        notes.append(
            f"The paper's skips carry pre-activations; those of {_listed(activated)} carry activated values, and count "
            "nothing likewise."
        )
    skips = Counter((arrow.source, arrow.target, arrow.activation) for arrow in arrows if arrow.kind == "skip")
    if doubled := dict.fromkeys(
        arrow.node.name for arrow in arrows if skips[arrow.source, arrow.target, arrow.activation] > 1
    ):
        notes.append(
            f"A value is added to itself in {_listed(doubled)}. It counts once for each term, but the rules take the "
            "terms of a sum for independent, and these are equal: the signal grows there."
        )
    if reader.max_pools:
        notes.append(f"Max pooling ({_listed(reader.max_pools)}) is counted like average pooling, but is not linear.")
    used = {arrow.layer for arrow in arrows}
    if unused := [name for name, part in module.named_modules() if isinstance(part, LAYERS) and name not in used]:
        notes.append(f"On no path from input to output, and left as it was: {_listed(unused)}.")
    return tuple(notes)


def _listed(names: Iterable[object], most: int = 4) -> str:
    listed = [str(name) for name in names]
    if len(listed) > most:
        listed = [*listed[: most - 1], "...", f"{listed[-1]} ({len(listed)} in all)"]
    return ", ".join(listed)
