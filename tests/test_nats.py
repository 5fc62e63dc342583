"""The NATS-Bench folder reader against the nats_bench package itself, on files made with the package's own classes."""

from __future__ import annotations

import bz2
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nats_bench.api_topology import NATStopology
from nats_bench.api_utils import ArchResults, ResultsCount, pickle_save

from nas_retrain import benchmark
from nas_retrain.errors import NasRetrainError
from nas_retrain.spaces import nas_bench_201

CELLS = (0, 11, 284)
TEST_SETS = {
    "cifar10": ("ori-test",),
    "cifar10-valid": ("ori-test", "x-valid"),
    "cifar100": ("ori-test", "x-valid", "x-test"),
    "ImageNet16-120": ("ori-test", "x-valid", "x-test"),
}


def trained(index: int, epochs: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    random = np.random.default_rng([index, epochs])
    arch = nas_bench_201.cell_at(index)
    found = ArchResults(index, arch)
    for dataset, test_sets in TEST_SETS.items():
        for seed in seeds:
            curve = {epoch: float(random.uniform(20, 90)) for epoch in range(epochs)}
            result = ResultsCount(dataset, None, curve, curve, 0.1, 10.0, {"arch_str": arch}, seed, epochs, None)
            for test_set in test_sets:
                accuracies = {epoch: float(random.uniform(20, 90)) for epoch in range(epochs)}
                result.update_OLD_eval(test_set, accuracies, accuracies)
            found.update(dataset, seed, result)
    state: dict[str, Any] = found.state_dict()
    return state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A NATS-tss folder of three cells; the second has lost one of its seeds, as some real cells have."""
    folder = tmp_path / "NATS-tss-v1_0-3ffb9-simple"
    folder.mkdir()
    names = [nas_bench_201.cell_at(index) for index in range(15625)]
    pickle_save({"meta_archs": names, "total_archs": 15625, "evaluated_indexes": set(CELLS)}, folder / "meta.pickle")
    for index in CELLS:
        seeds = (777, 888, 999) if index != 11 else (777, 999)
        content = {"12": trained(index, 12, (111,)), "200": trained(index, 200, seeds)}
        pickle_save(content, folder / f"{index:06d}.pickle")
    return folder


@pytest.mark.parametrize("epochs", [12, 200])
@pytest.mark.parametrize("test_set", ["ori-test", "x-test"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet16_120"])
def test_every_seed_is_what_the_package_answers(folder: Path, dataset: str, test_set: str, epochs: int) -> None:
    theirs = benchmark.NATS_NAMES[dataset]
    if test_set not in TEST_SETS[theirs]:
        with pytest.raises(NasRetrainError, match="it has ori-test after 12 epochs, ori-test after 200 epochs"):
            benchmark.read_nats(folder, dataset, epochs=epochs, test_set=test_set)
        return
    found = benchmark.read(folder, dataset, recipe="", epochs=epochs, test_set=test_set)
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
    first = benchmark.read_nats(folder, "cifar100", epochs=200, test_set="x-test")
    assert folder.with_name(f"{folder.name}.accuracies.parquet").exists()
    with monkeypatch.context() as patched:
        patched.setattr(benchmark, "_nats_cell", lambda path: pytest.fail(f"{path} was read again"))
        pd.testing.assert_frame_equal(
            benchmark.read_nats(folder, "cifar100", epochs=200, test_set="x-test").runs, first.runs
        )
    pickle_save({"200": trained(500, 200, (777,))}, folder / "000500.pickle")
    later = folder.stat().st_mtime_ns + 10**9
    os.utime(folder, ns=(later, later))
    assert 500 in set(benchmark.read_nats(folder, "cifar100", epochs=200, test_set="x-test").runs["index"])


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
        content["200"]["arch_str"] = nas_bench_201.cell_at(1)
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
        ("another cell", "holds cell 12"),
        ("wrong name", "cell 11 is"),
        ("nan", "cell 11 has the accuracy nan"),
    ],
)
def test_a_spoiled_file_is_one_clear_error(folder: Path, how: str, message: str) -> None:
    spoiled(folder / "000011.pickle.pbz2", how)
    with pytest.raises(NasRetrainError, match=message):
        benchmark.read_nats(folder, "cifar10", epochs=200, test_set="ori-test")


def test_a_folder_without_cells_is_told(tmp_path: Path) -> None:
    with pytest.raises(NasRetrainError, match=r"has no files like 000000\.pickle\.pbz2"):
        benchmark.read(tmp_path, "cifar10", recipe="")
