"""Read NAS-Bench-201's own file, NAS-Bench-201-v1_1-096897.pth, in little memory and without running code from it.

The file is one pickle of 4.7 GB that torch.save wrote. Nearly all of it is curves: dicts from an epoch, or from
"<test set>@<epoch>", to a number. Read whole they would be far more than most machines hold, so a curve is cut to its
last epoch while it is read, equal strings are one string, and what the pickle keeps for later reference is a list.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, cast

from tqdm import tqdm

from nas_retrain import safe_pickle
from nas_retrain.errors import NasRetrainError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the pickles that torch before 1.6 wrote one after the other; the object is the fourth."""


class _Memo(list[Any]):
    """What a pickle may refer back to; numbers are given out in order, so a list does for a dict."""

    def __setitem__(self, place: Any, value: Any) -> None:  # noqa: ANN401
        if place == len(self):
            self.append(value)
        else:
            super().__setitem__(place, value)


_PythonUnpickler: Any = pickle._Unpickler
"""The pickle module's own unpickler in Python: slower than the one in C, but its steps can be replaced."""


class _LastEpochs(safe_pickle.Guarded, _PythonUnpickler):  # type: ignore[misc]
    """An unpickler that admits plain containers and numpy arrays only, and cuts curves to their last epoch."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.memo = _Memo()
        self._path = path
        self._names = safe_pickle.PLAIN

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_last_epochs(items))

    def load_binunicode(self) -> None:
        super().load_binunicode()
        self.stack[-1] = sys.intern(self.stack[-1])

    def load_short_binunicode(self) -> None:
        super().load_short_binunicode()
        self.stack[-1] = sys.intern(self.stack[-1])

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BINUNICODE[0]] = load_binunicode
    dispatch[pickle.SHORT_BINUNICODE[0]] = load_short_binunicode


def _last_epochs(items: list[Any]) -> dict[Any, Any]:
    """The items (key, value, key, value, ...) as a dict; of a curve only the last epoch, for each test set."""
    keys, values = items[::2], items[1::2]
    if not all(type(value) is float for value in values):
        return dict(zip(keys, values, strict=True))
    if all(type(key) is int for key in keys):
        last = max(keys)
        return {last: values[keys.index(last)]}
    latest: dict[str, tuple[int, Any, float]] = {}
    for key, value in zip(keys, values, strict=True):
        name, at, epoch = str(key).rpartition("@")
        if not at or not epoch.isdecimal():
            return dict(zip(keys, values, strict=True))
        if name not in latest or int(epoch) > latest[name][0]:
            latest[name] = (int(epoch), key, value)
    return {key: value for _, key, value in latest.values()}


class _Told(io.RawIOBase):
    """A file that tells a progress bar what is read from it."""

    def __init__(self, file: IO[bytes], bar: tqdm[Any]) -> None:
        self._file, self._bar = file, bar

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._bar.update(len(data))
        return len(data)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The pickle in a file that torch.save wrote, old layout or new, at its object."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise NasRetrainError(f"{path} is an archive without a data.pkl: torch.save did not write it.")
            with archive.open(names[0]) as file, _with_progress(file, archive.getinfo(names[0]).file_size) as told:
                yield told
        return
    with path.open("rb") as file, _with_progress(file, path.stat().st_size) as told:
        if _LastEpochs(told, path).load() != _LEGACY_MAGIC:
            raise NasRetrainError(f"{path} was not written by torch.save. Is it NAS-Bench-201's file?")
        for _ in range(2):  # torch's protocol number and the writer's byte order
            _LastEpochs(told, path).load()
        yield told


@contextmanager
def _with_progress(file: IO[bytes], size: int) -> Iterator[IO[bytes]]:
    hidden = not sys.stderr.isatty()
    with tqdm(total=size, desc="reading", unit="B", unit_scale=True, disable=hidden) as bar:
        yield cast("IO[bytes]", io.BufferedReader(_Told(file, bar), 1 << 20))


def load(path: Path) -> dict[int, dict[str, Any]]:
    """What the file holds of each cell, by index: {"less": 12 epochs, "full": 200 epochs}, curves cut as said above.

    Raises NasRetrainError, naming `path`, if it is damaged, of another format, or asks for anything but plain data.
    """
    with safe_pickle.damage_reported(path), _opened(path) as file:
        content = _LastEpochs(file, path).load()
        return {int(index): dict(content["arch2infos"][index]) for index in content["evaluated_indexes"]}
