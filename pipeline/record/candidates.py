"""The recorded candidates of one comparison group, and the decision on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.command import command
from core.errors import ConfigError, closest
from evals.config import GateConfig
from evals.decide.decide import Ranking, rank
from evals.decide.evidence import Evidence
from pipeline.record.tags import CANDIDATE_KEY, COMPARISON_GROUP, tag_of

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


def recorded_candidates(
    recorder: Recorder, model: str, gate: GateConfig, seed: int, run_id: str | None = None
) -> RecordedCandidates:
    """Decide on every recorded candidate in one comparison group.

    Args:
        recorder: the tracking store.
        model: the model's name.
        gate: the rule of the decision.
        seed: of the resampling.
        run_id: a candidate's run, whose group it is; None takes the newest candidate whose baseline is recorded.

    Raises:
        ConfigError: the model has no recorded baseline, or no recorded candidate.

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
    ranked = rank(evidence, base, gate, seed)
    return RecordedCandidates(baseline, mine, base, evidence, ranked, len(candidates) - len(mine))


def _group_of(run: Run) -> str:
    return tag_of(run.data.tags, COMPARISON_GROUP)
