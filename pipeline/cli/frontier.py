"""All recorded variants of a model by cost and quality.

    parsimony frontier model=smollm2-135m-q4_1                       the table; frontier.png and frontier.html
    parsimony frontier model=smollm2-135m-q4_1 peak_req_per_s=40     with the machines that such a load needs
    parsimony frontier model=smollm2-135m-q4_1 --group 5eeb          of other runs than the newest one's
    parsimony frontier model=smollm2-135m-q4_1 --out /tmp/pictures   into another folder than mlruns/frontier/<model>

Beside them: price against load with the loads at which variants overtake one another, throughput against latency, and
price by purchase option (`pipeline.report.curves`).

The page is one file without a network. Its switches for purchase option and utilization re-price in the page. A run
without a measured price or quality is listed, but never on the frontier: missing is never free. Runs that answered the
same questions under the same load form one comparison group. The newest run's group is shown, the others are named.
"""

from __future__ import annotations

from pathlib import Path

from core.console import say, table
from core.environments import ROOT
from core.errors import ConfigError, closest
from pipeline.cli.options import config_of, parser
from pipeline.record.frontier_runs import frontier_runs
from pipeline.record.store import Recorder
from pipeline.report.frontier import Shown, by_group, group_text, in_one_group
from pipeline.report.frontier_figure import PAGE, PICTURE, draw, draw_curves
from pipeline.report.text import MISSING, estimate_text, money_text

HEADER = ("variant", "mean score", "USD per 1k tokens", "size", "output tok/s", "frontier", "decision")


def row(one: Shown) -> tuple[str, ...]:
    """A variant's line in the table."""
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
    commands = parser("frontier", __doc__)
    commands.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the files go (default: mlruns/frontier/MODEL)"
    )
    commands.add_argument("--group", default="", metavar="DIGITS", help="show the runs of this group, not the newest's")
    options = commands.parse(arguments)
    config = config_of(options)
    recorder = Recorder(config.tracking)
    model = config.model.name
    runs = frontier_runs(recorder, config.tracking, model)
    if not runs:
        known = recorder.models()
        raise ConfigError(
            f"model={model}: no run is recorded{closest(model, known)}; recorded: {', '.join(known) or 'none'}"
        )
    folder = options.out or ROOT / "mlruns" / "frontier" / model
    chosen = in_one_group(runs, options.group)
    shown = draw(model, chosen, folder, recorder.evidence)
    table(f"{model}: {len(shown)} recorded variants", HEADER, [row(one) for one in shown])
    for others in by_group(runs).values():
        if others[0] not in chosen:
            say(f"not shown, on other questions or another load: {group_text(others)}")
    curves = draw_curves(model, chosen, folder, recorder.evidence, config.peak_req_per_s)
    for text in curves.sentences:
        say(text)
    for path in (folder / PICTURE, *curves.files):
        say(f"picture: {path}")
    say(f"page:    {folder / PAGE}")
    return 0
