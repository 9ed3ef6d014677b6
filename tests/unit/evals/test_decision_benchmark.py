"""benchmarks/decision.py: its simulation decides as the product does, and its populations are what they say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmarks.gate
from benchmarks.decision import GUARD, TABLES, Audit, constructed_pair, losing, probability_gates, recorded_pairs
from core.files import write_json
from evals.gate.ordering import margin_ranks, probability_weights
from evals.gate.scores import ItemScore
from evals.gate.sequential import GateRule, SequentialEvaluation
from evals.types import SamplingOrder


@pytest.mark.parametrize("seed", range(6))
def test_the_simulation_decides_as_the_products_own_evaluation(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    pair = constructed_pair(400, 0.02 + 0.03 * seed, 0.0 if seed % 2 else 0.05, rng)
    weights = probability_weights(pair.p.tolist())
    order = np.argsort(rng.exponential(size=400) / weights)
    ranks = margin_ranks(pair.margins)[order]
    drawn = SamplingOrder("guided", tuple(order.tolist()), tuple(weights[order].tolist()), tuple(ranks.tolist()))
    base = {i: ItemScore(float(pair.right[i]), float(pair.p[i])) for i in range(400)}
    rule = GateRule({"t": 0.03}, {"t": 0.03 * GUARD}, block_items=1)
    evaluation = SequentialEvaluation({"t": drawn}, {"t": base}, rule)
    while (block := evaluation.next_block()) is not None:
        (i,) = block.item_ids
        scores = (base[i].accuracy + pair.d_accuracy[i], base[i].probability + pair.d_probability[i])
        evaluation.feed("t", [ItemScore(*map(float, scores))])
    monkeypatch.setattr(benchmarks.gate, "draw", lambda *ignored: order[None])
    runs = probability_gates(pair, 0.03).run(rng, 1)
    state = evaluation.states["t"]
    assert bool(runs.passed[0]) == (state.decision == "pass")
    assert bool(runs.failed[0]) == (state.decision == "fail")
    assert runs.num_items[0] == state.num_items


@given(st.integers(100, 800), st.floats(0.02, 0.2), st.sampled_from([0.0, 0.02, 0.03]), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_populations_lose_exactly_what_they_should(num_items, flips, loss, seed):
    rng = np.random.default_rng(seed)
    pair = constructed_pair(num_items, flips, loss, rng)
    assert round(-float(pair.d_accuracy.sum())) == round(loss * num_items)
    worse = losing(pair, 0.05, rng)
    for one in (pair, worse):
        assert (one.d_accuracy >= -one.right).all()
        assert (one.d_accuracy <= 1 - one.right).all()
        assert (one.d_probability >= -one.p - 1e-12).all()
        assert (one.d_probability <= 1 - one.p + 1e-12).all()
    assert round(-float(worse.d_accuracy.sum())) == round(0.05 * num_items)


def test_every_table_is_made_of_recorded_answers(tmp_path: Path):
    rng = np.random.default_rng(0)
    odds = {"none": rng.normal(0.6, 2, 150)}
    odds |= {"int8": odds["none"] + rng.normal(0, 0.3, 150), "awq": odds["none"] + rng.normal(-0.3, 1, 150)}
    for variant, values in odds.items():
        items = [
            {"item_id": i, "score": float(x > 0), "loglikelihoods": [float(x), 0.0], "target": 0, "num_tokens": 50 + i}
            for i, x in enumerate(values)
        ]
        write_json(tmp_path / f"{variant}.json", {"variant": variant, "task": "piqa", "items": items})
    pairs = recorded_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["awq, piqa", "int8, piqa"]
    audit = Audit(pairs, 20, rng)
    for name in ("boundary", "population", "coverage", "items"):
        lines = list(TABLES[name](audit))
        assert sum(line.startswith("|") for line in lines) >= 2 + len(pairs) * (name != "coverage"), name


def test_the_routes_are_counted(monkeypatch):
    monkeypatch.setattr("benchmarks.decision._margin_after", lambda audit: (0.04, 0.02))
    rows = [line for line in TABLES["routes"](Audit([], 200, np.random.default_rng(0))) if line.startswith("| ")][1:]
    assert len(rows) == 14
    seeds = rows[2].split(" | ")
    assert float(seeds[1]) > 15
    assert all(float(row.split(" | ")[2]) <= 5 + 4 * 1.6 for row in rows)
    assert "1 order in 10 tries" in rows[2]


@pytest.mark.parametrize("which", ["probability", "guard", "both"])
@pytest.mark.parametrize("flips", [0.04, 0.15])
def test_the_pair_of_gates_keeps_alpha_where_one_hypothesis_is_true(which, flips):
    """The margin of the main gate, of the guard, or of both is the true loss: at most alpha passes, and 4 errors."""
    rng, num_runs = np.random.default_rng(5), 400
    pair = constructed_pair(300, flips, 0.03, rng)
    gates = probability_gates(pair, 0.03)
    lost = [-float(d.mean()) for d in (pair.d_probability, pair.d_accuracy)]
    assert min(lost) > 0
    deltas = {"probability": (lost[0], 0.5), "guard": (0.5, lost[1]), "both": tuple(lost)}[which]
    sides = [replace(one, delta=delta, reject_delta=delta) for one, delta in zip(gates.sides, deltas, strict=True)]
    runs = replace(gates, sides=tuple(sides)).run(rng, num_runs, alpha=0.1)
    assert runs.passed.mean() <= 0.1 + 4 * (0.1 * 0.9 / num_runs) ** 0.5
