"""Budgets that cannot be passed, not even by two runs at once.

    parsimony budgets set research-monthly --limit-usd 5000 --period month --team research
    parsimony budgets list
    parsimony budgets alerts                 # send what is due: log, webhook, e-mail

A run reserves its estimate's upper end before it starts, in one transaction over all budgets that it falls under. A
reservation that would pass a limit is rejected, never reduced to the rest. Charges draw on the reservation as they are
recorded, so spend + live reservations <= limit at every instant while runs stay within what they reserved. A run that
needs more asks for it, and stops if that is refused. A reservation without heartbeat expires.
"""

from __future__ import annotations

from core.command import Parser
from finops.cli.common import action_parser, parser, read
from finops.controls.alerts import dispatcher_from_environment
from finops.controls.budgets import Budgets
from finops.ledger.ledger import Ledger
from finops.ledger.spend import PERIODS, SCOPES
from finops.money import to_decimal, usd_text


def _parser() -> Parser:
    commands = parser("budgets", __doc__)
    actions = commands.add_subparsers(dest="action", required=True)
    define = action_parser(actions, "set", "create a budget or change its limit")
    define.add_argument("name")
    define.add_argument("--limit-usd", required=True)
    define.add_argument("--period", default="month", help=f"one of {', '.join(PERIODS)} (default: month)")
    for name in SCOPES:
        define.add_argument(f"--{name.replace('_', '-')}", help="only charges with this tag (default: all)")
    action_parser(actions, "list", "every budget: limit, spent, reserved, left")
    action_parser(actions, "alerts", "send the alerts that are due")
    return commands


def main(arguments: list[str]) -> int:
    """Run the command line."""
    options = read(_parser(), arguments)
    ledger = Ledger(options.ledger, create=options.action == "set")
    if options.action == "set":
        scope = {name: getattr(options, name) for name in SCOPES}
        limit = to_decimal(options.limit_usd, "--limit-usd")
        Budgets(ledger).define(options.name, limit_usd=limit, period=options.period, **scope)
    if options.action == "alerts":
        print(f"{dispatcher_from_environment(ledger).deliver()} sent")
        return 0
    for budget in Budgets(ledger).status():
        print(
            f"{budget.name}: {budget.scope}; {budget.period} from {budget.period_start.date()}: limit "
            f"{usd_text(budget.limit_usd)}, spent {usd_text(budget.spent_usd)}, reserved "
            f"{usd_text(budget.reserved_usd)}, left {usd_text(budget.left_usd)} USD"
        )
    return 0
