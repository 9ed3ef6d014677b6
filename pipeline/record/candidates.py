"""The recorded candidates of one comparison group, and the decision on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.command import command
from core.errors import ConfigError, closest
from core.files import digest_json
from evals.config import GateConfig
from evals.decide.decide import Candidate, Ranking, rank
from evals.decide.declared import Attempt, DeclaredRule, declared_rule
from evals.decide.evidence import Evidence
from pipeline.record.tags import (
    ARTIFACT_DIGEST,
    CANDIDATE_DIGEST,
    CANDIDATE_KEY,
    COMPARISON_FAMILY,
    COMPARISON_GROUP,
    SAMPLING_ORDER,
    tag_of,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipeline.record.store import Recorder


@dataclass(frozen=True)
class RecordedCandidates:
    """The recorded candidates that were measured beside one baseline, decided together."""

    baseline: Run
    candidates: tuple[Run, ...]
    baseline_evidence: Evidence
    evidence: tuple[Evidence, ...]
    ranking: Ranking
    num_others: int
    """Recorded candidates on other suites, machines or prices, which do not compare with these."""

    def index_of(self, run: Run) -> int:
        """The place of a run's candidate; a later record of the same candidate replaces it."""
        keys = [tag_of(one.data.tags, CANDIDATE_KEY) for one in self.candidates]
        return keys.index(tag_of(run.data.tags, CANDIDATE_KEY))


Levels = Callable[[Attempt], float]
"""Counts a candidate, once for all, and says at which error level it is tested."""


def recorded_candidates(
    recorder: Recorder, model: str, gate: GateConfig, seed: int, levels: Levels, run_id: str | None = None
) -> RecordedCandidates:
    """Decide on every recorded candidate in one comparison group.

    Args:
        recorder: the tracking store.
        model: the model's name.
        gate: the rule of the decision.
        seed: of the resampling.
        levels: the error level of each candidate.
        run_id: a candidate's run, whose group it is; None takes the newest candidate whose baseline is recorded.

    Raises:
        ConfigError: the model has no recorded baseline, or no recorded candidate, or the rule must not follow the one
            that was declared with the first answers.

    """
    runs = recorder.runs(model)
    if not runs:
        known = recorder.models()
        listed = ", ".join(known) or "none"
        raise ConfigError(f"model={model}: no run is recorded{closest(model, known)}; recorded: {listed}")
    baselines: dict[str, Run] = {}
    for run in runs:
        if run.data.tags["role"] == "baseline":
            baselines.setdefault(_group_of(run), run)
    candidates = [run for run in runs if run.data.tags["role"] == "candidate"]
    asked_for = candidates if run_id is None else [recorder.client.get_run(run_id)]
    groups = [group for run in asked_for if (group := _group_of(run)) in baselines]
    if not groups:
        raise ConfigError(
            f"model={model}: no candidate is recorded beside its baseline\n  -> {command(f'model={model} quant=int8')}"
        )
    baseline = baselines[groups[0]]
    mine = tuple(run for run in candidates if _group_of(run) == groups[0])
    base = recorder.evidence(baseline.info.run_id)
    evidence = tuple(recorder.evidence(run.info.run_id) for run in mine)
    rule = declared_rule(gate, list(base.quality.tasks))
    tested = {run.info.run_id: levels(attempt_of(run, baseline, rule)) for run in sorted(mine, key=_recorded_at)}
    candidates_at = [Candidate(one, tested[run.info.run_id]) for run, one in zip(mine, evidence, strict=True)]
    ranked = rank(candidates_at, base, gate, seed)
    return RecordedCandidates(baseline, mine, base, evidence, ranked, len(candidates) - len(mine))


def attempt_of(run: Run, baseline: Run, rule: DeclaredRule) -> Attempt:
    """A recorded candidate as it is counted. Records from before candidates were counted have the weights alone."""
    tags, family = run.data.tags, tag_of(run.data.tags, COMPARISON_FAMILY)
    if not family:
        family = digest_json(["comparison", tag_of(baseline.data.tags, ARTIFACT_DIGEST), "not counted"])
    # The order is the one in which it was asked: another gate over recorded answers draws no new one.
    asked = replace(rule, order=tag_of(tags, SAMPLING_ORDER) or rule.order)
    return Attempt(family, tag_of(tags, CANDIDATE_DIGEST) or tag_of(tags, ARTIFACT_DIGEST), asked, 1)


def _recorded_at(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _group_of(run: Run) -> str:
    return tag_of(run.data.tags, COMPARISON_GROUP)
