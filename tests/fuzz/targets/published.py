"""Files with accuracies and with images: pickles, cells' files, .pth files in both layouts, batches, and tables."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import pickle
import random as randoms
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nas_retrain.data import sources
from nas_retrain.errors import NasRetrainError
from nas_retrain.files import safe_pickle
from nas_retrain.settings import DatasetSettings
from nas_retrain.statistics import accuracies
from tests.fuzz.mutation import damaged, one_of
from tests.strategies import NAS_BENCH_201

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


@functools.cache
def _content(index: int = 11) -> dict[str, Any]:
    """What a NATS-Bench cell's file holds: a cell at two budgets."""
    random = np.random.default_rng(index)

    def result(name: str, seed: int, epochs: int) -> dict[str, Any]:
        curve = {epoch: float(random.uniform(10, 90)) for epoch in range(epochs)}
        return {
            "name": name,
            "net_state_dict": None,
            "train_acc1es": curve,
            "train_losses": curve,
            "arch_config": {"arch_str": NAS_BENCH_201.arch_at(index), "channel": 16},
            "params": np.float64(1.5),
            "seed": seed,
            "epochs": epochs,
            "latency": [0.1],
            "eval_names": ["ori-test"],
            "eval_acc1es": {f"ori-test@{epoch}": float(random.uniform(10, 90)) for epoch in range(epochs)},
        }

    return {
        budget: {
            "arch_index": index,
            "arch_str": NAS_BENCH_201.arch_at(index),
            "all_results": {("cifar10", seed): result("cifar10", seed, int(budget)) for seed in (777, 888)},
            "dataset_seed": {"cifar10": [777, 888]},
            "clear_net_done": True,
        }
        for budget in ("12", "200")
    }


@functools.cache
def _pickled(protocol: int) -> bytes:
    return pickle.dumps(_content(), protocol)


@functools.cache
def _official(protocol: int) -> bytes:
    cells = {11: {"less": _content()["12"], "full": _content()["200"]}}
    return pickle.dumps({"meta_archs": [], "arch2infos": cells, "evaluated_indexes": {11}}, protocol)


@functools.cache
def _batch(protocol: int) -> bytes:
    images = np.arange(6 * 3072, dtype=np.int64).astype(np.uint8).reshape(6, 3072)
    return pickle.dumps({"data": images, "labels": [0, 1, 2, 3, 4, 5], "filenames": ["x.png"] * 6}, protocol)


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


_NAMES = [
    f"c{module}\n{name}\n".encode()
    for module, name in [
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
        ("builtins", "set"),
        ("__builtin__", "bytes"),
        ("os", "system"),
    ]
]
_PIECES = [
    b"cnumpy\ndtype\n" + _text("i8") + b"\x89\x88\x87R",
    b"(K\x03" + _text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
    _NAMES[0] + _NAMES[3] + b"K\0\x85C\x01b\x87R",
    b"(K\x01K\x01\x85",
    b"\x89C\x08abcdefghtb",
    b"K\0\x85" + b"2\x86" * 40,
]
_ATOMS = [b"N", b"\x88", b"K\x01", b"M\x01\x02", b"J\xff\xff\xff\x7f", b"G" + struct.pack(">d", 1.5), b"C\x08abcdefgh"]
_ATOMS += [
    b"L99L\n",
    b"I01\n",
    b"F1.5\n",
    b"S'a\\x00'\n",
    b"Va\\u1234\n",
    b"\x8a\x01\xff",
    b"\x8b\2\0\0\0ab",
    _text("i8"),
]
_ATOMS += [_text("latin1"), b"U\x02\xe9a", b"X\x03\0\0\0abc", b"T\x01\0\0\0a", b"B\x01\0\0\0a", b"\x8e" + bytes(8)]
_CONTAINERS = [
    b"]",
    b"}",
    b")",
    b"\x8f",
    b"\x85",
    b"\x86",
    b"\x87",
    b"t",
    b"l",
    b"d",
    b"\x91",
    b"(",
    b"(",
    b"(",
    b"(K\1e",
]
_CHANGES = [b"a", b"e", b"s", b"u", b"\x90", b"R", b"R", b"b", b"b", b"0", b"1", b"2", b"\x94", b"\x93", b"\x81", b"o"]
_MEMO = [
    b"q\0",
    b"q\1",
    b"h\0",
    b"h\1",
    b"h\2",
    b"r\0\1\0\0",
    b"j\0\1\0\0",
    b"p5\n",
    b"g5\n",
    b"\x94",
    b"\x94",
    b"\x94",
]


def _program(random: randoms.Random) -> bytes:
    """Instructions put together at random, some of them in the order in which they make sense."""
    made = [b"\x80" + bytes([random.randint(0, 6)])]
    for _ in range(int(2 ** random.uniform(1, 9))):
        kinds = (_ATOMS, _ATOMS, _CONTAINERS, _CHANGES, _MEMO, _NAMES, _PIECES)
        piece = one_of(random, *kinds)
        made.append(piece * (random.choice((1, 1, 1, 1, 40, 5000)) if len(piece) < 3 else 1))
    return b"".join(made) + b"." * random.randint(0, 1)


def _some(whole: bytes, random: randoms.Random) -> bytes:
    """A pickle that is valid, damaged, or put together at random."""
    how = random.random()
    return damaged(whole, random) if how < 0.6 else _program(random) if how < 0.97 else whole


def fuzz_pickles(random: randoms.Random, folder: Path) -> None:
    """Any pickle: what comes out is made of plain values and arrays of numbers."""
    value = safe_pickle.load(io.BytesIO(_some(_pickled(random.randint(0, 5)), random)), folder / "file")
    _check(value)


def _check(value: Any) -> None:
    seen, left = set(), [value]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if type(one) in (list, tuple, set, frozenset):
            left += one
        elif type(one) is dict:
            left += [*one, *one.values()]
        elif type(one) is np.ndarray:
            assert one.dtype.kind in "biuf", one.dtype
            assert one.base is not None
            one.sum()
        else:
            assert type(one) in (type(None), bool, int, float, str, bytes), type(one)


def fuzz_cell_files(random: randoms.Random, folder: Path) -> None:
    """A NATS-Bench folder of one cell, whose copy beside it is damaged at times."""
    source = folder / "NATS-tss-simple"
    source.mkdir()
    path = source / "000011.pickle.pbz2"
    content = bz2.compress(_some(_pickled(random.randint(2, 5)), random), random.randint(1, 9))
    path.write_bytes(damaged(content, random) if random.random() < 0.3 else content)
    meta = bz2.compress(_some(pickle.dumps({"evaluated_indexes": {11}}), random))
    (source / "meta.pickle.pbz2").write_bytes(meta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = accuracies.read(source, "cifar10", NAS_BENCH_201, recipe="")
        copy = folder / "NATS-tss-simple.accuracies.parquet"
        copy.write_bytes(damaged(copy.read_bytes(), random))
        assert accuracies.read(source, "cifar10", NAS_BENCH_201, recipe="").runs.shape[1] == found.runs.shape[1]


def _read_pth(content: bytes, folder: Path) -> None:
    path = folder / "file.pth"
    path.write_bytes(content)
    accuracies.read(path, "cifar10", NAS_BENCH_201, recipe="")


def fuzz_old_pth(random: randoms.Random, folder: Path) -> None:
    """A .pth in torch's old layout."""
    content = MAGIC + _some(_official(2), random)
    _read_pth(damaged(content, random) if random.random() < 0.3 else content, folder)


def fuzz_new_pth(random: randoms.Random, folder: Path) -> None:
    """A .pth in torch's new layout, a zip archive."""
    buffer = io.BytesIO()
    compression = random.choices(
        [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], [9, 1, 1, 1]
    )
    with zipfile.ZipFile(buffer, "w", compression[0]) as archive:
        archive.writestr("file/data.pkl", _some(_official(2), random))
        if random.random() < 0.5:
            archive.writestr(
                random.choice(
                    ["file/version", "/etc/x", "file/../x", "file/\udcff".encode("utf-8", "replace").decode()]
                ),
                "3",
            )
    content = buffer.getvalue()
    _read_pth(damaged(content, random) if random.random() < 0.6 else content, folder)


_CIFAR = DatasetSettings(
    name="cifar10", classes=10, image_channels=3, image_size=32, train_images=30, test_images=6, mean=(0.0,) * 3,
    std=(1.0,) * 3, flip=False, padding=0, train_subset=None, dry_train_subset=None, base_rate=None, verify=False,
)  # fmt: skip


def fuzz_batches(random: randoms.Random, folder: Path) -> None:
    """CIFAR-10's files, one of them damaged, or those of ImageNet16."""
    dataset = random.choice([_CIFAR, _CIFAR.model_copy(update={"name": "imagenet16_120", "classes": 120})])
    source = sources.SOURCES[dataset.name]
    assert isinstance(source, sources.PickledBatches)
    below = folder / source.folder
    below.mkdir()
    for name in (*source.train_files, *source.test_files):
        (below / name).write_bytes(_batch(2))
    (below / random.choice([*source.train_files, *source.test_files])).write_bytes(
        _some(_batch(random.randint(0, 5)), random)
    )
    sources.read(dataset, folder)


@functools.cache
def _table() -> str:
    header = "index,arch,network_class,representative,copied,dataset,recipe,epochs,seed,test_accuracy,cifar10_test\n"
    rows = [
        f"{cell},{NAS_BENCH_201.arch_at(cell)},{cell},{cell},False,cifar10,mine,12,{seed},{50 + cell}.5,{60 + cell}.5\n"
        for cell in range(8)
        for seed in (777, 888)
    ]
    return header + "".join(rows)


_ODD_VALUES = [
    "inf",
    "-inf",
    "nan",
    "1e400",
    "1.5",
    "-1",
    "99999999999999999999",
    '"',
    "",
    ";",
    "\t",
    "true",
    "0x10",
    "é",
]


def fuzz_tables(random: randoms.Random, folder: Path) -> None:
    """Tables of accuracies as CSV, packed or not, in several encodings, and as Parquet."""
    import pandas as pd

    lines = [line.split(",") for line in _table().splitlines()]
    for _ in range(random.randint(0, 2)):
        row = random.choice(lines)
        row[random.randrange(len(row))] = random.choice(_ODD_VALUES)
    text = "\n".join(random.choice([",", ",", ",", ";", "\t"]).join(line) for line in lines)
    kind = random.choice(["csv", "csv.gz", "parquet"])
    path = folder / f"table.{kind}"
    if kind == "parquet":
        frame = pd.DataFrame(lines[1:], columns=lines[0])
        if frame.columns.has_duplicates:  # what pandas itself cannot write is no file to try
            return
        for column in frame.columns:
            if random.random() < 0.8 and column not in ("arch", "dataset", "recipe", "copied"):
                frame[column] = pd.to_numeric(frame[column], errors="coerce")
        frame.to_parquet(path)
        content = path.read_bytes()
    else:
        content = text.encode(random.choice(["utf-8", "utf-8", "utf-16", "latin1", "utf-8-sig"]), "replace")
        content = gzip.compress(content) if kind == "csv.gz" else content
    path.write_bytes(damaged(content, random, 2) if random.random() < 0.5 else content)
    for arguments in ({"recipe": "mine"}, {"recipe": "", "column": "test_accuracy"}):
        try:
            with warnings.catch_warnings(action="ignore"):  # of how the columns are separated
                accuracies.read(path, random.choice(["cifar10", "digits"]), NAS_BENCH_201, **arguments)
        except NasRetrainError:
            continue
