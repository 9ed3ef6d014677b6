"""All recorded variants of a model by cost and quality.

Beside them: price against load with the loads at which variants overtake one another, throughput against latency, and
price by purchase option (`pipeline.report.curves`).

The page is one file without a network. Its switches for purchase option and utilization re-price in the page. A run
without a measured price or quality is listed, but never on the frontier: missing is never free. Runs that answered the
same questions under the same load form one comparison group. The newest run's group is shown, the others are named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from core.errors import ConfigError
from evals.cost.price_ratio import CONFIDENCE, log_spread
from evals.decide.frontier import Z95, Frontier, Resamples, Spread, analyze, dominating
from evals.load.summary import saturating_point
from evals.types import Estimate, Money, Point, PriceRatio
from pipeline.record.metrics import is_headline_speed
from pipeline.record.tags import COMPARISON_GROUP, FRONTIER_GROUP, QUALITY_INVALID_REASON, tag_of
from pipeline.report.text import action_text

if TYPE_CHECKING:
    from mlflow.entities import Run

    from evals.decide.evidence import Evidence

MAX_EVIDENCE = 64
"""Runs whose items and load repeats are read for the bootstrap; more are drawn from their intervals alone."""
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
    """In the set that contains the true frontier with 95% confidence."""
    dominated_by: str
    """A variant that is nearly as good and cheaper; empty where there is none."""
    decision: str
    size_mib: float | None
    output_tok_per_s: float | None


def in_one_group(runs: Sequence[Run], group: str = "") -> list[Run]:
    """The runs that answered the same questions under one load: the newest run's, or those of the group whose name
    starts with `group`. Runs are newest first.

    Raises:
        ConfigError: no group has such a name, or several have.

    """
    groups = by_group(runs)
    if not groups:
        return []
    found = [name for name in groups if name.startswith(group)] if group else [next(iter(groups))]
    if len(found) != 1:
        told = "several groups start with it" if found else "there is no such group"
        raise ConfigError(f"--group {group}: {told}; recorded:\n" + "\n".join(map(group_text, groups.values())))
    return groups[found[0]]


def by_group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each comparison group, that of the newest run first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(tag_of(run.data.tags, FRONTIER_GROUP), []).append(run)
    return groups


def group_text(runs: Sequence[Run]) -> str:
    """What a comparison group has in it, and the option that asks for it."""
    names = {name.split("/")[1] for run in runs for name in run.data.metrics if THROUGHPUT.fullmatch(name)}
    newest = datetime.fromtimestamp(max(run.info.start_time for run in runs) / 1000, UTC)
    load = f" under load={','.join(sorted(names))}" if names else ""
    group = tag_of(runs[0].data.tags, FRONTIER_GROUP)
    return f"{len(runs)} variant{'s' * (len(runs) > 1)}{load}, the newest of {newest:%Y-%m-%d}: --group {group[:8]}"


def shown_points(runs: Sequence[Run], resamples: Resamples) -> list[Shown]:
    """The recorded variants with the frontier marked, cheapest first.

    Without resamples each variant is drawn from its own interval.
    """
    points = unique_points(runs)
    found = analyze(points, np.random.default_rng(SEED), resamples)
    dominated = dominated_by(points)
    shown = [
        _shown(point, run, found, index, dominated[index])
        for index, (point, run) in enumerate(zip(points, runs, strict=True))
    ]
    return sorted(
        shown, key=lambda one: one.point.usd_per_1k_tokens.value if one.point.usd_per_1k_tokens else Decimal("Inf")
    )


def dominated_by(points: Sequence[Point]) -> list[str]:
    """Per point, the name of the best one that is nearly as good and cheaper; empty where none is."""
    found = dominating(points, EPS_QUALITY, EPS_COST)
    return ["" if index is None else points[index].name for index in found]


def _shown(point: Point, run: Run, found: Frontier, index: int, dominated: str) -> Shown:
    metrics = run.data.metrics
    return Shown(
        point=point,
        run=run,
        on_frontier=found.on_frontier[index],
        probability=found.probability[index],
        confident=found.confident[index],
        dominated_by=dominated,
        decision=action_text(run.data.tags.get("decision", "baseline" if point.is_baseline else "-")),
        size_mib=None if "size/bytes" not in metrics else metrics["size/bytes"] / 2**20,
        output_tok_per_s=next((value for name, value in metrics.items() if is_headline_speed(name)), None),
    )


def unique_points(runs: Sequence[Run]) -> list[Point]:
    """The runs as points; names that occur twice get their hardware, and then the run's id, behind them."""
    points = beside_baselines([point_of(run) for run in runs], runs)
    hardware = [f"@{run.data.tags.get('hardware', '?')}" for run in runs]
    for suffixes in (hardware, [f"#{run.info.run_id[:6]}" for run in runs]):
        counts = Counter(point.name for point in points)
        points = [
            replace(point, name=point.name + suffix) if counts[point.name] > 1 else point
            for point, suffix in zip(points, suffixes, strict=True)
        ]
    return points


def baseline_indices(runs: Sequence[Run]) -> list[int | None]:
    """Per run, the index of the baseline that it was compared with; None for a baseline, and where it is not there."""
    baselines: dict[str, int] = {}
    for index, run in enumerate(runs):
        if run.data.tags.get("role") == "baseline":
            baselines.setdefault(tag_of(run.data.tags, COMPARISON_GROUP), index)
    return [
        None if run.data.tags.get("role") == "baseline" else baselines.get(tag_of(run.data.tags, COMPARISON_GROUP))
        for run in runs
    ]


def beside_baselines(points: Sequence[Point], runs: Sequence[Run]) -> list[Point]:
    """The points with what was measured against a baseline in place of what was measured alone.

    A price is the baseline's times the ratio that was measured in turn. The quality of a candidate whose questions
    stopped early is the baseline's plus the paired difference: the mean of the questions that it was asked is another
    population's.
    """
    found = list(points)
    for index, base in enumerate(baseline_indices(runs)):
        if base is not None:
            metrics, tags = runs[index].data.metrics, runs[index].data.tags
            quality = points[index].quality
            if quality is not None and "sequence" in tags.get("quality_method", ""):
                quality = _beside_quality(quality, points[base].quality, metrics)
            money = _beside_price(points[index].usd_per_1k_tokens, points[base].usd_per_1k_tokens, metrics)
            found[index] = replace(points[index], quality=quality, usd_per_1k_tokens=money)
    return found


def _beside_price(own: Money | None, baseline: Money | None, metrics: Mapping[str, float]) -> Money | None:
    """With the interval of the ratio, and the range of the machine's price."""
    ratio = metrics.get("price/ratio")
    if own is None or baseline is None or ratio is None:
        return own
    per_hour = metrics.get("cost/usd_per_hour", 1.0)
    value = baseline.value * Decimal(repr(ratio))
    ends = (
        value * Decimal(repr(metrics.get(f"price/ratio{end}", ratio) / ratio))
        * Decimal(repr(metrics.get(f"cost/usd_per_hour{end}", per_hour) / per_hour))
        for end in (".lo", ".hi")
    )  # fmt: skip
    lo, hi = ends
    return Money(value, min(lo, value), max(hi, value))


def _beside_quality(own: Estimate, baseline: Estimate | None, metrics: Mapping[str, float]) -> Estimate:
    ends = [metrics.get(f"difference_points{end}") for end in ("", ".lo", ".hi")]
    if baseline is None or None in ends:
        return own
    value, lo, hi = (baseline.value + one / 100 for one in ends if one is not None)
    return Estimate(value, min(lo, value), max(hi, value), own.num_samples, own.num_unscored, "baseline + difference")


def spreads_of(points: Sequence[Point], runs: Sequence[Run]) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """How well each candidate's price ratio, and its difference in quality, to its baseline are known."""
    ratios: dict[str, Spread] = {}
    differences: dict[str, Spread] = {}
    for index, base in enumerate(baseline_indices(runs)):
        if base is None:
            continue
        metrics, name, baseline = runs[index].data.metrics, points[index].name, points[base].name
        lo, hi = (metrics.get(f"price/ratio{end}") for end in (".lo", ".hi"))
        num_rounds = int(metrics.get("price/num_rounds", 0))
        if lo is not None and hi is not None and num_rounds > 1:
            confidence = metrics.get("price/confidence", CONFIDENCE)
            ratio = PriceRatio(metrics["price/ratio"], lo, hi, num_rounds, "", confidence)
            ratios[name] = Spread(baseline, log_spread(ratio) or 0.0, num_rounds - 1)
        lo, hi = (metrics.get(f"difference_points{end}") for end in (".lo", ".hi"))
        if lo is not None and hi is not None:
            differences[name] = Spread(baseline, (hi - lo) / 100 / (2 * Z95))
    return ratios, differences


def point_of(run: Run) -> Point:
    """A recorded run as a point. A figure that it does not have is None."""
    metrics, tags = run.data.metrics, run.data.tags
    quality = None
    if "quality/mean" in metrics:
        value, lo, hi = (metrics[f"quality/mean{suffix}"] for suffix in ("", ".lo", ".hi"))
        quality = Estimate(value, lo, hi, num_samples=int(metrics.get("quality/num_items", 0)))
    cost = None
    if "cost/usd_per_1k_tokens" in metrics:
        cost = Money(*(Decimal(repr(metrics[f"cost/usd_per_1k_tokens{suffix}"])) for suffix in ("", ".lo", ".hi")))
    reason = tag_of(tags, QUALITY_INVALID_REASON)
    return Point(
        tags.get("label", run.info.run_id), quality, cost, tags.get("role") == "baseline", (reason,) if reason else ()
    )


def resamples_of(runs: Sequence[Run], evidence_of: Callable[[str], Evidence] | None) -> Resamples:
    """What the draws rest on: comparisons with the baseline, and item scores and load repeats of the measured runs.

    Scores only of runs in which every item was asked, of one set of items: a stopped run's items are no random sample,
    so it is drawn from its confidence sequence. Without `evidence_of` only what the runs' metrics say.
    """
    points = unique_points(runs)
    ratios, differences = spreads_of(points, runs)
    measured = [
        (point, run)
        for point, run in zip(points, runs, strict=True)
        if point.quality is not None and point.usd_per_1k_tokens is not None
    ]
    if evidence_of is None or len(measured) > MAX_EVIDENCE:
        return Resamples(cost_ratios=ratios, differences=differences)
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
    return Resamples(scores, costs, ratios, differences)


def repeat_costs(evidence: Evidence) -> list[float]:
    """USD per 1k tokens as each repeat at saturation gives it; empty where the price rests on a latency objective."""
    point, money = saturating_point(evidence.load), evidence.cost.usd_per_1k_tokens
    if point is None or money is None or evidence.load.theta_slo is not None:
        return []
    rates = [rate for repeat in point.repeats if (rate := repeat.get("total_tok_per_s"))]
    return [float(money.value) * float(np.mean(rates)) / rate for rate in rates]
