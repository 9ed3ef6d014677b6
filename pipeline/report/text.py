"""Figures as text."""

from __future__ import annotations

from evals.load.summary import figure
from evals.types import Estimate, LoadPoint, Money

GIB = 2**30
MIB = 2**20
MISSING = "not measured"


def action_text(action: str) -> str:
    """A decision's action as people read it. Tags and JSON keep the short word, which is recorded data.

    >>> action_text("hold"), action_text("undecided"), action_text("promote")
    ('not promoted', 'not decided', 'promote')
    """
    return {"hold": "not promoted", "undecided": "not decided"}.get(action, action)


def estimate_text(estimate: Estimate | None) -> str:
    """A share with its interval, if it has one: what is known exactly has none."""
    if estimate is None:
        return MISSING
    interval = "" if estimate.lo == estimate.hi else f" [{estimate.lo:.1%}, {estimate.hi:.1%}]"
    return f"{estimate.value:.1%}{interval}"


def points_text(difference: Estimate | None) -> str:
    """A difference of shares in points, with its interval, if it has one."""
    if difference is None:
        return MISSING
    interval = "" if difference.lo == difference.hi else f" [{100 * difference.lo:+z.1f}, {100 * difference.hi:+z.1f}]"
    return f"{100 * difference.value:+z.1f}{interval}"


def money_text(money: Money | None) -> str:
    """An amount with its interval."""
    return MISSING if money is None else f"{money.value:.3g} [{money.lo:.2g}, {money.hi:.2g}]"


def mean_text(point: LoadPoint | None, metric: str, form: str) -> str:
    """The mean of a metric over a point's repeats."""
    value = None if point is None else figure(point, metric)
    return MISSING if value is None else form.format(value.value)


def at_load(point: LoadPoint) -> str:
    """The load of a point in a few letters."""
    if point.request_rate is not None:
        return f"{point.request_rate:g} req/s"
    if point.trace is not None:
        return "the trace's pace"
    return "once" if point.concurrency is None else f"c={point.concurrency}"
