"""NAS-HPO-Bench-II: files of its form, read by its own package as well as here."""

from __future__ import annotations

import itertools
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_retrain.benches.nas_bench_201 import nas_hpo_bench, space
from nas_retrain.errors import NasRetrainError
from tests import published_tables
from tests.strategies import NAS_BENCH_201

CELLS = 41
"""Every so many networks are in the small files."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nas_hpo_bench_2")
    published_tables.write_nas_hpo_bench(folder, 0.5, batch_sizes=(128, 256), every=CELLS)
    return folder


def test_the_digits_are_those_of_the_code_that_trained_the_networks() -> None:
    # config/hydra/operations/wo_conv1.yaml lists these in this order, and a digit is a place in it.
    listed = ("ReLUConvBN", "Pooling", "Identity", "Zero")
    ours = {"ReLUConvBN": "nor_conv_3x3", "Pooling": "avg_pool_3x3", "Identity": "skip_connect", "Zero": "none"}
    assert tuple(ours[name] for name in listed) == nas_hpo_bench.OPERATIONS
    # The forward pass of models/cells.py takes operation i (i - 1) / 2 + j from vertex j to vertex i.
    places = {i * (i - 1) // 2 + j: (j, i) for i in range(1, 4) for j in range(i)}
    for place, (source, target) in places.items():
        digits = ["3"] * 6
        digits[place] = "0"
        code = f"{digits[0]}|{''.join(digits[1:3])}|{''.join(digits[3:])}"
        (edge,) = space.parse(nas_hpo_bench.arch_of(code)).edges
        assert (edge.source, edge.target, edge.operation.kernel_size) == (source, target, 3)


def test_the_examples_of_its_documentation_are_read_as_they_say() -> None:
    # The figure of the API's README: convolution, skip, skip, none, pool, convolution.
    arch = "|nor_conv_3x3~0|+|skip_connect~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|"
    assert nas_hpo_bench.arch_of("0|22|310") == arch
    # The docstring of NormalCell: 2|22|222 puts out four times its input, once for each path of skips.
    assert space.parse(nas_hpo_bench.arch_of("2|22|222")).path_depths(0) == {0: 4}


def test_cellcodes_and_cells_go_both_ways() -> None:
    codes = published_tables.cellcodes()
    archs = [nas_hpo_bench.arch_of(code) for code in codes]
    assert len(set(archs)) == 4**6
    assert [nas_hpo_bench.cellcode_of(arch) for arch in archs] == codes
    with pytest.raises(NasRetrainError, match="no cells with nor_conv_1x1"):
        nas_hpo_bench.cellcode_of(NAS_BENCH_201.arch_at(0))
    with pytest.raises(NasRetrainError, match=r"Malformed cellcode '0\|22\|31'"):
        nas_hpo_bench.arch_of("0|22|31")


def agree(folder: Path, queries: int) -> None:
    """The unmodified package and our reader have the same answers."""
    from nashpobench2api import NASHPOBench2API

    api = NASHPOBench2API(str(folder), verbose=False)
    ours = nas_hpo_bench.read(folder)
    rows = {cell: row for row, cell in enumerate(ours.cells.tolist())}
    drawn = random.Random(1)
    for _ in range(queries):
        code, rate, size = (drawn.choice(values) for values in (api.cellcodes, api.lrs, api.batch_sizes))
        seed, mode, epoch = drawn.choice(api.seeds), drawn.choice(["valid", "test"]), drawn.randint(1, 12)
        index = NAS_BENCH_201.index_of(nas_hpo_bench.arch_of(code))
        row = rows[ours.classes[index]]
        places = ours.rates.tolist().index(rate), ours.batch_sizes.tolist().index(size)
        of_epoch = (ours.valid if mode == "valid" else ours.test)[epoch - 1]
        theirs, _ = api.query_by_key(code, rate, size, mode=mode, iepoch=epoch, seed=seed, enable_log=False)
        assert of_epoch[row, *places, ours.seeds.tolist().index(seed)] == theirs
        predicted, _ = api.query_by_key(code, rate, size, epoch=200)
        assert ours.predicted[row, *places] == predicted


def test_its_own_package_and_this_reader_agree(folder: Path) -> None:
    agree(folder, 1000)


def test_isomorphic_cells_share_their_hash_and_all_others_stand_for_themselves(folder: Path) -> None:
    ours = nas_hpo_bench.read(folder)
    known = pickle.loads((folder / nas_hpo_bench.CELLS).read_bytes())["hash"]
    members: dict[str, list[int]] = {}
    for code, its_hash in known.items():
        members.setdefault(its_hash, []).append(NAS_BENCH_201.index_of(nas_hpo_bench.arch_of(code)))
    assert sorted(ours.cells) == sorted(map(min, members.values()))
    for indices in members.values():
        assert {ours.classes[index] for index in indices} == {min(indices)}
    outside = set(range(len(NAS_BENCH_201.archs))) - set(itertools.chain(*members.values()))
    assert all(ours.classes[index] == index for index in outside)
    assert max(map(len, members.values())) > 10


def test_a_training_that_is_not_there_is_absent(folder: Path, tmp_path: Path) -> None:
    contents = _contents(folder)
    missing = next(iter(contents["bench12.pkl"]["valid_acc_11"]))
    for name, column in contents["bench12.pkl"].items():
        if name != "lr":
            column.pop(missing)
    _write(contents, tmp_path)
    whole, ours = nas_hpo_bench.read(folder), nas_hpo_bench.read(tmp_path)
    gone = np.isnan(ours.valid)
    assert gone.sum() == 12
    assert np.array_equal(ours.valid[~gone], whole.valid[~gone])


def _contents(folder: Path) -> dict[str, Any]:
    names = (nas_hpo_bench.TRAININGS, nas_hpo_bench.CELLS, nas_hpo_bench.PREDICTIONS)
    return {name: pickle.loads((folder / name).read_bytes()) for name in names}


def _write(contents: dict[str, Any], folder: Path) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))


@pytest.fixture(scope="module")
def smallest(folder: Path) -> bytes:
    """The contents of files of two networks, pickled."""
    contents = _contents(folder)
    kept = sorted(set(contents["cellinfo.pkl"]["hash"].values()))[:2]
    codes = contents["cellinfo.pkl"]["hash"].items()
    contents["cellinfo.pkl"]["hash"] = {code: its_hash for code, its_hash in codes if its_hash in kept}
    for name in ("bench12.pkl", "avgaccs200.pkl"):
        contents[name] = {
            column: {key: value for key, value in values.items() if key[0] in kept}
            for column, values in contents[name].items()
            if "_time" not in column and "train" not in column
        }
    return pickle.dumps(contents)


Change = Callable[[dict[str, Any]], object]


def _accuracy(value: object) -> Change:
    def change(contents: dict[str, Any]) -> None:
        column = contents["bench12.pkl"]["test_acc_3"]
        column[next(iter(column))] = value

    return change


def _key(make: Callable[[tuple[Any, ...]], object], name: str = "bench12.pkl", column: str = "valid_acc_11") -> Change:
    def change(contents: dict[str, Any]) -> None:
        values = contents[name][column]
        values[make(next(iter(values)))] = values.pop(next(iter(values)))

    return change


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harmed",)


MALFORMED: dict[str, tuple[Change, str]] = {
    "no trainings": (lambda c: c.pop("bench12.pkl"), r"no file .*bench12\.pkl"),
    "no cells": (lambda c: c.pop("cellinfo.pkl"), r"no file .*cellinfo\.pkl"),
    "no predictions": (lambda c: c.pop("avgaccs200.pkl"), r"no file .*avgaccs200\.pkl"),
    "empty": (lambda c: c.update({"cellinfo.pkl": b""}), r"cellinfo\.pkl cannot be read: it is empty"),
    "a web page": (lambda c: c.update({"bench12.pkl": b"<!doctype html>"}), "seems to be a web page"),
    "truncated": (lambda c: c.update({"bench12.pkl": pickle.dumps(c["bench12.pkl"])[:-5000]}), "cannot be read"),
    "code": (lambda c: c.update({"bench12.pkl": {"valid_acc_11": _Harmful()}}), "is refused"),
    "a list": (lambda c: c.update({"bench12.pkl": [1]}), "is a pickle, but of no dict"),
    "other columns": (lambda c: c["bench12.pkl"].pop("valid_acc_4"), "has no column 'valid_acc_4'"),
    "no average": (lambda c: c["avgaccs200.pkl"].pop("avg_acc"), "has no column 'avg_acc'"),
    "a number for a column": (lambda c: c["bench12.pkl"].update(valid_acc_11=3), "something else than accuracies"),
    "an empty column": (lambda c: c["bench12.pkl"].update(valid_acc_11={}), "something else than accuracies"),
    "no hashes": (lambda c: c["cellinfo.pkl"].pop("hash"), r"cellinfo\.pkl holds no 'hash'"),
    "a foreign cellcode": (lambda c: c["cellinfo.pkl"]["hash"].update({"4|00|000": "h"}), "'4|00|000' is no cellcode"),
    "a hash that is a list": (lambda c: c["cellinfo.pkl"]["hash"].update({"0|00|000": []}), "hash of 0|00|000"),
    "an unknown hash": (_key(lambda key: ("nobody", *key[1:])), "no cell with the hash 'nobody'"),
    "no seed": (_key(lambda key: key[:3]), r"is not \(hash, learning rate, batch size, seed\)"),
    "a seed that is text": (_key(lambda key: (*key[:3], "x")), "a seed among the keys is no number"),
    "a negative rate": (_key(lambda key: (key[0], -0.1, *key[2:])), "learning rate among the keys is negative"),
    "an infinite rate": (_key(lambda key: (key[0], float("inf"), *key[2:])), "not finite"),
    "a huge batch size": (_key(lambda key: (*key[:2], 10**400, key[3])), "not finite"),
    "a hash that is none": (_key(lambda key: (None, *key[1:])), "neither text nor a number"),
    "another rate in one column": (
        _key(lambda key: (key[0], 0.3, *key[2:]), column="test_acc_0"),
        "different values of learning rate",
    ),
    "other rates in the predictions": (
        _key(lambda key: (key[0], 0.3, key[2]), "avgaccs200.pkl", "avg_acc"),
        r"are not those of bench12\.pkl",
    ),
    "accuracy of NaN": (_accuracy(float("nan")), r"test_acc_3 of \('h.*\) is nan"),
    "accuracy above 100": (_accuracy(100.5), "is 100.5, and no percentage"),
    "accuracy that is text": (_accuracy("high"), "is 'high', no number"),
    "fractions": (
        lambda c: c["avgaccs200.pkl"].update(avg_acc=dict.fromkeys(c["avgaccs200.pkl"]["avg_acc"], 0.9)),
        "percentages are expected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_file_is_one_error_that_names_it(smallest: bytes, tmp_path: Path, fault: str) -> None:
    change, told = MALFORMED[fault]
    contents = pickle.loads(smallest)
    change(contents)
    _write(contents, tmp_path)
    with pytest.raises(NasRetrainError, match=told) as error:
        nas_hpo_bench.read(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert not Path("harmed").exists()


def test_a_key_that_is_there_twice_is_an_error(smallest: bytes, tmp_path: Path) -> None:
    contents = pickle.loads(smallest)
    column = contents["bench12.pkl"]["valid_acc_11"]
    contents["bench12.pkl"]["valid_acc_11"] = {"place of the column": 0}
    _write(contents, tmp_path)
    path = tmp_path / "bench12.pkl"
    items = b"".join(pickle.dumps(part, 2)[2:-1] for key, value in column.items() for part in (key, value))
    first = b"".join(pickle.dumps(part, 2)[2:-1] for part in next(iter(column.items())))
    # A dict in place of the other one, without what remembers parts, in which the first key comes again.
    twice = b"}(" + items + first + b"u"
    name = pickle.dumps("valid_acc_11", 2)[2:-1]
    others = {key: value for key, value in contents["bench12.pkl"].items() if key != "valid_acc_11"}
    whole = pickle.dumps(others, 2)[:-1] + b"(" + name + twice + b"u."
    path.write_bytes(whole)
    with pytest.raises(NasRetrainError, match="is there twice"):
        nas_hpo_bench.read(tmp_path)
