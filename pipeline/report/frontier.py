"""All recorded variants of a model on the cost-quality plane.

    python -m pipeline.report.frontier model=smollm2-135m-q4_1            print the table, write frontier.png and frontier.html
    python -m pipeline.report.frontier model=... peak_req_per_s=40        with the machines that such a load needs
    python -m pipeline.report.frontier model=... +plane=5eeb              of other runs than the newest one's
    python -m pipeline.report.frontier model=... +out=/tmp/pictures       into another folder than mlruns/frontier/<model>

Beside them: price against load with the loads at which variants overtake one another, throughput against latency, and
price by purchase option (`pipeline.report.curves`).

The page is one file without a network: purchase option and utilisation are switches that re-price in it. A run without
a measured price or quality is listed, but never on the frontier: missing is never free. Only runs that answered the
same questions under the same load stand on one plane; those of the newest run's plane are shown, and the others named.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.environments import ROOT
from core.errors import ConfigError, closest
from core.files import write_atomic
from evals.decide.frontier import Frontier, Resamples, analyse
from evals.types import Estimate, Money, Point

if TYPE_CHECKING:
    from mlflow.entities import Run

    from evals.decide.decide import Evidence
    from pipeline.report.curves import Drawn

PICTURE, PAGE = "frontier.png", "frontier.html"
COLOURS = {"frontier": "#0b6e4f", "dominated": "#9a9a9a", "baseline": "#1f4e9c"}
MAX_BARS = 200
"""Variants drawn with error bars and names in the picture; of more, the dominated ones are plain dots."""
MAX_EVIDENCE = 64
"""Runs whose items and load repeats are read for the bootstrap; more are drawn from their intervals alone."""
SAME_PLACE = 0.03, 0.5
"""Points this near in log price and in percent of score have their names one above the other."""
EPS_QUALITY, EPS_COST = 0.01, 0.05
"""Nearly as good: within one point. Cheaper by a share that matters: 5%."""
SEED = 0
THROUGHPUT = re.compile(r"load/[^/]+/output_tok_per_s")


@dataclass(frozen=True)
class Shown:
    """One variant as picture, page and table show it."""

    point: Point
    run: Run
    on_frontier: bool
    probability: float | None
    """Share of bootstrap draws in which it is on the frontier."""
    confident: bool
    """In the set that holds the true frontier with 95% confidence."""
    beaten_by: str
    """A variant that is nearly as good and cheaper; empty where there is none."""
    decision: str
    size_mib: float | None
    output_tok_per_s: float | None


def on_one_plane(runs: Sequence[Run], plane: str = "") -> list[Run]:
    """The runs that answered the same questions under one load: the newest run's, or those of the plane whose name
    starts with `plane`. Runs are newest first.

    Raises:
        ConfigError: no plane has such a name, or several have.

    """
    planes = by_plane(runs)
    if not planes:
        return []
    found = [name for name in planes if name.startswith(plane)] if plane else [next(iter(planes))]
    if len(found) != 1:
        told = "several planes start with it" if found else "there is no such plane"
        raise ConfigError(f"+plane={plane}: {told}; recorded:\n" + "\n".join(map(plane_text, planes.values())))
    return planes[found[0]]


def by_plane(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each plane, that of the newest run first."""
    planes: dict[str, list[Run]] = {}
    for run in runs:
        planes.setdefault(run.data.tags.get("plane", ""), []).append(run)
    return planes


def plane_text(runs: Sequence[Run]) -> str:
    """What a plane holds and how it is asked for."""
    names = {name.split("/")[1] for run in runs for name in run.data.metrics if THROUGHPUT.fullmatch(name)}
    newest = datetime.fromtimestamp(max(run.info.start_time for run in runs) / 1000, UTC)
    load = f" under load={','.join(sorted(names))}" if names else ""
    plane = runs[0].data.tags.get("plane", "")
    return f"{len(runs)} variant{'s' * (len(runs) > 1)}{load}, the newest of {newest:%Y-%m-%d}: +plane={plane[:8]}"


def shown_points(runs: Sequence[Run], resamples: Resamples) -> list[Shown]:
    """The recorded variants with the frontier marked, cheapest first.

    Without resamples each variant is drawn from its own interval.
    """
    points = unique_points(runs)
    found = analyse(points, np.random.default_rng(SEED), resamples)
    beaten = beaten_by(points)
    shown = [
        _shown(point, run, found, index, beaten[index])
        for index, (point, run) in enumerate(zip(points, runs, strict=True))
    ]
    return sorted(
        shown, key=lambda one: one.point.usd_per_1k_tokens.value if one.point.usd_per_1k_tokens else Decimal("Inf")
    )


def beaten_by(points: Sequence[Point]) -> list[str]:
    """Per point, the name of the best one that is nearly as good and cheaper; empty where none is."""
    from evals.decide.frontier import epsilon_beaten_by

    found = epsilon_beaten_by(points, EPS_QUALITY, EPS_COST)
    return ["" if index is None else points[index].name for index in found]


def _shown(point: Point, run: Run, found: Frontier, index: int, beaten: str) -> Shown:
    metrics = run.data.metrics
    return Shown(
        point=point,
        run=run,
        on_frontier=found.on_frontier[index],
        probability=found.probability[index],
        confident=found.confident[index],
        beaten_by=beaten,
        decision=run.data.tags.get("decision", "baseline" if point.is_baseline else "-"),
        size_mib=None if "size/bytes" not in metrics else metrics["size/bytes"] / 2**20,
        output_tok_per_s=next((value for name, value in metrics.items() if is_headline_speed(name)), None),
    )


def is_headline_speed(name: str) -> bool:
    """Whether a metric is `load/<scenario>/output_tok_per_s`."""
    parts = name.split("/")
    return len(parts) == 3 and parts[0] == "load" and parts[2] == "output_tok_per_s"


def unique_points(runs: Sequence[Run]) -> list[Point]:
    """The runs as points; names that occur twice get their hardware, and then the run's id, behind them."""
    points = [point_of(run) for run in runs]
    hardware = [f"@{run.data.tags.get('hardware', '?')}" for run in runs]
    for suffixes in (hardware, [f"#{run.info.run_id[:6]}" for run in runs]):
        counts = Counter(point.name for point in points)
        points = [
            replace(point, name=point.name + suffix) if counts[point.name] > 1 else point
            for point, suffix in zip(points, suffixes, strict=True)
        ]
    return points


def point_of(run: Run) -> Point:
    """A recorded run as a point; what it does not hold is None."""
    metrics, tags = run.data.metrics, run.data.tags
    quality = None
    if "quality/mean" in metrics:
        value, lo, hi = (metrics[f"quality/mean{suffix}"] for suffix in ("", ".lo", ".hi"))
        quality = Estimate(value, lo, hi, num_samples=int(metrics.get("quality/num_items", 0)))
    cost = None
    if "cost/usd_per_1k_tokens" in metrics:
        cost = Money(*(Decimal(repr(metrics[f"cost/usd_per_1k_tokens{suffix}"])) for suffix in ("", ".lo", ".hi")))
    notes = (tags["quality_meaningless"],) if "quality_meaningless" in tags else ()
    return Point(tags.get("label", run.info.run_id), quality, cost, tags.get("role") == "baseline", notes)


def resamples_of(runs: Sequence[Run], evidence_of: Callable[[str], Evidence]) -> Resamples:
    """Item scores and load repeats of the measured runs, for a bootstrap that is paired by item.

    Scores only of runs in which every item was asked, of one set of items: a stopped run's items are no random sample,
    so it is drawn from its confidence sequence.
    """
    measured = [
        (point, run)
        for point, run in zip(unique_points(runs), runs, strict=True)
        if point.quality is not None and point.usd_per_1k_tokens is not None
    ]
    if len(measured) > MAX_EVIDENCE:
        return Resamples()
    scores: dict[str, dict[str, list[float | None]]] = {}
    costs: dict[str, list[float]] = {}
    asked: dict[str, tuple[int, ...]] | None = None
    for point, run in measured:
        evidence = evidence_of(run.info.run_id)
        tasks = evidence.quality.tasks
        if all(result.is_complete for result in tasks.values()):
            by_id = {name: {item.item_id: item.score for item in result.items} for name, result in tasks.items()}
            ids = {name: tuple(sorted(known)) for name, known in by_id.items()}
            asked = asked or ids
            if ids == asked:
                scores[point.name] = {name: [known[i] for i in ids[name]] for name, known in by_id.items()}
        repeats = repeat_costs(evidence)
        if len(repeats) > 1:
            costs[point.name] = repeats
    return Resamples(scores, costs)


def repeat_costs(evidence: Evidence) -> list[float]:
    """USD per 1k tokens as each repeat at saturation gives it; empty where the price rests on a latency objective."""
    from evals.load.summary import saturating_point

    point, money = saturating_point(evidence.load), evidence.cost.usd_per_1k_tokens
    if point is None or money is None or evidence.load.theta_slo is not None:
        return []
    rates = [rate for repeat in point.repeats if (rate := repeat.get("total_tok_per_s"))]
    return [float(money.value) * float(np.mean(rates)) / rate for rate in rates]


def draw(
    model: str, runs: Sequence[Run], folder: Path, evidence_of: Callable[[str], Evidence] | None = None
) -> list[Shown]:
    """Write the picture and the page into a folder; returns what they show."""
    from pipeline.report.frontier_page import page

    runs = on_one_plane(runs)
    resamples = Resamples() if evidence_of is None else resamples_of(runs, evidence_of)
    shown = shown_points(runs, resamples)
    import io

    import matplotlib as mpl

    mpl.use("agg")
    picture = io.BytesIO()
    _figure(model, shown).savefig(picture, format="png", dpi=150)
    write_atomic(folder / PICTURE, picture.getvalue())
    write_atomic(folder / PAGE, page(model, shown, resamples))
    return shown


def draw_curves(
    model: str,
    runs: Sequence[Run],
    folder: Path,
    evidence_of: Callable[[str], Evidence],
    peak_req_per_s: float | None = None,
) -> Drawn:
    """Draw the curves of the runs of one plane, and add them to the page that is there."""
    from pipeline.report import curves as curves_page

    variants = curves_page.variants_of(runs, [point.name for point in unique_points(runs)], evidence_of)
    drawn = curves_page.draw(variants, model, folder, peak_req_per_s)
    curves_page.add_to_page(folder / PAGE, drawn)
    return drawn


def _figure(model: str, shown: Sequence[Shown]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    drawn = [one for one in shown if one.point.quality is not None and one.point.usd_per_1k_tokens is not None]
    is_crowded = len(drawn) > MAX_BARS
    if is_crowded:
        figures = [(float(d.point.usd_per_1k_tokens.value), d.point.quality.value) for d in drawn]  # type: ignore[union-attr]
        axes.scatter([1000 * c for c, _ in figures], [100 * q for _, q in figures], s=4, color=COLOURS["dominated"])
    named: list[tuple[float, float]] = []
    for one in drawn if not is_crowded else [d for d in drawn if d.on_frontier or d.point.is_baseline][:MAX_BARS]:
        quality, cost = one.point.quality, one.point.usd_per_1k_tokens
        assert quality is not None
        assert cost is not None
        kind = "baseline" if one.point.is_baseline else "frontier" if one.on_frontier else "dominated"
        x, y = 1000 * float(cost.value), quality.value * 100
        axes.errorbar(
            x,
            y,
            xerr=[[x - 1000 * float(cost.lo)], [1000 * float(cost.hi) - x]],
            yerr=[[y - quality.lo * 100], [quality.hi * 100 - y]],
            fmt="D" if one.point.is_baseline else "o",
            color=COLOURS[kind],
            capsize=3,
            markersize=8,
        )
        chance = "" if one.probability is None else f" ({one.probability:.0%})"
        near = [other for other in named if _is_near((x, y), other)]
        named.append((x, y))
        place = (9, 7 + 13 * len(near))
        axes.annotate(one.point.name + chance, (x, y), textcoords="offset points", xytext=place, fontsize=10)
    line = [one.point for one in drawn if one.on_frontier]
    if len(line) > 1:
        xs = [1000 * float(point.usd_per_1k_tokens.value) for point in line if point.usd_per_1k_tokens]
        ys = [point.quality.value * 100 for point in line if point.quality]
        axes.plot(xs, ys, color=COLOURS["frontier"], linewidth=1, linestyle="--", zorder=0)
    if drawn:
        axes.set_xscale("log")
        axes.margins(0.15)
    else:
        axes.text(0.5, 0.5, "no variant has both a quality and a price", ha="center", transform=axes.transAxes)
    axes.set_title(f"{model}: cost and quality (in brackets: share of draws on the frontier)", fontsize=11)
    axes.set_xlabel("USD per million tokens (log scale; at the declared utilisation)")
    axes.set_ylabel("mean score, %")
    axes.grid(visible=True, which="both", alpha=0.25)
    return figure


def _is_near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two points' names would lie on one another: in the logarithm of the price, and in percent of score."""
    return abs(math.log(one[0] / other[0])) < SAME_PLACE[0] and abs(one[1] - other[1]) < SAME_PLACE[1]


HEADER = ("variant", "mean score", "USD per 1k tokens", "size", "output tok/s", "frontier", "decision")


def row(one: Shown) -> tuple[str, ...]:
    """A variant's line in the table."""
    from pipeline.report.console import MISSING, estimate_text, money_text

    chance = "" if one.probability is None else f", {one.probability:.0%}"
    return (
        one.point.name,
        estimate_text(one.point.quality),
        money_text(one.point.usd_per_1k_tokens),
        MISSING if one.size_mib is None else f"{one.size_mib:.0f} MiB",
        MISSING if one.output_tok_per_s is None else f"{one.output_tok_per_s:.0f}",
        ("yes" if one.on_frontier else "no") + chance,
        one.decision,
    )


def main(arguments: list[str]) -> int:
    """Print and draw all recorded variants of a model."""
    from core.console import say, table
    from pipeline.cli.app import command_config, own_options
    from pipeline.record.comparable import plane_runs
    from pipeline.record.store import Recorder

    own, rest = own_options(arguments, {"+out": "", "+plane": ""})
    config = command_config(rest, __doc__)
    recorder = Recorder(config.tracking)
    model = config.model.name
    runs = plane_runs(recorder, config.tracking, model)
    if not runs:
        known = recorder.models()
        raise ConfigError(
            f"model={model}: no run is recorded{closest(model, known)}; recorded: {', '.join(known) or 'none'}"
        )
    folder = Path(own["+out"]) if own["+out"] else ROOT / "mlruns" / "frontier" / model
    chosen = on_one_plane(runs, own["+plane"])
    shown = draw(model, chosen, folder, recorder.evidence)
    table(f"{model}: {len(shown)} recorded variants", HEADER, [row(one) for one in shown])
    for others in by_plane(runs).values():
        if others[0] not in chosen:
            say(f"not shown, on other questions or another load: {plane_text(others)}")
    curves = draw_curves(model, chosen, folder, recorder.evidence, config.peak_req_per_s)
    for text in curves.sentences:
        say(text)
    for path in (folder / PICTURE, *curves.files):
        say(f"picture: {path}")
    say(f"page:    {folder / PAGE}")
    return 0


if __name__ == "__main__":
    from pipeline.cli.app import run_command

    sys.exit(run_command(main, sys.argv[1:]))
