"""Functions of a user's own, named by where they are: `package.module:function`, or `folder/file.py:function`."""

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
from typing import Any

from nas_retrain.errors import NasRetrainError


def is_file(name: str) -> bool:
    """Whether a function is named by the file that holds it."""
    return name.partition(":")[0].endswith(".py")


def load(name: str, key: str) -> Callable[..., Any]:
    """The function of this name; modules are looked for in the working directory too.

    key: the setting that names it, for messages. Raises NasRetrainError if there is no such module or file, if it
    cannot be imported, or if it has no such function.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise NasRetrainError(f"{key}={name}: expected package.module:function or folder/file.py:function.")
    try:
        module = _from_file(Path(os.path.expanduser(place))) if is_file(name) else _from_module(place)  # noqa: PTH111
    except Exception as error:
        plain = isinstance(error, ModuleNotFoundError | FileNotFoundError)
        said = str(error) if plain else f"{type(error).__name__}: {error}"
        raise NasRetrainError(
            f"{key}={name}: {place} cannot be imported ({said}). Python looks for modules in the working directory and "
            "in the folders of PYTHONPATH."
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise NasRetrainError(f"{key}={name}: {place} was imported, but has no function {function}.")
    return found  # type: ignore[no-any-return]


def _from_module(name: str) -> ModuleType:
    with _searched(Path.cwd()):
        return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    # Under a name of its own, so that two files of one name and modules of the same name stay apart.
    name = f"nas_retrain_own_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _searched(path.absolute().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


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
