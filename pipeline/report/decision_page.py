"""The decision as a record: `decision.json` for machines, `decision.html` for a manager, `gate.png` for the curious.

    record = make_record(model, ranking, index, candidates, baseline, gate)
    write(record, folder)

The page says what was decided, what it saves, what quality was lost, how sure that is, and why the other variants are
not promoted. It explains every term of statistics. It is one file without a script, and needs no network.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np

from core.files import write_atomic, write_json
from evals.config import GateConfig
from evals.cost.price_ratio import price_ratio
from evals.decide.decide import Loss, Ranking
from evals.decide.evidence import Evidence, busy_machine, mean_quality, ratio_text
from evals.decide.noise_floor import TaskFloor, task_floor
from evals.decide.task_gates import gates_of
from evals.gate.gate import Gate
from evals.types import Decision, Estimate, ItemOutcome, Money, PriceRounds, QualityReport, TaskGate
from pipeline.report.text import MISSING, action_text

RECORD, PAGE, PICTURE = "decision.json", "decision.html", "gate.png"
HEADS = {
    "promote": ("Promote", "yes"),
    "reject": ("Rejected:", "no"),
    "undecided": ("Not decided:", "open"),
    "hold": ("Not promoted:", "no"),
}
"""A decision's action -> how the page opens, and the class of its color."""
SCORE_TEXTS = {"accuracy": "accuracy", "probability": "the right choice's probability"}
NUM_EXAMPLES = 3
"""Flips shown per task and direction."""


@dataclass(frozen=True)
class Example:
    """An item on which candidate and baseline differ."""

    task: str
    item_id: int
    direction: str
    """`gained` or `lost`."""
    question: str
    candidate: str
    baseline: str
    right: str


@dataclass(frozen=True)
class RankedVariant:
    """A line of the page's table of variants."""

    variant: str
    usd_per_1k_tokens: Money | None
    quality: Estimate | None
    """Mean score over the suite's tasks."""
    outcome: str
    """`baseline`, `promote`, `reject`, `not decided`, or `passed, but more expensive`."""


@dataclass(frozen=True)
class DecisionRecord:
    """Everything that the decision rests on, short of the items themselves."""

    model: str
    decided_at: str
    """UTC, ISO 8601."""
    decision: Decision
    variants: tuple[RankedVariant, ...]
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]
    not_evaluated: Mapping[str, str]
    guarantee: str
    examples: tuple[Example, ...]
    price_rounds: PriceRounds | None
    """The rounds that the price rests on; None where none were measured."""
    busy_machine: str
    """What else ran while the price was measured; empty where nothing did, or nobody knows."""
    floors: tuple[TaskFloor, ...]
    """The noise floor of each task; empty where it was not measured."""
    gates: Mapping[str, Gate]
    """The gates behind the picture; not part of the JSON."""


def make_record(
    model: str,
    ranking: Ranking,
    index: int,
    candidates: Sequence[Evidence],
    baseline: Evidence,
    gate: GateConfig,
    now: datetime | None = None,
) -> DecisionRecord:
    """The record of the decision on `candidates[index]`, among those that competed. `now` None is the clock."""
    candidate = candidates[index]
    found = ranking.decisions[index].evidence
    tasks, level = found.tasks, gate.alpha if found.level is None else found.level
    evaluation = gates_of(candidate.quality, baseline.quality, gate, level)
    return DecisionRecord(
        model=model,
        decided_at=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        decision=ranking.decisions[index],
        variants=(_ranked_variant(baseline, "baseline"), *_ranked_variants(ranking, candidates)),
        losses=ranking.losses,
        notes=ranking.notes,
        not_evaluated=candidate.quality.not_evaluated,
        guarantee=guarantee(candidate.label, list(tasks.values()), level),
        examples=tuple(flip_examples(tasks.values(), candidate.quality, baseline.quality)),
        price_rounds=candidate.price_rounds,
        busy_machine=busy_machine(candidate),
        floors=tuple(floors(tasks.values(), candidate.quality, baseline.quality)),
        gates={} if evaluation is None else evaluation.gates,
    )


def _ranked_variants(ranking: Ranking, candidates: Sequence[Evidence]) -> Iterable[RankedVariant]:
    for index, (one, decision) in enumerate(zip(candidates, ranking.decisions, strict=True)):
        is_second = decision.evidence.passed and index != ranking.winner
        yield _ranked_variant(one, "passed, but more expensive" if is_second else action_text(decision.action))


def _ranked_variant(evidence: Evidence, outcome: str) -> RankedVariant:
    return RankedVariant(evidence.label, evidence.cost.usd_per_1k_tokens, mean_quality(evidence.quality), outcome)


def guarantee(variant: str, tasks: Sequence[TaskGate], level: float) -> str:
    """What the gate guarantees, for readers who know no statistics; `level` is the candidate's own error level."""
    if not tasks:
        return "No gate was run, so nothing is guaranteed."
    margins = sorted({(one.margin_points or one.delta_points, SCORE_TEXTS[one.score]) for one in tasks})
    worse = " or ".join(f"{points:g} points of {score}" for points, score in margins)
    asked, total = sum(task.num_items for task in tasks), sum(task.num_items_total for task in tasks)
    return (
        f"If '{variant}' were worse than the baseline by {worse} or more on any of these tasks, this procedure "
        f"would promote it with a chance of at most {level:.2g} ({level:.1%}), however often its answers are checked, "
        f"whatever the budget, and whoever tries it again. {asked:,} of {total:,} questions were asked of it. The "
        f"statement is about these {total:,} questions, answered by greedy decoding on this engine. What they say of "
        "questions like these stands in the table below."
    )


def floors(tasks: Iterable[TaskGate], candidate: QualityReport, baseline: QualityReport) -> Iterable[TaskFloor]:
    """The noise floor under each task's margin, where both models' noise was measured."""
    for task in tasks:
        floor = task_floor(task.task, task.num_items_total, candidate.noise, baseline.noise)
        if floor is not None:
            yield floor


def flip_examples(tasks: Iterable[TaskGate], candidate: QualityReport, baseline: QualityReport) -> Iterable[Example]:
    """The first few gained and lost items of each task."""
    for task in tasks:
        if task.task not in candidate.tasks:
            continue
        ours = {item.item_id: item for item in candidate.tasks[task.task].items}
        theirs = {item.item_id: item for item in baseline.tasks[task.task].items}
        for direction, ids in (("lost", task.lost), ("gained", task.gained)):
            for item_id in ids[:NUM_EXAMPLES]:
                mine, other = ours[item_id], theirs[item_id]
                choices = mine.choices
                yield Example(
                    task.task,
                    item_id,
                    direction,
                    mine.question,
                    _answer(mine, choices),
                    _answer(other, choices),
                    _choice(mine.target, choices),
                )


def _answer(item: ItemOutcome, choices: Sequence[str]) -> str:
    return item.reason or (_choice(int(item.answer), choices) if item.loglikelihoods else item.answer.strip())


def _choice(index: int | str | None, choices: Sequence[str]) -> str:
    if isinstance(index, int):
        return choices[index] if 0 <= index < len(choices) else f"choice {index + 1}"
    return "" if index is None else index.strip()


def write(record: DecisionRecord, folder: Path) -> None:
    """Write the JSON, the page and the picture into a folder."""
    values = {name: value for name, value in vars(record).items() if name != "gates"}
    write_json(folder / RECORD, values)
    picture = trajectory_png(record.gates) if any(gate.state.num_items for gate in record.gates.values()) else None
    if picture is not None:
        write_atomic(folder / PICTURE, picture)
    write_atomic(folder / PAGE, page(record, picture))


def trajectory_png(gates: Mapping[str, Gate]) -> bytes:
    """The e-processes of all tasks over the items asked: one panel each."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    shown = {task: gate for task, gate in gates.items() if gate.state.num_items}
    figure = Figure(figsize=(7, 0.6 + 2.6 * len(shown)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(shown), 1, squeeze=False)[:, 0])
    for axes, (task, gate) in zip(panels, shown.items(), strict=True):
        trajectory, items = gate.trajectory(), np.arange(1, gate.state.num_items + 1)
        axes.plot(items, trajectory.log_e_pass / np.log(10), color="#0b6e4f", label="evidence for good enough")
        axes.plot(items, trajectory.log_e_fail / np.log(10), color="#b3261e", label="evidence for too bad")
        axes.axhline(-np.log10(gate.alpha), color="#0b6e4f", linewidth=0.8, linestyle="--")
        if gate.beta != gate.alpha:
            axes.axhline(-np.log10(gate.beta), color="#b3261e", linewidth=0.8, linestyle="--")
        if gate.state.decided_at is not None:
            axes.axvline(gate.state.decided_at, color="#444444", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, max(gate.state.num_items, 2))
        axes.set_ylim(-3, max(2.0, 1.25 * -np.log10(min(gate.alpha, gate.beta))))
        axes.set_ylabel("log10 e-value")
        title = f"{task}: {gate.state.decision} after {gate.state.num_items} of {gate.num_items} questions"
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(visible=True, alpha=0.25)
    panels[0].legend(fontsize=8, loc="lower left")
    panels[-1].set_xlabel("questions asked (dashed: the level that decides; dotted: where the decision fell)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def page(record: DecisionRecord, picture: bytes | None) -> str:
    """The page for readers who did not run the evaluation."""
    decision = record.decision
    text = html.escape
    word, color = HEADS[decision.action]
    head = f"{word} '{decision.variant}'"
    parts = [
        f'<p class="verdict {color}">{text(head)}</p>',
        f"<p>{text(record.model)}, decided {text(record.decided_at)}. {text(_saving(decision))}</p>",
        "<h2>Why</h2><ul>" + "".join(f"<li>{text(reason)}</li>" for reason in decision.reasons) + "</ul>",
        "<h2>How sure is this?</h2><p>" + text(record.guarantee) + "</p>",
        *(f"<p>Note: {text(note)}.</p>" for note in record.notes),
        *_price_section(record),
        "<h2>The variants</h2>" + _table(*_variant_table(record.variants)),
    ]
    if record.losses:
        losses = "".join(
            f"<li><b>{text(loss.variant)}</b>" + "".join(f"<br>{text(reason)}" for reason in loss.beaten_by) + "</li>"
            for loss in record.losses
        )
        parts.append(f"<h2>Why the other variants are not promoted</h2><ul>{losses}</ul>")
    tasks = list(decision.evidence.tasks.values())
    if tasks:
        parts.append("<h2>Task by task</h2>" + _table(*_task_table(tasks)))
        parts.append(
            "<p class=small>Difference: candidate minus baseline in points of the score that decides, over all "
            "questions of this benchmark, with a 95% interval that stays valid although the questions stop as soon as "
            "the answer is clear. Questions like these: the same difference for a source of which the benchmark is a "
            "sample. Evidence: the largest e-value against 'worse by the margin', and the question at which it was "
            "reached. Flips: share of questions on which the two differ. Divergence and perplexity are information. "
            "They decide nothing.</p>"
        )
    if record.floors:
        parts.append("<h2>The noise floor</h2>" + _table(*_floor_table(record.floors)))
        parts.append(
            "<p class=small>Each model was asked the same questions along two paths that add the same numbers in "
            "another order. What differs between them is rounding, and no difference of quality: a margin below the "
            "last column could be passed or failed by rounding alone.</p>"
        )
    if record.not_evaluated:
        rows = "".join(f"<li>{text(task)}: {text(why)}</li>" for task, why in record.not_evaluated.items())
        parts.append(f"<h2>Not evaluated</h2><ul>{rows}</ul>")
    if picture is not None:
        data = base64.b64encode(picture).decode()
        parts.append(
            f'<h2>How the answer emerged</h2><img alt="evidence by questions asked" src="data:image/png;base64,{data}">'
        )
    if record.examples:
        parts.append("<h2>Examples of changed answers</h2>" + "".join(map(_example, record.examples)))
    return PAGE_FRAME.format(title=text(f"{record.model}: {head}"), model=text(record.model), body="\n".join(parts))


def _price_section(record: DecisionRecord) -> Iterator[str]:
    """How the price was compared, for readers who know no statistics, and every round of it."""
    found, ratio = record.price_rounds, record.decision.evidence.price_ratio
    if found is None or not found.rounds:
        return
    yield "<h2>How was the price compared?</h2>"
    if ratio is not None:
        together = "both servers running" if found.is_together else "one server after the other"
        yield (
            f"<p>Price against the baseline: {html.escape(ratio_text(ratio))}. Both were measured in turn, "
            f"{together}, in {ratio.num_rounds} rounds, each with servers that were started anew. The interval (95%) "
            "tells how much the rounds differ: it includes what changes on the machine from one start to the next.</p>"
        )
    if record.busy_machine:
        yield (
            f"<p><b>The machine was busy</b> while this was measured: {html.escape(record.busy_machine)}. "
            "The interval includes what that changed, as far as it changed from round to round.</p>"
        )
    yield _table(*_round_table(found))


def _round_table(found: PriceRounds) -> tuple[Sequence[str], list[list[str]]]:
    header = ("round", "first", f"baseline tok/s at {found.baseline_point}",
              f"candidate tok/s at {found.candidate_point}", "price", "other processes", "load average")  # fmt: skip
    rows = []
    for number, one in enumerate(found.rounds, start=1):
        ratio = price_ratio([one])
        other, load = one.counters.get("cpu_other_share"), one.counters.get("load_average")
        rows.append(
            [
                str(number),
                one.first,
                *(", ".join("-" if rate is None else f"{rate:.1f}" for rate in rates)
                  for rates in (one.baseline_tok_per_s, one.candidate_tok_per_s)),
                "-" if ratio is None else f"{ratio.ratio - 1:+.1%}",
                "-" if other is None else f"{other:.1%}",
                "-" if load is None else f"{load:.2f}",
            ]
        )  # fmt: skip
    return header, rows


def _saving(decision: Decision) -> str:
    ours, theirs = decision.evidence.usd_per_1k_tokens, decision.evidence.baseline_usd_per_1k_tokens
    if ours is None or theirs is None:
        return "The saving is unknown, because a price was not measured."
    ratio = decision.evidence.price_ratio
    usd = ours.value if ratio is None else theirs.value * Decimal(repr(ratio.ratio))
    share = 1 - float(usd / theirs.value)
    verb = "saves" if share >= 0 else "costs"
    more = "" if share >= 0 else " more"
    figures = f"{_per_million(usd)} USD per million tokens instead of {_per_million(theirs.value)}"
    shown = ratio is not None and ratio.lo is not None and ratio.hi is not None and not ratio.lo <= 1 <= ratio.hi
    doubt = "" if shown or decision.action == "promote" else " This difference is not shown to be more than noise."
    return f"It {verb} {abs(share):.0%}{more}: {figures}.{doubt}"


def _per_million(usd_per_1k_tokens: Decimal) -> str:
    return f"{1000 * float(usd_per_1k_tokens):.4g}"


def _interval(money: Money) -> str:
    return f"{_per_million(money.value)} [{_per_million(money.lo)}, {_per_million(money.hi)}]"


def _variant_table(variants: Sequence[RankedVariant]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for one in variants:
        money, quality = one.usd_per_1k_tokens, one.quality
        rows.append(
            [
                one.variant,
                MISSING if money is None else _interval(money),
                MISSING if quality is None else f"{quality.value:.1%} [{quality.lo:.1%}, {quality.hi:.1%}]",
                one.outcome,
            ]
        )
    return ("variant", "USD per million tokens", "mean score", "outcome"), rows


def _task_table(tasks: Sequence[TaskGate]) -> tuple[Sequence[str], list[list[str]]]:
    header = (
        "task", "answer", "score", "difference on this benchmark", "may lose", "questions like these", "asked",
        "evidence", "accuracy", "flips", "gained / lost", "divergence", "perplexity",
    )  # fmt: skip
    rows = []
    for one in tasks:
        info, guard = one.divergence, one.guard
        ratio = None if info is None else info.answer_perplexity_ratio
        rows.append(
            [
                one.task,
                one.decision,
                one.score,
                _points(one.difference),
                f"less than {one.margin_points or one.delta_points:g}",
                _points(one.like_these),
                f"{one.num_items} of {one.num_items_total}, {one.order}",
                f"{math.exp(min(one.max_log_e_pass, 700)):.3g} at {one.max_at}" if one.max_at else "-",
                "decides" if guard is None else f"{_points(guard.difference)}, less than {guard.delta_points:g}",
                "-" if one.flip_rate is None else f"{one.flip_rate:.1%}",
                f"{len(one.gained)} / {len(one.lost)}",
                "-" if info is None else f"{info.kl_nats:.4f} nats",
                "-" if ratio is None else f"x {ratio:.3f}",
            ]
        )
    return header, rows


def _points(difference: Estimate | None) -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.value:+z.1f} [{100 * difference.lo:+z.1f}, {100 * difference.hi:+z.1f}]"


def _floor_table(floors: Sequence[TaskFloor]) -> tuple[Sequence[str], list[list[str]]]:
    header = (
        "task",
        "questions",
        "flips, candidate",
        "flips, baseline",
        "nats, candidate",
        "nats, baseline",
        "resolves",
    )
    rows = [
        [
            one.task,
            f"{one.candidate.num_items}",
            *(MISSING if noise.flip_rate is None else f"{noise.flip_rate:.1%}" for noise in one.models),
            *(MISSING if noise.rms_nats is None else f"{noise.rms_nats:.2g} rms" for noise in one.models),
            MISSING if one.accuracy_points is None else f"{one.accuracy_points:.2g} points of {one.num_items}",
        ]
        for one in floors
    ]
    return header, rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _example(one: Example) -> str:
    text = html.escape
    return (
        f'<div class="example {one.direction}"><b>{text(one.task)} {one.item_id}, {one.direction}</b>'
        f"<p>{text(one.question) or 'The question was not kept.'}</p><p>candidate: {text(one.candidate)}<br>"
        f"baseline: {text(one.baseline)}<br>right: {text(one.right)}</p></div>"
    )


PAGE_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 56rem; padding: 1rem; color: #1c1c1c; }}
h1 {{ font-size: 1rem; font-weight: 600; color: #555; margin: 0; }} h2 {{ font-size: 1.15rem; margin: 1.6rem 0 .4rem; }}
.verdict {{ font-size: 1.6rem; font-weight: 700; margin: .2rem 0; }}
.yes {{ color: #0b6e4f; }} .no {{ color: #b3261e; }} .open {{ color: #7a5200; }}
.small {{ font-size: .85rem; color: #555; }} .scroll {{ overflow-x: auto; }}
img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; white-space: nowrap; font-size: .9rem; }}
th, td {{ padding: .3rem .6rem; text-align: left; }}
th {{ border-bottom: 2px solid #444; }} td {{ border-bottom: 1px solid #ddd; }}
.example {{ border-left: 4px solid #b3261e; padding: .1rem .8rem; margin: .6rem 0; white-space: pre-wrap; }}
.example p {{ margin: .3rem 0; }} .gained {{ border-color: #0b6e4f; }}
</style></head><body>
<h1>{model}: decision record</h1>
{body}
</body></html>
"""
