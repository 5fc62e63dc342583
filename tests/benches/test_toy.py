"""A benchmark is added as one folder and one file of settings: here one of three cells, in a copy of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nas_retrain.commands.command_line import ROOT

SPACE = '''
"""Three cells: one, two and three layers one after the other."""

from nas_retrain.benches.registry import Bench, Sizes
from nas_retrain.errors import NasRetrainError
from nas_retrain.theory.graph import CellGraph, Edge, Operation


def chain(layers: int) -> CellGraph:
    edges = [Edge(place, place + 1, Operation("layer" if place < layers else "skip")) for place in range(3)]
    return CellGraph(4, tuple(edges))


class Toy(Bench):
    names = ("toy",)
    name = title = "toy"
    size = 3
    base = chain(1)

    def arch_at(self, index: int) -> str:
        if not 0 <= index < 3:
            raise NasRetrainError(f"There is no cell {index}.")
        return "layer" + "-layer" * index

    def graph_at(self, index: int) -> CellGraph:
        self.arch_at(index)
        return chain(index + 1)

    def flops(self, graph: CellGraph, sizes: Sizes) -> int:
        inputs = sizes.image_channels * sizes.image_size**2
        return sizes.channels * (inputs + len(graph.layers) * sizes.channels + sizes.classes)

    parameters = flops


BENCH = Toy
'''

NETWORK = '''
"""Fully connected layers."""

import torch
from torch import Tensor, nn

from nas_retrain.benches.build import Network
from nas_retrain.benches.registry import Sizes
from nas_retrain.settings import Settings
from nas_retrain.theory.graph import CellGraph
from nas_retrain.theory.scaling import Initialisation, in_degree_of, variance_factors


class Toy(Network):
    def __init__(self, graph: CellGraph, *, inputs: int, channels: int, classes: int, members: int = 1) -> None:
        super().__init__(graph, members=members, inputs=inputs, channels=channels, classes=classes)
        widths = [inputs, *[channels] * (len(graph.layers) + 1), classes]
        self.layers = nn.ParameterList(
            torch.empty(members * outputs, inputs) for inputs, outputs in zip(widths, widths[1:], strict=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        value = images.reshape(len(images), self.members, -1).transpose(0, 1)
        for place, weight in enumerate(self.layers):
            value = torch.relu(value) if place else value
            value = value @ weight.view(self.members, -1, weight.shape[1]).transpose(1, 2)
        return value.transpose(0, 1).flatten(1)


def build(graph: CellGraph, settings: Settings) -> Toy:
    sizes = Sizes.of(settings)
    inputs = sizes.image_channels * sizes.image_size**2
    return Toy(graph, inputs=inputs, channels=sizes.channels, classes=sizes.classes)


@torch.no_grad()
def initialise(network: Toy, initialisation: Initialisation) -> None:
    factors = variance_factors(network.graph, in_degree_of(initialisation))
    for weight, factor in zip(network.layers, [1.0, *factors.values(), 1.0], strict=True):
        weight.normal_(0.0, (factor / weight.shape[1]) ** 0.5)
'''

SETTINGS = """
bench:
  name: toy
  depth_offset: 1
  base_kernel_size: 1
network:
  channels: 16
  cells_per_stage: 1
"""

COMMANDS = """
import sys
from nas_retrain.commands import cells, export, retrain
from nas_retrain.commands.command_line import compose

if __name__ == "__main__":
    settings = compose(
        "bench=toy", "dataset=digits", "profile=dry", "launcher=local", "cells=all", "training.epochs=2", "seeds=[1]",
        "dataset.base_rate=0.1", "launcher.workers=1",
        "analysis.bootstrap_draws=20", "analysis.null_draws=20", *sys.argv[1:]
    )
    retrain.retrain(settings)
    cells.cells(settings)
    export.export(settings)
"""


@pytest.mark.slow
def test_a_folder_and_a_file_of_settings_make_a_benchmark_that_is_retrained_and_ranked(tmp_path: Path) -> None:
    for name in ("src", "configs", "scripts", "slurm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "src" / "nas_retrain" / "benches" / "toy"
    folder.mkdir()
    for name, text in (("__init__.py", ""), ("space.py", SPACE), ("network.py", NETWORK)):
        (folder / name).write_text(text)
    (tmp_path / "configs" / "bench" / "toy.yaml").write_text(SETTINGS)
    (tmp_path / "commands.py").write_text(COMMANDS)
    results = tmp_path / "results" / "toy" / "digits"
    done = subprocess.run(
        [sys.executable, "commands.py", f"results_dir={results}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    table = pd.read_csv(tmp_path / "results" / "toy" / "cells.csv")
    assert table["arch"].tolist() == ["layer", "layer-layer", "layer-layer-layer"]
    assert table["learning_rate_factor"].tolist() == pytest.approx([1, (8 / 27) ** 0.5, (8 / 64) ** 0.5])
    ranking = pd.read_csv(results / "tables" / "ranking_change.csv")
    assert ranking["cells"].iloc[0] == 3
    assert ranking["kendall_tau"].notna().any()
    records = pd.read_parquet(results / "runs.parquet")
    trained = records[records["recipe"].isin(["benchmark", "architecture_aware"])]
    assert len(trained) == 3 * 2
    assert set(trained["bench"]) == {"toy"}
    assert trained["test_accuracy"].max() > 20  # chance is 10
    page = (results / "explore.html").read_text()
    assert "layer-layer-layer" in page
    exported = results / "export" / "architecture_aware"
    assert sorted(path.name for path in exported.iterdir()) == ["README.md", "accuracies.csv", "accuracies.parquet"]
    assert (exported / "README.md").read_text().startswith("# toy's cells on digits, retrained: architecture_aware")
