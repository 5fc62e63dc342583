"""Tables, figures and the report, from made-up accuracies whose truth is known and from two tables on disk."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.image import imread

from nas_retrain.commands.retrain import analyse
from nas_retrain.errors import NasRetrainError
from nas_retrain.reports.document import facts
from nas_retrain.reports.figures import STYLE, save
from nas_retrain.statistics import rankings
from nas_retrain.statistics.accuracies import Accuracies, per_cell
from nas_retrain.studies.comparison import figures, report, stage, tables
from nas_retrain.trainings.store import StoredRuns
from tests.conftest import MakeSettings
from tests.statistics.worlds import CLASSES, two_trainings
from tests.strategies import NAS_BENCH_201
from tests.trainings.test_store import a_record

FEW = ("analysis.bootstrap_draws=100", "analysis.null_draws=60")


def test_gains_and_gaps_are_what_plain_pandas_gives(make_settings: MakeSettings) -> None:
    sides = two_trainings(3)
    found = tables.find(*sides, make_settings(*FEW).analysis)
    before, after = (per_cell(Accuracies("x", side.runs, NAS_BENCH_201))["accuracy"] for side in sides)
    gain = after - before
    overall = found.accuracy_gain.iloc[0]
    assert overall["mean_gain"] == pytest.approx(gain.mean())
    assert overall["median_gain"] == pytest.approx(gain.median())
    assert overall["share_improved"] == (gain > 0).mean()
    assert overall["gain_low"] < gain.mean() < overall["gain_high"]
    weakest = gain[before.sort_values().index[:20]]
    assert found.accuracy_gain.iloc[1]["mean_gain"] == pytest.approx(weakest.mean())
    by_rate = found.accuracy_gain[found.accuracy_gain["grouping"] == "learning_rate_factor"]
    assert by_rate["cells"].sum() == len(gain)
    gap = found.performance_gap.set_index("top_percent")
    assert gap.loc[10, "std_original"] == pytest.approx(before.nlargest(20).std(ddof=0))
    assert gap.loc[50, "std_retrained"] == pytest.approx(after.nlargest(100).std(ddof=0))


def nothing_is_cut(figure: Path) -> bool:
    """Whether there is paper all around what was drawn."""
    pixels = imread(figure)[..., :3]
    return all((edge == 1).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_largest_moves_find_the_cell_that_was_moved(make_settings: MakeSettings, tmp_path: Path) -> None:
    control, other = two_trainings(4)
    worst = per_cell(Accuracies("x", control.runs, NAS_BENCH_201))["accuracy"].idxmin()
    moved = other.runs.copy()
    moved.loc[moved["index"] == worst, "accuracy"] = 90.0
    found = tables.find(
        control, Accuracies("moved", moved, NAS_BENCH_201, per_class=True), make_settings(*FEW).analysis
    )
    first = found.largest_moves.iloc[0]
    assert first["index"] == worst
    assert first["rank_original"] == 200
    assert first["rank_retrained"] == 1
    assert first["arch"] == NAS_BENCH_201.arch_at(int(str(worst)))
    few = replace(found, largest_moves=found.largest_moves.head(1))  # narrower than its legend
    with rc_context(STYLE):
        drawn = figures.draw_moves(few)
    assert drawn is not None
    save(drawn, tmp_path, "moves")
    assert nothing_is_cut(tmp_path / "moves.png")
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [
        "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3",
    ]  # fmt: skip


def test_attribution_adds_up() -> None:
    generator = np.random.default_rng(0)
    index = sorted(set(NAS_BENCH_201.training_classes(None)))[1:101]
    base = generator.uniform(50, 80, 100)
    effects = {"benchmark": 0.0, "architecture_aware": 3.0, "learning_rate_only": 1.5, "initialisation_only": 0.5}
    arms = {
        name: Accuracies(
            name, pd.DataFrame({"index": index, "seed": 1, "accuracy": base + effect}), NAS_BENCH_201, per_class=True
        )
        for name, effect in effects.items()
    }
    found = tables.attribution(arms, "benchmark").set_index("recipe")["mean_gain"]
    assert found["interaction"] == pytest.approx(1.0)
    assert found["learning_rate_only"] == pytest.approx(1.5)


def test_a_report_claims_a_planted_change_and_none_where_there_is_none(make_settings: MakeSettings) -> None:
    chosen = make_settings(*FEW, "analysis.null_draws=300").analysis
    changed = " ".join(report.statements(tables.find(*two_trainings(5, planted=3.0), chosen)))
    assert "changed more than training again explains" in changed
    same = " ".join(report.statements(tables.find(*two_trainings(5), chosen)))
    assert "At no K did the ranking change more" in same
    unknown = " ".join(report.statements(tables.find(*two_trainings(5, seeds=(1, 1)), chosen)))
    assert "noise is unknown" in unknown
    assert "changed more than training" not in unknown


def test_the_curves_of_run_records_go_with_the_comparison(tmp_path: Path, make_settings: MakeSettings) -> None:
    cells = CLASSES[:6].tolist()
    records = [
        replace(
            a_record(seed), recipe=recipe, cell=cell, network_class=cell, arch=NAS_BENCH_201.arch_at(cell),
            test_accuracy=50.0 + cell % 7 + seed, train_loss_curve=(float(cell), 0.5 * seed) if has_curve else None,
        )
        for recipe, has_curve in (("benchmark", False), ("architecture_aware", True))
        for cell in cells
        for seed in (1, 2)
    ]  # fmt: skip
    path = tmp_path / "runs.parquet"
    frame = StoredRuns.of(records).frame()
    frame.to_parquet(path, index=False)
    settings = make_settings("analysis.bootstrap_draws=20", "analysis.null_draws=20", f"original={path}")
    (of_recipes,) = stage.compare_recipes(settings, frame)
    of_sources = stage.compare_sources(settings.model_copy(update={"retrained": path}))
    assert of_recipes.curves[0] is None
    for found in (of_recipes.curves[1], *of_sources.curves):
        assert found is not None
        assert found.epochs.tolist() == [1, 2]
        assert found.means["train_loss"][found.row].tolist() == [[cell, 0.75] for cell in cells]


def csv(path: Path, accuracies: Accuracies, scatter: float = 0.5) -> Path:
    """A row a cell, where the members of a class differ by `scatter`, as if each had been trained by itself."""
    rows = per_cell(accuracies).reset_index()
    noise = np.random.default_rng(sum(path.name.encode())).normal(size=len(rows))
    rows["accuracy"] = (rows["accuracy"] + scatter * noise).clip(0, 100)
    rows["arch"] = [NAS_BENCH_201.arch_at(index) for index in rows["index"]]
    rows.to_csv(path, index=False)
    return path


def test_two_tables_on_disk_become_tables_figures_and_pages(
    tmp_path: Path, make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    original, retrained = two_trainings(6, cells=120, planted=3.0)
    before, after = csv(tmp_path / "before.csv", original), csv(tmp_path / "after.csv", retrained)
    settings = make_settings(*FEW, f"original={before}", f"retrained={after}")
    analyse(settings)
    folder = settings.results_dir / "comparisons" / "before_to_after"
    change = pd.read_csv(folder / "tables" / "ranking_change.csv")
    told = capsys.readouterr()
    *found, opening, page, cells = told.out.splitlines()[1:]
    assert (opening, page, cells) == ("Open", f"  {folder}/report.html", f"  {folder}/explore.html")
    assert [line.split()[1] for line in found] == ["Kendall's", "Whether", "after"]  # 60 draws are too few
    assert set(found) <= set((folder / "report.md").read_text().replace("\\", "").splitlines())
    stages = ["noise ceiling, from 60 draws", "Intervals, from 100 draws", "Figures", "explore.html"]
    for stage_told, line in zip(stages, told.err.splitlines(), strict=True):
        assert stage_told in line
    assert list(change.columns[:5]) == ["top_percent", "cells", "kendall_tau", "tau_low", "tau_high"]
    top = change.head(8)
    assert top["tau_ceiling"].between(0.5, 0.99).all()
    assert (top["tau_ceiling"] > top["ceiling_low"]).all()
    assert (top["tau_ceiling"] < top["ceiling_high"]).all()
    assert top["beyond_noise"].between(top["beyond_low"], top["beyond_high"]).all()
    for name in ("accuracy_gain", "performance_gap", "largest_moves", "noise"):
        assert not pd.read_csv(folder / "tables" / f"{name}.csv").empty
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for figure in re.findall(r"\((figures/\w+\.png)\)", text):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
        assert nothing_is_cut(folder / figure)
        assert (folder / figure).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert page.count("data:image/png;base64,") == text.count("figures/")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page must need no other file"
    assert f"{change['kendall_tau'][0]:.3f}" in text


def test_the_same_sources_give_the_same_tables(tmp_path: Path, make_settings: MakeSettings) -> None:
    written = []
    for name in ("one", "two"):
        before = csv(tmp_path / "before.csv", two_trainings(7)[0])
        settings = make_settings(*FEW, f"original={before}", f"retrained={before}", f"results_dir={tmp_path / name}")
        folder = stage.write(stage.compare_sources(settings), settings.results_dir)
        written.append({path.name: path.read_bytes() for path in (folder / "tables").iterdir()})
    assert written[0] == written[1]


def test_copies_of_one_result_are_not_taken_for_replicates(tmp_path: Path, make_settings: MakeSettings) -> None:
    copies = [csv(tmp_path / f"{n}.csv", side, scatter=0.0) for n, side in enumerate(two_trainings(9))]
    settings = make_settings(*FEW, f"original={copies[0]}", f"retrained={copies[1]}")
    folder = stage.write(stage.compare_sources(settings), settings.results_dir)
    assert pd.read_csv(folder / "tables" / "ranking_change.csv")["tau_ceiling"].isna().all()


@pytest.mark.parametrize("normalisation", ["batch", "none"])
def test_reports_name_a_normalisation_that_is_not_the_usual_one(
    make_settings: MakeSettings, normalisation: str
) -> None:
    said = facts(make_settings(f"network.normalisation={normalisation}")).get("normalisation")
    assert said == ("none" if normalisation == "none" else None)


def test_nothing_to_compare_is_told(tmp_path: Path, make_settings: MakeSettings) -> None:
    with pytest.raises(NasRetrainError, match="make retrain first"):
        analyse(make_settings())
    one, other = two_trainings(8)
    apart = [
        csv(tmp_path / f"{n}.csv", Accuracies("x", part, NAS_BENCH_201))
        for n, part in ((1, one.runs[:4]), (2, other.runs[-4:]))
    ]
    with pytest.raises(NasRetrainError, match="in common"):
        analyse(make_settings(*FEW, f"original={apart[0]}", f"retrained={apart[1]}"))


def test_one_table_and_no_trainings_is_told_with_what_to_do(tmp_path: Path, make_settings: MakeSettings) -> None:
    settings = make_settings(f"results_dir={tmp_path}/none", f"original={tmp_path}/a.csv")
    with pytest.raises(NasRetrainError, match=r"no trainings to compare with\. Give a second table \(RETRAINED="):
        stage.compare_sources(settings)


@pytest.mark.parametrize("cells", [3, 7])
def test_of_few_cells_no_interval_is_told(make_settings: MakeSettings, cells: int) -> None:
    found = tables.find(*two_trainings(5, cells=cells), make_settings(*FEW).analysis)
    told = " ".join(report.statements(found))
    assert "nan" not in told
    assert f"({cells} cells)" in told
    assert told.count("[no interval: it takes 8 network classes]") == 3  # tau, beyond the ceiling, and the gain
    assert "deciles" not in told
    assert found.ranking_change["tau_low"].isna().all()


def test_a_report_says_what_shared_seeds_make_of_its_intervals(make_settings: MakeSettings) -> None:
    chosen = make_settings(*FEW).analysis
    shared = two_trainings(5)
    nested = [replace(side, seeding="nested") for side in shared]
    means = [Accuracies("means", per_cell(side).reset_index().assign(seed=0), NAS_BENCH_201) for side in shared]
    told = {
        name: " ".join(report.statements(tables.find(*sides, chosen)))
        for name, sides in (
            ("shared", shared),
            ("nested", nested),
            ("one of two", (means[0], nested[1])),
            ("both", means),
        )
    }
    assert "share their seeds, so a seed's luck is in every gain" in told["shared"]
    assert "luck" not in told["nested"]
    assert "means does not tell several seeds apart" in told["one of two"]
    assert "means and means do not tell several seeds apart" in told["both"]


@pytest.mark.parametrize(("draws", "coarse"), [(100, True), (300, False)])
def test_too_few_draws_for_any_claim_are_told(make_settings: MakeSettings, draws: int, coarse: bool) -> None:
    chosen = make_settings(*FEW, f"analysis.null_draws={draws}").analysis
    told = " ".join(report.statements(tables.find(*two_trainings(5, planted=3.0), chosen)))
    assert ("none of 12 tests can reach the 5 % level: set analysis.null_draws to 240" in told) == coarse
    assert "At no K" not in told  # which is no finding where nothing could have been found
    assert ("The ranking changed more than training again explains" in told) != coarse


def test_by_default_p_values_are_fine_enough_for_what_is_claimed(make_settings: MakeSettings) -> None:
    settings = make_settings()
    assert 100 * len(rankings.TOP_PERCENTS) / (settings.analysis.null_draws + 1) < 1
    assert 1 / (settings.algorithms.null_draws + 1) <= 0.01
