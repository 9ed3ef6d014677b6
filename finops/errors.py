"""The errors of spend, budgets and the ledger. The user can fix all of them: one message, no traceback, an exit code.

UserError                    2
├── LedgerUnavailableError        2   the database cannot be reached: nothing may be spent (fail closed)
├── ChargeConflictError           2   a charge under a known key with other figures: write a correction instead
├── TagError                 2   a required tag is missing, or its value is not allowed
├── ReservationError         2   a reservation that is settled, released, expired or unknown
├── ApprovalRequiredError         3   the run waits for a person
└── BudgetExceededError           4   the reservation would pass a budget; it is rejected, never cut down to the rest
"""

from __future__ import annotations

from core.errors import UserError


class LedgerUnavailableError(UserError):
    """The ledger's database cannot be reached or is not ours."""


class ChargeConflictError(UserError):
    """A charge with the key of a recorded one and other figures."""


class TagError(UserError):
    """A required tag is missing, or a value is not allowed."""


class ReservationError(UserError):
    """A reservation that cannot be used any more."""


class ApprovalRequiredError(UserError):
    """The run's estimate passes the threshold and nobody has approved it."""

    exit_code = 3


class BudgetExceededError(UserError):
    """A reservation that would pass a budget's limit."""

    exit_code = 4
