"""Whose ranking is right: planted worlds in which each network's own best rate is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nas_retrain.purpose import Recipe, Variant
from nas_retrain.settings import Settings
from nas_retrain.studies.own_rates import by_rate, findings, report, sensitivity
from tests.conftest import MakeSettings
from tests.strategies import NAS_BENCH_201

CELLS = 80
NOISE = 0.3
SPACE = NAS_BENCH_201


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    small = ["dataset.image_size=8", "dataset.train_subset=200", "own_rate.validation_images=50"]
    overrides = [
        "profile=reference",
        f"cells=sample:{CELLS}",
        "analysis.bootstrap_draws=300",
        "analysis.null_draws=100",
    ]
    return make_settings(*overrides, *small, "training.epochs=8")


class World:
    """Networks whose accuracy falls with the squared distance, in factors of two, from a best rate of their own."""

    def __init__(self, settings: Settings, slope: float, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.settings = settings
        self.cells = SPACE.sample(CELLS, 0)
        graphs = [SPACE.graph_at(cell) for cell in self.cells]
        convolutions = np.array([len(graph.layers) for graph in graphs])
        self.best = np.log2(0.035) + slope * (convolutions - convolutions.mean())
        self.quality = self.random.normal(70, 2, CELLS)
        self.factor = np.array([by_rate.learning_rate_factor(graph, SPACE.base) for graph in graphs])

    def true(self, log_rates: np.ndarray | float) -> np.ndarray:
        distance = log_rates - self.best
        return self.quality - 0.4 * distance**2  # type: ignore[no-any-return]

    def rates(self) -> dict[str, np.ndarray | float]:
        """log2 of each recipe's rate."""
        rule = np.log2(0.2 * self.factor)
        return {
            "benchmark": np.log2(0.1),
            "tuned_rate": np.log2(0.05),
            "architecture_aware": rule,
            "learning_rate_only": rule,
            "initialisation_only": np.log2(0.1),
            "own_rate": self.best,
        }

    def records(self, recipe: str, log_rates: np.ndarray | float, seeds: tuple[int, ...]) -> pd.DataFrame:
        parts = []
        for seed in seeds:
            noisy = self.true(log_rates) + self.random.normal(0, NOISE, CELLS)
            rates = np.broadcast_to(2.0 ** np.asarray(log_rates), CELLS)
            parts.append(pd.DataFrame({"cell": self.cells, "recipe": recipe, "seed": seed, "purpose": Recipe(recipe),
                                       "learning_rate": rates, "test_accuracy": noisy, "gradient_norm": 1.0,
                                       "relative_gradient": self.random.random(CELLS), "in_degree": None}))  # fmt: skip
        return pd.concat(parts)

    def frame(self) -> pd.DataFrame:
        own = self.settings.own_rate
        assert own is not None
        recipes = [self.records(name, rates, (1, 2, 3)) for name, rates in self.rates().items()]
        search = [self.records("own_rate_search", np.log2(rate), own.seeds) for rate in own.grid]
        return pd.concat([*recipes, *search], ignore_index=True)


def test_regrets_and_taus_are_those_of_the_planted_world(settings: Settings) -> None:
    world = World(settings, slope=0.4)
    frame = world.frame()
    found = findings.judge(frame, "own_rate", settings, SPACE)
    means = {name: part.groupby("cell")["test_accuracy"].mean() for name, part in frame.groupby("recipe")}
    regret = found.regret.set_index("recipe")
    rankings = found.rankings.set_index(["recipe", "top_percent"])
    for name, rates in world.rates().items():
        if name == "own_rate":
            continue
        planted = (world.true(world.best) - world.true(rates)).mean()
        assert regret.loc[name, "mean_regret"] == pytest.approx(planted, abs=5 * NOISE * np.sqrt(2 / (3 * CELLS)))
        assert regret.loc[name, "regret_low"] < regret.loc[name, "mean_regret"] < regret.loc[name, "regret_high"]
        expected = stats.kendalltau(means["own_rate"], means[name]).statistic
        assert rankings.loc[(name, 100), "kendall_tau"] == pytest.approx(expected)
        best = means["own_rate"].nlargest(CELLS // 5).index
        expected = stats.kendalltau(means["own_rate"][best], means[name][best]).statistic
        assert rankings.loc[(name, 20), "kendall_tau"] == pytest.approx(expected)
    over = rankings.loc[("tuned_rate", 100)]
    difference = rankings.loc[("tuned_rate", 100), "kendall_tau"] - rankings.loc[("benchmark", 100), "kendall_tau"]
    assert over["over_control"] == pytest.approx(difference)
    assert over["over_control_low"] < difference < over["over_control_high"]
    assert over["over_control_low"] > 0  # the tuned rate is nearer to everyone's best than the benchmark's


def test_what_explains_the_own_rate_is_found_and_makes_a_rule(settings: Settings) -> None:
    world = World(settings, slope=0.5)
    found = findings.judge(world.frame(), "own_rate", settings, SPACE)
    explained = found.explained.set_index("quantity")
    assert explained.loc["convolutions", "lean_rho"] > 0.9
    assert explained.loc["relative gradient", "lean_p"] > 0.05
    assert "gradient norm" in explained.index
    assert explained.loc[by_rate.PAPERS, "own_rate_rho"] < -0.5  # the rule has it the wrong way round here
    rules = found.rules.set_index("rule")
    one_rate = world.true(np.log2(0.05)), world.true(np.log2(0.025))
    possible = (world.true(world.best) - np.maximum(one_rate[0].mean(), one_rate[1].mean())).mean()
    assert 0.5 * possible < rules.loc["best of all", "gain"] < 1.3 * possible
    assert rules.loc["best of all", "gain_low"] > 0
    assert rules.loc[by_rate.PAPERS, "gain"] < 0
    assert rules.loc["convolutions", "slope"] > 0
    assert found.reliability["lean"] > 0.9


def test_where_all_networks_have_one_best_rate_no_rule_is_claimed(settings: Settings) -> None:
    claimed = 0
    for seed in range(3):
        found = findings.judge(World(settings, slope=0.0, seed=seed).frame(), "own_rate", settings, SPACE)
        rules = found.rules.set_index("rule")
        assert abs(rules.loc["own rate", "gain"]) < 0.15
        claimed += rules.loc["best of all", "gain_low"] > 0
        told = " ".join(report.statements(found, None))
        assert ("No rule was found" in told) == (not rules.loc["best of all", "gain_low"] > 0)
    assert claimed <= 1


def test_sensitivity_is_the_difference_of_the_planted_means(settings: Settings) -> None:
    world = World(settings, slope=0.4)
    rates = world.rates()
    parts = [world.records(name, rates[name], (1, 2)) for name in ("benchmark", "architecture_aware")]
    for factor in (0.5, 2.0):
        varied = world.records("architecture_aware", rates["architecture_aware"] + np.log2(factor), (1, 2))
        parts.append(varied.assign(purpose=Variant("architecture_aware", base_rate_factor=factor)))
    for name in ("benchmark", "architecture_aware"):
        longer = world.records(name, rates[name], (1, 2))
        parts.append(longer.assign(purpose=Variant(name, epochs=16), test_accuracy=longer["test_accuracy"] + 1.0))
    frame = pd.concat(parts, ignore_index=True)
    found = sensitivity.compare_variants(frame, ["benchmark", "architecture_aware"], 8, settings.analysis, SPACE)
    assert [tuple(row) for row in found[["varied", "value"]].to_numpy()] == [
        ("epochs", 8), ("epochs", 16), ("base rate factor", 0.5), ("base rate factor", 1), ("base rate factor", 2),
    ]  # fmt: skip
    for row in found.itertuples():
        factor = row.value if row.varied == "base rate factor" else 1.0
        planted = (world.true(rates["architecture_aware"] + np.log2(factor)) - world.true(rates["benchmark"])).mean()
        assert row.mean_gain == pytest.approx(planted, abs=5 * NOISE * np.sqrt(2 / (2 * CELLS)))
        assert row.gain_low < row.mean_gain < row.gain_high
        assert row.tau_low < row.kendall_tau < row.tau_high
        assert 0 < row.tau_ceiling <= 1
