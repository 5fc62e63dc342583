from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.errors import NasRetrainError, shown
from nas_retrain.theory.graph import CellGraph, Edge, Operation
from nas_retrain.theory.rule import NetworkSize, Parametrisation, Rates, Rule, find, shipped
from tests.strategies import cell_graphs

LAYER = Edge(0, 1, Operation("layer", 3))
CHAIN = CellGraph(2, (LAYER,))
SIZE = NetworkSize(width=16, readout_width=16, inputs=27, classes=10)


class Unreadable(Mapping[Any, Any]):
    """Every question to it is an error."""

    def __getitem__(self, key: object) -> NoReturn:
        raise ZeroDivisionError

    def __iter__(self) -> Iterator[Any]:
        raise ZeroDivisionError

    def __len__(self) -> int:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError

    def __float__(self) -> float:
        raise ZeroDivisionError

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __hash__(self) -> int:
        return 3


def rule_that_returns(decided: Any) -> Rule:
    return Rule("mine:rule", lambda _graph, _size: decided)


def raised(decided: Any) -> str:
    with pytest.raises(NasRetrainError) as error:
        rule_that_returns(decided).decide(CHAIN, SIZE, "2")
    return str(error.value)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, True, "1", b"1", None, [0.5], {}, 1j, Fraction(-1, 2),
     Fraction(1, 10**400), np.float32("nan"), np.array([0.5, 0.5])],
)  # fmt: skip
@pytest.mark.parametrize(
    ("decided", "named"),
    [
        (lambda value: Parametrisation(value), "learning_rate"),
        (lambda value: Parametrisation(layer_rates={LAYER: value}), "layer_rates of 0-1/3"),
        (lambda value: Parametrisation(layer_rates={"vectors": value}), "layer_rates of vectors"),
        (lambda value: Parametrisation(variances={"readout": value}), "variances of readout"),
        (lambda value: Parametrisation(multipliers={LAYER: value}), "multipliers of 0-1/3"),
        (lambda value: Parametrisation(adam=Rates(value)), "adam.learning_rate"),
        (lambda value: Parametrisation(adam=Rates(layer_rates={LAYER: value})), "adam.layer_rates of 0-1/3"),
    ],
)
def test_what_is_no_positive_number_is_refused(
    decided: Callable[[Any], Parametrisation], named: str, value: Any
) -> None:
    said = raised(decided(value))
    assert said.startswith("rule mine:rule for cell 2: ")
    assert f"{named} is {shown(value)}, where a positive, finite number was expected" in said


@pytest.mark.parametrize(
    ("decided", "named"),
    [
        (Parametrisation(layer_rates={Edge(0, 1, Operation("layer", 5)): 1.0}), "layer_rates has 0-1/5"),
        (Parametrisation(variances={"vectors": 1.0}), "variances has vectors"),  # type: ignore[dict-item]
        (Parametrisation(variances={"reduction_first": 1.0}), "variances has reduction_first"),
        (Parametrisation(multipliers={"readout": 1.0}), "multipliers has readout"),  # type: ignore[dict-item]
        (Parametrisation(multipliers={3: 1.0}), "multipliers has 3"),  # type: ignore[dict-item]
    ],
)
def test_a_layer_that_the_network_has_not_is_refused(decided: Parametrisation, named: str) -> None:
    assert f"{named}, which is no layer of this network. It has 0-1/3" in raised(decided)


def test_what_is_no_parametrisation_is_refused() -> None:
    assert "it returned float, where a Parametrisation was expected" in raised(0.5)


def test_what_is_no_mapping_and_what_are_no_rates_is_refused() -> None:
    for name in ("layer_rates", "variances", "multipliers"):
        for value in (None, 0.5, [0.5], ()):
            decided = Parametrisation(**{name: value})  # type: ignore[arg-type]
            assert f"{name} is {value!r}, where a mapping of layers to numbers was expected" in raised(decided)
    assert "adam.layer_rates is [], where a mapping" in raised(Parametrisation(adam=Rates(layer_rates=[])))  # type: ignore[arg-type]
    assert "adam is 0.5, where Rates or None was expected" in raised(Parametrisation(adam=0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [10**400, 10**5000, Fraction(10**400, 3)], ids=["400", "5000", "fraction"])
def test_a_number_beyond_all_floats_is_refused(value: Any) -> None:
    assert f"learning_rate is {shown(value)}, where a positive, finite" in raised(Parametrisation(value))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0), (10**17, 1e17), (Fraction(1, 4), 0.25), (Decimal("0.25"), 0.25), (np.float32(0.25), 0.25),
        (np.float64(0.1), 0.1), (np.int8(3), 3.0), (np.array(0.25), 0.25), (torch.tensor(0.25), 0.25),
        (torch.tensor(3), 3.0),
    ],
)  # fmt: skip
def test_numbers_of_all_kinds_are_floats(value: Any, number: float) -> None:
    decided = rule_that_returns(
        Parametrisation(value, {"vectors": value}, {LAYER: value}, {LAYER: value}, Rates(value, {LAYER: value}))
    ).decide(CHAIN, SIZE, "2")
    expected = Parametrisation(
        number, {"vectors": number}, {LAYER: number}, {LAYER: number}, Rates(number, {LAYER: number})
    )
    assert decided == expected
    assert json.dumps(decided.as_plain()) == json.dumps(expected.as_plain())
    assert type(decided.learning_rate) is float


@pytest.mark.parametrize("value", [1e-30, 1e19, 5e-324])
def test_a_number_of_a_layer_whose_square_is_none_is_refused(value: float) -> None:
    assert Parametrisation(value) == rule_that_returns(Parametrisation(value)).decide(CHAIN, SIZE, "2")
    for decided in (Parametrisation(multipliers={LAYER: value}), Parametrisation(layer_rates={"vectors": value})):
        assert f"is {value:g}, where a number from 1e-18 to 1e+18 was expected" in raised(decided)


def test_an_error_in_a_rule_names_the_rule_and_the_cell() -> None:
    def broken(_graph: CellGraph, _size: NetworkSize) -> Parametrisation:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(NasRetrainError, match=r"^rule mine for cell 2_02: ZeroDivisionError: division by zero$"):
        Rule("mine", broken).decide(CHAIN, SIZE, "2_02")


def test_a_rule_that_needs_a_width_is_refused_where_there_is_none() -> None:
    size = NetworkSize(width=None, readout_width=16, inputs=27, classes=10)
    with pytest.raises(NasRetrainError, match=r"^rule mup for cell 2: it needs a width"):
        find("mup").decide(CHAIN, size, "2")


@pytest.mark.parametrize(
    "decided",
    [
        Parametrisation(layer_rates=Unreadable()),
        Parametrisation(multipliers={Unreadable(): 0.5}),  # type: ignore[dict-item]
        Parametrisation(variances={LAYER: Unreadable()}),  # type: ignore[dict-item]
        Parametrisation(Unreadable()),  # type: ignore[arg-type]
        Parametrisation(adam=Unreadable()),  # type: ignore[arg-type]
        Unreadable(),
        Parametrisation,
    ],
    ids=["mapping", "layer", "layer's number", "number", "rates", "all of it", "class"],
)
def test_whatever_a_rule_returns_the_rule_and_the_cell_are_named(decided: Any) -> None:
    assert raised(decided).startswith("rule mine:rule for cell 2: ")


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit(), RecursionError("deep"), MemoryError(), StopIteration()])
def test_a_rule_that_would_end_the_process_is_named(error: BaseException) -> None:
    def broken(_graph: CellGraph, _size: NetworkSize) -> Parametrisation:
        raise error

    with pytest.raises(NasRetrainError, match=rf"^rule mine for cell 2: {type(error).__name__}"):
        Rule("mine", broken).decide(CHAIN, SIZE, "2")


def test_an_interrupt_is_the_user_s() -> None:
    def interrupted(_graph: CellGraph, _size: NetworkSize) -> Parametrisation:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Rule("mine", interrupted).decide(CHAIN, SIZE, "2")


def test_a_rule_that_changes_what_it_is_given_changes_its_own_copy() -> None:
    def changing(graph: CellGraph, _size: NetworkSize, *, seen: dict[str, list[float]]) -> Parametrisation:
        factor = 1 / (1 + len(graph.layers) + len(seen["rates"]))
        seen["rates"].append(factor)
        seen["more"] = []
        object.__setattr__(graph, "edges", ())
        vars(graph).clear()
        return Parametrisation(factor, multipliers={LAYER: factor})

    parameters = {"seen": {"rates": [0.5]}}
    rule = Rule("mine.py:changing", changing, parameters)
    graph = CellGraph(2, (LAYER,))
    for _ in range(2):
        assert rule.decide(graph, SIZE, "2") == Parametrisation(1 / 3, multipliers={LAYER: 1 / 3})
    assert parameters == {"seen": {"rates": [0.5]}}
    assert (graph, graph.layers) == (CHAIN, (LAYER,))


class Halving:
    """A rule as an object."""

    def __call__(self, _graph: CellGraph, _size: NetworkSize, by: float = 2.0) -> Parametrisation:
        """The factor 1 / by."""
        return Parametrisation(1 / by)


halving, quartering = Halving(), partial(Halving(), by=4.0)
thirding = lambda _graph, _size: Parametrisation(1 / 3)  # noqa: E731


@pytest.mark.parametrize(("name", "factor"), [("halving", 0.5), ("quartering", 0.25), ("thirding", 1 / 3)])
def test_a_rule_may_be_anything_that_can_be_called(name: str, factor: float) -> None:
    assert find(f"{__name__}:{name}").decide(CHAIN, SIZE, "2").learning_rate == factor


@pytest.mark.parametrize("name", ["max", "len", "dict", "object"])
def test_what_can_be_called_and_is_no_rule_is_named(name: str) -> None:
    with pytest.raises(NasRetrainError, match=rf"^rule builtins:{name}"):
        find(f"builtins:{name}").decide(CHAIN, SIZE, "2")


def test_a_rule_has_the_checksum_of_its_file() -> None:
    rule = find(f"{__name__}:halving")
    assert rule.version == (f"{__name__}:halving", hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12])
    assert rule.version.own
    assert len(find("paper").version.checksum) == 12
    assert not find("paper").version.own


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("papper", "rule papper: there is none of this name. There are complete_p, depth, "),
        ("no_such_package.rules:mine", "No module named 'no_such_package'"),
        ("math:no_such_function", "math was imported, but has no function no_such_function"),
        ("math:pi", "math was imported, but has no function pi"),
        ("math:", "expected package.module:function or folder/file.py:function"),
        (":rule", "expected package.module:function or folder/file.py:function"),
        ("../paper", "there is none of this name"),
    ],
)
def test_a_rule_that_cannot_be_found(name: str, said: str) -> None:
    with pytest.raises(NasRetrainError) as error:
        find(name)
    assert str(error.value).startswith((f"rule {name}: ", f"rule={name}: "))
    assert said in str(error.value)


def test_a_module_that_fails_as_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_rule_module.py").write_text("def rule(:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NasRetrainError, match=r"broken_rule_module cannot be imported \(SyntaxError"):
        find("broken_rule_module:rule")


def test_a_rule_of_ones_own_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rule_in_a_file.py").write_text(
        "from nas_retrain.theory.rule import Parametrisation\n"
        "def halved(graph, size, *, by=2.0):\n"
        "    return Parametrisation(1 / by, multipliers={edge: 0.5 for edge in graph.layers})\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    decided = find("rule_in_a_file:halved", {"by": 4}).decide(CHAIN, SIZE, "2")
    assert decided == Parametrisation(0.25, multipliers={LAYER: 0.5})
    assert sys.path == before


def test_a_rule_of_ones_own_in_a_file_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "at_home.py").write_text(
        "from nas_retrain.theory.rule import Parametrisation\n"
        "def rule(graph, size):\n"
        "    return Parametrisation(0.25)\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/at_home.py:rule").decide(CHAIN, SIZE, "2") == Parametrisation(0.25)


def test_parameters_that_a_rule_does_not_take() -> None:
    with pytest.raises(NasRetrainError, match=r"^rule depth: .*'power'.* parameters are exponent\.$"):
        find("depth", {"power": 2})


@pytest.mark.parametrize(
    ("rule", "parameters", "said"),
    [
        ("paper", {"kernel_factor": "maybe"}, "kernel_factor: Input should be a valid boolean (got 'maybe')"),
        ("paper", {"rate": 0}, "rate: Input should be a valid boolean (got 0)"),
        ("paper", {"in_degree": "sideways"}, "in_degree: Input should be 'source', 'target' or 'released' (got 'side"),
        ("depth", {"exponent": "steep"}, "exponent: Input should be a valid number (got 'steep')"),
        ("depth", {"exponent": True}, "exponent: Input should be a valid number (got True)"),
        ("mup", {"base_width": 32.5}, "base_width: Input should be a valid integer (got 32.5)"),
        ("permuted", {"parameters": [1]}, "parameters: "),
        ("measured", {"shares": 3}, "shares: "),
    ],
)
def test_a_parameter_of_another_kind_is_refused(rule: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(NasRetrainError) as error:
        find(rule, parameters)
    assert str(error.value).startswith(f"rule {rule}: parameter {said}")


ANNOTATED = """
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from somewhere import Something


def rule(graph: Something, size: Something, *, widths: tuple[int, ...] = (), power: float | None = None, other=1,
         thing: Something | None = None, **rest: bool):
    return widths, power, other, thing, rest
"""


def test_parameters_of_a_rule_of_ones_own_are_checked_as_far_as_it_is_annotated(tmp_path: Path) -> None:
    (tmp_path / "annotated.py").write_text(ANNOTATED)
    name = f"{tmp_path / 'annotated.py'}:rule"
    good = {"widths": [8, 16], "power": 2, "other": "any", "thing": "any", "more": 3}
    assert find(name, good).parameters == good  # as they are given
    assert find(name, {"power": None, "widths": (8,)}).parameters == {"power": None, "widths": (8,)}
    for wrong, told in (({"widths": [8, "wide"]}, "widths"), ({"widths": 8}, "widths"), ({"power": "2"}, "power")):
        with pytest.raises(NasRetrainError, match=f"annotated.py:rule: parameter {told}: Input should be"):
            find(name, wrong)


def test_finding_rules_loads_no_torch() -> None:
    code = (
        "import sys; from nas_retrain.theory.rule import find, shipped; [find(name, {'shares': {}}) if name == "
        "'measured' else find(name) for name in shipped()]; print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False False\n"


def test_what_was_decided_as_text_and_numbers() -> None:
    decided = Parametrisation(0.5, {"vectors": 2.0, LAYER: 3.0}, {"readout": 0.1}, {LAYER: 0.25}, Rates(7.0))
    assert decided.as_plain() == {
        "learning_rate": 0.5,
        "layer_rates": {"0-1/3": 3.0, "vectors": 2.0},
        "variances": {"readout": 0.1},
        "multipliers": {"0-1/3": 0.25},
    }
    assert not decided.uniform
    assert Parametrisation(0.5, {LAYER: 1.0}).uniform


@given(cell_graphs(), st.sampled_from([1, 3]), st.booleans())
def test_every_rule_that_ships_decides_what_can_be_used(graph: CellGraph, stages: int, normalised: bool) -> None:
    if not graph.connected:
        return
    size = NetworkSize(16, 64, 27, 10, stages=stages, normalised=normalised)
    for name in shipped():
        if name in ("measured", "permuted"):  # which need measurements and other networks
            continue
        find(name).decide(graph, size, "a cell")
