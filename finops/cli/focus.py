"""FOCUS 1.2 files out of the ledger, and a provider's file in.

    python -m finops.cli.focus export --version 1.2 --from 2026-10-01 --to 2026-11-01 --format csv --output october.csv
    python -m finops.cli.focus export --format parquet --output all.parquet
    python -m finops.cli.focus import provider.csv              # replaces estimated cost by what the provider billed
    python -m finops.cli.focus check october.csv                # runs focus-validator and applies the reviewed waivers

Export is streamed: a million charges need no more memory than a thousand. `--from` and `--to` bound the charge period's
start (UTC, end exclusive).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from finops.cli.common import run
from finops.focus.columns import Issuer
from finops.focus.export import export
from finops.money import parse_moment

if TYPE_CHECKING:
    pass


def _parser() -> argparse.ArgumentParser:
    from finops.cli.common import parser

    commands = parser("finops.cli.focus", __doc__)
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
        from finops.focus.check import check

        report = check(options.file, options.validator)
        print(report)
        return 0 if report.passed else 1
    from finops.ledger.ledger import Ledger

    ledger = Ledger(options.ledger, create=False)
    if options.action == "import":
        from finops.focus.reconcile import import_file

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
    run(main)
