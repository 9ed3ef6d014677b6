"""What a charge is: who used which resource when, at which frozen price. Pure: building one touches no database.

    charge = device_charge(
        run_id="r1", stage="quantize", resource=Resource("gpu-node-3/0", "NVIDIA L4", "GPU"),
        rate=Rate(Decimal("0.825"), "catalog@2026-11-01"), tags=tags, start=start, end=end)

Costs follow FOCUS 1.2: list (public price), contracted (after negotiated discounts), billed (what the invoice says),
effective (amortized over commitments). Unit price x quantity is each cost, exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, TypedDict, Unpack

from core.errors import ConfigError, UserError, closest
from core.redact import contains_secret, redact_text
from finops.money import (
    MAX_PICO,
    TICK_US,
    UNIT_PRICE_DECIMALS,
    cost_pico,
    day_of,
    from_micro,
    from_pico,
    from_us,
    month_of,
    round_decimals,
    split,
    to_decimal,
    to_micro,
    to_us,
)

PURCHASE_OPTIONS = ("on_demand", "spot", "reserved_1y", "reserved_3y")
STATUSES = ("completed", "failed", "killed", "preempted", "external", "idle", "committed", "corrected")
WORKS = ("useful", "lost", "idle", "unused")
GPU_SLICES = 7
"""Compute slices of a MIG-capable GPU."""


NO_QUANTITIES: dict[str, Any] = {
    "quantity_micro": None,
    "pricing_unit": None,
    "consumed_micro": None,
    "device_micro": 0,
    "list_price_nano": None,
    "contracted_price_nano": None,
    "list_usd_nano": None,
    "contracted_usd_nano": None,
}
"""Fields of a charge that moves costs and no quantity: a correction, or a bill that belongs to no run."""


@dataclass(frozen=True)
class Resource:
    """The machine, or the part of it, that a stage uses.

    `slices` of 7 make a MIG share; None is the whole device. `kind` is GPU or CPU (or what a provider calls it).
    """

    id: str
    accelerator: str
    kind: str = "CPU"
    region: str = "local"
    provider: str = "self-hosted"
    num_devices: int = 1
    mig_profile: str | None = None
    slices: int | None = None

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ConfigError(f"resource.num_devices: {self.num_devices} must be at least 1")
        if self.slices is not None and not 1 <= self.slices <= GPU_SLICES:
            raise ConfigError(f"resource.slices: {self.slices} must be 1 to {GPU_SLICES}")

    @property
    def pricing_unit(self) -> str:
        """FOCUS PricingUnit of this resource's time."""
        return "GPU-Hours" if self.kind == "GPU" else "Hours"


@dataclass(frozen=True)
class Rate:
    """A price as it was when the charge was made; the row freezes it with its FX rate and date.

    `usd_per_hour` is per device. `list_usd_per_hour` is the public price where it differs. `fx_rate` is billing
    currency per USD. `commitment_id` marks usage covered by a commitment: nothing is billed then, and the effective
    cost is `usd_per_hour`, the amortized rate, while list and contracted stay the list price.
    """

    usd_per_hour: Decimal
    price_version: str
    purchase_option: str = "on_demand"
    region: str = ""
    currency: str = "USD"
    list_usd_per_hour: Decimal | None = None
    fx_rate: Decimal = Decimal(1)
    fx_date: str | None = None
    commitment_id: str | None = None

    def __post_init__(self) -> None:
        for name in ("usd_per_hour", "list_usd_per_hour", "fx_rate"):
            value = getattr(self, name)
            if value is not None and to_decimal(value, f"price.{name}") < 0:
                raise UserError(f"price.{name}: {value} is negative")
        if self.purchase_option not in PURCHASE_OPTIONS:
            raise ConfigError(
                f"price.purchase_option: '{self.purchase_option}' does not exist. It must be one of "
                f"{', '.join(PURCHASE_OPTIONS)}{closest(self.purchase_option, PURCHASE_OPTIONS)}"
            )
        if self.currency == "USD" and self.fx_rate != 1:
            raise UserError(f"price.fx_rate: {self.fx_rate} given, but the billing currency is USD")
        if self.currency != "USD" and self.fx_date is None:
            raise UserError(f"price.fx_date: billing in {self.currency} needs the date of its exchange rate")

    @classmethod
    def of(cls, price: object, **changes: Any) -> Rate:
        """A rate from anything with the catalog's price fields, as attributes or as a mapping."""

        def read(name: str) -> Any:
            return price.get(name) if isinstance(price, Mapping) else getattr(price, name, None)

        names = [field.name for field in fields(cls)]
        values = {name: read(name) for name in names if read(name) is not None}
        if isinstance(values.get("fx_date"), datetime):
            values["fx_date"] = values["fx_date"].date()
        if "fx_date" in values:
            values["fx_date"] = str(values["fx_date"])
        return cls(**{**values, **changes})

    def unit(self, usd: Decimal) -> Decimal:
        """A USD unit price in the billing currency, rounded half-even to what the ledger stores."""
        return round_decimals(usd * self.fx_rate, UNIT_PRICE_DECIMALS)


class Usage(TypedDict, total=False):
    """What a charged stage yielded."""

    model_id: str | None
    input_tokens: int | None
    output_tokens: int | None
    num_requests: int | None
    busy_micro: int | None
    """Device time in micro-hours in which it was at work."""


@dataclass(frozen=True)
class Charge:
    """One row of the ledger. Field names and units are those of `finops.ledger.schema.charges`."""

    key: str
    charge_category: str
    charge_class: str | None
    corrects: str | None
    description: str
    run_id: str
    stage: str
    status: str
    work: str
    meter: str
    provider: str
    resource_id: str
    resource_type: str
    accelerator: str
    region: str
    num_devices: int
    mig_profile: str | None
    purchase_option: str
    commitment_id: str | None
    commitment_status: str | None
    start_us: int
    end_us: int
    month: int
    day: int
    created_us: int
    quantity_micro: int | None
    pricing_unit: str | None
    device_micro: int
    consumed_micro: int | None
    list_price_nano: int | None
    contracted_price_nano: int | None
    list_usd_nano: int | None
    contracted_usd_nano: int | None
    price_version: str
    currency: str
    fx_rate: str
    fx_date: str | None
    list_pico: int
    contracted_pico: int
    billed_pico: int
    effective_pico: int
    effective_usd_pico: int
    team: str
    environment: str
    model_family: str
    workload_type: str
    tags: str
    model_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    num_requests: int | None = None
    busy_micro: int | None = None
    hold_id: str | None = None

    @property
    def effective_usd(self) -> Decimal:
        """Effective cost in USD, exact."""
        return from_pico(self.effective_usd_pico)

    @property
    def billed_cost(self) -> Decimal:
        """Billed cost in the billing currency, exact."""
        return from_pico(self.billed_pico)

    @property
    def device_hours(self) -> Decimal:
        """Device time used; zero for purchases, tokens and corrections."""
        return from_micro(self.device_micro)

    def with_usage(self, **usage: Unpack[Usage]) -> Charge:
        """The same charge with what it yielded."""
        return replace(self, **usage)


def charge_key(run_id: str, resource_id: str, start_us: int, end_us: int, *, meter: str, price_version: str) -> str:
    """SHA-256 of run, resource, period, meter and price version: the same use of the same thing is one charge."""
    return hashlib.sha256(
        json.dumps([run_id, resource_id, start_us, end_us, meter, price_version]).encode()
    ).hexdigest()


def device_micro(start_us: int, end_us: int, resource: Resource) -> int:
    """Device time in micro-hours: ticks x devices, x slices / 7 rounded half-even for a lone MIG share."""
    whole = (end_us - start_us) // TICK_US * resource.num_devices
    if resource.slices is None:
        return whole
    return int((Decimal(whole * resource.slices) / GPU_SLICES).to_integral_value(ROUND_HALF_EVEN))


def device_charge(
    *,
    run_id: str,
    stage: str,
    resource: Resource,
    rate: Rate,
    tags: Mapping[str, str],
    start: datetime,
    end: datetime,
    status: str = "completed",
    work: str = "useful",
    meter: str = "device_time",
    quantity_micro: int | None = None,
    created: datetime | None = None,
    hold_id: str | None = None,
) -> Charge:
    """A charge for the use of a resource from `start` to `end` (both snapped to the micro-hour).

    `quantity_micro` gives the device time where a machine was split (see `finops.ledger.shared_machines`); else it is
    computed.
    Raises `UserError` where the end lies before the start, `MoneyError` where a cost cannot be stored exactly.
    """
    start_us, end_us = to_us(start), to_us(end)
    if end_us < start_us:
        raise UserError(f"charge: its end {end.isoformat()} lies before its start {start.isoformat()}")
    quantity = device_micro(start_us, end_us, resource) if quantity_micro is None else quantity_micro
    paid = rate.usd_per_hour
    public = paid if rate.list_usd_per_hour is None else rate.list_usd_per_hour
    covered = rate.commitment_id is not None
    return _charge(
        Terms(run_id, stage, status, work, meter, resource, rate, dict(tags), hold_id),
        start_us,
        end_us,
        quantity=quantity,
        unit=resource.pricing_unit,
        unit_prices=(public, public if covered else paid, paid),
        created=created,
    )


def quantity_charge(
    *,
    run_id: str,
    stage: str,
    resource: Resource,
    rate: Rate,
    usd_per_unit: Decimal,
    quantity: Decimal,
    unit: str,
    meter: str,
    tags: Mapping[str, str],
    start: datetime,
    end: datetime,
    status: str = "external",
    created: datetime | None = None,
) -> Charge:
    """A charge by quantity instead of time, for example 1000 Tokens of an API at `usd_per_unit` (up to 6 decimals)."""
    return _charge(
        Terms(run_id, stage, status, "useful", meter, resource, rate, dict(tags), None),
        to_us(start),
        to_us(end),
        quantity=to_micro(quantity),
        unit=unit,
        unit_prices=(usd_per_unit, usd_per_unit, usd_per_unit),
        created=created,
    )


@dataclass(frozen=True)
class Terms:
    """What a charge is for, apart from its period and amounts."""

    run_id: str
    stage: str
    status: str
    work: str
    meter: str
    resource: Resource
    rate: Rate
    tags: dict[str, str]
    hold_id: str | None


def _charge(
    terms: Terms,
    start_us: int,
    end_us: int,
    *,
    quantity: int,
    unit: str,
    unit_prices: tuple[Decimal, Decimal, Decimal],
    created: datetime | None,
) -> Charge:
    """Price a quantity. `unit_prices` are list, contracted and effective, in USD."""
    assert terms.status in STATUSES, terms.status
    assert terms.work in WORKS, terms.work
    rate, resource, start = terms.rate, terms.resource, from_us(start_us)
    public, contracted, effective = (rate.unit(price) for price in unit_prices)
    covered = rate.commitment_id is not None
    tags = clean_tags(terms.tags)
    return Charge(
        key=charge_key(
            terms.run_id, resource.id, start_us, end_us, meter=terms.meter, price_version=rate.price_version
        ),
        charge_category="Usage",
        charge_class=None,
        corrects=None,
        description=f"{terms.stage} on {resource.accelerator} ({terms.work})",
        run_id=terms.run_id,
        stage=terms.stage,
        status=terms.status,
        work=terms.work,
        meter=terms.meter,
        provider=resource.provider,
        resource_id=resource.id,
        resource_type=resource.kind,
        accelerator=resource.accelerator,
        region=rate.region or resource.region,
        num_devices=resource.num_devices,
        mig_profile=resource.mig_profile,
        purchase_option=rate.purchase_option,
        commitment_id=rate.commitment_id,
        commitment_status="Used" if covered else None,
        start_us=start_us,
        end_us=end_us,
        month=month_of(start),
        day=day_of(start),
        created_us=to_us(created or datetime.now(UTC)),
        quantity_micro=quantity,
        pricing_unit=unit,
        device_micro=quantity if unit.endswith("Hours") else 0,
        consumed_micro=quantity,
        list_price_nano=nano(public),
        contracted_price_nano=nano(contracted),
        list_usd_nano=nano(round_decimals(unit_prices[0], UNIT_PRICE_DECIMALS)),
        contracted_usd_nano=nano(round_decimals(unit_prices[1], UNIT_PRICE_DECIMALS)),
        price_version=rate.price_version,
        currency=rate.currency,
        fx_rate=str(rate.fx_rate),
        fx_date=rate.fx_date,
        list_pico=cost_pico(public, quantity),
        contracted_pico=cost_pico(contracted, quantity),
        billed_pico=0 if covered else cost_pico(contracted, quantity),
        effective_pico=cost_pico(effective, quantity),
        effective_usd_pico=cost_pico(round_decimals(unit_prices[2], UNIT_PRICE_DECIMALS), quantity),
        team=tags.get("team", ""),
        environment=tags.get("environment", ""),
        model_family=tags.get("model_family", ""),
        workload_type=tags.get("workload_type", ""),
        tags=json.dumps(tags, sort_keys=True, ensure_ascii=False),
        hold_id=terms.hold_id,
    )


def nano(price: Decimal) -> int:
    """A unit price in nano-units."""
    scaled = price.scaleb(9)
    assert scaled == scaled.to_integral_value()
    assert scaled <= MAX_PICO
    return int(scaled)


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as texts without secrets, sorted by key."""
    plain = {str(key): str(value) for key, value in sorted(tags.items())}
    if not contains_secret("\n".join(f"{key}\n{value}" for key, value in plain.items())):
        return plain
    return {redact_text(str(key)): redact_text(str(value)) for key, value in sorted(tags.items())}


def cut(charge: Charge, at_us: int, kinds: tuple[str, str]) -> list[Charge]:
    """Cut a device charge in two at a moment, first part and rest labeled `kinds`; costs split to the last pico.

    An empty part is left out. Used for work lost since the last checkpoint.
    """
    at_us = min(max(at_us, charge.start_us), charge.end_us) // TICK_US * TICK_US
    lengths = [at_us - charge.start_us, charge.end_us - at_us]
    if 0 in lengths:
        work = kinds[0] if lengths[0] else kinds[1]
        return [replace(charge, work=work, description=f"{charge.stage} on {charge.accelerator} ({work})")]
    assert charge.quantity_micro is not None
    first, rest = split(charge.quantity_micro, lengths)
    return [
        _rescale(replace(charge, end_us=at_us, work=kinds[0]), first),
        _rescale(replace(charge, start_us=at_us, work=kinds[1]), rest),
    ]


def _rescale(charge: Charge, quantity: int) -> Charge:
    """The charge for another quantity at the same prices, with the key of its own period."""
    assert charge.quantity_micro
    costs = {
        name: getattr(charge, name) * quantity // charge.quantity_micro
        for name in ("list_pico", "contracted_pico", "billed_pico", "effective_pico", "effective_usd_pico")
    }
    start = from_us(charge.start_us)
    key = charge_key(
        charge.run_id,
        charge.resource_id,
        charge.start_us,
        charge.end_us,
        meter=charge.meter,
        price_version=charge.price_version,
    )
    return replace(
        charge,
        key=key,
        quantity_micro=quantity,
        consumed_micro=quantity,
        device_micro=quantity,
        month=month_of(start),
        day=day_of(start),
        description=f"{charge.stage} on {charge.accelerator} ({charge.work})",
        **costs,
    )
