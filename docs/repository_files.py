"""A hook for mkdocs: a page may link to any file of the repository, such as ../configs/config.yaml, as on GitHub.

Files outside docs/ that a page links to are copied into the site below repository/, and the link is made to lead there.
Markdown files among them become pages, and what they link to comes with them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SITE = "repository"
LINK = re.compile(r"\]\((?![a-z]+:|#|/)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to; a link to what is not there is left for mkdocs to report."""
    waiting = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    while waiting:
        place, text = waiting.pop()
        for target in _outside(place, text):
            source = f"{SITE}/{target}"
            if files.get_file_from_path(source) is None and (ROOT / target).is_file():
                files.append(File.generated(config, source, abs_src_path=str(ROOT / target)))
                if target.endswith(".md"):
                    waiting.append((target, (ROOT / target).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead the links that leave docs/ to the copies, and those of copies that lead into docs/ to its pages."""
    here = page.file.src_uri
    place = here.removeprefix(f"{SITE}/") if here.startswith(f"{SITE}/") else f"docs/{here}"

    def led(link: re.Match[str]) -> str:
        target = _target(place, link[1])
        there = target.removeprefix("docs/") if target.startswith("docs/") else f"{SITE}/{target}"
        return link[0].replace(link[1], posixpath.relpath(there, posixpath.dirname(here) or "."))

    return LINK.sub(led, markdown)


def _outside(place: str, text: str) -> list[str]:
    targets = (_target(place, link) for link in LINK.findall(text))
    return [target for target in targets if not target.startswith(("docs/", "../"))]


def _target(place: str, link: str) -> str:
    """The file that a link of a page leads to, from the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), unquote(link)))
