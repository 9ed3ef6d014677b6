"""From a price to the rate at which the ledger charges a device."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from core.errors import ConfigError, PriceError
from core.files import digest_json, plain
from finops.ledger.charges import PURCHASE_OPTIONS, Rate
from finops.money import UNIT_PRICE_DECIMALS, round_decimals
from finops.pricing.prices import Price, device_facts, lookup


def price_version(price: Price) -> str:
    """Date and digest of a price: any other figure, source or purchase option is another version."""
    return f"{price.as_of or 'own'}-{digest_json({**plain(price), 'warnings': None})[:12]}"


def rate_of(price: Price) -> Rate:
    """The rate of one whole device. A CPU machine is one device; a MIG slice is charged as its share of a whole GPU.

    The list price is the catalog's on-demand price where the run has another option.

    Raises:
        ConfigError: the price has a purchase option that the ledger does not know.

    """
    if price.purchase_option not in PURCHASE_OPTIONS:
        raise ConfigError(
            f"hardware.purchase_option={price.purchase_option}: must be one of {', '.join(PURCHASE_OPTIONS)}"
        )
    share, public = mig_share(price.hardware), None
    if price.purchase_option != "on_demand":
        public = _on_demand(price)
    whole = None if public is None else round_decimals(public / num_devices(price) / share, UNIT_PRICE_DECIMALS)
    usd = round_decimals(price.usd_per_hour / num_devices(price) / share, UNIT_PRICE_DECIMALS)
    return Rate.of(price, usd_per_hour=usd, list_usd_per_hour=whole, price_version=price_version(price))


def priced_rate(price: Price) -> Rate:
    """The rate of what the price names: for a MIG slice the slice's, not the whole GPU's. For estimates."""
    usd = round_decimals(price.usd_per_hour / num_devices(price), UNIT_PRICE_DECIMALS)
    return replace(rate_of(price), usd_per_hour=usd, list_usd_per_hour=None)


def num_devices(price: Price) -> int:
    """GPUs; the vCPUs of a machine without one are bought together."""
    return 1 if _unit(price.hardware) == "vcpu" else price.num_devices


def _unit(hardware: str) -> str:
    try:
        return device_facts(hardware).unit
    except PriceError:  # a name of the user's own, with a price of their own
        return "gpu"


def mig_share(hardware: str) -> Decimal:
    """A MIG slice's share of the whole GPU's price; 1 for anything else."""
    try:
        return device_facts(hardware).price_share
    except PriceError:
        return Decimal(1)


def _on_demand(price: Price) -> Decimal | None:
    try:
        return lookup(price.hardware, "on_demand", price.num_devices).usd_per_hour
    except PriceError:
        return None
