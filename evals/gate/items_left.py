"""How many items an undecided task still takes: simulated continuations of its gates. Pure. No gate decides by it.

Each item that is left gets the differences of an item that was answered, one of the 16 whose baseline answer was most
alike, cut to what its own baseline's score allows. All gates of the task see the same continuation.

    estimate = items_to_decide(evaluation, "piqa", rng)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.gate import betting
from evals.gate.betting import FloatArray
from evals.gate.gate import Verdict
from evals.gate.sequential import SequentialEvaluation, TaskGates

NUM_DONORS = 16
BLOCK = 128


@dataclass(frozen=True)
class ItemsLeft:
    """What continuing would take."""

    num_items: int
    """Median over the continuations of the further items to a verdict; at most `num_left`."""
    num_left: int
    """Items of the benchmark that have not been asked."""
    pass_share: float
    """Share of the continuations, decided by then, that pass."""


def items_to_decide(
    evaluation: SequentialEvaluation, task: str, rng: np.random.Generator, num_runs: int = 101
) -> ItemsLeft | None:
    """How many items the declared margin still takes for one task, whatever the budget; None before the first answer.

    A task that has passed or failed takes none.
    """
    gates = evaluation.tasks[task]
    state, main = gates.state, gates.main
    if not main.differences.size:
        return None
    if state.decision in (Verdict.PASS, Verdict.FAIL) or not state.num_left:
        return ItemsLeft(0, state.num_left, float(state.decision is Verdict.PASS))
    if not main.stop_early:
        return ItemsLeft(state.num_left, state.num_left, float(main.differences.mean() > -main.delta))
    deciding = [main, gates.accuracy] if gates.is_guarded else [main]
    forks = [gate.fork(num_runs) for gate in deciding]
    passed = np.array([[gate.state.decision is Verdict.PASS] * num_runs for gate in deciding])
    ended = np.full(num_runs, state.num_left)
    is_open, is_pass = np.ones(num_runs, np.bool_), np.zeros(num_runs, np.bool_)
    first = _first_donors(gates)
    for begin in range(0, state.num_left, BLOCK):
        places = first[begin : begin + BLOCK]
        donors = places + rng.integers(0, min(NUM_DONORS, main.differences.size), size=(num_runs, places.size))
        donors = _by_likeness(gates)[donors]
        codes = []
        for gate, fork in zip(deciding, forks, strict=True):
            known = gate.baseline[state.num_items + begin :][: places.size]
            least, most = (np.where(np.isnan(known), 1.0, one) for one in (known, 1 - known))
            codes.append(fork.update(np.clip(gate.differences[donors], -least, most)))
        at, went_well = _first_end(np.stack(codes), passed)
        hit = is_open & (at < places.size)
        ended[hit] = begin + 1 + at[hit]
        is_pass[hit] = went_well[hit]
        is_open &= ~hit
        if is_open.mean() < 0.5:
            break
    decided = ~is_open
    share = float(is_pass[decided].mean()) if decided.any() else 0.0
    return ItemsLeft(int(np.median(ended)), state.num_left, share)


def _likeness(gates: TaskGates) -> FloatArray:
    """A number per item (N,), near for items whose baseline answers are alike: wrong ones apart from right ones."""
    score = gates.main.baseline
    return np.where(np.isnan(score), 0.0, score + 2 * (gates.accuracy.baseline >= 0.5))


def _by_likeness(gates: TaskGates) -> NDArray[np.int64]:
    """The answered items' places in the order, by rising likeness."""
    return np.argsort(_likeness(gates)[: gates.main.differences.size], kind="stable")


def _first_donors(gates: TaskGates) -> NDArray[np.int64]:
    """For each item left: where in `_by_likeness` its donors begin."""
    used = gates.main.differences.size
    like = _likeness(gates)
    place = np.searchsorted(like[_by_likeness(gates)], like[used:])
    return np.clip(place - NUM_DONORS // 2, 0, max(0, used - NUM_DONORS))


def _first_end(codes: NDArray[np.int8], passed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where in a block each future ends (T: not in it), and whether as a pass.

    `codes` (gates, R, T); `passed` (gates, R), which gates had passed before, is brought up to the block's end.
    """
    num_items = codes.shape[-1]
    is_good = np.isin(codes, (betting.E_ACCEPT, betting.SURE_ACCEPT))
    is_bad = np.isin(codes, (betting.E_REJECT, betting.SURE_REJECT))
    has_passed = np.logical_or.accumulate(is_good, axis=-1) | passed[..., None]
    all_passed = has_passed.all(axis=0)
    # A gate that has passed is failed only by what is certain.
    any_failed = (is_bad & (~has_passed | (codes == betting.SURE_REJECT))).any(axis=0)
    passed |= has_passed[..., -1]
    ends = all_passed | any_failed
    at = np.where(ends.any(axis=-1), ends.argmax(axis=-1), num_items)
    inside = np.minimum(at, num_items - 1)[:, None]
    return at, np.take_along_axis(all_passed & ~any_failed, inside, axis=-1)[:, 0]
