"""What is recorded of one measured candidate."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from core.environments import versions
from core.files import digest_json, plain
from core.redact import redact
from evals.decide.evidence import Evidence, busy_machine, mean_quality
from evals.types import Decision, TaskResult
from pipeline.checkpoints.card import QualityRow
from pipeline.compress import registry
from pipeline.plan.resolve import RunPlan
from pipeline.record.metrics import estimate_metrics, run_metrics
from pipeline.record.store import RunRecord, flat_params
from pipeline.record.tags import (
    ARTIFACT_DIGEST,
    BUSY_MACHINE,
    CANDIDATE_DIGEST,
    CANDIDATE_KEY,
    COMPARISON_FAMILY,
    COMPARISON_GROUP,
    DECISION_KEY,
    FRONTIER_GROUP,
    LEDGER_RUN_ID,
    PLAN_HASH,
    QUALITY_INVALID_REASON,
    SAMPLING_ORDER,
    STAGE_KEY,
    STAGE_KEYS,
    short_tags,
    verdict_of,
)
from pipeline.serve.engine import baseline_engine, engine_settings
from pipeline.types import Candidate, Measured, Spend


def decision_tags(decision: Decision, key: str = "") -> dict[str, str]:
    """What a run's tags say of its decision. `key` names what its pages were drawn from; empty: draw them again."""
    verdict = verdict_of("baseline" if decision.rule is None else "candidate", decision.action)
    reasons = "\n".join(decision.reasons)
    return {"decision": decision.action, "verdict": verdict, "reasons": reasons, DECISION_KEY: key}


def evidence_of(measured: Measured) -> Evidence:
    """What a decision looks at."""
    return Evidence(measured.candidate.label, measured.quality, measured.load, measured.cost, measured.price_rounds)


def comparison_group(baseline: Measured, plan: RunPlan) -> dict[str, object]:
    """What two runs must share so that their candidates compare: the model by name and revision, how it was asked and
    loaded, the machine and its price.

    How the baseline was asked stands for both: a candidate that fails one task is not asked the others any more.
    """
    config = plan.config
    return {
        "model": [config.model.name, config.model.revision],
        "suite": {name: result.settings_digest for name, result in baseline.quality.tasks.items()},
        "load": config.load,
        "machine": plan.choices.machine.fingerprint,
        "price": plan.choices.price,
        "utilisation": config.gate.utilisation,
        "base": plan.variants.base.key,
        "engine": engine_settings(baseline_engine(config.engine)),
    }


def without_rounds(stage_keys: Mapping[str, str]) -> dict[str, str]:
    """What makes a candidate: with more rounds of its price it is the same one, and its newer record counts."""
    return {name: key for name, key in stage_keys.items() if name != "price"}


def run_record(measured: Measured, plan: RunPlan, spend: Spend, baseline: Measured | None) -> RunRecord:
    """Everything that is written of one measured candidate; `baseline` is None for the baseline itself."""
    candidate, config, price = measured.candidate, plan.config, plan.choices.price
    group = comparison_group(baseline or measured, plan)
    tags = {
        **spend.tags,
        "model": config.model.name,
        "method": candidate.method,
        "label": candidate.label,
        "role": candidate.role,
        "hardware": price.hardware,
        "engine": config.engine.name,
        "purchase_option": price.purchase_option,
        FRONTIER_GROUP: digest_json([group["suite"], config.load])[:16],
        PLAN_HASH: plan.digest,
        STAGE_KEYS: json.dumps(dict(measured.stage_keys)),
        STAGE_KEY: measured.stage_keys.get("compress", plan.variants.base.key),
        "artifact_path": str(measured.artifact.path),
        ARTIFACT_DIGEST: measured.artifact.digest,
        COMPARISON_GROUP: digest_json(group)[:16],
        CANDIDATE_KEY: digest_json([without_rounds(measured.stage_keys), group])[:24],
        LEDGER_RUN_ID: spend.run_id,
        "measured_at": measured.measured_at,
    }
    if measured.attempt is not None:
        attempt = measured.attempt
        tags |= {COMPARISON_FAMILY: attempt.family, CANDIDATE_DIGEST: attempt.candidate}
        tags[SAMPLING_ORDER] = attempt.rule.order
    tags |= short_tags(tags)
    if config.model.revision is not None:
        tags["model_revision"] = config.model.revision
    if busy := busy_machine(evidence_of(measured)):
        tags[BUSY_MACHINE] = busy
    mean = mean_quality(measured.quality)
    if mean is not None:
        tags["quality_method"] = mean.method
    if measured.quality.quality_invalid_reason:
        tags[QUALITY_INVALID_REASON] = measured.quality.quality_invalid_reason
    files = {"server/vllm.log": measured.server_log}
    manifest = measured.artifact.path / "manifest.json"
    if manifest.exists():
        files["artifact/manifest.json"] = manifest
    texts = {
        "config.yaml": yaml.safe_dump(redact(plain(config)), sort_keys=False),
        "plan.yaml": yaml.safe_dump(plan_text(plan), sort_keys=False),
        "load.yaml": yaml.safe_dump(plain(measured.load), sort_keys=False),
        "cost.yaml": yaml.safe_dump(plain(measured.cost), sort_keys=False),
    }
    texts.update({f"outcomes/{name}.csv": outcomes_csv(result) for name, result in measured.quality.tasks.items()})
    tools = versions(Path(sys.executable), "lm-eval", "llmcompressor", "mlflow", "transformers", "torch")
    return RunRecord(
        run_key=digest_json([measured.stage_keys, group, config.tags, candidate.role])[:32],
        name=f"{config.model.name}/{candidate.label}",
        tags=tags,
        params=redact(flat_params(used_settings(plan, candidate)))
        | {f"tools.{name}": version for name, version in tools.items()},
        metrics=run_metrics(measured, (baseline or measured).artifact.num_bytes, baseline, config.finops.energy)
        | estimate_metrics(spend.outcomes),
        files=files,
        texts=texts,
        stage_wall_s=measured.stage_wall_s,
        stage_started_at=measured.stage_started_at,
        made_now=measured.made_now,
        evidence=evidence_of(measured),
        curves={"distill/loss": curve} if (curve := measured.artifact.making.distill_curve) else {},
    )


def used_settings(plan: RunPlan, candidate: Candidate) -> dict[str, object]:
    """The settings that one candidate was made and measured by; what its run did not use is left out."""
    config = plan.config
    settings = plain(config)
    unused = {"noise", "publish"} if config.publish.hub is None else {"noise"}  # what was measured of it is a metric
    if candidate.role == "baseline":
        settings["engine"] = plain(baseline_engine(config.engine))
        unused |= {"quant", "distill", "calib"}
    else:
        unused |= set() if config.distill.enabled else {"distill"}
        unused |= set() if registry.method(candidate.method).needs_calibration else {"calib"}
    return {name: value for name, value in settings.items() if name not in unused}


def plan_text(plan: RunPlan) -> dict[str, object]:
    """The plan as it is recorded: the choices, and every stage with its key and inputs."""
    stages = [
        {"variant": stage.label, "stage": stage.name, "key": stage.key, "inputs": plain(stage.inputs)}
        for stage in plan.stages
    ]
    return {**plain(plan.choices), "plan_hash": plan.digest, "stages": stages}


def card_rows(measured: list[Measured]) -> list[QualityRow]:
    """The candidate's scores beside its baseline's, as the model card shows them."""
    baseline, candidate = measured[0].quality.tasks, measured[-1].quality.tasks
    return [
        {
            "task": name,
            "metric": result.metric,
            "base": baseline[name].estimate.value if name in baseline else None,
            "value": result.estimate.value,
            "lo": result.estimate.lo,
            "hi": result.estimate.hi,
            "num_items": result.estimate.num_samples,
        }
        for name, result in candidate.items()
    ]


def outcomes_csv(result: TaskResult) -> str:
    """A task's items, one row each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["item_id", result.metric, "answer", "target", "loglikelihoods", "reason"])
    for item in result.items:
        score = "" if item.score is None else f"{item.score:g}"
        loglikelihoods = " ".join(repr(value) for value in item.loglikelihoods)
        writer.writerow([item.item_id, score, item.answer, item.target, loglikelihoods, item.reason])
    return buffer.getvalue()
