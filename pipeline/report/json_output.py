"""What `--json` prints: one JSON object on standard output, for CI. Pure."""

from __future__ import annotations

import json

from core.files import plain
from evals.types import Decision


def decision_json(decision: Decision, *, model: str, registry: str, run_id: str | None = None) -> str:
    """A decision as one line of JSON.

    Args:
        decision: what was decided.
        model: the registered model's name.
        registry: the line that says what was done in the registry.
        run_id: the candidate's MLflow run, where it is known.

    Returns:
        An object with the keys `model`, `variant`, `action` (`promote`, `reject`, `undecided` or `hold`), `promoted`,
        `reasons`, `registry`, `run_id`, `rule` and `evidence`. A missing figure is null, never zero.

    """
    found = {
        "model": model,
        "variant": decision.variant,
        "action": decision.action,
        "promoted": decision.action == "promote",
        "reasons": list(decision.reasons),
        "registry": registry,
        "run_id": run_id,
        "rule": decision.rule,
        "evidence": decision.evidence,
    }
    return json.dumps(plain(found), sort_keys=False, ensure_ascii=False, allow_nan=False)


def rollback_json(model: str, registry: str) -> str:
    """A rollback as one line of JSON, with the keys `model`, `action` (`rollback`) and `registry`."""
    return json.dumps({"model": model, "action": "rollback", "registry": registry}, ensure_ascii=False)
