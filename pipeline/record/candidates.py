"""The recorded candidates that compare with one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.command import command
from core.errors import ConfigError, closest
from pipeline.config import RunConfig

if TYPE_CHECKING:
    from mlflow.entities import Run

    from evals.decide.decide import Contest
    from evals.decide.evidence import Evidence
    from pipeline.record.store import Recorder


@dataclass(frozen=True)
class Standing:
    """The recorded candidates that were measured beside one baseline, decided together."""

    baseline: Run
    candidates: tuple[Run, ...]
    baseline_evidence: Evidence
    evidence: tuple[Evidence, ...]
    contest: Contest
    num_others: int
    """Recorded candidates on other suites, machines or prices, which do not compare with these."""

    def index_of(self, run: Run) -> int:
        """The place of a run's candidate; a later record of the same candidate stands for it."""
        return [one.data.tags["candidate_key"] for one in self.candidates].index(run.data.tags["candidate_key"])


def standing(config: RunConfig, recorder: Recorder, run_id: str | None = None) -> Standing:
    """Decide on every recorded candidate of a model that compares with this run, under the configured gate.

    `run_id` is a candidate's run; None takes the newest that stands beside its baseline.

    Raises:
        ConfigError: the model has no recorded baseline, or no recorded candidate.

    """
    from evals.decide.decide import contest

    runs = recorder.runs(config.model.name)
    if not runs:
        known = recorder.models()
        listed = ", ".join(known) or "none"
        raise ConfigError(
            f"model={config.model.name}: no run is recorded{closest(config.model.name, known)}; recorded: {listed}"
        )
    baselines: dict[str, Run] = {}
    for run in runs:
        if run.data.tags["role"] == "baseline":
            baselines.setdefault(run.data.tags["comparable"], run)
    candidates = [run for run in runs if run.data.tags["role"] == "candidate"]
    asked_for = candidates if run_id is None else [recorder.client.get_run(run_id)]
    groups = [run.data.tags["comparable"] for run in asked_for if run.data.tags["comparable"] in baselines]
    if not groups:
        raise ConfigError(
            f"model={config.model.name}: no candidate is recorded beside its baseline\n"
            f"  -> {command(f'model={config.model.name} quant=int8')}"
        )
    baseline = baselines[groups[0]]
    mine = tuple(run for run in candidates if run.data.tags["comparable"] == groups[0])
    base = recorder.evidence(baseline.info.run_id)
    evidence = tuple(recorder.evidence(run.info.run_id) for run in mine)
    decided = contest(evidence, base, config.gate, config.seed)
    return Standing(baseline, mine, base, evidence, decided, len(candidates) - len(mine))
