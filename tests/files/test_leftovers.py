"""What killed processes leave is removed, and nothing that a living one still writes."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

from nas_retrain.files.atomic import replacing
from nas_retrain.files.leftovers import LONGEST_WRITE_SECONDS, remove_leftovers, temporary_prefix
from nas_retrain.files.processes import this_process

NAMES = ["runs.parquet", "tables/noise.csv", "figures/gain.png", "report.html", "checkpoints/a-1-2-c.pt", "no suffix"]


def write_forever(folder: Path, connection: Connection) -> None:
    for name in NAMES:
        context = replacing(folder / name)
        context.__enter__().write_text("half")
        kept.append(context)
    next(iter(folder.glob(".runs*"))).with_suffix(".folder").mkdir()
    connection.send("written")
    connection.recv()


kept: list[object] = []


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if "~" in path.name]


def test_temporaries_stay_while_their_writer_lives_and_go_when_it_is_dead(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=write_forever, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "written"
    others = [tmp_path / ".lock", tmp_path / ".hidden~file~abcdefgh", tmp_path / "tables" / "noise~1.csv"]
    for path in others:
        path.write_text("not a temporary")
    remove_leftovers(tmp_path)
    assert len(temporaries(tmp_path)) == len(NAMES) + 2
    process.kill()
    process.join()
    remove_leftovers(tmp_path)
    assert temporaries(tmp_path) == [tmp_path / ".hidden~file~abcdefgh"]
    assert all(path.exists() for path in others)


def test_those_of_other_hosts_and_containers_go_when_they_are_old(tmp_path: Path) -> None:
    name = this_process()
    paths = [tmp_path / f".runs.parquet~{name}~abcdefgh.parquet"]
    for other in (name.replace("@", "@other-"), name.replace("@", "1@")):
        paths += [tmp_path / f".runs.parquet~{other}~{age}.parquet" for age in ("newfiles", "oldfiles")]
    for path in paths:
        path.touch()
        if "old" in path.name:
            old = time.time() - LONGEST_WRITE_SECONDS - 60
            os.utime(path, (old, old))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(path for path in paths if "old" not in path.name)


def test_long_names_of_any_letters_leave_room_for_the_writer(tmp_path: Path) -> None:
    for name in ("x" * 200, "ü" * 100, "模" * 70):
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("whole")
            assert temporary.name.startswith(temporary_prefix(tmp_path / name))
        assert (tmp_path / name).read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 3
