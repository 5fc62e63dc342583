"""Reports from templates: paragraphs are one line, parts may be missing, and text from outside stays text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from nas_retrain.reports.markup import to_html
from nas_retrain.reports.template import render_markdown

TEMPLATE = """\
# {{ title }}

A paragraph of
two lines.

{% if some %}

{{ sentences | bullets }}

{{ frame | table }}

{% endif %}

{{ facts | facts }}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "package_with_a_template"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "report.md").write_text(TEMPLATE)
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_parts_that_are_left_out_leave_nothing(package: str) -> None:
    text = render_markdown(package, title="Of *mine*", some=False, facts={"seed": 3, "in": "a|b"})
    assert text == "# Of \\*mine\\*\n\nA paragraph of two lines.\n\n- seed: 3\n- in: a\\|b\n"
    with pytest.raises(UndefinedError):
        render_markdown(package, title="no facts", some=False)


def test_text_from_outside_stays_text_and_markup_stays_markup(package: str) -> None:
    odd = "x\n\n# <b>*y*</b> | z"
    frame = pd.DataFrame({"cell": [odd], "accuracy": [93.25]})
    text = render_markdown(package, title=Markup("*mine*"), some=True, sentences=[odd], frame=frame, facts={odd: odd})
    page = to_html(text)
    assert page.count("<h1>") == 1
    assert "<h1><em>mine</em></h1>" in page
    assert "<b>" not in page
    assert page.count("# &lt;b&gt;*y*&lt;/b&gt; | z") == 4
    assert "93.25" in page
