"""Read NAS-HPO-Bench-II: cells of NAS-Bench-201 without the 1x1 convolution, trained at many learning rates.

Hirose, Yoshinari and Shirakawa, ACML 2021 (github.com/yoichii/nashpobench2api). On CIFAR-10, 4^6 cells were trained
for 12 epochs at 8 learning rates, 0.003125 to 0.4, with 6 batch sizes, 16 to 512, and several seeds. The rate falls
along a cosine that ends at epoch 12, so that what is known of earlier epochs is of schedules that were not over. The
published folder has three pickled dicts:

- cellinfo.pkl: "hash" -> {cellcode: hash}; cells that the authors found isomorphic share a hash, and its trainings.
- bench12.pkl: "train_acc_<i>", "valid_acc_<i>" and "test_acc_<i>" for i = 0 to 11, times alike, -> {(hash, learning
  rate, batch size, seed): percent}.
- avgaccs200.pkl: "avg_acc" -> {(hash, learning rate, batch size): percent}. These are what a surrogate model predicts
  of 200 epochs, and no trainings.

A cellcode `a|bc|def` has the operations into vertices 1, 2 and 3, each by its source: a is 0 -> 1; b and c are 0 -> 2
and 1 -> 2; d, e and f are 0 -> 3, 1 -> 3 and 2 -> 3, the order of `space.EDGES`. The digits are 0 for the 3x3
convolution, 1 for 3x3 average pooling, 2 for the skip and 3 for none. That is what the code that trained the networks
says (github.com/yoichii/nashpobench2): a digit is a place in config/hydra/operations/wo_conv1.yaml, which lists
ReLUConvBN, Pooling, Identity and Zero; the forward pass of models/cells.py applies operation i (i - 1) / 2 + j to
vertex j on its way to vertex i; its example has `2|22|222` give four times the input, as skips do; and the figure in
the API's README calls `0|22|310` convolution, skip, skip, none, pool, convolution. The 1,011 cellcodes that were
trained (config/cellcodes/acml12.yaml) are, read so, of all 941 classes into which the cells fall if edges without
effect are pruned and skips contracted.

The networks differ from the benchmark's in two points of that code: average pooling counts the padding, and the
shortcuts of reduction blocks have biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_retrain.benches import registry
from nas_retrain.benches.nas_bench_201 import space
from nas_retrain.errors import NasRetrainError, shown
from nas_retrain.files import safe_pickle
from nas_retrain.files.safe_pickle import Pairs, Unpickler

TRAININGS, CELLS, PREDICTIONS = "bench12.pkl", "cellinfo.pkl", "avgaccs200.pkl"
EPOCHS = 12
PREDICTED_EPOCHS = 200
OPERATIONS = ("nor_conv_3x3", "avg_pool_3x3", "skip_connect", "none")
"""By digit, see above."""

_CELLCODE = re.compile(r"[0-3]\|[0-3]{2}\|[0-3]{3}")
_ADVICE = "Download NAS-HPO-Bench-II's files again (github.com/yoichii/nashpobench2api has the address)."

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def arch_of(cellcode: str) -> str:
    """NAS-Bench-201's string of a cellcode; raises NasRetrainError if it is none."""
    if not _CELLCODE.fullmatch(cellcode):
        raise NasRetrainError(f"Malformed cellcode {cellcode[:50]!r}: expected digits from 0 to 3 like '0|22|310'.")
    return space.format_cell(tuple(OPERATIONS[int(digit)] for digit in cellcode.replace("|", "")))


def cellcode_of(arch: str) -> str:
    """The cellcode of a cell string; raises NasRetrainError if that is malformed or has a 1x1 convolution."""
    operations = space.parse_operations(arch)
    if outside := set(operations) - set(OPERATIONS):
        raise NasRetrainError(f"{arch}: NAS-HPO-Bench-II has no cells with {outside.pop()}.")
    a, b, c, d, e, f = (str(OPERATIONS.index(operation)) for operation in operations)
    return f"{a}|{b}{c}|{d}{e}{f}"


@dataclass(frozen=True)
class NasHpoBench:
    """What the published files hold; NaN stands for a training that is not there.

    classes: for every cell of NAS-Bench-201 the lowest index of those with its hash; other cells stand for themselves.
    cells: (hashes,), that index of each hash. rates, batch_sizes, seeds: rising. valid, test: accuracy in percent after
    each epoch, (epochs, hashes, rates, batch sizes, seeds). predicted: of 200 epochs, (hashes, rates, batch sizes).
    """

    classes: tuple[int, ...]
    cells: Integers
    rates: Floats
    batch_sizes: Integers
    seeds: Integers
    valid: Floats
    test: Floats
    predicted: Floats


def is_here(folder: Path) -> bool:
    """Whether a folder has one of the published files."""
    return any((folder / name).is_file() for name in (TRAININGS, CELLS, PREDICTIONS))


def read(folder: Path) -> NasHpoBench:
    """Read the three published files in a folder.

    Raises NasRetrainError naming the file, and the column or key in it, for one that is missing, damaged or foreign.
    """
    hashes = _hashes(folder / CELLS)
    path = folder / TRAININGS
    trainings = _columns(path)
    names = [f"{which}_acc_{epoch}" for which in ("valid", "test") for epoch in range(EPOCHS)]
    keys = _Keys(_column(trainings, names[-1], path).keys, ("learning rate", "batch size", "seed"), hashes, path)
    by_name = [keys.arranged(_column(trainings, name, path), name) for name in names]
    del trainings
    path = folder / PREDICTIONS
    averages = _column(_columns(path), "avg_acc", path)
    others = _Keys(averages.keys, ("learning rate", "batch size"), hashes, path)
    predicted = others.arranged(averages, "avg_acc")
    if not all(np.array_equal(*both) for both in zip(keys.axes[:2], others.axes, strict=True)):
        raise NasRetrainError(f"{path}: its learning rates and batch sizes are not those of {TRAININGS}. {_ADVICE}")
    cells, classes = _classes(hashes)
    rates, batch_sizes, seeds = keys.axes
    return NasHpoBench(
        classes=classes,
        cells=cells,
        rates=rates,
        batch_sizes=batch_sizes.astype(np.int64),
        seeds=seeds.astype(np.int64),
        valid=np.stack(by_name[:EPOCHS]),
        test=np.stack(by_name[EPOCHS:]),
        predicted=predicted,
    )


def _classes(hashes: Mapping[str, str | int]) -> tuple[Integers, tuple[int, ...]]:
    """The lowest index of each hash, by the hashes' order, and the class of every cell of NAS-Bench-201."""
    members: dict[str | int, list[int]] = {}
    for cellcode, its_hash in hashes.items():
        members.setdefault(its_hash, []).append(registry.default().index_of(arch_of(cellcode)))
    classes = list(range(registry.default().size))
    for indices in members.values():
        for index in indices:
            classes[index] = min(indices)
    return np.array([min(indices) for indices in members.values()]), tuple(classes)


def _hashes(path: Path) -> dict[str, str | int]:
    """The hash of every cellcode."""
    hashes = _columns(path).get("hash")
    if not isinstance(hashes, dict) or not hashes:
        raise NasRetrainError(f"{path} holds no 'hash', the cells' hashes by their cellcodes. {_ADVICE}")
    for cellcode, its_hash in hashes.items():
        if not isinstance(cellcode, str) or not _CELLCODE.fullmatch(cellcode):
            raise NasRetrainError(f"{path}: {shown(cellcode)} is no cellcode like '0|22|310'. {_ADVICE}")
        if type(its_hash) not in (str, int) or (type(its_hash) is int and its_hash.bit_length() > 63):
            raise NasRetrainError(f"{path}: the hash of {cellcode} is neither text nor a number. {_ADVICE}")
    return hashes


def _columns(path: Path) -> dict[str, Any]:
    """The dict in a file. One whose keys are tuples is `Pairs`."""
    if not path.exists():
        raise NasRetrainError(
            f"There is no file {path}. NAS-HPO-Bench-II is {TRAININGS}, {CELLS} and {PREDICTIONS} in one folder. "
            f"{_ADVICE}"
        )
    with safe_pickle.damage_reported(path):
        if not path.is_file():
            raise OSError("it is not a regular file")
        with path.open("rb") as file:
            content = Unpickler(file, path, pairs=True).load()
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise NasRetrainError(f"{path} is a pickle, but of no dict of columns by their names. {_ADVICE}")
    return content


def _column(columns: Mapping[str, Any], name: str, path: Path) -> Pairs:
    column = columns.get(name)
    if not isinstance(column, Pairs):
        what = "has no column" if name not in columns else "has something else than accuracies by training in"
        raise NasRetrainError(f"{path} {what} {name!r}. {_ADVICE}")
    return column


class _Keys:
    """The keys of a column, (hash, learning rate, ...), and where each is in an array (hashes, rates, ...).

    axes: the values of each part but the hash, rising.
    """

    def __init__(
        self, keys: list[tuple[Any, ...]], parts: tuple[str, ...], hashes: Mapping[str, str | int], path: Path
    ) -> None:
        self._parts, self._path = parts, path
        self._places = {its_hash: place for place, its_hash in enumerate(dict.fromkeys(hashes.values()))}
        self._keys = keys
        values = self._values(keys)
        self.axes = [np.unique(column) for column in values]
        self._at = self._found(keys, values)

    def arranged(self, column: Pairs, name: str) -> Floats:
        """A column's accuracies, (hashes, rates, ...); NaN where there is none."""
        same = len(column.keys) == len(self._keys) and all(map(_is, column.keys, self._keys))
        at = self._at if same else self._found(column.keys, self._values(column.keys))
        if not set(map(type, column.values)) <= {float, int}:
            odd = next(place for place, value in enumerate(column.values) if type(value) not in (float, int))
            raise self._error(f"{name} of {shown(column.keys[odd])} is {shown(column.values[odd])}, no number")
        accuracies = _floats(column.values)
        wrong = np.flatnonzero(~((accuracies >= 0) & (accuracies <= 100)))
        if len(wrong):
            key = shown(column.keys[wrong[0]])
            raise self._error(f"{name} of {key} is {accuracies[wrong[0]]:g}, and no percentage from 0 to 100")
        if len(accuracies) and accuracies.max() <= 1:
            raise self._error(f"{name} has no accuracy above 1; percentages are expected")
        table = np.full((len(self._places), *map(len, self.axes)), np.nan)
        table.flat[at] = accuracies
        return table

    def _values(self, keys: list[tuple[Any, ...]]) -> list[Floats]:
        """The parts of keys but the hash, (keys,) each."""
        length = 1 + len(self._parts)
        if not keys or set(map(len, keys)) != {length}:
            odd = next((key for key in keys if len(key) != length), ())
            raise self._error(f"the key {shown(odd)} is not (hash, {', '.join(self._parts)})")
        columns = list(zip(*keys, strict=True))[1:]
        for part, column in zip(self._parts, columns, strict=True):
            if not set(map(type, column)) <= ({int, float} if part == "learning rate" else {int}):
                raise self._error(f"a {part} among the keys is no number")
        values = [_floats(column) for column in columns]
        for part, numbers in zip(self._parts, values, strict=True):
            if not (np.isfinite(numbers) & (numbers >= (0 if part == "seed" else 1e-12)) & (numbers < 2.0**53)).all():
                raise self._error(f"a {part} among the keys is negative, none or not finite")
            if len(np.unique(numbers)) > 1000:
                raise self._error(f"its keys have more than 1,000 different values of {part}")
        return values

    def _found(self, keys: list[tuple[Any, ...]], values: list[Floats]) -> Integers:
        """Where keys are in the flattened array."""
        if not set(map(type, (key[0] for key in keys))) <= {str, int}:
            raise self._error("a hash among the keys is neither text nor a number")
        hashes = [self._places.get(key[0], -1) for key in keys]
        if -1 in hashes:
            raise self._error(f"{CELLS} has no cell with the hash {shown(keys[hashes.index(-1)][0])}")
        at = np.array(hashes)
        for part, axis, column in zip(self._parts, self.axes, values, strict=True):
            place = np.minimum(np.searchsorted(axis, column), len(axis) - 1)
            if (axis[place] != column).any():
                raise self._error(f"the columns have different values of {part}")
            at = at * len(axis) + place
        repeated = np.flatnonzero(np.bincount(at) > 1)
        if len(repeated):
            raise self._error(f"the key {shown(keys[int(np.flatnonzero(at == repeated[0])[1])])} is there twice")
        return at

    def _error(self, what: str) -> NasRetrainError:
        return NasRetrainError(f"{self._path}: {what}. {_ADVICE}")


def _is(one: object, other: object) -> bool:
    return one is other


def _floats(numbers: Any) -> Floats:  # noqa: ANN401 - a list or tuple of numbers
    """Numbers as floats; what is too large for one is infinite."""
    try:
        return np.array(numbers, dtype=np.float64)
    except OverflowError:
        return np.array([number if abs(number) < 2.0**1000 else np.inf for number in numbers], dtype=np.float64)
