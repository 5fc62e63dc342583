"""Files in the very form of published tables with learning rates, whose own best rates and noise are planted."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from nas_retrain.benches.nas_bench_201 import jahs_bench, nas_hpo_bench, space
from nas_retrain.theory.graph import CellGraph
from tests.strategies import NAS_BENCH_201

RATES = tuple(0.4 / 2**step for step in range(8))
BATCH_SIZES = (16, 32, 64, 128, 256, 512)
SEEDS = (222, 555, 888)
NOISE = 0.8
"""The standard deviation of one training's accuracy, in points."""


def cellcodes() -> list[str]:
    """All 4,096 cells of NAS-HPO-Bench-II."""
    digits = ("".join(cell) for cell in itertools.product("0123", repeat=6))
    return [f"{code[0]}|{code[1:3]}|{code[3:]}" for code in digits]


@cache
def hashes() -> dict[str, str]:
    """Of each cellcode; those that are the same network share one."""
    classes = NAS_BENCH_201.training_classes(None)
    return {code: f"h{classes[NAS_BENCH_201.index_of(nas_hpo_bench.arch_of(code))]:05}" for code in cellcodes()}


def deepest_path(graph: CellGraph) -> int:
    """Convolutions on the deepest path."""
    return max(graph.path_depths(0))


def best_log_rates(dependence: float, tell: Callable[[CellGraph], float] = deepest_path) -> dict[str, float]:
    """log2 of each hash's best rate at batch size 256: 0.1, and so many octaves lower for each unit of what is told."""
    graphs = {its_hash: space.parse(nas_hpo_bench.arch_of(code)) for code, its_hash in hashes().items()}
    told = {its_hash: tell(graph) for its_hash, graph in graphs.items() if graph.connected}
    middle = float(np.mean(list(told.values())))
    return {its_hash: np.log2(0.1) - dependence * (told.get(its_hash, middle) - middle) for its_hash in graphs}


def write_nas_hpo_bench(
    folder: Path,
    dependence: float,
    *,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    seeds: tuple[int, ...] = SEEDS,
    every: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Write bench12.pkl, cellinfo.pkl and avgaccs200.pkl; returns log2 of each hash's best rate at batch size 256.

    The accuracy falls by half a point for each squared octave from the best rate, which rises by half an octave for
    each octave of the batch size, and rises with epochs. every: only every so many hashes were trained.
    """
    random = np.random.default_rng(seed)
    best = best_log_rates(dependence)
    trained = sorted(best)[::every]
    quality = {its_hash: random.normal(80, 2) for its_hash in trained}
    keys = list(itertools.product(trained, RATES, batch_sizes, seeds))
    rate, batch = np.array([key[1] for key in keys]), np.array([key[2] for key in keys])
    optimum = np.array([best[key[0]] for key in keys]) + 0.5 * np.log2(batch / 256)
    truth = np.array([quality[key[0]] for key in keys]) - 0.5 * (np.log2(rate) - optimum) ** 2
    luck = random.normal(0, NOISE, len(keys))  # a training's own, which all of its images share
    columns: dict[str, object] = {
        "lr": dict(zip(keys, rate.tolist(), strict=True)),
        "batch_size": dict(zip(keys, batch.tolist(), strict=True)),
        "seed": dict(zip(keys, (key[3] for key in keys), strict=True)),
    }
    for epoch, which in itertools.product(range(nas_hpo_bench.EPOCHS), ("train", "valid", "test")):
        images = random.normal(0, 0.1, len(keys))
        accuracy = np.clip(truth + luck + images - 2.0 * (nas_hpo_bench.EPOCHS - 1 - epoch), 0, 100)
        columns[f"{which}_acc_{epoch}"] = dict(zip(keys, accuracy.tolist(), strict=True))
        columns[f"{which}_time_{epoch}"] = dict(zip(keys, random.random(len(keys)).tolist(), strict=True))
    for name in ("total_train_time", "total_trainval_time", "total_test_time"):
        columns[name] = dict(zip(keys, random.random(len(keys)).tolist(), strict=True))
    predictions = {key[:3]: float(value) for key, value in zip(keys, truth + 10, strict=True)}
    folder.mkdir(exist_ok=True)
    for name, content in (
        (nas_hpo_bench.TRAININGS, columns),
        (nas_hpo_bench.CELLS, {"hash": {code: its_hash for code, its_hash in hashes().items() if its_hash in quality}}),
        (nas_hpo_bench.PREDICTIONS, {"avg_acc": predictions}),
    ):
        with (folder / name).open("wb") as file:
            pickle.dump(content, file)
    return {its_hash: best[its_hash] for its_hash in trained}


def jahs_table(
    trainings: int, cells: int, *, slope: float = 1.0, noise: float = 1.0, seed: int = 0
) -> tuple[pd.DataFrame, dict[int, float]]:
    """A table in the form of JAHS-Bench-201's, and log2 of each cell's best rate, by index, at whatever else is varied.

    Best rates are 0.06 on average and lie `slope` octaves (standard deviation) from it.
    """
    random = np.random.default_rng(seed)
    operations = random.integers(0, 5, (cells, 6))
    names = [
        space.format_cell(tuple(jahs_bench.OPERATIONS[row[jahs_bench.EDGES.index(edge)]] for edge in space.EDGES))
        for row in operations
    ]
    indices = [NAS_BENCH_201.index_of(name) for name in names]
    classes = NAS_BENCH_201.training_classes(None)
    of_class = {number: (random.normal(0, slope), random.normal(0, 3)) for number in {classes[i] for i in indices}}
    best, quality = np.array([of_class[classes[index]] for index in indices]).T
    row = random.integers(0, cells, trainings)
    table = pd.DataFrame({f"Op{place + 1}": operations[row, place] for place in range(6)})
    table["LearningRate"] = 10 ** random.uniform(-3, 0, trainings)
    table["WeightDecay"] = 10 ** random.uniform(-5, -2, trainings)
    table["Activation"] = random.choice(["ReLU", "Hardswish", "Mish"], trainings)
    table["TrivialAugment"] = random.random(trainings) < 0.5
    table["N"] = random.choice([1, 3, 5], trainings)
    table["W"] = random.choice([4, 8, 16], trainings)
    table["Resolution"] = random.choice([0.25, 0.5, 1.0], trainings)
    table["epoch"] = 200
    distance = np.log2(table["LearningRate"]) - np.log2(0.06) - best[row]
    truth = 70 + quality[row] + np.log2(table["W"]) + table["N"] - 0.4 * distance**2 - 2 * table["TrivialAugment"]
    for name in ("valid-acc", "test-acc"):
        table[name] = (truth + random.normal(0, noise, trainings)).clip(0, 100)
    return table, {classes[index]: np.log2(0.06) + shift for index, shift in zip(indices, best, strict=True)}
