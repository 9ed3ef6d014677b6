"""The ledger's verbs of the command line."""

from core.command import Verb

VERBS = {
    "report": Verb("finops.cli.report:main", "what was spent, by whom, and what it saved: text, CSV or HTML"),
    "budgets": Verb("finops.cli.budgets:main", "limits that stop runs: set, list, alerts"),
    "approvals": Verb(
        "finops.cli.approvals:main", "requests of expensive runs and promotions: list, approve, reject, log"
    ),
    "focus": Verb("finops.cli.focus:main", "FOCUS 1.2 files: export, import, check"),
    "prices": Verb("finops.cli.prices:main", "the price catalog: list, refresh"),
    "ingest": Verb("finops.cli.ingest:main", "a serving fleet's usage, commitments and shared machines, from files"),
    "metrics": Verb("finops.cli.metrics:main", "the ledger as Prometheus metrics: serve, print"),
}
"""Verb -> the function behind it, imported when it is used."""
