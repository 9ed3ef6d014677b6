"""Price every recorded run of a model again, without measuring anything: what would it cost as a spot machine?

Each run keeps what it was priced at, and gets `reprice/<name>/cost/...` beside it: the name is the purchase option, and
what else was changed. They are metrics of the same run and no run of their own, so that MLflow's compare view shows old
and new price, quality and speed of a variant in one column, and a chart takes either price as its axis. The tag
`reprice.<name>` says which price that was, from where, of which date, and what the run was priced at before. Doing it
again adds to the metric's history. What making and evaluating a variant has cost stays as it was paid.

A run stays on the hardware that it was measured on: another one's price at this one's speed is nobody's price.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cache

from core.errors import PriceError
from evals.cost.token_cost import decimal
from evals.types import Price
from finops.pricing.catalog import Catalog
from finops.pricing.prices import lookup, serving_price
from pipeline.record.cost_rows import Annotation, CostRun

PREFIX = "reprice"
ENDS = ("", ".lo", ".hi")
HEADLINES = (
    *(f"cost/usd_per_1k_{what}" for what in ("tokens", "input_tokens", "output_tokens", "requests")),
    "cost/usd_per_1m_tokens",
)
"""Amounts at the declared utilization."""
PEAK = "cost/peak/usd_per_1k_tokens"
"""At saturation: no utilization in it."""


@dataclass(frozen=True)
class Pricing:
    """What runs are priced at now."""

    purchase_option: str = "on_demand"
    hardware: str | None = None
    """Only runs that were measured on it; None: all."""
    usd_per_hour: Decimal | None = None
    """The user's own price of the whole machine; None: the catalog's."""
    utilisation: Decimal | None = None
    """None keeps each run's own."""
    region: str | None = None
    residency: tuple[str, ...] = ()
    """Where it may run, as `finops.pricing.prices.lookup` has it."""
    catalog: Catalog | None = None
    catalog_name: str = ""
    today: date | None = None

    @property
    def name(self) -> str:
        """The part of the metrics' names that says what was changed.

        >>> Pricing("spot").name, Pricing(usd_per_hour=Decimal("0.8"), utilisation=Decimal("0.7")).name
        ('spot', 'given-0.8-usd-per-hour-u0.7')
        """
        name = self.purchase_option
        if self.usd_per_hour is not None:
            name = f"given-{self.usd_per_hour.normalize():f}-usd-per-hour"
        where = self.catalog_name, self.region, *sorted(code.lower() for code in self.residency)
        name += "".join(f"-{text}" for text in where if text)
        return name if self.utilisation is None else f"{name}-u{self.utilisation.normalize():f}"

    def price(self, hardware: str, num_devices: int) -> Price:
        """What a machine costs now. Raises PriceError where the catalog has no such offer."""
        return lookup(
            hardware,
            self.purchase_option,
            num_devices,
            usd_per_hour=self.usd_per_hour,
            region=self.region,
            residency=self.residency,
            catalog=self.catalog,
            today=self.today,
        )


@dataclass(frozen=True)
class Repriced:
    """A run under another price; `reason` says why it has none."""

    run: CostRun
    metrics: Mapping[str, float]
    """By the names of the originals (`cost/...`); empty where it could not be priced again."""
    price: Price | None
    utilisation: Decimal | None
    reason: str = ""


def reprice_all(runs: Sequence[CostRun], pricing: Pricing) -> list[Repriced]:
    """Every run of the asked hardware under the new price; what cannot be priced is there with its reason."""
    prices: dict[tuple[str, int], Price | str] = {}  # a catalog's price is the same for all runs of a machine
    found = []
    for run in runs:
        hardware = run.tags.get("hardware", "")
        if pricing.hardware is not None and hardware != pricing.hardware:
            continue
        metrics = run.metrics
        if "cost/usd_per_hour" not in metrics or "cost/utilisation" not in metrics:
            reason = "its record does not say what its machine cost (written by an older version)"
            found.append(Repriced(run, {}, None, None, reason))
            continue
        machine = hardware, int(metrics.get("cost/num_devices", 1))
        if machine not in prices:
            try:
                prices[machine] = pricing.price(*machine)
            except PriceError as error:
                prices[machine] = str(error).partition("\n  ->")[0]
        price = prices[machine]
        if isinstance(price, str):
            found.append(Repriced(run, {}, None, None, price))
            continue
        price = serving_price(price, metrics.get("cost/startup_s"))
        utilisation = decimal(metrics["cost/utilisation"]) if pricing.utilisation is None else pricing.utilisation
        found.append(Repriced(run, reprice_metrics(metrics, price, utilisation), price, utilisation))
    return found


def reprice_metrics(metrics: Mapping[str, float], price: Price, utilisation: Decimal) -> dict[str, float]:
    """A run's `cost/...` amounts under another price: `evals.cost.token_cost.reprice` over recorded metrics.

    An amount is proportional to the machine's price over its utilization, end by end of the interval. The factors are
    Decimal; the amounts are floats, as MLflow stores them.
    """
    before = tuple(metrics[f"cost/usd_per_hour{end}"] for end in ENDS)
    headline, peak = factors(before, metrics["cost/utilisation"], price, utilisation)
    found: dict[str, float] = {}
    for name in (*HEADLINES, PEAK):
        if name in metrics:
            shares = peak if name == PEAK else headline
            value, lo, hi = (metrics[name + end] * share for end, share in zip(ENDS, shares, strict=True))
            found |= {name: value, f"{name}.lo": min(lo, value), f"{name}.hi": max(hi, value)}
    return found


@cache
def factors(
    usd_per_hour_before: tuple[float, ...], utilisation_before: float, price: Price, utilisation: Decimal
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By what the value, the low and the high end of a headline and of a peak amount are multiplied."""
    now = price.usd_per_hour, price.usd_per_hour_lo, price.usd_per_hour_hi
    shares = [new / decimal(old) for new, old in zip(now, usd_per_hour_before, strict=True)]
    busy = decimal(utilisation_before) / utilisation
    return tuple(float(share * busy) for share in shares), tuple(float(share) for share in shares)


def amounts_to_write(repriced: Sequence[Repriced], name: str, now: datetime) -> list[Annotation]:
    """What is written to MLflow: the amounts under the pricing's name, and where they come from."""
    texts: dict[tuple[object, ...], str] = {}
    found = []
    for one in repriced:
        if one.price is None or not one.metrics:
            continue
        before = tuple(one.run.metrics[f"cost/usd_per_hour{end}"] for end in ENDS)
        was = before, one.run.metrics["cost/utilisation"], one.run.tags.get("purchase_option", "")
        key = one.price, one.utilisation, *was
        if key not in texts:
            texts[key] = json.dumps(provenance(one.price, one.utilisation, was, now))
        metrics = {f"{PREFIX}/{name}/{metric}": value for metric, value in one.metrics.items()}
        found.append(Annotation(one.run.run_id, metrics, {f"{PREFIX}.{name}": texts[key]}))
    return found


def provenance(
    price: Price, utilisation: Decimal | None, was: tuple[tuple[float, ...], float, str], now: datetime
) -> dict[str, object]:
    """Which price, from where, of which date, and what the run was priced at when it was measured."""
    (_, lo, hi), utilisation_before, option_before = was
    return {
        "hardware": price.hardware,
        "num_devices": price.num_devices,
        "purchase_option": price.purchase_option,
        "usd_per_hour": [str(price.usd_per_hour_lo), str(price.usd_per_hour_hi)],
        "utilisation": str(utilisation),
        "source": price.source,
        "as_of": price.as_of,
        "warnings": list(price.warnings),
        "before": {"purchase_option": option_before, "usd_per_hour": [lo, hi], "utilisation": utilisation_before},
        "repriced_at": now.isoformat(timespec="seconds"),
    }
