"""Usage from outside: a serving fleet's hours and tokens, reserved capacity, and machines that several runs share.

    parsimony ingest csv usage.csv --price 0.825 --price-version catalog@2026-11-01
    parsimony ingest prometheus scrape.txt --price 0.825 --price-version catalog@2026-11-01
    parsimony ingest commitments reserved.csv                 # buys them, and charges what nobody used so far
    parsimony ingest shared-machines uses.csv --price 2.8 --price-version catalog@2026-11-01

CSV columns: resource_id, accelerator, start, end, and any of run_id, stage, region, provider, num_devices, kind,
purchase_option, usd_per_hour, price_version, commitment_id (of a commitment that covers the usage), model_id,
input_tokens, output_tokens, num_requests, busy_device_hours, team, environment, model_family, workload_type. A column
that is none of these is an error. An empty cell is missing.

Commitments, one a row: id, accelerator, provider, region, num_devices, usd_per_hour, list_usd_per_hour, start, end, and
any of purchase_option, kind and the tags.

Shared machines, one use a row: machine_id, accelerator, machine_start, machine_end, start, end, slices (of 7), and any
of run_id, stage, region, provider, num_devices, usd_per_hour, price_version, purchase_option, mig_profile and the tags.
The uses of one machine and period share its cost, and the rest is idle.

Prometheus: `parsimony_usage_device_seconds` (required), `parsimony_usage_busy_device_seconds`, `..._input_tokens`,
`..._output_tokens`, `..._requests`, each one value per period with labels resource_id, accelerator, start, end (ISO
8601) and the same optional ones: what recording rules or an exporter hand over.

Ingesting a file again changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError
from finops.cli.common import parser
from finops.cli.common import read as read_options
from finops.ledger.capacity import commitment_rates, ingest_commitments, shared_machine_charges
from finops.ledger.charges import Rate
from finops.ledger.ingest import read_csv, read_prometheus
from finops.ledger.ledger import Ledger
from finops.money import to_decimal
from finops.tags import TagPolicy

FORMATS = ("csv", "prometheus", "commitments", "shared-machines")


def main(arguments: list[str]) -> int:
    """Run the command line."""
    commands = parser("ingest", __doc__)
    commands.add_argument("format", choices=FORMATS)
    commands.add_argument("file", type=Path)
    commands.add_argument("--price", help="USD per device hour, for rows without usd_per_hour")
    commands.add_argument("--price-version", help="the version of that price; required with --price")
    commands.add_argument("--tags", default="default", help="tag policy: require or default")
    options = read_options(commands, arguments)
    if (options.price is None) != (options.price_version is None):
        raise UserError("--price and --price-version: give both or neither")
    rate = Rate(to_decimal(options.price, "--price"), options.price_version) if options.price else None
    ledger, policy = Ledger(options.ledger), TagPolicy(options.tags)
    if options.format == "commitments":
        rows = ingest_commitments(ledger, options.file, policy)
        purchases = sum(row.charge_category == "Purchase" for row in rows)
        print(f"{purchases} purchase rows are in the ledger, {len(rows) - purchases} new charges for unused capacity")
        return 0
    if options.format == "csv":
        charges = list(read_csv(options.file, rate, policy, commitment_rates(ledger)))
    elif options.format == "prometheus":
        charges = list(read_prometheus(options.file, rate, policy))
    else:
        charges = shared_machine_charges(options.file, rate, policy)
    new = ledger.record(*charges)
    print(f"{new} new charges, {len(charges) - new} known already")
    return 0
