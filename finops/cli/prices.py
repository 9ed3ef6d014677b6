"""What machines cost per hour, from a catalog of offers with ranges, sources and dates.

    from finops.prices import lookup
    price = lookup("l4-24gb", "spot")                        # a range, with its source and date
    price = lookup("a100-80gb-mig-1g.10gb")                  # a seventh of the GPU's price
    price = lookup("l4-24gb", usd_per_hour=Decimal("0.8"))   # the user's own figure for the whole machine

    python -m finops.cli.prices list
    python -m finops.cli.prices refresh --from NEW.yaml     # refused where a price jumps 5-fold

The catalog is `finops/pricing/catalog.yaml`; its rules stand in `finops.pricing.catalog`. An old price gives a warning.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import ParsimonyError
from finops.cli.common import run
from finops.pricing.catalog import load_catalog
from finops.pricing.prices import CATALOG, write_refreshed


def main(arguments: Sequence[str] | None = None) -> int:
    """List or refresh the catalog; exit code 2 with one message where a file breaks a rule."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m finops.cli.prices", description=__doc__, formatter_class=form)
    parser.add_argument("--catalog", type=Path, default=CATALOG, help="the catalog file (default: ours)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print every offer")
    update = commands.add_parser("refresh", help="take in newer prices, within bounds of the present ones")
    update.add_argument("--from", dest="new", type=Path, required=True, help="a catalog file with the newer rows")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            for offer in load_catalog(options.catalog).offers:
                print(f"{offer.name:<52} {offer.low:>8} - {offer.high:<8} {offer.currency}  as of {offer.as_of}")
        else:
            print("\n".join(write_refreshed(options.catalog, options.new)) or "no price changes")
    except ParsimonyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    run(main)
