"""The frontier as one HTML page without a network: `frontier_page.html` with the variants' figures put in as JSON.

The page re-prices by itself. Every amount is proportional to the machine's price per hour over its utilization, end by
end of the interval (`evals.cost.token_cost.reprice`). Probabilities change only where variants ran on hardware whose
prices move differently, so they are computed here for each purchase option; one utilization for all cancels out of
them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import PriceError
from evals.cost.token_cost import decimal
from evals.decide.frontier import Resamples, analyze
from evals.types import Money
from finops.pricing.prices import lookup, serving_price

if TYPE_CHECKING:
    from pipeline.report.frontier import Shown

TEMPLATE = Path(__file__).with_suffix(".html")
OPTIONS = ("on_demand", "reserved_1y", "spot")
Triple = list[float]
"""Value, low end, high end."""


def page(model: str, shown: Sequence[Shown], resamples: Resamples) -> str:
    """The whole page."""
    data = json.dumps(page_data(shown, resamples), allow_nan=False).replace("<", "\\u003c")
    return TEMPLATE.read_text().replace("__TITLE__", html.escape(model)).replace("__DATA__", data)


def page_data(shown: Sequence[Shown], resamples: Resamples) -> dict[str, object]:
    """What the page's script draws."""
    prices = [option_prices(one) for one in shown]
    chances = {option: _probabilities(shown, [price[option] for price in prices], resamples) for option in OPTIONS}
    points = []
    for index, one in enumerate(shown):
        metrics, tags = one.run.data.metrics, one.run.data.tags
        quality, money = one.point.quality, one.point.usd_per_1k_tokens
        points.append(
            {
                "name": one.point.name,
                "baseline": one.point.is_baseline,
                "quality": None if quality is None else [quality.value, quality.lo, quality.hi],
                "quality_method": tags.get("quality_method", ""),
                "cost": None if money is None else _triple(money),
                "usd_per_hour": per_hour_of(one),
                "utilisation": metrics.get("cost/utilisation"),
                "prices": prices[index],
                "probability": {"measured": one.probability, **{o: chances[o][index] for o in OPTIONS}},
                "dominated_by": one.dominated_by,
                "size_mib": one.size_mib,
                "output_tok_per_s": one.output_tok_per_s,
                "hardware": tags.get("hardware", "unknown"),
                "decision": one.decision,
                "notes": list(one.point.notes),
            }
        )
    used = {point["utilisation"] for point in points if point["utilisation"]}
    return {"points": points, "one_utilisation": len(used) == 1, "subtitle": _subtitle(shown), "note": NOTE}


NOTE = (
    "A variant is on the frontier when no other variant is at least as good and costs no more. The percentage is the "
    "share of draws in which it stays there. Each draw takes the same questions for all variants, and the price of a "
    "variant relative to its baseline's, as rounds that measured both in turn give it. A variant without a measured "
    "price or quality is never on the frontier. The bar of a price includes run-to-run variation of the load test and "
    "the machine's price range. Click a column's head to sort."
)


def _subtitle(shown: Sequence[Shown]) -> str:
    options = sorted({one.run.data.tags.get("purchase_option", "").replace("_", " ") for one in shown} - {""})
    bought = f"; measured prices: {', '.join(options)}" if options else ""
    hardware = sorted({one.run.data.tags.get("hardware", "unknown") for one in shown})
    return f"{len(shown)} variants on {', '.join(hardware)}{bought}. Up and to the left is better."


def option_prices(one: Shown) -> dict[str, Triple | None]:
    """USD per hour of the variant's machine under each purchase option; None where the catalog has no offer."""
    tags, metrics = one.run.data.tags, one.run.data.metrics
    if "cost/num_devices" not in metrics:
        return dict.fromkeys(OPTIONS)
    return _catalog_prices(tags.get("hardware", ""), int(metrics["cost/num_devices"]), metrics.get("cost/startup_s"))


@cache
def _catalog_prices(hardware: str, num_devices: int, startup_s: float | None) -> dict[str, Triple | None]:
    found: dict[str, Triple | None] = {}
    for option in OPTIONS:
        try:
            price = serving_price(lookup(hardware, option, num_devices), startup_s)
        except PriceError:
            found[option] = None
        else:
            amounts = (price.usd_per_hour, price.usd_per_hour_lo, price.usd_per_hour_hi)
            found[option] = [float(amount) for amount in amounts]
    return found


def per_hour_of(one: Shown) -> Triple | None:
    """USD per hour of the machine as it was measured; None for a run that did not record it."""
    metrics = one.run.data.metrics
    if "cost/usd_per_hour" not in metrics:
        return None
    return [metrics[f"cost/usd_per_hour{suffix}"] for suffix in ("", ".lo", ".hi")]


def _probabilities(shown: Sequence[Shown], prices: Sequence[Triple | None], resamples: Resamples) -> list[float | None]:
    """Per variant, the share of draws on the frontier under other prices; None where it has no such price."""
    if all(price is None for price in prices):
        return [None] * len(shown)
    moves = {
        None if price is None or (before := per_hour_of(one)) is None else (price[0] / before[0], *price, *before)
        for one, price in zip(shown, prices, strict=True)
    }
    if len(moves) == 1 and None not in moves:
        return [one.probability for one in shown]  # one factor for all prices: the order does not change
    points, repeats = [], {}
    for one, price in zip(shown, prices, strict=True):
        name, money, before = one.point.name, one.point.usd_per_1k_tokens, per_hour_of(one)
        if money is None or price is None or before is None:
            points.append(replace(one.point, usd_per_1k_tokens=None))
            continue
        shares = [decimal(new) / decimal(old) for new, old in zip(price, before, strict=True)]
        amounts = (amount * share for amount, share in zip((money.value, money.lo, money.hi), shares, strict=True))
        points.append(replace(one.point, usd_per_1k_tokens=_ordered(*amounts)))
        if name in resamples.usd_per_1k_tokens:
            repeats[name] = [usd * float(shares[0]) for usd in resamples.usd_per_1k_tokens[name]]
    moved = replace(resamples, usd_per_1k_tokens=repeats)
    return list(analyze(points, np.random.default_rng(0), moved).probability)


def _ordered(value: Decimal, lo: Decimal, hi: Decimal) -> Money:
    return Money(value, min(lo, value), max(hi, value))


def _triple(money: Money) -> Triple:
    return [float(money.value), float(money.lo), float(money.hi)]
