"""Reading a FOCUS file, CSV or Parquet, row by row: a year of charges needs no more memory than a day of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError

NamedRow = tuple[str, dict[str, Any]]
"""Where a row stands (`row 7`), and its cells by column."""


def read_rows(path: Path, needed: tuple[str, ...] = ()) -> Iterator[NamedRow]:
    """The rows of a FOCUS file, each with the place to name in an error (`FILE, row 2`; a CSV's first line is 1).

    A missing value is an empty text in CSV and None in Parquet. Raises `UserError` for a file that cannot be read or
    lacks a `needed` column.
    """
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path, needed)
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                _check_columns(path, list(reader.fieldnames or []), needed)
                yield from ((f"{path}, row {number}", row) for number, row in enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"focus: cannot read {path}: {reason}") from None


def _read_parquet(path: Path, needed: tuple[str, ...]) -> Iterator[NamedRow]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        table = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"focus: cannot read {path}: {error}") from None
    with table:
        _check_columns(path, table.schema_arrow.names, needed)
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _check_columns(path: Path, names: list[str], needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise UserError(f"focus: {path} is not a FOCUS file: it has no column {', '.join(missing)}")
