"""Text from outside stays text: what a parser of HTML and a browser see, against the text that was given."""

from __future__ import annotations

import html
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path

import markdown
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from nas_retrain.reports.figures import drawn_name
from nas_retrain.reports.markup import bullets, code, escaped, python_string, render, to_html, visible, write_csv
from nas_retrain.reports.tables import as_markdown

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</title></script></style><script>alert(1)</script>",
    "<!--<script>alert(1)//",
    "[click](javascript:alert(1))",
    "![x](http://127.0.0.1:9/x.png)",
    "[x]: http://127.0.0.1:9/ 'x'",
    "<http://127.0.0.1:9/>",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "`code` ``more`` ```python",
    "a\n\n# heading\n\n- item\n\n    code\n\n| a | b |\n|---|---|\n| 1 | 2 |",
    "*emphasis* **strong** __strong__ _emphasis_ ~~struck~~ ~struck~ $x$",
    "a | b \\| c \\\\| d \\",
    "# heading #",
    "- item",
    "+ item",
    "1. item",
    "1234) item",
    "> quoted",
    "---",
    "===",
    "~~~",
    "[ ] task",
    "\x02wzxhzdk:0\x03 \x00 \x1b[31m",
    "bytes \udcff that are no text",
    "\u2028\u2029\u0085\u00a0\u200b\u202e",
    "{{ 7 * 7 }} {% raw %} {# comment",
    "\"quoted\" 'single' style=color:red onmouseover=alert(1)",
    "größe 漢字 👩‍🔬 e\u0301",
]
texts = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="<>&\\`*_{}[]()#+-.!|~$=:\"'/ \n\t1a", max_size=25),
    st.lists(st.sampled_from(HOSTILE), max_size=3).map("".join),
)


class Seen(HTMLParser):
    """The elements of a page and the text in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        assert all(name == "align" or (name, value) == ("style", "text-align: left;") for name, value in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"A comment: {data}")

    handle_decl = handle_pi = unknown_decl = handle_comment

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def hostile(test: object) -> object:
    for text in HOSTILE:
        test = example(text)(test)  # type: ignore[arg-type]
    return test


@hostile
@given(texts)
def test_escaped_text_is_all_that_a_reader_sees_wherever_it_stands(text: str) -> None:
    shown = " ".join(visible(text).split())
    table = pd.DataFrame({"recipe": pd.Series([text, "other"], dtype=object), "number": [1.5, 2.5]})
    for written, elements, around in (
        (f"# {escaped(text)}", {"h1"}, "{}"),
        (bullets([text, "other"]), {"ul", "li"}, "{} other"),
        (f"*Of {escaped(text)}, more.*", {"p", "em"}, "Of {}, more."),
        (f"Of **{escaped(text)}** (more) [1]", {"p", "strong"}, "Of {} (more) [1]"),
        (as_markdown(table), {"table", "thead", "tbody", "tr", "th", "td"}, "recipe number {} 1.50 other 2.50"),
    ):
        if "**" in written and not shown:  # then nothing can be strong
            continue
        seen = Seen(to_html(written))
        assert set(seen.elements) <= elements, written
        assert seen.text == " ".join(around.format(shown).split()), written


@hostile
@given(texts)
def test_readers_of_markdown_that_let_html_through_find_none(text: str) -> None:
    """Such a reader may show more backslashes than CommonMark has it."""
    table = pd.DataFrame({"a": pd.Series([text], dtype=object)})
    for written in (f"# {escaped(text)}", bullets([text]), as_markdown(table)):
        seen = Seen(markdown.markdown(written, extensions=["tables"]))
        assert set(seen.elements) <= {"h1", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}


@hostile
@given(texts)
def test_inline_code_holds_any_text(text: str) -> None:
    seen = Seen(to_html(f"See {code(text)} there"))
    if visible(text):
        assert seen.elements == ["p", "code"]
        assert seen.text == f"See {visible(text)} there"


@hostile
@given(texts)
def test_a_string_literal_of_python_is_the_text_on_one_line(text: str) -> None:
    literal = python_string(text)
    assert literal.encode().decode().splitlines() == [literal] or any(mark in text for mark in "\u2028\u2029\u0085")
    assert "\n" not in literal
    namespace: dict[str, str] = {}
    exec(f"text = {literal}", namespace)
    assert namespace["text"] == text


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9_ .,;:%()/=+-]*[a-z]", fullmatch=True))
def test_plain_text_is_left_as_it_is(text: str) -> None:
    """A reader of the source must not stumble over backslashes: names such as architecture_aware have none."""
    plain = " ".join(text.replace("_", "a_a").split())
    assert escaped(plain) == plain


def test_sentences_with_intervals_keep_their_brackets() -> None:
    sentence = "Kendall's tau = 0.5 [0.4, 0.6]; architecture_aware +1.2 [-0.1, 2.3], p = 0.03. A rule is rate ~ (x)^-1."
    assert escaped(sentence) == sentence


def test_html_in_markdown_is_shown_and_not_used() -> None:
    seen = Seen(to_html("<div onclick=alert(1)>one</div>\n\ntwo <b>three</b> <!-- four --> <script>five</script>"))
    assert seen.elements == ["p", "p"]
    assert "<script>five</script>" in seen.text


@hostile
@given(texts)
def test_a_template_escapes_its_values(text: str) -> None:
    page = render("report.html", title=visible(text), body=text)
    assert page.count("<script") == 0
    assert html.unescape(page.split("<title>")[1].split("</title>")[0]) == visible(text)
    assert html.unescape(page.split("<body>\n")[1].split("\n</body>")[0]) == text


@given(st.lists(texts, min_size=1, max_size=4))
def test_tables_are_read_back_as_they_were_written(cells: list[str]) -> None:
    cells = [cell.encode("utf-8", "backslashreplace").decode() for cell in cells]
    buffer = StringIO()
    write_csv(pd.DataFrame({"name": cells, "number": range(len(cells))}), buffer)
    buffer.seek(0)
    read = pd.read_csv(buffer, keep_default_na=False, dtype={"name": str})
    # A reader of csv takes all ends of lines for one.
    assert [name.replace("\r\n", "\n") for name in read["name"]] == [cell.replace("\r\n", "\n") for cell in cells]
    assert read["number"].tolist() == list(range(len(cells)))


def test_quoting_changes_only_where_it_must(tmp_path: Path) -> None:
    table = pd.DataFrame({"name": ["a", 'b"c'], "number": [1, 2]})
    write_csv(table, tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_text() == 'name,number\na,1\n"b""c",2\n'
    write_csv(table.assign(name=pd.Series(["a\rb", "c\udcff"], dtype=object)), tmp_path / "odd.csv")
    assert (tmp_path / "odd.csv").read_bytes() == b'"name","number"\n"a\rb",1\n"c\\udcff",2\n'


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
@pytest.mark.parametrize("name", [*HOSTILE, "$x^$", r"$\frac{$", r"a\$b$c$", "$$"])
def test_figures_take_no_name_for_a_formula(name: str) -> None:
    figure = Figure()
    text = figure.text(0, 0, drawn_name(name))
    figure.savefig(BytesIO(), format="png")
    assert text._preprocess_math(text.get_text()) == (visible(name), False)
