from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.stats import mean_estimate
from evals.types import CostReport, ItemOutcome, LoadPoint, LoadReport, Money, Price, QualityReport, TaskResult
from pipeline.decide import Evidence, decide, mean_quality
from pipeline.schema import GateConfig

PRICE = Price("cpu", Decimal(1), Decimal(1), "on_demand", "test", "2026-01-01")
GATE = GateConfig(min_recovery=0.95, num_resamples=2000)


def quality(scores: list[float | None], meaningless: str = "", digest: str = "same") -> QualityReport:
    items = tuple(ItemOutcome(index, score) for index, score in enumerate(scores))
    task = TaskResult("arc_easy", "acc", mean_estimate(scores), items, len(items), digest)
    return QualityReport({"arc_easy": task}, meaningless)


def cost(usd: str | None) -> CostReport:
    money = None if usd is None else Money(Decimal(usd), Decimal(usd), Decimal(usd))
    missing = {} if usd is not None else {"usd_per_1k_tokens": "no load was measured"}
    return CostReport(PRICE, Decimal("0.4"), money, None, None, None, None, missing)


def load(ttft_p99_s: float | None = 0.1) -> LoadReport:
    point = LoadPoint("c8", 8, 128, 64, ({"ttft_p99_s": ttft_p99_s, "tpot_p99_s": 0.01},), 0)
    return LoadReport("quick", (point,))


def evidence(scores: list[float | None], usd: str | None = "1", **more: object) -> Evidence:
    ttft = more.pop("ttft", 0.1)
    return Evidence("variant", quality(scores, **more), load(ttft), cost(usd))


GOOD = [1.0, 0.0, 1.0, 1.0] * 200


def test_as_good_and_cheaper_is_promoted() -> None:
    decision, comparison = decide(evidence(GOOD, "0.5"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "promote"
    assert comparison is not None
    assert all(reason.startswith("passed") for reason in decision.reasons)


def test_much_worse_is_held_with_its_figures() -> None:
    worse = [0.0 if index % 5 == 0 else score for index, score in enumerate(GOOD)]
    decision, _ = decide(evidence(worse, "0.5"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "hold"
    assert "recovery 80" in decision.reasons[0]


def test_dearer_is_held() -> None:
    decision, _ = decide(evidence(GOOD, "1.2"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "hold"
    assert "not cheaper" in decision.reasons[1]
    assert "+20.0%" in decision.reasons[1]


def test_a_missing_price_is_never_free() -> None:
    decision, _ = decide(evidence(GOOD, None), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "hold"
    assert "no load was measured" in decision.reasons[1]


def test_meaningless_quality_is_never_promoted() -> None:
    decision, _ = decide(evidence(GOOD, "0.5", meaningless="random weights"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "hold"


def test_other_questions_cannot_be_compared() -> None:
    decision, comparison = decide(evidence(GOOD, "0.5", digest="other"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "hold"
    assert comparison is None


@pytest.mark.parametrize(("ttft", "action"), [(0.1, "promote"), (0.9, "hold"), (None, "hold")])
def test_the_slo_must_hold_where_one_is_given(ttft: float | None, action: str) -> None:
    gate = GateConfig(num_resamples=2000, slo_ttft_p99_s=0.5)
    decision, _ = decide(evidence(GOOD, "0.5", ttft=ttft), evidence(GOOD, "1"), gate, seed=0)
    assert decision.action == action


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.3), st.integers(20, 300))
@settings(max_examples=40, deadline=None)
def test_a_promotion_always_has_a_lower_end_above_the_limit(seed: int, flip: float, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    baseline = (rng.random(num_items) < 0.7).astype(float)
    candidate = np.where(rng.random(num_items) < flip, 1 - baseline, baseline)
    if not baseline.any():
        return
    gate = GateConfig(num_resamples=500)
    ours, theirs = evidence(candidate.tolist(), "0.5"), evidence(baseline.tolist(), "1")
    decision, comparison = decide(ours, theirs, gate, seed=seed)
    recovery = None if comparison is None else comparison.recovery
    assert (decision.action == "promote") == (recovery is not None and recovery.lo >= gate.min_recovery)
    assert decision == decide(ours, theirs, gate, seed=seed)[0], "the same seed gave another decision"


def test_mean_quality_is_missing_where_scores_mean_nothing() -> None:
    assert mean_quality(quality(GOOD, meaningless="random weights")) is None
    mean = mean_quality(quality(GOOD))
    assert mean is not None
    assert mean.value == 0.75
