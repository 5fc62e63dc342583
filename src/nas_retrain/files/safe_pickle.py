"""Reading pickles without running code from them: only plain values and numpy arrays of numbers come through.

A pickle is a program for a small stack machine, one of whose instructions calls any importable function. Here the
machine is our own. It has no instruction that calls, imports or changes an object: a name in a pickle becomes a token
of ours, and the few tokens that containers and arrays need stand for functions of this module. numpy arrays are made
by us from a data type out of a fixed list, a shape and bytes, once these fit one another.

What a pickle can cost is bounded by its size. Containers lie at most `DEEPEST` deep and hold no cycles, since one that
was put into another takes nothing more. Keys are atoms or flat tuples of them, so that hashing and comparing them is
quick. Whatever takes more memory than it takes room in the file is counted (`Unpickler._spend`).
"""

from __future__ import annotations

import codecs
import functools
import gc
import lzma
import math
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nas_retrain.errors import NasRetrainError, printable, shown
from nas_retrain.files.file_kind import seems

DEEPEST = 200
"""How deep containers may lie in one another; the published files' lie 7 deep."""

DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    AttributeError,
    LookupError,
    ArithmeticError,
    TypeError,
    ValueError,
    RuntimeError,  # also what zipfile raises for encrypted members, and NotImplementedError for unknown compression
    OSError,
)
"""What reading a damaged file raises: pickles, archives, and the structure of what they hold."""


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into one NasRetrainError that names `path`."""
    try:
        yield
    except DAMAGE as error:
        what = seems(path) or "it is truncated, damaged or not of the expected format"
        details = printable(f"{type(error).__name__}: {error}", 200)
        raise NasRetrainError(f"{path} cannot be read: {what} ({details}). Download or write it again.") from error
    except MemoryError:
        raise NasRetrainError(f"{path} cannot be read: this machine has not enough free memory for it.") from None


class Readable(Protocol):
    """What a pickle is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size` and none at the end."""


def load(file: Readable, path: Path) -> Any:  # noqa: ANN401 - a pickle holds anything
    """The value pickled in `file`: None, booleans, numbers, text, bytes, containers of these, and arrays of numbers.

    Text that Python 2 wrote is decoded as latin1. A numpy scalar comes back as Python's number, an OrderedDict as a
    dict, a bytearray as bytes; arrays are read-only. path: the file's name, for messages. Raises NasRetrainError if
    the pickle asks for anything else, is damaged, or would take far more memory than it has bytes.
    """
    with damage_reported(path):
        return Unpickler(file, path).load()


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from searching for reference cycles while many containers are made, none of which is in a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Token:
    """A name in a pickle. It serves only for the calls in `_CALLS` and as the class of an array."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _DataType:
    """A numpy data type in a pickle: one of `_DATA_TYPES` and its byte order."""

    __slots__ = ("name", "order")

    def __init__(self, name: str) -> None:
        self.name = name
        self.order: Literal["<", ">", "=", "|"] = "="

    def real(self) -> np.dtype[Any]:
        return np.dtype(self.name).newbyteorder(self.order)


class _Container:
    """A container or an array in a pickle.

    value: None for an array that has no contents yet. level: how deep the containers in it lie. open: whether it may
    still take values. arguments: whether it is a tuple that holds tokens, which is good for calls only.
    """

    __slots__ = ("arguments", "level", "open", "value")

    def __init__(self, value: Any, level: int = 1, *, arguments: bool = False) -> None:  # noqa: ANN401
        self.value = value
        self.level = level
        self.open = True
        self.arguments = arguments


_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
_DATA_TYPES: Final = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_NUMPY_MODULES: Final = {"_reconstruct": "multiarray", "scalar": "multiarray", "_frombuffer": "numeric"}
_NAMES: Final[Mapping[tuple[str, str], str]] = {
    ("collections", "OrderedDict"): "OrderedDict",
    ("_codecs", "encode"): "encode",
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "ndarray",
    **{(module, name): name for module in ("__builtin__", "builtins") for name in ("set", "bytes")},
    **{(f"numpy.{core}.{module}", name): name for core in ("core", "_core") for name, module in _NUMPY_MODULES.items()},
}
"""The names that plain containers and numpy arrays need, as Python 2 and 3 and numpy 1 and 2 write them."""

_MOST_TUPLE_KEYS = 1000
"""Tuples whose hashes are all the same can be made up, which no dict of many takes in good time."""

_LONGEST_INTEGER = 256
_LONGEST = 1 << 30
"""The longest text or bytes that are read: with a damaged length, all of a large file would be read at once."""

_BLOCK = 1 << 20
_MARGIN = 512
"""More than the longest instruction that `Unpickler.load` itself reads, so that it need not ask before each byte."""

_CONTAINER_COST = 250
_ITEM_COST = 100
_DOUBLE = struct.Struct(">d")
# Not possessive (++): Python 3.11 before 3.11.5 may end such a match within an element.
_INTEGER_RUN = re.compile(rb"(?:K.){1,4096}", re.DOTALL)
_CURVE_RUN = re.compile(rb"(?:K.G.{8}){1,4096}", re.DOTALL)
_CURVE_POINT = struct.Struct(">xBxd")
_RECALLED_RUN = re.compile(rb"(?:j.{4}G.{8}){1,4096}", re.DOTALL)
_RECALLED_POINT = np.dtype([("get", "u1"), ("place", "<u4"), ("float", "u1"), ("number", ">f8")])


class RefusedError(NasRetrainError):
    """A pickle asks for a name that it may not use; module: where that name is from."""

    def __init__(self, path: Path, module: str, name: str) -> None:
        self.module = module
        asked = printable(f"{module}.{name}", 80)
        super().__init__(
            f"{path} is refused: it asks for {asked}, which its format does not need and which "
            "could run code. Download the file again from its official source."
        )


@contextmanager
def tensors_refused(path: Path, advice: str) -> Iterator[None]:
    """Say of a file that asks for torch's tensors what it seems to be and what to give instead (advice)."""
    try:
        yield
    except RefusedError as error:
        if not error.module.startswith("torch"):
            raise
        raise NasRetrainError(f"{path} is refused: it asks for torch's tensors. {advice}") from error


class Bounded:
    """What is unpacked from an archive; raises ValueError once that is more than `most` bytes."""

    def __init__(self, file: Readable, most: int) -> None:
        self._file, self._left = file, most

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`."""
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it unpacks to far more than its size")
        return data


class _Form(NamedTuple):
    """How a run of points of a curve is found and taken apart."""

    run: re.Pattern[bytes]
    point: struct.Struct


@functools.cache
def _short_names(length: int) -> _Form:
    size = re.escape(bytes([length]))
    return _Form(
        re.compile(rb"(?:\x8c%b.{%d}\x94G.{8}){1,4096}" % (size, length), re.DOTALL), struct.Struct(f">2x{length}s2xd")
    )


@functools.cache
def _long_names(length: int) -> _Form:
    size = re.escape(bytes([length]))
    return _Form(
        re.compile(rb"(?:X%b\x00\x00\x00.{%d}r.{4}G.{8}){1,4096}" % (size, length), re.DOTALL),
        struct.Struct(f">5x{length}sx4sxd"),
    )


class Pairs(NamedTuple):
    """What a dict with tuples for keys holds, in the file's order. No key was hashed or compared, so one may be there
    more than once, and may hold anything."""

    keys: list[tuple[Any, ...]]
    values: list[Any]

    def __repr__(self) -> str:
        return f"<{len(self.keys)} pairs>"  # what they hold can be endless


class Unpickler:
    """Reads one or several pickles that lie one after the other in `file`; see `load` for what comes out.

    set_items: makes the dict of the items (key, value, key, value, ...) that a pickle puts into a dict at once, for a
    format in which not all are needed. pairs: whether a dict whose keys are tuples comes out as `Pairs`, for a format
    in which there are more of them than a dict may have.
    """

    def __init__(
        self,
        file: Readable,
        path: Path,
        set_items: Callable[[list[Any]], dict[Any, Any]] | None = None,
        *,
        pairs: bool = False,
    ) -> None:
        self._file = file
        self._path = path
        self._set_items = set_items
        self._pairs = pairs
        self._data = b""  # what was read and not yet used, from _position on
        self._position = 0
        self._safe = 0  # below this position there are _MARGIN bytes, or the file has ended
        self._read = 0
        self._spent = 0
        self._texts: dict[bytes, str] = {}  # so that equal strings are one
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._far_memo: dict[int, Any] = {}  # what was not numbered in turn

    def load(self) -> Any:  # noqa: ANN401
        """The next pickle's value. Raises one of DAMAGE, or RefusedError if it asks for a name that it may not use."""
        with _without_collector():
            return self._run()

    def _run(self) -> Any:  # noqa: ANN401
        stack, marks, memo, texts = self._stack, self._marks, self._memo, self._texts
        for part in (stack, marks, memo, self._far_memo):
            part.clear()
        data, position, safe = self._data, self._position, self._safe
        while True:
            if position >= safe:
                self._position = position
                self._refill()
                data, position, safe = self._data, self._position, self._safe
            code = data[position]
            # The instructions that files are full of; all others are methods.
            if code in (0x94, 0x71, 0x72):  # MEMOIZE, BINPUT, LONG_BINPUT
                if code == 0x94:
                    place, position = len(memo), position + 1
                elif code == 0x71:
                    place, position = data[position + 1], position + 2
                else:
                    place, position = int.from_bytes(data[position + 1 : position + 5], "little"), position + 5
                if place == len(memo):
                    memo.append(stack[-1])
                else:
                    self._remember(place, stack[-1])
            elif code == 0x47:  # BINFLOAT
                stack.append(_DOUBLE.unpack_from(data, position + 1)[0])
                position += 9
            elif code in (0x8C, 0x55) or (code == 0x58 and data[position + 2 : position + 5] == b"\0\0\0"):
                # SHORT_BINUNICODE, SHORT_BINSTRING, BINUNICODE of less than 256 bytes
                start = position + (5 if code == 0x58 else 2)
                length = data[position + 1]
                after = data[start + length : start + length + 6]
                if (code == 0x8C and after[:2] == b"\x94G") or (
                    code == 0x58 and after[:1] == b"r" and after[5:] == b"G"
                ):
                    end = self._curve_by_name(code, length, position)
                    if end > position:
                        position = end
                        continue
                position = start + length
                raw = data[start:position]
                text = texts.get(raw) if code != 0x55 else raw.decode("latin1")
                if text is None:
                    text = texts[raw] = raw.decode()
                stack.append(text)
            elif code == 0x4B:  # BININT1, also in runs: labels, and curves from an epoch to a number
                following = data[position + 2]
                if following == 0x4B:
                    end = _INTEGER_RUN.match(data, position).end()  # type: ignore[union-attr]
                    stack.extend(data[position + 1 : end : 2])
                    position = end
                elif following == 0x47 and (run := _CURVE_RUN.match(data, position)):
                    position = run.end()
                    stack.extend(chain.from_iterable(_CURVE_POINT.iter_unpack(run.group())))
                else:
                    stack.append(data[position + 1])
                    position += 2
            elif code in (0x68, 0x6A) and not self._far_memo:  # BINGET, LONG_BINGET, also in runs: keys and numbers
                if code == 0x6A and data[position + 5] == 0x47 and (run := _RECALLED_RUN.match(data, position)):
                    position = run.end()
                    points = np.frombuffer(run.group(), _RECALLED_POINT)
                    recalled = map(memo.__getitem__, points["place"].tolist())
                    stack.extend(chain.from_iterable(zip(recalled, points["number"].tolist(), strict=True)))
                elif code == 0x68:
                    stack.append(memo[data[position + 1]])
                    position += 2
                else:
                    stack.append(memo[int.from_bytes(data[position + 1 : position + 5], "little")])
                    position += 5
            elif code == 0x4D:  # BININT2
                stack.append(data[position + 1] | data[position + 2] << 8)
                position += 3
            elif code == 0x28:  # MARK
                marks.append(len(stack))
                position += 1
            elif code == 0x2E:  # STOP
                self._position = position + 1
                (value,), _, _ = self._values([stack.pop()])
                return value
            else:
                self._position = position + 1
                instruction = _INSTRUCTIONS.get(code)
                if instruction is None:
                    raise pickle.UnpicklingError(_REFUSED.get(code, f"there is no instruction {bytes([code])!r}"))
                instruction(self)
                data, position, safe = self._data, self._position, self._safe

    def _curve_by_name(self, code: int, length: int, position: int) -> int:
        """Take a run of names of this length, each remembered and followed by a number; returns where it ends.

        That is where it began if there is no such run.
        """
        form = (_short_names if code == 0x8C else _long_names)(length)
        run = form.run.match(self._data, position)
        if run is None:
            return position
        memo, texts = self._memo, self._texts
        points = list(form.point.iter_unpack(run.group()))
        if code != 0x8C:  # remembered under numbers, which must be the next ones
            numbers = [int.from_bytes(number, "little") for _, number, _ in points]
            if numbers != list(range(len(memo), len(memo) + len(points))):
                return position
        raws = [point[0] for point in points]
        names = [texts[raw] if raw in texts else texts.setdefault(raw, raw.decode()) for raw in raws]
        memo.extend(names)
        self._stack.extend(chain.from_iterable(zip(names, (point[-1] for point in points), strict=True)))
        return run.end()

    # Reading

    def _refill(self, least: int = _MARGIN) -> None:
        """Have `least` bytes from the position on, or all that there are."""
        parts, there = [self._data[self._position :]], len(self._data) - self._position
        while there < least:
            part = self._file.read(max(_BLOCK, there))
            if not part:
                break
            parts.append(part)
            there += len(part)
            self._read += len(part)
        self._data, self._position = b"".join(parts), 0
        self._safe = there - _MARGIN if there >= least else sys.maxsize

    def _take(self, number: int) -> bytes:
        """The next `number` bytes; no more memory is asked for than there are bytes."""
        if number > _LONGEST:
            raise pickle.UnpicklingError(f"{number} bytes are announced for one value")
        start, end = self._position, self._position + number
        if end > len(self._data):
            parts, there = [self._data[start:]], len(self._data) - start
            while there < number:
                part = self._file.read(min(number - there, 16 * _BLOCK))
                if not part:
                    raise EOFError(f"{number} bytes are announced, {there} are there")
                parts.append(part)
                there += len(part)
                self._read += len(part)
            self._data, self._position, self._safe = b"", 0, 0
            return b"".join(parts)
        self._position = end
        return self._data[start:end]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> bytes:
        """What is there up to the next line break, which is used up too."""
        searched = 0
        while (end := self._data.find(b"\n", self._position + searched)) < 0:
            searched = len(self._data) - self._position
            self._refill(searched + 1)
            if not searched < len(self._data) < _LONGEST:
                raise EOFError("a line does not end")
        start, self._position = self._position, end + 1
        return self._data[start:end]

    # Bounds

    def _spend(self, cost: int) -> None:
        """Count bytes of memory that stand for fewer bytes in the file; raises UnpicklingError if it is too much."""
        self._spent += cost
        if self._spent > (32 << 20) + 64 * self._read:
            raise pickle.UnpicklingError("it would take far more memory than it has bytes")

    def _put(self, value: Any, level: int = 1, *, arguments: bool = False) -> None:  # noqa: ANN401
        """Put a new container on the stack."""
        self._spend(_CONTAINER_COST)
        if level > DEEPEST:
            raise pickle.UnpicklingError(f"containers lie more than {DEEPEST} deep")
        self._stack.append(_Container(value, level, arguments=arguments))

    def _values(self, items: list[Any], *, arguments: bool = False) -> tuple[list[Any], int, bool]:
        """What items of the stack stand for, how deep containers lie in them, and whether there are tokens.

        Containers among them are closed. Tokens and the tuples that hold them are let through as arguments only.
        """
        if set(map(type, items)) <= _ATOMS:
            return items, 0, False
        values, level, tokens = [], 0, False
        for item in items:
            if type(item) is _Container:
                if item.value is None:
                    raise pickle.UnpicklingError("an array has no contents")
                if item.arguments and not arguments:
                    raise pickle.UnpicklingError("a name stands where a value belongs")
                item.open = False
                level = max(level, item.level)
                tokens |= item.arguments
                values.append(item.value)
            elif type(item) in _ATOMS:
                values.append(item)
            elif arguments and isinstance(item, _Token | _DataType):
                tokens = True
                values.append(item)
            else:
                raise pickle.UnpicklingError("a name stands where a value belongs")
        return values, level, tokens

    def _target(self, kind: type, level: int) -> Any:  # noqa: ANN401
        """The value of the container on top of the stack, which must be one of this kind that may be added to."""
        container = self._stack[-1]
        if type(container) is not _Container or type(container.value) is not kind:
            raise pickle.UnpicklingError(f"there is no {kind.__name__} to add to")
        if not container.open:
            raise pickle.UnpicklingError("something is added to a container that lies in another already")
        if level >= DEEPEST:
            raise pickle.UnpicklingError(f"containers lie more than {DEEPEST} deep")
        container.level = max(container.level, level + 1)
        return container.value

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _remember(self, place: int, item: Any) -> None:  # noqa: ANN401
        memo = self._memo
        if not memo and place == 1:  # Python 2 counts from 1
            memo.append(None)
        if place == len(memo):
            memo.append(item)
        elif place < len(memo):
            memo[place] = item
        else:
            self._spend(_ITEM_COST)
            self._far_memo[place] = item

    def _recall(self, place: int) -> None:
        self._stack.append(self._far_memo[place] if place in self._far_memo else self._memo[place])

    # Instructions

    def _frame(self) -> None:
        self._take(8)

    def _protocol(self) -> None:
        if (version := self._number(1)) > pickle.HIGHEST_PROTOCOL:
            raise pickle.UnpicklingError(f"its protocol is {version}")

    def _integer_of(self, size: int) -> None:
        if size > _LONGEST_INTEGER:
            raise pickle.UnpicklingError(f"an integer has {size} bytes")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def _integer_line(self) -> None:
        line = self._line()
        if len(line) > 2 * _LONGEST_INTEGER:
            raise pickle.UnpicklingError(f"an integer has {len(line)} digits")
        self._stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line.rstrip(b"L")))

    def _text_line(self) -> None:
        line = self._line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise pickle.UnpicklingError("a string has no quotes")
        self._stack.append(codecs.escape_decode(line[1:-1])[0].decode("latin1"))

    def _dict(self, items: list[Any]) -> tuple[dict[Any, Any], int]:
        values, level, _ = self._values(items)
        if len(values) % 2:
            raise pickle.UnpicklingError("a key has no value")
        self._check_keys(values[::2])
        made = self._set_items(values) if self._set_items else dict(zip(values[::2], values[1::2], strict=True))
        return made, level

    def _check_keys(self, keys: Sequence[Any], already: int = 0) -> None:
        kinds = set(map(type, keys))
        if kinds <= {str}:
            return
        if kinds - _ATOMS - {tuple}:
            raise pickle.UnpicklingError("a key is neither a number nor text nor a tuple of these")
        numbers = [key for key in keys if type(key) is int] if int in kinds else []
        if tuple in kinds:
            tuples = [key for key in keys if type(key) is tuple]
            if len(tuples) + already > _MOST_TUPLE_KEYS:
                raise pickle.UnpicklingError("too many keys are tuples")
            if not all(len(key) <= 8 and set(map(type, key)) <= _ATOMS for key in tuples):
                raise pickle.UnpicklingError("a key is neither a number nor text nor a tuple of these")
            numbers += [number for key in tuples for number in key if type(number) is int]
        # Greater ones with the same hash are easily made up.
        if numbers and not -(1 << 63) <= min(numbers) <= max(numbers) < 1 << 63:
            raise pickle.UnpicklingError("a key has more than 64 bits")

    def _add_items(self, items: list[Any]) -> None:
        if self._pairs and (self._of_kind(self._stack[-1], Pairs) or (items and self._of_kind(items[0], tuple))):
            self._add_pairs(items)
            return
        new, level = self._dict(items)
        target = self._target(dict, level)
        if target and any(type(key) is tuple for key in new):
            self._check_keys(list(new), already=len(target))
        target.update(new)

    @staticmethod
    def _of_kind(item: object, kind: type) -> bool:
        return type(item) is _Container and type(item.value) is kind

    def _add_pairs(self, items: list[Any]) -> None:
        if not items:  # as pickle ends a dict of a round number of items
            return
        values, level, _ = self._values(items)
        keys = values[::2]
        if len(values) % 2:
            raise pickle.UnpicklingError("a key has no value")
        if set(map(type, keys)) != {tuple}:
            raise pickle.UnpicklingError("some keys of a dict are tuples and others are not")
        container = self._stack[-1]
        if self._of_kind(container, dict) and not container.value:
            container.value = Pairs([], [])
        target = self._target(Pairs, level)
        target.keys.extend(keys)
        target.values.extend(values[1::2])

    def _add_members(self) -> None:
        members, level, _ = self._values(self._since_mark())
        target = self._target(set, level)
        self._check_keys(members, already=len(target))
        target.update(members)

    def _append(self, items: list[Any]) -> None:
        values, level, _ = self._values(items)
        self._target(list, level).extend(values)

    def _put_tuple(self, items: list[Any]) -> None:
        values, level, tokens = self._values(items, arguments=True)
        self._put(tuple(values), level + 1, arguments=tokens)

    def _put_list(self) -> None:
        values, level, _ = self._values(self._since_mark())
        self._put(values, level + 1)

    def _put_dict(self) -> None:
        made, level = self._dict(self._since_mark())
        self._put(made, level + 1)

    def _put_frozenset(self) -> None:
        members, level, _ = self._values(self._since_mark())
        self._check_keys(members)
        self._put(frozenset(members), level + 1)

    def _last(self, number: int) -> list[Any]:
        if len(self._stack) < number:
            raise pickle.UnpicklingError("the stack is empty")
        items = self._stack[-number:]
        del self._stack[-number:]
        return items

    def _name(self, module: str, name: str) -> None:
        if (module, name) not in _NAMES:
            raise RefusedError(self._path, module, name)
        self._stack.append(_Token(_NAMES[module, name]))

    def _name_lines(self) -> None:
        module, name = self._line(), self._line()
        self._name(module.decode(), name.decode())

    def _name_on_stack(self) -> None:
        module, name = self._last(2)
        if type(module) is not str or type(name) is not str:
            raise pickle.UnpicklingError("a name is not text")
        self._name(module, name)

    def _call(self) -> None:
        function, arguments = self._last(2)
        if type(function) is not _Token or function.name not in _CALLS:
            raise pickle.UnpicklingError("something is called that is no function")
        if type(arguments) is not _Container or type(arguments.value) is not tuple:
            raise pickle.UnpicklingError("a function is called without arguments")
        if arguments.arguments and function.name not in _ARRAY_CALLS:
            raise pickle.UnpicklingError("a name stands where a value belongs")
        made = _CALLS[function.name](self, *arguments.value)
        if isinstance(made, _DataType | int | float | bytes):
            self._spend(_ITEM_COST)
            self._stack.append(made)
        else:
            self._put(made, arguments.level)

    def _set_state(self) -> None:
        target, state = self._last(2)
        values = state.value if type(state) is _Container and type(state.value) is tuple else ()
        if type(target) is _DataType:
            if len(values) != 8 or values[2:] != (None, None, None, -1, -1, 0) or values[1] not in ("<", ">", "=", "|"):
                raise pickle.UnpicklingError("a data type is not a plain one")
            target.order = values[1]
        elif type(target) is _Container and target.value is None and len(values) == 5:
            _, shape, data_type, by_columns, raw = values
            target.value = self._array(raw, data_type, shape, by_columns=bool(by_columns))
        else:
            raise pickle.UnpicklingError("the state of something is set that has none")
        self._stack.append(target)

    # What tokens stand for

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:  # noqa: ANN401
        """What protocol 2 calls to rebuild bytes."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes are written with another codec than latin1: {shown(encoding)}")
        self._spend(len(text))
        encoded: bytes = text.encode(encoding)
        return encoded

    def _no_bytes(self) -> bytes:
        return b""

    def _ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:  # noqa: ANN401
        """An OrderedDict; Python 2 hands over its pairs."""
        self._spend(_ITEM_COST * len(pairs))
        if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            raise pickle.UnpicklingError("an OrderedDict is not made of pairs")
        self._check_keys([pair[0] for pair in pairs])
        return dict(pairs)

    def _set(self, members: Any = ()) -> set[Any]:  # noqa: ANN401
        if type(members) not in (list, tuple):
            raise pickle.UnpicklingError("a set is not made of a list")
        self._spend(_ITEM_COST * len(members))
        self._check_keys(members)
        return set(members)

    def _data_type(self, name: Any, *_: Any) -> _DataType:  # noqa: ANN401
        if type(name) is not str or name not in _DATA_TYPES:
            raise pickle.UnpicklingError("the values of an array are not plain numbers")
        return _DataType(name)

    def _unfilled(self, kind: Any, *_: Any) -> None:  # noqa: ANN401
        """An array whose contents come with its state."""
        if type(kind) is not _Token or kind.name != "ndarray":
            raise pickle.UnpicklingError("an array is of another class")

    def _scalar(self, data_type: Any, raw: Any) -> int | float:  # noqa: ANN401
        number: int | float = self._array(raw, data_type, ()).item()
        return number

    def _whole_array(self, raw: Any, data_type: Any, shape: Any, order: Any) -> NDArray[Any]:  # noqa: ANN401
        return self._array(raw, data_type, shape, by_columns=order == "F")

    def _array(
        self,
        raw: Any,  # noqa: ANN401
        data_type: Any,  # noqa: ANN401
        shape: Any,  # noqa: ANN401
        *,
        by_columns: bool = False,
    ) -> NDArray[Any]:
        """An array of these bytes, which must be just as many as its shape and data type take."""
        if type(raw) is str:  # by Python 2
            self._spend(len(raw))
            raw = raw.encode("latin1")
        if type(data_type) is not _DataType or type(raw) is not bytes:
            raise pickle.UnpicklingError("an array is not made of bytes of a plain data type")
        if type(shape) is not tuple or len(shape) > 32 or not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError("an array's shape is not a tuple of sizes")
        real = data_type.real()
        if math.prod(shape) * real.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array has {len(raw)} bytes, which its shape and data type do not take")
        if real == np.bool_ and raw.strip(b"\0\1"):
            raise pickle.UnpicklingError("a truth value is neither 0 nor 1")
        return np.frombuffer(raw, real).reshape(shape, order="F" if by_columns else "C")


_CALLS: Final[Mapping[str, Callable[..., Any]]] = {
    "OrderedDict": Unpickler._ordered_dict,
    "encode": Unpickler._encode,
    "set": Unpickler._set,
    "bytes": Unpickler._no_bytes,
    "dtype": Unpickler._data_type,
    "_reconstruct": Unpickler._unfilled,
    "scalar": Unpickler._scalar,
    "_frombuffer": Unpickler._whole_array,
}
_ARRAY_CALLS: Final = frozenset(_NUMPY_MODULES)
"""Those that may be handed an array's class or data type."""


def _pushing(value: object) -> Callable[[Unpickler], None]:
    return lambda machine: machine._stack.append(value)


def _decoded(size: int, encoding: str | None) -> Callable[[Unpickler], None]:
    """An instruction for text, or for bytes, whose length stands in `size` bytes."""

    def instruction(machine: Unpickler) -> None:
        raw = machine._take(machine._number(size))
        machine._stack.append(raw if encoding is None else raw.decode(encoding))

    return instruction


_INSTRUCTIONS: Final[Mapping[int, Callable[[Unpickler], object]]] = {
    code[0]: instruction
    for code, instruction in {
        pickle.PROTO: Unpickler._protocol,
        pickle.FRAME: Unpickler._frame,
        pickle.POP: lambda machine: machine._last(1),
        pickle.POP_MARK: Unpickler._since_mark,
        pickle.DUP: lambda machine: machine._stack.append(machine._stack[-1]),
        pickle.NONE: _pushing(None),
        pickle.NEWTRUE: _pushing(True),
        pickle.NEWFALSE: _pushing(False),
        pickle.BININT: lambda machine: machine._integer_of(4),
        pickle.LONG1: lambda machine: machine._integer_of(machine._number(1)),
        pickle.LONG4: lambda machine: machine._integer_of(machine._number(4)),
        pickle.INT: Unpickler._integer_line,
        pickle.LONG: Unpickler._integer_line,
        pickle.FLOAT: lambda machine: machine._stack.append(float(machine._line())),
        pickle.BINUNICODE: _decoded(4, "utf-8"),
        pickle.BINUNICODE8: _decoded(8, "utf-8"),
        pickle.UNICODE: lambda machine: machine._stack.append(machine._line().decode("raw-unicode-escape")),
        pickle.BINSTRING: _decoded(4, "latin1"),
        pickle.STRING: Unpickler._text_line,
        pickle.SHORT_BINBYTES: _decoded(1, None),
        pickle.BINBYTES: _decoded(4, None),
        pickle.BINBYTES8: _decoded(8, None),
        pickle.BYTEARRAY8: _decoded(8, None),
        pickle.EMPTY_LIST: lambda machine: machine._put([]),
        pickle.EMPTY_DICT: lambda machine: machine._put({}),
        pickle.EMPTY_SET: lambda machine: machine._put(set()),
        pickle.EMPTY_TUPLE: lambda machine: machine._put(()),
        pickle.TUPLE1: lambda machine: machine._put_tuple(machine._last(1)),
        pickle.TUPLE2: lambda machine: machine._put_tuple(machine._last(2)),
        pickle.TUPLE3: lambda machine: machine._put_tuple(machine._last(3)),
        pickle.TUPLE: lambda machine: machine._put_tuple(machine._since_mark()),
        pickle.LIST: Unpickler._put_list,
        pickle.DICT: Unpickler._put_dict,
        pickle.FROZENSET: Unpickler._put_frozenset,
        pickle.APPEND: lambda machine: machine._append(machine._last(1)),
        pickle.APPENDS: lambda machine: machine._append(machine._since_mark()),
        pickle.SETITEM: lambda machine: machine._add_items(machine._last(2)),
        pickle.SETITEMS: lambda machine: machine._add_items(machine._since_mark()),
        pickle.ADDITEMS: Unpickler._add_members,
        pickle.PUT: lambda machine: machine._remember(int(machine._line()), machine._stack[-1]),
        pickle.GET: lambda machine: machine._recall(int(machine._line())),
        pickle.BINGET: lambda machine: machine._recall(machine._number(1)),
        pickle.LONG_BINGET: lambda machine: machine._recall(machine._number(4)),
        pickle.GLOBAL: Unpickler._name_lines,
        pickle.STACK_GLOBAL: Unpickler._name_on_stack,
        pickle.REDUCE: Unpickler._call,
        pickle.BUILD: Unpickler._set_state,
    }.items()
}

_REFUSED: Final[Mapping[int, str]] = {
    code[0]: what
    for codes, what in {
        (pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER): (
            "reference to data outside the pickle"
        ),
        (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX): "an object of a class is asked for",
        (pickle.EXT1, pickle.EXT2, pickle.EXT4): "a name is asked for by a number",
    }.items()
    for code in codes
}
