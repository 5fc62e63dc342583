"""`scale` by a named rule: deviations, rates of layers and parameter groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_retrain.errors import NasRetrainError
from nas_retrain.own_network.tracing import Scaled, scale

WIDTH = 32
EXAMPLE = torch.zeros(2, 16)


class Residual(nn.Module):
    """A first layer, residual branches of two layers, and a readout; each branch times `multiplier`."""

    def __init__(self, branches: int = 3, multiplier: float = 1.0, width: int = WIDTH) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(branches))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(branches))
        self.readout = nn.Linear(width, 10)
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            branch = outer(torch.relu(inner(torch.relu(z))))
            z = z + (branch if self.multiplier == 1 else self.multiplier * branch)
        return self.readout(torch.relu(z))


def rates(scaled: Scaled) -> dict[str, float]:
    return {layer.name: layer.learning_rate for layer in scaled.layers}


def test_the_papers_rule_by_name_is_the_papers_rule() -> None:
    for in_degree in ("source", "target"):
        ours, theirs = Residual(), Residual()
        named = scale(ours, EXAMPLE, base_rate=0.3, seed=1, rule="paper", rule_parameters={"in_degree": in_degree})
        usual = scale(theirs, EXAMPLE, base_rate=0.3, seed=1, in_degree=in_degree)
        assert named.learning_rate == usual.learning_rate
        assert [layer.standard_deviation for layer in named.layers] == pytest.approx(
            [layer.standard_deviation for layer in usual.layers]
        )
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        assert set(rates(named).values()) == {usual.learning_rate}


def test_mup_for_gradient_descent_and_for_adam() -> None:
    module = Residual()
    descent = scale(module, EXAMPLE, base_rate=0.1, rule="mup", rule_parameters={"base_width": 16})
    found = rates(descent)
    assert (found["first"], found["inner.0"], found["readout"]) == pytest.approx((0.2, 0.1, 0.05))
    assert descent.vector_rate == pytest.approx(0.2)
    groups = {group["lr"]: group["params"] for group in descent.parameter_groups(module)}
    assert {round(rate, 9): len(params) for rate, params in groups.items()} == {0.2: 9, 0.1: 6, 0.05: 1}
    adam = scale(module, EXAMPLE, base_rate=0.1, rule="mup", rule_parameters={"base_width": 16}, optimiser="adam")
    found = rates(adam)
    assert (found["first"], found["inner.0"], found["readout"]) == pytest.approx((0.1, 0.05, 0.05))
    torch.optim.Adam(adam.parameter_groups(module)).step()
    assert "rate" in str(adam)
    assert len(adam.parameter_groups(module, weight_decay=0.1)) == 2


def test_every_parameter_is_in_one_group() -> None:
    module = Residual()
    module.spare = module.readout  # named twice
    scaled = scale(module, EXAMPLE, base_rate=0.1, rule="complete_p")
    grouped = [parameter for group in scaled.parameter_groups(module) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(module.parameters())


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_multipliers_in_the_weights_train_as_multiplications_do(optimiser: str) -> None:
    branches = 3
    ours, theirs = Residual(branches).double(), Residual(branches, 1 / branches).double()
    example = EXAMPLE.double()
    scaled = scale(ours, example, base_rate=0.01, seed=1, rule="complete_p", optimiser=optimiser)
    with torch.no_grad():
        theirs.load_state_dict(ours.state_dict())
        for outer in theirs.outer:
            outer.weight.mul_(branches)
    # The rule's own words: rates branches^1 under gradient descent and branches^0 under Adam, of a branch's matrices.
    factor = branches if optimiser == "sgd" else 1
    matrices = [layer.weight for layer in (*theirs.inner, *theirs.outer)]
    others = [parameter for parameter in theirs.parameters() if all(parameter is not each for each in matrices)]
    written_out = [{"params": matrices, "lr": 0.01 * factor}, {"params": others, "lr": 0.01}]
    kinds = {"sgd": (torch.optim.SGD, {"momentum": 0.9}), "adam": (torch.optim.AdamW, {"eps": 1e-30})}
    kind, options = kinds[optimiser]
    mine = kind(scaled.parameter_groups(ours, weight_decay=0.01), **options)
    explicit = kind(written_out, weight_decay=0.01, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        images = torch.randn(8, 16, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 10, (8,), generator=generator)
        outputs = ours(images), theirs(images)
        torch.testing.assert_close(*outputs, rtol=1e-7, atol=1e-9)
        for output, steps in zip(outputs, (mine, explicit), strict=True):
            steps.zero_grad()
            functional.cross_entropy(output, labels).backward()
            steps.step()


def test_rules_that_cannot_be_used() -> None:
    normalised = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    mixed = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10))
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    for module, said, options in [
        (mixed, "rule mup for cell Sequential: it needs a width", {"rule": "mup"}),
        (mixed, "rule paper says nothing about Adam", {"rule": "paper", "optimiser": "adam"}),
        (mixed, "optimiser is 'lion'", {"rule": "paper", "optimiser": "lion"}),
        (mixed, "rule papper: there is none of this name", {"rule": "papper"}),
        (mixed, "are parameters of the rule paper", {"rule": "paper", "in_degree": "source"}),
        (mixed, "rule_parameters and optimiser go with a rule", {"optimiser": "adam"}),
    ]:
        with pytest.raises(NasRetrainError, match=said):
            scale(module, EXAMPLE, base_rate=0.1, **options)
    for name, value in mixed.state_dict().items():
        assert torch.equal(value, before[name])
    scale(normalised, EXAMPLE, base_rate=0.1, rule="complete_p")  # no branch, so no multiplier


def test_a_rule_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_rule_for_scale.py").write_text(
        "from nas_retrain.theory.rule import Parametrisation\n"
        "def rule(graph, size):\n"
        "    return Parametrisation(0.5, layer_rates={'vectors': 0.0625}, variances={'readout': 9.0})\n"
    )
    monkeypatch.chdir(tmp_path)
    scaled = scale(Residual(), EXAMPLE, base_rate=0.2, rule="a_rule_for_scale:rule")
    assert scaled.learning_rate == pytest.approx(0.1)
    assert scaled.vector_rate == pytest.approx(0.00625)
    assert scaled.layers[-1].standard_deviation == pytest.approx((9 / WIDTH) ** 0.5)


class Hooked(Residual):
    """With a layer that nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 4)


def tied(module: Residual) -> Residual:
    module.outer[0].weight = module.inner[0].weight
    return module


def frozen(module: Residual, part: str) -> Residual:
    getattr(module.inner[1], part).requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (tied(Residual()), "share their memory|used more than once"),
        (frozen(Residual(), "weight"), "weight of module inner.1 is frozen"),
        (frozen(Residual(), "bias"), "bias of module inner.1 is frozen"),
    ],
    ids=["tied", "frozen weight", "frozen bias"],
)
@pytest.mark.parametrize("rule", ["mup", "complete_p", "he"])
def test_what_no_rule_can_set_is_refused_and_stays(rule: str, module: Residual, said: str) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(NasRetrainError, match=said):
        scale(module, EXAMPLE, base_rate=0.1, rule=rule)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_groups_are_what_an_optimiser_takes(kind: type[torch.optim.Optimizer]) -> None:
    module = Hooked()
    module.unused.weight.requires_grad_(False)
    scaled = scale(module, EXAMPLE, base_rate=0.01, rule="mup", optimiser="adam", rule_parameters={"base_width": 8})
    groups = scaled.parameter_groups(module, weight_decay=0.1)
    assert {id(each) for group in groups for each in group["params"]} == {id(each) for each in module.parameters()}
    steps = kind(groups)
    rate_of = {id(each): group["lr"] for group in steps.param_groups for each in group["params"]}
    for layer in scaled.layers:
        assert rate_of[id(module.get_submodule(layer.name).weight)] == layer.learning_rate
    before = [each.clone() for each in module.parameters()]
    module(torch.randn(8, 16, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    steps.step()
    moved = [not torch.equal(one, other) for one, other in zip(module.parameters(), before, strict=True)]
    assert sum(moved) == len(moved) - 2  # all but the layer that nothing runs


def test_a_module_of_other_layers_has_no_groups() -> None:
    module = Residual()
    scaled = scale(module, EXAMPLE, base_rate=0.1, rule="mup")
    for other in (nn.Sequential(module), nn.DataParallel(module), Residual(2), nn.Linear(1, 1)):
        with pytest.raises(NasRetrainError, match=r"has no layer .*, as the module that was scaled"):
            scaled.parameter_groups(other)
    assert scaled.parameter_groups(Residual())  # one that is alike


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 0.5", "it returned float"),
        ("raise SystemExit(1)", "SystemExit: 1"),
        ("return Parametrisation(1e308)", "more than a float can be"),
        ("return Parametrisation(multipliers={graph.layers[0]: 1e-30})", "where a number from 1e-18 to 1e"),
        ("return Parametrisation(layer_rates={'inner.0': 1.0})", "has inner.0, which is no layer of this network"),
        ("import torch; return Parametrisation(torch.tensor([0.5, 0.5]))", "learning_rate is tensor"),
    ],
)
def test_slips_of_a_rule_leave_the_module_as_it_was(tmp_path: Path, body: str, said: str) -> None:
    path = tmp_path / "slip.py"
    path.write_text(
        f"from nas_retrain.theory.rule import Parametrisation\n\ndef rule(graph, size):\n    {body}\n", encoding="utf-8"
    )
    module = Residual()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(NasRetrainError, match=said):
        scale(module, EXAMPLE, base_rate=100.0, rule=f"{path}:rule")
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
