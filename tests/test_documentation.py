"""The documentation: its examples run, its links lead somewhere, and its site is built without warnings or network."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

import nas_retrain
from nas_retrain.commands import composition
from nas_retrain.commands.command_line import given_to_make

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*DOCS.rglob("*.md"), *ROOT.glob("*.md")))
TABLES = ROOT / "results" / "reference" / "201" / "fashion_mnist" / "whose_ranking" / "tables"

EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WITH_EXAMPLES = [page for page in PAGES if page != "README.md" and EXAMPLE.search((ROOT / page).read_text())]


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_the_examples_of_a_page_run_one_after_the_other(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {"__name__": page}
    for example in EXAMPLE.findall((ROOT / page).read_text()):
        exec(compile(example, page, "exec"), names)


def test_the_example_of_a_recipe_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "extend" / "recipe.md").read_text()
    for name, text in re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (command,) = re.findall(r"^make retrain (.*)$", page, re.MULTILINE)
    given = {f"NAS_RETRAIN_{word.split('=')[0]}": word.split("=", 1)[1] for word in shlex.split(command)}
    monkeypatch.chdir(tmp_path)
    (settings,) = composition.from_command_line(given_to_make(given))
    assert list(settings.recipes) == ["benchmark", "half_rate"]
    assert settings.recipes["half_rate"].learning_rate == 0.05
    assert str(settings.results_dir) == "results/half_rate"


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


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


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
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
        capture_output=True,
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    loaded = re.compile(r"""<(?:script|img|iframe)\b[^>]*\bsrc="?(?:https?:)?//|<link\b[^>]*\bhref="?(?:https?:)?//""")
    assert [page for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []
    for name in nas_retrain.__all__:
        assert f">{name}<" in (tmp_path / "api.html").read_text(encoding="utf-8")
