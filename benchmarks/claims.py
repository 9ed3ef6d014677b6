"""The playbook's claims beside what was measured here: docs/claims.md, made from recorded runs alone.

    python -m benchmarks.claims                                    print the table
    python -m benchmarks.claims --out docs/claims.md               write it
    python -m benchmarks.claims tracking.uri=sqlite:////x/mlflow.db

A measured figure stands with its hardware, load, interval and run; what no run holds is "not measured here". A claim
agrees where the measured figure is in the claimed range; it is optimistic where all of the 95% interval is below the
range, and pessimistic where all of it is above; else the measurement does not tell. In every row more is better.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.console import say, table
from core.errors import ConfigError
from core.files import write_atomic
from evals.cost.curves import LoadComparison, compare, compare_points
from evals.decide.evidence import Evidence
from evals.load.summary import headline_point, mix_of
from evals.types import LoadPoint, LoadReport, ThetaSlo
from pipeline.cli.app import run_command
from pipeline.cli.compose import command_config
from pipeline.config import TrackingConfig
from pipeline.record.store import Recorder
from pipeline.record.tags import COMPARISON_GROUP, tag_of

SOURCE = "an article on FinOps for AI workloads (2026)"
FACTOR, PERCENT, POINTS = "x", "%", "points"
SIZE, QUALITY, SPEED, COST, CALLS = "size", "quality", "speed-up", "cost cut", "calls saved"
INT8, INT4, DISTILLATION = "INT8", "INT4 GPTQ/AWQ", "distillation 70B -> 7B"
SPECULATION, BATCHING, PREFIXES = "speculative decoding", "request batching", "prefix caching"
MIG, CACHE, ROUTER = "MIG", "semantic cache", "router"


@dataclass(frozen=True)
class Claim:
    """What the playbook says of a technique: a range in which more is better. `lo` None: it names no figure."""

    technique: str
    quantity: str
    lo: float | None
    hi: float | None
    unit: str

    @property
    def range(self) -> tuple[float, float] | None:
        """A single figure is meant as precisely as it is printed: 2 is 1.5 to 2.5."""
        if self.lo is None or self.hi is None:
            return None
        return (self.lo - 0.5, self.hi + 0.5) if self.lo == self.hi else (self.lo, self.hi)

    @property
    def text(self) -> str:
        """As the playbook prints it."""
        if self.lo is None or self.hi is None:
            return "no figure"
        low, high = sorted((self.lo, self.hi), key=abs)
        sign = "-" if self.hi < 0 or self.lo < 0 else ""
        figures = f"{abs(low):g}" if low == high else f"{abs(low):g} to {sign}{abs(high):g}"
        return f"{sign}{figures}{self.unit}"


CLAIMS = (
    Claim(INT8, SIZE, 2, 2, FACTOR),
    Claim(INT8, QUALITY, -2, -1, PERCENT),
    Claim(INT8, SPEED, 1.5, 2, FACTOR),
    Claim(INT8, COST, 40, 50, PERCENT),
    Claim(INT4, SIZE, 4, 4, FACTOR),
    Claim(INT4, QUALITY, -5, -2, PERCENT),
    Claim(INT4, SPEED, 2, 3, FACTOR),
    Claim(INT4, COST, 60, 70, PERCENT),
    Claim(DISTILLATION, SIZE, 10, 10, FACTOR),
    Claim(DISTILLATION, QUALITY, -15, -5, PERCENT),
    Claim(DISTILLATION, SPEED, 8, 12, FACTOR),
    Claim(DISTILLATION, COST, 85, 90, PERCENT),
    Claim(SPECULATION, SIZE, 1, 1, FACTOR),
    Claim(SPECULATION, QUALITY, 0, 0, PERCENT),
    Claim(SPECULATION, SPEED, 2, 3, FACTOR),
    Claim(SPECULATION, COST, 50, 60, PERCENT),
    Claim(BATCHING, SPEED, 5, 8, FACTOR),
    Claim(PREFIXES, SPEED, None, None, FACTOR),
    Claim(MIG, COST, 60, 80, PERCENT),
    Claim(CACHE, CALLS, 20, 40, PERCENT),
    Claim(ROUTER, COST, 40, 60, PERCENT),
)
"""The playbook's table of techniques, row by row."""

NO_KERNEL = "vLLM has no kernel"
"""How the plan's note begins where a machine serves quantized weights as plain ones (`pipeline.plan.plan`)."""
METHODS = {
    INT8: ("int8", "int8-weight-only", "rtn-int8", "llm-int8"),
    INT4: ("gptq", "gptq-native", "awq", "awq-native"),
}
"""Which `quant=` methods a technique is measured by."""
PROPOSERS = ("+ngram", "+draft-model")
"""Ends of the labels of candidates that differ from the baseline by speculation alone."""
ENGINE_OF_CANDIDATE = (
    "kv_cache_dtype", "speculative", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min", "draft_model",
)  # fmt: skip
"""Engine settings that make a candidate; all others are the same for a baseline and its candidates."""


@dataclass(frozen=True)
class Recorded:
    """A recorded run with its evidence."""

    run_id: str
    model: str
    label: str
    method: str
    role: str
    hardware: str
    comparison_group: str
    metrics: Mapping[str, float]
    load: LoadReport
    has_kernel: bool = True
    """False: the machine has no kernel for these weights, and their speed is that of plain ones."""


@dataclass(frozen=True)
class Measurement:
    """A measured figure; `lo` and `hi` are None where a single figure has no interval."""

    technique: str
    quantity: str
    value: float
    lo: float | None
    hi: float | None
    unit: str
    variant: str
    where: str
    """Model, hardware, load: what the figure holds for."""
    run_id: str
    is_exact: bool = False
    """Counted, not sampled: it needs no interval."""
    has_kernel: bool = True
    """False: the machine served these weights as plain ones, which is no test of a claim on their speed."""


def verdict(claim: Claim, measured: Measurement) -> str:
    """agrees, optimistic, pessimistic, not significantly different (the interval reaches the range, the
    figure is outside), or why there is no answer.

    >>> claim = Claim("INT8", "speed-up", 1.5, 2, "x")
    >>> fast = Measurement("INT8", "speed-up", 1.4, 1.3, 1.45, "x", "int8", "", "")
    >>> verdict(claim, fast), verdict(claim, replace(fast, hi=1.6)), verdict(claim, replace(fast, lo=2.1, hi=2.2))
    ('optimistic', 'not significantly different', 'pessimistic')
    >>> verdict(claim, replace(fast, value=1.6, hi=1.9))
    'agrees'
    """
    span = claim.range
    if span is None:
        return "no figure is claimed"
    if measured.unit != claim.unit:
        return f"not comparable: measured in {measured.unit}"
    if not measured.has_kernel:
        return "no test of it: no kernel for these weights here, served as plain ones"
    if not measured.is_exact and (measured.lo is None or measured.hi is None):
        return "one repeat: no interval"
    lo, hi = measured.lo, measured.hi
    lo, hi = (measured.value if lo is None else lo), (measured.value if hi is None else hi)
    if span[0] <= measured.value <= span[1]:
        return "agrees"
    return "optimistic" if hi < span[0] else "pessimistic" if lo > span[1] else "not significantly different"


def technique_of(run: Recorded) -> str | None:
    """What a candidate measures; None where several things differ from its baseline at once, or no claim is made."""
    is_student = any(name.startswith("distill/") for name in run.metrics)
    if run.method == "none" and is_student:
        return None if "+" in run.label else DISTILLATION
    if run.method == "none":
        return SPECULATION if run.label in [f"none{end}" for end in PROPOSERS] else None
    if is_student or "+" in run.label:
        return None
    return next((technique for technique, methods in METHODS.items() if run.method in methods), None)


def measurements(runs: Sequence[Recorded]) -> list[Measurement]:
    """Everything that recorded runs say of the claims, each from the newest run that says it. Runs are newest first."""
    found: list[Measurement] = []
    for run in runs:
        if run.role == "baseline":
            found += _batching(run) + _prefixes(run)
            continue
        technique, baseline = technique_of(run), baseline_of(run, runs)
        if technique is not None and baseline is not None:
            found += [*_size(technique, run), *_quality(technique, run)]
            timed = [*_speed(technique, run, baseline), *_cost(technique, run, baseline)]
            found += [replace(one, has_kernel=run.has_kernel) for one in timed]
    newest: dict[tuple[str, str, str, str], Measurement] = {}
    for one in found:
        newest.setdefault((one.technique, one.quantity, one.variant, one.where), one)
    return list(newest.values())


def baseline_of(run: Recorded, runs: Sequence[Recorded]) -> Recorded | None:
    """The newest baseline that was measured under the same questions, load, machine and engine."""

    def engine(one: Recorded) -> dict[str, Any]:
        settings = one.load.machine.engine
        return {key: value for key, value in settings.items() if value is not None and key not in ENGINE_OF_CANDIDATE}

    for one in runs:
        is_same = (one.model, one.comparison_group) == (run.model, run.comparison_group)
        if one.role == "baseline" and is_same and engine(one) == engine(run):
            return one
    return None


def _size(technique: str, run: Recorded) -> list[Measurement]:
    if technique == SPECULATION or "size/ratio" not in run.metrics:
        return []
    value = run.metrics["size/ratio"]
    where = f"{run.model}, all files of the weights"
    return [Measurement(technique, SIZE, value, None, None, FACTOR, run.label, where, run.run_id, is_exact=True)]


def _quality(technique: str, run: Recorded) -> list[Measurement]:
    """The recovery where every item was asked, else each task's difference in points from its confidence sequence."""
    metrics = run.metrics
    if "quality/recovery" in metrics:
        value, lo, hi = (100 * (metrics[f"quality/recovery{end}"] - 1) for end in ("", ".lo", ".hi"))
        asked = f"{metrics['quality/num_items']:.0f} items" if "quality/num_items" in metrics else "all items"
        where = f"{run.model}, score over the baseline's on the same {asked}"
        return [Measurement(technique, QUALITY, value, lo, hi, PERCENT, run.label, where, run.run_id)]
    found = []
    for name in sorted(metrics):
        if name.startswith("gate/") and name.endswith("/difference_points"):
            value, lo, hi = (metrics[name + end] for end in ("", ".lo", ".hi"))
            task = name.split("/")[1]
            where = (
                f"{run.model}, {task}, {metrics.get(f'gate/{task}/num_items', float('nan')):.0f} items until decided"
            )
            found.append(Measurement(technique, QUALITY, value, lo, hi, POINTS, run.label, where, run.run_id))
    return found


def _speed(technique: str, run: Recorded, baseline: Recorded) -> list[Measurement]:
    """Tokens per second over the baseline's, at each load that both have and that does not set the pace itself."""
    closed = replace(run.load, points=tuple(point for point in run.load.points if not point.is_open_loop))
    return [
        _speed_up(technique, row, run.label, f"{_machine(run)}, {row.name}", run.run_id)
        for row in compare(baseline.load, closed)
    ]


def _speed_up(technique: str, row: LoadComparison, variant: str, where: str, run_id: str) -> Measurement:
    lo, hi = (None if end is None else 1 / end for end in (row.hi, row.lo))
    return Measurement(technique, SPEED, 1 / row.ratio, lo, hi, FACTOR, variant, where, run_id)


def _cost(technique: str, run: Recorded, baseline: Recorded) -> list[Measurement]:
    """1 - price over the baseline's on the same machine: at theta_slo where it was searched, else at saturation."""
    ours, theirs = run.load.theta_slo, baseline.load.theta_slo
    if ours is not None and theirs is not None:
        return _cost_at_slo(technique, run, ours, theirs)
    point, other = headline_point(run.load), headline_point(baseline.load)
    row = None if point is None or other is None else compare_points(other, point)
    if row is None:
        return []
    return [
        Measurement(
            technique,
            COST,
            100 * (1 - row.ratio),
            None if row.hi is None else 100 * (1 - row.hi),
            None if row.lo is None else 100 * (1 - row.lo),
            PERCENT,
            run.label,
            f"{_machine(run)}, same machine price, {row.name}, no latency objective",
            run.run_id,
        )
    ]


def _cost_at_slo(technique: str, run: Recorded, ours: ThetaSlo, theirs: ThetaSlo) -> list[Measurement]:
    """From the brackets of both searches: the price is the inverse of the rate that holds."""
    if ours.held_req_per_s is None or theirs.held_req_per_s is None:
        return []
    value = 1 - theirs.held_req_per_s / ours.held_req_per_s
    lo = None if theirs.failed_req_per_s is None else 100 * (1 - theirs.failed_req_per_s / ours.held_req_per_s)
    hi = None if ours.failed_req_per_s is None else 100 * (1 - theirs.held_req_per_s / ours.failed_req_per_s)
    where = f"{_machine(run)}, same machine price, p99 TTFT <= {ours.ttft_p99_s} s and p99 TPOT <= {ours.tpot_p99_s} s"
    return [Measurement(technique, COST, 100 * value, lo, hi, PERCENT, run.label, where, run.run_id)]


def _batching(run: Recorded) -> list[Measurement]:
    """Throughput at the most requests in flight over that of one at a time."""
    loops = sorted(
        (point for point in run.load.points if _is_closed_loop(point, run.load) and not point.prefix_share),
        key=lambda point: point.concurrency or 0,
    )
    if len(loops) < 2 or loops[0].concurrency != 1:
        return []
    return _within(BATCHING, run, loops[0], loops[-1], f"{loops[-1].name} over {loops[0].name}")


def _prefixes(run: Recorded) -> list[Measurement]:
    """Throughput with a common prefix over that without, at the same lengths and concurrency."""
    plain = {point.concurrency: point for point in run.load.points if not point.prefix_share and point.trace is None}
    found = []
    for point in run.load.points:
        other = plain.get(point.concurrency)
        if point.prefix_share and other is not None and _lengths(other) == _lengths(point):
            found += _within(PREFIXES, run, other, point, f"{point.name} over {other.name}")
    return found


def _within(technique: str, run: Recorded, slow: LoadPoint, fast: LoadPoint, load: str) -> list[Measurement]:
    """Two points of one run."""
    one, other = (LoadReport("", (replace(point, name="both"),)) for point in (slow, fast))
    return [_speed_up(technique, row, run.label, f"{_machine(run)}, {load}", run.run_id) for row in compare(one, other)]


def _is_closed_loop(point: LoadPoint, load: LoadReport) -> bool:
    return bool(point.concurrency and point.request_rate is None and _lengths(point) == mix_of(load))


def _lengths(point: LoadPoint) -> tuple[int, int]:
    return point.input_tokens, point.output_tokens


def _machine(run: Recorded) -> str:
    device = run.load.machine.device_name or run.hardware
    cpus = run.load.machine.num_cpus
    is_cpu = run.load.machine.device == "cpu"
    return f"{run.model} on {device}" + (f" ({cpus} CPUs)" if is_cpu and cpus else "")


HEADER = ("technique", "what", "claimed", "measured [95% interval]", "variant", "where", "verdict", "run")


def table_rows(found: Iterable[Measurement]) -> list[tuple[str, ...]]:
    """Each claim with every measurement of it; one row says so where there is none."""
    by_claim: dict[tuple[str, str], list[Measurement]] = {}
    for one in found:
        by_claim.setdefault((one.technique, one.quantity), []).append(one)
    rows: list[tuple[str, ...]] = []
    for claim in CLAIMS:
        measured = by_claim.get((claim.technique, claim.quantity), [])
        head = claim.technique, claim.quantity, claim.text
        if not measured:
            rows.append((*head, "", "", "", "not measured here", ""))
        for one in measured:
            rows.append((*head, figure_text(one), one.variant, one.where, verdict(claim, one), one.run_id[:8]))
    return rows


def figure_text(one: Measurement) -> str:
    """A figure with its interval.

    >>> figure_text(Measurement("INT8", "speed-up", 1.4, 1.3, 1.45, "x", "int8", "", ""))
    '1.40x [1.30, 1.45]'
    """
    digits, sign = (2, "") if one.unit == FACTOR else (1, "+")
    unit = f" {one.unit}" if one.unit == POINTS else one.unit
    text = f"{one.value:{sign}.{digits}f}{unit}"
    if one.lo is None and one.hi is None:
        return text
    ends = ["?" if end is None else f"{end:{sign}.{digits}f}" for end in (one.lo, one.hi)]
    return f"{text} [{', '.join(ends)}]"


INTRODUCTION = f"""# Claims and measurements

The claims are those of {SOURCE}. Every measured figure comes from a recorded
run, named by the first digits of its MLflow id. This page is made by `python -m benchmarks.claims --out
docs/claims.md`; nothing is typed in.

A claim **agrees** where the measured figure is in the claimed range, is **optimistic** where all of the measured 95%
interval is below it, and **pessimistic** where all of it is above. It is **not significantly different** where the
figure is outside and its interval reaches into the range. In every row more is better. A claim of a single figure is
read as precisely as it is printed: 2x is 1.5x to 2.5x. A figure is valid for its model, machine and load, for no other.
"""


def page(found: Sequence[Measurement]) -> str:
    """docs/claims.md."""
    rows = [HEADER, tuple("---" for _ in HEADER), *table_rows(found)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    num_measured = len({(one.technique, one.quantity) for one in found})
    return f"{INTRODUCTION}\n{num_measured} of {len(CLAIMS)} rows are measured.\n\n" + "\n".join(lines) + "\n"


def recorded_runs(tracking: TrackingConfig) -> list[Recorded]:
    """The newest run of each candidate of every model in a store, newest first.

    Raises:
        ConfigError: there is no such store.

    """
    path = tracking.uri.removeprefix("sqlite:///")
    if path != tracking.uri and not Path(path).exists():
        raise ConfigError(
            f"tracking.uri={tracking.uri}: there is no such store\n  -> record runs first: scripts/pipeline"
        )
    recorder = Recorder(tracking)
    runs = [(model, run) for model in recorder.models() for run in recorder.runs(model)]
    runs.sort(key=lambda pair: pair[1].info.end_time, reverse=True)
    return [
        _recorded(model, run, recorder.evidence(run.info.run_id), plan_notes(recorder, run.info.run_id))
        for model, run in runs
    ]


def plan_notes(recorder: Recorder, run_id: str) -> list[str]:
    """What the run's plan had to say before it was carried out."""
    import yaml

    with tempfile.TemporaryDirectory() as scratch:
        text = Path(recorder.client.download_artifacts(run_id, "plan.yaml", scratch)).read_text()
    return [str(note) for note in yaml.safe_load(text).get("notes") or []]


def _recorded(model: str, run: Any, evidence: Evidence, notes: Sequence[str]) -> Recorded:
    tags = run.data.tags
    has_note = tags.get("role") != "baseline" and any(note.startswith(NO_KERNEL) for note in notes)
    return Recorded(
        run_id=run.info.run_id,
        model=model,
        label=tags.get("label", ""),
        method=tags.get("method", ""),
        role=tags.get("role", ""),
        hardware=tags.get("hardware", "unknown"),
        comparison_group=tag_of(tags, COMPARISON_GROUP),
        metrics=run.data.metrics,
        load=evidence.load,
        has_kernel=not has_note,
    )


def main(arguments: list[str]) -> int:
    """Print the table, or write the page."""
    out = None
    rest = list(arguments)
    if "--out" in rest:
        at = rest.index("--out")
        if at + 1 == len(rest):
            raise ConfigError("--out: no file is given\n  -> --out docs/claims.md")
        out = Path(rest[at + 1])
        del rest[at : at + 2]
    found = measurements(recorded_runs(command_config(rest, __doc__).tracking))
    if out is not None:
        write_atomic(out, page(found))
        say(f"{out}: {len(found)} measurements")
    else:
        table("Claims and measurements", HEADER, table_rows(found))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
