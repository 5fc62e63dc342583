"""Reports and tables in which text from outside (names, paths, statuses, versions) is text and nothing else.

`escaped` makes text safe within Markdown, by CommonMark's rules and GitHub's additions. `to_html` converts Markdown and
takes what looks like HTML for text. `render` fills a template of this package with escaped values and closes the page
by a Content-Security-Policy: nothing is loaded, and only the template's own style and script are used.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import string
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal

import markdown
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markdown.extensions.tables import TableExtension
from markupsafe import Markup

_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"allow_nan": False}

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

_SYNTAX = re.compile(
    r"""
    [&<>]                               # HTML: an entity each; all else is escaped by a backslash
    | [\\`*|$\#]                        # escapes, code, emphasis, cells, formulas, headings
    | (?<![^\W_])_ | _(?![^\W_])        # emphasis, unless between letters or digits
    | ~(?!\s) | (?<=\S)~                # struck out
    | ^\[ | \](?=[(\[:]|$)              # links, and what they refer to
    | ^[-+=](?=[-+=\s]|$)               # lists and lines
    """,
    re.VERBOSE,
)

_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: object) -> str:
    """Text on one line, and what cannot be written, such as the bytes of a file's name that are no text, as U+FFFD."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(text).split()))


def escaped(text: object) -> str:
    """Text that stays text in a paragraph, list item, heading, emphasis or cell of a Markdown document."""
    marked = _SYNTAX.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), visible(text))
    return _NUMBERED.sub(r"\1\\\2", marked)


def bullets(sentences: Iterable[object]) -> str:
    """A Markdown list of plain sentences."""
    return "\n".join(f"- {escaped(sentence)}" for sentence in sentences)


def code(text: object) -> str:
    """Text as Markdown's inline code, within more backticks than it has in a row."""
    shown = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}{shown}{fence}" if len(fence) == 1 else f"{fence} {shown} {fence}"


def python_string(text: str) -> str:
    """Text as a string literal of Python, in double quotes and on one line."""
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def to_html(text: str) -> Markup:
    """Markdown with tables as HTML; HTML within it is shown, not used."""
    # Alignment as an attribute, since a policy without unsafe-inline forbids styles in attributes.
    converter = markdown.Markdown(extensions=[TableExtension(use_align_attribute=True)])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    converter.ESCAPED_CHARS = list(string.punctuation)  # as in CommonMark
    return Markup(converter.convert(text))  # noqa: S704 - what came from outside is escaped


def render(template: str, *, package: str = __package__, **values: object) -> str:
    """A page from a template that lies in `package`; its `policy` is made here. A value is escaped unless it is
    Markup."""
    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    return _ENVIRONMENT.from_string(source).render(policy=_policy(source), **values)


def _policy(source: str) -> str:
    """The Content-Security-Policy of a template: its scripts and styles by their hashes, and images in the page."""
    rules = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for kind in ("script", "style"):
        hashes = [
            hashlib.sha256(text.encode()).digest() for text in re.findall(rf"<{kind}>(.*?)</{kind}>", source, re.S)
        ]
        if hashes:
            rules.append(" ".join([f"{kind}-src", *(f"'sha256-{base64.b64encode(one).decode()}'" for one in hashes)]))
    return "; ".join(rules)


def write_csv(table: pd.DataFrame, path: Path, float_format: str | None = None) -> None:
    """Write a table so that it is read back as it is, whatever its texts hold."""
    texts = table.select_dtypes(["object", "string"])
    # That \r ends a line too, Python's csv does not know.
    returns = any("\r" in str(value) for name in texts for value in texts[name])
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    table.to_csv(
        path, index=False, float_format=float_format, quoting=quoting, encoding="utf-8", errors="backslashreplace"
    )
