"""The browser for the tests of pages: whatever fails on the way to one means that there is none here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import browser


@pytest.fixture(autouse=True)
def stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(browser, "STAMP", tmp_path / "stamp")
    return tmp_path / "stamp"


@pytest.mark.parametrize("content", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho apt-get install chromium\n", "\x7fELF"])
def test_a_file_that_is_no_browser_is_passed_over(tmp_path: Path, content: str) -> None:
    file = tmp_path / "chromium"
    file.write_text(content)
    file.chmod(0o755)
    assert not browser.starts(str(file))
    assert not browser.starts(str(tmp_path / "absent"))


def test_where_the_driver_of_browsers_does_not_start_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> None:
        raise Exception("Connection closed while reading from the driver")

    (tmp_path / "chromium").touch()
    monkeypatch.setattr(browser, "sync_playwright", broken)
    monkeypatch.setattr(browser, "NAMES", (str(tmp_path / "chromium"),))
    assert browser.executable() is None


def test_what_was_found_is_remembered_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, stamp: Path, tmp_path: Path
) -> None:
    found = tmp_path / "found"
    found.touch()
    tried: list[str] = []
    monkeypatch.setattr(browser, "candidates", lambda: iter([str(found)]))
    monkeypatch.setattr(browser, "starts", lambda path: tried.append(path) is None)
    assert browser.main() == 0
    assert stamp.read_text() == str(found)
    assert (browser.executable(), len(tried)) == (str(found), 1)
    found.unlink()
    browser.executable()
    assert len(tried) == 2


@pytest.mark.parametrize(("machine", "status"), [("", 0), ("true", 1)])
def test_without_a_browser_it_is_tried_to_get_one_once_and_continuous_integration_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], machine: str, status: int
) -> None:
    ways: list[str] = []
    monkeypatch.setenv("CI", machine)
    monkeypatch.setattr(browser, "candidates", lambda: iter([]))
    monkeypatch.setattr(browser, "fetch", lambda: ways.append("fetch"))
    monkeypatch.setattr(browser, "install", lambda: ways.append("install"))
    assert [browser.main(), browser.main()] == [status, status]
    assert ways == ["fetch", "install"]
    assert browser.MISSING in capsys.readouterr().out
