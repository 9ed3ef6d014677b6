"""All recorded variants of a model on the cost-quality plane.

    python -m pipeline.frontier model=smollm2-135m-q4_1            print the table, write frontier.png and frontier.html
    python -m pipeline.frontier model=... +out=/tmp/pictures       into another folder than mlruns/frontier/<model>

A run without a measured price or quality is listed, but never on the frontier: missing is never free.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, closest
from common.files import write_atomic
from evals.frontier import non_dominated
from evals.types import Estimate, Money, Point
from pipeline.environments import ROOT

if TYPE_CHECKING:
    from mlflow.entities import Run

PICTURE, PAGE = "frontier.png", "frontier.html"
COLOURS = {"frontier": "#0b6e4f", "dominated": "#9a9a9a", "baseline": "#1f4e9c"}


@dataclass(frozen=True)
class Shown:
    """One variant as the picture shows it."""

    point: Point
    on_frontier: bool
    decision: str
    size_mib: float | None
    output_tok_per_s: float | None


def shown_points(runs: Sequence[Run]) -> list[Shown]:
    """The recorded variants with the frontier marked, cheapest first."""
    points = [point_of(run) for run in runs]
    marks = non_dominated(points)
    shown = [
        Shown(
            point,
            bool(mark),
            run.data.tags.get("decision", "baseline" if point.is_baseline else "-"),
            None if "size/bytes" not in run.data.metrics else run.data.metrics["size/bytes"] / 2**20,
            next((value for name, value in run.data.metrics.items() if is_headline_speed(name)), None),
        )
        for run, point, mark in zip(runs, points, marks, strict=True)
    ]
    return sorted(
        shown, key=lambda one: one.point.usd_per_1k_tokens.value if one.point.usd_per_1k_tokens else Decimal("Inf")
    )


def is_headline_speed(name: str) -> bool:
    """Whether a metric is `load/<scenario>/output_tok_per_s`."""
    parts = name.split("/")
    return len(parts) == 3 and parts[0] == "load" and parts[2] == "output_tok_per_s"


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


def draw(model: str, runs: Sequence[Run], folder: Path) -> None:
    """Write the picture and the page into a folder."""
    shown = shown_points(runs)
    import io

    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = model
    figure = _figure(model, shown)
    picture, vector = io.BytesIO(), io.StringIO()
    figure.savefig(picture, format="png", dpi=150)
    figure.savefig(vector, format="svg", metadata={"Date": None})
    write_atomic(folder / PICTURE, picture.getvalue())
    svg = vector.getvalue()
    write_atomic(folder / PAGE, page(model, shown, svg[svg.index("<svg") :]))


def _figure(model: str, shown: Sequence[Shown]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    drawn = [one for one in shown if one.point.quality is not None and one.point.usd_per_1k_tokens is not None]
    for one in drawn:
        quality, cost = one.point.quality, one.point.usd_per_1k_tokens
        assert quality is not None
        assert cost is not None
        kind = "baseline" if one.point.is_baseline else "frontier" if one.on_frontier else "dominated"
        x, y = float(cost.value), quality.value * 100
        axes.errorbar(
            x,
            y,
            xerr=[[x - float(cost.lo)], [float(cost.hi) - x]],
            yerr=[[y - quality.lo * 100], [quality.hi * 100 - y]],
            fmt="D" if one.point.is_baseline else "o",
            color=COLOURS[kind],
            capsize=3,
            markersize=8,
        )
        axes.annotate(one.point.name, (x, y), textcoords="offset points", xytext=(9, 7), fontsize=11)
    line = [one.point for one in drawn if one.on_frontier]
    if len(line) > 1:
        xs = [float(point.usd_per_1k_tokens.value) for point in line if point.usd_per_1k_tokens]
        ys = [point.quality.value * 100 for point in line if point.quality]
        axes.plot(xs, ys, color=COLOURS["frontier"], linewidth=1, linestyle="--", zorder=0)
    if drawn:
        axes.set_xscale("log")
        axes.margins(0.15)
    else:
        axes.text(0.5, 0.5, "no variant has both a quality and a price", ha="center", transform=axes.transAxes)
    axes.set_title(f"{model}: cost and quality")
    axes.set_xlabel("USD per 1,000 tokens (log scale; at the declared utilisation)")
    axes.set_ylabel("mean accuracy, %")
    axes.grid(visible=True, which="both", alpha=0.25)
    return figure


def page(model: str, shown: Sequence[Shown], svg: str) -> str:
    """One self-contained HTML page: the picture and its table."""
    header = ("variant", "mean accuracy", "USD per 1k tokens", "size", "output tok/s", "on the frontier", "decision")
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row(one))}</tr>" for one in shown)
    title = html.escape(model)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: cost and quality</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; color: #1c1c1c; }}
svg {{ width: 100%; height: auto; }} .scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; white-space: nowrap; }} th, td {{ padding: .35rem .7rem; text-align: left; }}
th {{ border-bottom: 2px solid #444; }} td {{ border-bottom: 1px solid #ddd; }}
</style></head><body>
<h1>{title}: cost and quality</h1>
{svg}
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p>Bars are 95% intervals; a price's bar holds its repeats and the price range of the machine. Diamond: the baseline.
A variant without a measured price or quality is never on the frontier.</p>
</body></html>
"""


def row(one: Shown) -> tuple[str, ...]:
    """A variant's line in the table."""
    from pipeline.report import MISSING, estimate_text, money_text

    return (
        one.point.name,
        estimate_text(one.point.quality),
        money_text(one.point.usd_per_1k_tokens),
        MISSING if one.size_mib is None else f"{one.size_mib:.0f} MiB",
        MISSING if one.output_tok_per_s is None else f"{one.output_tok_per_s:.0f}",
        "yes" if one.on_frontier else "no",
        one.decision,
    )


def main(arguments: list[str]) -> int:
    """Print and draw all recorded variants of a model."""
    from pipeline.cli import command_config
    from pipeline.console import say, table
    from pipeline.record.store import Recorder

    out = next((argument.partition("=")[2] for argument in arguments if argument.startswith("+out=")), "")
    config = command_config([argument for argument in arguments if not argument.startswith("+out=")], __doc__)
    recorder = Recorder(config.tracking)
    model = config.model.name
    runs = recorder.runs(model)
    if not runs:
        known = recorder.models()
        raise ConfigError(
            f"model={model}: no run is recorded{closest(model, known)}; recorded: {', '.join(known) or 'none'}"
        )
    folder = Path(out) if out else ROOT / "mlruns" / "frontier" / model
    draw(model, runs, folder)
    header = ("variant", "mean accuracy", "USD per 1k tokens", "size", "output tok/s", "frontier", "decision")
    table(f"{model}: {len(runs)} recorded variants", header, [row(one) for one in shown_points(runs)])
    say(f"picture: {folder / PICTURE}\npage:    {folder / PAGE}")
    return 0


if __name__ == "__main__":
    from pipeline.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
