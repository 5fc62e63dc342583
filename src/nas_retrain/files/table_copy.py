"""A copy of what was read from a large source, kept beside it as a Parquet file for as long as the source is the same.

A source is known by the names, sizes and modification times of its files, so that files that were added, replaced or
copied over it with an older time make the copy useless. What the copy was made of is written in the copy itself.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nas_retrain.errors import NasRetrainError
from nas_retrain.files.atomic import replacing
from nas_retrain.files.parquet import read_table

_FORMAT = 2
"""To be raised when what is written changes; copies of other formats are not used."""

_KEY = b"nas_retrain.source"


def identity(files: list[Path]) -> str:
    """What a source of these files is known by, as JSON: their number, total size, and a digest of sizes and times."""
    stats = sorted((file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
    digest = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    size = sum(bytes_of for _, bytes_of, _ in stats)
    return json.dumps({"format": _FORMAT, "files": len(stats), "bytes": size, "digest": digest})


def place(source: Path) -> Path:
    """Where the copy of a source is."""
    return source.with_name(f"{source.name}.accuracies.parquet")


def read(source: Path, known_by: str, columns: list[str]) -> pd.DataFrame | None:
    """The copy of a source, if there is one of the source as it is now. A damaged copy is reported and not used."""
    path = place(source)
    try:
        if not path.exists():
            return None
        table = read_table(path)
        if (table.schema.metadata or {}).get(_KEY) != known_by.encode():
            return None
        frame: pd.DataFrame = table.to_pandas()
        if list(frame.columns) != columns:
            raise ValueError(f"its columns are {', '.join(map(str, frame.columns))}")
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError) as error:
        warnings.warn(f"{path} is damaged ({str(error)[:200]}): {source} is read again.", stacklevel=2)
        return None
    return frame


def write(frame: pd.DataFrame, source: Path, known_by: str) -> None:
    """Keep a copy of what was read from a source; warns if it cannot be written."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: known_by.encode()})
    try:
        with replacing(place(source)) as temporary:
            pq.write_table(table, temporary)
    except NasRetrainError as error:
        warnings.warn(f"{error} It will be read again next time.", stacklevel=2)
