"""SLURM's commands: what the environment says is not heeded, what they print is not trusted, and none is waited for
for ever. Fake commands stand for SLURM here; test_slurm.py has a real one."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.commands import retrain, status
from nas_retrain.errors import NasRetrainError
from nas_retrain.execution import slurm, slurm_commands
from nas_retrain.settings import Settings, SlurmSettings
from tests import fake_slurm
from tests.conftest import HOSTILE, MakeSettings

CHOSEN = ("launcher=slurm", "launcher.device=cuda", "cells=sample:4", "seeds=[1,2]", "dataset.base_rate=0.3")
NAME = "nas-retrain-training-0a1b2c3d"


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fake commands, first on the PATH."""
    folder = tmp_path / "fakes"
    fake_slurm.install(folder)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def misbehave(fakes: Path, monkeypatch: pytest.MonkeyPatch, **how: str) -> None:
    monkeypatch.setattr(slurm_commands, "ANSWER_SECONDS", 1)
    for command, behaviour in how.items():
        (fakes / "state" / command).write_text(behaviour)


# The environment


def test_the_hostile_environment_is_large() -> None:
    assert len(HOSTILE) >= 50


@given(
    prefix=st.sampled_from(["SLURM", "SLURMD", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SCANCEL", "SINFO", "SCONTROL"]),
    rest=st.text(st.characters(exclude_characters="=\0", exclude_categories=["Cs"]), max_size=20),
    value=st.text(max_size=5),
)
def test_no_variable_of_slurm_reaches_a_command_save_those_that_say_where_it_is(
    prefix: str, rest: str, value: str
) -> None:
    kept = {
        "SLURM_CONF": "/x",
        "SLURM_CONF_SERVER": "y:1",
        "SLURM_JWT": "z",
        "PATH": "/bin",
        "MY_SLURM_NOTE": "",
        "S": "",
    }
    name = f"{prefix}_{rest}"
    assert slurm_commands.clean(kept | ({name: value} if name not in kept else {})) == kept


def told_and_submitted(
    settings: Settings, fakes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[dict[str, object]]]:
    """All that a plan, a submission, another one, a status and a cancellation say, and the jobs before the last."""
    counter = itertools.count()
    monkeypatch.setattr(secrets, "token_hex", lambda _: f"{next(counter):08}")
    retrain.print_plan(settings)
    retrain.retrain(settings)
    retrain.retrain(settings)
    status.status(settings)
    submitted = fake_slurm.jobs(fakes)
    retrain.cancel(settings)
    assert fake_slurm.jobs(fakes) == []
    (fakes / "state" / "jobs.json").unlink()
    told = capsys.readouterr().out
    return told, submitted


def test_a_plan_a_submission_and_a_status_are_the_same_whatever_the_environment_says(
    make_settings: MakeSettings,
    fakes: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings(*CHOSEN, "launcher.trainings_per_task=4")
    monkeypatch.setenv("SLURM_CONF", "/etc/somewhere/slurm.conf")
    for name in HOSTILE:
        monkeypatch.delenv(name, raising=False)
    clean = told_and_submitted(settings, fakes, capsys, monkeypatch)
    shutil.rmtree(settings.results_dir)
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    hostile = told_and_submitted(settings, fakes, capsys, monkeypatch)

    def plain(jobs: list[dict[str, object]]) -> str:
        return re.sub(r"[0-9a-f]{32}", "", json.dumps(jobs))

    assert "nothing was submitted" in clean[0]
    assert hostile[0] == clean[0]
    assert plain(hostile[1]) == plain(clean[1])
    for command in ("sbatch", "squeue", "scancel", "scontrol"):
        made = fake_slurm.calls(fakes, command)
        assert made
        assert all(call["environment"] == {"SLURM_CONF": "/etc/somewhere/slurm.conf"} for call in made)


@pytest.mark.parametrize("partition", ["hidden", "test", None])
def test_jobs_are_found_in_whatever_partition_they_are(
    make_settings: MakeSettings, fakes: Path, partition: str | None
) -> None:
    settings = make_settings(*CHOSEN, *([f"launcher.partition={partition}"] if partition else []))
    retrain.retrain(settings)
    assert len(slurm.queue(settings.results_dir).tasks) == 2
    assert len(fake_slurm.jobs(fakes)) == 2


# What is asked for


@pytest.mark.parametrize("site", [{}, {"exclusive": True}, {"hint": "multithread"}, {"threads-per-core": "2"}])
def test_a_submission_asks_for_one_task_in_the_script_and_of_srun(
    make_settings: MakeSettings, fakes: Path, site: dict[str, str | bool]
) -> None:
    settings = make_settings(*CHOSEN, "launcher.gpus=0", "launcher.cpus=3", "launcher.trainings_per_task=4")
    launcher = settings.launcher.model_copy(update={"sbatch": site | {"requeue": False}})
    retrain.retrain(settings.model_copy(update={"launcher": launcher}))
    assert len(fake_slurm.jobs(fakes)) == 3  # an array of three tasks, the fourth alone, and the analysis
    for job in fake_slurm.jobs(fakes):
        cpus = "1" if "analysis" in job["options"]["job-name"] else "3"
        options = job["options"]
        assert (options["ntasks"], options["nodes"], options["cpus-per-task"]) == ("1", "1", cpus)
        assert "requeue" not in options
        (srun,) = (line for line in job["script"].splitlines() if line.startswith("srun "))
        for option in ("--ntasks=1", "--nodes=1", f"--cpus-per-task={cpus}", "--export=ALL"):
            assert f" {option} " in srun


# What squeue prints

ODD = [
    "",
    "Welcome to the cluster! | maintenance | on | friday",
    "CLUSTER: one",
    "JOBID|TASK|STATE|NAME",
    f"12|0|RUNNING|{NAME}|",
    f"12|0|RUNNING|x|{NAME}",
    f"|0|RUNNING|{NAME}",
    f"12|0|running now|{NAME}",
    f"12|0|RUNNING|{NAME} ",
    f"12|0|RUNNING|{NAME}x",
    f"12|0|RUNNING\x85|{NAME}",
    f"12||RUNNING|{NAME}",
    f"{'9' * 5000}|0|RUNNING|{NAME}",
    f"12|{'9' * 5000}|RUNNING|{NAME}",
    f"\u0661\u0662|0|RUNNING|{NAME}",
    "13|0|RUNNING|another's\u2028job",
    NAME,
]


@given(
    noise=st.lists(
        st.one_of(st.sampled_from([line.encode() for line in ODD]), st.binary(max_size=60)), max_size=12
    ).map(b"\n".join)
)
def test_odd_lines_of_the_queue_never_crash_and_are_never_taken_for_ours(noise: bytes) -> None:
    ours = f"12|0|RUNNING|{NAME}\n14|N/A|PENDING|nas-retrain-analysis-1\n".encode()
    printed = (noise + b"\n" + ours + noise).decode(errors="replace")
    found = slurm_commands.listed(printed, {NAME, "nas-retrain-analysis-1"})
    assert found == [
        slurm_commands.Listed("12", 0, "RUNNING", NAME),
        slurm_commands.Listed("14", 0, "PENDING", "nas-retrain-analysis-1"),
    ]


def test_a_name_with_a_line_end_of_unicode_is_one_line() -> None:
    for end in ("\x0b", "\x0c", "\x1c", "\x1d", "\x85", "\u2028", "\u2029", "\r"):
        assert slurm_commands.listed(f"9|0|RUNNING|x{end}9|0|RUNNING|{NAME}\n", {NAME}) == []


def test_banners_and_bytes_of_any_kind_change_no_submission_and_no_status(
    make_settings: MakeSettings, fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(*CHOSEN)
    (fakes / "state" / "noise").write_bytes(b"\xff\xfe|0|RUNNING|\x80\n" + "\n".join(ODD).encode() + b"\n\0\n")
    (fakes / "state" / "sbatch").write_text("banner")
    retrain.retrain(settings)
    told = capsys.readouterr().out
    assert [f"job {job['job']} " in told for job in fake_slurm.jobs(fakes)] == [True, True]
    assert "99999" not in told
    retrain.retrain(settings)
    assert "nothing was submitted" in capsys.readouterr().out
    status.status(settings)
    assert "0 task(s) of SLURM running, 2 queued (jobs 100, 101)" in capsys.readouterr().out


# Commands that fail or never answer


@pytest.mark.parametrize("how", ["hang after", "fail after"])
def test_a_submission_that_was_accepted_though_sbatch_did_not_say_so_is_known_and_complete(
    make_settings: MakeSettings,
    fakes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    misbehave(fakes, monkeypatch, sbatch=how)
    settings = make_settings(*CHOSEN, "launcher.trainings_per_task=8")
    retrain.retrain(settings)
    assert re.search(r"job 100 +training +2 task", capsys.readouterr().out)
    jobs = settings.results_dir / "jobs"
    assert {path.name for path in jobs.glob("*/*_submitted.pkl")} == {
        "100_0_submitted.pkl",
        "100_1_submitted.pkl",
        "101_submitted.pkl",
    }
    retrain.retrain(settings)
    assert len(fake_slurm.jobs(fakes)) == 2


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"sbatch": "hang"}, r"sbatch did not answer within 1 seconds.*make retrain again"),
        ({"sbatch": "fail"}, r"sbatch refused: .*Socket timed out.*Check partition"),
        ({"sbatch": "hang after", "squeue": "hang"}, r"sbatch did not answer.*is unknown: .*squeue did not answer"),
        ({"sbatch": "fail", "squeue": "fail"}, r"is unknown: SLURM's squeue failed"),
    ],
)
def test_a_submission_that_was_not_accepted_is_told_and_leaves_the_folder_free(
    make_settings: MakeSettings,
    fakes: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, str],
    told: str,
) -> None:
    misbehave(fakes, monkeypatch, **how)
    settings = make_settings(*CHOSEN)
    with pytest.raises(NasRetrainError, match=told):
        retrain.retrain(settings)
    for command in how:
        (fakes / "state" / command).unlink()
    retrain.retrain(settings)
    names = [job["options"]["job-name"] for job in fake_slurm.jobs(fakes)]
    assert sorted(name.split("-")[2] for name in names) == ["analysis", "training"]


@pytest.mark.parametrize("how", ["hang after", "fail after", "hang", "fail"])
def test_a_cancellation_is_believed_by_what_is_left_in_the_queue(
    make_settings: MakeSettings, fakes: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    settings = make_settings(*CHOSEN)
    retrain.retrain(settings)
    misbehave(fakes, monkeypatch, scancel=how)
    if how.endswith("after"):
        retrain.cancel(settings)
        assert fake_slurm.jobs(fakes) == []
    else:
        with pytest.raises(NasRetrainError, match=r"scancel .*Still there: job\(s\) 100, 101"):
            retrain.cancel(settings)


@pytest.mark.parametrize("silent", ["absent", "hang", "fail", "not executable"])
def test_where_slurm_does_not_answer_status_tells_what_is_stored_and_retrain_takes_nothing_for_gone(
    make_settings: MakeSettings,
    tmp_path: Path,
    fakes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    silent: str,
) -> None:
    settings = make_settings(*CHOSEN)
    retrain.retrain(settings)
    (settings.results_dir.parent / "beside").mkdir()
    shutil.copytree(settings.results_dir, settings.results_dir.parent / "beside", dirs_exist_ok=True)
    if silent == "absent":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif silent == "not executable":
        (fakes / "squeue").write_text("no script\n")
        monkeypatch.setenv("PATH", str(fakes))
    else:
        misbehave(fakes, monkeypatch, squeue=silent)
    capsys.readouterr()
    status.status(settings)
    told = capsys.readouterr().out
    assert re.search(r"digits +benchmark +8 +0 +0 +0 +\? +\? +0 +8", told)
    assert "whether SLURM works on it is unknown. " in told
    assert "squeue" in told
    assert "1 task(s) have trainings undone and may be on their way or over" in told
    here = make_settings("cells=sample:4", "seeds=[1,2]", "dataset.base_rate=0.3")
    with pytest.raises(NasRetrainError, match=r"given to SLURM.*unknown.*squeue.*remove .*jobs"):
        retrain.retrain(here)
    with pytest.raises(NasRetrainError, match=r"s(queue|info|control)"):
        retrain.retrain(settings)


def test_a_submission_whose_units_cannot_be_read_is_named_and_not_submitted_again_while_it_is_on_its_way(
    make_settings: MakeSettings, fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(*CHOSEN)
    retrain.retrain(settings)
    (units,) = settings.results_dir.glob("jobs/nas-retrain-training-*/units.json")
    for contents in (b"", b"\0\0\0\0", b"{}", b"[[1]]", b'[["a', b"\xff\xfe[]", b'"x"', b"[" * 9999):
        units.write_bytes(contents)
        with pytest.raises(NasRetrainError, match=rf"{units} cannot be read.*job 100.*scancel 100"):
            slurm.queue(settings.results_dir)
    with pytest.raises(NasRetrainError, match="cannot be read"):
        retrain.retrain(settings)
    status.status(settings)
    assert f"{units} cannot be read" in capsys.readouterr().out
    assert len(fake_slurm.jobs(fakes)) == 2
    retrain.cancel(settings)
    retrain.retrain(settings)
    assert len(fake_slurm.jobs(fakes)) == 2
    assert not units.exists()


def test_a_command_asks_the_queue_once_and_reads_each_submission_once(
    make_settings: MakeSettings, fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(*CHOSEN, "launcher.trainings_per_task=1")
    retrain.retrain(settings)
    for name in ("beside", "besides"):
        shutil.copytree(settings.results_dir, settings.results_dir.parent / name)
    read: list[Path] = []
    original = slurm._read_units
    monkeypatch.setattr(slurm, "_read_units", lambda path: read.append(path) or original(path))  # type: ignore[func-returns-value]
    for command, folders in ((status.status, 3), (retrain.retrain, 1), (retrain.print_plan, 1)):
        (fakes / "state" / "calls.jsonl").unlink()
        read.clear()
        command(settings)
        assert len(fake_slurm.calls(fakes, "squeue")) == 1
        assert len(read) == len(set(read)) == 7 * folders  # six arrays and the analysis


@pytest.mark.parametrize(("partition", "told"), [("standard", 0), ("nowhere", 1)])
def test_sbatch_is_asked_whether_it_would_refuse_a_task_and_gets_none(
    make_settings: MakeSettings, fakes: Path, partition: str, told: int
) -> None:
    launcher = make_settings("launcher=slurm", f"launcher.partition={partition}").launcher
    assert isinstance(launcher, SlurmSettings)
    refusals = slurm.refused(launcher)
    assert len(refusals) == told
    assert all("invalid partition specified: nowhere" in refusal for refusal in refusals)
    assert fake_slurm.jobs(fakes) == []
