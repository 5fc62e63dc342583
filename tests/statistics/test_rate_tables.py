"""Tables of trainings at several learning rates: what every form of them comes out as, and what is refused."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas_retrain.benches.nas_bench_201 import nas_hpo_bench
from nas_retrain.errors import NasRetrainError
from nas_retrain.statistics import rate_tables
from nas_retrain.statistics.rate_tables import Budget
from tests import published_tables
from tests.strategies import NAS_BENCH_201

RATES = (0.025, 0.1, 0.4)
SEEDS = (7, 8)
CELLS = [cell for cell in range(40) if NAS_BENCH_201.graph_at(cell).connected][:20]


def any_table(seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    table = pd.DataFrame(itertools.product(CELLS, RATES, SEEDS), columns=["index", "learning_rate", "seed"])
    table["arch"] = [NAS_BENCH_201.arch_at(cell) for cell in table["index"]]
    table["accuracy"] = random.uniform(50, 90, len(table))
    table["valid_accuracy"] = random.uniform(50, 90, len(table))
    return table


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("left_out", ["index", "arch", "nothing"])
def test_any_table_comes_out_as_a_grid(tmp_path: Path, ending: str, left_out: str) -> None:
    table = any_table().sample(frac=1, random_state=0).drop(columns=left_out, errors="ignore")
    path = tmp_path / f"mine.{ending}"
    table.to_parquet(path) if ending == "parquet" else table.to_csv(path, index=False)
    found = rate_tables.read(path, "cifar10", NAS_BENCH_201)
    assert found.name == "mine"
    (grid,) = found.grids.values()
    assert tuple(grid.rates) == RATES
    classes = NAS_BENCH_201.training_classes(None)
    expected = any_table().assign(cell=lambda t: [classes[cell] for cell in t["index"]])
    for which, column in (("test", "accuracy"), ("valid", "valid_accuracy")):
        means = expected.groupby(["cell", "learning_rate", "seed"])[column].mean()
        for (row, cell), (i, rate), (j, seed) in itertools.product(
            enumerate(grid.cells), enumerate(RATES), enumerate(SEEDS)
        ):
            assert getattr(grid, which)[row, i, j] == pytest.approx(means[cell, rate, seed])


def test_budgets_are_told_apart_and_chosen(tmp_path: Path) -> None:
    parts = [
        any_table(number).assign(batch_size=size, epochs=epochs)
        for number, (size, epochs) in enumerate(itertools.product((64, 256), (3, 12)))
    ]
    path = tmp_path / "mine.csv"
    pd.concat(parts).to_csv(path, index=False)
    found = rate_tables.read(path, "cifar10", NAS_BENCH_201)
    assert set(found.grids) == {Budget(epochs, size) for size in (64, 256) for epochs in (3, 12)}
    assert found.chosen(None, None) == Budget(12, 256)
    assert found.chosen(64, None) == Budget(12, 64)
    assert found.chosen(64, 3) == Budget(3, 64)
    with pytest.raises(NasRetrainError, match="no trainings with batch size 128; it has 3 epochs, batches of 64"):
        found.chosen(128, None)


def test_networks_with_seeds_of_their_own_are_taken_by_the_order_of_their_trainings(tmp_path: Path) -> None:
    table = any_table()
    table["seed"] += 1000 * table["index"]
    path = tmp_path / "mine.csv"
    table.to_csv(path, index=False)
    (grid,) = rate_tables.read(path, "cifar10", NAS_BENCH_201).grids.values()
    assert (len(grid), grid.seeds, grid.shared) == (len(set(grid.cells)), 2, False)


def test_networks_that_lack_a_rate_are_left_out_and_told(tmp_path: Path) -> None:
    table = any_table()
    path = tmp_path / "mine.csv"
    table[(table["index"] != CELLS[3]) | (table["learning_rate"] != 0.1)].to_csv(path, index=False)
    with pytest.warns(UserWarning, match=r"mine\.csv.*: 1 of 20 networks are left out"):
        (grid,) = rate_tables.read(path, "cifar10", NAS_BENCH_201).grids.values()
    assert len(grid) == 19


def test_cells_without_a_path_have_no_rate(tmp_path: Path) -> None:
    nowhere = next(cell for cell in range(15625) if not NAS_BENCH_201.graph_at(cell).connected)
    table = any_table()
    dead = table[table["index"] == CELLS[0]].assign(index=nowhere, arch=NAS_BENCH_201.arch_at(nowhere), accuracy=10.0)
    path = tmp_path / "mine.csv"
    pd.concat([table, dead]).to_csv(path, index=False)
    (grid,) = rate_tables.read(path, "cifar10", NAS_BENCH_201).grids.values()
    assert set(grid.cells) == set(any_classes())


@pytest.mark.parametrize("style", ["csv", "tsv", "semicolons"])
def test_without_seeds_equally_many_trainings_are_told_apart(tmp_path: Path, style: str) -> None:
    ending, separator = {"csv": ("csv", ","), "tsv": ("tsv", "\t"), "semicolons": ("csv", ";")}[style]
    path = tmp_path / f"mine.{ending}"
    any_table().drop(columns="seed").to_csv(path, index=False, sep=separator)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = rate_tables.read(str(path), "cifar10", NAS_BENCH_201)
    any_table().to_csv(tmp_path / "seeds.csv", index=False)
    with_seeds = rate_tables.read(tmp_path / "seeds.csv", "cifar10", NAS_BENCH_201)
    assert found.name == "mine"
    for (_, grid), (_, other) in zip(found.grids.items(), with_seeds.grids.items(), strict=True):
        assert (grid.test == other.test).all()
        assert (grid.seeds, grid.shared) == (other.seeds, False)


def test_a_training_that_is_there_twice_is_told(tmp_path: Path) -> None:
    table = any_table()
    pd.concat([table, table[5:6].assign(accuracy=1.5)]).to_csv(tmp_path / "mine.csv", index=False)
    told = rf"cell {table['index'].iloc[5]} is listed more than once at the learning rate .* with seed \d+\. Number"
    with pytest.raises(NasRetrainError, match=told):
        rate_tables.read(tmp_path / "mine.csv", "cifar10", NAS_BENCH_201)


@pytest.mark.parametrize("told", [{"N": 5}, {"channels": 8, "resolution": 0.5}, {"trained for": "long"}])
def test_of_several_budgets_it_is_told_what_they_differ_in(tmp_path: Path, told: dict[str, object]) -> None:
    table = any_table().assign(gpu="same", **dict.fromkeys(told, 1))
    both = pd.concat([table, table.assign(accuracy=99.0, **told)])  # type: ignore[arg-type]
    both.to_csv(tmp_path / "mine.csv", index=False)
    advice = rf"rows there differ in {', '.join(told)}\. Where these are budgets, leave the rows of one, or tell"
    with pytest.raises(NasRetrainError, match=advice):
        rate_tables.read(tmp_path / "mine.csv", "cifar10", NAS_BENCH_201)
    # Told in a column for it they are budgets.
    both.assign(epochs=[10] * len(table) + [20] * len(table)).to_csv(tmp_path / "mine.csv", index=False)
    assert set(rate_tables.read(tmp_path / "mine.csv", "cifar10", NAS_BENCH_201).grids) == {Budget(10), Budget(20)}
    both.drop(columns="seed").to_csv(tmp_path / "mine.csv", index=False)
    unseeded = rate_tables.read(tmp_path / "mine.csv", "cifar10", NAS_BENCH_201)
    assert f"differ in nothing but {', '.join(['gpu', *told])} count as" in " ".join(unseeded.notes)


def test_our_own_records_under_several_settings_are_told_apart(tmp_path: Path) -> None:
    records = (
        any_table()
        .rename(columns={"index": "cell", "accuracy": "test_accuracy"})
        .assign(bench="201", dataset="digits", recipe="grid_stock", epochs=2, config_hash="a", seeding="nested")
    )
    path = tmp_path / "runs.parquet"
    pd.concat([records, records.assign(config_hash="b", test_accuracy=1.0)]).to_parquet(path)
    told = rf"grid_stock under several settings: cell {records['cell'].iloc[0]} was trained more than once"
    with pytest.raises(NasRetrainError, match=told):
        rate_tables.read(path, "digits", NAS_BENCH_201)


def any_classes() -> list[int]:
    return [NAS_BENCH_201.training_classes(None)[cell] for cell in CELLS]


def test_our_own_searches_are_read_from_their_records() -> None:
    path = Path(__file__).parents[2] / "results" / "reference" / "201" / "fashion_mnist" / "runs.parquet"
    found = rate_tables.read(path, "fashion_mnist", NAS_BENCH_201)
    ((budget, grid),) = found.grids.items()
    records = pd.read_parquet(path)
    search = records[records["recipe"] == "own_rate_search"]
    assert budget == Budget(8)
    assert (len(grid), len(grid.rates), grid.seeds) == (100, 6, 2)
    row, rate = 17, 2
    there = search[(search["cell"] == grid.cells[row]) & (search["learning_rate"] == grid.rates[rate])]
    assert sorted(grid.valid[row, rate]) == pytest.approx(sorted(there["test_accuracy"]))
    with pytest.raises(NasRetrainError, match="trained at the same rates on cifar10 one is needed, and there are none"):
        rate_tables.read(path, "cifar10", NAS_BENCH_201)


def test_of_several_grids_among_our_records_one_is_chosen_by_its_recipe(tmp_path: Path) -> None:
    parts = [
        any_table(number)
        .rename(columns={"index": "cell", "accuracy": "test_accuracy"})
        .assign(bench="201", dataset="digits", recipe=name, epochs=2, config_hash="a", seeding="nested")
        for number, name in enumerate(("grid_stock", "grid_source"))
    ]
    path = tmp_path / "runs.parquet"
    pd.concat(parts).to_parquet(path)
    found = rate_tables.read(path, "digits", NAS_BENCH_201, recipe="grid_source")
    ((_, grid),) = found.grids.items()
    assert (found.name, len(grid), grid.shared) == ("runs grid_source", 20, False)
    with pytest.raises(NasRetrainError, match=r"several, grid_source, grid_stock: choose with ARGS='analysis\.recipe"):
        rate_tables.read(path, "digits", NAS_BENCH_201, recipe="benchmark")


def test_a_published_folder_has_every_batch_size_and_epoch_and_tells_predictions(tmp_path: Path) -> None:
    published_tables.write_nas_hpo_bench(tmp_path / "nhb", 0.5, batch_sizes=(64, 256), every=50)
    for path in (tmp_path / "nhb", tmp_path / "nhb" / nas_hpo_bench.TRAININGS):
        found = rate_tables.read(path, "cifar10", NAS_BENCH_201)
        assert len(found.grids) == 2 * 13
        assert found.predicted == {Budget(200, 64, 5e-4), Budget(200, 256, 5e-4)}
        assert found.chosen(None, None) == Budget(12, 256, 5e-4)
        assert any("predictions of its authors' surrogate" in note for note in found.notes)


def test_scattered_rates_become_a_fit_and_are_said_to(tmp_path: Path) -> None:
    table, _ = published_tables.jahs_table(trainings=2000, cells=40)
    path = tmp_path / "jahs.parquet"
    table.to_parquet(path)
    found = rate_tables.read(path, "cifar10", NAS_BENCH_201)
    assert list(found.grids) == [Budget(200, 256)]
    assert any("own rates come from a fit" in note for note in found.notes)
    random = np.random.default_rng(0)
    mine = any_table().assign(learning_rate=lambda t: 2.0 ** random.uniform(-8, 0, len(t)))
    mine.to_csv(tmp_path / "mine.csv", index=False)
    assert any(
        "own rates come from a fit" in note
        for note in rate_tables.read(tmp_path / "mine.csv", "cifar10", NAS_BENCH_201).notes
    )


FAULTS = {
    "no rate": (lambda t: t.drop(columns="learning_rate"), "no column 'learning_rate'"),
    "no cell": (lambda t: t.drop(columns=["index", "arch"]), "no column 'index'"),
    "no accuracy": (lambda t: t.drop(columns=["accuracy"]), "no column"),
    "text for a rate": (lambda t: t.assign(learning_rate="fast"), "'learning_rate' holds values that are not numbers"),
    "a negative rate": (lambda t: t.assign(learning_rate=-0.1), "learning_rate of cell .* is -0.1; a positive number"),
    "a rate of NaN": (lambda t: t.assign(learning_rate=np.nan), "learning_rate of cell .* is nan"),
    "an infinite rate": (lambda t: t.assign(learning_rate=np.inf), "learning_rate of cell .* is inf"),
    "a foreign cell": (lambda t: t.assign(arch="|none~0|"), "cell 0 is .* in NAS-Bench-201"),
    "a cell beyond": (lambda t: t.assign(index=99999), "out of range"),
    "a malformed cell": (lambda t: t.drop(columns="index").assign(arch="|x~0|"), "Malformed cell"),
    "fractions": (lambda t: t.assign(accuracy=t["accuracy"] / 100), "percentages"),
    "an accuracy of NaN": (lambda t: t.assign(valid_accuracy=np.nan), "valid of cell .* is nan"),
    "an accuracy above 100": (lambda t: t.assign(accuracy=101.0), "test of cell .* is 101; a percentage"),
    "half an epoch": (lambda t: t.assign(epochs=1.5), "epochs of cell .* is 1.5; a positive whole number"),
    "one rate": (lambda t: t[t["learning_rate"] == 0.1], "two or more learning rates"),
    "three networks": (lambda t: t[t["index"].isin(CELLS[:3])], "8 networks"),
    "nothing": (lambda t: t[:0], "holds"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_table_that_cannot_be_used_is_one_error_that_names_it(tmp_path: Path, fault: str) -> None:
    change, told = FAULTS[fault]
    path = tmp_path / "mine.parquet"
    change(any_table()).to_parquet(path)
    with pytest.raises(NasRetrainError, match=f"mine.parquet.*{told}"):
        rate_tables.read(path, "cifar10", NAS_BENCH_201)


SCATTERED_FAULTS = {
    "no weight decay in one": (
        "WeightDecay",
        lambda t: t["WeightDecay"].where(t.index > 0, 0.0),
        "weight_decay.* 0 has",
    ),
    "an infinite size": ("Resolution", lambda t: 2.0 ** (t.index % 20) / (t.index > 0), "Resolution.* inf has none"),
    "a size of NaN": ("Resolution", lambda t: (2.0 ** (t.index % 20)).where(t.index > 0), "Resolution.* nan has none"),
    "texts": ("Activation", lambda t: t.index.map(str), "Activation has .* values; at most 50"),
    "numbers without order": ("N", lambda t: t.index, "N has .* values; at most 50"),
}


@pytest.mark.parametrize("fault", SCATTERED_FAULTS)
def test_what_was_varied_and_cannot_be_fitted_is_named(tmp_path: Path, fault: str) -> None:
    name, change, told = SCATTERED_FAULTS[fault]
    table, _ = published_tables.jahs_table(trainings=400, cells=12)
    path = tmp_path / "jahs.parquet"
    table.assign(**{name: change(table)}).to_parquet(path)
    with pytest.raises(NasRetrainError, match=f"jahs.parquet: {told}"):
        rate_tables.read(path, "cifar10", NAS_BENCH_201)


def test_a_path_that_holds_no_table_is_told(tmp_path: Path) -> None:
    (tmp_path / "raw.pkl.gz").write_bytes(b"")
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    for name, told in (
        ("nowhere.csv", "There is no file"),
        ("raw.pkl.gz", "pickled pandas tables are not read.*pd.read_pickle"),
        ("table.xlsx", "expected NAS-HPO-Bench-II's folder"),
        ("", "is a folder without bench12.pkl"),
    ):
        with pytest.raises(NasRetrainError, match=told):
            rate_tables.read(tmp_path / name, "cifar10", NAS_BENCH_201)
