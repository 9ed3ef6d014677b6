"""The frontier as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.files import write_atomic
from evals.decide.evidence import Evidence
from pipeline.report import curves as curves_page
from pipeline.report.curves import Drawn
from pipeline.report.frontier import Shown, in_one_group, resamples_of, shown_points, unique_points
from pipeline.report.frontier_page import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

PICTURE, PAGE = "frontier.png", "frontier.html"
COLOURS = {"frontier": "#0b6e4f", "dominated": "#9a9a9a", "baseline": "#1f4e9c"}
MAX_BARS = 200
"""Variants drawn with error bars and names in the picture; of more, the dominated ones are plain dots."""
SAME_PLACE = 0.03, 0.5
"""Points this near in log price and in percent of score have their names one above the other."""


def draw(
    model: str, runs: Sequence[Run], folder: Path, evidence_of: Callable[[str], Evidence] | None = None
) -> list[Shown]:
    """Write the picture and the page into a folder; returns what they show."""
    runs = in_one_group(runs)
    resamples = resamples_of(runs, evidence_of)
    shown = shown_points(runs, resamples)
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
    """Draw the curves of the runs of one comparison group, and add them to the page that is there."""
    variants = curves_page.variants_of(runs, [point.name for point in unique_points(runs)], evidence_of)
    drawn = curves_page.draw(variants, model, folder, peak_req_per_s)
    curves_page.add_to_page(folder / PAGE, drawn)
    return drawn


def _figure(model: str, shown: Sequence[Shown]) -> Figure:
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
    axes.set_xlabel("USD per million tokens (log scale; at the declared utilization)")
    axes.set_ylabel("mean score, %")
    axes.grid(visible=True, which="both", alpha=0.25)
    return figure


def _is_near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two points' names would lie on one another: in the logarithm of the price, and in percent of score."""
    return abs(math.log(one[0] / other[0])) < SAME_PLACE[0] and abs(one[1] - other[1]) < SAME_PLACE[1]
