"""FOCUS 1.2 files out of the ledger, and a provider's file in.

    parsimony focus export --version 1.2 --from 2026-10-01 --to 2026-11-01 --format csv --output october.csv
    parsimony focus export --format parquet --output all.parquet
    parsimony focus import provider.csv              # replaces estimated cost by what the provider billed
    parsimony focus check october.csv                # runs focus-validator and applies the reviewed waivers

Export is streamed: a million charges need no more memory than a thousand. `--from` and `--to` bound the charge period's
start (UTC, end exclusive).
"""

from __future__ import annotations

from pathlib import Path

from core.command import Parser
from finops.cli.common import action_parser, parser, read
from finops.focus.check import check
from finops.focus.columns import Issuer
from finops.focus.export import export
from finops.focus.reconcile import import_file
from finops.ledger.ledger import Ledger
from finops.money import parse_moment


def _parser() -> Parser:
    commands = parser("focus", __doc__)
    actions = commands.add_subparsers(dest="action", required=True)
    write = action_parser(actions, "export", "write a FOCUS file")
    write.add_argument("--version", default="1.2", help="FOCUS version (default and only one: 1.2)")
    write.add_argument("--from", dest="start", metavar="DATE", help="first day, UTC: 2026-10-01 (default: all)")
    write.add_argument("--to", dest="end", metavar="DATE", help="day after the last (default: all)")
    write.add_argument("--format", default="csv", help="csv or parquet (default: csv)")
    write.add_argument("--output", required=True, type=Path)
    write.add_argument("--account-id", default=Issuer.account_id)
    write.add_argument("--account-name", default=Issuer.account_name)
    write.add_argument("--invoice-issuer", help="who bills (default: each row's provider)")
    read = action_parser(actions, "import", "replace estimated cost by a provider's billed cost")
    read.add_argument("file", type=Path)
    checked = action_parser(actions, "check", "validate a file with focus-validator")
    checked.add_argument("file", type=Path)
    checked.add_argument("--validator", default="focus-validator", help="the validator's program (default: on PATH)")
    return commands


def main(arguments: list[str]) -> int:
    """Run the command line."""
    options = read(_parser(), arguments)
    if options.action == "check":
        report = check(options.file, options.validator)
        print(report)
        return 0 if report.passed else 1
    ledger = Ledger(options.ledger, create=False)
    if options.action == "import":
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
