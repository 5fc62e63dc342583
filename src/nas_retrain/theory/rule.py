"""What a scaling rule is, how one is found by its name, and how what it returns is checked.

A rule is a function of a network's graph and size that returns a `Parametrisation`:

    def rule(graph: CellGraph, size: NetworkSize, *, exponent: float = -1.5) -> Parametrisation: ...

Parameters of its own follow as keywords. The rules that ship are the modules of `nas_retrain.theory.rules`, each with
one function `rule`, and are named after their module (`paper`). One's own is named by where it is,
`my_package.my_module:my_rule` or `folder/file.py:my_rule` (see `files.own_code`).

Rules are pure Python. What a rule returned for a network is plain data, so a process that trains never imports it.
A rule of one's own is code that its user runs: it is checked for slips and not for malice.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import pkgutil
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from nas_retrain.errors import NasRetrainError, shown
from nas_retrain.files import own_code
from nas_retrain.theory import rules
from nas_retrain.theory.graph import CellGraph, Edge
from nas_retrain.theory.scaling import BASE, HE_GAIN_SQUARED

Outer = Literal["first", "reduction_first", "reduction_second", "reduction_shortcut", "readout"]
"""The layers outside of the cell: what reads the images, the three convolutions of a block between two stages, and what
gives the logits."""

Vectors = Literal["vectors"]
"""All parameters that are not matrices, taken together: weights and biases of BatchNorms, and biases of layers."""

Layer = Edge | Outer
"""A layer: an edge of the cell that carries weights, or one outside of it. Each stands for all its copies in a network
that repeats the cell."""

VECTORS: Vectors = "vectors"


@dataclass(frozen=True, eq=False)
class Peers:
    """The networks that are compared with each other, for rules that set one against the others."""

    graphs: tuple[CellGraph, ...] = ()


@dataclass(frozen=True)
class NetworkSize:
    """What a rule gets to know of a network beside its cell's graph.

    width: channels or units of the cell's vertices, in the first stage; None where layers have no width in common.
    readout_width: what the readout reads, or what it puts out where variances go by fan-out. inputs: values that a unit
    of the first layer reads. cells_per_stage: cells one after the other in each of `stages` stages, where width doubles
    from one to the next. depth_offset: the weighted layers that the rule counts on every path outside of the cell.
    base_kernel_size: the base network's, q_base of eq. 9. base: the base network's graph, on which the base rate is
    searched, so that its factor is to be 1. normalised: whether layers end in a BatchNorm. gain_squared:
    1 / E[activation(z)^2], see `GAIN_SQUARED`.
    """

    width: int | None
    readout_width: int
    inputs: int
    classes: int
    stages: int = 1
    cells_per_stage: int = 1
    depth_offset: int = 1
    base_kernel_size: float = 3.0
    normalised: bool = False
    gain_squared: float = HE_GAIN_SQUARED
    base: CellGraph = BASE
    peers: Peers = field(default_factory=Peers, compare=False, repr=False)

    @property
    def required_width(self) -> int:
        """The width; raises NasRetrainError where there is none."""
        if self.width is None:
            raise NasRetrainError("it needs a width, and the layers of this network have none in common")
        return self.width

    @property
    def outer(self) -> tuple[Outer, ...]:
        """The layers outside of the cell."""
        reductions = self.stages > 1
        return tuple(layer for layer in get_args(Outer) if reductions or not layer.startswith("reduction"))


def weighted_edges(graph: CellGraph) -> tuple[Edge, ...]:
    """The edges of a cell that carry weights, in edge order: live layers, then layers of constants."""
    return graph.layers + graph.constant_layers


@dataclass(frozen=True)
class Rates:
    """learning_rate: a factor of the base learning rate. layer_rates: factors on top of it for single layers, and for
    all vectors together; 1 for what is left out."""

    learning_rate: float = 1.0
    layer_rates: Mapping[Layer | Vectors, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Parametrisation:
    """What a rule decides for a network: any of rates, variances and multipliers. Nothing, by default.

    learning_rate, layer_rates: as `Rates` has them, for gradient descent with or without momentum.
    variances: the factor C of a layer, whose weights are drawn from N(0, C / fan-in). Layers that are left out are
    drawn as the recipe says.
    multipliers: by how much what a layer puts out (after its BatchNorm, if it has one) is multiplied before it is
    added to the edge's target. Only layers have them: a skip carries no weights into which a multiplier could go.
    adam: the rates for Adam; None where the rule says nothing about it.
    """

    learning_rate: float = 1.0
    layer_rates: Mapping[Layer | Vectors, float] = field(default_factory=dict, hash=False)
    variances: Mapping[Layer, float] = field(default_factory=dict, hash=False)
    multipliers: Mapping[Edge, float] = field(default_factory=dict, hash=False)
    adam: Rates | None = None

    @property
    def uniform(self) -> bool:
        """Whether all parameters have one rate and no layer is multiplied."""
        return all(factor == 1 for factor in (*self.layer_rates.values(), *self.multipliers.values()))

    def as_plain(self) -> dict[str, Any]:
        """What it decides for gradient descent as text and numbers, sorted: equal for equal decisions."""
        return {"learning_rate": self.learning_rate} | self.layers_as_plain()

    def layers_as_plain(self) -> dict[str, Any]:
        """The same without the factor of the learning rate."""
        found: dict[str, Any] = {}
        for name in ("layer_rates", "variances", "multipliers"):
            if decided := getattr(self, name):
                found[name] = dict(sorted((layer_name(layer), value) for layer, value in decided.items()))
        return found

    def layers_as_text(self) -> str:
        """The same as JSON, as records have it."""
        return json.dumps(self.layers_as_plain(), separators=(",", ":"))


def layer_name(layer: Layer | Vectors) -> str:
    """A short name: `0-1` for an edge, with the kernel size where it is not 1 (`0-1/3`)."""
    if isinstance(layer, str):
        return layer
    kernel = layer.operation.kernel_size
    return f"{layer.source}-{layer.target}" + (f"/{kernel}" if kernel != 1 else "")


class RuleVersion(NamedTuple):
    """Which rule it was: its name, and the checksum of the file that it was written in (see `own_code.Loaded`)."""

    name: str
    checksum: str

    @property
    def own(self) -> bool:
        """Whether it is none of the rules that ship."""
        return ":" in self.name


@dataclass(frozen=True)
class Rule:
    """A rule with its parameters. name: what it was found by. checksum: of its file (see `own_code.Loaded`)."""

    name: str
    function: Callable[..., Parametrisation] = field(compare=False)
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    checksum: str = ""

    @property
    def version(self) -> RuleVersion:
        """Which rule it is, as plain data."""
        return RuleVersion(self.name, self.checksum)

    def decide(self, graph: CellGraph, size: NetworkSize, cell: str) -> Parametrisation:
        """What the rule decides for a network, with plain floats for numbers of all kinds.

        cell: the network's name, for messages. Raises NasRetrainError, naming the rule and the cell, if the rule raises
        an error or would end the process, or if what it returns cannot be used.
        """
        try:
            if self.version.own:  # what it changes in its own copies changes nothing else
                decided = self.function(replace(graph), size, **copy.deepcopy(dict(self.parameters)))
            else:
                decided = self.function(graph, size, **self.parameters)
            return _checked(decided, graph, size)
        except (Exception, SystemExit) as error:
            said = str(error) if isinstance(error, NasRetrainError) else f"{type(error).__name__}: {error}"
            raise NasRetrainError(f"rule {self.name} for cell {cell}: {said}") from error


def shipped() -> tuple[str, ...]:
    """The names of the rules that ship, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(rules.__path__)))


def find(name: str, parameters: Mapping[str, Any] | None = None) -> Rule:
    """The rule of a name, with its parameters.

    Raises NasRetrainError, naming the rule and what is missing, if it cannot be imported, is no function, or does not
    take these parameters, or not of this kind: numbers, texts and truths are checked by the function's annotations.
    """
    if ":" in name:
        found, checksum = own_code.loaded(name, "rule")
    elif name in shipped():
        found, checksum = own_code.loaded(f"{rules.__name__}.{name}:rule", "rule")
    else:
        raise NasRetrainError(
            f"rule {name}: there is none of this name. There are {', '.join(shipped())}; one of your own is named by "
            "where it is, my_package.my_module:my_rule or folder/file.py:my_rule."
        )
    given = dict(parameters or {})
    takes = "what Python does not tell"
    try:
        signature = inspect.signature(found)
        takes = ", ".join(list(signature.parameters)[2:]) or "none"
        signature.bind(None, None, **given)
    except (TypeError, ValueError) as error:
        raise NasRetrainError(
            f"rule {name}: {error}. A rule takes a graph, a size and parameters; this one's parameters are {takes}."
        ) from None
    if fault := _of_another_kind(found, given):
        raise NasRetrainError(f"rule {name}: parameter {fault}")
    return Rule(name, found, given, checksum)


def _of_another_kind(function: Callable[..., object], given: Mapping[str, Any]) -> str:
    """Which of the parameters is of another kind than its annotation says; nothing if none is. A parameter without an
    annotation may be anything, and so may objects of Python's, which no file of settings holds."""
    for name, value in given.items():
        try:
            _checker(function, name).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            said = "; ".join(dict.fromkeys(one["msg"] for one in error.errors()))
            return f"{name}: {said} (got {reprlib.repr(value)})"
        except TypeError:  # it is no plain data
            continue
    return ""


def _checker(function: Callable[..., object], name: str) -> TypeAdapter[Any]:
    """What checks a parameter. It may have no annotation, or one that only type checkers can read."""
    annotations = {key: kind for key, kind in getattr(function, "__annotations__", {}).items() if key == name}
    alone = SimpleNamespace(__annotations__=annotations)
    try:
        return TypeAdapter(get_type_hints(alone, getattr(function, "__globals__", {}))[name])
    except (KeyError, NameError, AttributeError, TypeError, PydanticUserError):
        return TypeAdapter(Any)


SMALLEST_OF_LAYER, LARGEST_OF_LAYER = 1e-18, 1e18
"""Between these a number that belongs to a layer must be: its square, by which a multiplier changes rates, is one in
single precision then, and so is that square's inverse."""


def _checked(decided: object, graph: CellGraph, size: NetworkSize) -> Parametrisation:
    """What a rule returned, with floats for numbers; raises NasRetrainError, saying what is wrong, if that cannot be
    used."""
    if not isinstance(decided, Parametrisation):
        raise NasRetrainError(f"it returned {type(decided).__name__}, where a Parametrisation was expected")
    if not isinstance(decided.adam, Rates | None):
        raise NasRetrainError(f"adam is {shown(decided.adam)}, where Rates or None was expected")
    edges = weighted_edges(graph)
    layers = [*edges, *size.outer]
    adam = decided.adam
    return Parametrisation(
        _number(decided.learning_rate, "learning_rate"),
        _numbers(decided.layer_rates, "layer_rates", [*layers, VECTORS]),
        _numbers(decided.variances, "variances", layers),
        _numbers(decided.multipliers, "multipliers", edges),
        adam
        and Rates(
            _number(adam.learning_rate, "adam.learning_rate"),
            _numbers(adam.layer_rates, "adam.layer_rates", [*layers, VECTORS]),
        ),
    )


def _numbers(decided: object, name: str, known: Collection[Any]) -> dict[Any, float]:
    """Numbers by layer."""
    if not isinstance(decided, Mapping):
        raise NasRetrainError(f"{name} is {shown(decided)}, where a mapping of layers to numbers was expected")
    found = {}
    for layer, value in decided.items():
        if layer not in known:
            there = ", ".join(map(_said, known)) or "none"
            raise NasRetrainError(f"{name} has {_said(layer)}, which is no layer of this network. It has {there}")
        number = _number(value, f"{name} of {_said(layer)}")
        if not SMALLEST_OF_LAYER <= number <= LARGEST_OF_LAYER:
            raise NasRetrainError(
                f"{name} of {_said(layer)} is {number:g}, where a number from {SMALLEST_OF_LAYER:g} to "
                f"{LARGEST_OF_LAYER:g} was expected"
            )
        found[layer] = number
    return found


def _number(value: Any, name: str) -> float:  # noqa: ANN401 - what a rule returned
    """A number of any kind, as of numpy or a fraction, as a float."""
    number = math.nan
    if not isinstance(value, str | bytes | bool):  # which float() would take
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
    if not 0 < number < math.inf:
        raise NasRetrainError(f"{name} is {shown(value)}, where a positive, finite number was expected")
    return number


def _said(layer: Any) -> str:  # noqa: ANN401 - what a rule returned as a key
    return layer if isinstance(layer, str) else layer_name(layer) if isinstance(layer, Edge) else shown(layer)
