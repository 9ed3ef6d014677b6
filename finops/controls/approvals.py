"""Approval of a run, or of a promotion, before it happens: another person looks at plan and estimate and says yes.

An approval binds to the hash of plan + estimate + price version: any change makes another subject, which nobody has
approved. It expires. Nobody approves their own run. Every step is in an append-only audit trail (`log`). Who acts is
PARSIMONY_USER, else the operating system's user: as strong as the access to the ledger's database.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import sqlalchemy as sa

from core.errors import UserError
from core.files import digest_json
from core.redact import redact, redact_text
from finops.errors import ApprovalRequiredError
from finops.ledger import schema
from finops.ledger.database import Row
from finops.ledger.ledger import Ledger
from finops.money import from_pico, from_us, round_decimals, to_pico, to_us, usd_text

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

EXPIRES_AFTER = timedelta(days=7)


@dataclass(frozen=True)
class Approval:
    """A request and what became of it. `state`: pending, approved, rejected, expired."""

    id: int
    subject_hash: str
    kind: str
    requester: str
    summary: str
    estimate_usd: Decimal
    state: str
    created: datetime
    expires: datetime
    decided_by: str | None
    reason: str | None


def current_user() -> str:
    """PARSIMONY_USER, else the operating system's user name."""
    return os.environ.get("PARSIMONY_USER") or getpass.getuser()


def subject_hash(plan: object, estimate: object, price_version: str) -> str:
    """SHA-256 over plan, estimate and price version, each as canonical JSON."""
    return digest_json({"plan": plan, "estimate": estimate, "price_version": price_version})


class Approvals:
    """Requests and decisions in a ledger."""

    def __init__(self, ledger: Ledger, *, expires_after: timedelta = EXPIRES_AFTER) -> None:
        self._ledger, self._database, self._expires_after = ledger, ledger.database, expires_after

    def require(
        self, *, subject: str, estimate_usd: Decimal, threshold_usd: Decimal | None, summary: str,
        requester: str | None = None, kind: str = "run",
    ) -> Approval | None:  # fmt: skip
        """Let a run (or promotion) pass, or file a request for it and raise `ApprovalRequiredError` (exit code 3).

        None where the estimate does not pass the threshold (None: none is set). Raises `UserError` where this very
        subject was rejected.
        """
        if threshold_usd is None or estimate_usd <= threshold_usd:
            return None
        who = requester or current_user()
        with self._database.write() as connection:
            found = self._latest(connection, subject, kind)
            if found is not None and found.state == "approved":
                if found.decided_by == who:
                    raise UserError(f"approval {found.id}: {who} approved it and cannot run it; someone else must")
                self._trail(connection, who, "used", f"approval {found.id}", {"subject": subject})
                return found
            if found is not None and found.state == "rejected":
                raise UserError(
                    f"approval {found.id}: {found.decided_by} rejected this {kind}: "
                    f"{found.reason or 'no reason given'}\n"
                    "    -> change the plan; a changed plan can be requested anew"
                )
            if found is None or found.state == "expired":
                found = self._file(
                    connection, subject=subject, kind=kind, who=who, summary=summary, estimate_usd=estimate_usd
                )
        raise ApprovalRequiredError(
            f"approval: the estimate of {usd_text(estimate_usd)} USD passes finops.approval.threshold_usd="
            f"{usd_text(threshold_usd)}; request {found.id} waits until {found.expires:%Y-%m-%d %H:%M} UTC\n"
            f"    -> someone other than {found.requester} runs: "
            f"{self._database.command(f'approvals approve {found.id}')}\n"
            "    -> then start the same command again; a changed plan, estimate or price needs a new approval"
        )

    def decide(self, approval_id: int, *, approve: bool, reason: str = "", who: str | None = None) -> Approval:
        """Approve or reject a pending request. Raises `UserError` for one's own, a decided or an expired one."""
        person = who or current_user()
        verdict = "approved" if approve else "rejected"
        table = schema.approvals
        with self._database.write() as connection:
            row = connection.execute(
                sa.select(table).where(table.c.id == approval_id).with_for_update()
            ).one_or_none()  # fmt: skip
            if row is None:
                listed = self._database.command("approvals list")
                raise UserError(f"approval {approval_id}: there is no such request; all requests: {listed}")
            found = self._approval(row)
            if found.state != "pending":
                raise UserError(f"approval {approval_id}: it is {found.state} already")
            if approve and found.requester == person:
                self._trail(connection, person, "refused", f"approval {approval_id}", {"why": "own run"})
                refused = True
            else:
                refused = False
                now_us = to_us(self._ledger.clock())
                connection.execute(
                    sa.update(table).where(table.c.id == approval_id, table.c.state == "pending").values(
                        state=verdict, decided_by=person, decided_us=now_us, reason=redact_text(reason) or None)
                )  # fmt: skip
                detail = {"subject": found.subject_hash, "reason": reason}
                self._trail(connection, person, verdict, f"approval {approval_id}", detail)
        if refused:
            raise UserError(f"approval {approval_id}: {person} asked for it; nobody approves their own run")
        return self.get(approval_id)

    def get(self, approval_id: int) -> Approval:
        """One request as it stands now."""
        return next(item for item in self.all() if item.id == approval_id)

    def all(self) -> list[Approval]:
        """All requests, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(schema.approvals).order_by(schema.approvals.c.id)).all()
        return [self._approval(row) for row in rows]

    def trail(self) -> list[dict[str, object]]:
        """The audit trail, oldest first: time, actor, action, subject, detail."""
        table = schema.audit
        with self._database.read() as connection:
            rows = connection.execute(sa.select(table).order_by(table.c.id)).all()
        return [
            {"time": from_us(row.time_us), "actor": row.actor, "action": row.action, "subject": row.subject,
             "detail": json.loads(row.detail)}
            for row in rows
        ]  # fmt: skip

    def _latest(self, connection: Connection, subject: str, kind: str) -> Approval | None:
        table = schema.approvals
        if not self._database.is_sqlite:  # two starts of one plan file one request
            connection.execute(sa.text("LOCK TABLE finops_approvals IN SHARE ROW EXCLUSIVE MODE"))
        query = sa.select(table).where(table.c.subject_hash == subject, table.c.kind == kind)
        row = connection.execute(query.order_by(table.c.id.desc()).limit(1)).first()
        return None if row is None else self._approval(row)

    def _file(
        self, connection: Connection, *, subject: str, kind: str, who: str, summary: str, estimate_usd: Decimal
    ) -> Approval:
        now = self._ledger.clock()
        values = {
            "subject_hash": subject, "kind": kind, "requester": who, "summary": redact_text(summary),
            "estimate_pico": to_pico(round_decimals(estimate_usd, 12), "estimate"), "state": "pending",
            "created_us": to_us(now), "expires_us": to_us(now + self._expires_after),
        }  # fmt: skip
        table = schema.approvals
        new_id = connection.execute(sa.insert(table).values(**values).returning(table.c.id)).scalar_one()
        self._trail(connection, who, "requested", f"approval {new_id}", {"subject": subject, "kind": kind})
        return self._approval(connection.execute(sa.select(table).where(table.c.id == new_id)).one())

    def _approval(self, row: Row) -> Approval:
        over = row.expires_us <= to_us(self._ledger.clock())
        state = "expired" if over and row.state in ("pending", "approved") else row.state
        return Approval(
            row.id, row.subject_hash, row.kind, row.requester, row.summary, from_pico(row.estimate_pico), state,
            from_us(row.created_us), from_us(row.expires_us), row.decided_by, row.reason,
        )  # fmt: skip

    def _trail(
        self, connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, object]
    ) -> None:
        connection.execute(
            sa.insert(schema.audit),
            {"time_us": to_us(self._ledger.clock()), "actor": actor, "action": action, "subject": subject,
             "detail": json.dumps(redact(detail), sort_keys=True)},
        )  # fmt: skip
