"""What machines cost per hour, from a catalog of offers with ranges, sources and dates.

    from finops.prices import lookup
    price = lookup("l4-24gb", "spot")                        # a range, with its source and date
    price = lookup("a100-80gb-mig-1g.10gb")                  # a seventh of the GPU's price
    price = lookup("l4-24gb", usd_per_hour=Decimal("0.8"))   # the user's own figure for the whole machine

The catalog is `finops/pricing/catalog.yaml`; its rules stand in `finops.pricing.catalog`. An old price gives a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path

from core.errors import PriceError, closest
from core.files import write_atomic
from finops.pricing.catalog import Catalog, Hardware, Offer, earliest_day, load_catalog, positive

CATALOG = Path(__file__).with_name("catalog.yaml")
MAX_AGE_DAYS = 365
"""A price older than this gives a warning."""
MAX_JUMP = Decimal(5)
"""A refresh that changes a price this many times is refused (a B200 at 0.01 USD/h is on record: skypilot#9156)."""


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
    interruptions_per_hour: Decimal | None = None
    """Of a spot machine: how often it is taken back, at most; None where nobody says."""

    @property
    def usd_per_hour(self) -> Decimal:
        """The middle of the range."""
        return (self.usd_per_hour_lo + self.usd_per_hour_hi) / 2


@cache
def default_catalog() -> Catalog:
    """Our own catalog, read once."""
    return load_catalog(CATALOG)


def lookup(
    hardware: str,
    purchase_option: str = "on_demand",
    num_devices: int = 1,
    *,
    usd_per_hour: Decimal | float | str | None = None,
    region: str | None = None,
    residency: Sequence[str] = (),
    catalog: Catalog | None = None,
    today: date | None = None,
) -> Price:
    """What a machine of `num_devices` devices costs per hour.

    Args:
        hardware: a device of the catalog or a MIG profile of one; with `usd_per_hour` any name.
        purchase_option: on_demand, reserved_1y or spot.
        num_devices: GPUs, or vCPUs for `cpu`.
        usd_per_hour: the user's own price of the whole machine, instead of the catalog's.
        region: only offers of this region.
        residency: ISO 3166 codes of the countries in which data may be processed; an offer that can stand elsewhere, or
            does not say where it stands, is removed.
        catalog: None takes ours.
        today: gives a warning for a price or an exchange rate that is older than a year; None checks no age.

    Raises:
        PriceError: no such hardware, no offer that keeps the constraints (all removed ones are named with the reason),
            a code that is none, or a price that is not above 0.

    """
    if num_devices < 1:
        raise PriceError(f"hardware {hardware}: {num_devices} devices; there must be at least 1")
    unknown = [code for code in residency if not re.fullmatch("[A-Za-z]{2}", code)]
    if unknown:
        raise PriceError(f"residency: {unknown[0]!r} is no ISO 3166 code\n  -> two letters for each country: [sg,au]")
    if usd_per_hour is not None:
        price = _own_price(hardware, purchase_option, num_devices, usd_per_hour)
        asked = {"region": region, "residency": ", ".join(residency)}
        unchecked = "is not checked: a price of your own does not say where the machine stands"
        return replace(price, warnings=tuple(f"{name}={what} {unchecked}" for name, what in asked.items() if what))
    catalog = catalog or default_catalog()
    device = device_facts(hardware, catalog)
    offers = [offer for offer in catalog.offers if offer.hardware == (device.whole or device.name)]
    matching = [offer for offer in offers if offer.purchase_option == purchase_option]
    if not matching:
        options = ", ".join(sorted({offer.purchase_option for offer in offers})) or "none"
        raise PriceError(
            f"hardware.purchase_option: no '{purchase_option}' offer for {hardware}; offers: {options}\n"
            f"  -> choose one of them, or give the price yourself: hardware.usd_per_hour=USD"
        )
    kept, removed = constrain(matching, region, residency)
    if not kept:
        reasons = "\n".join(f"  - {offer.name}: {reason}" for offer, reason in removed)
        raise PriceError(
            f"no offer for {hardware} keeps the constraints:\n{reasons}\n"
            "  -> widen region or residency, or give the price yourself: hardware.usd_per_hour=USD"
        )
    price = _merge(device, kept, num_devices, catalog, today)
    return replace(price, warnings=(*price.warnings, *(f"removed {offer.name}: {reason}" for offer, reason in removed)))


def device_facts(hardware: str, catalog: Catalog | None = None) -> Hardware:
    """Memory, compute capability and share of a device or a MIG profile.

    Raises:
        PriceError: the catalog has no such row.

    >>> device_facts("a100-80gb-mig-1g.10gb").memory_gib
    Decimal('10')

    """
    catalog = catalog or default_catalog()
    device = catalog.device(hardware)
    if device is None:
        raise PriceError(
            f"hardware '{hardware}' has no row in the price catalog{closest(hardware, catalog.names)}\n"
            f"  known: {', '.join(catalog.names)}\n  -> give its price yourself: hardware.usd_per_hour=USD"
        )
    return device


def constrain(
    offers: Iterable[Offer], region: str | None, residency: Sequence[str]
) -> tuple[list[Offer], list[tuple[Offer, str]]]:
    """Offers that stand in the region and only in the allowed countries, and those that do not, with the reason."""
    allowed = {code.upper() for code in residency}
    kept: list[Offer] = []
    removed: list[tuple[Offer, str]] = []
    for offer in offers:
        if region is not None and offer.region != region:
            removed.append((offer, f"its region is {offer.region}, not {region}"))
        elif allowed and not offer.residency:
            removed.append((offer, "it does not say in which country it stands"))
        elif allowed and (outside := [code for code in offer.residency if code not in allowed]):
            removed.append((offer, f"it can stand in {', '.join(outside)}, outside {', '.join(sorted(allowed))}"))
        else:
            kept.append(offer)
    return kept, removed


def _own_price(hardware: str, purchase_option: str, num_devices: int, usd_per_hour: Decimal | float | str) -> Price:
    try:
        amount = positive(usd_per_hour)
    except ValueError as error:
        raise PriceError(f"hardware.usd_per_hour is {error}") from None
    return Price(
        hardware, amount, amount, purchase_option, "given by the user (hardware.usd_per_hour)", "", num_devices
    )


def _merge(device: Hardware, offers: list[Offer], num_devices: int, catalog: Catalog, today: date | None) -> Price:
    """One range over all matching offers, in USD."""
    lows, highs, warnings = [], [], []
    for offer in offers:
        rate = Decimal(1)
        if offer.currency != "USD":
            fx = catalog.fx[offer.currency]
            rate = fx.usd
            warnings.append(f"{offer.name}: {offer.currency} converted at {fx.usd} USD ({fx.source}, {fx.as_of})")
            warnings.extend(_age(f"the rate of {offer.currency}", fx.as_of, today))
        warnings.extend(_age(f"the price of {offer.name}", offer.as_of, today))
        lows.append(offer.low * rate)
        highs.append(offer.high * rate)
    rates = [offer.interruptions_per_hour for offer in offers if offer.interruptions_per_hour is not None]
    if offers[0].purchase_option == "spot" and len(rates) < len(offers):
        warnings.append("nobody says how often this spot machine is taken back: lost work is not in the price")
    factor = device.price_share * num_devices
    return Price(
        hardware=device.name,
        usd_per_hour_lo=min(lows) * factor,
        usd_per_hour_hi=max(highs) * factor,
        purchase_option=offers[0].purchase_option,
        source="; ".join(dict.fromkeys(f"{offer.provider}, {offer.region}: {offer.source}" for offer in offers)),
        as_of=min((offer.as_of for offer in offers), key=earliest_day),
        num_devices=num_devices,
        warnings=tuple(warnings),
        interruptions_per_hour=max(rates) if len(rates) == len(offers) else None,
    )


def _age(what: str, as_of: str, today: date | None) -> list[str]:
    if today is None or (today - earliest_day(as_of)).days <= MAX_AGE_DAYS:
        return []
    return [f"{what} is of {as_of}, more than a year old"]


def with_lost_work(price: Price, checkpoint_interval_s: float, restart_s: float) -> Price:
    """A spot price with the work that is expected to be lost: price x (1 + interruptions x (interval / 2 + restart)).

    An interruption loses half a checkpoint interval on average, and the time until the work goes on.

    >>> spot = Price("x", Decimal(1), Decimal(2), "spot", "", "2026", interruptions_per_hour=Decimal("0.1"))
    >>> with_lost_work(spot, checkpoint_interval_s=1800, restart_s=900).usd_per_hour_lo
    Decimal('1.05')

    Raises:
        PriceError: it is not known how often the machine is taken back.

    """
    if price.interruptions_per_hour is None:
        raise PriceError(f"{price.hardware} / {price.purchase_option}: nobody says how often it is taken back")
    lost_s = Decimal(repr(float(checkpoint_interval_s))) / 2 + Decimal(repr(float(restart_s)))
    factor = 1 + price.interruptions_per_hour * lost_s / 3600
    return replace(
        price, usd_per_hour_lo=price.usd_per_hour_lo * factor, usd_per_hour_hi=price.usd_per_hour_hi * factor
    )


def serving_price(price: Price, startup_s: float | None) -> Price:
    """What a serving machine's hour costs with what is lost when a spot machine is taken back.

    A server keeps no work to lose; the next machine is paid while its server starts. Where nobody says how often the
    machine is taken back (or it isn't a spot machine), the price stays as it is.

    Args:
        price: of the machine.
        startup_s: seconds from the server's start to its first answer; None where that was not measured.

    >>> spot = Price("x", Decimal(1), Decimal(2), "spot", "", "2026", interruptions_per_hour=Decimal("0.1"))
    >>> serving_price(spot, startup_s=180).usd_per_hour_lo
    Decimal('1.005')

    """
    rate = price.interruptions_per_hour
    if rate is None:
        return price
    if startup_s is None:
        text = "it is not known how long this server takes to start: lost work is not in the spot price"
        return replace(price, warnings=(*price.warnings, text))
    text = f"with lost work: taken back {rate} times an hour, {startup_s:.0f} s until the next server answers"
    return replace(with_lost_work(price, 0, startup_s), warnings=(*price.warnings, text))


def hardware_of_device(device_name: str, catalog: Catalog | None = None) -> str:
    """The catalog's name for a GPU, from its name as nvidia-smi prints it (`NVIDIA H100 80GB HBM3`).

    Names are compared whole: an A100 with 40 GB is no A100 with 80 GB, and an L40S no L4. A MIG profile follows the
    name of its GPU (`NVIDIA A100-SXM4-80GB MIG 1g.10gb`).

    Raises:
        PriceError: the catalog has no row for it.

    >>> hardware_of_device("NVIDIA A100-SXM4-80GB"), hardware_of_device("Tesla T4"), hardware_of_device("NVIDIA L4")
    ('a100-80gb', 't4-16gb', 'l4-24gb')

    """
    catalog = catalog or default_catalog()
    bare = re.sub(r"^(NVIDIA|Tesla|AMD|Instinct|\s)+\s+", "", device_name.strip(), flags=re.IGNORECASE)
    bare, _, profile = bare.partition(" MIG ")
    for row in catalog.hardware.values():
        if any(bare.casefold() == known.casefold() for known in row.device_names):
            name = f"{row.name}-mig-{profile.strip()}" if profile else row.name
            if catalog.device(name) is not None:
                return name
    known_names = ", ".join(name for row in catalog.hardware.values() for name in row.device_names)
    raise PriceError(
        f"the GPU '{device_name}' has no row in the price catalog; it knows: {known_names}\n"
        "  -> give the machine's price yourself: hardware.usd_per_hour=USD"
    )


def refresh(old: Catalog, new: Catalog) -> tuple[list[Offer], list[str]]:
    """The offers of a newer catalog over those of an older one, and what changes in words.

    Rows that the newer one lacks stay as they are.

    Raises:
        PriceError: a price jumps 5-fold or more, its currency changes, or its date goes back; each row with its reason.

    """
    before = {offer.key: offer for offer in old.offers}
    after = {offer.key: offer for offer in new.offers}
    problems, changes = [], []
    for key, offer in after.items():
        earlier = before.get(key)
        if earlier is None:
            changes.append(f"new: {offer.name}: {offer.low}-{offer.high} {offer.currency}")
            continue
        problems.extend(_refusals(earlier, offer))
        if (earlier.low, earlier.high) != (offer.low, offer.high):
            changes.append(f"{offer.name}: {earlier.low}-{earlier.high} -> {offer.low}-{offer.high} {offer.currency}")
    if problems:
        raise PriceError("the refresh is refused:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return list((before | after).values()), changes


def _refusals(earlier: Offer, offer: Offer) -> list[str]:
    problems = []
    for end, was, now in (("low", earlier.low, offer.low), ("high", earlier.high, offer.high)):
        if max(was, now) >= MAX_JUMP * min(was, now):
            problems.append(f"{offer.name}: {end} jumps from {was} to {now}, {MAX_JUMP}-fold or more")
    if offer.currency != earlier.currency:
        problems.append(f"{offer.name}: currency changes from {earlier.currency} to {offer.currency}")
    if earliest_day(offer.as_of) < earliest_day(earlier.as_of):
        problems.append(f"{offer.name}: as_of goes back from {earlier.as_of} to {offer.as_of}")
    return problems


def write_refreshed(path: Path, new_path: Path) -> list[str]:
    """Refresh a catalog file from another; the file changes whole or not at all. Returns what changed, in words."""
    import yaml

    new = load_catalog(new_path)
    offers, changes = refresh(load_catalog(path), new)
    data = yaml.safe_load(path.read_text())
    newer = yaml.safe_load(new_path.read_text())
    data["hardware"] = data["hardware"] | newer["hardware"]
    data["fx"] = (data.get("fx") or {}) | (newer.get("fx") or {})
    data["offers"] = [_row(offer) for offer in offers]
    write_atomic(path, yaml.safe_dump(data, sort_keys=False, width=200))
    load_catalog(path)
    return changes


def _row(offer: Offer) -> dict[str, object]:
    row: dict[str, object] = {key: getattr(offer, key) for key in offer.__dataclass_fields__}
    row |= {"low": str(offer.low), "high": str(offer.high), "residency": list(offer.residency)}
    row["interruptions_per_hour"] = None if offer.interruptions_per_hour is None else str(offer.interruptions_per_hour)
    return {key: value for key, value in row.items() if value not in (None, [])}
