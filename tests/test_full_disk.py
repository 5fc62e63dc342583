"""On a full disk, whatever is being written, a run ends with one error, and what was written before is kept."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from nas_retrain.trainings.store import RunWriter
from tests.trainings.test_store import a_record

ROOT = Path(__file__).parents[1]

WRITES = """
    import json, os, resource, signal, sys
    from pathlib import Path
    import numpy as np, pandas as pd, torch
    from matplotlib.figure import Figure
    from tqdm import tqdm
    from nas_retrain.commands.command_line import compose
    from nas_retrain.errors import NasRetrainError
    from nas_retrain.execution import checkpoints, workers
    from nas_retrain.files import locks
    from nas_retrain.plan import claims, plan, rate_search
    from nas_retrain.reports import figures
    from nas_retrain.reports.tables import write_tables
    from nas_retrain.trainings import store
    from tests.trainings.test_store import a_record

    folder = Path(sys.argv[1])

    def attempt(how):
        settings = compose(
            "dataset=digits", "profile=dry", "launcher=local", "cells=sample:1", "dataset.base_rate=0.1",
            f"results_dir={folder}",
        )
        (training, *_) = plan.recipe_trainings(settings, 0.1)
        search = rate_search.GridSearch((rate_search.GridPoint(0.1, (1.0,)), rate_search.GridPoint(0.2, (2.0,))))
        figure = Figure()
        figure.add_subplot().plot([1, 2])
        writer = store.RunWriter(folder / "runs", "local")
        if how != "full":
            claims.claim_results_folder(settings)
            writer.append(a_record(1))
        run = workers._Run([(training,)], {training.key}, settings, "local", writer, tqdm(disable=True))
        (folder / "checkpoints").mkdir(exist_ok=True)

        def lock():
            with locks.exclusive(folder):
                pass

        def checkpoint():
            state = checkpoints.State(("a",), {"w": torch.ones(9)}, [torch.ones(9)], checkpoints.Progress.start(1))
            with checkpoints.kept_at(folder / "checkpoints" / "a.pt") as kept:
                kept.save(state)

        writes = {
            "lock": lock,
            "checkpoint": checkpoint,
            "record": lambda: writer.append(a_record(2)),
            "log of failures": lambda: run._failed((training,), "an error"),
            "table of records": lambda: store.merge(folder),
            "table": lambda: write_tables({"noise": pd.DataFrame({"a": [1.5]})}, folder),
            "figure": lambda: figures.save(figure, folder / "figures", "gain"),
            "base rate": lambda: rate_search.write_search(search, folder, "base_rate"),
            "settings": lambda: claims.claim_results_folder(settings),
        }
        if how == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        told = {}
        for name, write in writes.items():
            try:
                write()
                told[name] = "written"
            except NasRetrainError as error:
                told[name] = str(error)
        print(json.dumps(told))

    # One process loads all this, and forks one for each attempt that it is asked for.
    for how in map(str.strip, sys.stdin):
        if os.fork() == 0:
            attempt(how)
            sys.stdout.flush()
            os._exit(0)
        os.wait()
"""


def attempt(process: subprocess.Popen[str], how: str) -> dict[str, str]:
    """What comes of writing each kind of file, in a process that may not write a byte to a file if `how` is "full": the
    system refuses that in the same way as on a full disk."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(how, file=process.stdin, flush=True)
    told: dict[str, str] = json.loads(process.stdout.readline())
    return told


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_every_kind_of_file_that_cannot_be_written_is_one_error_and_the_old_one_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WRITES), str(tmp_path / "results")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:
        written = attempt(process, "empty")
        assert set(written.values()) == {"written"}
        with RunWriter(tmp_path / "results" / "runs", "other") as writer:
            writer.append(a_record(3))  # which the table lacks
        before = contents(tmp_path / "results")
        told = attempt(process, "full")
    assert process.returncode == 0
    assert told.keys() == written.keys()
    for name, message in told.items():
        if name != "settings":  # they stand there already
            assert message.startswith("Cannot write "), name
            assert "full" in message, name
    assert contents(tmp_path / "results") == before
