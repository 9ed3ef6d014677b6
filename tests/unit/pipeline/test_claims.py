from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.claims import (
    BATCHING,
    CLAIMS,
    COST,
    DISTILLATION,
    INT4,
    INT8,
    NO_KERNEL,
    PREFIXES,
    QUALITY,
    SIZE,
    SPECULATION,
    SPEED,
    Claim,
    Measurement,
    Recorded,
    baseline_of,
    figure_text,
    measurements,
    page,
    recorded_runs,
    table_rows,
    technique_of,
    verdict,
)
from core.errors import ConfigError
from evals.types import LoadConditions, LoadPoint, LoadReport, ThetaSlo
from pipeline.config import TrackingConfig
from pipeline.plan.plan import make_plan
from tests.unit.pipeline.shapes import FACTS, MACHINE
from tests.unit.pipeline.test_plan import FREE, PRICE, a_config

ENGINE = {"dtype": "float32", "max_num_seqs": 256, "speculative": None}
SLOW = {1: (10.0, 10.1, 9.9), 8: (40.0, 40.4, 39.6)}


def a_load(rates: dict[int, tuple[float, ...]], engine: dict[str, Any] = ENGINE) -> LoadReport:
    points = tuple(
        LoadPoint(
            f"c{load}-128x32", load, 128, 32,
            tuple({"total_tok_per_s": rate, "req_per_s": rate / 160, "output_tok_per_s": rate / 5} for rate in found),
            0,
        )
        for load, found in rates.items()
    )  # fmt: skip
    machine = LoadConditions("cpu", "test CPU", num_cpus=2, engine=engine)
    return LoadReport("quick", points, machine, mix=(128, 32))


def scaled(factor: float) -> dict[int, tuple[float, ...]]:
    return {load: tuple(rate * factor for rate in found) for load, found in SLOW.items()}


def a_run(label: str, load: LoadReport, role: str = "candidate", **metrics: float) -> Recorded:
    method = label.partition("+")[0]
    return Recorded(f"{label}-run-id", "tiny", label, method, role, "cpu", "same", metrics, load)


BASELINE = a_run("none", a_load(SLOW), "baseline")


def of(found: list[Measurement], technique: str, quantity: str) -> list[Measurement]:
    return [one for one in found if (one.technique, one.quantity) == (technique, quantity)]


def test_the_playbooks_table_is_there_row_by_row() -> None:
    """Against the playbook's own words, so that a figure is not changed by accident."""
    said: dict[str, list[str]] = {}
    for claim in CLAIMS:
        said.setdefault(claim.technique, []).append(f"{claim.quantity} {claim.text}")
    assert said == {
        "INT8": ["size 2x", "quality -1 to -2%", "speed-up 1.5 to 2x", "cost cut 40 to 50%"],
        "INT4 GPTQ/AWQ": ["size 4x", "quality -2 to -5%", "speed-up 2 to 3x", "cost cut 60 to 70%"],
        "distillation 70B -> 7B": ["size 10x", "quality -5 to -15%", "speed-up 8 to 12x", "cost cut 85 to 90%"],
        "speculative decoding": ["size 1x", "quality 0%", "speed-up 2 to 3x", "cost cut 50 to 60%"],
        "request batching": ["speed-up 5 to 8x"],
        "prefix caching": ["speed-up no figure"],
        "MIG": ["cost cut 60 to 80%"],
        "semantic cache": ["calls saved 20 to 40%"],
        "router": ["cost cut 40 to 60%"],
    }


def test_without_a_run_nothing_is_measured() -> None:
    rows = table_rows([])
    assert len(rows) == len(CLAIMS)
    assert {row[6] for row in rows} == {"not measured here"}
    assert {row[3] for row in rows} == {""}


@given(st.floats(0.1, 10), st.floats(0, 5), st.floats(0.1, 10), st.floats(0, 5))
def test_the_verdict_is_where_the_interval_lies(lo: float, width: float, claim_lo: float, claim_width: float) -> None:
    claim = Claim(INT8, SPEED, claim_lo, claim_lo + claim_width, "x")
    measured = Measurement(INT8, SPEED, lo, lo, lo + width, "x", "int8", "", "")
    span = claim.range
    assert span is not None
    found = verdict(claim, measured)
    touches = max(lo, span[0]) <= min(lo + width, span[1])
    assert (found == "agrees") == (span[0] <= lo <= span[1])
    assert (found in ("agrees", "not significantly different")) == touches
    if not touches:
        assert found == ("optimistic" if lo < span[0] else "pessimistic")


def test_what_cannot_be_judged_says_why() -> None:
    claim = Claim(INT8, SPEED, 1.5, 2, "x")
    single = Measurement(INT8, SPEED, 1.7, None, None, "x", "int8", "", "")
    assert verdict(claim, single) == "one repeat: no interval"
    assert verdict(claim, replace(single, is_exact=True)) == "agrees"
    assert verdict(claim, replace(single, unit="points", is_exact=True)) == "not comparable: measured in points"
    assert verdict(replace(claim, lo=None, hi=None), single) == "no figure is claimed"


def test_a_candidate_is_measured_against_its_baseline() -> None:
    metrics = {"size/ratio": 1.645, "quality/num_items": 300.0}
    metrics |= {"quality/recovery": 0.977, "quality/recovery.lo": 0.936, "quality/recovery.hi": 1.02}
    found = measurements([a_run("int8", a_load(scaled(1.6)), **metrics), BASELINE])
    (size,) = of(found, INT8, SIZE)
    assert (size.value, size.is_exact) == (1.645, True)
    (quality,) = of(found, INT8, QUALITY)
    assert quality.value == pytest.approx(-2.3)
    assert (quality.lo, quality.hi) == (pytest.approx(-6.4), pytest.approx(2.0))
    speeds = of(found, INT8, SPEED)
    assert [one.where for one in speeds] == [f"tiny on test CPU (2 CPUs), c{load}-128x32" for load in (1, 8)]
    assert [one.value for one in speeds] == pytest.approx([1.6, 1.6])
    assert all(one.lo is not None and one.hi is not None and one.lo < 1.6 < one.hi for one in speeds)
    (cost,) = of(found, INT8, COST)
    assert cost.value == pytest.approx(100 * (1 - 1 / 1.6))
    assert cost.lo is not None
    assert cost.hi is not None
    assert cost.lo < cost.value < cost.hi
    assert "c8-128x32" in cost.where


def test_a_gate_that_stopped_early_gives_points_and_no_verdict_on_percent() -> None:
    metrics = {f"gate/piqa/difference_points{end}": value for end, value in (("", -0.5), (".lo", -1.9), (".hi", 0.8))}
    found = measurements([a_run("int8", a_load(SLOW), **metrics, **{"gate/piqa/num_items": 64.0}), BASELINE])
    (quality,) = of(found, INT8, QUALITY)
    assert figure_text(quality) == "-0.5 points [-1.9, +0.8]"
    assert quality.where == "tiny, piqa, 64 items until decided"


def test_a_slower_variant_has_a_negative_cut_and_the_claim_is_optimistic() -> None:
    found = measurements([a_run("gptq", a_load(scaled(0.5))), BASELINE])
    rows = [row for row in table_rows(found) if row[0] == INT4 and row[3]]
    assert {row[6] for row in rows} == {"optimistic"}
    assert next(row[3] for row in rows if row[1] == COST).startswith("-100.0%")


def test_only_the_same_machine_load_questions_and_engine_are_compared() -> None:
    run = a_run("int8", a_load(scaled(2)))
    assert baseline_of(run, [BASELINE]) is BASELINE
    assert baseline_of(run, [replace(BASELINE, comparison_group="other")]) is None
    assert baseline_of(run, [replace(BASELINE, model="other")]) is None
    assert baseline_of(run, [replace(BASELINE, load=a_load(SLOW, ENGINE | {"max_num_seqs": 16}))]) is None
    newer = replace(BASELINE, run_id="newer")
    assert baseline_of(run, [newer, BASELINE]) is newer
    assert not of(measurements([run]), INT8, SPEED)


def test_a_load_that_sets_the_pace_measures_no_speed() -> None:
    def paced(load: LoadReport) -> LoadReport:
        return replace(load, points=(*load.points, replace(load.points[1], name="rps1-128x32", request_rate=1.0)))

    run, baseline = a_run("int8", paced(a_load(scaled(2)))), replace(BASELINE, load=paced(BASELINE.load))
    found = of(measurements([run, baseline]), INT8, SPEED)
    assert [one.where.rpartition(", ")[2] for one in found] == ["c1-128x32", "c8-128x32"]


def test_weights_that_are_served_as_plain_ones_test_no_claim_on_speed() -> None:
    run = replace(a_run("gptq", a_load(SLOW), **{"size/ratio": 4.0}), has_kernel=False)
    rows = [row for row in table_rows(measurements([run, BASELINE])) if row[4] == "gptq"]
    assert [row[6] for row in rows if row[1] == SIZE] == ["agrees"]
    assert [row[6].partition(":")[0] for row in rows if row[1] in (SPEED, COST)] == ["no test of it"] * 3
    without = replace(MACHINE, has_int4=False, has_int8=False)
    for method in ("gptq", "int8", "int8-weight-only"):
        plan = make_plan(a_config(quant={"method": method}), FACTS, without, PRICE, FREE)
        assert any(note.startswith(NO_KERNEL) for note in plan.notes), "the plan's note has other words now"


def test_only_the_newest_run_that_says_something_is_shown() -> None:
    newer = replace(a_run("int8", a_load(scaled(2)), **{"size/ratio": 2.0}), run_id="newer")
    older = replace(newer, run_id="older", metrics={"size/ratio": 1.0})
    (size,) = of(measurements([newer, older, BASELINE]), INT8, SIZE)
    assert (size.value, size.run_id) == (2.0, "newer")


def test_speculation_is_measured_against_the_same_engine_without_it() -> None:
    engine = ENGINE | {"speculative": "ngram", "num_speculative_tokens": 4}
    run = a_run("none+ngram", a_load(scaled(1.2), engine))
    assert technique_of(run) == SPECULATION
    assert [one.value for one in of(measurements([run, BASELINE]), SPECULATION, SPEED)] == pytest.approx([1.2, 1.2])
    assert technique_of(a_run("int8+ngram", a_load(SLOW))) is None, "two things at once"
    assert technique_of(a_run("none+fp8-kv-cache", a_load(SLOW))) is None


def test_a_student_is_measured_as_distillation_and_a_quantized_one_as_neither() -> None:
    student = replace(a_run("half", a_load(scaled(2)), **{"distill/final_loss": 1.0, "size/ratio": 2.0}), method="none")
    found = measurements([student, BASELINE])
    assert [one.value for one in of(found, DISTILLATION, SPEED)] == pytest.approx([2.0, 2.0])
    assert technique_of(replace(student, label="half+int8", method="int8")) is None
    assert technique_of(replace(student, label="half+ngram")) is None


def test_batching_and_prefixes_are_measured_within_one_run() -> None:
    (batching,) = of(measurements([BASELINE]), BATCHING, SPEED)
    assert batching.value == pytest.approx(4.0, rel=1e-3)
    assert batching.where.endswith("c8-128x32 over c1-128x32")
    shared = replace(
        BASELINE.load.points[1],
        name="c8-128x32-prefix0.9",
        prefix_share=0.9,
        repeats=tuple({"total_tok_per_s": rate} for rate in (80.0, 80.8, 79.2)),
    )
    load = replace(BASELINE.load, points=(*BASELINE.load.points, shared))
    found = measurements([replace(BASELINE, load=load)])
    assert of(found, BATCHING, SPEED) == [batching]
    (prefix,) = of(found, PREFIXES, SPEED)
    assert prefix.value == pytest.approx(2.0, rel=1e-3)
    alone = replace(BASELINE.load, points=BASELINE.load.points[:1])
    assert not measurements([replace(BASELINE, load=alone)])


def test_at_an_objective_the_cut_is_that_of_the_rates_that_hold() -> None:
    def searched(held: float, failed: float | None) -> LoadReport:
        return replace(a_load(SLOW), theta_slo=ThetaSlo(2.0, 0.2, held, failed, 6))

    baseline = replace(BASELINE, load=searched(2.0, 2.2))
    (cost,) = of(measurements([a_run("int8", searched(4.0, 4.4)), baseline]), INT8, COST)
    assert (cost.value, cost.lo) == (pytest.approx(50), pytest.approx(45))
    assert cost.hi == pytest.approx(100 * (1 - 2 / 4.4))
    assert "p99 TTFT <= 2.0 s" in cost.where
    unheld = replace(searched(4.0, None), theta_slo=ThetaSlo(2.0, 0.2, None, 1.0, 6))
    assert not of(measurements([a_run("int8", unheld), baseline]), INT8, COST)


def test_the_page_holds_every_row_and_run() -> None:
    text = page(measurements([a_run("int8", a_load(scaled(1.6)), **{"size/ratio": 1.6}), BASELINE]))
    assert text.count("| INT8 |") == 5  # size, quality (not measured), two loads, cost
    assert "| INT8 | quality | -1 to -2% |  |  |  | not measured here |  |" in text
    assert "int8-run" in text
    assert "4 of 21 rows are measured." in text


def test_a_store_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such store"):
        recorded_runs(TrackingConfig(f"sqlite:///{tmp_path}/none.db"))
    assert not list(tmp_path.iterdir())
