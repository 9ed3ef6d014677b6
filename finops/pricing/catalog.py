"""A price catalog: what its rows contain, and the rules that they must keep. See `finops.pricing.prices` for its use.

A catalog is a YAML file: `hardware` says what a name means, `offers` what it costs, `fx` what a currency is worth.
A range is kept as a range. A price needs a source and a date. Money is text in the file and Decimal in here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from core.errors import PriceError, closest

PURCHASE_OPTIONS = ("on_demand", "reserved_1y", "spot")
UNITS = ("gpu", "vcpu")
NUM_MIG_SLICES = 7
"""Compute slices of a whole GPU under MIG; a profile costs its slices' share of the GPU's price."""
OFFER_KEYS = ("hardware", "purchase_option", "low", "high", "provider", "region", "currency", "as_of", "source")
OPTIONAL_OFFER_KEYS = ("residency", "interruptions_per_hour")
HARDWARE_KEYS = ("unit", "memory_gib", "compute_capability", "device_names", "mig")
FX_KEYS = ("usd", "as_of", "source")


@dataclass(frozen=True)
class MigProfile:
    """A fraction of a GPU (NVIDIA Multi-Instance GPU)."""

    name: str
    """As NVIDIA names it: `1g.10gb`."""
    slices: int
    """Compute slices, of seven."""
    memory_gib: Decimal
    max_instances: int
    """How many of them fit on one GPU."""


@dataclass(frozen=True)
class Hardware:
    """One kind of device, as the catalog names it; a MIG profile is a device of its own."""

    name: str
    unit: str
    """What an hour is counted in: `gpu` or `vcpu`."""
    memory_gib: Decimal | None = None
    compute_capability: Decimal | None = None
    device_names: tuple[str, ...] = ()
    """What the driver prints, without the leading vendor."""
    mig: tuple[MigProfile, ...] = ()
    price_share: Decimal = Decimal(1)
    """Share of the whole device's price: slices/7 of a MIG profile."""
    whole: str = ""
    """The device that this one is a fraction of."""


@dataclass(frozen=True)
class Offer:
    """One row: what one device costs per hour, from whom, where, and how it is bought."""

    hardware: str
    purchase_option: str
    low: Decimal
    high: Decimal
    provider: str
    region: str
    """The provider's name of the region; `any` where the row does not say."""
    currency: str
    as_of: str
    source: str
    residency: tuple[str, ...] = ()
    """ISO 3166 codes of the countries in which the machine can stand; empty where the row does not say."""
    interruptions_per_hour: Decimal | None = None
    """Of spot machines: how often one is taken back; None where nobody says."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What distinguishes rows."""
        return self.hardware, self.purchase_option, self.provider, self.region

    @property
    def name(self) -> str:
        """How messages name the row."""
        return " / ".join(self.key)


@dataclass(frozen=True)
class FxRate:
    """What one unit of a currency is worth."""

    usd: Decimal
    as_of: str
    source: str


@dataclass(frozen=True)
class Catalog:
    """All rows of one file."""

    hardware: dict[str, Hardware]
    offers: tuple[Offer, ...]
    fx: dict[str, FxRate] = field(default_factory=dict)

    def device(self, name: str) -> Hardware | None:
        """A device, or a MIG profile of one (`a100-80gb-mig-1g.10gb`)."""
        if name in self.hardware:
            return self.hardware[name]
        whole_name, _, profile_name = name.partition("-mig-")
        whole = self.hardware.get(whole_name)
        for profile in whole.mig if whole else ():
            if whole is not None and profile.name == profile_name:
                share = Decimal(profile.slices) / NUM_MIG_SLICES
                return Hardware(
                    name,
                    whole.unit,
                    profile.memory_gib,
                    whole.compute_capability,
                    price_share=share,
                    whole=whole_name,
                )
        return None

    @property
    def names(self) -> list[str]:
        """Every device and MIG profile."""
        return sorted(
            [
                *self.hardware,
                *(f"{row.name}-mig-{profile.name}" for row in self.hardware.values() for profile in row.mig),
            ]
        )


def load_catalog(path: Path) -> Catalog:
    """Read and check a catalog.

    Raises:
        PriceError: the file cannot be read, or some row breaks a rule; every such row is named with its reason.

    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PriceError(f"the price catalog {path} cannot be read: {error}") from error
    if not isinstance(data, Mapping) or not isinstance(data.get("hardware"), Mapping):
        raise PriceError(f"the price catalog {path} has no `hardware` and `offers` sections")
    problems = [f"unknown section '{key}'" for key in data if key not in ("hardware", "offers", "fx")]
    hardware = {str(name): _hardware(str(name), row or {}, problems) for name, row in data["hardware"].items()}
    rows = [_offer(index, row, hardware, problems) for index, row in enumerate(data.get("offers") or [])]
    offers = tuple(offer for offer in rows if offer is not None)
    fx = {str(name): rate for name, row in (data.get("fx") or {}).items() if (rate := _fx(str(name), row, problems))}
    keys = [offer.key for offer in offers]
    problems.extend(f"{' / '.join(key)}: listed more than once" for key in dict.fromkeys(keys) if keys.count(key) > 1)
    problems.extend(
        f"{offer.name}: currency {offer.currency} has no rate under `fx`"
        for offer in offers
        if offer.currency != "USD" and offer.currency not in fx
    )
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise PriceError(f"the price catalog {path} is refused:\n{lines}")
    return Catalog(hardware, offers, fx)


def _hardware(name: str, row: Mapping[str, Any], problems: list[str]) -> Hardware:
    where = f"hardware {name}"
    problems.extend(f"{where}: unknown key '{key}'" for key in row if key not in HARDWARE_KEYS)
    unit = str(row.get("unit", ""))
    if unit not in UNITS:
        problems.append(f"{where}: unit is {unit!r}; allowed: {', '.join(UNITS)}")
    memory = None if row.get("memory_gib") is None else _positive(where, "memory_gib", row["memory_gib"], problems)
    capability = row.get("compute_capability")
    profiles = []
    for profile, facts in (row.get("mig") or {}).items():
        if not isinstance(facts, Mapping) or set(facts) != {"slices", "memory_gib", "max_instances"}:
            problems.append(f"{where}, mig {profile}: needs slices, memory_gib and max_instances")
        elif not 1 <= int(facts["slices"]) <= NUM_MIG_SLICES:
            problems.append(f"{where}, mig {profile}: slices is {facts['slices']}; allowed: 1 to {NUM_MIG_SLICES}")
        elif memory is not None and Decimal(str(facts["memory_gib"])) > memory:
            problems.append(f"{where}, mig {profile}: more memory than the whole device")
        else:
            size = Decimal(str(facts["memory_gib"]))
            profiles.append(MigProfile(str(profile), int(facts["slices"]), size, int(facts["max_instances"])))
    return Hardware(
        name,
        unit,
        memory,
        None if capability is None else Decimal(str(capability)),
        tuple(str(device) for device in row.get("device_names") or ()),
        tuple(profiles),
    )


def _offer(index: int, row: Any, hardware: Mapping[str, Hardware], problems: list[str]) -> Offer | None:
    if not isinstance(row, Mapping):
        problems.append(f"offer {index}: {row!r} is no mapping")
        return None
    where = f"offer {index} ({row.get('hardware')} / {row.get('purchase_option')})"
    before = len(problems)
    known = OFFER_KEYS + OPTIONAL_OFFER_KEYS
    problems.extend(f"{where}: unknown key '{key}'{closest(str(key), known)}" for key in row if key not in known)
    problems.extend(f"{where}: no `{key}`" for key in OFFER_KEYS if row.get(key) in (None, ""))
    if len(problems) > before:
        return None
    if row["hardware"] not in hardware:
        problems.append(f"{where}: hardware '{row['hardware']}' is not described{closest(row['hardware'], hardware)}")
    if row["purchase_option"] not in PURCHASE_OPTIONS:
        problems.append(f"{where}: purchase_option; allowed: {', '.join(PURCHASE_OPTIONS)}")
    if not re.fullmatch("[A-Z]{3}", str(row["currency"])):
        problems.append(f"{where}: currency {row['currency']!r} is no ISO 4217 code")
    _check_date(where, row["as_of"], problems)
    low, high = (_positive(where, key, row[key], problems) for key in ("low", "high"))
    if low is not None and high is not None and low > high:
        problems.append(f"{where}: low {low} is above high {high}")
    residency = tuple(str(code).upper() for code in row.get("residency") or ())
    problems.extend(f"{where}: residency {code!r} is no ISO 3166 code" for code in residency if len(code) != 2)
    interruptions = row.get("interruptions_per_hour")
    if interruptions is not None and row["purchase_option"] != "spot":
        problems.append(f"{where}: interruptions_per_hour belongs to spot offers")
    rate = None if interruptions is None else _positive(where, "interruptions_per_hour", interruptions, problems)
    if len(problems) > before or low is None or high is None:
        return None
    texts = {key: str(row[key]) for key in OFFER_KEYS if key not in ("low", "high")}
    return Offer(low=low, high=high, residency=residency, interruptions_per_hour=rate, **texts)


def _fx(name: str, row: object, problems: list[str]) -> FxRate | None:
    where = f"fx {name}"
    if not isinstance(row, Mapping) or set(row) != set(FX_KEYS):
        problems.append(f"{where}: needs {', '.join(FX_KEYS)}")
        return None
    usd = _positive(where, "usd", row["usd"], problems)
    _check_date(where, row["as_of"], problems)
    return None if usd is None else FxRate(usd, str(row["as_of"]), str(row["source"]))


def _check_date(where: str, value: object, problems: list[str]) -> None:
    try:
        earliest_day(str(value))
    except ValueError:
        problems.append(f"{where}: as_of {value!r} is no date (YYYY, YYYY-MM or YYYY-MM-DD)")


def _positive(where: str, key: str, value: object, problems: list[str]) -> Decimal | None:
    try:
        return positive(value)
    except ValueError as error:
        problems.append(f"{where}: {key} is {error}")
        return None


def positive(value: object) -> Decimal:
    """A number above 0 as Decimal. Raises ValueError with the value and the reason."""
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{value!r}, no number") from None
    if not amount.is_finite() or amount <= 0:
        raise ValueError(f"{value}; it must be above 0")
    return amount


def earliest_day(as_of: str) -> date:
    """The first day that a date of the catalog can mean. Raises ValueError.

    >>> earliest_day("2026-06"), earliest_day("2026")
    (datetime.date(2026, 6, 1), datetime.date(2026, 1, 1))
    """
    if not re.fullmatch(r"\d{4}(-\d{2}(-\d{2})?)?", as_of):
        raise ValueError(as_of)
    return date.fromisoformat((as_of + "-01-01")[:10])
