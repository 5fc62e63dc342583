"""Reading accuracies: each source gives what its file holds, and each malformed file one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas_retrain import benchmark
from nas_retrain.errors import NasRetrainError
from nas_retrain.spaces import nas_bench_201

NUMBER = 50


def table() -> pd.DataFrame:
    accuracy = np.random.default_rng(0).uniform(10, 95, NUMBER).round(3)
    return pd.DataFrame(
        {
            "index": range(NUMBER),
            "arch": [nas_bench_201.cell_at(index) for index in range(NUMBER)],
            "cifar10_test": accuracy,
            "other": accuracy[::-1],
        }
    )


def written(folder: Path, frame: pd.DataFrame) -> Path:
    path = folder / "accuracies.csv.gz"
    frame.to_csv(path, index=False)
    return path


def test_a_csv_gives_the_column_of_its_data_set_or_the_one_that_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, table().sample(frac=1, random_state=0))
    found = benchmark.read(path, "cifar10", recipe="benchmark")
    assert found.name == "accuracies"
    assert not found.per_class
    assert found.runs["index"].tolist() == list(range(NUMBER))
    assert found.runs["accuracy"].tolist() == table()["cifar10_test"].tolist()
    other = benchmark.read(path, "cifar10", recipe="benchmark", column="other")
    assert other.runs["accuracy"].tolist() == table()["other"].tolist()


def cell(row: int, column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[row, column] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell(3, "arch", "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"), "cell 3 is"),
        (cell(3, "index", 2), "cell 2 is listed more than once"),
        (cell(3, "index", 15625), "out of range"),
        (cell(3, "index", np.nan), "has no index"),
        (cell(3, "cifar10_test", np.nan), "cell 3 has the accuracy nan"),
        (cell(3, "cifar10_test", 100.5), "cell 3 has the accuracy 100.5"),
        (cell(3, "cifar10_test", "high"), "not numbers"),
        (lambda frame: frame.assign(cifar10_test=frame["cifar10_test"] / 100), "93 rather than 0.93"),
        (lambda frame: frame.drop(columns="cifar10_test"), "has no column 'cifar10_test'"),
        (lambda frame: frame.drop(columns="arch"), "has no column 'arch'"),
        (lambda frame: frame.head(0), "no accuracies|not numbers"),
    ],
)
def test_a_malformed_csv_is_one_clear_error(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(NasRetrainError, match=message) as raised:
        benchmark.read(written(tmp_path, change(table())), "cifar10", recipe="benchmark")
    assert "accuracies.csv.gz" in str(raised.value)


@pytest.mark.parametrize("name", ["truncated.csv.gz", "foreign.csv", "truncated.parquet", "missing.csv", "notes.txt"])
def test_a_damaged_missing_or_foreign_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "truncated.csv.gz":
        path.write_bytes(written(tmp_path, table()).read_bytes()[:300])
    elif name == "truncated.parquet":
        table().to_parquet(path)
        path.write_bytes(path.read_bytes()[:-20])
    elif name != "missing.csv":
        path.write_bytes(b"\x00\xff\xfe not a table")
    with pytest.raises(NasRetrainError, match=name):
        benchmark.read(path, "cifar10", recipe="benchmark")


@pytest.mark.parametrize("fractions", [[0], range(0, NUMBER, 2), range(NUMBER - 1), [NUMBER - 1, 3]])
@pytest.mark.parametrize("scale", [(10, 95), (1, 73.5), (100 / 120, 47)])
def test_fractions_among_percentages_are_refused_however_many(
    tmp_path: Path, fractions: list[int], scale: tuple[float, float]
) -> None:
    frame = table()
    accuracy = np.linspace(sum(scale) / 2, scale[1], NUMBER)
    frame["cifar10_test"] = np.where(np.isin(range(NUMBER), fractions), accuracy / 100, accuracy)
    with pytest.raises(NasRetrainError, match=rf"fractions are mixed with percentages: cell {min(fractions)} "):
        benchmark.read(written(tmp_path, frame), "cifar10", recipe="benchmark")


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (100 / 120, 47.3),
        (1.0, 73.5),
        (0.0, 95.0),
        (0.83, 47.0),
        (0.9, 60.0),
        (10.0, 95.0),
        (100 / 120, 99.0),
        (1.0, 100.0),
    ],
)
def test_cells_at_chance_and_below_are_percentages(tmp_path: Path, low: float, high: float) -> None:
    frame = table()
    frame["cifar10_test"] = np.where(np.arange(NUMBER) % 5 == 0, low, np.linspace(high / 2, high, NUMBER))
    assert benchmark.read(written(tmp_path, frame), "cifar10", recipe="benchmark").runs["accuracy"].min() == low


def test_our_own_runs_are_percentages_however_small_the_test_set() -> None:
    frame = runs()
    few = frame[frame["recipe"] == "benchmark"].assign(test_accuracy=[0.0, 0.5, 0.7, 1.0, 25.0, 50.0, 75.0, 80.0, 1, 2])
    assert benchmark.from_runs(few, "few").runs["accuracy"].min() == 0.0


def runs() -> pd.DataFrame:
    classes = sorted(set(nas_bench_201.network_classes()))[:5]
    rows = [
        ("digits", recipe, "abc", network_class, seed, 50.0 + network_class % 7 + seed, None)
        for recipe in ("benchmark", "architecture_aware")
        for network_class in classes
        for seed in (1, 2)
    ]
    return pd.DataFrame(
        rows, columns=["dataset", "recipe", "config_hash", "cell", "seed", "test_accuracy", "in_degree"]
    )


def test_runs_of_ours_give_one_recipe_with_every_seed_and_stand_for_whole_classes(tmp_path: Path) -> None:
    runs().to_parquet(tmp_path / "runs.parquet")
    found = benchmark.read(tmp_path / "runs.parquet", "digits", recipe="benchmark")
    assert found.per_class
    assert len(found.runs) == 10
    cells = benchmark.per_cell(found)
    classes = np.array(nas_bench_201.network_classes())
    assert sorted(cells.index) == sorted(np.flatnonzero(np.isin(classes, found.runs["index"])))
    for index, row in cells.iterrows():
        assert row["trainings"] == 2
        assert row["accuracy"] == 51.5 + classes[int(str(index))] % 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(dataset="cifar10"), "has no digits benchmark; it has cifar10"),
        (lambda frame: frame.assign(config_hash=frame.index.astype(str)), "several settings"),
        (lambda frame: frame.drop(columns="seed"), "no column seed"),
        (lambda frame: frame.drop(columns="in_degree"), "no column in_degree"),
        (lambda frame: frame.assign(in_degree=["source", None] * 10), "differ in in_degree"),
        (lambda frame: frame.assign(test_accuracy=np.nan), "accuracy nan"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    change(runs()).to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(NasRetrainError, match=message):
        benchmark.read(tmp_path / "runs.parquet", "digits", recipe="benchmark")
