"""The main path of a run: a model, a compression choice and a price become a measured variant and a decision.
What it does is the plan's list of stages; each is found in the store if it has been made.
"""

from __future__ import annotations

from functools import partial

from core import console
from core.console import ProgressBars, say
from core.files import read_json
from core.store import StageStore
from evals.types import Decision
from pipeline.billing.account import Billing
from pipeline.billing.continuation import continuation
from pipeline.billing.error_levels import CountedLevels
from pipeline.checkpoints.card import model_card
from pipeline.checkpoints.publish import publish
from pipeline.config import RunConfig
from pipeline.plan.resolve import RunPlan, resolve
from pipeline.promote import Outcome, apply, decide_on_baseline, decide_on_run, exit_code
from pipeline.record.run_record import card_rows, run_record
from pipeline.record.store import Recorder
from pipeline.report import console as report
from pipeline.report.json_output import decision_json
from pipeline.stages.graph import Effects
from pipeline.stages.measure import measure
from pipeline.types import Measured


def run(config: RunConfig) -> int:
    """Plan, measure baseline and candidate, record both, decide, promote. Returns the exit code."""
    plan = resolve(config)
    report.show_plan(plan)
    billing = Billing(plan)
    billing.estimate()
    if config.dry_run:
        say("dry run: nothing was loaded or started")
        return 0
    for stage in plan.pending:
        stage.check_access()
    with billing, report.outcome_of():
        levels = CountedLevels(billing.ledger_url)
        effects = effects_of(plan, billing)
        measured = measure_all(plan, effects, levels)
        outcome = record_and_decide(measured, plan, billing, Recorder(plan.config.tracking), levels)
        publish_promoted(measured, outcome.decision, plan.config)
        console.result(decision_json(outcome.decision, model=plan.config.model.name, registry=outcome.registry))
    return exit_code(outcome.decision) if config.fail_on_hold and len(measured) > 1 else 0


def effects_of(plan: RunPlan, billing: Billing) -> Effects:
    """The real effects: a store whose stages are shown and charged."""
    bars = ProgressBars(plan.config.model.name, billing.estimates.expected_s)
    store = StageStore(plan.store.root, hooks=(bars, billing))
    return Effects(store, plan.home, plan.serving_python, say=say, level=CountedLevels(billing.ledger_url))


def measure_all(plan: RunPlan, effects: Effects, levels: CountedLevels) -> list[Measured]:
    """The baseline, then the candidate where there is one."""
    price, utilisation = plan.choices.price, plan.config.gate.utilisation
    effects.result(plan.variants.base)
    if plan.choices.candidate is not None:
        levels.check(plan, effects)
    if plan.variants.student is not None:
        effects.result(plan.variants.student)  # before the baseline: what cannot be trained is known early
    return [measure(variant, effects, price, utilisation) for variant in plan.variants.all]


def record_and_decide(
    measured: list[Measured], plan: RunPlan, billing: Billing, recorder: Recorder, levels: CountedLevels
) -> Outcome:
    """Record what was measured, decide on the last one, promote if it passed, and show the table."""
    config, baseline, candidate = plan.config, measured[0], measured[-1]
    with report.shown("record"):
        records = [
            run_record(one, plan, billing.summary(one.candidate.label), None if one is baseline else baseline)
            for one in measured
        ]
        run_ids = [recorder.record(record)[0] for record in records]
        if candidate is baseline:
            decided = decide_on_baseline(run_ids[-1], candidate.candidate.label, candidate.artifact)
        else:
            decided = decide_on_run(run_ids[-1], candidate.artifact, config, recorder, levels)
    outcome = apply(decided, config, recorder, billing.approver, billing.promoted)
    billing.deliver_alerts(partial(recorder.client.set_tag, decided.run_id))
    report.show_result(measured, outcome, decided.comparison, plan, continuation(outcome.decision, plan, billing))
    return outcome


def publish_promoted(measured: list[Measured], decision: Decision, config: RunConfig) -> None:
    """Push a promoted checkpoint to the hub (`publish.hub`), with its quality in the model card."""
    repo = config.publish.hub
    if repo is None:
        return
    if decision.action != "promote":
        say(f"publish.hub={repo}: nothing was uploaded, the variant is not promoted")
        return
    folder = measured[-1].artifact.path
    manifest = folder / "manifest.json"
    card = model_card(read_json(manifest), card_rows(measured)) if manifest.exists() else None
    done = publish(folder, repo, config.publish.private, card=card)
    say(f"published: {done.url} ({done.num_files} files, commit {done.commit[:12]})")
