r"""The gate: is the candidate not worse than its baseline by more than the margin delta, on this benchmark?

Candidate and baseline answer the same N items, D_i = candidate's score - baseline's score in [-1, 1]. Items come in one
random order that is drawn before any answer of the candidate is known. After each block the gate says pass, fail or
undecided, and one may look as often as one likes.

    order = uniform_order(num_items, rng)                                  # or guided: evals/gate/ordering.py
    gate = Gate(num_items, delta=0.02, alpha=0.05)
    while gate.state.decision is Verdict.UNDECIDED:
        gate.update(differences(candidate_scores, baseline_scores))        # of the next block of `order`
    gate.confidence_sequence()

The test. H0: (1/N) sum D <= -delta (a tie is not a pass). S_t = D_1 + ... + D_t.
    Uniform order. Given the past, D_t is a uniform draw from what is left, whose mean is at most
    m_t = (-N delta - S_{t-1}) / (N - t + 1) under H0. With a bet x_t fixed before D_t is seen and
    0 <= x_t <= c / (1 + m_t), c < 1, the wealth W_t = prod_{i<=t} [1 + x_i (D_i - m_i)] has positive factors of
    conditional mean at most 1: a non-negative supermartingale with W_0 = 1. By Ville's inequality
    P(W ever >= 1/alpha) <= alpha. Passing when W >= 1/alpha therefore errs with probability at most alpha.
    (Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020, and "Estimating
    means of bounded random variables by betting", JRSS B 2024, arXiv 2010.09686.)
    Range. With b_i the baseline's score, D_i lies in [-b_i, 1 - b_i]: a wrong answer cannot be lost, a right one not
    won. Where D >= -l_t is known of all items left before item t is drawn, a factor stays positive
    for 0 <= x_t <= c / (l_t + m_t), and nothing else in the proof asks for l_t = 1 (evals/gate/betting.py).
    Guided order. Item i is drawn from what is left with probability q_t(i) = w_i / (sum of w left).
    Z_t = D_t / (N q_t(I_t)) has conditional mean (sum of D left) / N <= -delta - S_{t-1} / N under H0, whatever the
    weights are. With R_t = max over the items left of 1 / (N q_t(i)), y_t = Z_t / R_t in [-1, 1] and
    m_t = -(delta + S_{t-1} / N) / R_t the same wealth prod [1 + x_i (y_i - m_i)] is a supermartingale. Equal weights
    give the uniform case back. A bad guide costs items, never validity. (Importance-weighted bets of risk-limiting
    audits: Waudby-Smith, Stark and Ramdas, "RiLACS", arXiv 2107.11323; Shekhar, Xu, Lipton, Liang and Ramdas,
    "Risk-limiting financial audits via weighted sampling without replacement", arXiv 2305.06884.)
    Flip model. With f_t(i) the difference predicted for item i before D_t is seen, and F_t its sum over the items
    left, Z_t = (D_t - f_t(I_t)) / (N q_t(I_t)) has conditional mean (sum of D left - F_t) / N, so that
    m_t = -(delta + (S_{t-1} + F_t) / N) / R_t; y_t = Z_t / R_t stays in [-1, 1], since D and f lie in [-b, 1 - b] for a
    baseline's score b. The rest does not change: a bad flip model costs items, never validity (see flip_model.py).
    Mixture. A weighted mean of such wealths is one again (evals/gate/betting.py: edges of half a margin to sixteen, bet
    by Kelly's rule with the flips' second moment learned from the past).
    Rejection. The mirror wealth, against "(1/N) sum D >= -delta", fails the candidate at 1/beta: a candidate that is
    good enough, ties included, is failed by it with probability at most beta.
    Sure ends. The items left can lose at most the sum of their b_i and win at most the sum of their 1 - b_i. When even
    that cannot change the answer, the gate says so with certainty; at t = N at the latest. No probability is in it, so
    it holds under any order and stopping rule, and goes before what a wealth said earlier.
    Budget. With `max_items` < N the gate ends "futile" at the budget, or as soon as even gains on every item that
    remains within it could not pass the candidate. A futile candidate is not promoted, so alpha holds.

Several tasks (`combine`): the candidate passes when each task passes. The union of the tasks' null hypotheses is
tested by their intersection: each at alpha, no correction (Berger 1982). The smallest e-value is one of the union.
Several candidates: each at its own level (evals/gate/levels.py).

Assumptions. (1) The order is drawn as said, independently of the candidate's answers: the first items of a benchmark
are not a random sample. Weights may depend on the baseline's answers and on texts, not on the candidate's. (2) Each
item has one fixed D: greedy decoding, one engine, one set of settings. (3) The population is this benchmark: the
statement is about these N items, not about other questions. (4) An item that cannot be scored counts as the worst
case for the candidate (`differences`), so it can only make a pass harder (Banuelos and Stark, "Limiting risk by turning
manifest phantoms into evil zombies", 2012). The bound beta is then one on the differences so counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from evals.gate import betting
from evals.gate.betting import Bets, FloatArray
from evals.gate.intervals import PRIOR_OF_INTERVAL, confidence_bounds, shown_margins
from evals.types import Estimate

ACCEPT_BETS = Bets(edges=(0.5, 1.0, 2.0), weights=(0.3, 0.5, 0.2), prior_items=8)
REJECT_BETS = Bets(edges=(1.0, 4.0, 16.0), weights=(0.36, 0.61, 0.03), prior_items=8)
"""One margin is the edge of "no loss" (accept) and of "worse by 2 delta" (reject); the rest is tuned."""


MARGINS = np.concatenate([np.arange(95, 20, -5) / 100, np.arange(20, 10, -1) / 100, np.arange(100, -1, -1) / 1000])
"""Margins of `Gate.smallest_margin`, falling: by five points to 20, by one to 10, then by tenths of a point."""


class Verdict(StrEnum):
    """What the gate says."""

    UNDECIDED = "undecided"
    PASS = "pass"
    FAIL = "fail"
    FUTILE = "futile"


@dataclass(frozen=True)
class GateState:
    """Where a gate stands after a block."""

    decision: Verdict
    reason: str
    """"e-value", "certain" (the items left cannot change it), "exact" (all items), "budget", or empty."""
    num_items: int
    """Items whose answers the gate has seen."""
    num_items_total: int
    decided_at: int | None
    """The item (from 1) at which the decision fell; a block may contain later ones."""
    log_e_pass: float
    """Log e-value against "worse by delta or more"; `inf` where the pass is certain, `-inf` where the fail is."""
    log_e_fail: float
    """Log e-value against "not worse by more than delta"."""
    max_log_e_pass: float = 0.0
    """The largest log e-value of the pass so far: by Ville's inequality the maximum may be compared with 1/alpha."""
    max_at: int = 0
    """The item (from 1) at which it was reached; 0: no e-value was above 1."""

    @property
    def num_left(self) -> int:
        """Items of the benchmark that have not been asked."""
        return self.num_items_total - self.num_items


@dataclass(frozen=True)
class Trajectory:
    """The e-processes item by item, for a plot: arrays (num_items,)."""

    log_e_pass: FloatArray
    log_e_fail: FloatArray
    mean_difference: FloatArray
    """Estimate of the difference over all N items after each item."""


@dataclass
class Fork:
    """Many futures of one gate (leading axis R)."""

    schedule: betting.Schedule
    carry: betting.Carry
    bounds: tuple[float, float]
    bets: tuple[Bets, Bets]
    log_levels: tuple[float, float]

    def update(self, block: FloatArray) -> NDArray[np.int8]:
        """Feed the next differences (R, T); the codes of `betting.verdicts` (R, T) after each."""
        used = self.carry.num_used
        self.carry, path = betting.advance(self.carry, block, self.schedule, self.bounds, self.bets)
        part = self.schedule.block(used, used + block.shape[-1])
        return betting.verdicts(path, part, self.schedule.num_items, self.bounds[0], self.log_levels)


class Gate:
    """One task's gate; feed it the differences in sampling order. Same input, same state: it has no clock."""

    def __init__(
        self,
        num_items: int,
        delta: float,
        *,
        alpha: float = 0.05,
        beta: float = 0.05,
        order_weights: Sequence[float] | FloatArray | None = None,
        ranks: Sequence[float | None] | FloatArray | None = None,
        baseline: Sequence[float | None] | FloatArray | None = None,
        second_moment: float = betting.PRIOR_FLIP_RATE,
        reject_delta: float | None = None,
        max_items: int | None = None,
        stop_early: bool = True,
        accept_bets: Bets = ACCEPT_BETS,
        reject_bets: Bets = REJECT_BETS,
    ) -> None:
        """A gate over `num_items` items with margin `delta` (a share: 0.02 is 2 points).

        `order_weights` (num_items,) are those of a guided order, in sampling order; None is the uniform order.
        The `baseline`'s scores, in the same order (None: not answered yet), bound what an item can lose and win. With
        the `ranks` of its margins (in [0, 1]; None: no margin) they make a flip model of the answers, which needs every
        score. `second_moment` is the mean square of the differences that is expected before the first one, where there
        is no flip model: a wrong one costs items, never validity.

        `reject_delta` is the margin that an early rejection must show, where it is not `delta`: a candidate within it
        is rejected early with probability at most beta; between the two margins the gate may say either; beside all
        answers only `delta` counts. `stop_early=False` decides by all items alone, as `gate=full` does.

        Raises ValueError where a parameter is out of its range.
        """
        _check(num_items, delta, alpha, beta)
        self.num_items, self.delta, self.alpha, self.beta = num_items, delta, alpha, beta
        self.max_items = num_items if max_items is None else min(max_items, num_items)
        self.is_plain, self.stop_early = order_weights is None and ranks is None, stop_early
        weights = np.ones(num_items) if order_weights is None else np.asarray(order_weights, np.float64)
        if weights.shape != (num_items,) or not np.all(np.isfinite(weights) & (weights > 0)):
            raise ValueError(f"order_weights must be {num_items} positive numbers")
        known, self._baseline = _check_known(num_items, ranks, baseline)
        if not (math.isfinite(second_moment) and second_moment > 0):
            raise ValueError(f"second_moment must be positive, not {second_moment}")
        self.second_moment = second_moment
        if self.max_items < 1:
            raise ValueError(f"max_items must be at least 1, not {max_items}")
        # As typed: 0.07 of 100 items is 7, while 0.07 * 100 in floating point is more.
        self._boundary = -float(Fraction(str(delta)) * num_items)
        self.reject_delta = delta if reject_delta is None else reject_delta
        _check(num_items, self.reject_delta, alpha, beta)
        self._reject_boundary = -float(Fraction(str(self.reject_delta)) * num_items)
        self._schedule = betting.make_schedule(weights, known, self._baseline, second_moment)
        self._bets = (accept_bets, reject_bets)
        self._carry = betting.start(accept_bets, reject_bets)
        self._blocks: list[FloatArray] = []
        self._paths: list[betting.Path] = []
        self._state = GateState(Verdict.UNDECIDED, "", 0, num_items, None, 0.0, 0.0)

    @property
    def state(self) -> GateState:
        """Where the gate stands."""
        return self._state

    def update(self, block: Sequence[float] | FloatArray) -> GateState:
        """Feed the differences of the next items, in sampling order.

        Raises ValueError where a difference is not in [-1, 1] or not possible beside the baseline's score, or there are
        more of them than items left.
        """
        d = np.asarray(block, np.float64)
        used = self._carry.num_used
        if d.ndim != 1 or d.size > self.num_items - used:
            raise ValueError(f"a block of shape {d.shape} for {self.num_items - used} items left")
        if not np.all(np.abs(d) <= 1):
            raise ValueError("differences of scores must lie in [-1, 1]; see differences() for unscored items")
        self._check_possible(d, used)
        if not d.size:
            return self._state
        bounds = (self._boundary, self._reject_boundary)
        self._carry, path = betting.advance(self._carry, d, self._schedule, bounds, self._bets)
        self._blocks.append(d)
        self._paths.append(path)
        levels = (math.log(1 / self.alpha), math.log(1 / self.beta))
        part = self._schedule.block(used, used + d.size)
        codes = betting.verdicts(path, part, self.num_items, self._boundary, levels)
        self._state = self._next_state(codes, path, used)
        return self._state

    def _next_state(self, codes: NDArray[np.int8], path: betting.Path, used: int) -> GateState:
        log_pass, log_fail = float(path.log_accept[-1]), float(path.log_reject[-1])
        if codes[-1] >= betting.SURE_ACCEPT:
            log_pass = math.inf if codes[-1] == betting.SURE_ACCEPT else -math.inf
            log_fail = -log_pass
        if not self.stop_early:
            at_end = used + 1 + np.arange(codes.size) == self.num_items
            codes = np.where(at_end, codes, betting.UNDECIDED).astype(np.int8)
        old = self._state
        verdict = _FirstVerdict(old.decision, old.reason, old.decided_at)
        if verdict.decision is Verdict.UNDECIDED:
            verdict = _first_verdict(codes, used, self.num_items)
        sure = _first_verdict(np.where(codes >= betting.SURE_ACCEPT, codes, 0), used, self.num_items)
        if sure.decision not in (Verdict.UNDECIDED, verdict.decision):
            verdict = sure
        now = used + codes.size
        if verdict.decision is Verdict.UNDECIDED and not self._can_pass(float(path.total[-1]), now, log_pass):
            verdict = _FirstVerdict(Verdict.FUTILE, "budget", now)
        top, top_at = old.max_log_e_pass, old.max_at
        if path.log_accept.max() > top:
            top, top_at = float(path.log_accept.max()), used + 1 + int(path.log_accept.argmax())
        verdict_now = (verdict.decision, verdict.reason, now, self.num_items, verdict.decided_at)
        return GateState(*verdict_now, log_pass, log_fail, top, top_at)

    def _can_pass(self, total: float, used: int, log_pass: float) -> bool:
        """Whether gains on all items that are left within the budget would pass the candidate.

        No factor of any bet exceeds 1 + c (u - m) / (l + m), which falls as m grows, and m is smallest when every item
        wins what it can and the flip model expects every wrong answer to be won.
        """
        left = self.max_items - used
        if self.max_items == self.num_items:
            return True
        if left <= 0:
            return False
        if not self.stop_early:
            return True  # all of the budget is asked
        part = self._schedule.block(used, self.max_items)
        won_before = self._won_left(used) - part.won_after  # by this item and those before it
        if total + won_before[-1] - self._boundary > part.lost_after[-1]:
            return True
        best_total = total + np.concatenate([[0.0], won_before[:-1]])
        ahead = 0.0 if part.flip_model is None else part.flip_model.most_ahead
        m = (self._boundary - best_total - ahead) / (self.num_items * part.reach)
        m = np.clip(m, betting.SURE - part.most_lost, part.most_won - betting.SURE)
        largest = np.log1p(self._bets[0].max_loss * (part.most_won - m) / (part.most_lost + m)).sum()
        return bool(log_pass + largest >= math.log(1 / self.alpha))

    def _won_left(self, used: int) -> float:
        """What the items after the first `used` can win together."""
        known = self._baseline[used:]
        return float(np.where(np.isnan(known), 1.0, 1 - known).sum())

    def _check_possible(self, d: FloatArray, used: int) -> None:
        score = self._baseline[used : used + d.size]
        wrong = np.flatnonzero((d < -score - 1e-9) | (d > 1 - score + 1e-9))  # no comparison with nan is true
        if wrong.size:
            i = int(wrong[0])
            raise ValueError(f"item {used + i + 1} of the order: a difference of {d[i]} from a baseline's {score[i]}")

    def trajectory(self) -> Trajectory:
        """The e-processes and the estimate after each item so far."""
        if not self._paths:
            empty = np.zeros(0)
            return Trajectory(empty, empty, empty)
        return Trajectory(
            np.concatenate([p.log_accept for p in self._paths]),
            np.concatenate([p.log_reject for p in self._paths]),
            self._estimates(np.concatenate(self._blocks), self._predicted()),
        )

    def smallest_margin(self, level: float, unit: float = 1.0) -> float | None:
        """The smallest margin that the answers so far show at an error of `level`, on the grid of `MARGINS`.

        None where no margin below 100 points is shown. With `unit` the gate's margin is that share of the one asked for
        and returned (a probability's: 0.8). It is a confidence bound: where the true loss is L, the answer is at most L
        with probability at most `level`. For the answer is the end of an unbroken run of shown margins from the largest
        one down, so it is at most L only where the largest grid margin g <= L is shown, and that one margin's gate,
        whose hypothesis is true, shows it with probability at most `level`. So a margin may be chosen after seeing.
        """
        d = np.concatenate(self._blocks) if self._blocks else np.zeros(0)
        size, found = 32, None
        for begin in range(0, MARGINS.size, size):
            margins = MARGINS[begin : begin + size]
            shown = shown_margins(d, self._schedule, unit * margins, self._bets[0], math.log(1 / level))
            found = float(margins[shown.size - 1 if shown.all() else shown.argmin() - 1]) if shown[0] else found
            if not shown.all():
                break
        return found

    def fork(self, num_runs: int) -> Fork:
        """`num_runs` futures of this gate, each to be fed its own differences."""
        levels = (math.log(1 / self.alpha), math.log(1 / self.beta))
        bounds = (self._boundary, self._reject_boundary)
        return Fork(self._schedule.widen(), self._carry.repeat(num_runs), bounds, self._bets, levels)

    @property
    def baseline(self) -> FloatArray:
        """The baseline's scores (N,) in sampling order; nan where they are not known."""
        return self._baseline

    @property
    def differences(self) -> FloatArray:
        """The differences (n,) so far, in sampling order."""
        return np.concatenate(self._blocks) if self._blocks else np.zeros(0)

    def mean_square(self) -> float:
        """The estimated mean of D^2 over all N items.

        Raises ValueError before the first item.
        """
        return max(0.0, float(self._estimates(self._seen() ** 2)[-1]))

    def flip_rate(self) -> float:
        """The estimated share of all N items on which the two models differ.

        Raises ValueError before the first item.
        """
        return float(self._estimates(np.abs(self._seen()))[-1])

    def _seen(self) -> FloatArray:
        if not self._blocks:
            raise ValueError("no item has been fed yet: there is nothing to estimate")
        return np.concatenate(self._blocks)

    def _predicted(self) -> tuple[FloatArray, FloatArray]:
        """What was predicted of each item so far, and of the items left before it."""
        blocks = [(p.prediction.difference, p.prediction.ahead, p.total.size) for p in self._paths]
        difference, ahead = zip(*((np.broadcast_to(f, n), np.broadcast_to(a, n)) for f, a, n in blocks), strict=True)
        return np.concatenate(difference), np.concatenate(ahead)

    def _estimates(self, d: FloatArray, predicted: tuple[FloatArray, FloatArray] | None = None) -> FloatArray:
        """The estimated mean of all D after each item: the sample mean, or for a guided order a weighted mean.

        (S_{t-1} + F_t) / N + Z_t has the right mean for each t; their weights 1 / R_t^2 are its precision up to a
        factor.
        """
        if self.is_plain:
            return np.asarray(np.cumsum(d) / np.arange(1, d.size + 1), np.float64)
        part = self._schedule.block(0, d.size)
        difference, ahead = (0.0, 0.0) if predicted is None else predicted
        each = (np.cumsum(d) - d + ahead) / self.num_items + (d - difference) * part.shrink * part.reach
        precision = part.reach**-2.0
        estimates = np.cumsum(each * precision) / np.cumsum(precision)
        if d.size == self.num_items:
            estimates[-1] = d.mean()
        return estimates

    def confidence_sequence(self, confidence: float = 0.95) -> Estimate:
        """The mean difference over all N items, with an interval that is valid whenever one stops, for any reason.

        Raises ValueError before the first item.
        """
        d = self._seen()
        prior = min(self.second_moment, PRIOR_OF_INTERVAL)
        lo, hi = confidence_bounds(d, self._schedule, 1 - confidence, prior)
        value = min(max(float(self._estimates(d, self._predicted())[-1]), lo), hi)
        method = f"confidence sequence {confidence:.0%}, valid at any stopping time"
        if d.size == self.num_items:
            lo = hi = value
            method = "exact: all items of the benchmark"
        return Estimate(value, lo, hi, int(d.size), method=method)


@dataclass(frozen=True)
class _FirstVerdict:
    decision: Verdict
    reason: str
    decided_at: int | None


def _first_verdict(codes: NDArray[np.int8], used: int, num_items: int) -> _FirstVerdict:
    if not codes.any():
        return _FirstVerdict(Verdict.UNDECIDED, "", None)
    first = int((codes != betting.UNDECIDED).argmax())
    code, at = int(codes[first]), used + first + 1
    decision = Verdict.PASS if code in (betting.E_ACCEPT, betting.SURE_ACCEPT) else Verdict.FAIL
    if code in (betting.E_ACCEPT, betting.E_REJECT):
        return _FirstVerdict(decision, "e-value", at)
    return _FirstVerdict(decision, "exact" if at == num_items else "certain", at)


def _check_known(
    num_items: int,
    ranks: Sequence[float | None] | FloatArray | None,
    baseline: Sequence[float | None] | FloatArray | None,
) -> tuple[FloatArray | None, FloatArray]:
    """The margins' ranks, if there are any, and the baseline's scores, nan where they are not known."""
    scores = np.full(num_items, math.nan) if baseline is None else _with_gaps(baseline)
    known = None if ranks is None else _with_gaps(ranks)
    if known is not None and (baseline is None or np.isnan(scores).any()):
        raise ValueError("a flip model needs both the margins' ranks and the baseline's scores, all of them")
    for name, values in (("ranks", known), ("baseline", scores)):
        if values is not None and not np.all(np.isnan(values) | ((values >= 0) & (values <= 1))):
            raise ValueError(f"{name} must lie in [0, 1]")
    if scores.shape != (num_items,) or (known is not None and known.shape != (num_items,)):
        raise ValueError(f"ranks and baseline must be {num_items} numbers")
    return known, scores


def _with_gaps(values: Sequence[float | None] | FloatArray) -> FloatArray:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _check(num_items: int, delta: float, alpha: float, beta: float) -> None:
    if num_items < 1:
        raise ValueError(f"a gate needs at least one item, not {num_items}")
    if not 0 <= delta < 1:
        raise ValueError(f"delta is a share of the score in [0, 1), not {delta} (2 points are 0.02)")
    for name, level in (("alpha", alpha), ("beta", beta)):
        if not 0 < level < 1:
            raise ValueError(f"{name} is an error probability between 0 and 1, not {level}")


def differences(candidate: Sequence[float | None], baseline: Sequence[float | None]) -> FloatArray:
    """Candidate's score minus baseline's, item by item: (n,) in [-1, 1].

    A score of the candidate that is missing counts as 0, one of the baseline as 1: the worst case for the candidate.
    """
    if len(candidate) != len(baseline):
        raise ValueError(f"{len(candidate)} scores of the candidate, {len(baseline)} of its baseline")
    c = np.array([0.0 if s is None else s for s in candidate], np.float64)
    b = np.array([1.0 if s is None else s for s in baseline], np.float64)
    return np.asarray(c - b, np.float64)


@dataclass(frozen=True)
class Combined:
    """All tasks' gates together."""

    decision: Verdict
    because: str
    """The task that failed or is futile; empty otherwise."""
    log_e_pass: float
    """The smallest of the tasks: the e-value against "some task is worse by its delta or more"."""
    undecided: tuple[str, ...]
    """Tasks that still need answers, in their order."""


def combine(states: Mapping[str, GateState]) -> Combined:
    """The candidate passes when each task passes; the first failed task ends it.

    A futile task does not: another one may still fail, and its answers say what a larger budget would take.

    Raises ValueError without a task: nothing tested is nothing passed.
    """
    if not states:
        raise ValueError("no task, so there is nothing to decide")
    undecided = tuple(task for task, state in states.items() if state.decision is Verdict.UNDECIDED)
    log_e_pass = min(state.log_e_pass for state in states.values())
    first = {state.decision: task for task, state in reversed(list(states.items()))}
    if Verdict.FAIL in first:
        return Combined(Verdict.FAIL, first[Verdict.FAIL], log_e_pass, undecided)
    if undecided:
        return Combined(Verdict.UNDECIDED, "", log_e_pass, undecided)
    if Verdict.FUTILE in first:
        return Combined(Verdict.FUTILE, first[Verdict.FUTILE], log_e_pass, undecided)
    return Combined(Verdict.PASS, "", log_e_pass, undecided)


def both(main: GateState, guard: GateState) -> GateState:
    """Two gates on the same items of one task: it passes when both pass and fails when either fails."""
    one, other = sorted((main, guard), key=lambda state: _RANK[state.decision])
    if one.decision is other.decision is Verdict.PASS:  # the later one completed the pass
        one, other = sorted((main, guard), key=lambda state: -(state.decided_at or 0))
    less = min(main, guard, key=lambda state: state.max_log_e_pass)
    return replace(
        one,
        log_e_pass=min(main.log_e_pass, guard.log_e_pass),
        log_e_fail=max(main.log_e_fail, guard.log_e_fail),
        max_log_e_pass=less.max_log_e_pass,
        max_at=less.max_at,
    )


_RANK = {Verdict.FAIL: 0, Verdict.FUTILE: 1, Verdict.UNDECIDED: 2, Verdict.PASS: 3}
"""Which of two gates' verdicts is the task's."""
