"""A report as a document: report.md, report.html in one self-contained file, and what a command says of it."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from nas_retrain.files.atomic import replacing
from nas_retrain.reports.markup import render, to_html, visible
from nas_retrain.settings import Settings
from nas_retrain.trainings.version import analysis_versions


def write_document(folder: Path, text: str, title: str, *, left_out: str = "") -> None:
    """Write `text`, which is Markdown, as report.md and as report.html to `folder`, where its figures lie.

    left_out: what the page lacks, since it may be sent alone. Raises NasRetrainError if the folder cannot be written.
    """
    page = as_page(text.replace(left_out, "") if left_out else text, title, folder)
    for name, content in (("report.md", text), ("report.html", page)):
        with replacing(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def as_page(text: str, title: str, folder: Path) -> str:
    """A report in Markdown as one HTML page that needs no other file: its figures lie in `folder`."""

    def embedded(match: re.Match[str]) -> str:
        content = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{content}"'

    body = re.sub(r'src="(figures/\w+\.png)"', embedded, to_html(text))
    return render("report.html", title=visible(title), body=Markup(body))  # noqa: S704 - escaped by its making


def closing_lines(findings: Iterable[str], *to_open: Path) -> list[str]:
    """How a command ends: its findings, a sentence a line, and below them the files to open, a path a line."""
    return [*(f"- {visible(finding)}" for finding in findings), "Open", *(f"  {path}" for path in to_open)]


def tell_stage(text: str) -> None:
    """Say on stderr what is being computed, before a stage that takes seconds."""
    print(f"{visible(text)} ...", file=sys.stderr, flush=True)  # noqa: T201 - what a command tells


def facts(settings: Settings) -> dict[str, str]:
    """What every report says of how it was made."""
    normalisation = {"normalisation": "none"} if settings.network.normalisation == "none" else {}
    return {
        "data set": settings.dataset.name
        + ("" if settings.dataset.verify else "; its files were not compared with the published ones"),
        **normalisation,
        "versions": analysis_versions(),
    }
