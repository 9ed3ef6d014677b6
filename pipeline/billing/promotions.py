"""A promotion noted in the ledger: both models' prices per token, and what the decision's evidence cost.

From it `parsimony report` tells what a promotion saved and what a decision costs.
"""

from __future__ import annotations

import logging
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING

from finops.errors import LedgerUnavailableError
from finops.ledger.ledger import Ledger
from finops.reports.savings import record_promotion
from pipeline.record.registry import champion_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
PRICE = "cost/usd_per_1k_tokens"
EVIDENCE = ("cost/compress_usd", "cost/eval_usd")
"""What it cost to make and to measure a variant: also where a run reused what another one had paid for."""


def note_promotion(
    ledger: Ledger, client: MlflowClient, before: ModelVersion | None, *, name: str, alias: str, team: str
) -> None:
    """Note that the champion is another one than `before`; nothing where it is the same, or has no measured price.

    Args:
        ledger: where it is noted.
        client: the model registry.
        before: the champion before the promotion; None where there was none.
        name: the registered model.
        alias: the champion's.
        team: whose promotion it is.

    """
    after = champion_version(client, name, alias)
    if after is None or (before is not None and before.version == after.version):
        return
    price, former = (None if one is None else _metrics(client, one.run_id).get(PRICE) for one in (after, before))
    if price is None:
        return
    evidence = [_metrics(client, run_id) for run_id in after.tags["evidence_runs"].split(",")]
    record_promotion(
        ledger,
        run_id=f"{after.run_id}/v{after.version}",
        model_name=name,
        model_id=f"{name}:v{after.version}",
        team=team,
        usd_per_1k_tokens=price,
        decision_usd=sum((found[key] for found in evidence for key in EVIDENCE if key in found), Decimal(0)),
        replaced_model_id=None if before is None else f"{name}:v{before.version}",
        replaced_usd_per_1k_tokens=former,
    )


def note_in_ledger(
    client: MlflowClient, before: ModelVersion | None, *, url: str, name: str, alias: str, team: str
) -> None:
    """`note_promotion` in the ledger at this URL. One that cannot be reached is a warning: the promotion is done."""
    try:
        with closing(Ledger(url)) as ledger:
            note_promotion(ledger, client, before, name=name, alias=alias, team=team)
    except LedgerUnavailableError as error:
        log.warning("the promotion is not in the ledger: %s", error)


def _metrics(client: MlflowClient, run_id: str) -> dict[str, Decimal]:
    return {name: Decimal(repr(value)) for name, value in client.get_run(run_id).data.metrics.items()}
