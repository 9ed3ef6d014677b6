"""What a decision claims, audited: routes around the gate, other populations, printed intervals, and items needed.

    python -m benchmarks.decision --out benchmarks/results/decision.md              # 2,000 repetitions a cell
    python -m benchmarks.decision --only routes --only items --quick                # a tenth of them, some tables

Every table runs the product's own code (`evals/gate/`): the gates themselves item by item where an interval is printed,
and `benchmarks.gate.run_gates`, the same functions with a leading axis of replications, elsewhere. `--answers FOLDER`
are recorded answers (benchmarks/answers.py) with a variant `none`; all variants and tasks in it are used.

Populations on the boundary are recorded answers whose margin is set to their true loss, and constructed ones. The
price's part of the audit is `benchmarks/price.py`.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate import Runs, Side, percent, read_answers, run_gates, table
from evals.gate.gate import Gate
from evals.gate.levels import attempt_level
from evals.gate.ordering import guide_weights, margin, margin_ranks, probability_weights
from evals.gate.population import questions_like_these
from evals.gate.scores import EQUAL_STRICTNESS, right_probability
from evals.gate.sequential import PRIOR_OF_PROBABILITY, GateRule, draw_orders
from evals.stats import mean_estimate
from evals.types import ItemOutcome, SamplingOrder, TaskResult

ALPHA = 0.05
GUARDS = (1.5, 2.5)
"""The guard's margin on accuracy over the declared one: what is audited."""
GUARD = GUARDS[0]
MARGINS = (0.02, 0.03, 0.05)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """A variant beside its baseline on one task: arrays (N,) by item."""

    variant: str
    task: str
    right: Array
    """The baseline's accuracy, and its probability of the right choice."""
    p: Array
    d_accuracy: Array
    d_probability: Array
    margins: tuple[float | None, ...]
    costs: tuple[float, ...] | None

    @property
    def name(self) -> str:
        """Variant and task."""
        return f"{self.variant}, {self.task}"

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.p)

    def take(self, items: NDArray[np.int64]) -> Pair:
        """The same of these items, in this order; an item may occur more than once."""
        return replace(
            self,
            right=self.right[items],
            p=self.p[items],
            d_accuracy=self.d_accuracy[items],
            d_probability=self.d_probability[items],
            margins=tuple(self.margins[i] for i in items),
            costs=None if self.costs is None else tuple(self.costs[i] for i in items),
        )


@dataclass(frozen=True)
class Gates:
    """What one task is tested by: the gates' sides, and the weights of a guided order (None: uniform)."""

    sides: tuple[Side, ...]
    weights: Array | None

    def run(self, rng: np.random.Generator, num_runs: int, alpha: float = ALPHA, budget: int | None = None) -> Runs:
        """Many orders."""
        levels = (alpha, ALPHA)
        return run_gates(self.sides, rng, num_runs=num_runs, levels=levels, weights=self.weights, budget=budget)


def accuracy_gates(pair: Pair, delta: float, order: str = "guided") -> Gates:
    """`gate.score=accuracy`: the default before the probability (`order` guided), and the uniform order."""
    if order == "uniform":
        return Gates((Side(pair.d_accuracy, delta, pair.right),), None)
    guide = guide_weights(pair.margins, pair.costs)
    return Gates((Side(pair.d_accuracy, delta, pair.right, guide.ranks),), guide.weights)


def probability_gates(pair: Pair, delta: float, *, order: str = "guided", guard: float | None = GUARD) -> Gates:
    """`gate.score=probability`: the main gate at equal strictness, and the guard on accuracy."""
    is_guided = order == "guided"
    main = Side(pair.d_probability, EQUAL_STRICTNESS * delta, pair.p, second_moment=PRIOR_OF_PROBABILITY)
    sides = [main]
    if guard is not None:
        ranks = margin_ranks(pair.margins) if is_guided else None
        sides.append(Side(pair.d_accuracy, guard * delta, pair.right, ranks, reject_delta=delta))
    return Gates(tuple(sides), probability_weights(pair.p.tolist()) if is_guided else None)


def recorded_pairs(folder: Path, baseline: str = "none") -> list[Pair]:
    """Every recorded variant beside the baseline."""
    answers = read_answers(folder)
    pairs = []
    for (variant, task), items in answers.items():
        if variant == baseline:
            continue
        base = answers[baseline, task]
        ids = sorted(items.keys() & base.keys())
        p, q = (
            np.array([right_probability(one[i]["loglikelihoods"], one[i]["target"]) for i in ids], np.float64)
            for one in (base, items)
        )
        if np.isnan(p).any() or np.isnan(q).any():
            continue
        right, ours = (np.array([one[i]["score"] for i in ids], np.float64) for one in (base, items))
        margins = tuple(margin(base[i]["loglikelihoods"], base[i]["target"]) for i in ids)
        costs = (
            tuple(float(base[i]["num_tokens"]) for i in ids) if all(base[i].get("num_tokens") for i in ids) else None
        )
        pairs.append(Pair(variant, task, right, p, ours - right, q - p, margins, costs))
    return pairs


def constructed_pair(num_items: int, flips: float, loss: float, rng: np.random.Generator) -> Pair:
    """Two-choice questions: a baseline's log-odds, a candidate's with noise, exactly `loss` of accuracy lost.

    Items beyond the loss that the noise gives are turned from right to wrong (or back) where the odds are nearest.
    """
    odds = rng.normal(0.6, 2.0, num_items)
    right = (odds > 0).astype(float)
    noise = rng.normal(0, 1, num_items)
    scale = 4.0
    for _ in range(40):  # the noise that flips so many answers
        rate = float(((odds + scale * noise > 0) != (right > 0)).mean())
        scale *= 1.1 if rate < flips else 0.9
    other = odds + scale * noise
    wanted = round(loss * num_items)
    while (lost := round(float((right - (other > 0)).sum()))) != wanted:
        candidates = np.flatnonzero((other > 0) == (lost < wanted))
        nearest = candidates[np.argsort(np.abs(other[candidates]))[: abs(lost - wanted)]]
        other[nearest] *= -1
    p, q = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-other))
    return Pair(
        "constructed", f"N {num_items}", right, p, (other > 0) - right, q - p, tuple(np.abs(odds).tolist()), None
    )


def losing(pair: Pair, loss: float, rng: np.random.Generator) -> Pair:
    """The pair changed until exactly `loss` of accuracy is lost on the whole set.

    Answers that both have right become wrong, drawn at random, with the probability that a lost answer of this variant
    kept; or lost ones become the baseline's again.
    """
    d, dp = pair.d_accuracy.copy(), pair.d_probability.copy()
    missing = round(loss * pair.num_items) + round(float(d.sum()))
    if missing > 0:
        lost = np.flatnonzero(d < 0)
        share = (pair.p + pair.d_probability)[lost] / pair.p[lost] if lost.size else np.array([0.5])
        chosen = rng.choice(np.flatnonzero((d == 0) & (pair.right > 0)), missing, replace=False)
        d[chosen] = -1.0
        dp[chosen] = pair.p[chosen] * (rng.choice(np.minimum(share, 1.0), missing) - 1)
    elif missing < 0:
        chosen = rng.choice(np.flatnonzero(d < 0), -missing, replace=False)
        d[chosen] = dp[chosen] = 0.0
    return replace(pair, d_accuracy=d, d_probability=dp)


@dataclass(frozen=True)
class Audit:
    """What the tables are made of."""

    pairs: list[Pair]
    num_runs: int
    rng: np.random.Generator

    def error(self, share: float = ALPHA, num_runs: int | None = None) -> str:
        """One standard error of a share, in %."""
        return percent(math.sqrt(share * (1 - share) / (num_runs or self.num_runs)))


# --- routes around the gate ---------------------------------------------------------------------------------------


def on_the_boundary(pair: Pair, score: str) -> Gates | None:
    """The pair's gates with the margin at its true loss, guided; None where nothing is lost."""
    loss = -float((pair.d_probability if score == "probability" else pair.d_accuracy).mean())
    if loss < 0.002:
        return None
    if score == "accuracy":
        return accuracy_gates(pair, loss)
    gates = probability_gates(pair, loss / EQUAL_STRICTNESS, guard=None)
    side = replace(gates.sides[0], delta=loss)  # exactly
    return replace(gates, sides=(side,))


def boundary_table(audit: Audit) -> Iterator[str]:
    """One candidate, one order: false promotions at the boundary."""
    yield f"""## One candidate at the boundary

The margin is the true loss of the recorded variant on the whole set, so that it must not be promoted; alpha = 5%, share
promoted in % of {audit.num_runs} orders, guided order. One standard error at 5% is {audit.error()}. The guard: its own
margin is the variant's true loss of accuracy, the main gate's margin is far away."""
    yield ""
    rows: list[list[object]] = []
    worst: dict[str, float] = {}
    for pair in audit.pairs:
        row: list[object] = [pair.variant, pair.task, pair.num_items]
        for score in ("probability", "accuracy"):
            gates = on_the_boundary(pair, score)
            row.append("-" if gates is None else _false(gates, audit, worst, score))
        loss = -float(pair.d_accuracy.mean())
        if loss >= 0.002:
            gates = probability_gates(pair, loss)
            main, guard = replace(gates.sides[0], delta=0.9), replace(gates.sides[1], delta=loss, reject_delta=loss)
            row.append(_false(replace(gates, sides=(main, guard)), audit, worst, "guard"))
        else:
            row.append("-")
        rows.append(row)
    yield from table(["variant", "task", "N", "probability", "accuracy", "guard"], rows)
    yield ""
    yield "Largest: " + ", ".join(f"{name} {percent(share)}" for name, share in worst.items()) + "."


def _false(gates: Gates, audit: Audit, worst: dict[str, float], name: str) -> str:
    share = float(gates.run(audit.rng, audit.num_runs).passed.mean())
    worst[name] = max(worst.get(name, 0.0), share)
    return percent(share)


def routes_table(audit: Audit) -> Iterator[str]:
    """Ways to have a bad candidate promoted after all, each as it was and as it is."""
    yield f"""## Routes around the gate

Candidates exactly at the boundary, nominal 5%, share of {audit.num_runs} attempts that end with a promotion, in %, on
constructed answers (N = 600, 11% flips, a loss of 2 points at a margin of 2 points). "free": each draw, candidate, task
or rule tested at 5% as if it were the only one. "now": as the product counts it."""
    yield ""
    rows = [[name, *(percent(x) if isinstance(x, float) else x for x in values)] for name, *values in _routes(audit)]
    yield from table(["route", "free", "now", "why"], rows)


def _routes(audit: Audit) -> Iterator[tuple[object, ...]]:
    passes = {level: _independent_passes(audit, level) for level in _levels()}

    def any_of(levels: Sequence[float]) -> float:
        """Share of runs in which any of several candidates, each with an order and answers of its own, passes."""
        return float(np.logical_or.reduce([audit.rng.permutation(passes[level]) for level in levels]).mean())

    for num in (2, 5, 10):
        why = f"{_num_orders(num)} order in {num} tries of one candidate, seeds 0 to {num - 1}"
        yield (
            f"another seed until it passes, {num} tries",
            any_of([ALPHA] * num),
            any_of([attempt_level(ALPHA, 1)]),
            why,
        )
    for num in (4, 8, 10):
        counted = [attempt_level(ALPHA, batch) for batch in range(1, num + 1)]
        yield f"{num} candidates, one by one", any_of([ALPHA] * num), any_of(counted), "alpha 6 / (pi^2 k^2)"
        together = [attempt_level(ALPHA, 1, num)] * num
        yield f"{num} candidates in one --multirun", any_of([ALPHA] * num), any_of(together), "6 alpha / (pi^2 K)"
    three = [attempt_level(ALPHA, batch, 4) for batch in (1, 2, 3) for _ in range(4)]
    yield "three batches of 4 candidates", any_of([ALPHA] * 12), any_of(three), "batch b of m: 6 alpha / (pi^2 b^2 m)"
    yield "a uniform order that 4 candidates share", *_shared_order(audit), "the union bound needs no independence"
    chosen = any_of([ALPHA] * 4)
    all_pass = float(np.logical_and.reduce([audit.rng.permutation(passes[ALPHA]) for _ in range(4)]).mean())
    yield "tasks chosen after the answers, 4 null tasks", chosen, all_pass, "the declared tasks decide, all of them"
    guided, uniform = passes[ALPHA], _independent_passes(audit, ALPHA, order="uniform")
    switched = float((audit.rng.permutation(guided) | audit.rng.permutation(uniform)).mean())
    yield "the other order when the first fails", switched, any_of([attempt_level(ALPHA, 1)]), "the rule is declared"
    yield "margin chosen after the answers", *_margin_after(audit), "margins nest: the smallest one shown is a bound"


def _levels() -> list[float]:
    counted = {attempt_level(ALPHA, batch) for batch in range(1, 11)}
    together = {attempt_level(ALPHA, batch, size) for batch in (1, 2, 3) for size in (4, 8, 10)}
    return sorted({ALPHA} | counted | together)


def _boundary_pair(rng: np.random.Generator) -> Pair:
    return constructed_pair(600, 0.11, 0.02, rng)


def _independent_passes(audit: Audit, level: float, order: str = "guided") -> NDArray[np.bool_]:
    """Whether each of `num_runs` null candidates passes at a level, over ten sets of constructed answers."""
    found = []
    for _ in range(10):
        gates = accuracy_gates(_boundary_pair(audit.rng), 0.02, order)
        found.append(gates.run(audit.rng, max(1, audit.num_runs // 10), level).passed)
    return np.concatenate(found)


def _num_orders(num_tries: int) -> int:
    """Orders that one candidate meets when it is tried again with other seeds, through the product's own function."""
    items = tuple(ItemOutcome(i, float(i % 3 > 0), (-1.0, -1.5 - i % 7), 0) for i in range(200))
    baseline = {"t": TaskResult("t", "acc", mean_estimate([one.score for one in items]), items, 200, "d")}
    drawn: set[SamplingOrder] = set()
    for _ in range(num_tries):  # a seed is no argument of it
        orders = draw_orders(baseline, GateRule({"t": 0.02}), guided_identity="candidate", uniform_identity="suite")
        drawn.add(orders["t"])
    return len(drawn)


def _shared_order(audit: Audit) -> tuple[float, float]:
    """Four null candidates of one baseline in one uniform order: any pass, at 5% each and as one batch of four."""
    base = _boundary_pair(audit.rng)
    others = [
        losing(replace(base, d_accuracy=np.zeros(600), d_probability=np.zeros(600)), 0.02, audit.rng) for _ in range(4)
    ]
    found = []
    for level in (ALPHA, attempt_level(ALPHA, 1, 4)):
        seed = int(audit.rng.integers(2**32))
        runs = [
            accuracy_gates(one, 0.02, "uniform").run(np.random.default_rng(seed), audit.num_runs, level).passed
            for one in others
        ]  # the same generator: the same orders
        found.append(float(np.logical_or.reduce(runs).mean()))
    return found[0], found[1]


def _margin_after(audit: Audit) -> tuple[float, float]:
    """Share of runs in which the smallest margin shown at the best of ten looks is at most the true loss."""
    misses, num_runs = [0, 0], max(50, audit.num_runs // 4)
    pair = _boundary_pair(audit.rng)
    levels = (ALPHA, attempt_level(ALPHA, 1))
    for _ in range(num_runs):
        order = audit.rng.permutation(pair.num_items)
        gate = Gate(pair.num_items, 0.02, baseline=pair.right[order])
        best = [1.0, 1.0]
        for begin in range(0, 500, 100):
            gate.update(pair.d_accuracy[order[begin : begin + 100]])
            best = [min(old, gate.smallest_margin(level) or 1.0) for old, level in zip(best, levels, strict=True)]
        misses = [count + (one <= 0.02) for count, one in zip(misses, best, strict=True)]
    return misses[0] / num_runs, misses[1] / num_runs


# --- the population -----------------------------------------------------------------------------------------------


def population_table(audit: Audit) -> Iterator[str]:
    """A budget is no population: a variant that is worse on the whole set is not promoted by a part of it."""
    budgets = (100, 200, 300, 500, 1000, None)
    yield f"""## A part of the items is a budget, not the population

Variants that are exactly 3 points worse on the whole set (recorded answers, changed at random until they are; and
constructed ones), margin 2 points, alpha 5%: share promoted in % of {audit.num_runs} orders, by budget. "subset of
100": as `suite=small` was until now, 100 items drawn at random and taken for the whole population. One standard error
at 5% is {audit.error()}. By accuracy, and by probability with a guard on accuracy of so many margins: a guard of 1.5
margins is one of 3 points, so 3 points worse is on its boundary; behind a wider guard a variant that loses accuracy and
keeps its probabilities is promoted, as the claim then allows."""
    yield ""
    pairs = [losing(pair, 0.03, audit.rng) for pair in audit.pairs]
    pairs += [
        constructed_pair(size, flips, 0.03, audit.rng) for size, flips in ((570, 0.05), (1838, 0.05), (1838, 0.2))
    ]
    rows: list[list[object]] = []
    largest: dict[str, float] = {}
    for pair in pairs:
        old = _subset_passes(pair, audit)
        loss = -100 * float(pair.d_probability.mean())
        tested = {f"probability, guard {guard:g}": probability_gates(pair, 0.02, guard=guard) for guard in GUARDS}
        for name, gates in ({"accuracy": accuracy_gates(pair, 0.02)} | tested).items():
            runs = gates.run(audit.rng, audit.num_runs)
            shares = [float((runs.passed & (runs.num_items <= (budget or math.inf))).mean()) for budget in budgets]
            largest[name] = max(largest.get(name, 0.0), *shares)
            about: list[object] = [pair.variant, pair.task, pair.num_items, f"{loss:.1f}", name, percent(old)]
            rows.append([*about, *map(percent, shares)])
    header = ["variant", "task", "N", "points of probability lost", "score", "subset of 100"]
    yield from table([*header, *("all" if one is None else str(one) for one in budgets)], rows)
    yield ""
    yield "Largest share: " + ", ".join(f"{name} {percent(share)}%" for name, share in largest.items()) + "."


def _subset_passes(pair: Pair, audit: Audit) -> float:
    """Share promoted where 100 random items are the population: each subset once, by accuracy in the guided order."""
    passed = []
    for _ in range(max(1, audit.num_runs // 4)):
        part = pair.take(audit.rng.choice(pair.num_items, 100, replace=False))
        passed.append(accuracy_gates(part, 0.02).run(audit.rng, 1).passed[0])
    return float(np.mean(passed))


# --- intervals ----------------------------------------------------------------------------------------------------


def coverage_table(audit: Audit) -> Iterator[str]:
    """Every printed interval against what it names."""
    yield f"""## What the printed 95% intervals cover

Share in % of {audit.num_runs} runs, each of the product's gates at margin 2 points, in blocks of 32. "benchmark": the
mean over all N items, over orders of the recorded answers. "questions like these": the mean of the source; the N items
of each run are drawn from the recorded ones with replacement. "stopped": where the gate stopped. "budget": at 100 items
at the latest. "all": every item asked (the benchmark's interval has no width then). "width": mean, in points."""
    yield ""
    rows: list[list[object]] = []
    smallest = 1.0
    for pair in _spread(audit.pairs):
        for score, order in (("probability", "guided"), ("accuracy", "guided"), ("probability", "uniform")):
            row: list[object] = [pair.variant, pair.task, score, order]
            for kind in ("stopped", "budget", "all"):
                found = _coverage(pair, score, order, kind, audit)
                for share, width in found:
                    smallest = min(smallest, share)
                    row += [percent(share), f"{100 * width:.1f}"]
            rows.append(row)
    header = ["variant", "task", "score", "order"]
    for kind in ("stopped", "budget", "all"):
        header += [f"benchmark, {kind}", "width", f"questions like these, {kind}", "width"]
    yield from table(header, rows)
    yield ""
    yield f"Smallest: {percent(smallest)}%."


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """A pair of each task, each of another variant where there is one."""
    tasks, variants = list(dict.fromkeys(p.task for p in pairs)), list(dict.fromkeys(p.variant for p in pairs))
    wanted = {(task, variants[number % len(variants)]) for number, task in enumerate(tasks)}
    return [pair for pair in pairs if (pair.task, pair.variant) in wanted]


def _coverage(pair: Pair, score: str, order: str, kind: str, audit: Audit) -> list[tuple[float, float]]:
    """Coverage and mean width of the benchmark's interval and of that for questions like these."""
    hits, widths = np.zeros(2), np.zeros(2)
    true_source = float(_differences(pair, score).mean())
    for number in range(audit.num_runs):
        sample = pair.take(audit.rng.integers(0, pair.num_items, pair.num_items))
        gate = _asked(sample, score, order, kind, audit.rng)
        benchmark, source = gate.confidence_sequence(), questions_like_these(gate, seed=number)
        truths = (float(_differences(sample, score).mean()), true_source)
        for place, (one, truth) in enumerate(zip((benchmark, source), truths, strict=True)):
            hits[place] += one.lo - 1e-9 <= truth <= one.hi + 1e-9
            widths[place] += one.hi - one.lo
    return [(float(h), float(w)) for h, w in zip(hits / audit.num_runs, widths / audit.num_runs, strict=True)]


def _differences(pair: Pair, score: str) -> Array:
    return pair.d_probability if score == "probability" else pair.d_accuracy


def _asked(pair: Pair, score: str, order: str, kind: str, rng: np.random.Generator) -> Gate:
    """A gate of the product after it was asked in one order."""
    n, base = pair.num_items, pair.p if score == "probability" else pair.right
    gates = probability_gates(pair, 0.02, guard=None) if score == "probability" else accuracy_gates(pair, 0.02)
    weights = gates.weights if order == "guided" else None
    drawn = np.argsort(rng.exponential(size=n) / (1.0 if weights is None else weights))
    side = gates.sides[0]
    gate = Gate(
        n,
        side.delta,
        order_weights=None if weights is None else weights[drawn],
        ranks=None if weights is None or side.ranks is None else side.ranks[drawn],
        baseline=base[drawn],
        second_moment=side.second_moment,
        stop_early=kind != "all",
    )
    d = side.d[drawn]
    size = n if kind == "all" else 32
    for begin in range(0, min(n, 96) if kind == "budget" else n, size):
        if gate.update(d[begin : begin + size]).decision != "undecided":
            break
    return gate


# --- items --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One pair under one margin: the old default beside the new one, with each guard."""

    pair: Pair
    delta: float
    old: Runs
    new: tuple[Runs, ...]
    plain: Runs
    """Uniform order, accuracy."""

    def factor(self, guard: int) -> float:
        """Times fewer items."""
        return float(np.median(self.old.num_items) / np.median(self.new[guard].num_items))

    def kind(self, guard: int) -> str:
        """What both say in most orders: pass, fail, or mixed where they differ."""
        both = float(self.old.passed.mean()), float(self.new[guard].passed.mean())
        return "pass" if min(both) > 0.5 else "fail" if max(both) < 0.5 else "mixed"


def items_table(audit: Audit) -> Iterator[str]:
    """Items to a verdict, the old default beside the new one."""
    yield f"""## Items needed

Median items to a verdict in {audit.num_runs} orders of recorded answers, alpha = beta = 5%, all items as the budget.
"old": guided order, accuracy. "new": probability at {EQUAL_STRICTNESS:g} of the margin, with a guard on accuracy that
passes at 1.5 or 2.5 margins and rejects at one. "uniform": accuracy, uniform order. Factor: old / new. "passed": share
of orders in %. Cells in which old and new say different things in most orders are "mixed": their margin lies between
the two losses."""
    yield ""
    cells = []
    for pair in audit.pairs:
        for delta in MARGINS:
            old = accuracy_gates(pair, delta).run(audit.rng, audit.num_runs)
            new = tuple(probability_gates(pair, delta, guard=g).run(audit.rng, audit.num_runs) for g in GUARDS)
            plain = accuracy_gates(pair, delta, "uniform").run(audit.rng, audit.num_runs)
            cells.append(Cell(pair, delta, old, new, plain))
    header = "variant|task|N|accuracy lost|probability lost|margin|uniform|old|passed"
    for guard in GUARDS:
        header += f"|new, guard {guard:g}|passed|verdict|factor"
    yield from table(header.split("|"), [_items_row(cell) for cell in cells])
    yield ""
    yield from _items_summary(cells)


def _items_row(cell: Cell) -> list[object]:
    pair = cell.pair
    lost = [f"{-100 * float(d.mean()):.1f}" for d in (pair.d_accuracy, pair.d_probability)]
    about: list[object] = [pair.variant, pair.task, pair.num_items, *lost, f"{100 * cell.delta:g}"]
    about += [f"{np.median(cell.plain.num_items):.0f}", *_median_and_passed(cell.old)]
    for guard, runs in enumerate(cell.new):
        about += [*_median_and_passed(runs), cell.kind(guard), f"{cell.factor(guard):.2f}"]
    return about


def _median_and_passed(runs: Runs) -> tuple[str, str]:
    return f"{np.median(runs.num_items):.0f}", percent(float(runs.passed.mean()))


def _items_summary(cells: Sequence[Cell]) -> Iterator[str]:
    for guard, times in enumerate(GUARDS):
        name = f"guard {times:g} margins"
        for kind in ("pass", "fail", "mixed"):
            factors = [cell.factor(guard) for cell in cells if cell.kind(guard) == kind]
            if factors:
                text = f"geometric mean {_mean(factors)}, smallest {min(factors):.2f}"
                yield f"- {name}, {kind}: {len(factors)} cells, {text}"
        passing = [cell for cell in cells if cell.kind(guard) == "pass"]
        early = [c.factor(guard) for c in passing if np.median(c.old.num_items) < 0.8 * c.pair.num_items]
        if early:
            yield f"- {name}, pass, old stops before 80% of N: {len(early)} cells, geometric mean {_mean(early)}"
        for variant in dict.fromkeys(cell.pair.variant for cell in passing):
            factors = [cell.factor(guard) for cell in passing if cell.pair.variant == variant]
            yield f"- {name}, pass, {variant}: {len(factors)} cells, geometric mean {_mean(factors)}"
    pairs = [cell.pair for cell in cells[:: len(MARGINS)]]
    means = np.array([[float(d.mean()) for d in (one.d_accuracy, one.d_probability)] for one in pairs])
    slope = float((means[:, 0] * means[:, 1]).sum() / (means[:, 0] ** 2).sum())
    correlation = float(np.corrcoef(means.T)[0, 1]) if len(means) > 2 else math.nan
    yield f"- mean differences of probability on those of accuracy: slope {slope:.2f}, correlation {correlation:.2f}"


def _mean(factors: Sequence[float]) -> str:
    return f"{math.exp(np.mean(np.log(factors))):.2f}"


def lockstep_table(audit: Audit) -> Iterator[str]:
    """Questions asked of baseline and candidate together, guided and in lockstep."""
    num_runs = max(20, audit.num_runs // 20)
    yield f"""## Lockstep

Questions asked of baseline and candidate together for the first candidate of a baseline (median of {num_runs} orders,
constructed answers, no loss, probability with guard). "guided": the baseline is asked every item. "lockstep": both are
asked the same items of one uniform order; bets know nothing of the baseline's other scores. `order=auto` is in lockstep
above 2,000 items."""
    yield ""
    rows: list[list[object]] = []
    for num_items in (500, 1000, 2000, 10_000):
        for flips in (0.03, 0.1):
            pair = constructed_pair(num_items, flips, 0.0, audit.rng)
            for delta in (0.02, 0.05):
                guided = np.median(probability_gates(pair, delta).run(audit.rng, num_runs).num_items) + num_items
                gates = probability_gates(pair, delta, order="uniform")
                blind = replace(gates, sides=tuple(replace(side, baseline=None) for side in gates.sides))
                both = 2 * np.median(blind.run(audit.rng, num_runs).num_items)
                rows.append([num_items, f"{100 * flips:g}", f"{100 * delta:g}", f"{guided:.0f}", f"{both:.0f}"])
                rows[-1].append(f"{guided / both:.2f}")
    yield from table(["N", "flips, %", "margin", "guided", "lockstep", "factor"], rows)


TABLES: dict[str, Callable[[Audit], Iterable[str]]] = {
    "boundary": boundary_table,
    "routes": routes_table,
    "population": population_table,
    "coverage": coverage_table,
    "items": items_table,
    "lockstep": lockstep_table,
}


def main() -> None:
    """Print the tables, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, default=Path("benchmarks/answers/2026-11-25"), metavar="FOLDER")
    parser.add_argument("--only", action="append", choices=list(TABLES), help="these tables; all without it")
    parser.add_argument("--task", action="append", help="these tasks of the recorded answers; all without it")
    parser.add_argument("--quick", action="store_true", help="a tenth of the 2,000 repetitions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    args = parser.parse_args()
    rng, begin = np.random.default_rng(args.seed), time.monotonic()
    pairs = [pair for pair in recorded_pairs(args.answers) if not args.task or pair.task in args.task]
    num_runs = 200 if args.quick else 2000
    names = args.only or list(TABLES)
    lines = [
        "# What a decision claims, audited",
        "",
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {os.cpu_count()} cores of {platform.machine()}, load "
        f"average {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}, seed "
        f"{args.seed}, {num_runs} repetitions a cell. Recorded answers: {args.answers}. No figure here depends on the "
        f"machine's speed.",
        "",
    ]
    for name in names:
        lines += [*TABLES[name](Audit(pairs, num_runs, rng)), ""]
        print("\n".join(lines), flush=True)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")
    lines.append("The price's noise, drift and intervals: `benchmarks/price.py`.")
    lines.append(f"Took {time.monotonic() - begin:.0f} s.")
    print("\n".join(lines[-2:]))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
