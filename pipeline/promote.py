"""Apply a decision to the model registry, and decide again over recorded runs.

    python -m pipeline.promote model=smollm2-135m-q4_1            decide again over the recorded runs, and promote
    python -m pipeline.promote model=... gate.min_recovery=0.9    under another gate
    python -m pipeline.promote model=... promote.enabled=false    only say what would be done

A promoted candidate becomes a version of the registered model that has the model's name. Its weights are copied into
the run's artifacts, so that a cleared cache does not take them away. The alias `champion` points to it; the version
that it replaces keeps `previous`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError, closest
from pipeline.schema import PromoteConfig, RunConfig
from pipeline.types import Decision

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.record.store import Recorder

PREVIOUS = "previous"
WEIGHTS = "model"
"""Artifact folder of a promoted run's weights."""


def promote(
    recorder: Recorder, run_id: str, decision: Decision, model: str, folder: Path, digest: str, promotion: PromoteConfig
) -> str:
    """Carry out a decision; returns one line that says what was done."""
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
    if champion is None and not has_model(client, model):
        client.create_registered_model(
            model, description="Made by Parsimony: the cheapest variant that passed its gate."
        )
    client.log_artifacts(run_id, str(folder), WEIGHTS)
    source = f"{client.get_run(run_id).info.artifact_uri}/{WEIGHTS}"
    tags = {"digest": digest, "variant": decision.variant, "reasons": "; ".join(decision.reasons)}
    version = client.create_model_version(model, source=source, run_id=run_id, tags=tags)
    if champion is not None:
        client.set_registered_model_alias(model, PREVIOUS, champion.version)
    client.set_registered_model_alias(model, promotion.alias, version.version)
    former = "" if champion is None else f"; version {champion.version} keeps '{PREVIOUS}'"
    return f"registry: {model} version {version.version} is now '{promotion.alias}'{former}"


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


def decide_again(config: RunConfig, recorder: Recorder) -> list[tuple[Run, Decision]]:
    """The decision on every recorded candidate of a model, under the configured gate; cheapest first.

    Raises:
        ConfigError: the model has no recorded baseline, or no recorded candidate.

    """
    from pipeline.decide import decide

    runs = recorder.runs(config.model.name)
    if not runs:
        known = recorder.models()
        listed = ", ".join(known) or "none"
        raise ConfigError(
            f"model={config.model.name}: no run is recorded{closest(config.model.name, known)}; recorded: {listed}"
        )
    baselines = {run.data.tags["comparable"]: run for run in runs if run.data.tags["role"] == "baseline"}
    decided = []
    for run in runs:
        baseline = baselines.get(run.data.tags["comparable"])
        if run.data.tags["role"] == "candidate" and baseline is not None:
            evidence = recorder.evidence(run.info.run_id), recorder.evidence(baseline.info.run_id)
            decided.append((run, decide(*evidence, config.gate, config.seed)[0]))
    if not decided:
        raise ConfigError(
            f"model={config.model.name}: no candidate is recorded beside its baseline; run quant=int8 first"
        )
    return sorted(decided, key=lambda pair: pair[0].data.metrics.get("cost/usd_per_1k_tokens", float("inf")))


def main(arguments: list[str]) -> int:
    """Decide again and promote the cheapest candidate that passes."""
    from pipeline.cli import command_config
    from pipeline.console import say
    from pipeline.record.store import Recorder

    config = command_config(arguments, __doc__)
    recorder = Recorder(config.tracking)
    decided = decide_again(config, recorder)
    for run, decision in decided:
        say(f"{run.data.tags['label']}: {decision.action}")
        for reason in decision.reasons:
            say(f"  {reason}")
    passed = [(run, decision) for run, decision in decided if decision.action == "promote"]
    if not passed:
        say("registry: unchanged, no candidate passed")
        return 0
    run, decision = passed[0]
    folder, digest = Path(run.data.tags["artifact_path"]), run.data.tags["artifact_digest"]
    require_artifact(folder, digest)
    say(promote(recorder, run.info.run_id, decision, config.model.name, folder, digest, config.promote))
    return 0


def require_artifact(folder: Path, digest: str) -> None:
    """Check that a recorded checkpoint is still the one that was measured.

    Raises:
        ConfigError: it is gone, or its content has another digest.

    """
    from pipeline.models.resolve import checkpoint_digest

    if not folder.is_dir():
        raise ConfigError(f"the measured checkpoint {folder} is gone: run the pipeline for this variant again")
    found = checkpoint_digest(folder)
    if found != digest:
        raise ConfigError(
            f"{folder} has changed since it was measured ({found[:12]}, measured was {digest[:12]}): run again"
        )


if __name__ == "__main__":
    from pipeline.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
