"""The columns of a FOCUS 1.2 file (FinOps Open Cost and Usage Specification), each from a batch of ledger rows. Pure.

`COLUMNS` says column by column where its values come from. Whole columns are made, not rows: most are a column of the
ledger as it stands, and a year of charges is written in seconds instead of minutes.

What the ledger cannot know comes from `Issuer`: who bills, and the billing account. A correction made in a later month
than its charge is a `Correction` of that charge's category and billed in its own month; one of the same month is an
`Adjustment` (ChargeClass is for earlier billing periods only).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from finops.money import MICRO, PICO, from_us, month_of

DECIMAL, TEXT, TIME, INTEGER = "decimal", "text", "time", "integer"
"""Kinds of a column's values: integers of 1e-12, texts, seconds since 1970 UTC, integers; missing is None in each."""
PRICING_CATEGORY = {"on_demand": "Standard", "spot": "Dynamic", "reserved_1y": "Committed", "reserved_3y": "Committed"}
_FREQUENCY = {"Usage": "Usage-Based", "Purchase": "Recurring"}
_METERS = {
    "device_time": "Device time", "idle_time": "Device time", "commitment_purchase": "Reserved device time",
    "commitment_unused": "Reserved device time", "input_tokens": "Input tokens", "output_tokens": "Output tokens",
}  # fmt: skip
_NANO_TO_PICO = 1000


Values = Sequence[Any]
"""A column of a batch: texts, integers or None."""


@dataclass(frozen=True)
class Issuer:
    """Whose file it is. `invoice_issuer` bills the account; None names each row's provider."""

    account_id: str = "parsimony"
    account_name: str = "Parsimony"
    account_type: str = "Billing Account"
    invoice_issuer: str | None = None
    service_name: str = "Parsimony model engineering"


class Batch:
    """Rows of `finops.ledger.schema.charges` as columns, and what several FOCUS columns need to know of them."""

    def __init__(self, ledger: Mapping[str, Values], issuer: Issuer) -> None:
        self._ledger, self.issuer = ledger, issuer
        self.num_rows = len(ledger["key"])

    def __getitem__(self, name: str) -> Values:
        """A column of the ledger."""
        return self._ledger[name]

    @cached_property
    def billing_month(self) -> list[int]:
        """The bill's month (yyyymm): a correction is on the bill of the month in which it was made."""
        rows = zip(self["month"], self["charge_class"], self["created_us"], strict=True)
        return [month if kind is None else max(month, _month(created)) for month, kind, created in rows]

    @cached_property
    def is_late(self) -> list[bool]:
        """Whether a row corrects a charge of an earlier billing period."""
        return [billed > month for billed, month in zip(self.billing_month, self["month"], strict=True)]

    @cached_property
    def category(self) -> list[str]:
        """ChargeCategory."""
        rows = zip(self["charge_category"], self["charge_class"], self.is_late, strict=True)
        return ["Adjustment" if kind is not None and not late else category for category, kind, late in rows]

    @cached_property
    def has_sku(self) -> list[bool]:
        """Whether a quantity of something was sold; a correction moves money alone."""
        return [quantity is not None for quantity in self["quantity_micro"]]

    @cached_property
    def committed_micro(self) -> list[int | None]:
        """What was bought as a commitment, or used or left of one."""
        rows = zip(self["quantity_micro"], self["commitment_id"], self.category, strict=True)
        return [
            quantity if commitment and category in ("Usage", "Purchase") else None
            for quantity, commitment, category in rows
        ]

    @cached_property
    def used_micro(self) -> list[int | None]:
        """What was consumed; null for what is not usage."""
        rows = zip(self["consumed_micro"], self.category, strict=True)
        return [consumed if category == "Usage" else None for consumed, category in rows]

    @cached_property
    def sku(self) -> list[str]:
        """Who sells what."""
        return [f"{provider}/{name}" for provider, name in zip(self["provider"], self["accelerator"], strict=True)]


Maker = Callable[[Batch], Values]


@dataclass(frozen=True)
class Column:
    """A FOCUS column: its kind, and its values for a batch."""

    kind: str
    make: Maker


def _always(value: object) -> Maker:
    return lambda batch: [value] * batch.num_rows


def _ledger(name: str, scale: int = 1) -> Maker:
    """A column of the ledger, its integers scaled to pico-units."""
    if scale == 1:
        return lambda batch: batch[name]
    return lambda batch: _scaled(batch[name], scale)


def _scaled(values: Sequence[int | None], scale: int) -> Sequence[int | None]:
    return [None if value is None else value * scale for value in values]


def _or_null(name: str) -> Maker:
    """A text column of the ledger; FOCUS wants null where the ledger has an empty text."""
    return lambda batch: [value or None for value in batch[name]]


def _issuer(name: str) -> Maker:
    return lambda batch: [getattr(batch.issuer, name)] * batch.num_rows


def _sold(make: Maker) -> Maker:
    """The values where something was sold; null for the rest."""
    return lambda batch: [value if sold else None for value, sold in zip(make(batch), batch.has_sku, strict=True)]


def _where(name: str, of: Maker) -> Maker:
    """A column of the ledger where `of` is not null; null for the rest."""
    return lambda batch: [
        value if other is not None else None for value, other in zip(batch[name], of(batch), strict=True)
    ]


def _if_committed(value: str) -> Maker:
    return lambda batch: [value if commitment else None for commitment in batch["commitment_id"]]


def _commitment_status(batch: Batch) -> Values:
    rows = zip(batch["commitment_status"], batch["commitment_id"], batch.category, strict=True)
    return [status if commitment and category == "Usage" else None for status, commitment, category in rows]


def _pricing_category(batch: Batch) -> Values:
    """Buying a commitment is priced at the agreed rate; only what it covers is Committed."""
    rows = zip(batch.category, batch["purchase_option"], strict=True)
    return ["Standard" if category == "Purchase" else PRICING_CATEGORY.get(option) for category, option in rows]


def _sku_price_id(batch: Batch) -> Values:
    rows = zip(batch.sku, batch["region"], batch["purchase_option"], batch["price_version"], strict=True)
    return ["/".join(parts) for parts in rows]


def _sku_price_details(batch: Batch) -> Values:
    return list(map(_details, batch["accelerator"], batch["num_devices"], batch["mig_profile"]))


@functools.lru_cache(maxsize=4096)
def _details(accelerator: str, num_devices: int, mig_profile: str | None) -> str:
    details = {"InstanceType": accelerator, "x_NumDevices": num_devices}
    if mig_profile is not None:
        details["x_MigProfile"] = mig_profile
    return json.dumps(details, sort_keys=True)


def _month(moment_us: int) -> int:
    return month_of(from_us(moment_us))


@functools.lru_cache(maxsize=4096)
def _month_start(month: int, months_later: int = 0) -> int:
    """Seconds since 1970 at the start of a month (yyyymm)."""
    year, index = divmod(month // 100 * 12 + month % 100 - 1 + months_later, 12)
    return int(datetime(year, index + 1, 1, tzinfo=UTC).timestamp())


COLUMNS: dict[str, Column] = {
    "AvailabilityZone": Column(TEXT, _always(None)),
    "BilledCost": Column(DECIMAL, _ledger("billed_pico")),
    "BillingAccountId": Column(TEXT, _issuer("account_id")),
    "BillingAccountName": Column(TEXT, _issuer("account_name")),
    "BillingAccountType": Column(TEXT, _issuer("account_type")),
    "BillingCurrency": Column(TEXT, _ledger("currency")),
    "BillingPeriodEnd": Column(TIME, lambda batch: [_month_start(month, 1) for month in batch.billing_month]),
    "BillingPeriodStart": Column(TIME, lambda batch: [_month_start(month) for month in batch.billing_month]),
    "ChargeCategory": Column(TEXT, lambda batch: batch.category),
    "ChargeClass": Column(TEXT, lambda batch: ["Correction" if late else None for late in batch.is_late]),
    "ChargeDescription": Column(TEXT, _ledger("description")),
    "ChargeFrequency": Column(TEXT, lambda batch: [_FREQUENCY.get(kind, "One-Time") for kind in batch.category]),
    "ChargePeriodEnd": Column(TIME, lambda batch: [-(-moment // MICRO) for moment in batch["end_us"]]),
    "ChargePeriodStart": Column(TIME, lambda batch: [moment // MICRO for moment in batch["start_us"]]),
    "CommitmentDiscountCategory": Column(TEXT, _if_committed("Usage")),
    "CommitmentDiscountId": Column(TEXT, _ledger("commitment_id")),
    "CommitmentDiscountName": Column(TEXT, _ledger("commitment_id")),
    "CommitmentDiscountQuantity": Column(DECIMAL, lambda batch: _scaled(batch.committed_micro, MICRO)),
    "CommitmentDiscountStatus": Column(TEXT, _commitment_status),
    "CommitmentDiscountType": Column(TEXT, _if_committed("Reserved capacity")),
    "CommitmentDiscountUnit": Column(TEXT, _where("pricing_unit", lambda batch: batch.committed_micro)),
    "ConsumedQuantity": Column(DECIMAL, lambda batch: _scaled(batch.used_micro, MICRO)),
    "ConsumedUnit": Column(TEXT, _where("pricing_unit", lambda batch: batch.used_micro)),
    "ContractedCost": Column(DECIMAL, _ledger("contracted_pico")),
    "ContractedUnitPrice": Column(DECIMAL, _ledger("contracted_price_nano", _NANO_TO_PICO)),
    "EffectiveCost": Column(DECIMAL, _ledger("effective_pico")),
    "InvoiceId": Column(TEXT, _always(None)),
    "InvoiceIssuerName": Column(
        TEXT, lambda batch: [batch.issuer.invoice_issuer or provider for provider in batch["provider"]]
    ),
    "ListCost": Column(DECIMAL, _ledger("list_pico")),
    "ListUnitPrice": Column(DECIMAL, _ledger("list_price_nano", _NANO_TO_PICO)),
    "PricingCategory": Column(TEXT, _sold(_pricing_category)),
    "PricingCurrency": Column(TEXT, _always("USD")),
    "PricingCurrencyContractedUnitPrice": Column(DECIMAL, _ledger("contracted_usd_nano", _NANO_TO_PICO)),
    "PricingCurrencyEffectiveCost": Column(DECIMAL, _ledger("effective_usd_pico")),
    "PricingCurrencyListUnitPrice": Column(DECIMAL, _ledger("list_usd_nano", _NANO_TO_PICO)),
    "PricingQuantity": Column(DECIMAL, _ledger("quantity_micro", MICRO)),
    "PricingUnit": Column(TEXT, _ledger("pricing_unit")),
    "ProviderName": Column(TEXT, _ledger("provider")),
    "PublisherName": Column(TEXT, _ledger("provider")),
    "RegionId": Column(TEXT, _ledger("region")),
    "RegionName": Column(TEXT, _ledger("region")),
    "ResourceId": Column(TEXT, _ledger("resource_id")),
    # Null where a resource has an id and no display name: the specification forbids repeating the id.
    "ResourceName": Column(TEXT, _always(None)),
    "ResourceType": Column(TEXT, _ledger("resource_type")),
    "ServiceCategory": Column(TEXT, _always("AI and Machine Learning")),
    "ServiceName": Column(TEXT, _issuer("service_name")),
    "ServiceSubcategory": Column(TEXT, _always("Machine Learning")),
    "SkuId": Column(TEXT, _sold(lambda batch: batch.sku)),
    "SkuMeter": Column(TEXT, _sold(lambda batch: [_METERS.get(meter, meter) for meter in batch["meter"]])),
    "SkuPriceDetails": Column(TEXT, _sold(_sku_price_details)),
    "SkuPriceId": Column(TEXT, _sold(_sku_price_id)),
    "SubAccountId": Column(TEXT, _or_null("team")),
    "SubAccountName": Column(TEXT, _or_null("team")),
    "SubAccountType": Column(TEXT, lambda batch: ["Team" if team else None for team in batch["team"]]),
    "Tags": Column(TEXT, _ledger("tags")),
    "x_ChargeKey": Column(TEXT, _ledger("key")),
    "x_CorrectsChargeKey": Column(TEXT, _ledger("corrects")),
    "x_FxDate": Column(TEXT, _ledger("fx_date")),
    "x_FxRate": Column(TEXT, _ledger("fx_rate")),
    "x_InputTokens": Column(INTEGER, _ledger("input_tokens")),
    "x_MigProfile": Column(TEXT, _ledger("mig_profile")),
    "x_ModelId": Column(TEXT, _ledger("model_id")),
    "x_NumRequests": Column(INTEGER, _ledger("num_requests")),
    "x_OutputTokens": Column(INTEGER, _ledger("output_tokens")),
    "x_PriceVersion": Column(TEXT, _ledger("price_version")),
    "x_RunId": Column(TEXT, _or_null("run_id")),
    "x_Stage": Column(TEXT, _ledger("stage")),
    "x_Status": Column(TEXT, _ledger("status")),
    "x_Work": Column(TEXT, _ledger("work")),
}


LEDGER_COLUMNS = (
    "key", "charge_category", "charge_class", "corrects", "description", "run_id", "stage", "status", "work", "meter",
    "provider", "resource_id", "resource_type", "accelerator", "region", "num_devices", "mig_profile",
    "purchase_option", "commitment_id", "commitment_status", "start_us", "end_us", "month", "created_us",
    "quantity_micro", "pricing_unit", "consumed_micro", "list_price_nano", "contracted_price_nano", "list_usd_nano",
    "contracted_usd_nano", "price_version", "currency", "fx_rate", "fx_date", "list_pico", "contracted_pico",
    "billed_pico", "effective_pico", "effective_usd_pico", "team", "tags", "model_id", "input_tokens",
    "output_tokens", "num_requests",
)  # fmt: skip
"""The columns of `finops.ledger.schema.charges` that `COLUMNS` are made of."""


def pico_text(amount: int) -> str:
    """A decimal text of pico-units, with a point always and no needless zeros: 825000000000 is `0.825`."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    rest = f"{amount % PICO:012d}".rstrip("0")
    return f"{sign}{amount // PICO}.{rest or '0'}"


def time_text(second: int) -> str:
    """Seconds since 1970 as FOCUS writes a moment."""
    day, rest = divmod(second, 86_400)
    minutes, seconds = divmod(rest, 60)
    return f"{_date_text(day)}T{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}Z"


@functools.lru_cache(maxsize=4096)
def _date_text(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()
