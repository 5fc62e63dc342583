"""What builds the project elsewhere: the container, the conda environment and the workflow name what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_container_copies_what_the_install_and_the_targets_read() -> None:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert [step for step, _ in steps[:3]] == ["ARG", "FROM", "ARG"]
    assert {step for step, _ in steps} == {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    declared = {rest.split("=")[0] for step, rest in steps if step == "ARG"}
    assert set(re.findall(r"\$\{(\w+)\}", text)) == declared == {"BASE", "TORCH"}
    copied = [source for step, rest in steps if step == "COPY" for source in rest.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {PROJECT["project"]["readme"], *build["packages"], *build["force-include"]}
    run = re.findall(r"\$\(RUN\) (?:-m )?(\w+)", (ROOT / "Makefile").read_text())
    needed |= {name for name in run if (ROOT / name).is_dir() and name != "tests"}
    assert {path.split("/")[0] for path in needed} <= set(copied)
    assert {"Makefile", "pyproject.toml", "requirements.txt"} <= set(copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not set(copied) & set(ignored)


def test_the_conda_environment_has_the_python_and_the_packages_of_the_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"}
    *packages, pip = environment["dependencies"]
    (python,) = (package for package in packages if package.startswith("python"))
    assert python.startswith(f"python{PROJECT['project']['requires-python']}")
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}
    assert (ROOT / "requirements.txt").exists()


def test_the_workflow_runs_what_ci_runs_on_every_python() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert "${{ matrix.python }}" in job["container"]
    assert job["steps"][-1] == {"run": "bash .ci/run"}
    assert (ROOT / ".ci" / "run").exists()
