"""Price every recorded run of a model again, without measuring anything: what would it cost as a spot machine?

    python -m pipeline.record.reprice model=smollm2-135m-q4_1 hardware.purchase_option=spot
    python -m pipeline.record.reprice model=... hardware.usd_per_hour=0.8        a machine's price of your own
    python -m pipeline.record.reprice model=... hardware.name=l4-24gb            only what was measured on this hardware
    python -m pipeline.record.reprice model=... gate.utilisation=0.7             busy 70% of the time
    python -m pipeline.record.reprice model=... residency=[sg,au]                only offers that stand in these countries
    python -m pipeline.record.reprice model=... +catalog=NEW.yaml                another price catalog
    python -m pipeline.record.reprice model=... +api=groq/llama-3.1-8b-instant   beside a public API's list price

Each run keeps what it was priced at, and gets `reprice/<name>/cost/...` beside it: the name is the purchase option, and
what else was changed. They are metrics of the same run and no run of their own, so that MLflow's compare view shows old
and new price, quality and speed of a variant in one column, and a chart takes either price as its axis. The tag
`reprice.<name>` says which price that was, from where, of which date, and what the run was priced at before. Doing it
again adds to the metric's history. What making and evaluating a variant has cost stays as it was paid.

A run stays on the hardware that it was measured on: another one's price at this one's speed is nobody's price.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path

from core.errors import ConfigError, PriceError
from evals.cost.curves import blend_3_to_1
from evals.cost.token_cost import decimal
from evals.types import Price
from finops.pricing.catalog import Catalog, load_catalog
from finops.pricing.prices import lookup, serving_price
from pipeline.config import RunConfig
from pipeline.record.cost_rows import Annotation, CostRun, cost_runs, write

PREFIX = "reprice"
ENDS = ("", ".lo", ".hi")
HEADLINES = tuple(f"cost/usd_per_1k_{what}" for what in ("tokens", "input_tokens", "output_tokens", "requests"))
"""Amounts at the declared utilisation."""
PEAK = "cost/peak/usd_per_1k_tokens"
"""At saturation: no utilisation in it."""
MAX_ROWS = 30
"""Variants that the table lists."""
HEADER = ("variant", "hardware", "measured: USD per 1k tokens", "re-priced: USD per 1k tokens", "change")


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

    An amount is proportional to the machine's price over its utilisation, end by end of the interval. The factors are
    Decimal; the amounts are what MLflow holds of them, floats.
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


def pricing_of(config: RunConfig, arguments: Sequence[str], catalog: Path | None, today: date) -> Pricing:
    """The pricing that a command line asks for."""
    hardware = config.hardware
    is_given = any(argument.startswith(("gate.utilisation=", "gate=")) for argument in arguments)
    if is_given and not 0 < config.gate.utilisation <= 1:
        raise ConfigError(f"gate.utilisation: {config.gate.utilisation} is not allowed; it must be above 0, at most 1")
    return Pricing(
        purchase_option=hardware.purchase_option,
        hardware=None if hardware.name == "auto" else hardware.name,
        usd_per_hour=None if hardware.usd_per_hour is None else decimal(hardware.usd_per_hour),
        utilisation=decimal(config.gate.utilisation) if is_given else None,
        region=config.region,
        residency=tuple(config.residency),
        catalog=None if catalog is None else load_catalog(catalog),
        catalog_name="" if catalog is None else catalog.stem,
        today=today,
    )


def check_machine(runs: Sequence[CostRun], pricing: Pricing, model: str) -> None:
    """An own price is the price of one machine.

    Raises:
        ConfigError: nothing was measured on the hardware that is named, or an own price leaves open which one it is of.

    """
    counts = Counter(run.tags.get("hardware", "unknown") for run in runs)
    known = ", ".join(f"{name} ({count} runs)" for name, count in sorted(counts.items()))
    if pricing.hardware is not None and pricing.hardware not in counts:
        raise ConfigError(
            f"hardware.name={pricing.hardware}: no run of '{model}' was measured on it; measured on: {known}\n"
            "  -> a price needs a speed: measure there, or leave hardware.name out"
        )
    if pricing.usd_per_hour is not None and pricing.hardware is None and len(counts) > 1:
        ways = "\n".join(f"  -> hardware.name={name}" for name in sorted(counts))
        raise ConfigError(f"hardware.usd_per_hour: which machine costs this? Measured on: {known}\n{ways}")


def rows(repriced: Sequence[Repriced]) -> list[tuple[str, ...]]:
    """The newest run of each candidate, cheapest first."""
    newest: dict[str, Repriced] = {}
    for one in repriced:
        if one.metrics:
            newest.setdefault(one.run.tags.get("candidate_key", one.run.run_id), one)
    name = HEADLINES[0]
    shown = sorted((one for one in newest.values() if name in one.metrics), key=lambda one: one.metrics[name])
    return [
        (
            one.run.tags.get("label", one.run.run_id),
            one.run.tags.get("hardware", "unknown"),
            _amount(one.run.metrics, name),
            _amount(one.metrics, name),
            f"{one.metrics[name] / one.run.metrics[name] - 1:+.1%}",
        )
        for one in shown
    ]


def _amount(metrics: Mapping[str, float], name: str) -> str:
    value, lo, hi = (metrics[name + end] for end in ENDS)
    return f"{value:.3g} [{lo:.2g}, {hi:.2g}]"


def main(arguments: list[str]) -> int:
    """Re-price, record, and show."""
    from core.console import say, table
    from pipeline.cli.app import command_config, own_options

    own, rest = own_options(arguments, {"+catalog": "", "+api": ""})
    config = command_config(rest, __doc__)
    now = datetime.now(UTC)
    pricing = pricing_of(config, rest, Path(own["+catalog"]) if own["+catalog"] else None, now.date())
    runs = cost_runs(config.tracking, config.model.name)
    if not runs:
        raise ConfigError(f"model={config.model.name}: no run is recorded in {config.tracking.uri}")
    check_machine(runs, pricing, config.model.name)
    repriced = reprice_all(runs, pricing)
    write(config.tracking, done := amounts_to_write(repriced, pricing.name, now))
    shown = rows(repriced)
    title = f"{config.model.name}: {len(done)} of {len(repriced)} runs re-priced as '{pricing.name}'"
    table(title, HEADER, [*shown[:MAX_ROWS], *api_rows(own["+api"])])
    if len(shown) > MAX_ROWS:
        say(f"... and {len(shown) - MAX_ROWS} dearer variants")
    for text in dict.fromkeys(text for one in repriced if one.price for text in one.price.warnings):
        say(f"Note     {text}")
    for reason, count in Counter(one.reason for one in repriced if one.reason).items():
        say(f"not re-priced: {count} runs: {reason}")
    say(f"metrics: {PREFIX}/{pricing.name}/cost/...   provenance: tag {PREFIX}.{pricing.name}")
    return 0


def api_rows(provider_and_model: str) -> list[tuple[str, ...]]:
    """A public API's list price as a row to compare with; none where none is asked for."""
    if not provider_and_model:
        return []
    from finops.pricing.api_prices import api_list_price

    provider, _, model = provider_and_model.rpartition("/")
    price = api_list_price(model, provider or None)
    blend = blend_3_to_1(price.usd_per_1m_input_tokens, price.usd_per_1m_output_tokens) / 1000
    return [(f"{price.provider}/{price.model}", price.label, "", f"{blend:.3g} (input 3 : output 1)", "")]


if __name__ == "__main__":
    from pipeline.cli.app import run_command

    sys.exit(run_command(main, sys.argv[1:]))
