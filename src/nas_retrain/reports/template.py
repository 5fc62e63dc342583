"""The Markdown of a report, from a template that lies beside the study.

A paragraph of a template may go over several lines, and is one in the report. What stands in {{ }} is escaped, so that
text from outside stays text. `| table` makes a table of a frame, `| bullets` a list of sentences, and `| facts` a list
of names and what they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nas_retrain.reports import tables
from nas_retrain.reports.markup import bullets, escaped


def _finished(value: object) -> str:
    return value if isinstance(value, Markup) else escaped(value)


def _bullets(sentences: Iterable[object]) -> Markup:
    return Markup(bullets(sentences))  # noqa: S704 - escaped by its making


def _facts(facts: Mapping[str, object]) -> Markup:
    return _bullets(f"{name}: {value}" for name, value in facts.items())


def _table(table: pd.DataFrame) -> Markup:
    return Markup(tables.as_markdown(table))  # noqa: S704 - escaped by its making


# What Jinja2 escapes by itself is HTML; this is Markdown, which `_finished` escapes.
_ENVIRONMENT = Environment(autoescape=False, undefined=StrictUndefined, finalize=_finished)  # noqa: S701
_ENVIRONMENT.filters |= {"bullets": _bullets, "facts": _facts, "table": _table}


def render_markdown(package: str, template: str = "report.md", **values: object) -> str:
    """What a template in this package makes of values, which are escaped unless they are Markup."""
    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    flowing = re.sub(r"(?<!\n)\n(?!\n)", " ", source.strip())
    # Parts that are left out leave their blank lines.
    return re.sub(r"\n{3,}", "\n\n", _ENVIRONMENT.from_string(flowing).render(values)).strip() + "\n"
