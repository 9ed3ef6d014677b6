"""A ledger row as a row of FOCUS 1.2 (FinOps Open Cost and Usage Specification). Pure.

What the ledger cannot know comes from `Issuer`: who bills, and the billing account. A correction made in a later month
than its charge is a `Correction` of that charge's category and billed in its own month; one of the same month is an
`Adjustment` (ChargeClass is for earlier billing periods only).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finops.money import from_us

DECIMAL, TEXT, TIME, INTEGER = "decimal", "text", "time", "integer"
COLUMNS: dict[str, str] = {
    "AvailabilityZone": TEXT,
    "BilledCost": DECIMAL,
    "BillingAccountId": TEXT,
    "BillingAccountName": TEXT,
    "BillingAccountType": TEXT,
    "BillingCurrency": TEXT,
    "BillingPeriodEnd": TIME,
    "BillingPeriodStart": TIME,
    "ChargeCategory": TEXT,
    "ChargeClass": TEXT,
    "ChargeDescription": TEXT,
    "ChargeFrequency": TEXT,
    "ChargePeriodEnd": TIME,
    "ChargePeriodStart": TIME,
    "CommitmentDiscountCategory": TEXT,
    "CommitmentDiscountId": TEXT,
    "CommitmentDiscountName": TEXT,
    "CommitmentDiscountQuantity": DECIMAL,
    "CommitmentDiscountStatus": TEXT,
    "CommitmentDiscountType": TEXT,
    "CommitmentDiscountUnit": TEXT,
    "ConsumedQuantity": DECIMAL,
    "ConsumedUnit": TEXT,
    "ContractedCost": DECIMAL,
    "ContractedUnitPrice": DECIMAL,
    "EffectiveCost": DECIMAL,
    "InvoiceId": TEXT,
    "InvoiceIssuerName": TEXT,
    "ListCost": DECIMAL,
    "ListUnitPrice": DECIMAL,
    "PricingCategory": TEXT,
    "PricingCurrency": TEXT,
    "PricingCurrencyContractedUnitPrice": DECIMAL,
    "PricingCurrencyEffectiveCost": DECIMAL,
    "PricingCurrencyListUnitPrice": DECIMAL,
    "PricingQuantity": DECIMAL,
    "PricingUnit": TEXT,
    "ProviderName": TEXT,
    "PublisherName": TEXT,
    "RegionId": TEXT,
    "RegionName": TEXT,
    "ResourceId": TEXT,
    "ResourceName": TEXT,
    "ResourceType": TEXT,
    "ServiceCategory": TEXT,
    "ServiceName": TEXT,
    "ServiceSubcategory": TEXT,
    "SkuId": TEXT,
    "SkuMeter": TEXT,
    "SkuPriceDetails": TEXT,
    "SkuPriceId": TEXT,
    "SubAccountId": TEXT,
    "SubAccountName": TEXT,
    "SubAccountType": TEXT,
    "Tags": TEXT,
    "x_ChargeKey": TEXT,
    "x_CorrectsChargeKey": TEXT,
    "x_FxDate": TEXT,
    "x_FxRate": TEXT,
    "x_InputTokens": INTEGER,
    "x_MigProfile": TEXT,
    "x_ModelId": TEXT,
    "x_NumRequests": INTEGER,
    "x_OutputTokens": INTEGER,
    "x_PriceVersion": TEXT,
    "x_RunId": TEXT,
    "x_Stage": TEXT,
    "x_Status": TEXT,
    "x_Work": TEXT,
}
PRICING_CATEGORY = {"on_demand": "Standard", "spot": "Dynamic", "reserved_1y": "Committed", "reserved_3y": "Committed"}
_FREQUENCY = {"Usage": "Usage-Based", "Purchase": "Recurring"}
_METERS = {
    "device_time": "Device time", "idle_time": "Device time", "commitment_purchase": "Reserved device time",
    "commitment_unused": "Reserved device time", "input_tokens": "Input tokens", "output_tokens": "Output tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Issuer:
    """Whose file it is. `invoice_issuer` bills the account; None names each row's provider."""

    account_id: str = "parsimony"
    account_name: str = "Parsimony"
    account_type: str = "Billing Account"
    invoice_issuer: str | None = None
    service_name: str = "Parsimony model engineering"


def pico_text(amount: int) -> str:
    """A decimal text of pico-units, with a point always and no needless zeros: 825000000000 is `0.825`."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, rest = divmod(amount, 1_000_000_000_000)
    return f"{sign}{whole}.{f'{rest:012d}'.rstrip('0') or '0'}"


def _nano_text(price: int | None) -> str | None:
    return None if price is None else pico_text(price * 1000)


def _micro_text(quantity: int | None) -> str | None:
    return None if quantity is None else pico_text(quantity * 1_000_000)


@functools.lru_cache(maxsize=1 << 16)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.lru_cache(maxsize=4096)
def _billing_period(month: int) -> tuple[str, str]:
    year, number = divmod(month, 100)
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    return f"{year:04d}-{number:02d}-01T00:00:00Z", f"{following[0]:04d}-{following[1]:02d}-01T00:00:00Z"


def _null(value: str | None) -> str | None:
    return value or None


def focus_row(row: Any, issuer: Issuer) -> list[Any]:
    """The values of `COLUMNS` for a row of `finops.schema.charges`: decimals as text, missing as None."""
    correction = row.charge_class is not None
    created_month = int(from_us(row.created_us).strftime("%Y%m")) if correction else row.month
    late = correction and created_month > row.month
    category = "Adjustment" if correction and not late else row.charge_category
    billing_start, billing_end = _billing_period(created_month if late else row.month)
    has_sku = row.quantity_micro is not None
    sku = f"{row.provider}/{row.accelerator}"
    commitment = row.commitment_id
    is_usage = category == "Usage"
    consumed = row.consumed_micro if is_usage else None
    committed_quantity = row.quantity_micro if commitment and category in ("Usage", "Purchase") else None
    return [
        None,
        pico_text(row.billed_pico),
        issuer.account_id,
        issuer.account_name,
        issuer.account_type,
        row.currency,
        billing_end,
        billing_start,
        category,
        "Correction" if late else None,
        row.description,
        _FREQUENCY.get(category, "One-Time"),
        _second(-(-row.end_us // 1_000_000)),
        _second(row.start_us // 1_000_000),
        "Usage" if commitment else None,
        commitment,
        commitment,
        _micro_text(committed_quantity),
        row.commitment_status if commitment and is_usage else None,
        "Reserved capacity" if commitment else None,
        row.pricing_unit if committed_quantity is not None else None,
        _micro_text(consumed),
        row.pricing_unit if consumed is not None else None,
        pico_text(row.contracted_pico),
        _nano_text(row.contracted_price_nano),
        pico_text(row.effective_pico),
        None,
        issuer.invoice_issuer or row.provider,
        pico_text(row.list_pico),
        _nano_text(row.list_price_nano),
        # Buying a commitment is priced at the agreed rate; only what it covers is Committed.
        ("Standard" if category == "Purchase" else PRICING_CATEGORY.get(row.purchase_option)) if has_sku else None,
        "USD",
        _nano_text(row.contracted_usd_nano),
        pico_text(row.effective_usd_pico),
        _nano_text(row.list_usd_nano),
        _micro_text(row.quantity_micro),
        row.pricing_unit,
        row.provider,
        row.provider,
        row.region,
        row.region,
        row.resource_id,
        row.resource_id,
        row.resource_type,
        "AI and Machine Learning",
        issuer.service_name,
        "Machine Learning",
        sku if has_sku else None,
        _METERS.get(row.meter, row.meter) if has_sku else None,
        _details(row.accelerator, row.num_devices, row.mig_profile) if has_sku else None,
        f"{sku}/{row.region}/{row.purchase_option}/{row.price_version}" if has_sku else None,
        _null(row.team),
        _null(row.team),
        "Team" if row.team else None,
        row.tags,
        row.key,
        row.corrects,
        row.fx_date,
        row.fx_rate,
        row.input_tokens,
        row.mig_profile,
        row.model_id,
        row.num_requests,
        row.output_tokens,
        row.price_version,
        _null(row.run_id),
        row.stage,
        row.status,
        row.work,
    ]


@functools.lru_cache(maxsize=4096)
def _details(accelerator: str, num_devices: int, mig_profile: str | None) -> str:
    details = {"InstanceType": accelerator, "x_NumDevices": num_devices}
    if mig_profile is not None:
        details["x_MigProfile"] = mig_profile
    return json.dumps(details, sort_keys=True)


def converters() -> list[Callable[[Any], Any]]:
    """Per column, from `focus_row`'s value to a Parquet value: costs as DOUBLE, times as timestamps."""
    kinds: dict[str, Callable[[Any], Any]] = {
        DECIMAL: lambda value: None if value is None else float(value),
        TIME: datetime.fromisoformat,
        TEXT: lambda value: value,
        INTEGER: lambda value: value,
    }
    return [kinds[kind] for kind in COLUMNS.values()]
