"""Reading accuracies: each source gives what its file holds, and each malformed file one clear error."""

from __future__ import annotations

import bz2
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import plain_table
from nas_retrain.statistics import accuracies
from tests.strategies import NAS_BENCH_201

NUMBER = 50


def table() -> pd.DataFrame:
    accuracy = np.random.default_rng(0).uniform(10, 95, NUMBER).round(3)
    return pd.DataFrame(
        {
            "index": range(NUMBER),
            "arch": [NAS_BENCH_201.arch_at(index) for index in range(NUMBER)],
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
    found = accuracies.read(path, "cifar10", NAS_BENCH_201, recipe="benchmark")
    assert found.name == "accuracies"
    assert not found.per_class
    assert found.runs["index"].tolist() == list(range(NUMBER))
    assert found.runs["accuracy"].tolist() == table()["cifar10_test"].tolist()
    as_text = accuracies.read(str(path), "cifar10", NAS_BENCH_201, recipe="benchmark")
    pd.testing.assert_frame_equal(as_text.runs, found.runs)
    other = accuracies.read(path, "cifar10", NAS_BENCH_201, recipe="benchmark", column="other")
    assert other.runs["accuracy"].tolist() == table()["other"].tolist()


def test_where_no_bench_is_named_the_cells_are_those_of_nas_bench_201(tmp_path: Path) -> None:
    path = written(tmp_path, table())
    named, found = accuracies.read_csv(path, "cifar10", NAS_BENCH_201), accuracies.read_csv(path, "cifar10")
    pd.testing.assert_frame_equal(found.runs, named.runs)
    assert found.bench.title == NAS_BENCH_201.title
    assert accuracies.Accuracies("mine", found.runs).classes == found.classes == named.classes


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
        (cell(3, "index", 2), r"cell 2 is listed more than once\. .* in a column seed"),
        (cell(3, "index", 15625), "out of range"),
        (cell(3, "index", np.nan), "has no index"),
        (cell(3, "cifar10_test", np.nan), "cell 3 has the accuracy nan"),
        (cell(3, "cifar10_test", 100.5), "cell 3 has the accuracy 100.5"),
        (cell(3, "cifar10_test", "high"), "holds values that are not numbers, such as 'high'"),
        (cell(3, "index", "third"), "'index' holds values that are not numbers, such as 'third'"),
        (lambda frame: frame.assign(cifar10_test=frame["cifar10_test"] / 100), "93 rather than 0.93"),
        (lambda frame: frame.drop(columns="cifar10_test"), "has no column 'cifar10_test'"),
        (lambda frame: frame.drop(columns=["arch", "index"]), "has no column 'index'"),
        (lambda frame: frame.head(0), "has columns and no rows"),
    ],
)
def test_a_malformed_csv_is_one_clear_error(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(NasRetrainError, match=message) as raised:
        accuracies.read(written(tmp_path, change(table())), "cifar10", NAS_BENCH_201, recipe="benchmark")
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
        accuracies.read(path, "cifar10", NAS_BENCH_201, recipe="benchmark")


@pytest.mark.parametrize("fractions", [[0], range(0, NUMBER, 2), range(NUMBER - 1), [NUMBER - 1, 3]])
@pytest.mark.parametrize("scale", [(10, 95), (1, 73.5), (100 / 120, 47)])
def test_fractions_among_percentages_are_refused_however_many(
    tmp_path: Path, fractions: list[int], scale: tuple[float, float]
) -> None:
    frame = table()
    accuracy = np.linspace(sum(scale) / 2, scale[1], NUMBER)
    frame["cifar10_test"] = np.where(np.isin(range(NUMBER), fractions), accuracy / 100, accuracy)
    with pytest.raises(NasRetrainError, match=rf"fractions are mixed with percentages: cell {min(fractions)} "):
        accuracies.read(written(tmp_path, frame), "cifar10", NAS_BENCH_201, recipe="benchmark")


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
    assert (
        accuracies.read(written(tmp_path, frame), "cifar10", NAS_BENCH_201, recipe="benchmark").runs["accuracy"].min()
        == low
    )


def test_our_own_runs_are_percentages_however_small_the_test_set() -> None:
    frame = runs()
    few = frame[frame["recipe"] == "benchmark"].assign(test_accuracy=[0.0, 0.5, 0.7, 1.0, 25.0, 50.0, 75.0, 80.0, 1, 2])
    assert accuracies.from_runs(few, "few", NAS_BENCH_201).runs["accuracy"].min() == 0.0


def runs() -> pd.DataFrame:
    classes = sorted(set(NAS_BENCH_201.training_classes(None)))[:5]
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
    found = accuracies.read(tmp_path / "runs.parquet", "digits", NAS_BENCH_201, recipe="benchmark")
    assert found.per_class
    assert len(found.runs) == 10
    cells = accuracies.per_cell(found)
    classes = np.array(NAS_BENCH_201.training_classes(None))
    assert sorted(cells.index) == sorted(np.flatnonzero(np.isin(classes, found.runs["index"])))
    for index, row in cells.iterrows():
        assert row["trainings"] == 2
        assert row["accuracy"] == 51.5 + classes[int(str(index))] % 7


CONSTANTS = next(cell for cell in range(15625) if NAS_BENCH_201.graph_at(cell).constants)


def with_constants(hashes: tuple[str, str]) -> pd.DataFrame:
    """The runs and one more class, whose network has a constant part, with these hashes of its two seeds."""
    rows = pd.DataFrame({"config_hash": hashes, "seed": range(2)}).assign(
        dataset="digits", recipe="benchmark", cell=CONSTANTS, test_accuracy=70.0, in_degree=None
    )
    return pd.concat([runs().astype({"in_degree": object}), rows.astype({"in_degree": object})], ignore_index=True)


def test_networks_with_constants_have_a_hash_of_their_own(tmp_path: Path) -> None:
    with_constants(("def", "def")).to_parquet(tmp_path / "runs.parquet")
    found = accuracies.read(tmp_path / "runs.parquet", "digits", NAS_BENCH_201, recipe="benchmark").runs
    assert list(found[found["index"] == CONSTANTS]["accuracy"]) == [70.0, 70.0]
    with_constants(("def", "ghi")).to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(NasRetrainError, match="several settings"):
        accuracies.read(tmp_path / "runs.parquet", "digits", NAS_BENCH_201, recipe="benchmark")


@pytest.mark.parametrize("hashes", [("abc", "abc"), ("abc", "def"), ("def", "abc")])
def test_trainings_without_the_constants_of_their_networks_are_left_out_and_told(
    tmp_path: Path, hashes: tuple[str, str]
) -> None:
    with_constants(hashes).to_parquet(tmp_path / "runs.parquet")
    with pytest.warns(UserWarning, match=rf"{hashes.count('abc')} trainings of benchmark are left out.*make retrain"):
        found = accuracies.read(tmp_path / "runs.parquet", "digits", NAS_BENCH_201, recipe="benchmark").runs
    assert list(found["index"]).count(CONSTANTS) == hashes.count("def")
    assert len(found) == 10 + hashes.count("def")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda frame: frame.assign(dataset="cifar10"),
            "has no digits benchmark; it has cifar10 .*Choose with DATASET",
        ),
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
        accuracies.read(tmp_path / "runs.parquet", "digits", NAS_BENCH_201, recipe="benchmark")


HTML = b"<!DOCTYPE html>\n<html><body>Please log in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4700000000\n"


@pytest.mark.parametrize("name", ["file.csv", "file.csv.gz", "file.parquet", "file.pth", "000000.pickle.pbz2"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (HTML, "web page"),
        (POINTER, "git-LFS pointer.*git lfs pull"),
        (b"", "is empty"),
        (bytes(5000), "zeros only"),
        (b'{"message": "rate limit exceeded"}', "JSON"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "server's answer"),
    ],
)
def test_what_was_saved_in_a_file_s_place_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    source = tmp_path / name
    if name.endswith("pbz2"):
        source = tmp_path / "folder"
        source.mkdir()
        (source / "meta.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps({"evaluated_indexes": [0]})))
        (source / name).write_bytes(content)
    else:
        source.write_bytes(content)
    with pytest.raises(NasRetrainError, match=told) as raised:
        accuracies.read(source, "cifar10", NAS_BENCH_201, recipe="benchmark")
    assert name in str(raised.value)


def _german(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, sep=";", decimal=",").encode()


@pytest.mark.parametrize(
    ("written_as", "told"),
    [
        (lambda frame: frame.to_csv(index=False).encode("utf-16"), "UTF-16.*save it as UTF-8"),
        (lambda frame: frame.rename(columns={"index": "Index"}).to_csv(index=False).encode(), "'Index': rename it"),
        (lambda frame: frame.rename(columns={"arch": " ARCH"}).to_csv(index=False).encode(), "' ARCH': rename it"),
        (lambda frame: frame.to_csv(index=False, decimal=",").encode(), "decimal points"),
        (lambda frame: gzip.compress(frame.to_csv(index=False).encode()), "gzip"),
    ],
)
def test_a_table_in_another_style_is_told_how_to_be_written(
    tmp_path: Path, written_as: Callable[[pd.DataFrame], bytes], told: str
) -> None:
    (tmp_path / "table.csv").write_bytes(written_as(table()))
    with pytest.raises(NasRetrainError, match=told):
        accuracies.read(tmp_path / "table.csv", "cifar10", NAS_BENCH_201, recipe="benchmark")


@pytest.mark.parametrize(
    ("column", "remedy"),
    [("index", "Add the cells' numbers"), ("cifar10_test", r"analysis\.column")],
)
def test_a_missing_column_is_told_with_the_remedy_for_that_column(tmp_path: Path, column: str, remedy: str) -> None:
    lacking = table().drop(columns=["index", "arch"] if column == "index" else column)
    with pytest.raises(NasRetrainError, match=f"no column '{column}'; it has .*{remedy}"):
        accuracies.read(written(tmp_path, lacking), "cifar10", NAS_BENCH_201, recipe="benchmark")


@pytest.mark.parametrize("column", ["index", "arch"])
def test_a_cell_s_number_or_its_string_is_enough(tmp_path: Path, column: str) -> None:
    whole = accuracies.read(written(tmp_path, table()), "cifar10", NAS_BENCH_201, recipe="benchmark")
    found = accuracies.read(
        written(tmp_path, table().drop(columns=column)), "cifar10", NAS_BENCH_201, recipe="benchmark"
    )
    pd.testing.assert_frame_equal(found.runs, whole.runs)


@pytest.mark.parametrize(
    ("column", "value", "told"), [("index", 15_625, "out of range"), ("arch", "|nonsense~0|", "is no cell")]
)
def test_a_name_that_stands_alone_must_be_a_cell_s(tmp_path: Path, column: str, value: object, told: str) -> None:
    changed = table()[[column, "cifar10_test"]].astype({column: object})
    changed.loc[3, column] = value
    with pytest.raises(NasRetrainError, match=told):
        accuracies.read(written(tmp_path, changed), "cifar10", NAS_BENCH_201, recipe="benchmark")


@pytest.mark.parametrize(
    ("written_as", "told"),
    [
        (_german, "separated by semicolons, and the numbers in .*cifar10_test.* have decimal commas"),
        (lambda frame: frame.to_csv(index=False, sep="\t").encode(), r"separated by tabs\."),
        (lambda frame: frame.to_csv(index=False, sep=";").encode(), r"separated by semicolons\."),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_in_another_style_is_read_and_that_is_said(
    tmp_path: Path, ending: str, written_as: Callable[[pd.DataFrame], bytes], told: str
) -> None:
    path = tmp_path / f"table.{ending}"
    path.write_bytes(written_as(table()))
    with pytest.warns(UserWarning, match=told):
        found = accuracies.read(path, "cifar10", NAS_BENCH_201, recipe="benchmark")
    assert found.name == "table"
    pd.testing.assert_frame_equal(
        found.runs, accuracies.read(written(tmp_path, table()), "cifar10", NAS_BENCH_201, recipe="x").runs
    )


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1.5, 1e300, -1e300, 99999999999999999999])
@pytest.mark.parametrize("column", ["index", "seed"])
def test_an_index_or_a_seed_that_is_no_whole_number_is_refused(tmp_path: Path, column: str, value: float) -> None:
    changed = table().assign(seed=0).astype({column: object})
    changed.loc[3, column] = value
    with pytest.raises(NasRetrainError, match=f"column '{column}' holds"):
        accuracies.read(written(tmp_path, changed), "cifar10", NAS_BENCH_201, recipe="benchmark")


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_a_seed_column_makes_seeds(tmp_path: Path, suffix: str) -> None:
    both = pd.concat([table().assign(seed=777), table().assign(seed=888, cifar10_test=50.0)])
    path = tmp_path / f"mine.{suffix}"
    both.to_parquet(path) if suffix == "parquet" else both.to_csv(path, index=False)
    found = accuracies.read(path, "cifar10", NAS_BENCH_201, recipe="benchmark")
    assert found.name == "mine"
    assert set(found.runs["seed"]) == {777, 888}
    assert len(found.runs) == 2 * NUMBER
    with pytest.raises(NasRetrainError, match="cell 0 is listed more than once"):
        accuracies.read(written(tmp_path, both.drop(columns="seed")), "cifar10", NAS_BENCH_201, recipe="benchmark")


def test_a_packed_table_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"index,arch,accuracy\n" + b"0" * (40 << 20)))
    with pytest.raises(NasRetrainError, match="far more than its size"):
        accuracies.read(path, "cifar10", NAS_BENCH_201, recipe="benchmark")


def test_a_file_of_no_known_kind_is_told_what_it_seems_to_be(tmp_path: Path) -> None:
    for name, content, told in (
        ("NATS-tss-simple.tar", b"x" * 600, "Unpack it first"),
        ("file.h5", b"\x89HDF\r\n", "HDF5"),
        ("file.pt2", POINTER, "git-LFS"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NasRetrainError, match=told):
            accuracies.read(tmp_path / name, "cifar10", NAS_BENCH_201, recipe="benchmark")


def test_columns_of_one_name_are_told() -> None:
    """The metadata of a damaged Parquet file may give two columns one name."""
    twice = pd.DataFrame([[0, "cell", "x", "y"]], columns=["index", "arch", "accuracy", "accuracy"])
    with pytest.raises(NasRetrainError, match=r"table\.parquet has several columns named 'accuracy'"):
        plain_table.trainings(twice, Path("table.parquet"), "cifar10", None)
