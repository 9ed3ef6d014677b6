"""Several tasks' gates fed block by block: turns, stopping, missing baseline answers, replays from records."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from evals.gate.gate import Verdict
from evals.gate.scores import EQUAL_STRICTNESS, ItemScore, right_probability, scores_of
from evals.gate.sequential import (
    LOCKSTEP_ABOVE,
    GateRule,
    SequentialEvaluation,
    draw_order,
    draw_orders,
    estimate_after_stopping,
    replay,
    task_score,
    uniform_sampling_order,
)
from evals.quality.selection import ItemSelection, make_selection
from evals.stats import mean_estimate
from evals.types import ItemOutcome, SamplingOrder, TaskResult


def result(scores, order: SamplingOrder | None = None, *, ids=None, margins=None, tokens=None) -> TaskResult:
    ids = range(len(scores)) if ids is None else ids
    items = tuple(
        ItemOutcome(
            item_id,
            score,
            () if margins is None else (0.0, -margins[item_id]),
            num_tokens=None if tokens is None else tokens[item_id],
        )
        for item_id, score in zip(ids, scores, strict=True)
    )
    return TaskResult("t", "acc", mean_estimate(list(scores)), items, 1000, "same", order)


def draw(tasks, rule, identity="x"):
    return draw_orders(tasks, rule, guided_identity=f"guided {identity}", uniform_identity=f"uniform {identity}")


def accuracies(scores: dict[str, dict[int, float | None]]) -> dict[str, dict[int, ItemScore]]:
    return {t: {i: ItemScore(score, None) for i, score in known.items()} for t, known in scores.items()}


def ask_all(evaluation: SequentialEvaluation, answers: dict[str, dict[int, float | None]]) -> list[str]:
    turns = []
    while (block := evaluation.next_block()) is not None:
        turns.append(block.task)
        scores = [answers[block.task][item_id] for item_id in block.item_ids]
        evaluation.feed(block.task, [one if isinstance(one, ItemScore) else ItemScore(one, None) for one in scores])
    return turns


def world(num_items: int, flips: float, seed: int, shift: float = 0.0):
    """Baseline and candidate scores of two tasks; margins that are small where answers flip."""
    rng = np.random.default_rng(seed)
    baseline, candidate, margins = {}, {}, {}
    for task in ("a", "b"):
        base = (rng.random(num_items) < 0.6).astype(float)
        flip = rng.random(num_items) < flips
        other = np.where(flip, 1 - base, base)
        if task == "b":
            other = np.where(rng.random(num_items) < shift, 0.0, other)
        baseline[task], candidate[task] = dict(enumerate(base.tolist())), dict(enumerate(other.tolist()))
        margins[task] = np.where(flip, 0.1, 1.0) * rng.random(num_items)
    return baseline, candidate, margins


@pytest.mark.parametrize("order", ["guided", "uniform"])
def test_tasks_take_turns_until_all_are_decided(order: str) -> None:
    baseline, candidate, margins = world(600, 0.05, 0)
    tasks = {t: result(list(baseline[t].values()), margins=margins[t]) for t in "ab"}
    rule = GateRule({"a": 0.05, "b": 0.05}, order=order, block_items=20)
    orders = draw(tasks, rule)
    assert {drawn.kind for drawn in orders.values()} == {order}
    assert orders["a"].item_ids != orders["b"].item_ids
    assert orders == draw(tasks, rule)
    evaluation = SequentialEvaluation(orders, accuracies(baseline), rule)
    turns = ask_all(evaluation, candidate)
    assert turns[:4] == ["a", "b", "a", "b"]
    assert evaluation.combined.decision is Verdict.PASS
    assert all(20 <= gate.state.num_items < 600 for gate in evaluation.gates.values())


def test_the_first_failed_task_ends_it() -> None:
    baseline, candidate, _ = world(600, 0.02, 1, shift=0.5)
    rule = GateRule({"a": 0.02, "b": 0.02}, order="uniform", block_items=20)
    orders = {t: uniform_sampling_order(t, range(600), "x") for t in "ab"}
    evaluation = SequentialEvaluation(orders, accuracies(baseline), rule)
    turns = ask_all(evaluation, candidate)
    assert evaluation.combined.because == "b"
    assert evaluation.gates["a"].state.decision is Verdict.UNDECIDED
    assert len(turns) < 12
    assert not evaluation.items_needed


def test_nothing_stops_early_when_told_so_and_the_budget_is_kept() -> None:
    baseline, candidate, _ = world(90, 0.0, 2)
    orders = {t: uniform_sampling_order(t, range(90), "x") for t in "ab"}
    full = SequentialEvaluation(orders, accuracies(baseline), GateRule({"a": 0.1, "b": 0.1}, stop_early=False))
    ask_all(full, candidate)
    assert [gate.state.num_items for gate in full.gates.values()] == [90, 90]
    assert full.combined.decision is Verdict.PASS
    small = SequentialEvaluation(
        orders, accuracies(baseline), GateRule({"a": 0.01, "b": 0.01}, max_items=25, block_items=10)
    )
    ask_all(small, candidate)
    assert small.combined.decision is Verdict.FUTILE
    assert max(gate.state.num_items for gate in small.gates.values()) <= 25


def test_it_waits_for_the_baseline() -> None:
    baseline, candidate, _ = world(400, 0.05, 3)
    rule = GateRule({"a": 0.1, "b": 0.1}, order="uniform", block_items=16)
    orders = {t: uniform_sampling_order(t, range(400), "x") for t in "ab"}
    part = {t: {i: baseline[t][i] for i in orders[t].item_ids[:16]} for t in "ab"}
    evaluation = SequentialEvaluation(orders, accuracies(part), rule)
    assert ask_all(evaluation, candidate) == ["a", "b"]
    assert evaluation.items_needed == {"a": 32, "b": 32}


def test_a_partly_asked_baseline_keeps_its_order() -> None:
    order = uniform_sampling_order("a", range(100), "x")
    part = result([1.0] * 30, order, ids=order.item_ids[:30], margins=[0.5] * 100)
    assert draw_orders({"a": part}, GateRule({"a": 0.05}), guided_identity="y", uniform_identity="z") == {"a": order}


def test_without_margins_token_costs_guide_and_without_both_nothing_does() -> None:
    plain, dear = result([1.0] * 50), result([1.0] * 50, tokens=[10] * 25 + [1000] * 25)
    rule = GateRule({"a": 0.05})
    assert draw({"a": plain}, rule)["a"].kind == "uniform"
    drawn = draw({"a": dear}, rule)["a"]
    assert drawn.kind == "guided"
    weights = dict(zip(drawn.item_ids, drawn.weights, strict=True))
    assert weights[0] > weights[49]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gate\.order=sideways: not one of auto, guided, uniform"):
        GateRule({"a": 0.02}, order="sideways")
    with pytest.raises(ConfigError, match=r"'piqq' is not in the suite; did you mean 'piqa'\?"):
        draw({"piqa": result([1.0])}, GateRule({"piqq": 0.02}))
    with pytest.raises(ConfigError, match=r"gate\.guard_delta_points: 'a' is not in the suite"):
        draw({"b": result([1.0])}, GateRule({"b": 0.02}, guard_deltas={"a": 0.05}))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"block_items": 0}, r"gate\.block_items=0: must be at least 1"),
        ({"max_items": 0}, r"gate\.max_items=0"),
        ({"alpha": 1.0}, r"gate\.alpha=1\.0: must lie between 0 and 1"),
        ({"beta": math.nan}, r"gate\.beta=nan"),
        ({"score": "propability"}, r"gate\.score=propability: not one of probability, accuracy; did you mean"),
        ({"deltas": {"a": 2.0}}, r"gate\.delta_points=200 for 'a': must be at least 0 and below 100"),
        ({"guard_deltas": {"a": -0.1}}, r"gate\.guard_delta_points=-10 for 'a'"),
    ],
)
def test_bad_values_name_their_key(values, match) -> None:
    with pytest.raises(ConfigError, match=match):
        GateRule(**{"deltas": {"a": 0.02}, **values})


@given(st.integers(20, 200), st.floats(0, 0.3), st.floats(0, 0.4), st.integers(0, 1000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_replay_of_the_records_says_what_the_evaluation_said(
    num_items: int, flips: float, shift: float, seed: int, is_guided: bool
) -> None:
    baseline, candidate, margins = world(num_items, flips, seed, shift)
    base = {t: result(list(baseline[t].values()), margins=margins[t]) for t in "ab"}
    rule = GateRule({"a": 0.05, "b": 0.05}, order="guided" if is_guided else "uniform", block_items=7)
    orders = draw(base, rule, str(seed))
    evaluation = SequentialEvaluation(orders, accuracies(baseline), rule)
    ask_all(evaluation, candidate)
    recorded = {}
    for task, gate in evaluation.gates.items():
        ids = orders[task].item_ids[: gate.state.num_items]
        if ids:
            recorded[task] = result([candidate[task][i] for i in ids], orders[task], ids=ids)
    again = replay(recorded, base, rule)
    assert again.combined.decision is evaluation.combined.decision
    assert again.combined.because == evaluation.combined.because
    assert again.combined.log_e_pass == pytest.approx(evaluation.combined.log_e_pass)
    for task, gate in evaluation.gates.items():
        other = again.gates[task].state
        assert (other.decision, other.decided_at) == (gate.state.decision, gate.state.decided_at)
    for task, one in recorded.items():
        estimate = estimate_after_stopping(one, base[task], again.tasks[task].accuracy)
        truth = float(np.mean(list(candidate[task].values())))
        if one.is_complete:
            assert estimate.value == pytest.approx(truth)
        assert 0 <= estimate.lo <= estimate.value <= estimate.hi <= 1


def test_items_in_no_random_order_count_only_all_together() -> None:
    """1000 items in file order, the first 900 equal: a gate that looked early would pass."""
    base = result([1.0] * 1000)
    worse = result([1.0] * 900 + [0.0] * 100)
    states = replay({"a": worse}, {"a": base}, GateRule({"a": 0.05}))
    assert states.gates["a"].state.decision is Verdict.FAIL
    assert states.gates["a"].state.reason == "exact"
    some = result([1.0] * 900)
    assert replay({"a": some}, {"a": base}, GateRule({"a": 0.05})).gates["a"].state.num_items == 900


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_interval_after_stopping_holds_the_score_of_all_items(seed: int) -> None:
    """30 seeds at 95%: that 6 or more miss has a chance below 1 in 200; here a miss must at least be near."""
    baseline, candidate, margins = world(300, 0.1, seed)
    base = {"a": result(list(baseline["a"].values()), margins=margins["a"])}
    rule = GateRule({"a": 0.1}, block_items=10)
    orders = draw(base, rule, str(seed))
    evaluation = SequentialEvaluation(orders, accuracies(baseline), rule)
    ask_all(evaluation, candidate)
    ids = orders["a"].item_ids[: evaluation.gates["a"].state.num_items]
    stopped = result([candidate["a"][i] for i in ids], orders["a"], ids=ids)
    estimate = estimate_after_stopping(stopped, base["a"], evaluation.gates["a"])
    truth = float(np.mean(list(candidate["a"].values())))
    slack = 0.5 * (estimate.hi - estimate.lo)
    assert estimate.lo - slack <= truth <= estimate.hi + slack


def test_an_interview_asks_tasks_outside_the_gate_in_full_unless_it_fails() -> None:
    baseline, candidate, _ = world(120, 0.0, 5)
    items = {t: list(range(120)) for t in "abc"}
    orders = {t: uniform_sampling_order(t, items[t], "x") for t in "ab"}
    job = {
        "budgets": {},
        "uniform_identity": "x",
        "gate": {
            "rule": {"deltas": {"a": 0.1, "b": 0.1}, "block_items": 20},
            "orders": {t: vars(drawn) for t, drawn in orders.items()},
            "baseline": {t: {str(i): [score, None] for i, score in baseline[t].items()} for t in "ab"},
        },
    }

    def conduct(answers) -> ItemSelection:
        selection = make_selection(job, items)
        while (block := selection.next_block("abc")) is not None:
            if selection.is_gated(block.task):
                selection.feed(block, [ItemScore(answers[block.task][i], None) for i in block.item_ids])
        return selection

    done = conduct(candidate)
    assert len(done.asked("c")) == 120
    assert len(done.asked("a")) < 120
    assert done.sampling_order("c") is None
    bad = conduct({t: dict.fromkeys(range(120), 0.0) for t in "ab"})
    assert not bad.asked("c")
    assert bad.num_asked < bad.num_items


def test_a_plain_interview_asks_everything_and_one_with_a_budget_the_first_of_a_random_order() -> None:
    items = {"a": list(range(200)), "b": [0, 1]}

    def conduct(budgets: dict[str, int]) -> ItemSelection:
        selection = make_selection({"budgets": budgets, "uniform_identity": "x"}, items)
        while selection.next_block(["a", "b"]) is not None:
            pass
        return selection

    plain = conduct({})
    assert {task: list(plain.asked(task)) for task in items} == items
    assert plain.sampling_order("a") is None
    part = conduct({"a": 50, "b": 50})
    assert tuple(part.asked("a")) == part.sampling_order("a").item_ids[:50] == tuple(part.reachable("a"))
    assert part.sampling_order("b") is None, "a budget of more than there is limits nothing"
    more = conduct({"a": 80})
    assert more.sampling_order("a") == part.sampling_order("a"), "a larger budget goes on in the same order"


def test_a_candidate_reaches_the_items_that_its_baseline_was_asked() -> None:
    drawn = uniform_sampling_order("a", range(60), "x")
    gate = {
        "rule": {"deltas": {"a": 0.1}, "max_items": 20},
        "orders": {"a": vars(drawn)},
        "baseline": {"a": {str(i): [1.0, None] for i in drawn.item_ids[:20]}},
    }
    job = {"budgets": {"a": 20}, "uniform_identity": "x", "gate": gate}
    selection = make_selection(job, {"a": list(range(60))})
    assert tuple(selection.reachable("a")) == drawn.item_ids[:20]
    whole = make_selection({**job, "budgets": {}}, {"a": list(range(60))})
    assert sorted(whole.reachable("a")) == list(range(60))


def test_unscored_items_count_against_the_candidate() -> None:
    base = {"a": result([1.0] * 40)}
    recorded = {"a": result([None] * 4 + [1.0] * 36)}
    gate = replay(recorded, base, GateRule({"a": 0.05})).gates["a"]
    assert gate.state.decision is Verdict.FAIL
    assert scores_of(recorded)["a"][0].accuracy is None
    assert math.isinf(gate.state.log_e_fail)


def answered(kind: str, num_items: int, seed: int, *, noise: float = 0.3, shift: float = 0.0, order=None, first=None):
    """A model's answers to two-choice questions; "base" and its variants share the same underlying knowledge."""
    rng = np.random.default_rng(seed)
    knowledge, jitter = rng.normal(0.6, 1.5, num_items), rng.normal(0, 1, (2, num_items))
    logits = knowledge + (0 if kind == "base" else noise * jitter[0] - shift * 4)
    ids = range(num_items) if order is None else order.item_ids[:first]
    items = tuple(ItemOutcome(i, float(logits[i] > 0), (float(logits[i]) - 9.0, -9.0), 0, num_tokens=50) for i in ids)
    return TaskResult("a", "acc", mean_estimate([item.score for item in items]), items, num_items, "same", order)


def test_a_probability_is_the_softmax_at_the_right_choice_or_nothing() -> None:
    assert right_probability((-1.0, -2.0, -3.0), 1) == pytest.approx(math.exp(-2) / sum(map(math.exp, (-1, -2, -3))))
    assert right_probability((-1e6, -1e6 - 1), 0) == pytest.approx(1 / (1 + math.exp(-1)))
    for values, target in [
        ((-1.0,), 0),
        ((), 0),
        ((-1.0, -2.0), 2),
        ((-1.0, -2.0), -1),
        ((-1.0, -2.0), "1"),
        ((-1.0, -2.0), True),
        ((-1.0, -2.0), None),
        ((-1.0, math.nan), 0),
        ((-1.0, -math.inf), 0),
    ]:
        assert right_probability(values, target) is None


def test_probability_decides_only_where_the_baseline_has_one_for_every_item() -> None:
    base = answered("base", 40, 0)
    rule = GateRule({"a": 0.05})
    assert task_score("a", base, rule) == "probability"
    assert task_score("a", base, GateRule({"a": 0.05}, score="accuracy")) == "accuracy"
    for missing in ({"loglikelihoods": ()}, {"target": "a text"}, {"score": None}):
        items = (*base.items[:-1], ItemOutcome(**{**vars(base.items[-1]), **missing}))
        assert task_score("a", TaskResult(**{**vars(base), "items": items}), rule) == "accuracy"


def test_one_candidate_has_one_order_and_no_setting_moves_it() -> None:
    base = answered("base", 200, 0)
    rule = GateRule({"a": 0.02})

    def order(rule: GateRule, guided: str, uniform: str) -> SamplingOrder:
        return draw_orders({"a": base}, rule, guided_identity=guided, uniform_identity=uniform)["a"]

    first = order(rule, "candidate 1", "suite")
    assert first.kind == "guided"
    assert first == order(GateRule({"a": 0.07}, alpha=0.2, beta=0.3, block_items=5), "candidate 1", "suite")
    assert first.item_ids != order(rule, "candidate 2", "suite").item_ids
    plain = GateRule({"a": 0.02}, order="uniform")
    assert order(plain, "candidate 1", "suite") == order(plain, "candidate 2", "suite")
    assert order(plain, "", "suite").item_ids != order(plain, "", "other suite").item_ids
    weights = dict(zip(first.item_ids, first.weights, strict=True))
    known = scores_of({"a": base})["a"]
    p = np.array([known[i].probability for i in weights])
    raw = np.maximum(np.maximum(p, 1.6 * np.sqrt(p * (1 - p))), 0.5)
    assert np.array(list(weights.values())) == pytest.approx(raw / raw.mean())


def test_large_tasks_are_asked_in_lockstep() -> None:
    rule = GateRule({"a": 0.05})
    many, few = answered("base", LOCKSTEP_ABOVE + 1, 0), answered("base", LOCKSTEP_ABOVE, 0)
    assert draw({"a": many}, rule)["a"].kind == "uniform"
    assert draw({"a": few}, rule)["a"].kind == "guided"
    assert draw({"a": many}, GateRule({"a": 0.05}, order="guided"))["a"].kind == "guided"
    order = uniform_sampling_order("a", range(LOCKSTEP_ABOVE + 1), "uniform x")
    part = answered("base", LOCKSTEP_ABOVE + 1, 0, order=order, first=300)
    assert draw_order("a", part, rule, "another") == order
    evaluation = SequentialEvaluation({"a": order}, scores_of({"a": part}), rule)
    answers = scores_of({"a": answered("candidate", LOCKSTEP_ABOVE + 1, 0)})
    assert evaluation.tasks["a"].score == "probability"
    ask_all(evaluation, answers)
    state = evaluation.combined
    assert state.decision is Verdict.PASS or evaluation.items_needed["a"] > 300


@pytest.mark.parametrize(
    ("shift", "guard", "expected"), [(0.0, 0.05, Verdict.PASS), (0.3, 0.05, Verdict.FAIL), (0.0, None, Verdict.PASS)]
)
def test_probability_decides_with_a_guard_on_accuracy(shift: float, guard: float | None, expected: Verdict) -> None:
    base, other = answered("base", 900, 1), answered("candidate", 900, 1, shift=shift)
    rule = GateRule({"a": 0.02}, guard_deltas={} if guard is None else {"a": guard})
    evaluation = SequentialEvaluation(draw({"a": base}, rule), scores_of({"a": base}), rule)
    ask_all(evaluation, scores_of({"a": other}))
    gates = evaluation.tasks["a"]
    assert (gates.score, gates.is_guarded) == ("probability", guard is not None)
    assert gates.main.delta == pytest.approx(0.02 * EQUAL_STRICTNESS)
    assert gates.main.state.num_items == gates.accuracy.state.num_items < 900
    assert evaluation.states["a"].decision is expected
    if guard is not None and expected is Verdict.PASS:
        assert gates.accuracy.delta == guard
        assert gates.accuracy.state.decision is gates.main.state.decision is Verdict.PASS


def test_the_guard_stops_a_candidate_whose_probabilities_look_well() -> None:
    """Half of the right answers are flipped by a hair: no probability moves by more than 0.01, accuracy halves."""
    base = answered("base", 600, 2)
    items = [ItemOutcome(i, 1.0, (-5.0, -5.02), 0, num_tokens=50) for i in range(600)]
    flipped = [ItemOutcome(i, 0.0, (-5.0, -4.99), 0) if i % 2 else item for i, item in enumerate(items)]
    base, other = (TaskResult(**{**vars(base), "items": tuple(one)}) for one in (items, flipped))
    for guards, decision in (({}, Verdict.PASS), ({"a": 0.05}, Verdict.FAIL)):
        rule = GateRule({"a": 0.02}, guard_deltas=guards)
        evaluation = SequentialEvaluation(draw({"a": base}, rule), scores_of({"a": base}), rule)
        ask_all(evaluation, scores_of({"a": other}))
        assert evaluation.combined.decision is decision
        assert evaluation.tasks["a"].decided_by == ("accuracy" if guards else "probability")
        assert evaluation.tasks["a"].accuracy.reject_delta == 0.02


def test_an_item_without_a_probability_is_the_worst_case() -> None:
    base = answered("base", 300, 3)
    rule = GateRule({"a": 0.02})
    evaluation = SequentialEvaluation(draw({"a": base}, rule), scores_of({"a": base}), rule)
    block = evaluation.next_block()
    known = scores_of({"a": base})["a"]
    evaluation.feed("a", [ItemScore(known[i].accuracy, None) for i in block.item_ids])
    lost = [-known[i].probability for i in block.item_ids]
    assert evaluation.tasks["a"].main.differences == pytest.approx(lost)


@given(st.integers(20, 150), st.floats(0, 1), st.floats(-0.1, 0.4), st.integers(0, 1000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_replay_with_probabilities_says_what_the_evaluation_said(num_items, noise, shift, seed, is_guided) -> None:
    base = {"a": answered("base", num_items, seed)}
    other = answered("candidate", num_items, seed, noise=noise, shift=shift)
    rule = GateRule({"a": 0.05}, {"a": 0.1}, order="guided" if is_guided else "uniform", block_items=7)
    orders = draw(base, rule, str(seed))
    evaluation = SequentialEvaluation(orders, scores_of(base), rule)
    ask_all(evaluation, scores_of({"a": other}))
    asked = evaluation.states["a"].num_items
    recorded = answered("candidate", num_items, seed, noise=noise, shift=shift, order=orders["a"], first=asked)
    again = replay({"a": recorded}, base, rule)
    one, two = again.states["a"], evaluation.states["a"]
    assert (one.decision, one.decided_at, one.max_at) == (two.decision, two.decided_at, two.max_at)
    assert one.log_e_pass == pytest.approx(two.log_e_pass)
    truth = float(np.mean([item.score for item in other.items]))
    estimate = estimate_after_stopping(recorded, base["a"], again.tasks["a"].accuracy)
    if recorded.is_complete:
        assert estimate.value == pytest.approx(truth)


def test_old_records_replay_by_accuracy_with_their_own_order() -> None:
    """A record without the right choice's index, with the weights and ranks of a guided order."""
    base = answered("base", 300, 4)
    text = TaskResult(
        **{**vars(base), "items": tuple(ItemOutcome(**{**vars(item), "target": "yes"}) for item in base.items)}
    )
    rule = GateRule({"a": 0.05}, score="accuracy", order="guided")
    order = draw({"a": text}, rule)["a"]
    assert order.ranks
    recorded = TaskResult(**{**vars(answered("candidate", 300, 4, order=order, first=120))})
    found = replay({"a": recorded}, {"a": text}, GateRule({"a": 0.05}, {"a": 0.1}))
    assert found.tasks["a"].score == "accuracy"
    assert not found.tasks["a"].is_guarded
    assert found.states["a"].num_items == 120
    known = replay({"a": recorded}, {"a": base}, GateRule({"a": 0.05}, {"a": 0.1}))
    assert (known.tasks["a"].score, known.states["a"].num_items) == ("probability", 120)
