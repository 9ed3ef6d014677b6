"""The rule that is declared with a comparison's first answer, and what may be changed of it later. Pure.

An error level holds for a rule that was fixed before the answers were seen. Of a later rule

- more or less margin is allowed and noted: margins nest, so choosing one afterwards costs nothing (docs/statistics.md);
- fewer tasks are refused: of four tasks at the margin's edge, some one passes by luck in 17% of cases at 5%;
- a larger error level is refused.

Another score or order draws another lot. It is allowed, and counted as another candidate (`Attempt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from core.errors import ConfigError
from core.files import digest_json
from evals.config import GateConfig
from evals.gate.levels import attempt_level


@dataclass(frozen=True)
class DeclaredRule:
    """What a comparison's candidates must show."""

    tasks: tuple[str, ...]
    """Those that decide, in alphabetical order."""
    delta_points: Mapping[str, float]
    """Margin per task, in points of the score."""
    guard_points: float | None
    """Declared margin of the accuracy beside another score; None: none is declared."""
    alpha: float
    """Error level of the whole comparison."""
    score: str
    order: str

    def to_json(self) -> dict[str, object]:
        """The rule as the ledger keeps it."""
        return asdict(self)


def declared_rule(gate: GateConfig, suite_tasks: Sequence[str]) -> DeclaredRule:
    """The rule that a gate's settings declare for a suite."""
    margins = gate.margins(suite_tasks)
    return DeclaredRule(
        tasks=tuple(sorted(margins)),
        delta_points={task: margins[task] for task in sorted(margins)},
        guard_points=gate.guard_delta_points if gate.score == "probability" else None,
        alpha=gate.alpha,
        score=gate.score,
        order=gate.order,
    )


@dataclass(frozen=True)
class Attempt:
    """A candidate that is tried in a comparison."""

    family: str
    """See `family_of`."""
    candidate: str
    """Digest of its weights and of the engine's settings that can change an answer."""
    rule: DeclaredRule
    batch_size: int
    """Candidates that are tried together, this one included."""

    @property
    def digest(self) -> str:
        """The same weights and engine under the same score and order are one try."""
        return digest_json(["attempt", self.candidate, self.rule.score, self.rule.order])


def family_of(baseline_digest: str, items: str, num_fewshot: int | None, apply_chat_template: bool) -> str:
    """The digest of what a comparison's candidates share, whichever tasks decide.

    Neither the engine nor versions of tools are part of it: they make no other comparison, only another candidate.

    Args:
        baseline_digest: of the baseline's weights.
        items: what the questions are read from, by their content where they are files.
        num_fewshot: examples in each prompt; None: the task's own number.
        apply_chat_template: whether they go through the model's chat template.

    """
    return digest_json(["comparison", baseline_digest, items, num_fewshot, apply_chat_template])


def level_of_one(attempt: Attempt) -> float:
    """The error level of a candidate before which none was tried."""
    return attempt_level(attempt.rule.alpha, 1, attempt.batch_size)


def check_rule(declared: Sequence[Mapping[str, object]], rule: DeclaredRule) -> None:
    """Check that a rule may follow those that were declared in its family.

    Args:
        declared: `DeclaredRule.to_json` of each, oldest first.
        rule: the new one.

    Raises:
        ConfigError: it has fewer tasks than one of them, or a larger error level.

    """
    mine = set(rule.tasks)
    for one in declared:
        theirs = set(_texts(one["tasks"]))
        listed = ",".join(sorted(theirs))
        if mine < theirs:
            raise ConfigError(
                f"gate.tasks: {', '.join(sorted(mine))} would decide alone, but candidates of this baseline were "
                f"answered under a rule by which {listed.replace(',', ', ')} decide; tasks that are chosen after the "
                f"answers were seen have no error level\n  -> suite.tasks=[{listed}] gate.tasks=null"
            )
        level = float(str(one["alpha"]))
        if mine == theirs and rule.alpha > level:
            raise ConfigError(
                f"gate.alpha={rule.alpha:g}: this baseline's candidates are tested at {level:g}, which was declared "
                f"with their first answer; a larger level has none afterwards\n  -> gate.alpha={level:g}"
            )


def _texts(value: object) -> list[str]:
    assert isinstance(value, (list, tuple)), f"a declared rule lists its tasks, not {value!r}"
    return [str(one) for one in value]
