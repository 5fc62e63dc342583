"""Own rates out of a table: what was planted is found, nothing where nothing was, and what is told is recomputed."""

from __future__ import annotations

import itertools
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nas_retrain.commands.command_line import compose
from nas_retrain.errors import NasRetrainError
from nas_retrain.statistics import rate_tables
from nas_retrain.statistics.accuracy_grid import AccuracyGrid
from nas_retrain.statistics.rate_tables import RateTable
from nas_retrain.studies.own_rates import by_rate
from nas_retrain.studies.rate_table import findings, report
from nas_retrain.studies.rate_table.findings import TableFindings
from tests import published_tables
from tests.benches.nas_bench_201.test_nas_hpo_bench import agree
from tests.strategies import NAS_BENCH_201

SPACE = NAS_BENCH_201
ROOT = Path(__file__).parents[3]
PLANTED = 0.7
"""Octaves by which the best rate falls with each convolution on the deepest path."""

QUICK = (
    "analysis.bootstrap_draws=200",
    "analysis.null_draws=90",
    "rate_table.permutations=200",
    "rate_table.redraws=50",
)


SETTINGS = compose(*QUICK)


def read(folder: Path, dependence: float) -> RateTable:
    published_tables.write_nas_hpo_bench(folder, dependence, batch_sizes=(128, 256), every=7)
    return rate_tables.read(folder, "cifar10", SPACE)


@pytest.fixture(scope="module")
def by_dependence(tmp_path_factory: pytest.TempPathFactory) -> dict[float, TableFindings]:
    """By what was planted."""
    return {
        dependence: findings.judge(read(tmp_path_factory.mktemp("published"), dependence), SETTINGS, SPACE)
        for dependence in (PLANTED, 0.0)
    }


def test_a_planted_dependence_is_found_and_told(by_dependence: dict[float, TableFindings]) -> None:
    found = by_dependence[PLANTED]
    explained = found.found.explained.set_index("quantity")
    assert explained.loc["deepest path", "own_rate_high"] < -0.3
    assert explained["own_rate_rho"].abs().idxmax() == "deepest path"
    permuted = found.permuted.set_index("rule")
    assert permuted.loc["depth", "p_holm"] < 0.05
    assert permuted.loc["depth", "rho_low"] > 0.3
    assert permuted.loc["depth", "gain"] > permuted.loc["depth", "permuted_high"]
    assert found.found.rules.set_index("rule").loc[by_rate.HINDSIGHT, "gain_low"] > 0
    told = " ".join(report.statements(found))
    assert "beyond doubt, most with deepest path" in told
    # Accuracy falls with the squared distance in octaves, so what is planted is the slope of the fitted line.
    slope = found.found.rules.set_index("rule").loc["deepest path", "slope"]
    assert slope < -0.3


def test_nothing_is_found_where_nothing_is_planted(by_dependence: dict[float, TableFindings]) -> None:
    found = by_dependence[0.0]
    assert (found.found.explained[["own_rate_p", "lean_p"]] > 0.05).all(axis=None)
    assert (found.permuted["p_holm"] > 0.05).all()
    assert (found.found.rankings["p_holm"] > 0.05).all()
    told = " ".join(report.statements(found))
    assert "Own rates go with none of the 11 quantities known before training beyond doubt." in told
    assert "None of 11 quantities known before training goes with the lean" in told
    assert told.count("not shown to be better than its factors shuffled") == 3
    assert "No rule was found that beats one rate for all." in told


def test_gains_and_rates_are_those_of_a_second_reckoning(by_dependence: dict[float, TableFindings]) -> None:
    found = by_dependence[PLANTED]
    grid, classes = found.grid, found.found.classes
    crossed, hindsight, own = [], [], []
    everyone = range(len(grid))
    for network in everyone:
        means = [sum(grid.valid[network, rate]) / 3 for rate in range(8)]
        own.append(grid.rates[means.index(max(means))])
        at_own = means.index(max(means))
        one = max(range(8), key=lambda rate: grid.valid[:, rate].mean())
        hindsight.append(np.mean(grid.test[network, at_own] - grid.test[network, one]))
        for judged in range(3):
            others = [seed for seed in range(3) if seed != judged]
            best = max(range(8), key=lambda rate: sum(grid.valid[network, rate, others]))
            common = max(range(8), key=lambda rate: grid.valid[:, rate][:, others].mean())
            crossed.append(grid.test[network, best, judged] - grid.test[network, common, judged])
    assert classes["own_rate"].tolist() == own
    rules = found.found.rules.set_index("rule")
    assert rules.loc[by_rate.OWN, "gain"] == pytest.approx(np.mean(crossed))
    assert rules.loc[by_rate.HINDSIGHT, "gain"] == pytest.approx(np.mean(hindsight))
    row = found.budgets[(found.budgets["epochs"] == 12) & (found.budgets["batch_size"] == 256)].iloc[0]
    assert row["own_gain"] == pytest.approx(np.mean(crossed))
    assert row["accuracy"] == pytest.approx(grid.test[:, one].mean())


def test_the_tau_with_own_rates_is_of_trainings_that_share_nothing(by_dependence: dict[float, TableFindings]) -> None:
    found = by_dependence[PLANTED]
    grid = found.grid
    taus = []
    for ranked, judged, choosing in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        own = grid.valid[:, ::-1, choosing].argmax(1)
        at_own = grid.test[np.arange(len(grid)), 7 - own, judged]
        taus.append(stats.kendalltau(at_own, grid.test[:, 5, ranked]).statistic)
    row = found.found.rankings.iloc[0]
    assert (row["recipe"], row["top_percent"]) == ("rate 0.1", 100)
    assert row["kendall_tau"] == pytest.approx(np.mean(taus))
    assert row["tau_low"] < row["kendall_tau"] < row["tau_high"]


def test_permuted_factors_are_the_same_ones_and_a_true_one_beats_them() -> None:
    random = np.random.default_rng(0)
    rates, networks, seeds = 2.0 ** np.arange(-6, 1), 150, 3
    factor = random.choice([0.25, 0.5, 1.0], networks)
    distance = np.log2(rates) - (np.log2(factor) - 2)[:, None]
    truth = 80 - distance**2
    grids = [truth[:, :, None] + random.normal(0, 0.3, (networks, 7, seeds)) for _ in range(2)]
    grid = AccuracyGrid(np.arange(networks), rates, *grids, shared=False)
    classes = pd.DataFrame({"own_rate": rates[grid.own]})
    drawn = random.integers(0, networks, (100, networks))
    found = by_rate.permuted_gains(grid, {"true": factor, "its own": factor[::-1]}, classes, drawn, 0, 300)
    true, shuffled = found.set_index("rule").loc["true"], found.set_index("rule").loc["its own"]
    at_best = 80 - truth[:, truth.mean(0).argmax()].mean()
    assert true["gain"] == pytest.approx(at_best, abs=0.15)
    assert true["p_value"] == pytest.approx(1 / 301)
    assert shuffled["p_value"] > 0.02
    # The same factors in another order have the same null.
    assert true["permuted_gain"] == pytest.approx(shuffled["permuted_gain"], abs=0.1)


def test_own_rates_of_other_trainings_lie_where_they_are_said_to() -> None:
    random = np.random.default_rng(1)
    rates, networks = 2.0 ** np.arange(-6, 1), 300
    truth = 80 - 0.5 * (np.log2(rates) - random.uniform(-4, -2, networks)[:, None]) ** 2
    first, second = (truth[:, :, None] + random.normal(0, 0.4, (networks, 7, 3)) for _ in range(2))
    grids = [AccuracyGrid(np.arange(networks), rates, table, table, shared=False) for table in (first, second)]
    sure = by_rate.own_rate_intervals(grids[0], 400, 0)
    again = rates[grids[1].own]
    held = (sure["own_rate_low"] <= again) & (again <= sure["own_rate_high"])
    assert held.mean() > 0.93
    same = (again == rates[grids[0].own]).mean()
    assert 0 <= sure["certainty"].mean() - same < 0.1
    assert by_rate.own_rate_intervals(
        AccuracyGrid(np.arange(9), rates, first[:9, :, :1], first[:9, :, :1], shared=False), 9, 0
    ).isna().all(axis=None)  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_said_to_be_too_few(seeds: int, tmp_path: Path) -> None:
    published_tables.write_nas_hpo_bench(tmp_path / "few", 0.5, batch_sizes=(256,), seeds=range(seeds), every=40)
    table = rate_tables.read(tmp_path / "few", "cifar10", SPACE)
    found = findings.judge(table, SETTINGS, SPACE)
    assert np.isnan(found.found.rules.set_index("rule").loc[by_rate.OWN, "gain"]) == (seeds == 1)
    text = (report.write(found, tmp_path / "out", {}) / "report.md").read_text()
    assert "There are too few seeds to split" in text
    assert not re.search(r"\bnan\b", " ".join(report.statements(found)))
    assert ("noise allows" in text) == (seeds == 2)


def test_the_report_tells_all_and_its_tables_are_whole(
    by_dependence: dict[float, TableFindings], tmp_path: Path
) -> None:
    found = by_dependence[PLANTED]
    text = (report.write(found, tmp_path, {"table": "x|y"}) / "report.md").read_text()
    assert "predictions of its authors' surrogate model" in text
    for name in ("rankings", "regret", "curves", "classes", "explained", "rules", "permuted", "budgets"):
        assert len(pd.read_csv(tmp_path / "tables" / f"{name}.csv")) == len(found.tables()[name])
    for figure in ("whose_ranking", "own_rates", "budgets"):
        assert f"figures/{figure}.png" in text
        assert (tmp_path / "figures" / f"{figure}.png").stat().st_size > 10_000
    budgets = found.budgets
    assert set(budgets["accuracies"]) == {"trained", "predicted"}
    assert (budgets["accuracies"] == "predicted").sum() == 1  # another batch size and other epochs would be two things
    assert len(budgets) == 12 + 1 + 1
    best = budgets.set_index(["epochs", "batch_size"])["mean_own_rate"]
    assert best[12, 128] < best[12, 256]  # half an octave was planted for each octave of the batch size


def test_a_rule_of_ones_own_stands_beside_the_others(
    by_dependence: dict[float, TableFindings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules_of_mine.py").write_text(
        "from nas_retrain.theory.rule import Parametrisation\n"
        "def rule(graph, size):\n    return Parametrisation(2.0 ** -len(graph.layers))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    grid = by_dependence[PLANTED].grid
    factors = findings.factors(grid, ["rules_of_mine:rule", "one_rate"], SETTINGS, SPACE)
    assert list(factors) == ["rules of mine:rule"]  # one rate is nothing to compare
    assert stats.spearmanr(factors["rules of mine:rule"], grid.rates[grid.own]).statistic > 0.3
    with pytest.raises(NasRetrainError, match="rule nobody: there is none of this name"):
        findings.factors(grid, ["nobody"], SETTINGS, SPACE)


def test_our_own_searches_and_any_table_go_the_same_way(tmp_path: Path) -> None:
    records = ROOT / "results" / "reference" / "201" / "fashion_mnist"
    settings = compose(*QUICK, "dataset=fashion_mnist")
    found = findings.judge(rate_tables.read(records / "runs.parquet", "fashion_mnist", SPACE), settings, SPACE)
    committed = pd.read_csv(records / "whose_ranking" / "tables" / "rules.csv").set_index("rule")
    ours = found.found.rules.set_index("rule")
    for name in (by_rate.OWN, by_rate.HINDSIGHT):
        assert ours.loc[name, "gain"] == pytest.approx(committed.loc[name, "gain"], abs=5e-3)
    grid = found.grid
    rows = itertools.product(enumerate(grid.cells), enumerate(grid.rates), range(2))
    table = pd.DataFrame(
        [(cell, rate, seed, grid.test[i, j, seed]) for (i, cell), (j, rate), seed in rows],
        columns=["index", "learning_rate", "seed", "accuracy"],
    )
    table.to_csv(tmp_path / "same.csv", index=False)
    same = findings.judge(rate_tables.read(tmp_path / "same.csv", "fashion_mnist", SPACE), settings, SPACE)
    pd.testing.assert_frame_equal(same.found.rules, found.found.rules, rtol=1e-6)


def _run(folder: Path, results: Path) -> tuple[str, float]:
    """make own-rates as a command within 4 GiB of addresses: what it says, and the seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
    program = f"{limited}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    asked = (f"original={folder}", "rate_table.batch_size=256", f"results_dir={results}")
    done = subprocess.run(
        [sys.executable, "-c", program, "scripts/own_rates.py", *asked],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_a_whole_published_benchmark_takes_two_minutes_and_4_gib(tmp_path: Path) -> None:
    """4,096 cells, 192K configurations, 3 seeds. Processor time is what two minutes on two cores are at most."""
    for dependence in (PLANTED, 0.0):
        folder = tmp_path / f"planted_{dependence}"
        published_tables.write_nas_hpo_bench(folder, dependence)
        told, seconds = _run(folder, tmp_path / "results")
        assert seconds < 120
        page = Path(told.splitlines()[-1].strip())
        assert page.name == "report.html"
        said = page.with_name("report.md").read_text()
        if dependence:
            assert "beyond doubt, most with deepest path" in said
            assert "depth: it orders own rates with Spearman's 0." in said
            assert "beyond doubt better than its factors shuffled" in said
        else:
            assert "Own rates go with none of the 11 quantities" in said
            assert said.count("not shown to be better than its factors shuffled") == 3
    agree(tmp_path / f"planted_{PLANTED}", 1000)
