"""Tables of trainings at several learning rates: NAS-HPO-Bench-II's files, and tables of any kind."""

from __future__ import annotations

import functools
import io
import pickle
import random as randoms
import tempfile
import warnings
from pathlib import Path

import pandas as pd

from nas_retrain.benches.nas_bench_201 import nas_hpo_bench
from nas_retrain.statistics import rate_tables
from tests import published_tables
from tests.fuzz.mutation import damaged
from tests.strategies import NAS_BENCH_201

NAMES = (nas_hpo_bench.TRAININGS, nas_hpo_bench.CELLS, nas_hpo_bench.PREDICTIONS)


@functools.cache
def _files(protocol: int) -> dict[str, bytes]:
    """The three files of a few networks."""
    with tempfile.TemporaryDirectory() as folder:
        published_tables.write_nas_hpo_bench(Path(folder), 0.5, batch_sizes=(256,), seeds=(222, 555), every=100)
        contents = {name: pickle.loads((Path(folder) / name).read_bytes()) for name in NAMES}
    contents[NAMES[0]] = {name: column for name, column in contents[NAMES[0]].items() if "_time" not in name}
    return {name: pickle.dumps(content, protocol) for name, content in contents.items()}


def fuzz_nas_hpo_bench(random: randoms.Random, folder: Path) -> None:
    """NAS-HPO-Bench-II's folder, one file of it damaged."""
    files = dict(_files(random.choice((2, 4))))
    name = random.choice(NAMES)
    files[name] = damaged(files[name], random)
    for one, content in files.items():
        (folder / one).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rate_tables.read(folder, "cifar10", NAS_BENCH_201)


@functools.cache
def _tables() -> tuple[bytes, ...]:
    """A table of any kind and JAHS-Bench-201's, as CSV."""
    rows = [
        (cell, NAS_BENCH_201.arch_at(cell), rate, seed, 60 + cell + seed + rate, 12, 256)
        for cell in range(12)
        for rate in (0.1, 0.2)
        for seed in (1, 2)
    ]
    columns = ["index", "arch", "learning_rate", "seed", "accuracy", "epochs", "batch_size"]
    jahs, _ = published_tables.jahs_table(trainings=200, cells=12)
    return tuple(frame.to_csv(index=False).encode() for frame in (pd.DataFrame(rows, columns=columns), jahs))


def fuzz_tables_of_rates(random: randoms.Random, folder: Path) -> None:
    """Tables as CSV and as Parquet, damaged as such or in single values."""
    content = random.choice(_tables())
    lines = content.decode().splitlines()
    for _ in range(random.randint(0, 3)):
        place = random.randrange(len(lines))
        fields = lines[place].split(",")
        fields[random.randrange(len(fields))] = random.choice(
            ["", "inf", "-1", "nan", "x", "1e400", "0.5", "99999999999"]
        )
        lines[place] = ",".join(fields)
    content = "\n".join(lines).encode()
    if random.random() < 0.5:
        content = damaged(content, random)
    path = folder / "table.csv"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if random.random() < 0.3:
            path = folder / "table.parquet"
            try:
                pd.read_csv(io.BytesIO(content)).to_parquet(path)
            except Exception:  # noqa: BLE001 - what pandas itself cannot read or write is no file to try
                return
            if random.random() < 0.5:
                path.write_bytes(damaged(path.read_bytes(), random))
        rate_tables.read(path, "cifar10", NAS_BENCH_201)
