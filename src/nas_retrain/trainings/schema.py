"""Tables whose rows are instances of one dataclass, from JSON lines or from Parquet, every value checked here.

The fields' annotations say the columns' types (int, float, str, a Literal of words, a tuple of numbers or None;
`| None` where a value may be absent), their defaults what is filled in where an older version of the package wrote no
such field. A column of tuples is in a table only if a row has one. Fields that the dataclass does not have were written
by a newer version: they are kept as further columns. Nothing here knows files.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json

Range = tuple[float, float]
"""The lowest and the highest value that a number may have, both included."""

LISTS = pa.list_(pa.float64())
"""The type of a column of tuples of numbers."""


@dataclass(frozen=True)
class Column:
    """One field of the dataclass as a column of a table."""

    name: str
    type: pa.DataType
    nullable: bool
    default: object
    words: tuple[str, ...]
    limits: Range

    @property
    def optional(self) -> bool:
        """Whether only tables have it in which a row has a value: tuples are long, and most tables are without."""
        return bool(self.type == LISTS)

    @property
    def expected(self) -> str:
        """What belongs here, in words."""
        if self.words:
            return f"one of {', '.join(self.words)}"
        if self.type == pa.string():
            return "a text"
        kind = {pa.int64(): "an integer", pa.float64(): "a number", LISTS: "a list of numbers"}[self.type]
        low, high = self.limits
        if low == -np.inf:
            return kind
        return f"{kind} from {low:g} up" if high == np.inf else f"{kind} from {low:g} to {high:g}"

    def holds(self, value: object) -> bool:
        """Whether a value of a JSON line has this column's type, which `pa.array` alone would not insist on."""
        if value is None:
            return True
        if self.type == pa.int64():
            return type(value) is int and -(2**63) <= value < 2**63
        if self.type == pa.float64():
            return _is_number(value)
        if self.type == LISTS:
            return type(value) is list and all(one is None or _is_number(one) for one in value)
        return type(value) is str


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= 2**53)


class Checked(NamedTuple):
    """The rows that are what they should be, where each of them was among those given, and what is wrong with the
    others: their places and a sentence each."""

    table: pa.Table
    places: list[int]
    faults: dict[int, str]


@dataclass(frozen=True)
class Schema:
    """The columns of a table of dataclass instances."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, kind: type, limits: Mapping[str, Range]) -> Self:
        """The schema of a dataclass; limits: of the fields that hold numbers, where not all finite ones will do."""
        hints = typing.get_type_hints(kind)
        columns = []
        for field in dataclasses.fields(kind):
            hint, nullable, words = hints[field.name], False, ()
            if isinstance(hint, types.UnionType):
                (hint,) = set(typing.get_args(hint)) - {types.NoneType}
                nullable = True
            if typing.get_origin(hint) is Literal:
                hint, words = str, typing.get_args(hint)
            arrow = {int: pa.int64(), float: pa.float64(), str: pa.string(), tuple[float | None, ...]: LISTS}[hint]
            default = None if field.default is dataclasses.MISSING else field.default
            columns.append(
                Column(field.name, arrow, nullable, default, words, limits.get(field.name, (-np.inf, np.inf)))
            )
        return cls(tuple(columns))

    @property
    def arrow(self) -> pa.Schema:
        """The same for pyarrow, of a table without optional columns."""
        return pa.schema([(column.name, column.type) for column in self.columns if not column.optional])

    def empty(self) -> pa.Table:
        """A table without rows."""
        return self.arrow.empty_table()

    def of_instances(self, instances: Sequence[Any]) -> pa.Table:
        """A table of instances of the dataclass, which are taken to be right."""
        values = {column.name: [getattr(one, column.name) for one in instances] for column in self.columns}
        return pa.table(
            {
                column.name: pa.array(values[column.name], column.type)
                for column in self.columns
                if not column.optional or any(value is not None for value in values[column.name])
            }
        )

    def from_lines(self, lines: Sequence[bytes]) -> Checked:
        """The table of JSON objects, one a line; blank lines count as lines and hold nothing."""
        objects: list[dict[str, Any]] = []
        places: list[int] = []
        faults: dict[int, str] = {}
        for place, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                found = _object(line)
            except ValueError as error:
                faults[place] = str(error)
                continue
            objects.append(found)
            places.append(place)
        by_name = _by_name(objects)
        nothing = (None,) * len(objects)
        arrays = {
            column.name: _array(column, by_name.get(column.name, nothing), places, faults)
            for column in self.columns
            if not column.optional or any(value is not None for value in by_name.get(column.name, nothing))
        }
        checked = self._checked(pa.table(arrays), places, faults)
        if faults:
            of_place = dict(zip(places, objects, strict=True))
            objects = [of_place[place] for place in checked.places]
        table = checked.table
        for name in sorted(set().union(*objects) - {column.name for column in self.columns}):
            table = table.append_column(name, _free_array([found.get(name) for found in objects]))
        return checked._replace(table=table)

    def from_table(self, table: pa.Table) -> Checked:
        """The rows of a table that were read from Parquet. Raises ValueError if a column is missing or of the wrong
        type, so that no row can be what it should be."""
        arrays, faults = {}, dict[int, str]()
        for column in self.columns:
            if table.schema.get_all_field_indices(column.name) == []:
                if column.default is None and not column.nullable:
                    raise ValueError(f"it has no column {column.name}")
                if not column.optional:
                    arrays[column.name] = pa.nulls(len(table), column.type)
                continue
            given = table[column.name] if len(table.schema.get_all_field_indices(column.name)) == 1 else None
            if given is None:
                raise ValueError(f"it has two columns {column.name}")
            if column.optional and _same_kind(given.type, pa.string()):  # as a version kept it that did not know it
                lists = [_from_text(text) for text in given.to_pylist()]
                arrays[column.name] = _array(column, lists, range(len(table)), faults)
                continue
            if not _same_kind(given.type, column.type):
                raise ValueError(f"its column {column.name} is of type {given.type}, and holds {column.expected}")
            try:
                arrays[column.name] = given.cast(column.type)
            except pa.ArrowException as error:
                raise ValueError(f"its column {column.name} holds what is not {column.expected}: {error}") from None
        for name in table.column_names:
            if name not in arrays:
                arrays[name] = table[name]
        return self._checked(pa.table(arrays), list(range(len(table))), faults)

    def unknown(self, table: pa.Table) -> list[str]:
        """The columns that a newer version wrote."""
        known = {column.name for column in self.columns}
        return [name for name in table.column_names if name not in known]

    def in_order(self, table: pa.Table) -> pa.Table:
        """The same table with the columns in this order, behind them those that a newer version wrote."""
        there = [column.name for column in self.columns if column.name in table.column_names]
        return table.select(there + self.unknown(table))

    def _checked(self, table: pa.Table, places: list[int], faults: dict[int, str]) -> Checked:
        """The rows without fault, with defaults filled in."""
        for column in self.columns:
            number = table.schema.get_field_index(column.name)
            if number < 0:  # optional, and no row has it
                continue
            values = table[column.name]
            if column.type == pa.float64():  # a number that pandas did not have is NaN, not null
                absent = column.nullable and pc.any(pc.is_nan(values)).as_py()
                values = pc.if_else(pc.is_nan(values), None, values) if absent else values
            if column.type == LISTS:
                values = _with_nulls(values)
            if column.default is not None:
                values = pc.fill_null(values, column.default)
            table = table.set_column(number, column.name, values)
            for row in np.flatnonzero(~_right(column, values)):
                value = values[row].as_py()
                faults.setdefault(places[row], _fault(column, value))
        if faults:
            right = [row for row, place in enumerate(places) if place not in faults]
            table, places = table.take(pa.array(right, pa.int64())), [places[row] for row in right]
        return Checked(table, places, faults)


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; raises ValueError, which says what is wrong, for all else."""
    try:
        found = from_json(line, allow_inf_nan=False)
    except ValueError:
        raise ValueError("it is torn or no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    if line.count(b'":') != len(found):  # a name twice, or names with spaces behind, or texts that look like one
        json.loads(line, object_pairs_hook=_without_repeats)
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)} twice")
    return dict(pairs)


def _by_name(objects: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    """The values of every name, in the order of the objects, None where one lacks it."""
    names = tuple(objects[0]) if objects else ()
    if all(tuple(found) == names for found in objects):  # as one version writes them; several times as fast
        return dict(zip(names, zip(*(found.values() for found in objects), strict=True), strict=True))
    return {name: [found.get(name) for found in objects] for name in set().union(*objects)}


def _array(column: Column, values: Sequence[Any], places: Sequence[int], faults: dict[int, str]) -> pa.Array:
    """A column's values; those of another type are reported and left out."""
    try:
        # One look at the types of all values is what makes this fast: a fault is rare.
        inside = chain.from_iterable(value for value in values if type(value) is list) if column.type == LISTS else ()
        if set(map(type, values)) <= _PLAIN[column.type] and set(map(type, inside)) <= _PLAIN[pa.float64()]:
            return pa.array(values, column.type)
    except (pa.ArrowInvalid, OverflowError):
        pass
    kept = []
    for place, value in zip(places, values, strict=True):
        if column.holds(value):
            kept.append(value)
        else:
            faults.setdefault(place, _fault(column, value))
            kept.append(None)
    return pa.array(kept, column.type)


_PLAIN = {
    pa.int64(): {int, types.NoneType},
    pa.float64(): {float, types.NoneType},
    pa.string(): {str, types.NoneType},
    LISTS: {list, types.NoneType},
}


def _with_nulls(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of numbers with null in the place of NaN, as pandas writes numbers that it does not have."""
    inside = pc.list_flatten(values)
    if not pc.any(pc.is_nan(inside)).as_py():
        return values
    inside = pc.if_else(pc.is_nan(inside), None, inside).combine_chunks()
    ends = np.append(0, _lengths(values).cumsum()).astype(np.int32)
    mask = pc.is_null(values).combine_chunks()
    return pa.chunked_array([pa.ListArray.from_arrays(pa.array(ends), inside, mask=mask)])


def _lengths(values: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How many numbers each list has; none where there is no list."""
    lengths: np.ndarray[Any, np.dtype[np.int64]] = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    return lengths.astype(np.int64)


def _fault(column: Column, value: object) -> str:
    if value is None:
        return f"it has no {column.name}"
    shown = repr(value)
    return f"{column.name} is {shown if len(shown) < 50 else shown[:47] + '...'}, where {column.expected} belongs"


def _right(column: Column, values: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which values a column may hold."""
    there = ~values.is_null().to_numpy()
    if column.words:
        right = pc.is_in(values, pa.array(column.words)).to_numpy()
    elif column.type == pa.string():
        right = np.ones(len(values), bool)
    elif column.type == LISTS:
        row_of_each = np.repeat(np.arange(len(values)), _lengths(values))
        right = np.ones(len(values), bool)
        right[row_of_each[~_within(column.limits, pc.list_flatten(values))]] = False
    else:
        right = _within(column.limits, values)
    return np.where(there, right, column.nullable)


def _within(limits: Range, values: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which numbers are finite and within limits, which one that is absent is taken to be."""
    numbers = pc.fill_null(values, max(0, limits[0])).to_numpy()
    within: np.ndarray[Any, np.dtype[np.bool_]] = np.isfinite(numbers) & (numbers >= limits[0]) & (numbers <= limits[1])
    return within


def _same_kind(given: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(given):
        given = given.value_type
    if pa.types.is_null(given):
        return True
    if wanted == LISTS:
        lists = pa.types.is_list(given) or pa.types.is_large_list(given) or pa.types.is_fixed_size_list(given)
        return lists and _same_kind(given.value_type, pa.float64())
    is_kind = {
        pa.string(): (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        pa.int64(): (pa.types.is_integer,),
        pa.float64(): (pa.types.is_floating, pa.types.is_integer),
    }
    return any(is_one(given) for is_one in is_kind[wanted])


def _free_array(values: Sequence[Any]) -> pa.Array:
    """Values of a field that nothing is known of; where they are nested or of several kinds, as JSON texts."""
    if {dict, list} & set(map(type, values)):
        return _as_texts(values)
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return _as_texts(values)


def _from_text(text: str | None) -> object:
    """The value that a JSON text is of; another text is returned as it is."""
    try:
        return None if text is None else from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def _as_texts(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if value is None else json.dumps(value, default=str) for value in values], pa.string())


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows of tables of one schema, in their order; a further column that some lack is null in them, and one that
    has types which no common one can hold becomes JSON texts."""
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        found: dict[str, list[pa.Schema]] = {}
        for table in tables:
            for field in table.schema:
                found.setdefault(field.name, []).append(pa.schema([field]))
        differing = {name for name, kinds in found.items() if not _have_common(kinds)}
        return pa.concat_tables([_with_texts(table, differing) for table in tables], promote_options="permissive")


def _have_common(kinds: list[pa.Schema]) -> bool:
    try:
        pa.unify_schemas(kinds, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _with_texts(table: pa.Table, names: set[str]) -> pa.Table:
    for number, name in enumerate(table.column_names):
        if name in names:
            table = table.set_column(number, name, _as_texts(table[name].to_pylist()))
    return table
