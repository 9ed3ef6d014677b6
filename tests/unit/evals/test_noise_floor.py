"""The noise floor: what two paths' answers say of it, what it can resolve, and what a decision does with it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.files import plain
from evals.decide.evidence import Evidence
from evals.decide.noise_floor import (
    NUM_SDS,
    floor_problem,
    noise_report,
    redraw_sd,
    resolvable_points,
    task_floor,
    task_noise,
)
from evals.decide.task_gates import gates_of, task_gates
from evals.json_form import from_json
from evals.types import ItemOutcome, NoiseReport, QualityReport, TaskNoise
from tests.unit.pipeline.test_decide import GATE, GOOD, LEVEL, WORSE, decide, evidence, quality

logs = st.floats(-60.0, 0.0)


@st.composite
def outcomes(draw: st.DrawFn, num_choices: int = 4) -> tuple[list[ItemOutcome], list[ItemOutcome]]:
    """The same items along two paths."""
    num = draw(st.integers(1, 30))
    found = ([], [])
    for item_id in range(num):
        target = draw(st.integers(0, num_choices - 1))
        for path in found:
            lls = tuple(draw(logs) for _ in range(num_choices))
            score = draw(st.sampled_from((0.0, 1.0, None)))
            path.append(ItemOutcome(item_id, score, lls, target))
    return found


def noise(flip_rate: float = 0.0, rms_probability: float | None = 0.0, task: str = "arc_easy") -> NoiseReport:
    one = TaskNoise(task, 64, 0, 800, flip_rate, math.sqrt(flip_rate), 0.1, 0.2, rms_probability)
    return NoiseReport(("one", "other"), {task: one})


@given(outcomes())
def test_a_path_against_itself_has_no_noise(both: tuple[list[ItemOutcome], list[ItemOutcome]]) -> None:
    items = [replace(item, score=item.score or 0.0) for item in both[0]]
    found = task_noise("t", items, items[::-1], 99)
    assert (found.flip_rate, found.rms_score, found.rms_nats, found.max_nats, found.rms_probability) == (0,) * 5
    assert resolvable_points(0.0, 0.0, 10) == 0
    assert (found.num_items, found.num_unscored, found.num_items_total) == (len(items), 0, 99)


@given(outcomes())
def test_it_does_not_matter_which_path_is_the_first(both: tuple[list[ItemOutcome], list[ItemOutcome]]) -> None:
    one, other = task_noise("t", *both, 9), task_noise("t", both[1], both[0], 9)
    for name, value in vars(one).items():
        assert getattr(other, name) == (value if value is None else pytest.approx(value))


@given(outcomes(), st.randoms(use_true_random=False))
def test_items_are_compared_by_their_ids(both: tuple[list[ItemOutcome], list[ItemOutcome]], random) -> None:
    first, second = (list(path) for path in both)
    random.shuffle(first)
    extra = ItemOutcome(999, 1.0, (-1.0,) * 4, 0)  # the first path may have answered more
    assert vars(task_noise("t", [*first, extra], second, 9)) == vars(task_noise("t", both[0], both[1], 9))


@given(outcomes())
def test_the_figures_are_those_of_a_plain_loop(both: tuple[list[ItemOutcome], list[ItemOutcome]]) -> None:
    found = task_noise("t", *both, 9)
    scored = [(a, b) for a, b in zip(*both, strict=True) if a.score is not None and b.score is not None]
    assert found.num_items == len(scored)
    assert found.num_unscored == len(both[0]) - len(scored)
    if scored:
        assert found.flip_rate == pytest.approx(sum(a.score != b.score for a, b in scored) / len(scored))
        assert found.rms_score == pytest.approx(math.sqrt(found.flip_rate))
    else:
        assert found.flip_rate is found.rms_score is None
    moved = [
        abs(x - y) for a, b in zip(*both, strict=True) for x, y in zip(a.loglikelihoods, b.loglikelihoods, strict=True)
    ]
    assert found.max_nats == pytest.approx(max(moved))
    assert found.rms_nats == pytest.approx(math.sqrt(sum(x * x for x in moved) / len(moved)))
    shares = []
    for a, b in zip(*both, strict=True):
        p, q = (np.exp(one.loglikelihoods) / np.exp(one.loglikelihoods).sum() for one in (a, b))
        shares.append(p[a.target] - q[a.target])
    assert found.rms_probability == pytest.approx(float(np.sqrt(np.mean(np.square(shares)))), abs=1e-9)


def test_what_is_not_there_is_missing_and_not_zero() -> None:
    written = [ItemOutcome(0, 1.0, target="42"), ItemOutcome(1, None, reason="no answer")]
    found = task_noise("t", written, written, 2)
    assert (found.num_items, found.num_unscored, found.flip_rate) == (1, 1, 0.0)
    assert found.rms_nats is found.max_nats is found.rms_probability is None


def test_paths_that_were_asked_different_things_are_refused() -> None:
    one = [ItemOutcome(0, 1.0, (-1.0, -2.0), 0)]
    with pytest.raises(ValueError, match="1 items have no answer by the first path"):
        task_noise("t", one, [ItemOutcome(1, 1.0, (-1.0, -2.0), 0)], 2)
    with pytest.raises(ValueError, match="2 choices by one path, 3 by the other"):
        task_noise("t", one, [ItemOutcome(0, 1.0, (-1.0, -2.0, -3.0), 0)], 2)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 100_000))
def test_more_items_and_less_noise_resolve_more(ours: float, theirs: float, num: int) -> None:
    points = resolvable_points(ours, theirs, num)
    assert points == pytest.approx(resolvable_points(theirs, ours, num))
    assert points >= resolvable_points(ours, 0.0, num) >= 0
    assert resolvable_points(ours, theirs, 4 * num) == pytest.approx(points / 2)


@pytest.mark.parametrize("num_items", [200, 1000])
@pytest.mark.parametrize("share_unsure", [0.02, 0.2])
def test_the_floor_is_the_spread_of_redrawn_differences(num_items: int, share_unsure: float) -> None:
    """Models whose unsure answers are redrawn: the spread over redraws is what two paths' flips say that it is."""
    rng = np.random.default_rng([num_items, round(100 * share_unsure)])
    chances = []
    for _ in range(2):  # an unsure item is right in some share of its redraws
        unsure = rng.random(num_items) < share_unsure
        chances.append(np.where(unsure, rng.beta(2, 2, num_items), rng.random(num_items) < 0.6))
    draws = 4000
    candidate, baseline = ((rng.random((draws, num_items)) < chance).astype(float) for chance in chances)
    spread = (candidate.mean(1) - baseline.mean(1)).std()
    # Over many pairs of paths the mean of the squared flips is what one pair estimates.
    flips = [float((one[::2] != one[1::2]).mean()) for one in (candidate, baseline)]
    assert redraw_sd(math.sqrt(flips[0]), math.sqrt(flips[1]), num_items) == pytest.approx(spread, rel=0.05)
    beyond = np.abs(candidate.mean(1) - baseline.mean(1) - (chances[0].mean() - chances[1].mean())) > NUM_SDS * spread
    assert beyond.mean() < 0.07


def test_a_floor_needs_both_models() -> None:
    assert task_floor("arc_easy", 100, noise(0.1), None) is None
    assert task_floor("arc_easy", 100, None, noise(0.1)) is None
    assert task_floor("piqa", 100, noise(0.1), noise(0.1)) is None
    found = task_floor("arc_easy", 100, noise(0.05, None), noise(0.0))
    assert found is not None
    assert found.accuracy_points == pytest.approx(100 * 2 * math.sqrt(0.05 / 200))
    assert found.probability_points is None


def with_noise(report: QualityReport, flip_rate: float | None, rms_probability: float = 0.0) -> QualityReport:
    return replace(report, noise=None if flip_rate is None else noise(flip_rate, rms_probability))


def problem(margin: float, ours: float | None, theirs: float | None, score: str = "accuracy") -> str | None:
    """The problem of a margin of so many points over 800 items."""
    candidate, baseline = with_noise(quality(GOOD), ours, 0.02), with_noise(quality(GOOD), theirs)
    gate = replace(GATE, delta_points=margin, score=score)
    evaluation = gates_of(candidate, baseline, gate, LEVEL)
    assert evaluation is not None
    return floor_problem(task_gates(evaluation, candidate, baseline, 0)["arc_easy"], candidate, baseline)


def test_a_margin_below_the_floor_is_a_problem_and_one_at_it_is_not() -> None:
    # 4% flips of the candidate, none of the baseline, 800 items: two standard deviations are exactly 1 point.
    assert problem(0.99, 0.04, 0.0) == (
        "the margin of 0.99 points of accuracy lies below the noise floor of 1 points (parsimony noise)"
    )
    assert problem(1.0000001, 0.04, 0.0) is None
    assert problem(0.01, 0.0, 0.0) is None
    assert problem(0.01, None, 0.04) is problem(0.01, 0.04, None) is None
    # The right choice's probability moves by 0.02 rms: 0.1 points of it, a margin of 0.125.
    assert problem(0.12, 0.04, 0.0, "probability") is not None
    assert problem(0.13, 0.04, 0.0, "probability") is None


@given(st.floats(0, 20), st.floats(0, 0.5), st.floats(0, 0.5))
@settings(max_examples=50, deadline=None)
def test_the_problem_is_there_exactly_below_the_floor(margin: float, ours: float, theirs: float) -> None:
    margin = round(margin, 6)
    floor = resolvable_points(math.sqrt(ours), math.sqrt(theirs), len(GOOD))
    if abs(margin - floor) > 1e-5:
        assert (problem(margin, ours, theirs) is not None) == (margin < floor)


def noisy(one: Evidence, flip_rate: float) -> Evidence:
    return replace(one, quality=with_noise(one.quality, flip_rate))


def test_a_margin_below_the_floor_promotes_nothing() -> None:
    candidate, baseline = evidence(GOOD, "0.5"), evidence(GOOD, "1")
    gate = replace(GATE, delta_points=0.8)
    assert decide(candidate, baseline, gate, seed=0)[0].action == "promote"
    decision, _ = decide(noisy(candidate, 0.04), noisy(baseline, 0.0), gate, seed=0)
    assert decision.action == "undecided"
    text = "the margin of 0.8 points of accuracy lies below the noise floor of 1 points (parsimony noise)"
    assert any(reason.startswith("not decided: quality: arc_easy") and text in reason for reason in decision.reasons)
    assert any(text in one for one in decision.evidence.beaten_by)
    assert (
        decide(noisy(candidate, 0.04), noisy(baseline, 0.0), replace(gate, delta_points=1.1), 0)[0].action == "promote"
    )


def test_a_candidate_that_failed_has_failed() -> None:
    candidate, baseline = noisy(evidence(WORSE, "0.5"), 0.04), noisy(evidence(GOOD, "1"), 0.0)
    decision, _ = decide(candidate, baseline, replace(GATE, delta_points=0.8), seed=0)
    assert decision.action == "reject"
    assert any("worse by 0.8 points or more" in reason for reason in decision.reasons)


def test_the_noise_is_stored_with_the_quality_and_old_reports_have_none() -> None:
    report = with_noise(quality(GOOD), 0.04)
    assert from_json(QualityReport, plain(report)) == report
    before = plain(quality(GOOD))
    del before["noise"]
    assert from_json(QualityReport, before).noise is None


def test_a_report_is_of_the_tasks_that_both_paths_were_asked() -> None:
    one, other = quality([1.0, 0.0, 1.0]), quality([1.0, 1.0, 1.0])
    found = noise_report(("a", "b"), {**one.tasks, "piqa": one.tasks["arc_easy"]}, other.tasks)
    assert list(found.tasks) == ["arc_easy"]
    assert found.tasks["arc_easy"].flip_rate == pytest.approx(1 / 3)
    assert found.tasks["arc_easy"].num_items_total == 3
