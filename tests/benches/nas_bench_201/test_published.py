"""Readers of the published files against the packages themselves, on files made with the packages' own classes."""

from __future__ import annotations

import bz2
import os
import pickle
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nas_201_api import NASBench201API
from nas_201_api.api_utils import ArchResults as OfficialArchResults
from nas_201_api.api_utils import ResultsCount as OfficialResultsCount
from nats_bench.api_topology import NATStopology
from nats_bench.api_utils import ArchResults, ResultsCount, pickle_save

from nas_retrain.benches.nas_bench_201 import official_file
from nas_retrain.errors import NasRetrainError
from nas_retrain.statistics import accuracies as benchmark
from tests.strategies import NAS_BENCH_201

CELLS = (0, 11, 284)
TEST_SETS = {
    "cifar10": ("ori-test",),
    "cifar10-valid": ("ori-test", "x-valid"),
    "cifar100": ("ori-test", "x-valid", "x-test"),
    "ImageNet16-120": ("ori-test", "x-valid", "x-test"),
}


def trained(
    index: int,
    epochs: int,
    seeds: tuple[int, ...],
    arch_results: type[Any] = ArchResults,
    results_count: type[Any] = ResultsCount,
) -> dict[str, Any]:
    state: dict[str, Any] = pickle.loads(pickled(index, epochs, seeds, arch_results, results_count))
    return state


@cache
def pickled(
    index: int, epochs: int, seeds: tuple[int, ...], arch_results: type[Any], results_count: type[Any]
) -> bytes:
    random = np.random.default_rng([index, epochs])
    arch = NAS_BENCH_201.arch_at(index)
    found = arch_results(index, arch)
    for dataset, test_sets in TEST_SETS.items():
        for seed in seeds:
            curve = {epoch: float(random.uniform(20, 90)) for epoch in range(epochs)}
            result = results_count(dataset, None, curve, curve, 0.1, 10.0, {"arch_str": arch}, seed, epochs, None)
            for test_set in test_sets:
                accuracies = {epoch: float(random.uniform(20, 90)) for epoch in range(epochs)}
                result.update_OLD_eval(test_set, accuracies, accuracies)
            found.update(dataset, seed, result)
    return pickle.dumps(found.state_dict())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NATS-tss folder of three cells; the second has lost one of its seeds, as some real cells have."""
    folder = tmp_path_factory.mktemp("written") / "NATS-tss-v1_0-3ffb9-simple"
    folder.mkdir()
    names = [NAS_BENCH_201.arch_at(index) for index in range(15625)]
    pickle_save({"meta_archs": names, "total_archs": 15625, "evaluated_indexes": set(CELLS)}, folder / "meta.pickle")
    for index in CELLS:
        seeds = (777, 888, 999) if index != 11 else (777, 999)
        content = {"12": trained(index, 12, (111,)), "200": trained(index, 200, seeds)}
        pickle_save(content, folder / f"{index:06d}.pickle")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Such a folder, of the test's own."""
    return Path(shutil.copytree(written, tmp_path / written.name))


@pytest.mark.parametrize("epochs", [12, 200])
@pytest.mark.parametrize("test_set", ["ori-test", "x-test"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet16_120"])
def test_every_seed_is_what_the_package_answers(folder: Path, dataset: str, test_set: str, epochs: int) -> None:
    theirs = NAS_BENCH_201.published.datasets[dataset]
    if test_set not in TEST_SETS[theirs]:
        with pytest.raises(NasRetrainError, match="it has ori-test after 12 epochs, ori-test after 200 epochs"):
            benchmark.read_published(folder, dataset, NAS_BENCH_201, epochs=epochs, test_set=test_set)
        return
    found = benchmark.read(folder, dataset, NAS_BENCH_201, recipe="", epochs=epochs, test_set=test_set)
    assert not found.per_class
    api = NATStopology(str(folder), fast_mode=True, verbose=False)
    for index in CELLS:
        rows = found.runs[found.runs["index"] == index].set_index("seed")["accuracy"]
        api.reload(str(folder), index)
        results = api.arch2infos_dict[index][str(epochs)]
        assert list(rows.index) == results.get_dataset_seeds(theirs)  # none lost, none made up
        for seed, accuracy in rows.items():
            assert accuracy == results.get_metrics(theirs, test_set, is_random=int(str(seed)))["accuracy"]


def test_the_copy_beside_the_folder_is_used_until_the_folder_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = benchmark.read_published(folder, "cifar100", NAS_BENCH_201, epochs=200, test_set="x-test")
    assert folder.with_name(f"{folder.name}.accuracies.parquet").exists()
    with monkeypatch.context() as patched:
        patched.setattr(benchmark, "_nats_cell", lambda path: pytest.fail(f"{path} was read again"))
        pd.testing.assert_frame_equal(
            benchmark.read_published(folder, "cifar100", NAS_BENCH_201, epochs=200, test_set="x-test").runs, first.runs
        )
    pickle_save({"200": trained(500, 200, (777,))}, folder / "000500.pickle")
    later = folder.stat().st_mtime_ns + 10**9
    os.utime(folder, ns=(later, later))
    assert 500 in set(
        benchmark.read_published(folder, "cifar100", NAS_BENCH_201, epochs=200, test_set="x-test").runs["index"]
    )


class Foreign:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("echo this must not run >&2; exit 1",)


def spoiled(path: Path, how: str) -> None:
    whole = path.read_bytes()
    content = pickle.loads(bz2.decompress(whole))
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "not bz2":
        path.write_bytes(b"nothing of the kind")
    elif how == "foreign class":
        path.write_bytes(bz2.compress(pickle.dumps(Foreign())))
    elif how == "another structure":
        path.write_bytes(bz2.compress(pickle.dumps([1, 2, 3])))
    elif how == "another cell":
        path.write_bytes(bz2.compress(pickle.dumps({"200": trained(12, 200, (777,))})))
    elif how == "wrong name":
        content["200"]["arch_str"] = NAS_BENCH_201.arch_at(1)
        path.write_bytes(bz2.compress(pickle.dumps(content)))
    else:
        (result,) = (found for key, found in content["200"]["all_results"].items() if key == ("cifar10", 777))
        result["eval_acc1es"]["ori-test@199"] = float("nan")
        path.write_bytes(bz2.compress(pickle.dumps(content)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"000011\.pickle\.pbz2 cannot be read"),
        ("not bz2", r"000011\.pickle\.pbz2 cannot be read"),
        ("foreign class", r"000011\.pickle\.pbz2 is refused: it asks for posix\.system"),
        ("another structure", r"000011\.pickle\.pbz2 cannot be read"),
        ("another cell", "holds cell 12 in the place of cell 11"),
        ("wrong name", "cell 11 is"),
        ("nan", "cell 11 has the accuracy nan"),
    ],
)
def test_a_spoiled_file_is_one_clear_error(folder: Path, how: str, message: str) -> None:
    spoiled(folder / "000011.pickle.pbz2", how)
    with pytest.raises(NasRetrainError, match=message):
        benchmark.read_published(folder, "cifar10", NAS_BENCH_201, epochs=200, test_set="ori-test")


def test_a_folder_without_cells_is_told(tmp_path: Path) -> None:
    with pytest.raises(NasRetrainError, match=r"has no files like 000000\.pickle\.pbz2"):
        benchmark.read(tmp_path, "cifar10", NAS_BENCH_201, recipe="")


@pytest.mark.parametrize("name", ["runs.parquet", "table.csv.gz", "NAS-Bench-201-v1_1-096897.pth"])
def test_a_folder_of_tables_is_answered_with_a_file_of_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(NasRetrainError, match=re.escape(f"such as {tmp_path / name}.")):
        benchmark.read(tmp_path, "cifar10", NAS_BENCH_201, recipe="")


def official() -> dict[str, Any]:
    """The content of NAS-Bench-201's own file with three cells; the second has lost one of its seeds."""
    classes = (OfficialArchResults, OfficialResultsCount)
    return {
        "meta_archs": [NAS_BENCH_201.arch_at(index) for index in range(15625)],
        "total_archs": 15625,
        "arch2infos": {
            index: {
                "less": trained(index, 12, (111,), *classes),
                "full": trained(index, 200, (777, 888, 999) if index != 11 else (777, 999), *classes),
            }
            for index in CELLS
        },
        "evaluated_indexes": set(CELLS),
    }


def saved(folder: Path, content: object, *, archive: bool = False) -> Path:
    path = folder / "NAS-Bench-201-v1_1-096897.pth"
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    return path


@pytest.mark.parametrize("archive", [False, True])
def test_the_official_file_gives_every_seed_as_its_package_answers(tmp_path: Path, archive: bool) -> None:
    path = saved(tmp_path, content := official(), archive=archive)
    api = NASBench201API(content, verbose=False)
    for dataset, theirs in NAS_BENCH_201.published.datasets.items():
        for epochs in (12, 200):
            for test_set in TEST_SETS[theirs]:
                found = benchmark.read(path, dataset, NAS_BENCH_201, recipe="", epochs=epochs, test_set=test_set).runs
                for index in CELLS:
                    rows = found[found["index"] == index].set_index("seed")["accuracy"]
                    results = api.arch2infos_dict[index][str(epochs)]
                    assert list(rows.index) == results.get_dataset_seeds(theirs)
                    for seed, accuracy in rows.items():
                        assert accuracy == results.get_metrics(theirs, test_set, is_random=int(str(seed)))["accuracy"]


def test_all_sources_agree_on_the_same_data(folder: Path, tmp_path: Path) -> None:
    from_folder = benchmark.read(folder, "cifar100", NAS_BENCH_201, recipe="", epochs=200)
    from_file = benchmark.read(saved(tmp_path, official()), "cifar100", NAS_BENCH_201, recipe="", epochs=200)
    pd.testing.assert_frame_equal(from_file.runs, from_folder.runs)
    means = benchmark.per_cell(from_file)["accuracy"]
    table = means.rename("cifar100").reset_index()
    table["arch"] = [NAS_BENCH_201.arch_at(index) for index in table["index"]]
    table.to_csv(tmp_path / "means.csv", index=False)
    from_csv = benchmark.read(tmp_path / "means.csv", "cifar100", NAS_BENCH_201, recipe="")
    pd.testing.assert_series_equal(benchmark.per_cell(from_csv)["accuracy"], means)
    runs = from_file.runs.rename(columns={"index": "cell", "accuracy": "test_accuracy"})
    runs.assign(dataset="cifar100", recipe="benchmark", config_hash="x", in_degree=None).to_parquet(
        tmp_path / "runs.parquet"
    )
    from_parquet = benchmark.read(tmp_path / "runs.parquet", "cifar100", NAS_BENCH_201, recipe="benchmark")
    pd.testing.assert_frame_equal(from_parquet.runs, from_file.runs)


def test_curves_are_cut_while_they_are_read(tmp_path: Path) -> None:
    cells = official_file.load(saved(tmp_path, official()))
    result = cells[11]["full"]["all_results"]["cifar100", 777]
    assert set(result["eval_acc1es"]) == {"ori-test@199", "x-valid@199", "x-test@199"}
    assert list(result["train_acc1es"]) == [199]
    assert result["eval_names"] == ["ori-test", "x-valid", "x-test"]
    names = [key for cell in cells.values() for key in cell["full"]["all_results"]["cifar10", 777]["eval_acc1es"]]
    assert len({id(name) for name in names}) == 1  # equal strings are one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Foreign(), "is refused: it asks for posix.system"),
        ({"weights": torch.zeros(2)}, "is refused: it asks for torch"),
        ({"meta_archs": []}, "cannot be read"),
        ([1, 2], "cannot be read"),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_a_foreign_pth_is_refused(tmp_path: Path, content: object, message: str, archive: bool) -> None:
    with pytest.raises(NasRetrainError, match=message):
        benchmark.read(saved(tmp_path, content, archive=archive), "cifar10", NAS_BENCH_201, recipe="")


def test_a_damaged_pth_is_one_clear_error(tmp_path: Path) -> None:
    path = saved(tmp_path, official())
    whole = path.read_bytes()
    for spoil in (whole[: len(whole) // 2], whole[:10], b"", b"nothing of the kind", pickle.dumps("no magic")):
        path.write_bytes(spoil)
        with pytest.raises(NasRetrainError, match=r"096897\.pth"):
            benchmark.read(path, "cifar10", NAS_BENCH_201, recipe="")
    with pytest.raises(NasRetrainError, match="There is no file"):
        benchmark.read(tmp_path / "missing.pth", "cifar10", NAS_BENCH_201, recipe="")


def read_cell(folder: Path) -> set[int]:
    return set(benchmark.read_published(folder, "cifar100", NAS_BENCH_201, epochs=200, test_set="x-test").runs["index"])


def aged(path: Path, seconds: int = 10**6) -> None:
    """Give a file an old time, as tar and cp -p do."""
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


@pytest.mark.parametrize("change", ["a part unpacked later", "a file copied over", "a file taken away", "a time"])
def test_a_source_is_read_again_when_its_files_are_others(
    folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_cell(folder)
    before = folder.stat()
    changed, expected = folder / "000011.pickle.pbz2", set(CELLS)
    if change == "a part unpacked later":
        pickle_save({"200": trained(500, 200, (777,))}, folder / "000500.pickle")
        aged(folder / "000500.pickle.pbz2")
        expected |= {500}
    elif change == "a file copied over":
        pickle_save({"200": trained(11, 200, (777, 888, 999, 1000))}, folder / "000011.pickle")
        aged(changed)
    elif change == "a file taken away":
        changed.rename(folder.parent / "away")
        (folder / "meta.pickle.pbz2").unlink()
        pickle_save({"evaluated_indexes": {0, 284}}, folder / "meta.pickle")
        expected -= {11}
    else:
        aged(changed)
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = []
    original = benchmark._nats_cell
    monkeypatch.setattr(benchmark, "_nats_cell", lambda path: again.append(path) or original(path))
    assert read_cell(folder) == expected
    assert again


def test_a_pth_copied_over_with_an_old_time_is_read_again(tmp_path: Path) -> None:
    path = saved(tmp_path, official())
    assert read_cell(path) == set(CELLS)
    content = official()
    del content["arch2infos"][284]
    content["evaluated_indexes"] = {0, 11}
    saved(tmp_path, content)
    aged(path)
    assert read_cell(path) == {0, 11}


@pytest.mark.parametrize(
    "harm",
    [
        lambda copy: copy.write_bytes(copy.read_bytes()[:-50]),
        lambda copy: copy.write_bytes(b""),
        lambda copy: copy.write_bytes(b"<html>"),
    ],
)
def test_a_damaged_copy_is_told_and_the_source_read(folder: Path, harm: Callable[[Path], object]) -> None:
    whole = read_cell(folder)
    copy = folder.with_name(f"{folder.name}.accuracies.parquet")
    harm(copy)
    with pytest.warns(match="is damaged"):
        assert read_cell(folder) == whole
    assert read_cell(folder) == whole


def test_a_copy_of_an_older_version_is_made_anew(folder: Path) -> None:
    read_cell(folder)
    copy = folder.with_name(f"{folder.name}.accuracies.parquet")
    old = pd.read_parquet(copy).assign(accuracy=1.0)
    old.to_parquet(copy, index=False)  # newer than the source, but it does not say of what it was made
    assert (
        benchmark.read_published(folder, "cifar100", NAS_BENCH_201, epochs=200, test_set="x-test")
        .runs["accuracy"]
        .max()
        > 1.0
    )


@pytest.mark.parametrize("without", ["no meta file", "a damaged meta file", "a meta file"])
def test_a_folder_that_lacks_cells_is_told_with_their_number(folder: Path, without: str) -> None:
    (folder / "000011.pickle.pbz2").unlink()
    meta = folder / "meta.pickle.pbz2"
    if without == "no meta file":
        meta.unlink()
    elif without == "a damaged meta file":
        meta.write_bytes(b"nothing")
    known = (
        "2 of 3 cells; the first that is missing is 000011"
        if without == "a meta file"
        else ("2 of 15,625 cells; the first that is missing is 000001")
    )
    with pytest.warns(match=known):
        read_cell(folder)


@pytest.mark.parametrize("archive", [False, True])
def test_a_checkpoint_is_told_to_be_one(tmp_path: Path, archive: bool) -> None:
    for content in ({"weights": torch.zeros(2)}, torch.nn.Linear(2, 2).state_dict()):
        with pytest.raises(NasRetrainError, match=r"seems to be a network's checkpoint.*v1_1-096897\.pth"):
            benchmark.read(saved(tmp_path, content, archive=archive), "cifar10", NAS_BENCH_201, recipe="")
    with pytest.raises(NasRetrainError, match=r"another program's checkpoint.*v1_1-096897\.pth"):
        benchmark.read(saved(tmp_path, {"epoch": 3, "best": 0.5}, archive=archive), "cifar10", NAS_BENCH_201, recipe="")


def test_a_full_folder_is_told_to_hold_weights(folder: Path) -> None:
    weights = torch.nn.Linear(2, 2).state_dict()
    (folder / "000011.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps({"200": {"net_state_dict": weights}})))
    with pytest.raises(NasRetrainError, match=r"000011.*weights.*ends in -full.*ends in -simple"):
        read_cell(folder)
