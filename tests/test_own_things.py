"""What a user brings along, used from a folder that is no checkout, with the installed wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from tests.strategies import NAS_BENCH_201

ROOT = Path(__file__).parents[1]
TINY = [
    "profile=dry", "launcher=local", "launcher.device=cpu", "launcher.workers=1", "cells=sample:3", "seeds=[1,2]",
    "training.epochs=1", "base_rate.points=2", "base_rate.seeds=1", "network.channels=4", "analysis.null_draws=20",
    "analysis.bootstrap_draws=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program nas-retrain, installed from the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    inside = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "venv")}))
    packages = [path for path in sys.path if path.endswith("-packages")]  # all but the project itself
    (inside / "packages.pth").write_text("".join(f"{path}\n" for path in packages), encoding="utf-8")
    python, wheel = folder / "venv" / "bin" / "python", next(folder.glob("*.whl"))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )
    return folder / "venv" / "bin" / "nas-retrain"


def run(program: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "NAS_RETRAIN_"))}
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=outside, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_a_recipe_and_a_data_set_from_a_folder_of_one_s_own(installed: Path, tmp_path: Path) -> None:
    digits = load_digits()
    images, labels = (15 * digits.images).astype(np.uint8), digits.target
    for group in ("recipe", "dataset"):
        (tmp_path / group).mkdir()
    np.savez(
        tmp_path / "dataset" / "scans.npz",
        train_images=images[:200], train_labels=labels[:200], test_images=images[200:500], test_labels=labels[200:500],
    )  # fmt: skip
    (tmp_path / "dataset" / "scans.yaml").write_text("source: scans.npz\npadding: 1\n")
    (tmp_path / "recipe" / "gentle.yaml").write_text("defaults: [benchmark]\nlearning_rate: 0.02\n")
    (tmp_path / "recipe" / "listed.yaml").write_text("defaults: [benchmark]\nlearning_rate: rates.csv\n")
    rates = pd.DataFrame({"index": range(15625), "network_class": NAS_BENCH_201.training_classes(None)})
    rates["learning_rate"] = (1 + rates["network_class"] % 7) / 100
    rates.to_csv(tmp_path / "recipe" / "rates.csv", index=False)
    (tmp_path / "nas_retrain.yaml").write_text(
        "dataset: scans\nrecipe: [benchmark, gentle, listed]\nresults_dir: found\n"
    )
    done = run(installed, tmp_path, "retrain", *TINY)
    runs = pd.read_parquet(tmp_path / "found" / "runs.parquet")
    assert set(runs["dataset"]) == {"scans"}
    of_recipe = dict(iter(runs.groupby("recipe")))
    assert {name: set(of_recipe[name]["learning_rate"]) for name in ("benchmark", "gentle")} == {
        "benchmark": {0.1}, "gentle": {0.02},
    }  # fmt: skip
    assert (of_recipe["listed"]["learning_rate"] == (1 + of_recipe["listed"]["network_class"] % 7) / 100).all()
    assert len(runs) == 3 * 3 * 2
    assert "found/report" in done.stdout
    assert run(installed, tmp_path, "plan", *TINY).stdout.count("0 to do") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"nas_retrain.yaml", "recipe", "dataset", "found"}


@pytest.mark.slow
def test_a_search_algorithm_of_one_s_own(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "cells", "results_dir=here/201")
    cells = pd.read_csv(tmp_path / "here" / "cells.csv")
    for name, seed in (("one", 1), ("other", 2)):
        accuracy = np.random.default_rng(seed).uniform(80, 90, len(cells))
        cells[["index", "arch"]].assign(accuracy=accuracy).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "mine.py").write_text(
        "def first_cells(space, generator):\n"
        "    asked = iter(range(space.cells))\n"
        "    return (lambda: next(asked)), (lambda cell, accuracy: None)\n"
    )
    done = run(
        installed, tmp_path, "algorithms", "original=one.csv", "retrained=other.csv", "results_dir=here",
        "algorithms.others=mine.py:first_cells", "algorithms.searches=2", "algorithms.queries=12",
        "algorithms.null_draws=2", "algorithms.bootstrap_draws=20",
    )  # fmt: skip
    folder = tmp_path / "here" / "algorithms" / "one_to_other"
    assert "first_cells" in set(pd.read_csv(folder / "tables" / "ranking.csv")["algorithm"])
    assert (folder / "report.html").is_file()
    assert "here/algorithms/one_to_other/report" in done.stdout
