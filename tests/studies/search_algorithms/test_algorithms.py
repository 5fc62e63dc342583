"""Replayed searches against exact formulas, plain loops and scikit-learn; and claims where the truth is known."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.naive_bayes import CategoricalNB

from nas_retrain.benches.nas_bench_201 import space as nas_bench_201
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import AlgorithmsSettings
from nas_retrain.statistics.accuracies import Accuracies, per_cell
from nas_retrain.statistics.noise import NoiseLevel
from nas_retrain.statistics.rankings import Floats
from nas_retrain.studies.search_algorithms import algorithms, replay, report, study, transfer
from nas_retrain.studies.search_algorithms.algorithms import ALGORITHMS, Space
from nas_retrain.studies.search_algorithms.replay import Table
from nas_retrain.studies.search_algorithms.report import adjusted_p
from tests.strategies import NAS_BENCH_201

EVERY = pytest.mark.parametrize("name", ALGORITHMS)


def chosen(**changes: object) -> AlgorithmsSettings:
    """Settings of small searches."""
    small = {
        "others": (), "searches": 30, "queries": 40, "population": 5, "tournament": 2, "learning_rate": 0.01,
        "startup": 5, "candidates": 8, "good_share": 0.2, "flop_limits": (60.0,),
        "bootstrap_draws": 100, "null_draws": 19, "seed": 0,
    }  # fmt: skip
    return AlgorithmsSettings(**(small | changes))  # type: ignore[arg-type]


def small_space(edges: int = 4, operations: int = 3, seed: int = 0) -> Space:
    """All combinations, in a shuffled order."""
    cells = np.array(list(itertools.product(range(operations), repeat=edges)))
    return Space(np.random.default_rng(seed).permutation(cells), operations)


def separable(space: Space, seed: int = 0) -> Floats:
    """An accuracy to which each edge adds its part."""
    parts = np.random.default_rng(seed).uniform(0, 6, (space.edges, space.operations))
    return 60 + parts[np.arange(space.edges), space.chosen].sum(1)


def alone(values: Floats) -> Table:
    return Table(values, values[:, None])


def run(name: str, seen: Floats, space: Space, seed: int = 0, **changes: object) -> np.ndarray:
    return ALGORITHMS[name](seen, space, chosen(**changes), np.random.default_rng(seed))


def test_a_space_finds_its_cells_and_their_neighbours() -> None:
    for space in (small_space(), algorithms.space_of(NAS_BENCH_201)):
        np.testing.assert_array_equal(space.find(space.chosen), np.arange(space.cells))
        differing = (space.chosen[space.neighbours] != space.chosen[:, None]).sum(2)
        assert (differing == 1).all()
        assert all(len(set(row)) == space.edges * (space.operations - 1) for row in space.neighbours.tolist())
    names = list(nas_bench_201.OPERATIONS)
    for cell in (0, 6111, 15624):
        operations = tuple(names[number] for number in space.chosen[cell])
        assert nas_bench_201.format_cell(operations) == NAS_BENCH_201.arch_at(cell)


def test_random_search_finds_what_order_statistics_say() -> None:
    space = small_space()
    values = np.sort(np.random.default_rng(1).normal(70, 10, space.cells))
    seen = np.broadcast_to(values, (4000, space.cells))
    best = values[algorithms.incumbents(run("random search", seen, space), seen)]
    for tries in (1, 5, 40):
        below = (np.arange(space.cells + 1) / space.cells) ** tries
        exact = float((np.diff(below) * values).sum())
        error = best[:, tries - 1].std() / np.sqrt(len(best))
        assert abs(best[:, tries - 1].mean() - exact) < 4 * error


@EVERY
def test_an_algorithm_finds_the_best_cell_of_a_separable_table(name: str) -> None:
    space = small_space()
    values = separable(space)
    seen = np.broadcast_to(values, (30, space.cells))
    found = algorithms.incumbents(run(name, seen, space, queries=800), seen)
    assert (found[:, -1] == values.argmax()).all()


def test_all_others_beat_random_search_where_edges_add_up() -> None:
    space = small_space(edges=6, operations=4)
    table = alone(separable(space))
    settings = chosen(searches=100, queries=150, learning_rate=0.1)
    regret = replay.regrets(replay.play(table, space, settings, np.random.default_rng(0)), table)[..., -1].mean(1)
    assert (regret[1:] < 0.7 * regret[0]).all(), dict(zip(ALGORITHMS, regret, strict=True))


@EVERY
def test_the_seed_decides_everything_and_only_cells_of_the_space_are_trained(name: str) -> None:
    space = small_space()
    seen = separable(space) + np.random.default_rng(2).normal(size=(20, space.cells))
    one, again, other = (run(name, seen, space, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert one.shape == (20, 40)
    assert one.min() >= 0
    assert one.max() < space.cells


@EVERY
def test_regret_never_rises_nor_is_negative_and_the_incumbent_is_the_best_seen(name: str) -> None:
    space = small_space()
    table = alone(separable(space).round())  # with ties
    seen = np.broadcast_to(table.accuracy, (30, space.cells))
    regret = replay.regrets(algorithms.incumbents(run(name, seen, space), seen), table)
    assert (regret >= 0).all()
    assert (np.diff(regret, axis=1) <= 0).all()
    noisy = table.accuracy + np.random.default_rng(5).normal(size=(30, space.cells)).round()
    queries = run(name, noisy, space)
    for search, cells in enumerate(queries):
        best = [max(cells[: end + 1], key=lambda cell: noisy[search, cell]) for end in range(len(cells))]
        np.testing.assert_array_equal(algorithms.incumbents(queries, noisy)[search], best)


def test_evolution_breeds_from_the_youngest_alone() -> None:
    space = small_space()
    queries = run("regularised evolution", np.broadcast_to(separable(space), (30, space.cells)), space)
    for step in range(5, queries.shape[1]):
        apart = (space.chosen[queries[:, step - 5 : step]] != space.chosen[queries[:, [step]]]).sum(2)
        assert (apart == 1).any(1).all()


def test_local_search_leaves_a_cell_for_a_better_neighbour_or_when_all_were_tried() -> None:
    space = small_space()
    seen = separable(space) + np.random.default_rng(6).normal(0, 3, (30, space.cells))  # with local optima
    restarts = 0
    for values, cells in zip(seen, run("local search", seen, space, queries=60), strict=True):
        current, tried = cells[0], {cells[0]}
        for query in cells[1:]:
            left = set(space.neighbours[current].tolist()) - tried
            assert query in left or not left
            restarts += not left
            if not left or values[query] > values[current]:
                current = query
            tried.add(query)
    assert restarts > 0


def test_reinforce_takes_the_step_that_the_policy_gradient_says() -> None:
    """Averaged over draws, the first step after the baseline's is the gradient of the expected accuracy."""
    space = Space(np.arange(3)[:, None], 3)
    values, rate, searches = np.array([50.0, 60.0, 64.0]), 0.01, 1_000_000
    seen = np.broadcast_to(values, (searches, 3))
    queries = run("REINFORCE", seen, space, queries=3, learning_rate=rate)
    third = np.bincount(queries[:, 2], minlength=3) / searches
    # At equal logits: dE/dlogit_k = p_k (value_k - mean); softmax moves by p_k (step_k - mean step). The baseline is
    # 0.9 of the first reward and 0.1 of the second, which scales the second's reward by 0.9.
    gradient = (values - values.mean()) / 3
    expected = (1 + 0.9 * rate * (gradient - gradient.mean())) / 3
    np.testing.assert_allclose(third, expected, atol=4 * np.sqrt(0.25 / searches))
    assert np.abs(expected - 1 / 3).max() > 8 * np.sqrt(0.25 / searches)


def test_tpe_weighs_operations_as_naive_bayes_does() -> None:
    space = small_space()
    cells = np.random.default_rng(7).integers(0, space.cells, 30)
    found = algorithms.operation_frequencies(algorithms.operation_counts(cells[None], space))[0]
    bayes = CategoricalNB(alpha=1.0, min_categories=space.operations).fit(space.chosen[cells], np.zeros(30))
    np.testing.assert_allclose(np.log(found), np.stack([edge[0] for edge in bayes.feature_log_prob_]))


def test_tpe_prefers_the_operations_of_the_good_cells() -> None:
    space = small_space(edges=6, operations=4)
    values = separable(space)
    queries = run("TPE", np.broadcast_to(values, (50, space.cells)), space, startup=20, queries=60)
    assert values[queries[:, 20:]].mean() > values[queries[:, :20]].mean() + 2


def test_a_search_sees_one_of_the_trainings_and_is_judged_by_their_mean() -> None:
    runs = pd.DataFrame(
        [(cell, seed, 50.0 + cell % 7 + seed) for cell in range(15625) for seed in range(1 + cell % 3)],
        columns=["index", "seed", "accuracy"],
    )
    source = Accuracies("seeds", runs, NAS_BENCH_201)
    table = replay.table(source)
    np.testing.assert_allclose(table.accuracy, per_cell(source)["accuracy"])
    seen = table.seen(300, np.random.default_rng(0))
    for cell in (0, 1, 2, 15624):
        values, counts = np.unique(seen[:, cell], return_counts=True)
        np.testing.assert_array_equal(values, 50.0 + cell % 7 + np.arange(1 + cell % 3))
        assert counts.min() > 300 / len(values) * 0.7
    again = table.drawn_again(table.accuracy + 1.5)
    np.testing.assert_allclose(np.nanmean(again.trainings, 1), table.accuracy + 1.5)
    np.testing.assert_allclose(np.nanstd(again.trainings, 1), np.nanstd(table.trainings, 1))


def test_a_class_result_stands_for_its_members_and_a_missing_cell_is_told() -> None:
    classes = np.array(NAS_BENCH_201.training_classes(None))
    lowest = np.unique(classes)
    runs = pd.DataFrame({"index": lowest, "seed": 0, "accuracy": 10 + lowest / 1000})
    np.testing.assert_allclose(
        replay.table(Accuracies("classes", runs, NAS_BENCH_201, per_class=True)).accuracy, 10 + classes / 1000
    )
    with pytest.raises(NasRetrainError, match=r"few has 10 of the 15,625 cells"):
        replay.table(Accuracies("few", runs[:10], NAS_BENCH_201))


def test_the_largest_statistic_is_significant_as_often_as_promised() -> None:
    generator = np.random.default_rng(8)
    repeats = 1000
    least = []
    for _ in range(repeats):
        drawn = generator.normal(size=(40, 8)) * np.arange(1, 9) + generator.normal(size=(40, 1))
        least.append(adjusted_p(drawn[0], drawn[1:], two_sided=True).min())
    share = np.mean(np.array(least) <= 0.05)
    assert 0.03 < share < 0.07  # three binomial standard deviations about 0.05
    single = generator.normal(size=(40, 1))
    assert adjusted_p(single[0], single[1:]) == pytest.approx((single[1:] >= single[0]).sum() / 40 + 1 / 40)
    planted = generator.normal(size=(40, 8))
    planted[0, 3] += 9
    np.testing.assert_array_equal(adjusted_p(planted[0], planted[1:]) <= 0.05, np.arange(8) == 3)
    planted[5, 2] = np.nan
    assert np.isnan(adjusted_p(planted[0], planted[1:])[2])


def test_trained_again_alone_is_claimed_to_be_a_change_in_about_5_percent_and_a_planted_one_is_found() -> None:
    space, settings = small_space(edges=4, operations=4), chosen(searches=20, queries=30)
    truth, generator = separable(space), np.random.default_rng(9)

    def outcome(second: Floats) -> replay.Outcome:
        noisy = [alone(values + generator.normal(0, 0.5, space.cells)) for values in (truth, second)]
        return replay.outcome((noisy[0], noisy[1]), replay.play_both((noisy[0], noisy[1]), space, settings, generator))

    null = [outcome(truth) for _ in range(39)]
    changes, costs = (np.array([getattr(one, name).ravel() for one in null]) for name in ("change", "cost"))

    def least(one: replay.Outcome) -> tuple[float, float]:
        change, cost = adjusted_p(one.change.ravel(), changes, two_sided=True), adjusted_p(one.cost.ravel(), costs)
        return change.min(), cost.min()

    same = np.array([least(outcome(truth)) for _ in range(40)])
    assert (np.mean(same <= 0.05, axis=0) <= 0.2).all(), same
    planted = np.array([least(outcome(generator.permutation(truth))) for _ in range(10)])
    assert (np.mean(planted <= 0.05, axis=0) >= 0.9).all(), planted


def test_the_pareto_front_is_what_no_other_dominates() -> None:
    generator = np.random.default_rng(10)
    cost, accuracy = generator.integers(0, 15, 200), generator.normal(size=200).round(1)
    front = transfer.pareto_front(cost, accuracy)
    for place in range(200):
        cheaper = cost <= cost[place]
        dominated = (cheaper & (accuracy > accuracy[place])) | ((cost < cost[place]) & (accuracy == accuracy[place]))
        assert not (front[place] and dominated.any())
        assert front[place] or dominated.any() or front[(cost == cost[place]) & (accuracy == accuracy[place])].any()


def test_the_pick_s_true_accuracy_is_told_without_the_luck_of_the_best_of_many() -> None:
    generator, noise = np.random.default_rng(11), NoiseLevel(np.array([80.0]), np.array([0.25]), np.array([99]), 99)
    covered, held, naive, corrected = [], [], [], []
    for _ in range(40):
        true = generator.normal(80, 0.8, 400)
        classes = pd.DataFrame({name: np.arange(400) for name in transfer.DESCRIBED})
        classes["accuracy_retrained"] = true + generator.normal(0, 0.5, 400)
        classes["accuracy_original"] = true + generator.normal(0, 0.5, 400)
        classes["trainings_retrained"] = 1
        truth = transfer.drawn_truth(classes, noise, 200, generator)
        picks, tied = transfer.pick(classes, (0.0002,), truth)
        last = picks.iloc[-1]
        covered.append(last["true_low"] <= true[int(last["cell"])] <= last["true_high"])
        held.append(true.argmax() in set(tied.loc[np.isinf(tied["limit_mflops"]), "cell"]))
        naive.append(last["accuracy_retrained"] - true[int(last["cell"])])
        corrected.append(last["true_retrained"] - true[int(last["cell"])])
        limited = picks[picks["limit_mflops"] == 0.0002]
        assert (limited["flops"] <= 200).all()
        np.testing.assert_array_equal(
            limited["cell"], [classes[f"accuracy_{side}"][:201].argmax() for side in transfer.SIDES]
        )
    assert np.mean(covered) >= 0.85
    assert np.mean(held) >= 0.85
    assert np.mean(naive) > 0.3
    assert abs(np.mean(corrected)) < 0.15


def world(seed: int, shuffled: bool = False) -> Accuracies:
    """All cells of NAS-Bench-201: better with FLOPs and some depth, with noise; classes may be shuffled."""
    classes = NAS_BENCH_201.training_classes(None)
    truth = {}
    for number in sorted(set(classes)):
        graph = NAS_BENCH_201.graph_at(number)
        if graph.connected:
            multiply_accumulates = NAS_BENCH_201.flops(graph, NAS_BENCH_201.sizes)
            truth[number] = 60 + 8 * np.log10(multiply_accumulates) - 0.4 * abs(5 - len(graph.live.edges))
    if shuffled:
        truth = dict(zip(truth, np.random.default_rng(12).permutation(list(truth.values())), strict=True))
    noise = np.random.default_rng(seed).normal(0, 0.2, len(classes))
    accuracy = [truth[number] + noise[cell] if number in truth else 10.0 for cell, number in enumerate(classes)]
    return Accuracies(
        f"world-{seed}", pd.DataFrame({"index": range(15625), "seed": 0, "accuracy": accuracy}), NAS_BENCH_201
    )


def test_a_study_tells_a_change_from_training_again_and_writes_what_it_found(tmp_path: Path) -> None:
    original, settings = world(1), chosen(searches=20, queries=60, flop_limits=(30.0, 60.0))
    found = report.find(original, world(2, shuffled=True), settings)
    *said, opening, path = study.write(found, tmp_path)
    folder = tmp_path / "algorithms" / "world-1_to_world-2"
    assert (opening, path) == ("Open", f"  {folder}/report.html")
    assert (folder / "report.html").exists()
    assert ["on world-1" in said[0], "on world-2" in said[1], "Kendall's tau between" in said[2]] == [True] * 3
    text = (folder / "report.md").read_text()
    changed = pd.read_csv(folder / "tables" / "pairs.csv")
    assert changed["p_adjusted"].min() <= 0.05
    cost = pd.read_csv(folder / "tables" / "wrong_table.csv")
    assert cost["p_adjusted"].min() <= 0.05
    assert "changed more than training again explains in" in text
    for figure in re.findall(r"\((figures/\w+\.png)\)", text):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
    assert {path.stem for path in (folder / "tables").iterdir()} == {
        "regret", "ranking", "agreement", "pairs", "wrong_table", "picks", "tied", "pareto",
    }  # fmt: skip
    regret = pd.read_csv(folder / "tables" / "regret.csv")
    assert (regret.groupby(["table", "algorithm"])["mean_regret"].diff().dropna() <= 0).all()
    assert regret["mean_regret"].between(regret["regret_low"] - 1e-9, regret["regret_high"] + 1e-9).all()


def test_the_same_table_twice_is_no_change_and_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    original = world(1)
    found = report.find(original, original, chosen(searches=20, queries=60))
    told = capsys.readouterr().err
    for stage in ("20 searches of each algorithm", "All searches again", "resamples of the searches"):
        assert stage in told
    assert found.pairs["p_adjusted"].min() > 0.05
    assert not found.pairs["reversed"].any()
    assert found.agreement["p_adjusted"].min() > 0.05
    assert found.wrong_table["p_adjusted"].min() > 0.05
    assert (found.wrong_table.loc[found.wrong_table["algorithm"] == report.EXHAUSTIVE, "cost"] == 0).all()
    for _, rows in found.picks.groupby("limit_mflops"):
        assert len(set(rows["cell"])) == 1


def test_where_the_noise_is_unknown_nothing_is_claimed_to_be_beyond_it() -> None:
    lowest = sorted(set(NAS_BENCH_201.training_classes(None)))
    single = Accuracies("single", world(1).runs.iloc[lowest], NAS_BENCH_201, per_class=True)
    told = " ".join(report.statements(report.find(world(2), single, chosen(searches=5, queries=10))))
    assert "noise of training is unknown" in told
    assert "how much of that is luck is unknown" in told
    assert "training again explains" not in told
