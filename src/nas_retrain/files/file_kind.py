"""What a file that cannot be read seems to be, by its first bytes, and what to do about it."""

from __future__ import annotations

from pathlib import Path

_STARTS = {
    b"version https://git-lfs": "a git-LFS pointer that stands for the file: get the file with `git lfs pull`",
    b"\xff\xfe": "text in UTF-16, as spreadsheets save it: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16, as spreadsheets save it: save it as UTF-8",
}
"""How files begin that stand for others, and text that is not UTF-8."""

_FORMATS: dict[bytes, tuple[str, ...]] = {
    b"PAR1": ("a Parquet table: its name should end in .parquet", ".parquet"),
    b"\x1f\x8b": ("compressed with gzip: unpack it, or give it a name that ends in .csv.gz if it is a table", ".gz"),
    b"BZh": ("compressed with bzip2: unpack it", "bz2"),
    b"\xfd7zXZ": ("compressed with xz: unpack it", ".xz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd: unpack it", ".zst"),
    b"PK\x03\x04": ("a zip archive: unpack it", ".pth", ".zip"),
    b"\x89HDF": ("an HDF5 file, which is not read",),
    b"%PDF": ("a PDF document",),
}
"""How files of a format begin: what the format is, and the endings of file names that go with it."""


def seems(path: Path) -> str | None:
    """A clause for a message, "it seems to be ...", from the first bytes of `path`; None if they give no hint."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return None
    if not start:
        return "it is empty: an interrupted download or copy leaves such a file"
    if not start.strip(b"\0"):
        return "it begins with zeros only: an interrupted download or copy leaves such a file"
    for known, what in _STARTS.items():
        if start.startswith(known):
            return f"it seems to be {what}"
    for known, (what, *names) in _FORMATS.items():
        if start.startswith(known) and not path.name.endswith(tuple(names)):
            return f"it seems to be {what}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<script", b"<body")):
        return "it seems to be a web page, such as a login or error page that was saved in the file's place"
    if text.startswith((b'{"', b"{\n", b"{ ")):
        return "it seems to be JSON, such as the answer of a server that refused the download"
    if text.startswith((b"http/1", b"http/2", b"error", b"access denied", b"forbidden", b"not found")):
        return "it seems to be a server's answer that was saved in the file's place"
    return None
