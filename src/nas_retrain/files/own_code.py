"""Functions of a user's own, named by where they are: `package.module:function`, or `folder/file.py:function`.

A process reads each of them once, as Python does with modules: what happens to a file meanwhile is for the next one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nas_retrain.errors import NasRetrainError


def is_file(name: str) -> bool:
    """Whether a function is named by the file that holds it."""
    return name.partition(":")[0].endswith(".py")


class Loaded(NamedTuple):
    """A function, and the first twelve digits of the SHA-256 of the file that has it, as it was when it was read; none
    where there is no such file, as of Python's own modules."""

    function: Callable[..., Any]
    checksum: str


def load(name: str, key: str) -> Callable[..., Any]:
    """The function of this name, see `loaded`."""
    return loaded(name, key).function


def loaded(name: str, key: str) -> Loaded:
    """The function of this name and the state of its file; modules are looked for in the working directory too.

    key: the setting that names it, for messages. Raises NasRetrainError if there is no such module or file, if it
    cannot be imported, or if it has no such function.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise NasRetrainError(f"{key}={name}: expected package.module:function or folder/file.py:function.")
    try:
        module = _from_file(Path(os.path.expanduser(place))) if is_file(name) else _from_module(place)  # noqa: PTH111
    except (Exception, SystemExit) as error:  # a script that ends as it is imported is no module either
        plain = isinstance(error, ModuleNotFoundError | FileNotFoundError)
        said = str(error) if plain else f"{type(error).__name__}: {error}"
        raise NasRetrainError(
            f"{key}={name}: {place} cannot be imported ({said}). Python looks for modules in the working directory and "
            "in the folders of PYTHONPATH."
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise NasRetrainError(f"{key}={name}: {place} was imported, but has no function {function}.")
    return Loaded(found, _checksums.get(module, ""))


_checksums: dict[ModuleType, str] = {}
"""Of the modules that were loaded."""


def _from_module(name: str) -> ModuleType:
    with _searched(Path.cwd()):
        module = importlib.import_module(name)
    file = getattr(module, "__file__", None)
    if module not in _checksums and file is not None:
        _checksums[module] = _short_digest(Path(file).read_bytes())
    return module


def _from_file(path: Path) -> ModuleType:
    # Under a name of its own, so that two files of one name and modules of the same name stay apart.
    name = f"nas_retrain_own_{_short_digest(bytes(path.absolute()))}"
    if name in sys.modules:
        return sys.modules[name]
    content = path.read_bytes()
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _searched(path.absolute().parent):
            # Not by the spec's loader, which would take what it compiled before of a file of the same size and second.
            exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))  # noqa: S102 - asked to by name
    except BaseException:
        del sys.modules[name]
        raise
    _checksums[module] = _short_digest(content)
    return module


def _short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


@contextmanager
def _searched(folder: Path) -> Iterator[None]:
    here = str(folder)
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
