"""The documentation: its examples run, its links lead somewhere, and its site is built without warnings or network."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

import nas_retrain
from nas_retrain.benches import registry
from nas_retrain.benches.registry import Sizes
from nas_retrain.commands import composition
from nas_retrain.commands.command_line import compose, given_to_make
from nas_retrain.data.own import ARRAYS
from nas_retrain.execution import roofline
from nas_retrain.plan.plan import recipe_trainings
from nas_retrain.reports.tables import with_interval
from nas_retrain.studies.rule_shape.findings import ALL_CELLS
from nas_retrain.trainings.store import COLUMNS, CURVES
from tests import test_additions
from tests.benches import test_toy
from tests.studies.rule_shape.recomputed import edges_without_weights

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*DOCS.rglob("*.md"), *ROOT.glob("*.md")))
TABLES = ROOT / "results" / "reference" / "201" / "fashion_mnist" / "whose_ranking" / "tables"

FENCED = re.DOTALL | re.MULTILINE
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", FENCED)
WITH_EXAMPLES = [page for page in PAGES if page != "README.md" and EXAMPLE.search((ROOT / page).read_text())]


def written(page: str, folder: Path) -> None:
    """Write the files that a page shows: the examples that begin with the file's path as a comment."""
    shown = re.findall(r"^```(?:yaml|python)\n# (\S+\.(?:yaml|py))\b.*?\n(.*?)^```$", (ROOT / page).read_text(), FENCED)
    for name, text in shown:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_the_examples_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(page, tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page}
    for example in EXAMPLE.findall((ROOT / page).read_text()):
        exec(compile(example, page, "exec"), names)


def test_the_commands_of_a_page_find_the_files_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages = {page: (DOCS / "extend" / f"{page}.md").read_text() for page in ("recipe", "dataset")}
    for page in pages:
        written(f"docs/extend/{page}.md", tmp_path)
    images, labels = np.eye(4, dtype=np.uint8)[None], np.zeros(1, dtype=int)
    np.savez("dataset/scans.npz", **dict(zip(ARRAYS, (images, labels, images, labels), strict=True)))
    (given,) = re.findall(r"^make retrain (.*)$", pages["recipe"], re.MULTILINE)
    given = {f"NAS_RETRAIN_{word.split('=')[0]}": word.split("=", 1)[1] for word in shlex.split(given)}
    (settings,) = composition.from_command_line(given_to_make(given))
    assert {name: recipe.learning_rate for name, recipe in settings.recipes.items()} == {
        "benchmark": 0.1, "half_rate": 0.05, "gentle": 0.02,
    }  # fmt: skip
    assert str(settings.results_dir) == "results/rates"
    commands = re.findall(r"^nas-retrain (?:plan|retrain) ([^#\n]*)", pages["dataset"], re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        (settings,) = composition.from_command_line(command.split())
        assert (settings.dataset.name, settings.profile) == ("scans", "dry")


def test_the_bench_and_the_study_of_the_pages_are_those_that_tests_add_to_a_checkout() -> None:
    bench, study = ((DOCS / "extend" / f"{page}.md").read_text() for page in ("bench", "study"))
    for text in (test_toy.SPACE, test_toy.NETWORK, test_toy.SETTINGS):
        assert f"\n{text.strip()}\n```" in bench
    assert f"\n{test_additions.STUDY.strip()}\n```" in study


def test_the_readme_s_example_is_a_part_of_one_that_runs() -> None:
    (example,) = EXAMPLE.findall((ROOT / "README.md").read_text())
    name = re.search(r"nas_retrain\.(\w+)\(", example)
    assert name is not None
    assert name[1] in nas_retrain.__all__
    assert f"nas_retrain.{name[1]}(network" in (DOCS / "own-network.md").read_text()
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_readme_s_findings_are_those_of_the_tables() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    taus = pd.read_csv(TABLES / "rankings.csv").set_index(["recipe", "top_percent"])["kendall_tau"]
    assert f"a tau of {taus['architecture_aware', 100]:.2f} instead of {taus['benchmark', 100]:.2f}" in readme
    gains = pd.read_csv(TABLES.parents[1] / "tables" / "attribution.csv").set_index("recipe")
    for recipe, form in (
        ("architecture_aware", "{:.2f} [{:.2f}, {:.2f}] points"),
        ("learning_rate_only", "the rate {:+.2f} [{:+.2f}, {:+.2f}]"),
        ("initialisation_only", "the initialisation {:+.2f} [{:+.2f}, {:+.2f}]"),
    ):
        row = gains.loc[recipe]
        assert form.format(row["mean_gain"], row["gain_low"], row["gain_high"]) in readme


ARMS = ("rule", "one_rate", "permuted")


def test_what_is_said_of_the_rule_s_shape_is_in_the_tables() -> None:
    readme, findings = (" ".join(path.read_text().split()) for path in (ROOT / "README.md", DOCS / "findings.md"))
    tables = ROOT / "results" / "reference" / "201" / "settled" / "rule_shape" / "tables"

    def rows_of(table: str, **where: object) -> pd.DataFrame:
        rows = pd.read_csv(tables / f"{table}.csv")
        for column, value in where.items():
            rows = rows[rows[column] == value]
        return rows

    def interval(table: str, name: str, form: str = "+.2f", **where: object) -> str:
        ends = [f"{rows_of(table, **where)[f'{name}{end}'].item():{form}}" for end in ("", "_low", "_high")]
        return "{} [{}, {}]".format(*ends)

    def loss(table: str, name: str, **where: object) -> str:
        ends = [f"{-rows_of(table, **where)[f'{name}{end}'].item():.2f}" for end in ("", "_high", "_low")]
        return "{} [{}, {}]".format(*ends)

    verdicts = {
        "within the margin": "no difference as large as 0.15",
        "worse, within the margin": "a loss of less than 0.15",
        "better": "a gain",
        "worse": "a loss",
    }
    for name in ("H1", "H2", "H3", "H4", "H6", "H7"):
        verdict = pd.read_csv(tables / "hypotheses.csv").set_index("hypothesis").loc[name, "verdict"]
        difference = interval("hypotheses", "difference", "+.3f", hypothesis=name)
        assert re.search(rf"\| {name}: [^|]+ \| {re.escape(difference)} \| {verdicts[verdict]} \|", findings)
        form = ".2f" if name == "H4" else "+.2f"
        assert interval("hypotheses", "difference", form, hypothesis=name) in readme
    assert f"by a tau of {interval('hypotheses', 'difference', '+.3f', hypothesis='H5')}, which decides" in findings
    searched = {"initialisation": "source", "epochs": 1}
    procedure = interval("procedure", "over_benchmark", **searched)
    assert f"the two rules come to {procedure} points" in readme
    assert f"procedure gives {procedure} points over the benchmark" in findings
    assert f"and {interval('procedure', 'over_tuned', **searched)} over the best one rate" in findings
    stock, papers = (
        interval("exponents", "gain", normalisation="batch", initialisation=one, exponent=1)
        for one in ("stock", "source")
    )
    assert f"{stock} points of validation accuracy under PyTorch's initialisation, {papers} under the" in findings
    exponents = pd.read_csv(tables / "exponents.csv")
    rule = exponents[(exponents["exponent"] == 1) & (exponents["normalisation"] == "batch")].set_index("initialisation")
    assert ((rule["permuted_low"] <= rule["gain"]) & (rule["gain"] <= rule["permuted_high"])).all()
    wrong = "networks gain {:.2f} and {:.2f}, and".format(*rule.loc[["stock", "source"], "permuted"])
    assert wrong in findings
    depth = {"rule": "effective depth", "normalisation": "batch", "initialisation": "source"}
    assert f"gains {interval('rules', 'over_permuted', '.2f', **depth)} over its own factors" in findings
    rules = pd.read_csv(tables / "rules.csv")
    rules = rules[rules["normalisation"] == "batch"]
    assert len(rules) == 10
    assert not (rules["gain_low"] > 0).any()
    p = rules.loc[rules["p_holm"] <= 0.05, "p_holm"].item()
    assert f"p-value below 0.05 ({p:.3f}, adjusted" in findings
    own = {"initialisation": "stock", "normalisation": "batch"}
    assert f"a variance of {interval('attainable', 'own', '.2f', **own)} points^2" in findings
    assert f"rate it is {interval('attainable', 'own_near', '.3f', **own)}. Rates" in findings
    assert f"lose {loss('attainable', 'gain', **own)} points" in findings
    assert f"gain {interval('attainable', 'over_permuted', '.2f', **own)} over the same rates" in findings
    derived = {"initialisation": "target", "normalisation": "none"}

    def of_derived(table: str, name: str, form: str = ".2f", **where: object) -> str:
        return interval(table, name, form, **derived, **where)

    assert f"no better on the surface: {of_derived('rules', 'gain', rule=ALL_CELLS)} points" in findings
    assert f"networks gain {of_derived('attainable', 'over_permuted')} points over the same" in findings
    measured, gained = (of_derived("rules", name, rule="measured") for name in ("over_permuted", "gain"))
    assert f"share of the weights, {measured}. A gain over one rate was not shown" in findings
    assert f"these two come to {of_derived('attainable', 'gain')} and {gained}." in findings
    on_surface = [of_derived("rules", name, rule="the paper's") for name in ("gain", "over_permuted")]
    assert "H7's loss as well, {} points. H6's it does not tell apart, {},".format(*on_surface) in findings
    contrasts = {over: {"part": "plain_confirmation", "over": over} for over in ("one_rate", "permuted")}
    of = {over: rows_of("contrasts", **where).iloc[0] for over, where in contrasts.items()}
    assert f"{of['one_rate']['worse'] * 100:.0f} % of the networks do worse" in findings
    assert f"with a median of {of['one_rate']['median']:.2f} points" in findings
    for over, where in contrasts.items():
        steady = interval("contrasts", "steady", ".2f", **where)
        assert f"no training collapsed it is {steady} on {of[over]['steady_networks']} networks" in findings
    (none,) = rows_of("by_edges", edges=0, **contrasts["one_rate"])["networks"]
    most = interval("by_edges", "difference", ".2f", edges=0, **contrasts["one_rate"])
    assert f"lose as well: {most} points on {none} networks" in findings
    runs = pd.read_parquet(tables.parents[1] / "runs.parquet")
    rates = {
        arm: runs[runs["recipe"] == f"plain_confirmation.target_{arm}"].groupby("arch")["learning_rate"].first()
        for arm in ("rule", "one_rate")
    }
    layers_alone = rates["rule"][[edges_without_weights(str(arch)) == 0 for arch in rates["rule"].index]]
    assert len(layers_alone) == none
    (one_rate,) = rates["one_rate"].unique()
    assert f"at most {layers_alone.median():.4f}, where the one rate is {one_rate:.4f}." in findings
    (five,) = rows_of("by_edges", edges=5, **contrasts["permuted"])["networks"]
    few = interval("by_edges", "difference", ".1f", edges=5, **contrasts["permuted"])
    assert f"it is {few} points on the {five} with five skips and poolings" in findings
    for compared, text in (
        ("the rule's factor", "correlation of {} with the best rate of a network, and of {} with the largest rate"),
        ("edges without weights", "skips and poolings these are {} and {}:"),
    ):
        rates = [of_derived("correlations", name, compared=compared) for name in ("best_rate", "largest_rate")]
        assert text.format(*rates) in findings
    counts = [
        [rows_of("arms", part="plain_confirmation", arm=f"target_{arm}")[what].item() for arm in ARMS]
        for what in ("collapsed", "diverged")
    ]
    assert "are {} of 1,600 under the rule, {} under one rate and {} under permuted factors; {}, {} and {} of".format(
        *counts[0], *counts[1]
    ) in findings  # fmt: skip
    assert f"{of_derived('initialisations', 'gain', '.1f')} points over PyTorch's, each with" in findings
    plain = exponents[exponents["normalisation"] == "none"]
    assert not (plain.loc[plain["initialisation"] == "target", "gain_low"] > 0).any()
    turned = {
        "normalisation": "none",
        "initialisation": "stock",
        "exponent": plain.loc[plain["gain"].idxmax(), "exponent"],
    }
    assert f"turned round** gains {interval('exponents', 'gain', '.2f', **turned)} points" in findings
    assert f"under PyTorch's initialisation, with the best of twelve exponents ({turned['exponent']:g})" in findings
    assert (exponents["exponent"] != 0).sum() == 4 * 12
    longer = [
        interval("longer", "difference", part=f"longer_{decay}", initialisation=one)
        for decay in ("0.0005", "0.02")
        for one in ("stock", "source")
    ]
    assert "rule minus one rate comes to {} points under PyTorch's initialisation and {} under the".format(
        *longer
    ) in findings  # fmt: skip
    assert "instead of 5e-4 it is {} and {}.".format(*longer[2:]) in findings
    shares = pd.read_csv(tables / "base_rates.csv").set_index(["initialisation", "epochs", "learning_rate"])["share"]
    found = shares["source", 1].sort_values(ascending=False)[:3]
    told = ["{:.3f} in {:.0%}".format(*one).replace("%", " %") for one in found.items()]
    assert f"find {told[0]}, {told[1]} and {told[2]} of cases" in findings
    often = [shares["source", epochs].idxmax() for epochs in (2, 8)]
    assert "most often {:.3f} after two epochs and {:.1f} after eight".format(*often) in findings
    smallest, largest = ({"image_size": size} for size in (7, 28))
    for over, text in (
        (
            "over_one_rate",
            "the rule minus one rate comes to {} points at 7x7 pixels and 8 channels, and to {} at 28x28 and 16;",
        ),
        ("over_permuted", "the rule minus its own factors in the wrong networks to {} and {}. So no"),
    ):
        assert text.format(*(interval("ladder", over, **size) for size in (smallest, largest))) in findings
    ladder = pd.read_csv(tables / "ladder.csv")
    assert not (ladder[["over_one_rate_low", "over_permuted_low"]] > 0).any(axis=None)
    assert (
        f"The intervals end at {ladder[['over_one_rate_high', 'over_permuted_high']].max(axis=None):.2f} points at most"
        in findings
    )
    assert (ladder["networks"].unique().tolist(), ladder["seeds"].tolist()) == ([40], [2, 1, 1, 1])
    trainings = pd.read_csv(tables / "trainings.csv")
    assert (trainings["stored"] == trainings["wanted"]).all()


def test_the_readme_s_scoreboard_is_that_of_the_tables() -> None:
    readme = (ROOT / "README.md").read_text()
    rules = pd.read_csv(ROOT / "results" / "reference" / "scoreboard" / "digits" / "tables" / "rules.csv")
    rows = rules[rules["rule"] == "the paper's, source"].set_index("part")
    shown = re.findall(r"^\| `(\w+)`.*?((?: \| -?[\d.]+ \[[^]]+\]){3}) \|$", readme, re.MULTILINE)
    assert len(shown) == 4
    for part, numbers in shown:
        ends = [[f"{column}{end}" for end in ("", "_low", "_high")] for column in SHOWN]
        values = [with_interval(*rows.loc[part, columns]) for columns in ends]
        assert numbers.strip(" |").split(" | ") == values
    assert len(rules["rule"].unique()) == 11
    assert "tests [eleven rules]" in readme


SHOWN = ("pearson", "gain_over_one_rate", "gain_over_permuted")


@pytest.fixture(scope="module")
def checked() -> dict[str, Any]:
    """What make gpu-check found on the one GPU that the pages speak of."""
    (found,) = json.loads((ROOT / "results/reference/gpu/nvidia_h100_80gb_hbm3.json").read_text())["checks"]
    return dict(found)


def test_what_is_said_of_a_gpu_is_in_its_record(checked: dict[str, Any]) -> None:
    page = (DOCS / "speed.md").read_text()
    assert checked["key"]["gpu"] in page
    assert f"torch {checked['key']['torch'].partition('+')[0]}" in page
    assert {found["verdict"] for found in checked["findings"].values()} == {"passed"}
    precisions = ("float32", "tf32", "bfloat16")
    rows = pd.DataFrame(checked["tuning"]["speeds"])
    one = rows[rows["together"] == 1].set_index(["precision", "captured"])["images_per_second"]
    best = checked["tuning"]["best"]
    several = [f"{best[name]['images_per_second']:,.0f} ({best[name]['together']})" for name in precisions[:2]]
    for row in (
        [f"{one[name, False]:,.0f}" for name in precisions],
        [f"{one[name, True]:,.0f}" for name in precisions],
        [*several, "not measured"],
        [f"{best[name]['gpu_hours']:,.0f}" for name in precisions],
    ):
        assert f" | {' | '.join(row)} |" in page
    assert not ((rows["precision"] == "bfloat16") & (rows["together"] > 1)).any()
    batch = compose("dataset=cifar10", "profile=full", "launcher=local").training.batch_size
    milliseconds = [f"{1000 * batch / one[name, True]:.1f}" for name in precisions]
    assert f"{milliseconds[0]}, {milliseconds[1]} and {milliseconds[2]} ms" in page
    times = [f"{one[name, True] / one[name, False]:.1f}" for name in (precisions[0], precisions[2])]
    changes = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    assert f"{times[0]} (float32) to {times[1]} times (bfloat16)" in changes
    images = checked["tuning"]["images"]
    guide = (DOCS / "cluster.md").read_text()
    slow, fast = (f"{images / speed / 3600:,.0f}" for speed in (10_000, 40_000))
    assert f"at 10,000 that is {slow} GPU hours, at 40,000 it is {fast}." in guide
    assert f"{images:,} training images" in guide
    fastest = [f"{best[name]['images_per_second']:,.0f}" for name in (precisions[0], precisions[2])]
    assert f"{fastest[0]} in float32 and {fastest[1]} in bfloat16" in guide


def test_what_is_said_of_a_gpu_s_least_time_is_computed(checked: dict[str, Any]) -> None:
    page = (DOCS / "speed.md").read_text()
    cells = checked["tuning"]["cells"]
    assert f"cells=[{','.join(map(str, cells))}]" in page
    alone = {row["precision"]: row["images_per_second"] for row in checked["tuning"]["speeds"][:3]}
    least, left = [], []
    for precision, speed in alone.items():
        settings = compose("dataset=cifar10", "profile=full", "gpu=h100", f"training.precision={precision}")
        mean = roofline.measure(cells, settings)["milliseconds"].mean()
        least.append(f"{mean:.1f}")
        left.append(f"{1000 * settings.training.batch_size / speed / mean:.1f}")
    assert f"{least[0]}, {least[1]} and {least[2]} ms at least" in page
    assert f"at most a factor of {left[0]}, {left[1]} and {left[2]} is left" in " ".join(page.split())


def test_what_is_said_of_the_work_of_a_gpu_s_networks_is_computed(checked: dict[str, Any]) -> None:
    settings = compose("dataset=cifar10", "profile=full", "launcher=local", "cells=all", "seeds=[777]")
    bench, sizes = registry.of(settings.bench), Sizes.of(settings)
    trained = {one.cell for one in recipe_trainings(settings, 0.1) if one.learning_rate is not None}
    means = [
        np.mean([bench.flops(bench.graph_at(cell), sizes) for cell in cells])
        for cells in (checked["tuning"]["cells"], trained)
    ]
    page = " ".join((DOCS / "speed.md").read_text().split())
    assert f"These six networks have {means[0] / means[1]:.2f} times the mean work" in page
    assert 1.2 < means[1] / means[0] < 1.25


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_every_target_that_a_page_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (page, name)
        for page in PAGES
        for name in re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / page).read_text(), FENCED)
    }
    assert len(named) > 30
    assert {(page, name) for page, name in named if name not in targets} == set()


def test_every_column_of_a_record_is_described_and_no_other() -> None:
    text = (DOCS / "results.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| (?:.*) \| (?:.*) \|$", text[text.index("## The record") :], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(COLUMNS + CURVES)


def test_every_file_of_a_group_of_settings_is_listed() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+) \|", (DOCS / "retraining.md").read_text(), re.MULTILINE)
    for group in ("bench", "dataset", "recipe", "profile", "launcher"):
        (listed,) = (choices for name, choices in rows if name == group)
        files = {file.stem for file in (ROOT / "configs" / group).glob("*.yaml")}
        assert set(re.findall(r"`(\w+)`", listed)) == files


@pytest.mark.slow
def test_the_notebook_runs_and_draws_its_figure(tmp_path: Path) -> None:
    notebook = nbformat.read(DOCS / "ranking.ipynb", as_version=4)
    stored = [output.output_type for cell in notebook.cells for output in cell.get("outputs", ())]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [output.output_type for output in outputs] == stored, "run it again and save it"
    assert any("image/png" in output.get("data", {}) for output in outputs)
    (figure_lines,) = (cell.source for cell in notebook.cells if "compare(" in cell.source)
    drawing = [line for line in figure_lines.splitlines() if line and not line.startswith("import")]
    assert len(drawing) <= 10


def test_the_site_is_built_without_a_warning_and_reaches_no_network(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    loaded = re.compile(r"""<(?:script|img|iframe)\b[^>]*\bsrc="?(?:https?:)?//|<link\b[^>]*\bhref="?(?:https?:)?//""")
    assert [page for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []
    described = set(re.findall(r'id="nas_retrain\.[\w.]*?(\w+)"', (tmp_path / "api.html").read_text(encoding="utf-8")))
    assert set(nas_retrain.__all__) <= described
