"""The command line: versions, errors and Ctrl-C, as a person in a terminal has them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain import __version__
from nas_retrain.commands import command_line
from nas_retrain.errors import NasRetrainError
from nas_retrain.settings import Settings

ROOT = Path(__file__).parents[2]


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_every_command_can_be_loaded_and_has_a_thin_door() -> None:
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == set(command_line.COMMANDS)
    for name, command in command_line.COMMANDS.items():
        assert callable(command.load())
        assert (command_line.CONFIGS / f"{command.config}.yaml").is_file()
        assert f'run_command("{name}")' in (ROOT / "scripts" / f"{name}.py").read_text()


@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("", 2), ("retrian", 2)])
def test_the_help_has_a_line_for_each_command(
    flag: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nas-retrain", *([flag] if flag else [])])
    if code:
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        assert ended.value.code == code
    else:
        command_line.main()
    told = capsys.readouterr()
    for name, command in command_line.COMMANDS.items():
        assert f"  {name:<10}  {command.summary}\n" in (told.err if code else told.out)
    assert ("Did you mean retrain?" in told.err) == (flag == "retrian")


@pytest.mark.parametrize("arguments", [["cells", "results_dir=r/s"], ["cells", "--help"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "nas_retrain.commands.command_line", *arguments],
            stdout=gone, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (command_line.NOBODY_READS, "")


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["nas-retrain", "--version"])
    command_line.main()
    assert capsys.readouterr().out.startswith(f"nas-retrain {__version__}")


@pytest.mark.parametrize(("script", "module"), [("plan", "torch"), ("cells", "pydantic"), ("cells", "hydra")])
def test_an_interrupt_while_modules_load_is_quiet(script: str, module: str, tmp_path: Path) -> None:
    interrupting = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell's background hands on is deaf to it\n"
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    (tmp_path / f"{module}.py").write_text(interrupting)
    done = python(ROOT / "scripts" / f"{script}.py", PYTHONPATH=str(tmp_path), PATH="")  # where no SLURM is
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interrupt_of_a_stage_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["plan.py", "dataset=digits"])
    with pytest.raises(SystemExit) as ended:
        command_line.run(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments", [["training.epoch=3"], ["bench=none"], ["cells"], ["--config-name", "x"], ["recipe=[a"], ["seeds=x"]]
)
def test_a_mistake_ends_with_2_and_one_message(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Settings] = []
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.run(ran.append)
    assert ended.value.code == 2
    assert not ran
    told = capsys.readouterr().err
    assert told.count("nas-retrain: ") == 1
    assert "Traceback" not in told


def test_a_warning_is_a_note_without_a_line_of_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = warnings.showwarning

    def stage(_: Settings) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("mine.csv: its columns are separated by tabs.", stacklevel=1)
            warnings.warn("soon gone", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(sys, "argv", ["plan.py"])
    command_line.run(stage)
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "note: mine.csv: its columns are separated by tabs."
    assert others[0].startswith("note: ")
    assert "DeprecationWarning: soon gone" in others[0]
    assert warnings.showwarning is shown


def test_a_command_is_found_by_the_name_of_make_s_target(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(command_line, "run_command", ran.append)
    for name in ("own-rates", "own_rates", "gpu-check"):
        monkeypatch.setattr(sys, "argv", ["nas-retrain", name, "bench=201"])
        command_line.main()
    assert ran == ["own_rates", "own_rates", "gpu_check"]


@pytest.mark.parametrize("arguments", ["a='b", 'a="b', "a=b\\"])
def test_an_open_quote_in_args_is_told(arguments: str) -> None:
    with pytest.raises(NasRetrainError, match=r"^ARGS=.*Quote as in a shell"):
        command_line.given_to_make({"NAS_RETRAIN_ARGS": arguments})


def test_a_stage_runs_once_for_each_setting_of_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[Settings] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plan.py", "dataset=digits", "-m"])
    monkeypatch.setenv("NAS_RETRAIN_ARGS", "seeds=[1],[2] cells=3,sample:4")
    command_line.run(ran.append)
    assert [(one.seeds, one.cells) for one in ran] == [
        ((1,), (3,)),
        ((1,), "sample:4"),
        ((2,), (3,)),
        ((2,), "sample:4"),
    ]
    assert not list(tmp_path.iterdir())


@given(st.dictionaries(st.sampled_from(["ORIGINAL", "RETRAINED"]), st.text(min_size=1)))
def test_paths_given_to_make_are_not_split(given_paths: dict[str, str]) -> None:
    environment = {f"NAS_RETRAIN_{name}": path for name, path in given_paths.items()}
    expected = [f"{name.lower()}={given_paths[name]}" for name in ("ORIGINAL", "RETRAINED") if name in given_paths]
    assert command_line.given_to_make(environment) == expected


@pytest.mark.parametrize("name", ["josé (copy)", "a, ${b} [c] {d} =e #f &g 'h' \"i\" \\ %41 日本"])
def test_a_checkout_may_have_any_name(name: str, tmp_path: Path) -> None:
    for part in ("src", "configs", "scripts", "slurm"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / part).symlink_to(ROOT / part)
    (tmp_path / name / "src").unlink()
    (tmp_path / name / "src").mkdir()
    for source in (ROOT / "src").rglob("*.py"):
        copy = tmp_path / name / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    code = (
        "from nas_retrain.commands import command_line\n"
        "print(command_line.compose('site=cpu_nodes', 'launcher=slurm').results_dir, command_line.ROOT)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / name, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path / name / "src"), "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == f"results/201/cifar10 {tmp_path / name}", done.stderr
