"""Apply a decision to the model registry, decide again over recorded runs, or go back to the version before.

    python -m pipeline.promote model=smollm2-135m-q4_1            decide again over the recorded runs, and promote
    python -m pipeline.promote model=... gate.delta_points=3      under another gate
    python -m pipeline.promote model=... promote.enabled=false    only say what would be done
    python -m pipeline.promote model=... --rollback               make the version before the champion again

A promoted candidate becomes a version of the registered model that has the model's name. Its weights are copied into
the run's artifacts, so that a cleared cache does not take them away, beside the decision's record and page. The alias
`champion` points to it; the version that it replaces keeps `previous`. An alias moves in one transaction of the
registry, last of all: a promotion that is cut off leaves the old champion in place.

Refused: a checkpoint that is not the one that was measured, evidence older than `gate.max_age_days`, and, under
`promote.require_approval`, what nobody has approved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from core.errors import ConfigError, closest
from pipeline.billing.approvals import PromotionRefusedError, Subject, ledgers_approver
from pipeline.config import PromoteConfig, RunConfig
from pipeline.types import Decision

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from evals.decide.decide import Contest, Evidence
    from pipeline.record.store import Recorder
    from pipeline.report.decision_page import DecisionRecord

PREVIOUS = "previous"
WEIGHTS = "model"
"""Artifact folder of a promoted run's weights."""
ROLLBACK = "--rollback"


Approvals = Callable[[Subject], str | None]
"""Who approved a subject, or None where nobody has."""


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
    require_fresh(client, [run_id, *evidence_runs], decision.rule.get("max_age_days"), now or datetime.now(UTC))
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
    if champion is not None:
        client.set_registered_model_alias(model, PREVIOUS, champion.version)
    client.set_registered_model_alias(model, promotion.alias, version.version)
    former = "" if champion is None else f"; version {champion.version} keeps '{PREVIOUS}'"
    return f"registry: {model} version {version.version} is now '{promotion.alias}'{former}"


def rollback(recorder: Recorder, model: str, alias: str) -> str:
    """Make the version before the champion again; the one that it replaces keeps `previous`, so twice is nothing.

    Raises:
        PromotionRefusedError: there is no version to go back to, or its weights have changed or are gone.

    """
    client = recorder.client
    champion, previous = (champion_version(client, model, name) for name in (alias, PREVIOUS))
    if previous is None:
        known = "no version is registered" if champion is None else f"only version {champion.version} was '{alias}'"
        raise PromotionRefusedError(f"model={model}: nothing to go back to: {known}")
    require_stored(client, previous)
    client.set_registered_model_alias(model, alias, previous.version)
    if champion is not None:
        client.set_registered_model_alias(model, PREVIOUS, champion.version)
    former = "" if champion is None else f"; version {champion.version} keeps '{PREVIOUS}'"
    return f"registry: {model} version {previous.version} is '{alias}' again{former}"


def require_stored(client: MlflowClient, version: ModelVersion) -> None:
    """Check that a version's stored weights are those that were promoted.

    A store on this machine is read and its digest compared; a remote one must still list the files.

    Raises:
        PromotionRefusedError: they are gone, or have another digest.

    """
    what = f"version {version.version} of {version.name}"
    place = urlparse(str(version.source))
    if place.scheme in ("", "file"):
        folder = Path(unquote(place.path))
        if not folder.is_dir():
            raise PromotionRefusedError(f"{what}: its weights are gone from {folder}; promote a variant anew")
        _require_digest(folder, version.tags.get("digest", ""), what)
    elif not client.list_artifacts(version.run_id, WEIGHTS):
        raise PromotionRefusedError(f"{what}: its weights are gone from {version.source}; promote a variant anew")


def require_artifact(folder: Path, digest: str) -> None:
    """Check that a recorded checkpoint is still the one that was measured.

    Raises:
        PromotionRefusedError: it is gone, or its content has another digest.

    """
    if not folder.is_dir():
        raise PromotionRefusedError(
            f"the measured checkpoint {folder} is gone: run the pipeline for this variant again"
        )
    _require_digest(folder, digest, str(folder))


def _require_digest(folder: Path, digest: str, what: str) -> None:
    from pipeline.checkpoints.sources import checkpoint_digest

    found = checkpoint_digest(folder)
    if found != digest:
        raise PromotionRefusedError(
            f"{what} has changed since it was measured ({found[:12]}, measured was {digest[:12]}): run again"
        )


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
            f"version of {subject.model}\n  -> have run {subject.run_id} approved, then: python -m pipeline.promote"
        )
    return approved_by


def champion_version(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    """The version that the alias points to, or None."""
    from mlflow.exceptions import MlflowException

    try:
        found: ModelVersion = client.get_model_version_by_alias(model, alias)
    except MlflowException:
        return None
    return found


def has_model(client: MlflowClient, model: str) -> bool:
    """Whether the registry knows this model."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(model)
    except MlflowException:
        return False
    return True


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
            f"model={config.model.name}: no candidate is recorded beside its baseline; run quant=int8 first"
        )
    baseline = baselines[groups[0]]
    mine = tuple(run for run in candidates if run.data.tags["comparable"] == groups[0])
    base = recorder.evidence(baseline.info.run_id)
    evidence = tuple(recorder.evidence(run.info.run_id) for run in mine)
    decided = contest(evidence, base, config.gate, config.seed)
    return Standing(baseline, mine, base, evidence, decided, len(candidates) - len(mine))


def main(arguments: list[str]) -> int:
    """Decide again and promote the cheapest candidate that passes; or go back."""
    from core.console import say
    from pipeline.cli.app import command_config
    from pipeline.record.store import Recorder

    config = command_config([one for one in arguments if one != ROLLBACK], __doc__)
    recorder = Recorder(config.tracking)
    if ROLLBACK in arguments:
        say(rollback(recorder, config.model.name, config.promote.alias))
        return 0
    found = standing(config, recorder)
    for decision in found.contest.decisions:
        say(f"{decision.variant}: {decision.action}")
        for reason in decision.reasons:
            say(f"  {reason}")
    for loss in found.contest.losses:
        for beaten_by in loss.beaten_by:
            say(f"{loss.variant} was beaten by {beaten_by}")
    for note in found.contest.notes:
        say(f"note: {note}")
    if found.num_others:
        say(f"not compared: {found.num_others} recorded candidates on other suites, machines or prices")
    say(promote_winner(found, config, recorder))
    return 0


def record_of(found: Standing, index: int, config: RunConfig) -> DecisionRecord:
    """The decision record on one of the candidates."""
    from pipeline.report.decision_page import make_record

    return make_record(config.model.name, found.contest, index, found.evidence, found.baseline_evidence, config.gate)


def promote_winner(found: Standing, config: RunConfig, recorder: Recorder) -> str:
    """Record the decision with the winner's run and promote it; returns one line that says what was done."""
    from pipeline.billing.promotions import note_in_ledger
    from pipeline.record.store import staging_folder
    from pipeline.report import decision_page

    winner = found.contest.winner
    if winner is None:
        return "registry: unchanged, no candidate passed"
    run, decision = found.candidates[winner], found.contest.decisions[winner]
    record = record_of(found, winner, config)
    with staging_folder() as folder:
        decision_page.write(record, folder)
        recorder.annotate(run.info.run_id, tags=decision_tags(decision), metrics={}, folder=folder)
    before = champion_version(recorder.client, config.model.name, config.promote.alias)
    try:
        done = promote(
            recorder,
            run.info.run_id,
            decision,
            config.model.name,
            Path(run.data.tags["artifact_path"]),
            run.data.tags["artifact_digest"],
            config.promote,
            evidence_runs=[found.baseline.info.run_id],
            approvals=partial(ledgers_approver, config=config),
        )
    except PromotionRefusedError as error:
        refused = held(decision, error)
        recorder.annotate(run.info.run_id, tags=decision_tags(refused), metrics={})
        raise
    note_in_ledger(recorder.client, config, before, run.data.tags.get("team", ""))
    return done


def held(decision: Decision, error: PromotionRefusedError) -> Decision:
    """The decision after its promotion was refused."""
    return replace(decision, action="hold", reasons=(*decision.reasons, f"not met: promotion: {error}"))


def decision_tags(decision: Decision, key: str = "") -> dict[str, str]:
    """What a run's tags say of its decision. `key` names what its pages were drawn from; empty: draw them again."""
    return {"decision": decision.action, "reasons": "\n".join(decision.reasons), "decision_key": key}


if __name__ == "__main__":
    from pipeline.cli.app import run_command

    sys.exit(run_command(main, sys.argv[1:]))
