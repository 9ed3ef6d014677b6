"""Approval of a run, or of a promotion, before it happens: another person looks at plan and estimate and says yes.

    parsimony approvals list
    parsimony approvals approve 7 --reason "agreed in planning"
    parsimony approvals reject 7 --reason "try 4 bits first"

An approval binds to the hash of plan + estimate + price version: any change makes another subject, which nobody has
approved. It expires. Nobody approves their own run. Every step is in an append-only audit trail (`log`). Who acts is
PARSIMONY_USER, else the operating system's user: as strong as the access to the ledger's database.
"""

from __future__ import annotations

from finops.cli.common import action_parser, parser, read
from finops.controls.approvals import Approvals
from finops.ledger.ledger import Ledger
from finops.money import usd_text


def main(arguments: list[str]) -> int:
    """Run the command line."""
    commands = parser("approvals", __doc__)
    actions = commands.add_subparsers(dest="action", required=True)
    action_parser(actions, "list", "every request and its state")
    action_parser(actions, "log", "the audit trail")
    for name in ("approve", "reject"):
        action = action_parser(actions, name, f"{name} a pending request")
        action.add_argument("id", type=int)
        action.add_argument("--reason", default="")
    options = read(commands, arguments)
    approvals = Approvals(Ledger(options.ledger, create=False))
    if options.action == "log":
        for step in approvals.trail():
            print(
                f"{step['time']:%Y-%m-%d %H:%M:%S} {step['actor']} {step['action']} {step['subject']} {step['detail']}"
            )
    elif options.action == "list":
        for item in approvals.all():
            decided = f" by {item.decided_by}" if item.decided_by else f" until {item.expires:%Y-%m-%d %H:%M} UTC"
            usd = usd_text(item.estimate_usd)
            print(f"{item.id}  {item.state}{decided}  {usd} USD  {item.kind} of {item.requester}: {item.summary}")
    else:
        done = approvals.decide(options.id, approve=options.action == "approve", reason=options.reason)
        print(f"approval {done.id}: {done.state} by {done.decided_by}")
    return 0
