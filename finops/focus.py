"""FOCUS 1.2 files out of the ledger, and a provider's file in.

    python -m finops.focus export --version 1.2 --from 2026-10-01 --to 2026-11-01 --format csv --output october.csv
    python -m finops.focus export --format parquet --output all.parquet
    python -m finops.focus import provider.csv              # replaces estimated cost by what the provider billed
    python -m finops.focus check october.csv                # runs focus-validator and applies the reviewed waivers

Export is streamed: a million charges need no more memory than a thousand. `--from` and `--to` bound the charge period's
start (UTC, end exclusive).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, UserError, closest
from finops.focus_rows import COLUMNS, DECIMAL, INTEGER, TIME, Issuer, converters, focus_row
from finops.money import parse_moment, to_us

if TYPE_CHECKING:
    from finops.ledger import Ledger

VERSIONS = ("1.2",)
FORMATS = ("csv", "parquet")
BATCH = 20_000


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
    rows = _rows(ledger, start, end, issuer or Issuer())
    write = _write_csv if file_format == "csv" else _write_parquet
    temporary = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        num_rows = write(temporary, rows)
        temporary.replace(output)
    except OSError as error:
        raise UserError(f"--output: cannot write {output}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


def _rows(
    ledger: Ledger, start: datetime | None, end: datetime | None, issuer: Issuer
) -> Iterator[Sequence[list[Any]]]:
    """Batches of FOCUS rows in the order of recording."""
    import sqlalchemy as sa

    from finops import schema

    table = schema.charges
    query = sa.select(table).order_by(table.c.id)
    if start is not None:
        query = query.where(table.c.start_us >= to_us(start))
    if end is not None:
        query = query.where(table.c.start_us < to_us(end))
    with ledger.database.read() as connection:
        result = connection.execution_options(yield_per=BATCH).execute(query)
        for batch in result.partitions():
            yield [focus_row(row, issuer) for row in batch]


def _write_csv(path: Path, batches: Iterator[Sequence[list[Any]]]) -> int:
    num_rows = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for batch in batches:
            writer.writerows(batch)
            num_rows += len(batch)
    return num_rows


def _write_parquet(path: Path, batches: Iterator[Sequence[list[Any]]]) -> int:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = {DECIMAL: pa.float64(), TIME: pa.timestamp("us", tz="UTC"), INTEGER: pa.int64()}
    layout = pa.schema([(name, types.get(kind, pa.string())) for name, kind in COLUMNS.items()])
    convert, num_rows = converters(), 0
    with pq.ParquetWriter(path, layout) as writer:
        for batch in batches:
            columns = zip(*batch, strict=True)
            arrays = [
                pa.array([change(value) for value in column], type=field.type)
                for column, change, field in zip(columns, convert, layout, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=layout))
            num_rows += len(batch)
    return num_rows


def _parser() -> argparse.ArgumentParser:
    from finops.cli import parser

    commands = parser("finops.focus", __doc__)
    actions = commands.add_subparsers(dest="action", required=True)
    write = actions.add_parser("export", help="write a FOCUS file")
    write.add_argument("--version", default="1.2", help="FOCUS version (default and only one: 1.2)")
    write.add_argument("--from", dest="start", metavar="DATE", help="first day, UTC: 2026-10-01 (default: all)")
    write.add_argument("--to", dest="end", metavar="DATE", help="day after the last (default: all)")
    write.add_argument("--format", default="csv", help="csv or parquet (default: csv)")
    write.add_argument("--output", required=True, type=Path)
    write.add_argument("--account-id", default=Issuer.account_id)
    write.add_argument("--account-name", default=Issuer.account_name)
    write.add_argument("--invoice-issuer", help="who bills (default: each row's provider)")
    read = actions.add_parser("import", help="replace estimated cost by a provider's billed cost")
    read.add_argument("file", type=Path)
    check = actions.add_parser("check", help="validate a file with focus-validator")
    check.add_argument("file", type=Path)
    check.add_argument("--validator", default="focus-validator", help="the validator's program (default: on PATH)")
    return commands


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    if options.action == "check":
        from finops.focus_check import check

        report = check(options.file, options.validator)
        print(report)
        return 0 if report.passed else 1
    from finops.ledger import Ledger

    ledger = Ledger(options.ledger, create=False)
    if options.action == "import":
        from finops.focus_import import import_file

        print(import_file(ledger, options.file))
        return 0
    num_rows = export(
        ledger, options.output, version=options.version, file_format=options.format,
        start=parse_moment(options.start, "--from") if options.start else None,
        end=parse_moment(options.end, "--to") if options.end else None,
        issuer=Issuer(options.account_id, options.account_name, invoice_issuer=options.invoice_issuer),
    )  # fmt: skip
    print(f"{options.output}: {num_rows} rows of FOCUS {options.version}")
    return 0


if __name__ == "__main__":
    from finops.cli import run

    run(main)
