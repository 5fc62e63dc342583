"""Reading pickles without running code from them: only plain containers and numpy arrays come through.

A pickle may call any importable function while it is read. Here the names it may use are a closed table; nothing is
imported on its behalf, and a file that asks for anything else is refused with an error that names it.
"""

from __future__ import annotations

import collections
import pickle
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]

from nas_retrain.errors import NasRetrainError


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What protocol 2 calls to rebuild bytes; only ever with latin1, so other codecs are not looked up."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written with the codec {encoding!r}")
    return text.encode(encoding)


def _no_bytes() -> bytes:
    """What protocol 2 calls for an empty bytes object."""
    return b""


_NUMPY = {
    ("multiarray", "_reconstruct"): _reconstruct,
    ("multiarray", "scalar"): scalar,
    ("numeric", "_frombuffer"): _frombuffer,
}
PLAIN: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(builtins, "set"): set for builtins in ("__builtin__", "builtins")},
    **{(builtins, "bytes"): _no_bytes for builtins in ("__builtin__", "builtins")},
    **{(f"numpy.{core}.{module}", name): what for core in ("core", "_core") for (module, name), what in _NUMPY.items()},
}
"""The names that plain containers and numpy arrays need, as numpy 1 and numpy 2 write them."""

DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
    OSError,
    struct.error,
)
"""What unpickling raises on a damaged file."""


def admitted(names: Mapping[tuple[str, str], object], module: str, name: str, path: Path) -> object:
    """What `module.name` stands for in `names`; raises NasRetrainError, naming `path`, if it is not there."""
    try:
        return names[module, name]
    except KeyError:
        raise NasRetrainError(
            f"{path} is refused: it asks for {module}.{name}, which its format does not need and which could run code. "
            "Download the file again from its official source."
        ) from None


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Turn what a damaged pickle raises into one NasRetrainError that names `path`."""
    try:
        yield
    except DAMAGE as error:
        raise NasRetrainError(
            f"{path} cannot be read: it is truncated, damaged or not a pickle of the expected format "
            f"({type(error).__name__}: {error}). Download or write it again."
        ) from error


class Guarded:
    """What makes an unpickler safe, to be put before one of the pickle module's: names come from a closed table."""

    _path: Path
    _names: Mapping[tuple[str, str], object]

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """What the table has for a name."""
        return admitted(self._names, module, name, self._path)

    def persistent_load(self, pid: object) -> Any:  # noqa: ANN401
        """Refuse data outside the pickle."""
        raise pickle.UnpicklingError(f"reference to data outside the pickle: {pid!r}")


class _Unpickler(Guarded, pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path, names: Mapping[tuple[str, str], object]) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path
        self._names = names


def load(file: IO[bytes], path: Path, extra: Mapping[tuple[str, str], object] | None = None) -> object:
    """The object pickled in `file`. Text that Python 2 wrote is decoded as latin1.

    path: the file's name, for messages. extra: further names that the format needs, (module, name) -> what to use.
    Raises NasRetrainError if the pickle asks for any other name, or is damaged.
    """
    with damage_reported(path):
        return _Unpickler(file, path, {**PLAIN, **(extra or {})}).load()
