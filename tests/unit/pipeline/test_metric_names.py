"""The table of metric names against the names that the code writes, both ways, and its page."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from evals.cost.attribution import fit_seconds
from evals.load import summary
from evals.load.counters import COUNTERS, MACHINE_USE
from evals.types import CostReport, LoadPoint, LoadReport, Money
from pipeline.config import EnergyConfig
from pipeline.distill.results import distill_metrics
from pipeline.record import metrics
from pipeline.record.metric_names import METRIC_NAMES, row_of
from pipeline.types import Artifact, Candidate, Measured, StageOutcome
from tests.unit.pipeline.test_decide import cost, quality, rounds

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "pipeline" / "record" / "metric_names.py"
PREFIXES = (
    "quality", "gate", "noise", "load", "price", "cost", "reprice", "estimate", "size", "compress", "health", "distill",
)  # fmt: skip
NO_METRIC = {"cost/", "cost/%", "price/%", "quality/mean%", "load/%/output_tok_per_s", "load/[^/]+/output_tok_per_s"}
"""Patterns by which code looks for metrics."""
NO_METRIC |= {
    "price/{}",
    "load/{}",
    "estimate/{}",
    "distill/{}",
    "distill/cache/{}",
    "compress/{}",
    "cost/usd_per_1k_{}",
}
"""Names that are put together from two parts: `recorded` calls the functions that do so."""


def names_in_code() -> set[str]:
    """Every text in the code that looks like a metric's name; `{}` stands for what an f-string puts in."""
    found = set()
    for package in ("evals", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            if path == TABLE:
                continue
            tree = ast.parse(path.read_text())
            parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    found.add("".join(one.value if isinstance(one, ast.Constant) else "{}" for one in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                    found.add(node.value)
    shape = re.compile(rf"({'|'.join(PREFIXES)})/[\w{{}}%.\[\]^+/-]+")
    return {name for name in found if shape.fullmatch(name) and not name.endswith((".py", ".yaml", ".md"))}


def recorded() -> dict[str, float]:
    """What a run with every kind of figure records, by the product's own functions."""
    repeat = dict.fromkeys(summary.METRICS, 1.0)
    counters = dict.fromkeys(COUNTERS, 1.0)
    points = (
        LoadPoint("c1", 1, 128, 64, (repeat, repeat), 0, counters=(counters, counters)),
        LoadPoint("c8", 8, 128, 64, (repeat, repeat), 0, counters=(counters, counters)),
    )
    load = LoadReport("quick", points)
    one = Money(Decimal(1), Decimal(1), Decimal(1))
    fit = fit_seconds([(128, 64), (256, 8), (32, 64), (128, 128)], [1.0, 0.4, 0.7, 1.6])
    assert not isinstance(fit, str)
    money = replace(
        cost("1"),
        usd_per_1k_input_tokens=one,
        usd_per_1k_output_tokens=one,
        usd_per_1k_requests=one,
        peak_usd_per_1k_tokens=one,
        attribution=fit,
    )
    outcome = StageOutcome("int8", "quality", 2.0, 1.0, Decimal(2), Decimal(1))
    student = dict.fromkeys(("final_loss", "tokens_seen", "mfu", "train_usd", "lost_steps", "making_wall_s"), 1.0)
    cache = {"bytes_per_token": 1, "error": {"kl_rounding": 0, "kl_total": 0, "tail_mass": 0, "num_tokens": 1}}
    return (
        metrics.quality_metrics(quality([1.0, 0.0, 1.0]))
        | summary.metrics(load)
        | metrics.cost_metrics(money)
        | metrics.price_metrics(money, 12.0)
        | metrics.attribution_metrics(money)
        | metrics.price_ratio_metrics(*compared(load, money))
        | metrics.energy_metrics(load, EnergyConfig(usd_per_kwh=0.1))
        | metrics.estimate_metrics([outcome])
        | distill_metrics({**student, "teacher_cache": cache})
    )


def compared(load: LoadReport, money: CostReport) -> tuple[Measured, Measured]:
    """A candidate with rounds beside its baseline, and the baseline."""
    used = tuple(replace(one, counters=dict.fromkeys(MACHINE_USE, 0.1)) for one in rounds(0.9).rounds)
    found = replace(rounds(0.9), rounds=used)
    artifact = Artifact(Path("/a"), "a", 1, "int8", None)
    baseline = Measured(
        candidate=Candidate("baseline", "none", {}, "none"), artifact=artifact, quality=quality([1.0]), load=load,
        cost=money, server_log=Path("/log"), stage_keys={}, stage_wall_s={}, stage_started_at={}, made_now=(),
        reused=(), measured_at="",
    )  # fmt: skip
    return replace(baseline, price_rounds=found), baseline


def test_every_recorded_metric_has_a_row() -> None:
    found = recorded()
    assert len(found) > 100
    assert [name for name in found if row_of(name) is None] == []


def test_every_name_in_the_code_has_a_row() -> None:
    names = names_in_code()
    assert {"size/bytes", "quality/{}/flip_rate", "distill/cache/bytes_per_token"} <= names
    examples = {name: re.sub(r"(?<=[^/])\{\}$", "", name).replace("{}", "x") for name in names - NO_METRIC}
    assert {name for name, example in examples.items() if row_of(example) is None} == set()


def test_a_misspelt_name_has_no_row() -> None:
    for name in ("size/byte", "cost/usd_per_token", "load/quick/c8/more/ttft_p50_s", "size/bytes.lo", "wall_s.hi"):
        assert row_of(name) is None, name


@pytest.mark.parametrize("row", METRIC_NAMES, ids=lambda row: row.pattern)
def test_every_row_is_written_somewhere(row) -> None:
    last = re.split(r"[/\]]", row.pattern)[-1]
    text = "".join(path.read_text() for folder in ("evals", "pipeline") for path in (ROOT / folder).rglob("*.py")
                   if path != TABLE)  # fmt: skip
    if "<" not in last:
        assert re.search(rf"[\"/]{last}\b|    {last}: float", text), f"nothing writes {row.pattern}"


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "metric-table"), "--check"], check=False)
    assert done.returncode == 0, "docs/metrics.md is old: run scripts/metric-table"
