"""What machines cost per hour, from a catalog of offers with ranges, sources and dates.

    from finops.pricing.prices import lookup
    price = lookup("l4-24gb", "spot")                        # a range, with its source and date
    price = lookup("a100-80gb-mig-1g.10gb")                  # a seventh of the GPU's price
    price = lookup("l4-24gb", usd_per_hour=Decimal("0.8"))   # the user's own figure for the whole machine

    parsimony prices list
    parsimony prices refresh --from NEW.yaml     # refused where a price jumps 5-fold

The catalog is `finops/pricing/catalog.yaml`; its rules stand in `finops.pricing.catalog`. An old price gives a warning.
"""

from __future__ import annotations

from pathlib import Path

from core.command import verb_parser
from finops.pricing.catalog import load_catalog
from finops.pricing.prices import CATALOG, write_refreshed


def main(arguments: list[str]) -> int:
    """List or refresh the catalog."""
    commands = verb_parser("prices", __doc__)
    commands.add_argument("--catalog", type=Path, default=CATALOG, help="the catalog file (default: the product's)")
    actions = commands.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="print every offer")
    update = actions.add_parser("refresh", help="take in newer prices, within bounds of the present ones")
    update.add_argument("--from", dest="new", type=Path, required=True, help="a catalog file with the newer rows")
    options = commands.parse(arguments)
    if options.action == "list":
        for offer in load_catalog(options.catalog).offers:
            print(f"{offer.name:<52} {offer.low:>8} - {offer.high:<8} {offer.currency}  as of {offer.as_of}")
    else:
        print("\n".join(write_refreshed(options.catalog, options.new)) or "no price changes")
    return 0
