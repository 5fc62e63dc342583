"""MPS, with a stand-in for NVIDIA's program that notes what it is asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import mps
from nas_retrain.execution import workers as launch
from nas_retrain.settings import Settings
from tests.conftest import MakeSettings
from tests.execution.test_device_faults import Machine, run

STAND_IN = """#!/bin/sh
pipes="${CUDA_MPS_PIPE_DIRECTORY:-$FOLDER/usual}"
if [ "$1" = -d ]; then
  echo "start $pipes $CUDA_MPS_LOG_DIRECTORY ${CUDA_VISIBLE_DEVICES-none}" >>"$FOLDER/calls"
  if [ -e "$FOLDER/forbidden" ]; then
    echo "[Control] Another user has the GPU" >"$CUDA_MPS_LOG_DIRECTORY/control.log"
    exit 1
  fi
  sleep 60 & # with all that it inherits, as a daemon
  echo $! >"$pipes/daemon"
  exit
fi
read -r command
test -e "$pipes/daemon" || exit 1
case $command in
  quit*)
    echo "$command of $pipes" >>"$FOLDER/calls"
    kill "$(cat "$pipes/daemon")"
    rm "$pipes/daemon" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in notes what it is asked. In its folder, "forbidden" makes it fail, and "usual" is where it
    looks for a daemon's pipes if it is not told."""
    folder = tmp_path / "stand-in"
    (folder / "usual").mkdir(parents=True)
    program = folder / mps.CONTROL
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for name in (mps.PIPES, mps.LOGS):
        monkeypatch.delenv(name, raising=False)
    return folder / "calls"


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings("cells=sample:4", "seeds=[1]", "recipe=[benchmark]")


def seen_by_workers(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The folder of pipes that each worker inherits, once they start."""
    seen: list[str | None] = []
    start = launch._Run._start

    def note(self: launch._Run, place: launch.Place) -> None:
        seen.append(os.environ.get(mps.PIPES))
        start(self, place)

    monkeypatch.setattr(launch._Run, "_start", note)
    return seen


def test_workers_that_share_a_gpu_have_a_daemon_of_their_own_which_ends_with_them(
    settings: Settings, calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = seen_by_workers(monkeypatch)
    assert run(settings, Machine({}, {}), gpus=1, workers=2).recorded == 4
    (pipes,) = set(seen)
    assert pipes is not None
    logs = pipes.replace("pipes", "logs")
    assert calls.read_text().splitlines() == [f"start {pipes} {logs} none", f"quit -t 10 of {pipes}"]
    assert not Path(pipes).exists()
    assert not {mps.PIPES, mps.LOGS} & os.environ.keys()
    assert "MPS" not in capsys.readouterr().err


def test_it_ends_where_a_run_ends_by_an_error(settings: Settings, calls: Path) -> None:
    with pytest.raises(NasRetrainError, match="No worker process is left"):
        run(settings, Machine({"cuda:0": ["unfit"] * 9}, {}), gpus=1, workers=2)
    assert calls.read_text().count("quit") == 1


def test_a_daemon_that_is_there_already_is_used_and_left(
    settings: Settings, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (calls.parent / "usual/daemon").write_text("")
    seen = seen_by_workers(monkeypatch)
    assert run(settings, Machine({}, {}), gpus=1, workers=2).recorded == 4
    assert set(seen) == {None}
    assert not calls.exists()
    assert (calls.parent / "usual/daemon").exists()


def test_a_gpu_that_is_not_shared_needs_none(settings: Settings, calls: Path) -> None:
    assert run(settings, Machine({}, {}), gpus=2, workers=2).recorded == 4
    assert not calls.exists()


def test_without_it_a_run_says_so_and_goes_on(
    settings: Settings, calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (calls.parent / "forbidden").touch()
    assert run(settings, Machine({}, {}), gpus=1, workers=2).recorded == 4
    told = capsys.readouterr().err
    assert "note: 2 workers share a GPU and take turns, since MPS could not be had" in told
    assert "nvidia-cuda-mps-control -d failed: exit code 1; [Control] Another user has the GPU" in told
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    again = settings.model_copy(update={"results_dir": settings.results_dir.parent / "again"})
    assert run(again, Machine({}, {}), gpus=1, workers=2).recorded == 4
    assert "there is no nvidia-cuda-mps-control on this machine" in capsys.readouterr().err
