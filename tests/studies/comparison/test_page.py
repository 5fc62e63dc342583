"""The page to explore, driven in a headless browser as a person would, against what the project's functions say."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from scipy import stats

from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.commands.command_line import ROOT
from nas_retrain.statistics.accuracies import Accuracies
from nas_retrain.statistics.rankings import Comparison, compare, kendall_tau, top_counts
from nas_retrain.studies.comparison import curves, page
from nas_retrain.theory.scaling import learning_rate_factor
from tests.browser import MISSING, executable
from tests.statistics.worlds import two_trainings
from tests.strategies import NAS_BENCH_201

CELLS = len(NAS_BENCH_201.archs)
LOAD_SECONDS = 3.0
Explore = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = executable()
    if found is None:
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found)
        yield started
        started.close()


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """All cells with two decimals of accuracy, so that there are ties; cells without a path have that of chance."""
    generator = np.random.default_rng(0)
    convolutions = np.array([arch.count("conv") for arch in NAS_BENCH_201.archs])
    connected = np.array([space.parse(arch).connected for arch in NAS_BENCH_201.archs])
    sides = []
    for name, top in (("before", 94.0), ("after", 89.0)):
        lost = (6 - convolutions) * generator.uniform(0.5, 2.5) + generator.gamma(1.5, 2.0, CELLS)
        accuracy = np.where(connected, (top - lost).round(2), 10.0)
        sides.append(
            Accuracies(name, pd.DataFrame({"index": range(CELLS), "seed": 0, "accuracy": accuracy}), NAS_BENCH_201)
        )
    return compare(*sides)


@pytest.fixture(scope="module")
def table(comparison: Comparison) -> pd.DataFrame:
    """What the filters read, by plain pandas from the cells' strings."""
    arch = pd.Series(NAS_BENCH_201.archs)
    graphs = [space.parse(text) for text in arch]
    counts = {name: arch.str.count(name) for name in space.OPERATIONS}
    factor = [learning_rate_factor(graph, space.BASE) if graph.connected else np.nan for graph in graphs]
    accuracies = {"control": comparison.first.accuracy, "other": comparison.second.accuracy}
    return pd.DataFrame(counts | accuracies | {"factor": factor})


@pytest.fixture(scope="module")
def written(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explore.html"
    page.write(comparison, path, title="after against before")
    return path


@pytest.fixture
def explore(browser: Browser, written: Path) -> Iterator[Explore]:
    """Opens a page; at the end it must have asked for nothing but itself and have complained of nothing."""
    opened: list[Page] = []
    asked: list[str] = []
    complaints: list[str] = []

    def open_page(path: Path = written, **options: Any) -> Page:
        made = browser.new_page(viewport={"width": 1280, "height": 700}, **options)
        opened.append(made)
        made.on("request", lambda request: asked.append(request.url))
        made.on("console", lambda message: complaints.append(message.text))
        made.on("pageerror", lambda error: complaints.append(str(error)))
        made.goto(path.as_uri())
        expect(made.locator("#count")).to_contain_text("cells")
        return made

    yield open_page
    urls = {made.url for made in opened}
    for made in opened:
        made.close()
    assert complaints == []
    assert set(asked) == urls


def few(tmp_path: Path, **options: Any) -> tuple[Comparison, Path]:
    """A comparison of 60 cells that lie apart, and its page."""
    found = compare(*two_trainings(1, cells=60, planted=3.0))
    path = tmp_path / "few.html"
    page.write(found, path, title="few", **options)
    return found, path


def place(opened: Page, cell: int) -> tuple[float, float]:
    """Where the cell at this place of the comparison lies in the plot, in pixels."""
    x, y = opened.evaluate("(cell) => place(cell)", cell)
    return x, y


def drawn(opened: Page) -> None:
    """Wait until all that was asked for before is drawn."""
    opened.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hover(opened: Page, cell: int) -> None:
    x, y = place(opened, cell)
    opened.locator("#marks").hover(position={"x": x, "y": y})


def search(opened: Page, text: str) -> None:
    opened.fill("#wanted", text)
    opened.press("#wanted", "Enter")


def assert_card_tells(card: Any, comparison: Comparison, cell: int) -> None:
    """The card has what the project's own functions say of the cell at this place of the comparison."""
    index = int(comparison.cells[cell])
    arch, graph = NAS_BENCH_201.arch_at(index), NAS_BENCH_201.graph_at(index)
    sides = (comparison.first, comparison.second)
    ranks = [stats.rankdata(-side.accuracy)[cell] for side in sides]
    expect(card.locator("h2")).to_have_text(f"Cell {index}")
    expect(card.locator("code")).to_have_text(arch)
    rows = [re.split(r"\s{2,}|\t", text.strip()) for text in card.locator("tbody tr").all_inner_texts()]
    told = {name: values for name, *values in rows}
    for name, side, rank in zip(("control", "other"), sides, ranks, strict=True):
        assert float(told[name][0].removesuffix(" %")) == pytest.approx(side.accuracy[cell], abs=0.005001)
        assert float(told[name][1].replace(",", "")) == rank
    assert float(told["move in rank"][0].replace(",", "").replace("\N{MINUS SIGN}", "-")) == ranks[0] - ranks[1]
    if graph.connected:
        expected = learning_rate_factor(graph, space.BASE)
        assert float(told["learning-rate factor"][0]) == pytest.approx(expected, rel=1e-3)
    else:
        assert told["learning-rate factor"] == ["none: no path"]
    assert told["network class"][0].startswith(f"{NAS_BENCH_201.training_classes(None)[index]}, ")
    live = {(edge.source, edge.target) for edge in graph.effective.edges}
    expected_edges = {
        f"{source}-{target}-{name}": "live" if (source, target) in live else "dead"
        for (source, target), name in zip(space.EDGES, space.parse_operations(arch), strict=True)
        if name != "none"
    }
    edges = card.locator(".edge").evaluate_all("(all) => all.map((one) => [one.dataset.edge, one.classList[1]])")
    assert dict(edges) == expected_edges


def test_all_cells_load_in_time_from_one_small_file(written: Path, explore: Explore, table: pd.DataFrame) -> None:
    assert written.stat().st_size < 5e6
    opened = explore()
    assert opened.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 1000 * LOAD_SECONDS
    tau = stats.kendalltau(table["control"], table["other"]).statistic
    expect(opened.locator("#count")).to_have_text(f"15,625 of 15,625 cells, Kendall's tau {tau:.3f}")


def test_the_page_may_ask_for_nothing(browser: Browser, tmp_path: Path) -> None:
    opened = browser.new_page()
    opened.goto(few(tmp_path)[1].as_uri())
    blocked = opened.evaluate(
        """async () => {
          const found = [];
          document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
          await fetch("http://127.0.0.1:9/").catch(() => null);
          new Image().src = "http://127.0.0.1:9/image.png";
          document.head.append(Object.assign(document.createElement("script"), { src: "http://127.0.0.1:9/code.js" }));
          await new Promise((resolve) => setTimeout(resolve, 200));
          return found;
        }"""
    )
    assert sorted(blocked) == ["connect-src", "img-src", "script-src-elem"]
    opened.close()


def test_cells_lie_at_their_accuracies_and_are_drawn_there(tmp_path: Path, explore: Explore) -> None:
    found, path = few(tmp_path)
    opened = explore(path)
    opened.click("#fit-all")
    expect(opened.locator("#outside")).to_have_text("")
    places = np.array([place(opened, cell) for cell in range(len(found))])
    for pixels, side, direction in zip(places.T, (found.first, found.second), (1, -1), strict=True):
        slope, offset = np.polyfit(side.accuracy, pixels, 1)
        assert slope * direction > 0
        np.testing.assert_allclose(slope * side.accuracy + offset, pixels, atol=0.01)
    shot = np.asarray(Image.open(BytesIO(opened.locator("#plot").screenshot())).convert("RGB")).astype(int)
    colours = np.array([shot[round(y), round(x)] for x, y in places])
    assert (np.abs(colours - 255).max(1) > 20).all(), "every place must have ink"
    moves = stats.rankdata(-found.first.accuracy) - stats.rankdata(-found.second.accuracy)
    warmth = colours[:, 0] - colours[:, 2]
    assert stats.spearmanr(moves, warmth).statistic < -0.95, "cells that fall are orange, those that rise are blue"


def test_hovering_shows_the_cell(comparison: Comparison, table: pd.DataFrame, explore: Explore) -> None:
    opened = explore()
    expect(opened.locator("#pointed")).to_contain_text("Point at a cell")
    opened.fill("#min-nor_conv_3x3", "5")
    cells = table.index[table["nor_conv_3x3"] >= 5]
    places = np.array([place(opened, cell) for cell in cells])
    apart = np.hypot(*(places[:, None] - places).transpose(2, 0, 1)) + 99 * np.eye(len(cells))
    alone = cells[apart.min(1) > 2][:12]
    assert len(alone) == 12
    for cell in alone:
        hover(opened, cell)
        assert_card_tells(opened.locator("#pointed"), comparison, cell)


def test_search_finds_by_index_and_by_string(comparison: Comparison, explore: Explore) -> None:
    opened = explore()
    generator = np.random.default_rng(1)
    apart = next(index for index in range(CELLS) if not NAS_BENCH_201.graph_at(index).connected)
    for number, cell in enumerate([0, CELLS - 1, apart, *generator.integers(0, CELLS, 7)]):
        search(opened, str(cell) if number % 2 else f" {NAS_BENCH_201.arch_at(int(cell))} ")
        expect(opened.locator("#found")).to_have_text(f"Cell {cell} is pinned.")
        assert_card_tells(opened.locator("#pinned"), comparison, int(cell))
        x, y = place(opened, int(cell))
        box = opened.locator("#plot").bounding_box()
        assert box is not None
        assert 0 < x < box["width"]
        assert 0 < y < box["height"]


def test_a_search_in_vain_says_so_and_pins_nothing(tmp_path: Path, explore: Explore) -> None:
    found, path = few(tmp_path)
    absent = next(cell for cell in range(CELLS) if cell not in found.cells)
    opened = explore(path)
    for text in ("15625", "-1", str(absent), NAS_BENCH_201.arch_at(absent), "|none~0|", "<b>bold</b>", "1e3"):
        search(opened, text)
        expect(opened.locator("#found")).to_contain_text(f"{text} is not among the 60 cells compared.")
    search(opened, " ")
    expect(opened.locator("#found")).to_contain_text("Type a cell's index")
    expect(opened.locator("#pinned")).to_be_hidden()


def test_filters_show_what_pandas_selects(table: pd.DataFrame, explore: Explore) -> None:
    opened = explore()
    factors = sorted(table["factor"].dropna().unique())
    generator = np.random.default_rng(2)
    sizes = []
    for number in range(8):
        opened.click("#reset-filters")
        chosen = pd.Series(True, index=table.index)
        for name in generator.choice(list(space.OPERATIONS), number % 4, replace=False):
            low, high = sorted(generator.integers(0, 5, 2))
            opened.fill(f"#max-{name}", str(high))
            opened.fill(f"#min-{name}", str(low))
            chosen &= table[name].between(low, high)
        if number % 3:
            low, high = sorted(generator.integers(0, len(factors), 2))
            opened.fill("#factor-max", str(high))
            opened.fill("#factor-min", str(low))
            opened.set_checked("#pathless", number % 2 == 0)
            without = table["factor"].isna() & (number % 2 == 0)
            chosen &= table["factor"].between(factors[low], factors[high]) | without
        if number % 4 != 1:
            side = ("control", "other")[number % 2]
            percent = (2, 10, 33.3, 0.001, 75)[number % 5]
            opened.select_option("#ranked-by", side)
            opened.fill("#percent", str(percent))
            best = table[side].nlargest(max(1, round(CELLS * percent / 100)))
            chosen &= table[side] >= best.iloc[-1]
        left = table[chosen]
        sizes.append(len(left))
        tau = kendall_tau(left["control"].to_numpy(), left["other"].to_numpy())
        told = f", Kendall's tau {'undefined' if np.isnan(tau) else f'{tau:.3f}'}" if len(left) else ""
        expect(opened.locator("#count")).to_have_text(f"{len(left):,} of 15,625 cells{told}")
        assert opened.evaluate("tau") == pytest.approx(tau, abs=1e-9, nan_ok=True)
        assert opened.evaluate("Array.from(shown)") == left.index.tolist()
    assert max(sizes) > 1000
    assert sum(size > 1 for size in sizes) > 4


def test_the_top_k_percent_are_those_of_the_tables(tmp_path: Path, explore: Explore) -> None:
    found, path = few(tmp_path)
    opened = explore(path)
    for name, side in (("control", found.first), ("other", found.second)):
        opened.select_option("#ranked-by", name)
        for percent in (0, 1, 2.5, 7.5, 10, 12.5, 99):  # with 60 cells some end on halves
            opened.fill("#percent", str(percent))
            count = top_counts(side.accuracy, (percent,))[percent]
            expect(opened.locator("#count")).to_have_text(re.compile(f"^{count} of 60 cells"))


def test_limits_stay_in_order_and_an_empty_field_limits_nothing(tmp_path: Path, explore: Explore) -> None:
    opened = explore(few(tmp_path)[1])
    opened.fill("#min-none", "4")
    opened.fill("#max-none", "2")
    expect(opened.locator("#min-none")).to_have_value("2")
    opened.fill("#factor-max", "3")
    opened.fill("#factor-min", "9")
    expect(opened.locator("#factor-max")).to_have_value("9")
    opened.click("#reset-filters")
    for field in ("#min-none", "#max-none", "#percent"):
        opened.fill(field, "")
    expect(opened.locator("#count")).to_contain_text("60 of 60 cells")


def test_filters_that_no_cell_passes_say_so_and_can_be_taken_back(tmp_path: Path, explore: Explore) -> None:
    found, path = few(tmp_path)
    opened = explore(path)
    search(opened, str(found.cells[5]))
    opened.fill("#min-none", "4")
    opened.fill("#min-skip_connect", "4")
    expect(opened.locator("#empty")).to_be_visible()
    expect(opened.locator("#count")).to_have_text("0 of 60 cells")
    expect(opened.locator("#pinned")).to_contain_text("Does not pass the filters.")
    opened.click("#reset-here")
    expect(opened.locator("#empty")).to_be_hidden()
    expect(opened.locator("#count")).to_contain_text("60 of 60 cells")


def test_a_click_pins_until_it_is_taken_back(tmp_path: Path, explore: Explore) -> None:
    found, path = few(tmp_path)
    opened = explore(path)
    opened.click("#fit-all")
    best, worst = int(found.first.accuracy.argmax()), int(found.first.accuracy.argmin())
    hover(opened, best)
    opened.mouse.down()
    opened.mouse.up()
    hover(opened, worst)
    assert_card_tells(opened.locator("#pinned"), found, best)
    assert_card_tells(opened.locator("#pointed"), found, worst)
    opened.click("#pinned button")
    expect(opened.locator("#pinned")).to_be_hidden()


def test_everything_can_be_done_from_the_keyboard(comparison: Comparison, explore: Explore) -> None:
    opened = explore()
    for _ in range(40):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.id") == "plot":
            break
    expect(opened.locator("#plot")).to_be_focused()
    sides = (comparison.first.accuracy, comparison.second.accuracy)
    across, up = (np.lexsort((np.arange(CELLS), -other, -own)) for own, other in (sides, sides[::-1]))
    opened.keyboard.press("ArrowRight")
    assert_card_tells(opened.locator("#pointed"), comparison, across[0])
    for step in (1, 2, 3):
        opened.keyboard.press("ArrowLeft")
        expect(opened.locator("#said")).to_contain_text(f"Cell {across[step]}: control")
    opened.keyboard.press("Enter")
    assert_card_tells(opened.locator("#pinned"), comparison, across[3])
    at = int(np.flatnonzero(up == across[3])[0])
    opened.keyboard.press("ArrowDown")
    expect(opened.locator("#pointed h2")).to_have_text(f"Cell {up[at + 1]}")
    opened.keyboard.press("ArrowUp")
    expect(opened.locator("#pointed h2")).to_have_text(f"Cell {up[at]}")
    opened.keyboard.press("Escape")
    expect(opened.locator("#pinned")).to_be_hidden()


def test_zooming_keeps_what_is_under_the_pointer_and_dragging_takes_it_along(
    comparison: Comparison, explore: Explore
) -> None:
    opened = explore()
    cell = int(np.argsort(comparison.first.accuracy)[CELLS // 2])
    before = np.array(place(opened, cell))
    hover(opened, cell)
    opened.mouse.wheel(0, -300)
    outside = opened.locator("#outside")
    expect(outside).not_to_have_text("")
    drawn(opened)
    np.testing.assert_allclose(place(opened, cell), before, atol=1.0)
    across, up = opened.evaluate("view")
    inside = pd.Series(comparison.first.accuracy).between(*across)
    inside &= pd.Series(comparison.second.accuracy).between(*up)
    expect(outside).to_have_text(f"{(~inside).sum():,} outside this view")
    opened.mouse.down()
    x, y = before
    opened.locator("#marks").hover(position={"x": x + 40, "y": y - 30})
    opened.mouse.up()
    np.testing.assert_allclose(place(opened, cell), (x + 40, y - 30), atol=1.5)
    expect(opened.locator("#pinned")).to_be_hidden()
    opened.locator("#plot").press("0")
    np.testing.assert_allclose(place(opened, cell), before, atol=0.01)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as the Web Content Accessibility Guidelines 2 define it."""
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_ground_by_day_and_by_night(scheme: str, tmp_path: Path, explore: Explore) -> None:
    opened = explore(few(tmp_path)[1], color_scheme=scheme)

    def colour(name: str | int) -> str:
        """A colour by its name, or an operation's by its place."""
        swatch = "place => getComputedStyle(document.querySelectorAll('.swatch')[place]).getPropertyValue('--colour')"
        return str(opened.evaluate("colour" if isinstance(name, str) else swatch, name))

    def contrast(one: str | int, other: str) -> float:
        low, high = sorted(luminance(colour(name)) for name in (one, other))
        return (high + 0.05) / (low + 0.05)

    assert (luminance(opened.evaluate("colour", "--ground")) < 0.5) == (scheme == "dark")
    for ground in ("--ground", "--panel"):
        assert contrast("--text", ground) > 7
        assert contrast("--quiet", ground) > 4.5
        for mark in ("--accent", 1, 2, 3, 4):  # the operation none, which comes first, is not drawn
            assert contrast(mark, ground) > 3


def test_the_scheme_and_the_colouring_may_change_at_any_time(tmp_path: Path, explore: Explore) -> None:
    found, path = few(tmp_path)
    opened = explore(path, color_scheme="light")
    opened.click("#fit-all")
    x, y = place(opened, int(found.first.accuracy.argmax()))
    pixels = []
    for scheme, colouring in (("light", "move"), ("light", "factor"), ("dark", "factor"), ("dark", "move")):
        opened.emulate_media(color_scheme=scheme)
        opened.select_option("#colour", colouring)
        drawn(opened)
        shot = Image.open(BytesIO(opened.locator("#plot").screenshot())).convert("RGB")
        pixels.append(shot.getpixel((round(x), round(y))))
    assert len(set(pixels)) == 4
    factors = [learning_rate_factor(NAS_BENCH_201.graph_at(cell), space.BASE) for cell in found.cells]
    opened.select_option("#colour", "factor")
    assert float(opened.inner_text("#legend-low")) == pytest.approx(min(factors), rel=1e-3)
    assert float(opened.inner_text("#legend-high")) == pytest.approx(max(factors), rel=1e-3)


def test_names_are_text_whatever_they_hold(tmp_path: Path, explore: Explore) -> None:
    hostile = (
        "</script><script>window.harmed = 1</script><!--<script><img src=x onerror='window.harmed = 1'>&amp;{{\u2028"
    )
    sides = [Accuracies(hostile, side.runs, NAS_BENCH_201, per_class=True) for side in two_trainings(2, cells=20)]
    page.write(compare(*sides), tmp_path / "hostile.html", title=hostile)
    opened = explore(tmp_path / "hostile.html")
    assert opened.evaluate("window.harmed") is None
    assert opened.evaluate("[data.title, control.name, other.name]") == [hostile] * 3
    assert opened.locator("h1").text_content() == hostile
    assert hostile in str(opened.locator("#plot").get_attribute("aria-label"))


def test_noise_of_a_move_is_told_where_it_is_known(tmp_path: Path, explore: Explore) -> None:
    found, path = few(tmp_path, noise=np.arange(60.0))
    opened = explore(path)
    search(opened, str(found.cells[7]))
    expect(opened.locator("#pinned")).to_contain_text("(noise 7)")
    expect(opened.locator("#noise")).to_be_visible()
    _, path = few(tmp_path)
    opened = explore(path)
    search(opened, str(found.cells[7]))
    expect(opened.locator("#pinned")).not_to_contain_text("noise")
    expect(opened.locator("#noise")).to_be_hidden()


def run_records(source: Accuracies, epochs: int) -> pd.DataFrame:
    """Run records of a source's trainings, with curves of made-up losses and rates; every ninth training has none, and
    the last one diverged after three epochs."""
    generator, runs = np.random.default_rng(3), source.runs
    losses = [tuple(generator.uniform(0, 3, epochs)) for _ in range(len(runs))]
    losses[-1] = losses[-1][:3]
    curves = [None if place % 9 == 0 else loss for place, loss in enumerate(losses)]
    rates = [
        None if curve is None else tuple(np.geomspace(123456.7, 0.0001234, epochs)[: len(curve)]) for curve in curves
    ]
    return pd.DataFrame({"cell": runs["index"], "train_loss_curve": curves, "learning_rate_curve": rates})


def points(opened: Page, side: str, quantity: str) -> list[list[float]]:
    """Where a curve of the pinned cell goes through, in the drawing; nothing where there is none."""
    line = opened.locator(f"#pinned svg[data-quantity={quantity}] polyline.{side}")
    if line.count() == 0:
        return []
    return [[float(number) for number in pair.split(",")] for pair in str(line.get_attribute("points")).split()]


def test_a_pinned_cell_shows_the_means_of_its_curves(tmp_path: Path, explore: Explore) -> None:
    sides = two_trainings(1, cells=60, planted=3.0)
    found, epochs = compare(*sides), 7
    records = run_records(sides[1], epochs)
    drawn_curves = [None, curves.of_side(sides[1], records, found.cells)]
    page.write(found, tmp_path / "curves.html", title="curves", curves=drawn_curves)
    opened = explore(tmp_path / "curves.html")
    for cell in (0, 1, 5, 59):
        search(opened, str(found.cells[cell]))
        of_cell = records[records["cell"] == found.cells[cell]]["train_loss_curve"].dropna()
        means = [np.mean([one[at] for one in of_cell if at < len(one)]) for at in range(max(map(len, of_cell)))]
        x, y = np.array(points(opened, "other", "train_loss")[:-1]).T
        assert len(x) == len(means)
        np.testing.assert_allclose(np.diff(x), np.diff(x).mean(), atol=0.011)
        slope, offset = np.polyfit(means, y, 1)
        assert slope < 0
        np.testing.assert_allclose(slope * np.array(means) + offset, y, atol=0.02)
        assert points(opened, "control", "train_loss") == []
        told = f"training loss by epoch: other {means[0]:.3g} to {means[-1]:.3g}"
        expect(opened.locator("#pinned svg[data-quantity=train_loss]")).to_have_attribute("aria-label", told)
        assert len(points(opened, "other", "learning_rate")) == len(means) + 1
    expect(opened.locator("#pinned svg.chart")).to_have_count(2)  # no accuracies
    texts = opened.locator("#pinned svg.chart text")
    ends = texts.evaluate_all(
        "(all) => all.map((one) => one.getBBox()).map((box) => [box.x, box.x + box.width, box.y])"
    )
    assert len(ends) == 12
    assert all(left >= 0 and right <= 300 and top >= 0 for left, right, top in ends), "no text is cut"
    expect(opened.locator("#pointed svg.chart")).to_have_count(0)
    opened.keyboard.press("Tab")
    opened.locator("#plot").press("Escape")
    expect(opened.locator("#pinned")).to_be_hidden()


def test_a_cell_without_curves_shows_none(tmp_path: Path, explore: Explore) -> None:
    sides = two_trainings(1, cells=60, seeds=(1, 1))
    found = compare(*sides)
    drawn_curves = [curves.of_side(side, run_records(side, 1), found.cells) for side in sides]
    page.write(found, tmp_path / "curves.html", title="curves", curves=drawn_curves)
    opened = explore(tmp_path / "curves.html")
    search(opened, str(found.cells[9]))
    expect(opened.locator("#pinned h2")).to_have_text(f"Cell {found.cells[9]}")
    expect(opened.locator("#pinned svg.chart")).to_have_count(0)
    search(opened, str(found.cells[10]))  # with one epoch, which is a dot
    for side in ("control", "other"):
        first, second = points(opened, side, "train_loss")
        assert first == second


def test_with_curves_of_all_cells_the_page_stays_small(comparison: Comparison, tmp_path: Path) -> None:
    """Two hundred epochs of five quantities on both sides would be 44 MB."""
    classes = np.unique(NAS_BENCH_201.training_classes(None), return_inverse=True)[1]
    names = ("train_loss", "train_accuracy", "learning_rate", "test_loss", "test_accuracy")
    means = {name: np.broadcast_to(np.arange(200.0), (classes.max() + 1, 200)) for name in names}
    side = curves.Curves(classes, np.arange(1, 201), means)
    page.write(comparison, tmp_path / "large.html", title="large", curves=[side, side])
    assert (tmp_path / "large.html").stat().st_size < 5e6
    thinned = side.at_most(11)
    assert thinned.epochs[[0, -1]].tolist() == [1, 200]
    assert thinned.means["train_loss"][0].tolist() == (thinned.epochs - 1).tolist()
    assert len(side.at_most(1000).epochs) == 200


def test_a_wheel_holds_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = wheel.read("nas_retrain/studies/comparison/explore.html")
    assert held == Path(page.__file__).with_name("explore.html").read_bytes()
