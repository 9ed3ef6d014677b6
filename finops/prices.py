"""What machines cost per hour: a catalog of offers with ranges, sources and dates, checked when it is loaded.

    from finops.prices import lookup
    price = lookup("l4-24gb", "spot", num_devices=1)      # a range, with its source and date
    price = lookup("l4-24gb", usd_per_hour=Decimal("0.8"))  # the user's own figure for the whole machine

A catalog is a YAML file (`finops/catalog.yaml` is ours): `hardware` says what a name means, `offers` what it costs.
Rules: a range is kept as a range; a price needs a source and a date; zero, negative and turned-round ranges are
refused; money is text in the file and Decimal in here, never a float; an old price gives a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import PriceError, closest

CATALOG = Path(__file__).with_name("catalog.yaml")
PURCHASE_OPTIONS = ("on_demand", "reserved_1y", "spot")
UNITS = ("gpu", "vcpu")
MAX_AGE_DAYS = 365
"""A price older than this gives a warning."""
OFFER_KEYS = ("hardware", "purchase_option", "low", "high", "provider", "region", "currency", "as_of", "source")
HARDWARE_KEYS = ("unit", "memory_gib", "compute_capability", "device_names")


@dataclass(frozen=True)
class Price:
    """What the machine costs per hour: a range with its source, or one figure given by the user."""

    hardware: str
    usd_per_hour_lo: Decimal
    """Low end of the range, in USD per hour of the whole machine (all `num_devices` of them)."""
    usd_per_hour_hi: Decimal
    purchase_option: str
    source: str
    as_of: str
    num_devices: int = 1
    """GPUs, or vCPUs on a machine without one."""
    warnings: tuple[str, ...] = ()
    """What a reader of the figures must know: an old price, a converted currency."""

    @property
    def usd_per_hour(self) -> Decimal:
        """The middle of the range."""
        return (self.usd_per_hour_lo + self.usd_per_hour_hi) / 2


@dataclass(frozen=True)
class Hardware:
    """One kind of device, as the catalog names it."""

    name: str
    unit: str
    """What an hour is counted in: `gpu` or `vcpu`."""
    memory_gib: Decimal | None = None
    compute_capability: Decimal | None = None
    device_names: tuple[str, ...] = ()
    """What the driver prints, without the leading vendor."""


@dataclass(frozen=True)
class Offer:
    """One row: what one device costs per hour, from whom, and how it is bought."""

    hardware: str
    purchase_option: str
    low: Decimal
    high: Decimal
    provider: str
    region: str
    currency: str
    as_of: str
    source: str

    @property
    def name(self) -> str:
        """How messages name the row."""
        return f"{self.hardware} / {self.purchase_option} / {self.provider} / {self.region}"


@dataclass(frozen=True)
class Catalog:
    """All hardware and offers of one file."""

    hardware: dict[str, Hardware]
    offers: tuple[Offer, ...]


def load_catalog(path: Path = CATALOG) -> Catalog:
    """Read and check a catalog.

    Raises:
        PriceError: the file cannot be read, or some row breaks a rule; every such row is named with its reason.

    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise PriceError(f"the price catalog {path} cannot be read: {error}") from error
    if not isinstance(data, Mapping) or not isinstance(data.get("hardware"), Mapping):
        raise PriceError(f"the price catalog {path} has no `hardware` and `offers` sections")
    problems: list[str] = []
    hardware = {str(name): _hardware(str(name), row or {}, problems) for name, row in data["hardware"].items()}
    offers = [_offer(index, row, hardware, problems) for index, row in enumerate(data.get("offers") or [])]
    seen: set[tuple[str, ...]] = set()
    for offer in offers:
        if offer is not None:
            key = (offer.hardware, offer.purchase_option, offer.provider, offer.region)
            if key in seen:
                problems.append(f"{offer.name}: listed more than once")
            seen.add(key)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise PriceError(f"the price catalog {path} is refused:\n{lines}")
    return Catalog(hardware, tuple(offer for offer in offers if offer is not None))


def _hardware(name: str, row: Mapping[str, Any], problems: list[str]) -> Hardware:
    where = f"hardware {name}"
    problems.extend(f"{where}: unknown key '{key}'" for key in row if key not in HARDWARE_KEYS)
    unit = str(row.get("unit", ""))
    if unit not in UNITS:
        problems.append(f"{where}: unit is {unit!r}; allowed: {', '.join(UNITS)}")
    memory = None if row.get("memory_gib") is None else _positive(where, "memory_gib", row["memory_gib"], problems)
    capability = row.get("compute_capability")
    return Hardware(
        name,
        unit,
        memory,
        None if capability is None else Decimal(str(capability)),
        tuple(str(device) for device in row.get("device_names") or ()),
    )


def _offer(index: int, row: Any, hardware: Mapping[str, Hardware], problems: list[str]) -> Offer | None:
    if not isinstance(row, Mapping):
        problems.append(f"offer {index}: {row!r} is no mapping")
        return None
    where = f"offer {index} ({row.get('hardware')} / {row.get('purchase_option')})"
    before = len(problems)
    problems.extend(f"{where}: unknown key '{key}'" for key in row if key not in OFFER_KEYS)
    problems.extend(f"{where}: no `{key}`" for key in OFFER_KEYS if row.get(key) in (None, ""))
    if len(problems) > before:
        return None
    if row["hardware"] not in hardware:
        problems.append(f"{where}: hardware '{row['hardware']}' is not described{closest(row['hardware'], hardware)}")
    if row["purchase_option"] not in PURCHASE_OPTIONS:
        problems.append(f"{where}: purchase_option; allowed: {', '.join(PURCHASE_OPTIONS)}")
    if not re.fullmatch("[A-Z]{3}", str(row["currency"])):
        problems.append(f"{where}: currency {row['currency']!r} is no ISO 4217 code")
    try:
        earliest_day(str(row["as_of"]))
    except ValueError:
        problems.append(f"{where}: as_of {row['as_of']!r} is no date (YYYY, YYYY-MM or YYYY-MM-DD)")
    low = _positive(where, "low", row["low"], problems)
    high = _positive(where, "high", row["high"], problems)
    if low is not None and high is not None and low > high:
        problems.append(f"{where}: low {low} is above high {high}")
    if len(problems) > before or low is None or high is None:
        return None
    texts = {key: str(row[key]) for key in OFFER_KEYS if key not in ("low", "high")}
    return Offer(low=low, high=high, **texts)


def _positive(where: str, key: str, value: Any, problems: list[str]) -> Decimal | None:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        problems.append(f"{where}: {key} is {value!r}, no number")
        return None
    if not amount.is_finite() or amount <= 0:
        problems.append(f"{where}: {key} is {value}; it must be above 0")
        return None
    return amount


def earliest_day(as_of: str) -> date:
    """The first day that a date of the catalog can mean. Raises ValueError.

    >>> earliest_day("2026-06"), earliest_day("2026")
    (datetime.date(2026, 6, 1), datetime.date(2026, 1, 1))
    """
    if not re.fullmatch(r"\d{4}(-\d{2}(-\d{2})?)?", as_of):
        raise ValueError(as_of)
    return date.fromisoformat((as_of + "-01-01")[:10])


@cache
def default_catalog() -> Catalog:
    """Our own catalog, read once."""
    return load_catalog()


def lookup(
    hardware: str,
    purchase_option: str = "on_demand",
    num_devices: int = 1,
    *,
    usd_per_hour: Decimal | float | str | None = None,
    catalog: Catalog | None = None,
    today: date | None = None,
) -> Price:
    """What a machine of `num_devices` devices costs per hour.

    Args:
        hardware: a row of the catalog; with `usd_per_hour` any name.
        purchase_option: on_demand, reserved_1y or spot.
        num_devices: GPUs, or vCPUs for `cpu`.
        usd_per_hour: the user's own price of the whole machine, instead of the catalog's.
        catalog: None takes ours.
        today: gives a warning for a price that is older than a year; None checks no age.

    Raises:
        PriceError: no such hardware, no such offer, or a price that is not above 0.

    """
    if num_devices < 1:
        raise PriceError(f"hardware {hardware}: {num_devices} devices; there must be at least 1")
    if usd_per_hour is not None:
        return _own_price(hardware, purchase_option, num_devices, usd_per_hour)
    catalog = catalog or default_catalog()
    if hardware not in catalog.hardware:
        known = ", ".join(sorted(catalog.hardware))
        raise PriceError(
            f"hardware '{hardware}' has no row in the price catalog{closest(hardware, catalog.hardware)}\n"
            f"  known: {known}\n  -> give its price yourself: hardware.usd_per_hour=USD"
        )
    offers = [offer for offer in catalog.offers if offer.hardware == hardware]
    matching = [offer for offer in offers if offer.purchase_option == purchase_option]
    if not matching:
        options = ", ".join(sorted({offer.purchase_option for offer in offers})) or "none"
        raise PriceError(
            f"hardware.purchase_option: no '{purchase_option}' offer for {hardware}; offers: {options}\n"
            f"  -> choose one of them, or give the price yourself: hardware.usd_per_hour=USD"
        )
    return _merge(matching, num_devices, today)


def _own_price(hardware: str, purchase_option: str, num_devices: int, usd_per_hour: Decimal | float | str) -> Price:
    problems: list[str] = []
    amount = _positive("hardware", "usd_per_hour", usd_per_hour, problems)
    if amount is None:
        raise PriceError(problems[0])
    return Price(
        hardware, amount, amount, purchase_option, "given by the user (hardware.usd_per_hour)", "", num_devices
    )


def _merge(offers: list[Offer], num_devices: int, today: date | None) -> Price:
    """One range over all matching offers."""
    foreign = [offer.name for offer in offers if offer.currency != "USD"]
    if foreign:
        raise PriceError(f"{foreign[0]}: is not in USD; give the price yourself: hardware.usd_per_hour=USD")
    as_of = min((offer.as_of for offer in offers), key=earliest_day)
    return Price(
        hardware=offers[0].hardware,
        usd_per_hour_lo=min(offer.low for offer in offers) * num_devices,
        usd_per_hour_hi=max(offer.high for offer in offers) * num_devices,
        purchase_option=offers[0].purchase_option,
        source="; ".join(dict.fromkeys(f"{offer.provider}, {offer.region}: {offer.source}" for offer in offers)),
        as_of=as_of,
        num_devices=num_devices,
        warnings=tuple(_age_warnings(offers, today)),
    )


def _age_warnings(offers: Iterable[Offer], today: date | None) -> Iterable[str]:
    for offer in offers:
        if today is not None and (today - earliest_day(offer.as_of)).days > MAX_AGE_DAYS:
            yield f"the price of {offer.name} is of {offer.as_of}, more than a year old"


def hardware_of_device(device_name: str, catalog: Catalog | None = None) -> str:
    """The catalog's name for a GPU, from its name as nvidia-smi prints it (`NVIDIA H100 80GB HBM3`).

    Names are compared whole: an A100 with 40 GB is no A100 with 80 GB, and an L40S no L4.

    Raises:
        PriceError: the catalog has no row for it.

    >>> hardware_of_device("NVIDIA A100-SXM4-80GB"), hardware_of_device("Tesla T4"), hardware_of_device("NVIDIA L4")
    ('a100-80gb', 't4-16gb', 'l4-24gb')

    """
    catalog = catalog or default_catalog()
    bare = re.sub(r"^(NVIDIA|Tesla|AMD|Instinct|\s)+\s+", "", device_name.strip(), flags=re.IGNORECASE)
    for row in catalog.hardware.values():
        if any(bare.casefold() == known.casefold() for known in row.device_names):
            return row.name
    known_names = ", ".join(name for row in catalog.hardware.values() for name in row.device_names)
    raise PriceError(
        f"the GPU '{device_name}' has no row in the price catalog; it knows: {known_names}\n"
        "  -> give the machine's price yourself: hardware.usd_per_hour=USD"
    )
