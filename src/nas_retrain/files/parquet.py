"""Reading Parquet files whose content is checked, so that no value of a damaged one fails when it is used."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


def read_table(source: Path | bytes) -> pa.Table:
    """The table in a file or in its bytes. Raises ValueError if it is damaged, also where texts are not UTF-8, and
    OSError if there is no such file."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    try:
        with pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source) as file:
            # Rows differ, so every one takes a bit or more; what declares more is no table but a trap for the memory.
            if file.metadata.num_rows > 8 * size:
                raise ValueError(f"it cannot hold the {file.metadata.num_rows:,} rows that it declares")
            table = file.read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return table


def read_frame(path: Path) -> pd.DataFrame:
    """The same as a data frame."""
    try:
        frame: pd.DataFrame = read_table(path).to_pandas()
    except pa.ArrowException as error:  # some of which are no ValueErrors
        raise ValueError(str(error)) from error
    return frame
