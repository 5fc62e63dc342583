"""Hostile text in every field that comes from outside, and what a browser then does with the pages and reports."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import markdown
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from nas_retrain.benches import registry
from nas_retrain.reports import document
from nas_retrain.reports.markup import visible
from nas_retrain.settings import Settings
from nas_retrain.studies.comparison import figures, stage
from nas_retrain.studies.own_rates import findings
from nas_retrain.studies.own_rates import report as own_rates_report
from nas_retrain.studies.rate_prediction import findings as verification
from nas_retrain.studies.rate_prediction import report as verification_report
from nas_retrain.studies.search_algorithms import report as algorithms
from tests.conftest import MakeSettings
from tests.statistics.worlds import two_trainings
from tests.strategies import NAS_BENCH_201
from tests.studies.comparison.test_page import browser  # noqa: F401 - a fixture
from tests.studies.own_rates.test_findings import SPACE, World
from tests.studies.own_rates.test_findings import settings as settings_of_a_world  # noqa: F401 - a fixture
from tests.studies.rate_prediction.test_findings import a_world
from tests.studies.search_algorithms.test_algorithms import chosen, world

HARM = "window.harmed=1"
PAYLOADS = {
    "image": f"<img src=x onerror={HARM}>",
    "ends of elements": f"</title></style></script><script>{HARM}</script>",
    "comment": f"<!--<script>{HARM}//",
    "foreign elements": f"<svg><style><img src=x onerror={HARM}></svg><iframe srcdoc='<script>{HARM}</script>'>",
    "attributes": f'" onmouseover=\'{HARM}\' autofocus onfocus={HARM} style="background:url(http://127.0.0.1:9/)"',
    "links": f"[a](javascript:{HARM}) ![b](http://127.0.0.1:9/b.png) <http://127.0.0.1:9/> &#60;script&#62;",
    "template": "{{ 7 * 7 }}{% include 'report.html' %}{# #} ${" + HARM + "} \u2028\u2029",
    "no text": "bytes \udcff\x00\x1b \N{RIGHT-TO-LEFT OVERRIDE}",
}
QUICK = ("ends of elements", "no text")
EVERY = pytest.mark.parametrize(
    "payload",
    [pytest.param(text, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, text in PAYLOADS.items()],
)
Visit = Callable[[Path], Page]


def field(payload: str, name: str) -> str:
    """A payload by which one can tell where it stands."""
    return f"{payload} {name}"


def seen(text: str) -> str:
    """As a page shows it."""
    return " ".join(visible(text).split())


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:  # noqa: F811
    """Opens a page; at the end nothing of what was written must have run, been asked for or been complained of."""
    opened: list[Page] = []
    asked: list[str] = []
    complaints: list[str] = []

    def open_page(path: Path) -> Page:
        made = browser.new_page(viewport={"width": 1280, "height": 700})
        opened.append(made)
        made.on("request", lambda request: asked.append(request.url))
        made.on("console", lambda message: complaints.append(message.text))
        made.on("pageerror", lambda error: complaints.append(str(error)))
        made.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        made.goto(path.as_uri())
        return made

    yield open_page
    urls = {made.url for made in opened}
    harmed = [made.evaluate("window.harmed") for made in opened]
    for made in opened:
        made.close()
    assert complaints == []
    assert {url for url in asked if not url.startswith("data:")} == urls
    assert harmed == [None] * len(harmed)


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but what is saved is one point: it is by far the longest part."""

    def save(_: object, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(folder / f"{name}.png")

    for module in (figures, algorithms, own_rates_report, verification_report):
        monkeypatch.setattr(module, "save", save)


def written_by(payload: str, make_settings: MakeSettings, tmp_path: Path) -> tuple[Path, list[str]]:
    """The folder of a report on two recipes with the payload in every field, and the fields' texts."""
    names = {name: field(payload, name) for name in ("control", "recipe", "status")}
    names = {name: text.replace("\udcff", "") for name, text in names.items()}  # which no table can hold
    names["dataset"] = field(payload, "dataset")
    folder = tmp_path / re.sub(r"[/\0]", "_", field(payload, "folder"))
    plain = make_settings("analysis.bootstrap_draws=50", "analysis.null_draws=30")
    settings = plain.model_copy(
        update={
            "results_dir": folder,
            "recipes": dict.fromkeys((names["control"], names["recipe"]), plain.recipes["benchmark"]),
            "dataset": plain.dataset.model_copy(update={"name": names["dataset"]}),
            "analysis": plain.analysis.model_copy(update={"control": names["control"], "recipe": names["recipe"]}),
        }
    )
    parts = []
    for side, recipe in zip(two_trainings(3, cells=60, planted=3.0), ("control", "recipe"), strict=True):
        runs = side.runs.rename(columns={"index": "cell", "accuracy": "test_accuracy"})
        runs = runs.assign(recipe=None, status=None, in_degree=None)
        parts.append(runs.astype({"recipe": object, "status": object}))
        parts[-1]["recipe"], parts[-1]["status"] = (
            pd.Series([names[n]] * len(runs), dtype=object) for n in (recipe, "status")
        )
    (made,) = stage.compare_recipes(settings, pd.concat(parts, ignore_index=True))
    assert stage.write(made, folder) == folder
    return folder, [*names.values(), folder.name, field(payload, "version")]


@pytest.mark.usefixtures("quick_figures")
@EVERY
def test_a_comparison_s_pages_take_every_field_for_text_and_work(
    payload: str, make_settings: MakeSettings, tmp_path: Path, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "analysis_versions", lambda: field(payload, "version"))
    folder, fields = written_by(payload, make_settings, tmp_path)
    report = visit(folder / "report.html")
    text = " ".join(report.locator("body").inner_text().split())
    for one in fields:
        assert seen(one) in text
    assert seen(fields[0]) in report.title()
    assert report.locator("script, iframe, svg, a, [onmouseover], [onfocus], [style]").count() == 0
    sources = report.locator("img").evaluate_all("(all) => all.map((one) => [one.src.slice(0, 22), one.naturalWidth])")
    assert sources == [["data:image/png;base64,", 1]] * len(sources)
    assert sources
    explore = visit(folder / "explore.html")
    expect(explore.locator("#count")).to_contain_text("60 of 60 cells")
    expect(explore.locator("h1")).to_have_text(explore.evaluate("data.title"))
    assert explore.evaluate("[control.name, other.name]") == fields[:2]
    cell = explore.evaluate("data.index[5]")
    explore.fill("#wanted", str(cell))
    explore.press("#wanted", "Enter")
    expect(explore.locator("#pinned h2")).to_have_text(f"Cell {cell}")
    explore.click("#pinned button")
    expect(explore.locator("#pinned")).to_be_hidden()
    explore.fill("#min-none", "4")
    explore.fill("#min-skip_connect", "4")
    expect(explore.locator("#count")).to_have_text("0 of 60 cells")
    explore.click("#reset-here")
    x, y = explore.evaluate("place(5)")
    explore.locator("#marks").click(position={"x": x, "y": y})
    expect(explore.locator("#pinned")).to_be_visible()


def test_a_source_s_file_name_is_text_in_pages_and_figures(
    make_settings: MakeSettings, tmp_path: Path, visit: Visit
) -> None:
    sides = []
    for name, side in zip(
        (f"<img src=x onerror={HARM}> $x^$.csv", "*a*|_b_`.csv"), two_trainings(4, 60, seeds=(1, 1)), strict=True
    ):
        rows = side.runs.assign(arch=[NAS_BENCH_201.arch_at(index) for index in side.runs["index"]])
        rows.to_csv(tmp_path / name, index=False)
        sides.append(tmp_path / name)
    small = make_settings("analysis.bootstrap_draws=50", "analysis.null_draws=30")
    settings = small.model_copy(update={"original": sides[0], "retrained": sides[1]})
    folder = stage.write(stage.compare_sources(settings), settings.results_dir)
    report = visit(folder / "report.html")
    for path in sides:
        assert path.name.removesuffix(".csv") in report.locator("h1").inner_text()
        assert str(path) in report.locator("body").inner_text()
    expect(visit(folder / "explore.html").locator("#count")).to_contain_text("60 of 60 cells")


def as_any_viewer_shows(text: str, path: Path) -> Path:
    """A page of a report by a viewer of Markdown that lets HTML and scripts through."""
    body = markdown.markdown(re.sub(r"!\[[^]]*\]\(figures/\w+\.png\)", "", text), extensions=["tables"])
    path.write_text(f"<!doctype html><meta charset=utf-8><title>{escape('report')}</title>{body}", encoding="utf-8")
    return path


def hostile_tables(found: Any, old: str, new: str) -> Any:
    """The same findings with a recipe called otherwise."""
    renamed = {
        item.name: table.astype(dict.fromkeys(table.select_dtypes(["object", "string"]), object)).replace(old, new)
        for item in dataclasses.fields(found)
        if isinstance(table := getattr(found, item.name), pd.DataFrame)
    }
    return dataclasses.replace(found, **renamed)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_figures")
def test_reports_in_markdown_take_every_field_for_text(
    make_settings: MakeSettings,
    settings_of_a_world: Settings,  # noqa: F811
    tmp_path: Path,
    visit: Visit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of search algorithms, own rates and a verification, whose findings are made once; of a comparison see above."""
    searches = algorithms.find(world(1), world(2), chosen(searches=5, queries=12, bootstrap_draws=20, null_draws=3))
    judged = findings.judge(World(settings_of_a_world, slope=0.4).frame(), "own_rate", settings_of_a_world, SPACE)
    verifying = make_settings("bench=mlp", config="verify")
    verified = verification.verify(a_world(verifying, 1.0, 0.0), verifying, registry.of(verifying.bench))
    for number, payload in enumerate(PAYLOADS.values()):
        texts = {name: field(payload, name) for name in ("original", "retrained", "recipe", "control", "dataset")}
        facts = {"data set": field(payload, "data set"), "versions": field(payload, "version")}
        update = {"results_dir": tmp_path / str(number)}

        monkeypatch.setattr(algorithms, "analysis_versions", lambda facts=facts: facts["versions"])
        named = dataclasses.replace(searches, names=(texts["original"], texts["retrained"]))
        reports = {algorithms.write(named, tmp_path / "a") / "report.md": ("original", "retrained")}

        renamed = hostile_tables(
            hostile_tables(judged, judged.control, texts["control"]), "tuned_rate", texts["recipe"]
        )
        renamed = dataclasses.replace(renamed, control=texts["control"])
        dataset = settings_of_a_world.dataset.model_copy(update={"name": texts["dataset"]})
        settings = settings_of_a_world.model_copy(update=update | {"dataset": dataset})
        path = own_rates_report.write(renamed, None, settings.results_dir, settings, facts) / "report.md"
        reports[path] = ("recipe", "control", "dataset")

        settings = verifying.model_copy(update=update | {"dataset": dataset})
        path = verification_report.write(verified, None, settings.results_dir, settings, facts) / "report.md"
        reports[path] = ("dataset",)

        for path, names in reports.items():
            text = path.read_text(encoding="utf-8")
            opened = visit(as_any_viewer_shows(text, tmp_path / "shown.html"))
            shown = " ".join(opened.locator("body").inner_text().split()).replace("\\", "")
            for one in (*(texts[name] for name in names), facts["versions"]):
                assert seen(one) in shown, path
            assert opened.locator("img, script, iframe, svg, a, [onmouseover], [onfocus]").count() == 0, payload


def test_an_unescaped_field_would_be_noticed(tmp_path: Path, browser: Browser) -> None:  # noqa: F811
    """The checks above can fail: what they look for happens where nothing is escaped."""
    opened = browser.new_page()
    for payload in (PAYLOADS["image"], PAYLOADS["ends of elements"]):
        opened.goto(as_any_viewer_shows(f"<div>{payload}</div>", tmp_path / "page.html").as_uri())
        opened.wait_for_function(HARM.replace("=", "==="))
    opened.close()
