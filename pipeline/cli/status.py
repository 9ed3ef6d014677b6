"""Where things stand: champions and newest decisions model by model, open charges and reservations.

    parsimony status
    parsimony status tracking.uri=sqlite:////shared/mlflow.db
    parsimony status --ledger sqlite:////shared/finops.db

It reads and changes nothing; where nothing is recorded yet it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from core.console import say, table
from core.redact import redact_text
from finops.ledger.ledger import Ledger
from finops.money import usd_text
from finops.reports.live import Live, live
from pipeline.billing.terms import ledger_file, ledger_url
from pipeline.cli.options import config_of, parser
from pipeline.config import TrackingConfig
from pipeline.record.registry import champion_version
from pipeline.record.store import Recorder
from pipeline.record.tags import verdict_of
from pipeline.record.versions import registered_models

NONE = "none"
HEADER = ("model", "champion", "variant", "newest decision", "on", "when (UTC)")
CHARGES = ("run", "stage", "host", "since (UTC)", "last sign of life (UTC)")
RESERVATIONS = ("run", "reserved USD", "used USD", "expires (UTC)")


def main(arguments: list[str]) -> int:
    """Show it."""
    commands = parser("status", __doc__)
    commands.add_argument("--ledger", metavar="URL", help="the ledger's file or URL (default: the configured one)")
    options = commands.parse(arguments)
    config = config_of(options)
    tracking = config.tracking
    if is_there(tracking.uri):
        found = model_rows(tracking, config.promote.alias)
        if found:
            table(f"Models in {tracking.uri}", HEADER, found)
        else:
            say(f"Models in {tracking.uri}: none is recorded yet")
    else:
        say(f"Models in {tracking.uri}: none is recorded yet")
    show_ledger(options.ledger or ledger_url(config.finops.ledger, config.tracking))
    return 0


def is_there(uri: str) -> bool:
    """Whether a SQLite store's file exists; a server is asked by whoever uses it."""
    file = ledger_file(uri)
    return file is None or file.exists()


def model_rows(tracking: TrackingConfig, alias: str) -> list[tuple[str, ...]]:
    """One line a model that is recorded or registered."""
    recorder = Recorder(tracking)
    names = sorted({*recorder.models(), *registered_models(recorder.client)})
    found: list[tuple[str, ...]] = []
    for name in names:
        champion = champion_version(recorder.client, name, alias)
        version = NONE if champion is None else f"version {champion.version}"
        variant = NONE if champion is None else str(champion.tags.get("variant", "unknown"))
        decided = [run for run in recorder.runs(name) if run.data.tags.get("role") == "candidate"]
        tags: Mapping[str, str] = decided[0].data.tags if decided else {}
        when = moment(datetime.fromtimestamp(decided[0].info.start_time / 1000, UTC)) if decided else NONE
        found.append((name, version, variant, decision_text(tags), tags.get("label", NONE), when))
    return found


def decision_text(tags: Mapping[str, str]) -> str:
    """A recorded decision in words."""
    return verdict_of("candidate", tags.get("decision", "")) or NONE


def show_ledger(url: str) -> None:
    """Open charges and reservations; a ledger that is not there has none."""
    shown = redact_text(url)
    if ("://" in url and not is_there(url)) or ("://" not in url and not Path(url).exists()):
        say(f"Ledger {shown}: nothing is recorded yet")
        return
    ledger = Ledger(url, create=False)
    try:
        found = live(ledger)
    finally:
        ledger.close()
    say(f"Ledger {shown}: {len(found.charges)} open charges, {len(found.reservations)} reservations")
    for title, header, rows in ledger_tables(found):
        if rows:
            table(title, header, rows)


def ledger_tables(found: Live) -> list[tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]]:
    """The two tables: title, header, rows."""
    charges = [
        (one.run_id, one.stage, one.host, moment(one.started), moment(one.last_sign_of_life)) for one in found.charges
    ]
    reservations = [
        (one.run_id, usd_text(one.amount_usd), usd_text(one.used_usd), moment(one.expires))
        for one in found.reservations
    ]
    return [("Open charges", CHARGES, charges), ("Reservations", RESERVATIONS, reservations)]


def moment(when: datetime) -> str:
    """A time to the minute."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M}"
