"""Where a retraining stands, told from its folder alone, and what would block one that has not begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_retrain.commands import describe, status
from nas_retrain.commands.command_line import compose, given_to_make
from nas_retrain.files import locks
from nas_retrain.plan import last_run
from tests.conftest import MakeSettings

CHOSEN = ("recipe=[benchmark,initialisation_only]", "cells=[5,6,7]", "seeds=[1,2]", "launcher.workers=2")


def bare(folder: Path) -> list[str]:
    """What `make status RESULTS=folder` gives: the folder, and defaults of another data set and profile."""
    return given_to_make({"NAS_RETRAIN_RESULTS": str(folder)})


def test_all_settings_of_the_last_run_are_kept(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(*CHOSEN)
    last_run.write(settings)
    assert last_run.read(settings.results_dir) == settings
    moved = settings.results_dir.rename(tmp_path / "moved")
    assert last_run.read(moved) == settings.model_copy(update={"results_dir": moved})


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"profile": "dry"}'])
def test_settings_that_cannot_be_read_are_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / last_run.NAME).write_bytes(content)
    assert last_run.read(tmp_path) is None


def test_the_folder_is_enough(make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    settings = make_settings(*CHOSEN)
    last_run.write(settings)
    status.status(settings)
    told = capsys.readouterr()
    status.status_of_folder(compose(*bare(settings.results_dir)))
    assert capsys.readouterr() == told
    assert "initialisation_only" in told.out
    assert "note: " not in told.err


def test_trainings_of_local_workers_are_running(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(*CHOSEN)
    for working, running in ((False, [0, 0]), (True, [2, 0])):
        if working:
            with locks.exclusive(settings.results_dir):
                status.status(settings)
        else:
            status.status(settings)
        header, *rows = (line.split() for line in capsys.readouterr().out.splitlines()[:3])
        place = header.index("running") - 1  # "data set" is two words
        assert [int(row[place]) for row in rows] == running


def test_a_folder_without_a_run_names_those_that_have_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = compose("dataset=digits", f"results_dir={tmp_path}/results/201/digits")
    last_run.write(other)
    status.status_of_folder(compose(*bare(tmp_path / "results" / "201" / "cifar10")))
    assert capsys.readouterr().out.endswith(f"  RESULTS={tmp_path}/results/201/digits\n")


def test_a_folder_that_cannot_be_written_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert describe.unwritable(tmp_path / "new" / "folder") == []
    (told,) = describe.unwritable(tmp_path / "file" / "below")
    assert told.startswith(f"{tmp_path}/file is not a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
