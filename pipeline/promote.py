"""Apply a decision to the model registry, decide again over recorded runs, or go back to the version before.

A promoted candidate becomes a version of the registered model that has the model's name. Its weights are copied into
the run's artifacts, so that a cleared cache does not take them away, beside the decision's record and page. The alias
`champion` points to it; the version that it replaces keeps `previous`. An alias moves in one transaction of the
registry, last of all: a promotion that is cut off leaves the old champion in place.

Refused: a checkpoint that is not the one that was measured, evidence older than `gate.max_age_days`, and, under
`promote.require_approval`, what nobody has approved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.command import command
from evals.decide.decide import baseline_decision
from evals.stats import PairedComparison
from evals.types import Decision
from pipeline.billing.approvals import ledgers_approver
from pipeline.billing.promotions import note_in_ledger
from pipeline.billing.terms import ledger_url
from pipeline.config import PromoteConfig, RunConfig
from pipeline.record.candidates import Levels, RecordedCandidates, recorded_candidates
from pipeline.record.registry import (
    PREVIOUS,
    WEIGHTS,
    PromotionRefusedError,
    Subject,
    champion_version,
    has_model,
    require_digest,
)
from pipeline.record.run_record import decision_tags
from pipeline.record.store import Recorder
from pipeline.record.tags import ARTIFACT_DIGEST, tag_of
from pipeline.report.decision_page import DecisionRecord, make_record
from pipeline.report.decision_record import record_decision
from pipeline.types import Artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

Approvals = Callable[[Subject], str | None]
"""Who approved a subject, or None where nobody has."""
NotePromotion = Callable[["MlflowClient", "ModelVersion | None"], None]
"""Told the registry and the champion before a promotion."""


NOT_PROMOTED, NOT_DECIDED = 5, 6
"""Exit codes of `fail_on_hold=true`."""


def exit_code(decision: Decision) -> int:
    """What a command ends with under `fail_on_hold=true`."""
    return {"promote": 0, "undecided": NOT_DECIDED}.get(decision.action, NOT_PROMOTED)


def nobody(subject: Subject) -> str | None:
    """No approvals are kept: with `promote.require_approval` every promotion is refused."""
    return None


def promote(
    recorder: Recorder,
    run_id: str,
    decision: Decision,
    model: str,
    folder: Path,
    digest: str,
    promotion: PromoteConfig,
    *,
    evidence_runs: Sequence[str] = (),
    approvals: Approvals = nobody,
    now: datetime | None = None,
) -> str:
    """Carry out a decision; returns one line that says what was done.

    Args:
        recorder: the tracking store and registry.
        run_id: the candidate's MLflow run.
        decision: what was decided, with the rule that it was decided by.
        model: the registered model's name.
        folder: the checkpoint.
        digest: of the checkpoint as it was measured.
        promotion: alias, whether to act at all, whether an approval is needed.
        evidence_runs: further runs that the decision rests on, such as the baseline's; the oldest one counts.
        approvals: where approvals are looked up.
        now: the time by which the evidence's age is told; None: the clock.

    Raises:
        PromotionRefusedError: the checkpoint has changed, the evidence is too old, or nobody has approved.

    """
    if decision.action != "promote":
        return "registry: unchanged"
    if not promotion.enabled:
        return "registry: unchanged (promote.enabled=false)"
    client = recorder.client
    champion = champion_version(client, model, promotion.alias)
    if champion is not None and champion.tags.get("digest") == digest:
        return (
            f"registry: {model} version {champion.version} is this very checkpoint and is '{promotion.alias}' already"
        )
    require_artifact(folder, digest)
    max_age_days = None if decision.rule is None else decision.rule.max_age_days
    require_fresh(client, [run_id, *evidence_runs], max_age_days, now or datetime.now(UTC))
    approved_by = require_approval(Subject(model, decision.variant, digest, run_id), promotion, approvals)
    if champion is None and not has_model(client, model):
        client.create_registered_model(
            model, description="Made by Parsimony: the cheapest variant that passed its gate."
        )
    client.log_artifacts(run_id, str(folder), WEIGHTS)
    uri = client.get_run(run_id).info.artifact_uri
    tags = {"digest": digest, "variant": decision.variant, "reasons": "; ".join(decision.reasons)[:5000]}
    tags |= {"evidence_runs": ",".join([run_id, *evidence_runs]), "decision_page": f"{uri}/decision.html"}
    if approved_by:
        tags["approved_by"] = approved_by
    version = client.create_model_version(model, source=f"{uri}/{WEIGHTS}", run_id=run_id, tags=tags)
    # First: cut off between the two, the old champion still stands.
    if champion is not None:
        client.set_registered_model_alias(model, PREVIOUS, champion.version)
    client.set_registered_model_alias(model, promotion.alias, version.version)
    former = "" if champion is None else f"; version {champion.version} keeps '{PREVIOUS}'"
    return f"registry: {model} version {version.version} is now '{promotion.alias}'{former}"


def require_artifact(folder: Path, digest: str) -> None:
    """Check that a recorded checkpoint is still the one that was measured.

    Raises:
        PromotionRefusedError: it is gone, or its content has another digest.

    """
    if not folder.is_dir():
        raise PromotionRefusedError(
            f"the measured checkpoint {folder} is gone: run the pipeline for this variant again"
        )
    require_digest(folder, digest, str(folder))


def _measured_at(run: Run) -> datetime:
    if "measured_at" in run.data.tags:
        return datetime.fromisoformat(run.data.tags["measured_at"])
    return datetime.fromtimestamp(run.info.start_time / 1000, UTC)


def require_fresh(client: MlflowClient, run_ids: Sequence[str], max_age_days: float | None, now: datetime) -> None:
    """Check that no measurement of the evidence is older than `gate.max_age_days`; None sets no limit.

    A run that reused a measurement is as old as that (tag `measured_at`; a run of an older version, as its start).

    Raises:
        PromotionRefusedError: the oldest one is.

    """
    if max_age_days is None or not run_ids:
        return
    began = {run_id: _measured_at(client.get_run(run_id)) for run_id in run_ids}
    oldest = min(began, key=lambda run_id: began[run_id])
    age = now - began[oldest]
    if age > timedelta(days=max_age_days):
        raise PromotionRefusedError(
            f"the evidence is {age / timedelta(days=1):.1f} days old (run {oldest}), "
            f"gate.max_age_days={max_age_days:g}\n"
            "  -> measure again: without store/quality, store/load and points in $PARSIMONY_HOME nothing is reused\n"
            "  -> a larger gate.max_age_days"
        )


def require_approval(subject: Subject, promotion: PromoteConfig, approvals: Approvals) -> str | None:
    """Who approved the promotion; None where none is asked for.

    Raises:
        PromotionRefusedError: one is, and nobody has.

    """
    if not promotion.require_approval:
        return None
    approved_by = approvals(subject)
    if not approved_by:
        raise PromotionRefusedError(
            f"promote.require_approval=true: nobody has approved '{subject.variant}' ({subject.digest[:12]}) as a "
            f"version of {subject.model}\n  -> have run {subject.run_id} approved, then: "
            + command(f"promote model={subject.model}")
        )
    return approved_by


@dataclass(frozen=True)
class Decided:
    """A decision on a recorded run, and the checkpoint that it is about."""

    run_id: str
    decision: Decision
    comparison: PairedComparison | None
    page: DecisionRecord | None
    """None for a baseline, which is compared with nothing."""
    folder: Path
    digest: str
    """SHA-256 of the checkpoint as it was measured."""
    evidence_runs: tuple[str, ...]
    """Further runs that the decision rests on."""


@dataclass(frozen=True)
class Outcome:
    """What became of a decision."""

    decision: Decision
    """As it stands in the end: a refused promotion is not promoted, with the reason."""
    registry: str
    """One line that says what was done to the registry."""
    refused: PromotionRefusedError | None = None


def decide_on_run(run_id: str, artifact: Artifact, config: RunConfig, recorder: Recorder, levels: Levels) -> Decided:
    """Decide on a candidate's run, together with every recorded candidate that compares with it."""
    found = recorded_candidates(recorder, config.model.name, config.gate, config.seed, levels, run_id)
    return decided_on(
        found, found.index_of(recorder.client.get_run(run_id)), run_id, artifact.path, artifact.digest, config
    )


def decide_on_baseline(run_id: str, label: str, artifact: Artifact) -> Decided:
    """A baseline is never promoted: there is nothing to compare it with."""
    return Decided(run_id, baseline_decision(label), None, None, artifact.path, artifact.digest, ())


def decided_on(
    found: RecordedCandidates, index: int, run_id: str, folder: Path, digest: str, config: RunConfig
) -> Decided:
    """The decision on one of the recorded candidates."""
    ranking = found.ranking
    page = make_record(config.model.name, ranking, index, found.evidence, found.baseline_evidence, config.gate)
    evidence_runs = (found.baseline.info.run_id,)
    return Decided(run_id, ranking.decisions[index], ranking.comparisons[index], page, folder, digest, evidence_runs)


def apply(
    decided: Decided, config: RunConfig, recorder: Recorder, approvals: Approvals, note: NotePromotion
) -> Outcome:
    """Record a decision with its run, promote where it says so, and note the promotion in the ledger.

    Args:
        decided: the decision.
        config: the registered model's name, the alias, whether to act.
        recorder: the tracking store and registry.
        approvals: where approvals are looked up.
        note: told the client and the champion before; it notes a new one in the ledger.

    """
    client, decision = recorder.client, decided.decision
    name = config.model.name
    record_decision(decision, decided.comparison, decided.page, decided.run_id, name, config.gate, recorder)
    before = champion_version(client, name, config.promote.alias)
    try:
        done = promote(
            recorder,
            decided.run_id,
            decision,
            name,
            decided.folder,
            decided.digest,
            config.promote,
            evidence_runs=decided.evidence_runs,
            approvals=approvals,
        )
    except PromotionRefusedError as error:
        refused = held(decision, error)
        recorder.annotate(decided.run_id, tags=decision_tags(refused), metrics={})
        return Outcome(refused, "registry: unchanged, the promotion is refused", error)
    note(client, before)
    return Outcome(decision, done)


def promote_winner(found: RecordedCandidates, config: RunConfig, recorder: Recorder) -> str:
    """Record the decision with the winner's run and promote it; returns one line that says what was done.

    Raises:
        PromotionRefusedError: the checkpoint has changed, the evidence is too old, or nobody has approved.

    """
    winner = found.ranking.winner
    if winner is None:
        return "registry: unchanged, no candidate passed"
    run = found.candidates[winner]
    tags = run.data.tags
    folder, digest = Path(tags["artifact_path"]), tag_of(tags, ARTIFACT_DIGEST)
    decided = decided_on(found, winner, run.info.run_id, folder, digest, config)
    ledger, tracking = config.finops.ledger, config.tracking
    named = {"name": config.model.name, "alias": config.promote.alias, "team": tags.get("team", "")}
    note = partial(note_in_ledger, url=ledger_url(ledger, tracking), **named)
    approvals = partial(ledgers_approver, ledger=ledger, tracking=tracking)
    outcome = apply(decided, config, recorder, approvals, note)
    if outcome.refused is not None:
        raise outcome.refused
    return outcome.registry


def held(decision: Decision, error: PromotionRefusedError) -> Decision:
    """The decision after its promotion was refused."""
    return replace(decision, action="hold", reasons=(*decision.reasons, f"not met: promotion: {error}"))
