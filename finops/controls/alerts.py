"""Budget alerts out of the ledger's outbox: log, callback (an MLflow tag), webhook, e-mail; each once per channel.

    PARSIMONY_WEBHOOK_URL, PARSIMONY_WEBHOOK_SECRET     where to post, and the key that signs it
    PARSIMONY_SMTP_HOST, _PORT, _FROM, _TO, _USER, _PASSWORD, _TLS (starttls | ssl | none)

A delivery is claimed by one process in the database, sent, and marked sent. A failure is tried again after 2, 4, 8 ...
seconds, eight times. Only a sender killed between the receiver's answer and the mark sends a second time, after the
claim's lease; it then carries the same `Idempotency-Key`, by which a receiver drops it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import sqlalchemy as sa

from core.errors import ConfigError
from core.redact import redact_text
from finops.ledger import schema
from finops.ledger.database import insert_ignore
from finops.money import from_pico, from_us, to_us, usd_text

if TYPE_CHECKING:
    from finops.ledger.ledger import Ledger

log = logging.getLogger(__name__)
LEASE_S = 60.0
MAX_ATTEMPTS = 8
MAX_AGE = timedelta(days=7)
"""Older alerts are not sent to a channel that is set up later."""


@dataclass(frozen=True)
class Alert:
    """A budget reached a threshold in a period. Amounts in USD, as texts for people."""

    id: str
    budget: str
    threshold_percent: int
    spent_usd: str
    limit_usd: str
    period_start: str
    run_id: str | None
    time: str

    @property
    def text(self) -> str:
        """One line for people."""
        return (
            f"budget {self.budget}: {self.threshold_percent}% reached: {self.spent_usd} of {self.limit_usd} USD spent "
            f"in the period from {self.period_start}"
        )


class Channel(Protocol):
    """Where alerts go. `send` raises any exception where the alert did not arrive."""

    @property
    def name(self) -> str:
        """The channel's name; a delivery is once per name."""

    def send(self, alert: Alert) -> None:
        """Deliver one alert."""


class LogChannel:
    """Alerts as warnings in the log."""

    name = "log"

    def send(self, alert: Alert) -> None:
        """Log it."""
        log.warning("%s", alert.text)


class CallbackChannel:
    """Alerts to a function, for example one that sets a tag on the MLflow run."""

    def __init__(self, name: str, callback: Callable[[Alert], None]) -> None:
        self.name, self._callback = name, callback

    def send(self, alert: Alert) -> None:
        """Call it."""
        self._callback(alert)


class WebhookChannel:
    """Alerts as a signed POST of JSON.

    Headers: `Idempotency-Key` (the alert's id), `X-Parsimony-Timestamp` (Unix seconds) and, with a secret,
    `X-Parsimony-Signature: sha256=HEX`, the HMAC-SHA-256 (RFC 2104) of timestamp, a dot and the body.
    """

    name = "webhook"

    def __init__(self, url: str, secret: str | None = None, timeout_s: float = 10.0) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError("PARSIMONY_WEBHOOK_URL: it must be an http or https URL (its value is not shown)")
        self._url, self._secret, self._timeout_s = url, secret, timeout_s

    def send(self, alert: Alert) -> None:
        """Post it; any answer but 2xx raises."""
        body = json.dumps({"type": "budget_alert", "text": alert.text, **alert.__dict__}, sort_keys=True).encode()
        stamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json", "Idempotency-Key": alert.id, "X-Parsimony-Timestamp": stamp,
        }  # fmt: skip
        if self._secret:
            headers["X-Parsimony-Signature"] = f"sha256={signature(self._secret, stamp, body)}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        with _opener().open(request, timeout=self._timeout_s) as response:
            response.read()

    def __repr__(self) -> str:
        return "WebhookChannel(url=[redacted])"


def _opener() -> urllib.request.OpenerDirector:
    """No redirects: a signed body goes to the configured address alone."""

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    return urllib.request.build_opener(NoRedirect)


def signature(secret: str, stamp: str, body: bytes) -> str:
    """HMAC-SHA-256, hex, of `stamp + "." + body`: what a receiver compares."""
    return hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class SmtpChannel:
    """Alerts as e-mail. `tls`: starttls, ssl, or none (a relay on this host)."""

    host: str
    sender: str
    to: tuple[str, ...]
    port: int = 587
    user: str | None = None
    password: str | None = None
    tls: str = "starttls"
    timeout_s: float = 20.0
    name: str = "email"

    def send(self, alert: Alert) -> None:
        """Send it; a refused recipient raises."""
        message = EmailMessage()
        message["Subject"] = f"Budget {alert.budget}: {alert.threshold_percent}% reached"
        message["From"], message["To"] = self.sender, ", ".join(self.to)
        message["Message-ID"] = f"<{alert.id}@parsimony>"
        message.set_content(alert.text + (f"\nLast charge: run {alert.run_id}\n" if alert.run_id else "\n"))
        context = ssl.create_default_context()
        if self.tls == "ssl":
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout_s, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=self.timeout_s)
        with server:
            if self.tls == "starttls":
                server.starttls(context=context)
            if self.user and self.password:
                server.login(self.user, self.password)
            refused = server.send_message(message)
        if refused:
            raise OSError(f"refused for {len(refused)} of {len(self.to)} recipients")

    def __repr__(self) -> str:
        return f"SmtpChannel(host={self.host!r}, to={self.to!r})"


class AlertDispatcher:
    """Sends what is due. Any number of processes may run it at once."""

    def __init__(self, ledger: Ledger, channels: Sequence[Channel]) -> None:
        self._ledger, self._database, self._channels = ledger, ledger.database, {item.name: item for item in channels}

    def deliver(self) -> int:
        """Send every due delivery and return how many arrived. A failing channel is logged and tried again later."""
        self._enqueue()
        sent = 0
        while (claimed := self._claim()) is not None:
            alert, channel, attempts = claimed
            try:
                self._channels[channel].send(alert)
            except Exception as error:  # any failure of a channel is a failed delivery, never a failed run
                self._mark_failed(alert, channel, attempts, error)
            else:
                self._mark(alert.id, channel, state="sent", last_error=None)
                sent += 1
        return sent

    def _enqueue(self) -> None:
        now = self._ledger.clock()
        table, out = schema.alerts, schema.deliveries
        oldest = to_us(now - MAX_AGE)
        with self._database.write() as connection:
            ids = connection.execute(sa.select(table.c.id).where(table.c.created_us >= oldest)).scalars().all()
            known = {tuple(row) for row in connection.execute(sa.select(out.c.alert_id, out.c.channel))}
            for alert_id in ids:
                for channel in self._channels:
                    if (alert_id, channel) not in known:
                        connection.execute(
                            insert_ignore(out, self._database.is_sqlite),
                            {"alert_id": alert_id, "channel": channel, "state": "due", "num_attempts": 0,
                             "due_us": to_us(now), "last_error": None},
                        )  # fmt: skip

    def _claim(self) -> tuple[Alert, str, int] | None:
        """Take one due delivery for the length of a lease."""
        now_us = to_us(self._ledger.clock())
        out, table, budgets = schema.deliveries, schema.alerts, schema.budgets
        with self._database.write() as connection:
            row = connection.execute(
                sa.select(out, table, budgets.c.name.label("budget_name"))
                .join(table, table.c.id == out.c.alert_id)
                .join(budgets, budgets.c.id == table.c.budget_id)
                .where(out.c.state == "due", out.c.due_us <= now_us, out.c.channel.in_(list(self._channels)))
                .order_by(table.c.created_us, table.c.threshold_percent)
                .limit(1)
                .with_for_update(of=out, skip_locked=True)
            ).first()
            if row is None:
                return None
            connection.execute(
                sa.update(out)
                .where(out.c.alert_id == row.alert_id, out.c.channel == row.channel)
                .values(due_us=now_us + int(LEASE_S * 1e6), num_attempts=row.num_attempts + 1)
            )
        alert = Alert(
            row.alert_id, row.budget_name, row.threshold_percent, usd_text(from_pico(row.spent_pico)),
            usd_text(from_pico(row.limit_pico)), from_us(row.period_start_us).date().isoformat(), row.run_id,
            from_us(row.created_us).isoformat(timespec="seconds"),
        )  # fmt: skip
        return alert, row.channel, row.num_attempts + 1

    def _mark_failed(self, alert: Alert, channel: str, attempts: int, error: Exception) -> None:
        # The message may hold the URL with its secret path: only the kind of error and its status are kept.
        reason = f"{type(error).__name__} {getattr(error, 'code', '')}".strip()
        last = attempts >= MAX_ATTEMPTS
        due_us = to_us(self._ledger.clock() + timedelta(seconds=2**attempts))
        self._mark(alert.id, channel, state="failed" if last else "due", due_us=due_us, last_error=redact_text(reason))
        log.warning("alert %s by %s: attempt %d failed: %s", alert.id, channel, attempts, reason)

    def _mark(self, alert_id: str, channel: str, **values: object) -> None:
        out = schema.deliveries
        with self._database.write() as connection:
            connection.execute(
                sa.update(out).where(out.c.alert_id == alert_id, out.c.channel == channel).values(**values)
            )


def channels_from_environment(environment: Mapping[str, str] | None = None) -> list[Channel]:
    """The log, and webhook and e-mail where their variables are set. Raises `ConfigError` for a half-set e-mail."""
    values = os.environ if environment is None else environment
    channels: list[Channel] = [LogChannel()]
    if url := values.get("PARSIMONY_WEBHOOK_URL"):
        channels.append(WebhookChannel(url, values.get("PARSIMONY_WEBHOOK_SECRET")))
    if host := values.get("PARSIMONY_SMTP_HOST"):
        sender, to = values.get("PARSIMONY_SMTP_FROM"), values.get("PARSIMONY_SMTP_TO")
        tls, port = values.get("PARSIMONY_SMTP_TLS", "starttls"), values.get("PARSIMONY_SMTP_PORT", "587")
        if not sender or not to:
            raise ConfigError("PARSIMONY_SMTP_FROM and PARSIMONY_SMTP_TO: both are needed beside PARSIMONY_SMTP_HOST")
        if tls not in ("starttls", "ssl", "none") or not port.isdigit():
            raise ConfigError("PARSIMONY_SMTP_TLS must be starttls, ssl or none; PARSIMONY_SMTP_PORT a number")
        channels.append(
            SmtpChannel(
                host, sender, tuple(to.replace(" ", "").split(",")), int(port), values.get("PARSIMONY_SMTP_USER"),
                values.get("PARSIMONY_SMTP_PASSWORD"), tls,
            )
        )  # fmt: skip
    return channels


def dispatcher_from_environment(ledger: Ledger, *extra: Channel) -> AlertDispatcher:
    """A dispatcher with the environment's channels and the caller's."""
    return AlertDispatcher(ledger, [*channels_from_environment(), *extra])
