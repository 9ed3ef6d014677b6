"""FOCUS 1.2 files out of the ledger, and a provider's file in.

Export is streamed: a million charges need no more memory than a thousand. `--from` and `--to` bound the charge period's
start (UTC, end exclusive).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.errors import ConfigError, UserError, closest
from finops.focus.columns import (
    COLUMNS,
    DECIMAL,
    INTEGER,
    LEDGER_COLUMNS,
    TEXT,
    TIME,
    Batch,
    Issuer,
    pico_text,
    time_text,
)
from finops.ledger import schema
from finops.ledger.ledger import Ledger
from finops.money import MICRO, PICO, to_us

VERSIONS = ("1.2",)
FORMATS = ("csv", "parquet")
BATCH = 10_000
_NEEDS_QUOTES = re.compile(r'[,"\r\n]').search


def export(
    ledger: Ledger, output: Path, *, version: str = "1.2", file_format: str = "csv", start: datetime | None = None,
    end: datetime | None = None, issuer: Issuer | None = None,
) -> int:  # fmt: skip
    """Write the charges that began in [start, end) as a FOCUS file and return how many rows it has.

    The file appears whole or not at all. Raises `ConfigError` for an unknown version or format, `UserError` for an
    empty period.
    """
    for field, value, known in (("version", version, VERSIONS), ("format", file_format, FORMATS)):
        if value not in known:
            raise ConfigError(f"--{field}: '{value}' does not exist. Known: {', '.join(known)}{closest(value, known)}")
    if start is not None and end is not None and end <= start:
        raise UserError(f"--to: {end.isoformat()} must lie after --from {start.isoformat()}")
    batches = _batches(ledger, start, end, issuer or Issuer())
    write = _write_csv if file_format == "csv" else _write_parquet
    temporary = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        num_rows = write(temporary, batches)
        temporary.replace(output)
    except OSError as error:
        raise UserError(f"--output: cannot write {output}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


def _batches(ledger: Ledger, start: datetime | None, end: datetime | None, issuer: Issuer) -> Iterator[Batch]:
    """The charges that began in [start, end), in the order of recording."""
    table = schema.charges
    query = sa.select(*[table.c[name] for name in LEDGER_COLUMNS]).order_by(table.c.id)
    if start is not None:
        query = query.where(table.c.start_us >= to_us(start))
    if end is not None:
        query = query.where(table.c.start_us < to_us(end))
    with ledger.database.read() as connection:
        result = connection.execution_options(yield_per=BATCH).execute(query)
        for rows in result.partitions():
            yield Batch(dict(zip(LEDGER_COLUMNS, zip(*rows, strict=True), strict=True)), issuer)


ToText = Callable[[Any], str]


class _Cells(dict[object, str]):
    """Value -> its CSV cell, made when first asked for: most columns hold few values, and costs repeat in a row."""

    def __init__(self, to_text: ToText) -> None:
        super().__init__()
        self._to_text = to_text

    def __missing__(self, value: object) -> str:
        cell = self[value] = "" if value is None else self._to_text(value)
        return cell


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES(text) else text


_TO_TEXT: dict[str, ToText] = {DECIMAL: pico_text, TIME: time_text, INTEGER: str, TEXT: _quoted}


def _write_csv(path: Path, batches: Iterator[Batch]) -> int:
    num_rows = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(",".join(COLUMNS) + "\r\n")
        for batch in batches:
            cells = {kind: _Cells(to_text) for kind, to_text in _TO_TEXT.items()}
            columns = [map(cells[column.kind].__getitem__, column.make(batch)) for column in COLUMNS.values()]
            file.write("\r\n".join(map(",".join, zip(*columns, strict=True))) + "\r\n")
            num_rows += batch.num_rows
    return num_rows


def _write_parquet(path: Path, batches: Iterator[Batch]) -> int:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = {DECIMAL: pa.float64(), TIME: pa.timestamp("us", tz="UTC"), INTEGER: pa.int64(), TEXT: pa.string()}
    layout = pa.schema([(name, types[column.kind]) for name, column in COLUMNS.items()])
    scales = {DECIMAL: lambda value: value / PICO, TIME: lambda value: value * MICRO}
    num_rows = 0
    with pq.ParquetWriter(path, layout) as writer:
        for batch in batches:
            arrays = []
            for column, field in zip(COLUMNS.values(), layout, strict=True):
                values, scale = column.make(batch), scales.get(column.kind)
                if scale is not None:
                    values = [None if value is None else scale(value) for value in values]
                arrays.append(pa.array(values, type=field.type))
            writer.write_batch(pa.record_batch(arrays, schema=layout))
            num_rows += batch.num_rows
    return num_rows
