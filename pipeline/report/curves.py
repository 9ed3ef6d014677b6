"""Three pictures of a model's variants: price against load, throughput against latency, price by purchase option.

`parsimony frontier model=...` draws them beside the frontier and puts them into its page. Sentences
beside them say which variant is the cheapest at which load, and how they compare with the baseline.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import PriceError
from core.files import write_atomic
from evals.cost.crossings import Curve, cheapest, closed_loop, crossings
from evals.cost.curves import compare
from evals.cost.token_cost import reprice
from evals.decide.evidence import price_verdict
from evals.decide.fleet import describe_fleet
from evals.load.summary import figure, mix_of
from evals.types import Money
from finops.pricing.prices import lookup, serving_price

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evals.decide.evidence import Evidence
    from pipeline.record.frontier_runs import RecordedRun

COST, SPEED, OPTIONS = "cost-against-load.png", "throughput-against-latency.png", "cost-by-purchase-option.png"
PURCHASE_OPTIONS = ("on_demand", "reserved_1y", "spot")
MAX_VARIANTS = 10
"""Curves in one picture: the baseline and the cheapest others."""


@dataclass(frozen=True)
class Variant:
    """A recorded variant with its measurement."""

    name: str
    is_baseline: bool
    evidence: Evidence

    @property
    def curve(self) -> Curve:
        """USD per 1,000 tokens over the concurrency."""
        return Curve(self.name, tuple((load, float(money.value)) for load, money in self.prices))

    @property
    def prices(self) -> tuple[tuple[float, Money], ...]:
        """As `curve`, with intervals."""
        return closed_loop(self.evidence.load, self.evidence.cost.price)


@dataclass(frozen=True)
class Drawn:
    """What was drawn: the files, and sentences about what they show."""

    files: tuple[Path, ...]
    sentences: tuple[str, ...] = field(default=())


def draw(variants: Sequence[Variant], model: str, folder: Path, peak_req_per_s: float | None = None) -> Drawn:
    """Write the pictures into a folder; those for which nothing was measured are left out."""
    chosen = choose(variants)
    files = []
    for name, make in ((COST, cost_figure), (SPEED, speed_figure), (OPTIONS, option_figure)):
        drawn = make(chosen, model)
        if drawn is not None:
            picture = io.BytesIO()
            drawn.savefig(picture, format="png", dpi=110)
            write_atomic(folder / name, picture.getvalue())
            files.append(folder / name)
    return Drawn(tuple(files), tuple(sentences(chosen, peak_req_per_s)))


def choose(variants: Sequence[Variant]) -> list[Variant]:
    """The baseline and the cheapest others, of variants that have a price."""
    priced = [one for one in variants if one.evidence.cost.usd_per_1k_tokens is not None]
    ordered = sorted(priced, key=lambda one: (not one.is_baseline, _headline(one).value))
    return ordered[:MAX_VARIANTS]


def variants_of(
    runs: Sequence[RecordedRun], names: Sequence[str], evidence_of: Callable[[str], Evidence]
) -> list[Variant]:
    """Recorded runs, with the names under which the frontier shows them, as variants; those without a price are left
    out before their evidence is read.
    """
    priced = [
        (run.data.metrics["cost/usd_per_1k_tokens"], index)
        for index, run in enumerate(runs)
        if "cost/usd_per_1k_tokens" in run.data.metrics
    ]
    is_baseline = [run.data.tags.get("role") == "baseline" for run in runs]
    chosen = sorted(priced, key=lambda pair: (not is_baseline[pair[1]], pair[0]))[:MAX_VARIANTS]
    return [Variant(names[index], is_baseline[index], evidence_of(runs[index].info.run_id)) for _, index in chosen]


def sentences(variants: Sequence[Variant], peak_req_per_s: float | None = None) -> list[str]:
    """Which variant is the cheapest at which load, how they compare with the baseline, what a fleet saves."""
    curves = [one.curve for one in variants if one.prices]
    found = []
    for span in cheapest(curves):
        is_point = span.lo == span.hi
        where = f"at {span.lo:.3g}" if is_point else f"from {span.lo:.3g} to {span.hi:.3g}"
        found.append(f"Cheapest {where} requests in flight, on average: {span.name}.")
    baseline = next((one for one in variants if one.is_baseline), None)
    for one in variants if baseline is not None else ():
        if one is baseline or baseline is None:
            continue
        ratio = one.evidence.cost.price.usd_per_hour / baseline.evidence.cost.price.usd_per_hour
        rows = compare(baseline.evidence.load, one.evidence.load, float(ratio))
        parts = [
            f"{row.name} {row.ratio - 1:+.0%}"
            + ("" if row.lo is None or row.hi is None else f" [{row.lo - 1:+.0%}, {row.hi - 1:+.0%}]")
            for row in rows
        ]
        if one.evidence.price_rounds is not None:
            found.append(f"{one.name}, price: {price_verdict(one.evidence, baseline.evidence).text}.")
        if parts:
            # No verdict: repeats of one start say nothing of the next one.
            text = f"{one.name} against {baseline.name}, price of a token by one start of each"
            found.append(f"{text}: {', '.join(parts)}.")
        if fleet := describe_fleet(baseline.evidence, one.evidence, peak_req_per_s):
            found.append(f"{one.name}, fleet: {fleet}.")
    return found


def cost_figure(variants: Sequence[Variant], model: str) -> Figure | None:
    """USD per million tokens over the requests in flight, one line per variant; crossings with the baseline marked."""
    drawn = [one for one in variants if one.prices]
    if not drawn:
        return None
    figure_, axes = _axes(f"{model}: price of a token against load (machine paid for, busy or not)")
    for one in drawn:
        loads = [load for load, _ in one.prices]
        values = [1000 * float(money.value) for _, money in one.prices]
        below = [1000 * float(money.value - money.lo) for _, money in one.prices]
        above = [1000 * float(money.hi - money.value) for _, money in one.prices]
        style = "D--" if one.is_baseline else "o-"
        axes.errorbar(loads, values, yerr=[below, above], fmt=style, capsize=3, linewidth=1.4, label=one.name)
    baseline = next((one for one in drawn if one.is_baseline), None)
    for one in drawn if baseline is not None else ():
        assert baseline is not None
        for load in () if one is baseline else crossings(baseline.curve, one.curve):
            axes.axvline(load, color="#888888", linewidth=0.8, linestyle=":")
            text = f"{one.name} = {baseline.name} at {load:.3g}"
            place = (load, axes.get_ylim()[1])
            axes.annotate(text, place, rotation=90, fontsize=8, va="top", ha="right")
    loads = sorted({load for one in drawn for load, _ in one.prices})
    axes.set_xscale("log", base=2)
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    axes.set_yscale("log")
    axes.set_xlabel("requests in flight on one machine")
    axes.set_ylabel("USD per million tokens (input and output)")
    axes.legend()
    return figure_


def speed_figure(variants: Sequence[Variant], model: str) -> Figure | None:
    """Output tokens per second over the time per output token, one line per variant, along the load."""
    lines = []
    for one in variants:
        load, mix = one.evidence.load, mix_of(one.evidence.load)
        points = []
        for point in load.points:
            rate, latency = figure(point, "output_tok_per_s"), figure(point, "tpot_p50_s")
            if (point.input_tokens, point.output_tokens) == mix and rate is not None and latency is not None:
                load_of = point.request_rate or point.concurrency or math.inf
                points.append((load_of, 1000 * latency.value, rate.value, point.name.partition("-")[0]))
        if points:
            lines.append((one, [(x, y, name) for _, x, y, name in sorted(points)]))
    if not lines:
        return None
    figure_, axes = _axes(f"{model}: throughput against latency")
    for one, along in lines:
        xs, ys = [x for x, _, _ in along], [y for _, y, _ in along]
        (line,) = axes.plot(xs, ys, "D--" if one.is_baseline else "o-", linewidth=1.4, label=one.name)
        for x, y, name in along:
            place = (-5, 5) if one.is_baseline else (5, -11)
            side = "right" if one.is_baseline else "left"
            colour = line.get_color()
            axes.annotate(name, (x, y), textcoords="offset points", xytext=place, ha=side, fontsize=8, color=colour)
    axes.set_xlabel("median time per output token, ms")
    axes.set_ylabel("output tokens per second")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure_


def option_figure(variants: Sequence[Variant], model: str) -> Figure | None:
    """The headline price of each variant as each purchase option of the catalog would give it."""
    bars = [(one, prices) for one in variants if (prices := option_prices(one))]
    if not bars:
        return None
    figure_, axes = _axes(f"{model}: price by purchase option, at the declared utilization")
    names = [option for option in PURCHASE_OPTIONS if any(option in prices for _, prices in bars)]
    width = 0.8 / len(bars)
    for number, (one, prices) in enumerate(bars):
        present = [(index, prices[option]) for index, option in enumerate(names) if option in prices]
        values = [1000 * float(money.value) for _, money in present]
        below = [1000 * float(money.value - money.lo) for _, money in present]
        above = [1000 * float(money.hi - money.value) for _, money in present]
        places = [index - 0.4 + width * (number + 0.5) for index, _ in present]
        axes.bar(places, values, width * 0.9, yerr=[below, above], capsize=3, label=one.name)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylabel("USD per million tokens")
    axes.legend()
    return figure_


def option_prices(one: Variant) -> dict[str, Money]:
    """The headline under each option that the catalog offers for the variant's machine; empty for a machine that it
    does not know.
    """
    found = {}
    cost = one.evidence.cost
    for option in PURCHASE_OPTIONS:
        try:
            price = lookup(cost.price.hardware, option, cost.price.num_devices)
        except PriceError:
            continue
        money = reprice(cost, serving_price(price, one.evidence.load.machine.startup_s)).usd_per_1k_tokens
        if money is not None:
            found[option] = money
    return found


def section(drawn: Drawn) -> str:
    """The pictures and the words as a piece of HTML without a network."""
    images = [
        f'<img alt="{html.escape(path.stem)}" style="max-width:100%" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in drawn.files
    ]
    items = "".join(f"<li>{html.escape(text)}</li>" for text in drawn.sentences)
    return f'<section id="curves"><h2>Price over the load</h2><ul>{items}</ul>{"".join(images)}</section>'


def add_to_page(page: Path, drawn: Drawn) -> None:
    """Put the pictures at the end of the frontier's page."""
    if drawn.files:
        text = page.read_text()
        assert "</body>" in text
        write_atomic(page, text.replace("</body>", section(drawn) + "</body>"))


def _axes(title: str) -> tuple[Figure, Axes]:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    figure_ = Figure(figsize=(8, 5), layout="constrained")
    axes = figure_.subplots()
    axes.set_title(title, fontsize=11)
    axes.grid(visible=True, which="both", alpha=0.25)
    return figure_, axes


def _headline(one: Variant) -> Money:
    money = one.evidence.cost.usd_per_1k_tokens
    assert money is not None
    return money
