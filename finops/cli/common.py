"""What the ledger's verbs share: the option `--ledger`, before or after an action, and a log without secrets."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from core.command import Parser, verb_parser
from core.redact import RedactingFilter

LEDGER_HELP = "SQLite file or database URL (default: PARSIMONY_LEDGER_URL, mlruns/finops.db)"


def parser(verb: str, text: str | None) -> Parser:
    """A parser for a verb over the ledger, whose help shows the text with its examples."""
    found = verb_parser(verb, text)
    found.add_argument("--ledger", metavar="URL", help=LEDGER_HELP)
    return found


def action_parser(actions: Any, name: str, text: str) -> Parser:
    """An action of such a verb: `approvals approve`, which takes `--ledger` as well."""
    found: Parser = actions.add_parser(name, help=text, description=text)
    found.add_argument("--ledger", metavar="URL", default=argparse.SUPPRESS, help=LEDGER_HELP)
    return found


def read(commands: Parser, arguments: list[str]) -> argparse.Namespace:
    """The parsed arguments; from here on what is logged is redacted."""
    options = commands.parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a new ledger's schema is nobody's news
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, RedactingFilter) for one in handler.filters):
            handler.addFilter(RedactingFilter())
    return options
