"""The Makefile: what is given to it reaches programs as it is, and no shell; what it needs it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nas_retrain.commands.command_line import given_to_make

ROOT = Path(__file__).parents[1]
SETTINGS = ("BENCH", "DATASET", "PROFILE", "LAUNCHER", "SITE", "ORIGINAL", "RETRAINED", "RESULTS", "BATCH", "ARGS")
GIVEN = (*SETTINGS, "PLAN", "PYTHON", "VENV", "TORCH")
TARGETS = ("plan", "retrain", "verify", "analyze", "dry-run", "test", "install", "lint", "docs")
HOSTILE = """$(shell touch pwned) ${shell touch pwned} `touch pwned` $(touch pwned) $$(touch pwned) $(eval x:=$(shell \\
touch pwned)) ; touch pwned; " ; touch pwned; ' ; touch pwned; ' "; touch pwned & touch pwned | touch pwned
touch pwned # %.o é 日本 \\ \\$(shell touch pwned) > pwned"""
RECORDER = r"""#!/bin/sh
{ printf '%s\0' "$#" "$@"; env -0; printf '\0'; } >>calls
"""
"""Notes its arguments after their number, and its environment, which an empty line ends."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with an odd name, whose venv holds in place of Python a program that notes what it was called with."""
    folder = tmp_path_factory.mktemp("makefile") / "josé (copy) [a] {b} $c #d 'e' =f, %g"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    recorder = folder / ".venv" / "bin" / "python"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    (folder / ".venv" / ".ready").touch()
    return folder


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """make as from a terminal, whatever runs these tests."""
    of_ours = ("MAKE", "MFLAGS", "PYTEST_ADDOPTS", "NAS_RETRAIN_", *GIVEN)
    outside = {key: value for key, value in os.environ.items() if not key.startswith(of_ours)}
    return subprocess.run(
        ["make", *arguments], cwd=checkout, env=outside | environment, capture_output=True, text=True, check=False
    )


def calls(checkout: Path, *arguments: str, **environment: str) -> list[tuple[list[str], dict[str, str]]]:
    """What programs were called with."""
    noted = checkout / "calls"
    noted.unlink(missing_ok=True)
    done = make(checkout, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    found = []
    lines = iter(os.fsdecode(noted.read_bytes()).split("\0"))
    while number := next(lines):
        command = [next(lines) for _ in range(int(number))]
        outside = dict(line.split("=", 1) for line in iter(lambda: next(lines), ""))
        given = {key: value for key, value in outside.items() if key.startswith(("NAS_RETRAIN_", "PYTEST_ADDOPTS"))}
        found.append((command, given))
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variable", GIVEN)
def test_no_variable_is_run_by_make_or_a_shell(checkout: Path, variable: str, target: str) -> None:
    recorder = str(checkout / ".venv" / "bin" / "python")  # lest a real one makes a venv at a hostile path
    for arguments, environment in (
        ([f"{variable}={HOSTILE}"], {}),
        ([], {variable: HOSTILE}),
        (["-e"], {variable: HOSTILE}),
        (["-n", f"{variable}={HOSTILE}"], {}),
    ):
        make(checkout, target, *arguments, **({"PYTHON": recorder} | environment))
        assert not list(checkout.rglob("pwned"))


@pytest.mark.parametrize("target", ["plan", "dry-run", "test"])
def test_no_variable_of_the_makefile_s_own_is_run_by_make_or_a_shell(checkout: Path, target: str) -> None:
    recorder = str(checkout / ".venv" / "bin" / "python")
    own = re.findall(r"^(?:override )?([A-Z_]+) [?:]?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"GIVEN", "SETTINGS", "RUN", "STAGES"} <= set(own)
    for variable in set(own) - {*GIVEN, "SHELL"}:
        for arguments, environment in (
            ([f"{variable}={HOSTILE}"], {}),
            ([], {variable: HOSTILE}),
            (["-e"], {variable: HOSTILE}),
        ):
            make(checkout, target, *arguments, **({"PYTHON": recorder} | environment))
            assert not list(checkout.rglob("pwned")), (variable, arguments)


@hypothesis_settings(max_examples=40)
@given(
    st.sampled_from(SETTINGS),
    st.text(
        st.one_of(
            st.sampled_from("$()`;'\"\\#%&|<>{}=:, \n\t"),
            st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
        ),
        max_size=20,
    ),
)
def test_any_text_arrives_as_it_was_given(checkout: Path, variable: str, text: str) -> None:
    nothing = dict.fromkeys((f"NAS_RETRAIN_{name}" for name in SETTINGS), "")
    blank = " \t\n\r\v\f"  # which make skips before a value on its command line
    ((command, found),) = calls(checkout, "plan", f"{variable}={text}")
    assert found.pop(f"NAS_RETRAIN_{variable}").lstrip(blank) == text.lstrip(blank)
    assert (command, found | {f"NAS_RETRAIN_{variable}": ""}) == (["scripts/plan.py"], nothing)
    ((_, found),) = calls(checkout, "plan", **{variable: text})
    assert found == nothing | {f"NAS_RETRAIN_{variable}": text}


def test_pytest_gets_its_arguments_as_they_are(checkout: Path) -> None:
    arguments = "-k 'a b' tests/test_x.py"
    shared_out = "-n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder"
    *_, (command, given) = calls(checkout, "test", f"ARGS={arguments}")
    assert (command, given) == (["-m", "pytest"], {"PYTEST_ADDOPTS": f"-m 'not slow' {shared_out}  {arguments}"})
    *_, (command, given) = calls(checkout, "test-all", f"ARGS={arguments}", PYTEST_ADDOPTS="-x")
    assert (command, given) == (["-m", "pytest"], {"PYTEST_ADDOPTS": f"{shared_out} -x {arguments}"})


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["retrain"], ["scripts/retrain.py"]),
        (["retrain", "PLAN=1"], ["scripts/plan.py"]),
        (["retrain", "PLAN=0"], ["scripts/retrain.py"]),
        (["retrain", "PLAN=", "DEFAULTS="], None),
        (["verify"], ["scripts/verify.py"]),
        (["verify", "PLAN=yes"], ["scripts/plan.py", "--config-name", "verify"]),
        (["dry-run"], ["scripts/retrain.py", "profile=dry", "dataset=digits", "launcher=local"]),
        (["dry-run", "PLAN=1"], ["scripts/plan.py", "profile=dry", "dataset=digits", "launcher=local"]),
        (["bench"], ["-m", "benchmarks", "profile=dry", "dataset=digits"]),
        (["roofline"], ["scripts/roofline.py", "launcher=local"]),
        (["gpu-check"], ["scripts/gpu_check.py", "dataset=cifar10", "profile=full", "launcher=local"]),
    ],
)
def test_a_target_runs_its_script(checkout: Path, arguments: list[str], command: list[str] | None) -> None:
    if command is None:
        assert make(checkout, *arguments).returncode != 0
    else:
        assert [call for call, _ in calls(checkout, *arguments)] == [command]


def test_what_is_given_outranks_what_a_target_sets() -> None:
    environment = {"NAS_RETRAIN_PROFILE": "full", "NAS_RETRAIN_ARGS": "seeds=[1] results_dir='a b'", "PROFILE": "x"}
    assert given_to_make(environment) == ["profile=full", "seeds=[1]", "results_dir=a b"]
    assert given_to_make({"NAS_RETRAIN_BATCH": "64"}) == ["rate_table.batch_size=64"]


@pytest.mark.parametrize("variable", ["dataset", "DATASETS", "RESULTS_DIR"])
def test_a_variable_that_there_is_not_is_an_error_that_names_those_that_there_are(
    checkout: Path, variable: str
) -> None:
    done = make(checkout, "plan", f"{variable}=$(shell touch pwned)")
    assert done.returncode != 0
    assert f"There is no variable {variable}: there are BENCH DATASET" in done.stderr
    assert not list(checkout.rglob("pwned"))


@pytest.mark.parametrize("old", ["a program that says no", "no program"])
def test_a_python_that_is_too_old_or_missing_is_told_at_once(checkout: Path, tmp_path: Path, old: str) -> None:
    python = tmp_path / "python 3.9"
    if old != "no program":
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
    done = make(checkout, "plan", f"PYTHON={python}", f"VENV={tmp_path / 'new venv'}")
    assert done.returncode != 0
    assert f"needs Python 3.11 or later, and {python} is none" in done.stderr
    assert not (tmp_path / "new venv").exists()


def test_the_venv_is_made_again_when_the_locked_packages_change(checkout: Path) -> None:
    ready, locked = checkout / ".venv" / ".ready", checkout / "requirements.txt"
    assert calls(checkout, "plan")[0][0] == ["scripts/plan.py"]
    os.utime(locked, (ready.stat().st_mtime + 10,) * 2)
    done = make(checkout, "plan", "PYTHON=nothing-of-this-name")
    assert "nothing-of-this-name is none" in done.stderr
    os.utime(locked, (0, 0))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch's wheels never have CUDA")
def test_the_install_without_cuda_leaves_out_nothing_else_and_is_remembered(checkout: Path) -> None:
    ready, python = checkout / ".venv" / ".ready", f"PYTHON={checkout / '.venv' / 'bin' / 'python'}"

    def installed(*arguments: str) -> list[str]:
        """What pip was told beside the package itself."""
        pip = [call for call, _ in calls(checkout, "plan", python, *arguments) if call[:3] == ["-m", "pip", "install"]]
        return [" ".join(call[3:]) for call in pip[:1]]

    try:
        index = "--extra-index-url https://download.pytorch.org/whl/cpu"
        assert installed("TORCH=cpu") == [f"{index} --requirement .venv/requirements-cpu.txt"]
        locked, without = (
            set((checkout / name).read_text().splitlines())
            for name in ("requirements.txt", ".venv/requirements-cpu.txt")
        )
        assert {line.removesuffix("+cpu") for line in without} < locked
        assert {line.split("==")[0] for line in without if line.endswith("+cpu")} == {"torch", "torchvision"}
        left_out = {line.split("==")[0] for line in locked - {line.removesuffix("+cpu") for line in without}}
        assert {"nvidia-nccl-cu13", "triton"} <= left_out
        assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in left_out)
        assert installed() == installed("TORCH=cpu") == []
        os.utime(checkout / "requirements.txt", (ready.stat().st_mtime + 10,) * 2)
        assert installed() == [f"{index} --requirement .venv/requirements-cpu.txt"]
        assert installed("TORCH=cuda") == ["--requirement requirements.txt"]
        assert "TORCH is cpu or cuda, not rocm" in make(checkout, "plan", python, "TORCH=rocm").stderr
    finally:
        os.utime(checkout / "requirements.txt", (0, 0))
        ready.write_text("")


def test_help_lists_the_targets_and_runs_nothing(checkout: Path) -> None:
    done = make(checkout)
    for word in ("make dry-run", "make test-all", "make export", "ARGS"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_dry_run_in_a_checkout_with_an_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "josé (copy) ${x} [a], =b #c &d 'e' ~"
    for part in ("configs", "scripts", "slurm", "src"):
        shutil.copytree(ROOT / part, folder / part)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    packages = [folder / "src", *(path for path in sys.path if path.endswith("-packages"))]
    inside = sysconfig.get_path("purelib", "venv", {"base": str(folder / ".venv")})
    (Path(inside) / "packages.pth").write_text("".join(f"{path}\n" for path in packages), encoding="utf-8")
    (folder / ".venv" / ".ready").touch()
    small = "cells=sample:2 seeds=777 training.epochs=1 base_rate.points=2 base_rate.seeds=777"
    made = make(folder, "dry-run", f"ARGS={small} results_dir='größe, [1]/${{y}}'")
    assert made.returncode == 0, made.stderr
    assert (folder / "größe, [1]" / "${y}" / "runs.parquet").exists()
    assert not (folder / "results").exists()
