"""Spend on a page: showback, unit costs, success metrics, budgets, estimates, savings, right-sizing.

    parsimony report --from 2026-10-01 --to 2026-11-01
    parsimony report --team research --format csv --output october.csv
    parsimony report --format html --output october.html --revenue-usd 120000 --reserved "NVIDIA L4=0.495"

`--from` and `--to` bound the charges' start (UTC, end exclusive).
"""

from __future__ import annotations

from pathlib import Path

from core.command import Parser
from core.errors import ConfigError, UserError
from core.files import write_atomic
from finops.cli.common import parser, read
from finops.ledger.ledger import Ledger
from finops.money import parse_moment, to_decimal
from finops.reports.html import as_html
from finops.reports.report import as_csv, as_text, gather

FORMATS = ("terminal", "csv", "html")


def _parser() -> Parser:
    commands = parser("report", __doc__)
    commands.add_argument("--from", dest="start", metavar="DATE", help="first day, UTC (default: all)")
    commands.add_argument("--to", dest="end", metavar="DATE", help="day after the last (default: all)")
    commands.add_argument("--team", help="one team's charges only")
    commands.add_argument("--format", default="terminal", help=f"one of {', '.join(FORMATS)} (default: terminal)")
    commands.add_argument("--output", type=Path, help="file to write (default: standard output)")
    commands.add_argument("--revenue-usd", help="revenue of the period, for the cost's share of it")
    commands.add_argument(
        "--reserved", action="append", default=[], metavar="ACCELERATOR=USD", help="reserved price per hour; repeatable"
    )
    return commands


def main(arguments: list[str]) -> int:
    """Run the command line."""
    options = read(_parser(), arguments)
    if options.format not in FORMATS:
        raise ConfigError(f"--format: '{options.format}' does not exist. Known: {', '.join(FORMATS)}")
    start = parse_moment(options.start, "--from") if options.start else None
    end = parse_moment(options.end, "--to") if options.end else None
    revenue = to_decimal(options.revenue_usd, "--revenue-usd") if options.revenue_usd else None
    reserved = {}
    for item in options.reserved:
        name, separator, price = item.rpartition("=")
        if not separator or not name:
            raise UserError(f"--reserved: '{item}' must be ACCELERATOR=USD_PER_HOUR")
        reserved[name] = to_decimal(price, "--reserved")
    report = gather(
        Ledger(options.ledger, create=False), start=start, end=end, team=options.team, revenue_usd=revenue,
        reserved_usd_per_hour=reserved,
    )  # fmt: skip
    if options.format == "html":
        text = as_html(report)
    else:
        text = as_csv(report) if options.format == "csv" else as_text(report)
    if options.output is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        try:
            write_atomic(options.output, text)
        except OSError as error:
            raise UserError(f"--output: cannot write {options.output}: {error.strerror}") from None
        print(f"{options.output}: written")
    return 0
