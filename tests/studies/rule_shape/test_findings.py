"""The study's findings on records of trainings that were made up, with a truth that is known."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas_retrain.commands.command_line import compose
from nas_retrain.plan.plan import make_plan
from nas_retrain.plan.study import NothingYet, Records
from nas_retrain.purpose import Trial
from nas_retrain.settings import Settings
from nas_retrain.studies.rule_shape import design, findings, report
from nas_retrain.studies.rule_shape.findings import Findings, Surface
from nas_retrain.studies.rule_shape.study import STUDY
from nas_retrain.trainings.store import RunRecord, StoredRuns
from nas_retrain.trainings.training import Training
from tests.studies.rule_shape.simulated import recorded

SMALL = (
    "profile=rule_shape",
    "dataset=fashion_mnist",
    "launcher=local",
    "rule_shape.surface.classes=60",
    "rule_shape.confirmation={classes: 60, seeds: [111, 222]}",
    "rule_shape.longer.classes=20",
    "rule_shape.plain.classes=40",
    "rule_shape.plain.confirmation_classes=40",
    "rule_shape.base_rate.seeds=[1,2,3,4,5,6]",
    "rule_shape.exponents=[-1, 0, 1, 2]",
    "rule_shape.permutations=100",
    "rule_shape.draws=400",
)


def made_up(settings: Settings, alpha: dict[str, float], better_by: float = 0.0) -> Records:
    """Records of the whole study. The best rate of a network goes with the factor to the power of alpha, given by
    normalisation; the paper's initialisation is better by so many points."""
    random = np.random.default_rng(0)
    centre = float(design.log_factors(settings, design.networks(settings).surface).mean())
    own: dict[int, float] = {}

    def record(training: Training) -> RunRecord:
        if not isinstance(training.purpose, Trial):
            return recorded(training, 0.0)
        rate = math.log2(training.learning_rate or 1)
        if training.purpose.part.startswith("base_rate"):
            return recorded(training, 0.0, 1 + 0.02 * (rate - math.log2(0.215)) ** 2 + abs(random.normal(0, 0.01)))
        (factor,) = design.log_factors(settings, [training.cell]) - centre
        normalisation = training.setup.normalisation or "batch"
        best = math.log2({"batch": 0.05, "none": 0.025}[normalisation]) + alpha[normalisation] * factor
        level = own.setdefault(training.cell, random.normal(5, 1))
        gain = better_by if training.initialisation == "source" else 0.0
        return recorded(training, level + gain - 1.0 * (rate - best) ** 2 + random.normal(0, 0.3))

    surface = [record(training) for training in make_plan(settings, StoredRuns.of([])).search]
    rest = make_plan(settings, StoredRuns.of(surface)).asked
    stored = StoredRuns.of([*surface, *map(record, rest)])
    return Records(make_plan(settings, stored).everything, stored)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return compose(*SMALL)


@pytest.fixture(scope="module")
def with_rule(settings: Settings) -> Findings:
    """Where the rule is right without BatchNorm alone, and the paper's initialisation is better by a point."""
    found = STUDY.analyse(made_up(settings, {"batch": 0.0, "none": 1.0}, better_by=1.0), settings)
    assert isinstance(found, Findings)
    return found


def test_the_hypotheses_find_what_was_planted_and_nothing_else(with_rule: Findings) -> None:
    table = with_rule.tables["hypotheses"].set_index("hypothesis")
    assert list(table.index) == ["H1", "H2", "H3", "H4", "H5", "H6", "H7"]
    assert table.loc["H4", "verdict"] == "better"
    assert table.loc["H4", "difference_low"] < 1 < table.loc["H4", "difference_high"]
    assert table.loc[["H6", "H7"], "verdict"].str.startswith("better").all()
    # With BatchNorm spread-out rates cost accuracy, and those of permuted factors as much.
    assert (table.loc[["H1", "H2"], "difference"] < 0).all()
    assert "better" not in table.loc["H3", "verdict"]
    assert (table["p_holm"] >= table["p_value"]).all()
    assert (table["difference_low"] <= table["difference"]).all()
    assert (table["difference"] <= table["difference_high"]).all()


def test_the_best_exponent_is_the_planted_one(with_rule: Findings) -> None:
    for (normalisation, _), rows in with_rule.tables["exponents"].groupby(["normalisation", "initialisation"]):
        best = rows.loc[rows["gain"].idxmax()]
        assert best["exponent"] == {"batch": 0, "none": 1}[str(normalisation)]
        none = rows[rows["exponent"] == 0].iloc[0]
        assert none[["gain", "gain_low", "gain_high", "permuted_low", "permuted_high"]].abs().max() < 1e-9
        rule = rows[rows["exponent"] == 1].iloc[0]
        if normalisation == "none":
            assert rule["gain"] > rule["permuted_high"] + 0.3
        else:
            assert abs(rule["gain"] - rule["permuted"]) < 0.1
    rules = with_rule.tables["rules"]
    attainable = with_rule.tables["attainable"].set_index("normalisation")
    # Where all networks have one best rate, a choice by one seed is noise and costs accuracy.
    assert (attainable.loc["none", "gain_low"] > 0).all()
    assert (attainable.loc["batch", "gain"] < 0.1).all()
    assert (attainable.loc["none", "own_low"] > 0.1).all()
    assert (attainable.loc["batch", ["own_low", "own_high"]].abs().to_numpy() < 0.05).all()
    papers = rules[(rules["rule"] == "the paper's")].set_index(["normalisation", "initialisation"])
    assert (papers.loc["none", "p_holm"] < 0.05).all()
    assert (papers.loc["none", "over_permuted_low"] > 0).all()


def test_what_was_looked_for_afterwards_is_what_was_planted(with_rule: Findings) -> None:
    """The rule's factor orders best rates without BatchNorm alone; the paper's variances gain a point with it."""
    orders = with_rule.tables["correlations"].set_index(["normalisation", "compared"])
    assert (orders.loc[("none", "the rule's factor"), "best_rate_low"] > 0.5).all()
    assert (orders.loc[("batch", "the rule's factor"), "best_rate_low"] < 0.3).all()
    gains = with_rule.tables["initialisations"].set_index("normalisation")
    assert 0.8 < gains.loc["batch", "gain_low"] < gains.loc["batch", "gain_high"] < 1.2
    assert gains.loc["none", "gain_low"] < 0 < gains.loc["none", "gain_high"]
    what = ["part", "initialisation", "over"]
    contrasts = with_rule.tables["contrasts"].set_index(what)
    for contrast, rows in with_rule.tables["by_edges"].groupby(what):
        whole = contrasts.loc[contrast]
        assert rows["networks"].sum() == whole["networks"]
        assert (rows["difference"] * rows["networks"]).sum() / whole["networks"] == pytest.approx(whole["difference"])


def test_the_procedure_is_averaged_over_the_base_rates_that_three_seeds_find(with_rule: Findings) -> None:
    shares = with_rule.tables["base_rates"].groupby(["initialisation", "epochs"])["share"].sum()
    assert shares.to_numpy() == pytest.approx(np.ones(6))
    row = with_rule.tables["procedure"].iloc[0]
    assert row["over_tuned_low"] < row["over_tuned"] < row["over_tuned_high"]
    # A single search is less sure than the networks alone would say, so the interval is wide.
    assert row["over_tuned_high"] - row["over_tuned_low"] > 0.1


def test_hypotheses_are_judged_by_means_of_networks(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    records = made_up(settings, {"batch": 1.0, "none": 0.0})
    found = STUDY.analyse(records, settings)
    assert "Exponents, rules and hypotheses" in capsys.readouterr().err
    frame = records.frame(Trial)
    frame = frame.assign(part=[one.part for one in frame["purpose"]], arm=[one.arm for one in frame["purpose"]])
    ours = frame[frame["part"] == "confirmation"].pivot_table(index="cell", columns="arm", values="test_accuracy")
    expected = (ours["stock_rule"] - ours["stock_one_rate"]).mean()
    table = found.tables["hypotheses"].set_index("hypothesis")
    assert table.loc["H1", "difference"] == pytest.approx(expected)
    assert table.loc["H1", "verdict"] == table.loc["H2", "verdict"] == table.loc["H3", "verdict"] == "better"
    assert table.loc["H4", "verdict"] == "within the margin"
    assert "better" not in table.loc["H6", "verdict"]


def test_the_report_says_first_what_the_hypotheses_came_to(with_rule: Findings, tmp_path: Path) -> None:
    told = STUDY.write(with_rule, tmp_path)
    text = (tmp_path / "rule_shape" / "report.md").read_text()
    first = with_rule.tables["hypotheses"].iloc[0]
    assert told[0].startswith("- With BatchNorm the rule is not shown to work: ")
    assert told[1].startswith("- Without BatchNorm, the positive control, the rule ")
    assert f"- H1, {first['claim']}: {first['difference']:+.3f}" in "\n".join(told)
    assert text.index("H1, ") < text.index("figures/gain_by_exponent.png")
    described = {name: len(said) for name, said in report.described(with_rule).items()}
    assert described == {
        "exponents": 4, "attainable": 4, "procedure": 6, "base_rates": 6, "contrasts": 6,
        "correlations": 8, "longer": 4, "ladder": 4,
    }  # fmt: skip
    assert all(said in text for of_table in report.described(with_rule).values() for said in of_table)
    assert (tmp_path / "rule_shape" / "report.html").read_text().count("<h2>") == 16
    for name, table in with_rule.tables.items():
        again = pd.read_csv(tmp_path / "rule_shape" / "tables" / f"{name}.csv")
        assert list(again.columns) == list(table.columns)


VERDICTS = ["better", "worse", "within the margin", "better, within the margin", "worse, within the margin", "open"]


def judged(verdicts: dict[str, str]) -> pd.DataFrame:
    """Hypotheses with these verdicts and nothing else that matters."""
    rows = [
        {"hypothesis": name, "verdict": verdict, "margin": 0.15, "difference": -0.1 if "worse" in verdict else 0.1}
        for name, verdict in verdicts.items()
    ]
    return pd.DataFrame(rows)


def over_permuted(**low: float) -> pd.DataFrame:
    """Contrasts of the rule with its permuted rates, by initialisation, of which these are the lower ends."""
    rows = [{"initialisation": name, "over": "permuted", "difference_low": end} for name, end in low.items()]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("low", [-0.1, 0.1])
@pytest.mark.parametrize("permuted", VERDICTS)
def test_a_rule_works_only_if_it_beats_one_rate_and_its_own_permutation(permuted: str, low: float) -> None:
    """All verdicts of H1, H2 and H3, by the conditions of the page of hypotheses."""
    for first, second in itertools.product(VERDICTS, VERDICTS):
        table = judged({"H1": first, "H2": second, "H3": permuted})
        (said,) = report.conclusions(table, over_permuted(stock=low, source=0.1))
        beats = {"PyTorch's": first == "better", "the paper's": second == "better"}
        if permuted != "better":
            assert said.startswith("With BatchNorm the rule is not shown to work: ")
        elif not any(beats.values()):
            assert said.startswith("With BatchNorm the rule knows something of the networks, and not enough: ")
        works = {"PyTorch's": beats["PyTorch's"] and low > 0, "the paper's": beats["the paper's"]}
        head = said.partition(":")[0]
        for name, its in works.items():
            assert (f"under {name} initialisation" in head) == (its and permuted == "better")
        assert ("rule works" in head) == (permuted == "better" and any(works.values()))
        assert said.count("is not told apart from") == [first, second, permuted].count("open") + (
            permuted == "better" and beats["PyTorch's"] and low < 0
        )


@pytest.mark.parametrize("one_rate", VERDICTS)
@pytest.mark.parametrize("permuted", VERDICTS)
def test_so_it_is_without_batchnorm(one_rate: str, permuted: str) -> None:
    table = judged({"H6": permuted, "H7": one_rate})
    (said,) = report.conclusions(table, over_permuted(target=0.1))
    assert said.startswith("Without BatchNorm, the positive control, the rule ")
    assert ("the rule works" in said) == (one_rate == permuted == "better")
    assert ("not enough" in said) == (permuted == "better" != one_rate)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_what_changes_the_ranking_is_said_by_its_causes(verdict: str) -> None:
    for rates, initialisation in itertools.product([-0.1, 0.0, 0.1], repeat=2):
        table = judged({"H2": "open", "H4": "open", "H5": verdict}).set_index("hypothesis")
        for name, middle in (("H2", rates), ("H4", initialisation)):
            table.loc[name, ["difference", "difference_low", "difference_high"]] = middle, middle - 0.05, middle + 0.05
        said = report.conclusions(table.reset_index(), over_permuted())
        if not verdict.startswith(("better", "worse")):
            assert said == []
            continue
        sign = -1 if verdict.startswith("worse") else 1
        assert ("the rates (H2)" in said[0]) == (rates * sign > 0)
        assert ("the initialisation (H4)" in said[0]) == (initialisation * sign > 0)
        assert ("neither of them alone" in said[0]) == (rates * sign <= 0 and initialisation * sign <= 0)


def test_a_study_that_is_not_whole_says_first_what_is_missing(settings: Settings, tmp_path: Path) -> None:
    records = made_up(settings, {"batch": 0.0, "none": 1.0})
    lacking = records.stored.column("recipe") != "confirmation.stock_rule"
    found = STUDY.analyse(Records(records.trainings, records.stored.only(lacking)), settings)
    told = STUDY.write(found, tmp_path)
    number = 60 * 2
    assert f"{number:,} of its {len(records.trainings) - 1:,} trainings are to be done ({number} of confirm" in told[0]
    assert told[0] in (tmp_path / "rule_shape" / "report.md").read_text()
    # The others of the part are not looked at.
    assert found.tables["hypotheses"]["hypothesis"].tolist() == ["H5", "H6", "H7"]
    assert set(found.tables["contrasts"]["part"]) == {"plain_confirmation"}


def test_sizes_are_looked_at_when_all_of_them_are_whole(settings: Settings) -> None:
    records = made_up(settings, {"batch": 0.0, "none": 1.0})
    lacking = (records.stored.column("recipe") != "ladder_28_16.stock") & (
        records.stored.column("recipe") != "base_rate_2.stock"
    )
    found = STUDY.analyse(Records(records.trainings, records.stored.only(lacking)), settings)
    assert isinstance(found, Findings)
    assert not {"ladder", "base_rates"} & found.tables.keys()
    assert set(found.tables["longer"]["part"]) == {"longer_0.0005", "longer_0.02"}


def test_networks_that_lack_a_training_are_left_out(settings: Settings) -> None:
    frame = pd.DataFrame(
        [(cell, rate, seed, 50.0 + cell + rate, 0.2) for cell in (3, 5, 9) for rate in (0.1, 0.2) for seed in (1, 2)],
        columns=["cell", "learning_rate", "seed", "test_accuracy", "relative_gradient"],
    )
    surface = Surface.of(frame.drop(index=5))
    assert surface.cells.tolist() == [3, 9]
    assert surface.accuracy[1].tolist() == [[59.1, 59.1], [59.2, 59.2]]
    with pytest.raises(NothingYet, match="8 networks"):
        findings.find_all(Records([], StoredRuns.of([])), settings)
