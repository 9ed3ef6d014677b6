"""Approvals of promotions (`promote.require_approval`): looked up in the ledger, or asked for there."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal

from core.errors import UserError
from core.files import plain
from finops.controls.approvals import Approvals, subject_hash
from finops.errors import ApprovalRequiredError
from finops.ledger.ledger import Ledger
from pipeline.billing.terms import ledger_url
from pipeline.config import LedgerConfig, TrackingConfig
from pipeline.record.registry import PromotionRefusedError, Subject


def approver_of(subject: Subject, ledger: Ledger, charged_usd: Decimal) -> str | None:
    """Who approved a promotion; a request is filed where nobody was asked yet.

    Args:
        subject: the checkpoint, and the model that it would become a version of.
        ledger: holds requests and approvals.
        charged_usd: what the evidence cost in this run, shown with the request.

    Raises:
        PromotionRefusedError: it waits, was rejected, or was approved by the one who asks.

    """
    book, what = Approvals(ledger), f"'{subject.variant}' ({subject.digest[:12]}) of {subject.model}"
    digest = subject_hash(plain(subject), None, "")
    try:
        found = book.require(
            subject=digest, estimate_usd=charged_usd, threshold_usd=Decimal(-1), summary=what, kind="promotion"
        )
    except ApprovalRequiredError:
        waiting = [one for one in book.all() if (one.subject_hash, one.kind) == (digest, "promotion")][-1]
        raise PromotionRefusedError(
            f"promote.require_approval=true: {what} waits for approval, request {waiting.id}\n"
            f"  -> someone other than {waiting.requester} runs: "
            f"{ledger.database.command(f'approvals approve {waiting.id}')}\n  -> then start the same command again"
        ) from None
    except UserError as error:
        raise PromotionRefusedError(str(error)) from None
    return None if found is None else found.decided_by


def ledgers_approver(subject: Subject, ledger: LedgerConfig, tracking: TrackingConfig) -> str | None:
    """`approver_of` with the configured ledger, which is opened only for this."""
    with closing(Ledger(ledger_url(ledger, tracking))) as opened:
        return approver_of(subject, opened, Decimal(0))
