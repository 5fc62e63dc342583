"""Read NAS-Bench-201's own file, NAS-Bench-201-v1_1-096897.pth, in little memory and without running code from it.

The file is one pickle of 4.7 GB that torch.save wrote. Nearly all of it is curves: dicts from an epoch, or from
"<test set>@<epoch>", to a number. Read whole they would be far more than most machines hold, so a curve is cut to its
last epoch while it is read.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import safe_pickle
from nas_retrain.files.safe_pickle import Readable, Unpickler

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the pickles that torch before 1.6 wrote one after the other; the object is the fourth."""

EXPECTED = "Give NAS-Bench-201-v1_1-096897.pth, or a NATS-Bench folder whose name ends in -simple."

_MOST_MEMBERS = 10_000
_ENCRYPTED = 1


def _last_epochs(items: list[Any]) -> dict[Any, Any]:
    """The items (key, value, key, value, ...) as a dict; of a curve only the last epoch, for each test set."""
    keys, values = items[::2], items[1::2]
    if set(map(type, values)) != {float}:
        return dict(zip(keys, values, strict=True))
    kinds = set(map(type, keys))
    if kinds == {int}:
        last = max(keys)
        return {last: values[keys.index(last)]}
    if kinds != {str}:
        return dict(zip(keys, values, strict=True))
    latest: dict[str, tuple[int, Any, float]] = {}
    for key, value in zip(keys, values, strict=True):
        name, at, epoch = key.rpartition("@")
        if not at or not epoch.isdecimal():
            return dict(zip(keys, values, strict=True))
        if name not in latest or int(epoch) > latest[name][0]:
            latest[name] = (int(epoch), key, value)
    return {key: value for _, key, value in latest.values()}


class _Told:
    """A file that tells a progress bar what is read from it."""

    def __init__(self, file: Readable, bar: tqdm[Any]) -> None:
        self._file, self._bar = file, bar

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._bar.update(len(data))
        return data


@contextmanager
def _with_progress(file: Readable, size: int) -> Iterator[Readable]:
    hidden = not sys.stderr.isatty()
    with tqdm(total=size, desc="reading", unit="B", unit_scale=True, disable=hidden) as bar:
        yield _Told(file, bar)


def _content(path: Path) -> Any:  # noqa: ANN401 - a file holds anything
    """The object in a file that torch.save wrote, in its old layout or its new one."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\3\4"
    if is_archive:
        return _from_archive(path)
    with path.open("rb") as file, _with_progress(file, path.stat().st_size) as told:
        unpickler = Unpickler(told, path, _last_epochs)
        if unpickler.load() != _LEGACY_MAGIC:
            raise NasRetrainError(f"{path} was not written by torch.save. {EXPECTED}")
        for _ in range(2):  # torch's protocol number and the writer's byte order
            unpickler.load()
        return unpickler.load()


def _from_archive(path: Path) -> Any:  # noqa: ANN401
    with zipfile.ZipFile(path) as archive:
        member = _pickle_in(archive, path)
        with archive.open(member) as file, _with_progress(file, member.file_size) as told:
            content = Unpickler(told, path, _last_epochs).load()
            while told.read(1 << 20):  # the check sum is compared at the end
                pass
        return content


def _pickle_in(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    """The member with the pickle; raises NasRetrainError for what torch.save writes in no archive."""
    members = archive.infolist()
    names = [member.filename for member in members]
    pickles = [member for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
    if len(pickles) != 1:
        raise NasRetrainError(f"{path} is a zip archive without a data.pkl: torch.save did not write it. {EXPECTED}")
    folder = pickles[0].filename.removesuffix("data.pkl")
    size = path.stat().st_size
    odd = (
        len(members) > _MOST_MEMBERS
        or len(set(names)) < len(names)
        or any(not name.startswith(folder) or {"..", "."} & set(name.split("/")) for name in names)
        or any(member.flag_bits & _ENCRYPTED for member in members)
        or any(member.compress_type != zipfile.ZIP_STORED for member in members)
        or any(member.file_size != member.compress_size for member in members)
        or sum(member.file_size for member in members) > size
    )
    if odd:
        raise NasRetrainError(
            f"{path} is refused: its members are repeated, encrypted, compressed, too large or oddly named, as "
            "torch.save writes none. Download the file again from its official source."
        )
    return pickles[0]


def load(path: Path) -> dict[int, dict[str, Any]]:
    """What the file holds of each cell, by index: {"less": 12 epochs, "full": 200 epochs}, curves cut as said above.

    Raises NasRetrainError, naming `path`, if it is damaged, of another format, or asks for anything but plain data.
    """
    with safe_pickle.damage_reported(path):
        with safe_pickle.tensors_refused(path, f"It seems to be a network's checkpoint. {EXPECTED}"):
            content = _content(path)
        if not isinstance(content, dict) or not {"arch2infos", "evaluated_indexes"} <= content.keys():
            raise NasRetrainError(
                f"{path} cannot be read as NAS-Bench-201's file: torch.save wrote it, but it holds no 'arch2infos' and "
                f"'evaluated_indexes'. It seems to be another program's checkpoint. {EXPECTED}"
            )
        cells: dict[int, dict[str, Any]] = {}
        for index in content["evaluated_indexes"]:
            budgets = content["arch2infos"][index] if type(index) is int else None
            if type(budgets) is not dict:
                raise ValueError("what it holds of a cell is not of the expected structure")
            cells[index] = budgets
        return cells
