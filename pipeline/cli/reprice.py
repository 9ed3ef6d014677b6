"""Price every recorded run of a model again, without measuring anything: what would it cost as a spot machine?

    parsimony reprice model=smollm2-135m-q4_1 hardware.purchase_option=spot
    parsimony reprice model=smollm2-135m-q4_1 hardware.usd_per_hour=0.8    a machine's price of your own
    parsimony reprice model=smollm2-135m-q4_1 hardware.name=l4-24gb        only what was measured on this hardware
    parsimony reprice model=smollm2-135m-q4_1 gate.utilisation=0.7         busy 70% of the time
    parsimony reprice model=smollm2-135m-q4_1 residency=[sg,au]            only offers that stand in these countries
    parsimony reprice model=smollm2-135m-q4_1 --catalog NEW.yaml           another price catalog
    parsimony reprice model=smollm2-135m-q4_1 --api groq/llama-3.1-8b-instant    beside a public API's list price

Each run keeps what it was priced at, and gets `reprice/<name>/cost/...` beside it: the name is the purchase option, and
what else was changed. They are metrics of the same run and no run of their own, so that MLflow's compare view shows old
and new price, quality and speed of a variant in one column, and a chart takes either price as its axis. The tag
`reprice.<name>` says which price that was, from where, of which date, and what the run was priced at before. Doing it
again adds to the metric's history. What making and evaluating a variant has cost stays as it was paid.

A run stays on the hardware that it was measured on: another one's price at this one's speed is nobody's price.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from core.console import say, table
from core.errors import ConfigError
from evals.cost.curves import blend_3_to_1
from evals.cost.token_cost import decimal
from finops.pricing.api_prices import api_list_price
from finops.pricing.catalog import load_catalog
from pipeline.cli.options import config_of, parser
from pipeline.config import RunConfig
from pipeline.record.cost_rows import CostRun, cost_runs, write
from pipeline.record.reprice import ENDS, HEADLINES, PREFIX, Pricing, Repriced, amounts_to_write, reprice_all
from pipeline.record.tags import CANDIDATE_KEY, tag_of

MAX_ROWS = 30
"""Variants that the table lists."""
HEADER = ("variant", "hardware", "measured: USD per 1k tokens", "re-priced: USD per 1k tokens", "change")


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
            newest.setdefault(tag_of(one.run.tags, CANDIDATE_KEY) or one.run.run_id, one)
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
    commands = parser("reprice", __doc__)
    commands.add_argument("--catalog", type=Path, metavar="FILE", help="a price catalog (default: the product's)")
    commands.add_argument("--api", default="", metavar="PROVIDER/MODEL", help="a public API's list price beside them")
    options = commands.parse(arguments)
    config = config_of(options)
    now = datetime.now(UTC)
    pricing = pricing_of(config, options.overrides, options.catalog, now.date())
    runs = cost_runs(config.tracking, config.model.name)
    if not runs:
        raise ConfigError(f"model={config.model.name}: no run is recorded in {config.tracking.uri}")
    check_machine(runs, pricing, config.model.name)
    repriced = reprice_all(runs, pricing)
    write(config.tracking, done := amounts_to_write(repriced, pricing.name, now))
    shown = rows(repriced)
    title = f"{config.model.name}: {len(done)} of {len(repriced)} runs re-priced as '{pricing.name}'"
    table(title, HEADER, [*shown[:MAX_ROWS], *api_rows(options.api)])
    if len(shown) > MAX_ROWS:
        say(f"... and {len(shown) - MAX_ROWS} more expensive variants")
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
    provider, _, model = provider_and_model.rpartition("/")
    price = api_list_price(model, provider or None)
    blend = blend_3_to_1(price.usd_per_1m_input_tokens, price.usd_per_1m_output_tokens) / 1000
    return [(f"{price.provider}/{price.model}", price.label, "", f"{blend:.3g} (input 3 : output 1)", "")]
