"""The decision rule: the gate on every task, the price, the SLO; the cheapest wins and every loser says to whom."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.files import plain
from evals.config import GateConfig
from evals.decide import decide as deciding
from evals.decide.decide import Candidate, Ranking
from evals.decide.evidence import Evidence, busy_machine, comparable_usd, mean_quality, measured_apart, price_verdict
from evals.decide.task_gates import describe_task, gates_of, rule_of
from evals.gate.scores import ItemScore, scores_of
from evals.gate.sequential import SequentialEvaluation, estimate_after_stopping, uniform_sampling_order
from evals.json_form import from_json
from evals.stats import mean_estimate
from evals.types import (
    CostReport,
    Decision,
    Estimate,
    GuardGate,
    ItemOutcome,
    LoadConditions,
    LoadPoint,
    LoadReport,
    Money,
    Price,
    PriceRound,
    PriceRounds,
    QualityReport,
    TaskResult,
    ThetaSlo,
)
from pipeline.record.metrics import comparison_metrics, gate_metrics
from pipeline.report.decision_page import make_record, write

PRICE = Price("cpu", Decimal(1), Decimal(1), "on_demand", "test", "2026-01-01")
GATE = GateConfig(num_resamples=2000, score="accuracy")
LEVEL = 0.05


def decide(candidate: Evidence, baseline: Evidence, gate: GateConfig, seed: int):
    return deciding.decide(Candidate(candidate, LEVEL), baseline, gate, seed)


def rank(candidates: Sequence[Evidence], baseline: Evidence, gate: GateConfig, seed: int) -> Ranking:
    return deciding.rank([Candidate(one, LEVEL) for one in candidates], baseline, gate, seed)


def task(scores: list[float | None], digest: str = "same") -> TaskResult:
    items = tuple(
        ItemOutcome(
            index, score, (-1.0, -2.0 - index % 3), 0, "0" if score else "1", question="Why?", choices=("a", "b")
        )
        for index, score in enumerate(scores)
    )
    return TaskResult("arc_easy", "acc", mean_estimate(scores), items, len(items), digest)


def quality(scores: list[float | None], quality_invalid_reason: str = "", digest: str = "same") -> QualityReport:
    return QualityReport({"arc_easy": task(scores, digest)}, quality_invalid_reason)


def cost(usd: str | None) -> CostReport:
    money = None if usd is None else Money(Decimal(usd), Decimal(usd), Decimal(usd))
    missing = {} if usd is not None else {"usd_per_1k_tokens": "no load was measured"}
    return CostReport(PRICE, Decimal("0.4"), money, None, None, None, None, missing)


def load(ttft_p99_s: float | None = 0.1) -> LoadReport:
    point = LoadPoint("c8", 8, 128, 64, ({"ttft_p99_s": ttft_p99_s, "tpot_p99_s": 0.01, "total_tok_per_s": 9.0},), 0)
    return LoadReport("quick", (point,))


def rounds(ratio: float, spread: float = 0.002, count: int = 4) -> PriceRounds:
    """Rounds in which the candidate's price is `ratio` of the baseline's, above and below it by `spread` in turn."""
    ratios = [ratio * (1 + spread * (1 if index % 2 else -1)) for index in range(count)]
    measured = (
        PriceRound((1000.0, 1010.0), (1000 / one, 1010 / one), "baseline", "2026-11-01T00:00:00+00:00")
        for one in ratios
    )
    return PriceRounds("c8-128x64", "c8-128x64", is_together=True, rounds=tuple(measured))


def evidence(scores: list[float | None], usd: str | None = "1", label: str = "variant", **more: object) -> Evidence:
    ttft = more.pop("ttft", 0.1)
    beside = None if usd is None else rounds(float(usd))
    return Evidence(label, quality(scores, **more), load(ttft), cost(usd), beside)


GOOD = [1.0, 0.0, 1.0, 1.0] * 200
WORSE = [0.0 if index % 5 == 0 else score for index, score in enumerate(GOOD)]


def test_as_good_and_cheaper_is_promoted() -> None:
    decision, comparison = decide(evidence(GOOD, "0.5"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "promote"
    assert comparison is not None
    assert comparison.recovery.value == 1
    assert all(reason.startswith("passed") for reason in decision.reasons)
    assert "not worse by 2 points or more (by all items)" in decision.reasons[0]
    assert decision.evidence.beaten_by == ()


def test_much_worse_is_held_with_its_figures() -> None:
    decision, _ = decide(evidence(WORSE, "0.5"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "reject"
    assert "arc_easy: -15.0 points" in decision.reasons[0]
    assert "(800 of 800 items): worse by 2 points or more" in decision.reasons[0]
    assert "arc_easy: -15.0 points" in decision.evidence.beaten_by[0]


def test_a_loss_of_exactly_the_margin_is_no_pass() -> None:
    baseline = [1.0] * 100
    tie, inside = [0.0, 0.0] + [1.0] * 98, [0.0] + [1.0] * 99
    assert decide(evidence(tie, "0.5"), evidence(baseline), GATE, seed=0)[0].action == "reject"
    assert decide(evidence(inside, "0.5"), evidence(baseline), GATE, seed=0)[0].action == "promote"
    wider = replace(GATE, task_delta_points={"arc_easy": 2.5})
    assert decide(evidence(tie, "0.5"), evidence(baseline), wider, seed=0)[0].action == "promote"


def test_a_more_expensive_one_is_not_promoted() -> None:
    decision, _ = decide(evidence(GOOD, "1.2"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "reject"
    assert "more expensive than the baseline" in decision.reasons[1]
    (against,) = decision.evidence.beaten_by
    assert against.startswith(
        "it is not shown to be cheaper than the baseline: 1.2 against 1 USD per 1k tokens (+20.0%)"
    )


def test_a_missing_price_is_never_free() -> None:
    decision, _ = decide(evidence(GOOD, None), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "undecided"
    assert "no load was measured" in decision.reasons[1]


def test_quality_invalid_reason_is_never_promoted() -> None:
    decision, _ = decide(
        evidence(GOOD, "0.5", quality_invalid_reason="random weights"), evidence(GOOD, "1"), GATE, seed=0
    )
    assert decision.action == "undecided"


def test_other_questions_cannot_be_compared() -> None:
    decision, comparison = decide(evidence(GOOD, "0.5", digest="other"), evidence(GOOD, "1"), GATE, seed=0)
    assert decision.action == "undecided"
    assert comparison is None


def test_tasks_outside_the_gate_do_not_decide() -> None:
    both = {"arc_easy": task(GOOD), "piqa": task(GOOD)}
    bad = {"arc_easy": task(GOOD), "piqa": task(WORSE)}
    base = Evidence("none", QualityReport(both), load(), cost("1"))
    candidate = Evidence("int8", QualityReport(bad), load(), cost("0.5"), rounds(0.5))
    assert decide(candidate, base, GATE, seed=0)[0].action == "reject"
    assert decide(candidate, base, replace(GATE, tasks=["arc_easy"]), seed=0)[0].action == "promote"


@pytest.mark.parametrize(("ttft", "action"), [(0.1, "promote"), (0.9, "reject"), (None, "undecided")])
def test_the_slo_must_hold_where_one_is_given(ttft: float | None, action: str) -> None:
    gate = replace(GATE, slo_ttft_p99_s=0.5)
    decision, _ = decide(evidence(GOOD, "0.5", ttft=ttft), evidence(GOOD, "1"), gate, seed=0)
    assert decision.action == action


@pytest.mark.parametrize(
    ("theta", "action", "words"),
    [
        (ThetaSlo(0.5, None, 2.0, 2.2, 6), "promote", "is met at 2 requests/s (theta_slo)"),
        (ThetaSlo(0.4, 0.1, 2.0, None, 6), "promote", "ttft_p99_s <= 0.4 s is met"),
        (ThetaSlo(2.0, None, 2.0, 2.2, 6), "undecided", "load.search.slo_ttft_p99_s=0.5 searches with it"),
        (ThetaSlo(None, 0.1, 2.0, 2.2, 6), "undecided", "searched with no limit"),
        (ThetaSlo(0.5, None, None, 0.1, 6, "no tested rate meets it"), "reject", "no tested rate meets it"),
    ],
)
def test_where_the_load_looked_for_theta_the_slo_is_told_by_it(theta: ThetaSlo, action: str, words: str) -> None:
    gate = replace(GATE, slo_ttft_p99_s=0.5)
    candidate = evidence(GOOD, "0.5", ttft=99.0)  # of the closed loop at capacity, which no user sees
    decision, _ = decide(
        replace(candidate, load=replace(candidate.load, theta_slo=theta)), evidence(GOOD, "1"), gate, 0
    )
    assert decision.action == action
    assert words in "\n".join(decision.reasons)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.3), st.integers(20, 300))
@settings(max_examples=40, deadline=None)
def test_a_promotion_by_all_items_always_loses_less_than_the_margin(seed: int, flip: float, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    baseline = (rng.random(num_items) < 0.7).astype(float)
    candidate = np.where(rng.random(num_items) < flip, 1 - baseline, baseline)
    gate = replace(GATE, num_resamples=500)
    ours, theirs = evidence(candidate.tolist(), "0.5"), evidence(baseline.tolist(), "1")
    decision, _ = decide(ours, theirs, gate, seed=seed)
    num_lost = round(float((baseline - candidate).sum()))
    assert (decision.action == "promote") == (100 * num_lost < 2 * num_items)
    assert plain(decision) == plain(decide(ours, theirs, gate, seed=seed)[0]), "the same seed gave another decision"


def test_the_cheapest_that_passed_wins_and_the_others_say_to_whom() -> None:
    candidates = [
        evidence(GOOD, "0.6", "int8"),
        evidence(WORSE, "0.2", "awq"),
        evidence(GOOD, "0.5", "gptq"),
        evidence(GOOD, "0.3", "slow", ttft=0.9),
    ]
    gate = replace(GATE, slo_ttft_p99_s=0.5)
    found = rank(candidates, evidence(GOOD, "1", "none"), gate, seed=0)
    assert found.winner == 2
    assert [decision.action for decision in found.decisions] == ["hold", "reject", "promote", "reject"]
    losses = {loss.variant: loss.beaten_by for loss in found.losses}
    assert losses["int8"] == (
        "'gptq' passed too and is cheaper: 0.5 against 0.6 USD per 1k tokens (20.0% more expensive)",
    )
    assert losses["awq"][0].startswith("arc_easy: -15.0 points")
    assert losses["slow"] == ("it misses the SLO: ttft_p99_s 0.9 s exceeds the limit of 0.5 s by 80%",)
    assert found.notes == (
        "4 candidates were tested against this baseline, each at its own share of gate.alpha (int8 at 5.00%, awq at "
        "5.00%, gptq at 5.00%, slow at 5.00%): some candidate worse by its margin is promoted with a chance of at most "
        "5%",
    )


def test_each_candidate_is_tested_at_its_own_level() -> None:
    candidate, baseline = stopped_evidence(flip_every=50)
    gate = replace(GATE, delta_points=5.0)
    strict = deciding.decide(Candidate(candidate, 1e-9), baseline, gate, seed=0)[0]
    assert strict.action == "undecided", "its answers stopped where they showed it at 5%"
    assert strict.evidence.level == 1e-9
    assert "a margin of 5 points is not decided; the smallest margin shown so far is" in strict.reasons[0]
    assert re.search(r"5 takes about \d+ of the \d+ items left", strict.reasons[0])
    assert deciding.decide(Candidate(candidate, 0.05), baseline, gate, seed=0)[0].action == "promote"


def test_nobody_wins_where_nobody_passed() -> None:
    found = rank([evidence(WORSE, "0.2")], evidence(GOOD, "1"), GATE, seed=0)
    assert found.winner is None
    assert len(found.losses) == 1


def stopped_evidence(flip_every: int | None = None, *, fails: bool = False) -> tuple[Evidence, Evidence]:
    """A candidate whose evaluation stopped, beside a baseline with every item."""
    base = {name: task(GOOD) for name in ("arc_easy", "piqa")}
    gate = replace(GATE, delta_points=5.0, order="uniform")
    rule = rule_of(gate, list(base), LEVEL)
    orders = {name: uniform_sampling_order(name, range(800), "baseline") for name in base}
    known = scores_of(base)
    evaluation = SequentialEvaluation(orders, known, rule)

    def answer(name: str, item_id: int) -> float:
        right = known[name][item_id].accuracy
        if name == "piqa" and fails:
            return 0.0
        return 1 - right if flip_every and item_id % flip_every == 0 else right

    while (block := evaluation.next_block()) is not None:
        evaluation.feed(block.task, [ItemScore(answer(block.task, item_id), None) for item_id in block.item_ids])
    tasks = {}
    for name, order in orders.items():
        ids = order.item_ids[: evaluation.gates[name].state.num_items]
        if not ids:
            continue
        by_id = {item.item_id: item for item in base[name].items}
        items = tuple(replace(by_id[item_id], score=answer(name, item_id)) for item_id in ids)
        estimate = mean_estimate([item.score for item in items])
        stopped = TaskResult(name, "acc", estimate, items, 800, "same", order)
        tasks[name] = replace(
            stopped, estimate=estimate_after_stopping(stopped, base[name], evaluation.tasks[name].accuracy)
        )
    missing = {name: "not evaluated" for name in base if name not in tasks}
    candidate = Evidence("int8", QualityReport(tasks, "", missing), load(), cost("0.5"), rounds(0.5))
    return candidate, Evidence("none", QualityReport(base), load(), cost("1"))


def test_a_stopped_evaluation_decides_and_says_how_much_it_asked() -> None:
    candidate, baseline = stopped_evidence(flip_every=50)
    gate = replace(GATE, delta_points=5.0)
    decision, comparison = decide(candidate, baseline, gate, seed=0)
    assert decision.action == "promote", decision.reasons
    said = (
        r"\(\d+ of 800 items\): not worse by 5 points or more \(e-value [\d.]+ at item \d+\); questions like these: \["
    )
    assert re.search(said, decision.reasons[0]), decision.reasons[0]
    assert comparison is not None
    assert "confidence sequences" in comparison.recovery.method
    assert comparison.recovery.lo <= 0.73 / 0.75 <= comparison.recovery.hi, "the recovery over all 800 items"
    metrics = gate_metrics(decision.evidence) | comparison_metrics(comparison)
    assert metrics["gate/piqa/num_items"] < metrics["gate/piqa/num_items_total"] == 800
    assert metrics["gate/piqa/max_log_e_pass"] >= np.log(20)
    assert 0 < metrics["gate/piqa/max_at"] <= metrics["gate/piqa/num_items"]
    assert metrics["gate/piqa/smallest_margin_points"] <= 5
    assert metrics["gate/piqa/like_these_points.lo"] < metrics["gate/piqa/difference_points.lo"]
    assert metrics["gate/piqa/difference_points.lo"] > -10
    assert 0 <= metrics["quality/piqa/flip_rate"] < 0.1
    assert metrics["quality/piqa/kl_nats"] == 0
    assert "quality/recovery.lo" in metrics


def test_a_task_that_was_never_asked_is_named_and_has_no_figures() -> None:
    candidate, baseline = stopped_evidence(fails=True)
    cut = replace(
        candidate, quality=QualityReport({"piqa": candidate.quality.tasks["piqa"]}, "", {"arc_easy": "not evaluated"})
    )
    decision, comparison = decide(cut, baseline, replace(GATE, delta_points=5.0), seed=0)
    assert decision.action == "reject"
    assert comparison is None
    assert mean_quality(cut.quality) is None
    assert "not decided: quality: arc_easy: not evaluated, because piqa had ended the evaluation" in decision.reasons
    assert not any("arc_easy/difference" in name for name in gate_metrics(decision.evidence))


@pytest.mark.parametrize(
    ("decision", "reason", "text"),
    [
        ("fail", "e-value", "accuracy -4.0 points [-6.0, -2.5]: worse by 2 points or more"),
        ("fail", "exact", "accuracy -4.0 points [-6.0, -2.5]: worse by 5 points or more"),
        ("pass", "e-value", "accuracy -4.0 points [-6.0, -2.5]: not worse by 5 points or more"),
        ("undecided", "", "accuracy -4.0 points [-6.0, -2.5]: a margin of 5 points is not decided"),
    ],
)
def test_the_guard_says_what_it_has_shown(decision: str, reason: str, text: str) -> None:
    """It rejects early what is worse by the declared margin, and in the end what is worse by its own."""
    guard = GuardGate(decision, reason, 5.0, 2.0, Estimate(-0.04, -0.06, -0.025, 100), None)
    candidate, baseline = stopped_evidence(flip_every=50)
    one = decide(candidate, baseline, replace(GATE, delta_points=5.0), 0)[0].evidence.tasks["piqa"]
    shown = describe_task(replace(one, score="probability", decision=decision, guard=guard), GATE)
    assert text in shown
    assert ("see the accuracy" in shown) == (decision == "fail")


def test_the_evidence_survives_its_json_form() -> None:
    candidate, baseline = stopped_evidence(flip_every=50)
    back = replace(candidate, quality=from_json(QualityReport, json.loads(json.dumps(plain(candidate.quality)))))
    assert back.quality == candidate.quality
    gate = replace(GATE, delta_points=5.0)
    assert plain(decide(back, baseline, gate, 0)[0]) == plain(decide(candidate, baseline, gate, 0)[0])


def test_evidence_under_the_former_names_of_its_fields_is_read() -> None:
    """Stored quality stages and MLflow's evidence keep the names of their time."""
    report = replace(stopped_evidence(flip_every=50)[0].quality, quality_invalid_reason="random weights")
    raw = json.loads(json.dumps(plain(report)))
    raw["meaningless"] = raw.pop("quality_invalid_reason")
    for result in raw["tasks"].values():
        order = result.pop("sampling_order")
        result["drawing"] = {"order": order.pop("kind"), **order}
    raw["tasks"]["whole"] = {**next(iter(raw["tasks"].values())), "drawing": None}
    found = from_json(QualityReport, raw)
    assert found.tasks.pop("whole").sampling_order is None
    assert found == report
    assert "meaningless" in raw, "what is read is not changed"


def test_the_record_is_written_for_machines_and_for_people(tmp_path: Path) -> None:
    candidate, baseline = stopped_evidence(flip_every=50)
    costly = replace(candidate, label="<costly>", cost=cost("0.9"), price_rounds=rounds(0.9))
    gate = replace(GATE, delta_points=5.0)
    found = rank([candidate, costly], baseline, gate, seed=0)
    now = datetime(2026, 11, 1, tzinfo=UTC)
    write(make_record("tiny", found, 0, [candidate, costly], baseline, gate, now), tmp_path)
    record = json.loads((tmp_path / "decision.json").read_text())
    assert record["decision"]["action"] == "promote"
    assert record["decision"]["rule"]["delta_points"] == 5.0
    assert set(record["decision"]) == {"action", "variant", "reasons", "rule", "evidence"}
    money = {"usd_per_1k_tokens", "baseline_usd_per_1k_tokens"}
    money |= {"price_ratio", "level"}
    assert set(record["decision"]["evidence"]) == {"tasks", "recovery", "passed", "beaten_by", *money}
    assert set(record["decision"]["rule"]) == set(vars(gate))
    assert record["losses"][0]["variant"] == "<costly>"
    assert "'int8' passed too" in record["losses"][0]["beaten_by"][0]
    assert record["decided_at"] == "2026-11-01T00:00:00+00:00"
    page = (tmp_path / "decision.html").read_text()
    for words in (
        "Promote &#x27;int8&#x27;",
        "saves 50%",
        "with a chance of at most 0.05",
        "&lt;costly&gt;</b>",
        "passed, but more expensive",
        "data:image/png;base64,",
        "How was the price compared?",
        "Price against the baseline: -50.0% [",
        "in 4 rounds, each with servers that were started anew",
        "Why?",
    ):
        assert words in page, words
    assert "<costly>" not in page
    assert "http" not in page.replace("http-equiv", ""), "the page must need no network"
    assert (tmp_path / "gate.png").read_bytes().startswith(b"\x89PNG")


def test_a_record_of_random_weights_promises_nothing(tmp_path: Path) -> None:
    candidate, baseline = evidence(GOOD, "0.5", quality_invalid_reason="random weights"), evidence(GOOD, "1")
    found = rank([candidate], baseline, GATE, seed=0)
    write(make_record("tiny", found, 0, [candidate], baseline, GATE), tmp_path)
    assert "Not decided: &#x27;variant&#x27;" in (tmp_path / "decision.html").read_text()


def test_gates_of_other_suites_are_none() -> None:
    assert gates_of(quality(GOOD, digest="x"), quality(GOOD), GATE, LEVEL) is None
    assert gates_of(quality(GOOD), quality(GOOD), replace(GATE, tasks=["boolq"]), LEVEL) is None


def test_mean_quality_is_missing_where_scores_mean_nothing() -> None:
    assert mean_quality(quality(GOOD, quality_invalid_reason="random weights")) is None
    mean = mean_quality(quality(GOOD))
    assert mean is not None
    assert mean.value == 0.75


def a_loop(rates: Sequence[float], theta: ThetaSlo | None = None) -> LoadReport:
    repeats = tuple({"total_tok_per_s": rate, "req_per_s": rate / 160} for rate in rates)
    return LoadReport("quick", (LoadPoint("c8", 8, 128, 32, repeats, 0),), theta_slo=theta)


def decided(ours: LoadReport, theirs: LoadReport, usd: str = "0.9") -> Decision:
    candidate, baseline = evidence(GOOD, usd), evidence(GOOD, "1")
    return decide(replace(candidate, load=ours), replace(baseline, load=theirs), GATE, seed=0)[0]


def in_rounds(found: PriceRounds | None, usd: str = "0.9") -> Decision:
    return decide(replace(evidence(GOOD, usd), price_rounds=found), evidence(GOOD, "1"), GATE, seed=0)[0]


def test_a_price_is_lower_only_where_rounds_of_fresh_starts_show_it() -> None:
    shown = in_rounds(rounds(0.9))
    assert shown.action == "promote"
    assert shown.evidence.price_ratio is not None
    assert "measured in turn, 4 rounds: -10.0% [-10.3%, -9.7%]: cheaper than the baseline" in shown.reasons[-1]
    noise = in_rounds(rounds(0.98, spread=0.05))
    assert noise.action == "undecided"
    assert noise.reasons[-1].startswith(
        "not decided: price: 0.9 against 1 USD per 1k tokens (-10.0%); measured in turn"
    )
    assert "not decided (gate.price_rounds=16 shows differences half as large)" in noise.reasons[-1]
    assert "not decided" in noise.evidence.beaten_by[-1]


def test_two_prices_that_were_measured_alone_decide_nothing() -> None:
    """An older record, or `gate.price_rounds=0`: 40% cheaper by one start of each is not shown to be cheaper."""
    held = in_rounds(None, usd="0.6")
    assert held.action == "undecided"
    assert "not decided: it was not measured in turn with its baseline" in held.reasons[-1]
    assert "gate.price_rounds=4" in held.reasons[-1]
    assert price_verdict(replace(evidence(GOOD, "0.6"), price_rounds=None), evidence(GOOD)).kind == "undecided"


@pytest.mark.parametrize(
    ("found", "kind", "text"),
    [
        (rounds(0.9), "cheaper", "cheaper than"),
        (rounds(1.1), "not cheaper", "+10.0% [+9.6%, +10.4%]: more expensive than"),
        (rounds(1.0), "undecided", "not decided"),
        (rounds(0.9, count=1), "undecided", "1 round shows nothing of how starts differ"),
        (PriceRounds(missing="the candidate's load has no point with a throughput"), "undecided", "no point with"),
        (
            replace(rounds(0.9), rounds=(*rounds(0.9).rounds, PriceRound((1.0,), (None,), "baseline", ""))),
            "undecided",
            "in 1 of 5 rounds",
        ),
    ],
)
def test_a_price_has_three_answers(found: PriceRounds, kind: str, text: str) -> None:
    verdict = price_verdict(replace(evidence(GOOD), price_rounds=found), evidence(GOOD))
    assert verdict.kind == kind
    assert text in verdict.text


def test_the_machines_prices_are_in_the_ratio() -> None:
    dear = replace(PRICE, usd_per_hour_lo=Decimal(2), usd_per_hour_hi=Decimal(2))
    ours = evidence(GOOD, "0.9")
    verdict = price_verdict(replace(ours, cost=replace(ours.cost, price=dear)), evidence(GOOD))
    assert verdict.ratio is not None
    assert verdict.ratio.ratio == pytest.approx(1.8, rel=0.01)


def test_candidates_are_ranked_by_what_was_measured_beside_the_baseline() -> None:
    """One start made `slow` look cheaper than `fast`; measured in turn it is not."""
    slow = replace(evidence(GOOD, "0.5", "slow"), price_rounds=rounds(0.8))
    fast = replace(evidence(GOOD, "0.7", "fast"), price_rounds=rounds(0.75))
    found = rank([slow, fast], evidence(GOOD), GATE, seed=0)
    assert found.winner == 1
    assert "'fast' passed too and is cheaper: 0.75 against 0.8 USD" in found.losses[0].beaten_by[0]
    assert comparable_usd(evidence(GOOD, None), evidence(GOOD)) is None


def test_a_busy_machine_is_named() -> None:
    quiet = evidence(GOOD)
    assert busy_machine(quiet) == "", "nobody knows"
    used = tuple(replace(one, counters={"cpu_other_share": 0.3}) for one in rounds(1.0).rounds)
    busy = replace(quiet, price_rounds=replace(rounds(1.0), rounds=used))
    assert busy_machine(busy) == "other processes took up to 30% of the processors"
    point = replace(quiet.load.points[0], counters=({"cpu_steal_share": 0.04, "cpu_other_share": None},))
    assert busy_machine(replace(quiet, load=replace(quiet.load, points=(point,)))) == "the host took up to 4% (steal)"


def test_a_price_says_when_the_speeds_are_hours_apart() -> None:
    def at(time: str) -> LoadReport:
        return replace(a_loop([100]), machine=LoadConditions(oldest_result_at=time))

    noon = at("2026-11-01T12:00:00+00:00")
    assert measured_apart(noon, at("2026-11-01T12:59:00+00:00")) == measured_apart(noon, a_loop([100])) == ""
    assert measured_apart(at("2026-11-01T05:00:00+00:00"), noon) == ", their speeds measured 7 h apart"
    assert measured_apart(at("2026-11-05T12:00:00+00:00"), noon) == ", measured 4 days apart"
    assert "(-10.0%), measured 4 days apart" in decided(at("2026-11-05T12:00:00+00:00"), noon).reasons[-1]


def test_a_rate_that_held_must_reach_one_that_failed_the_baseline() -> None:
    def theta(held: float | None, failed: float | None) -> LoadReport:
        return a_loop([100, 101], ThetaSlo(2.0, 0.2, held, failed, 6))

    assert decided(theta(2.2, 2.4), theta(2.0, 2.2)).action == "promote"
    within = decided(theta(2.1, 2.3), theta(2.0, 2.2))
    assert "theta_slo is 2.1 requests/s, and the baseline fails only from 2.2 on" in within.reasons[-1]
    assert "not decided" in within.reasons[-1]
    assert "the baseline failed at no rate" in decided(theta(2.1, None), theta(2.0, None)).reasons[-1]
    assert "not cheaper than the baseline" in decided(theta(1.6, 1.8), theta(2.0, 2.2)).reasons[-1]
    assert decided(theta(2.2, 2.4), theta(2.0, 2.2), usd="1.1").action == "undecided", "on a more expensive machine"
