"""A report as a document, and what a command says of it at its end."""

from __future__ import annotations

from pathlib import Path

from nas_retrain.reports.document import closing_lines, write_document

PIXEL = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89"
    b"\0\0\0\rIDATx\x9cc\xf8\xcf\xc0\xf0\x1f\0\x05\0\x01\xff\xa5Z\xd5\x1b\0\0\0\0IEND\xaeB`\x82"
)


def test_a_document_is_markdown_and_a_page_that_needs_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "one.png").write_bytes(PIXEL)
    text = "# A < B\n\n![One](figures/one.png)\n\nSee the other page.\n"
    write_document(tmp_path, text, "A < B", left_out="See the other page.")
    assert (tmp_path / "report.md").read_text() == text
    page = (tmp_path / "report.html").read_text()
    assert "<title>A &lt; B</title>" in page
    assert 'src="data:image/png;base64,iVBORw0KGgo' in page
    assert "other page" not in page


def test_what_a_command_says_at_its_end_is_a_line_a_sentence_and_a_path(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    said = closing_lines(["Two\nlines\x1b[31m are one.", "A second."], path)
    assert said == [
        "- Two lines\N{REPLACEMENT CHARACTER}[31m are one.",
        "- A second.",
        "Open",
        f"  {tmp_path}/report.html",
    ]
