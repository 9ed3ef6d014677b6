"""The playbook's success metrics and unit costs, from the ledger. What was not measured is None, with the reason.

for kpi in kpis(ledger, start=start, end=end, revenue_usd=Decimal(120000)):
    print(kpi)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from finops.ledger import schema
from finops.ledger.database import exact_sum, join_sum
from finops.ledger.ledger import Ledger
from finops.money import from_micro, from_pico, to_us

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

TRAINING = ("training", "fine-tuning")
TARGETS: dict[str, tuple[str, float]] = {
    "gpu_utilization_inference": (">", 0.70),
    "gpu_utilization_training": (">", 0.85),
    "spot_coverage_training": (">=", 0.80),
    "cache_hit_rate": (">=", 0.25),
}
"""The playbook's: above 70% for inference, above 85% for training, spot for 80% of training, cache hits 25 to 40%."""


@dataclass(frozen=True)
class Kpi:
    """One figure. `value` is None where it was not measured, and `reason` says why. `met` is None without a target."""

    name: str
    label: str
    value: Decimal | float | None
    unit: str
    reason: str = ""

    @property
    def target(self) -> str:
        """`> 70%`, or empty."""
        if self.name not in TARGETS:
            return ""
        sign, bound = TARGETS[self.name]
        return f"{sign} {bound:.0%}"

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.name not in TARGETS or self.value is None:
            return None
        sign, bound = TARGETS[self.name]
        return float(self.value) > bound or (sign == ">=" and float(self.value) >= bound)

    @property
    def text(self) -> str:
        """The value for people."""
        if self.value is None:
            return f"not measured: {self.reason}"
        number = float(self.value)
        if self.unit == "fraction":
            return f"{number:.1%}"
        if self.unit.startswith("USD"):
            return f"{number:,.4g} USD" if abs(number) < 10 else f"{number:,.2f} USD"
        return f"{number:,.1f} {self.unit}"


@dataclass
class _Sums:
    """One pass over the charges of a workload type."""

    usd_pico: int = 0
    device_micro: int = 0
    idle_micro: int = 0
    spot_micro: int = 0
    measured_micro: int = 0
    busy_micro: int = 0
    tokens: int = 0
    token_usd_pico: int = 0
    token_micro: int = 0
    requests: int = 0
    request_usd_pico: int = 0

    def __add__(self, other: _Sums) -> _Sums:
        """Sum of both."""
        return _Sums(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def kpis(
    ledger: Ledger, *, start: datetime | None = None, end: datetime | None = None, team: str | None = None,
    revenue_usd: Decimal | None = None,
) -> list[Kpi]:  # fmt: skip
    """All metrics of a period (UTC, `end` exclusive), for one team or all."""
    with ledger.database.read() as connection:
        sums = _read(connection, start, end, team)
        runs = _evaluation_runs(connection, start, end, team)
        promotions = _promotions(connection, start, end, team)
    total = sum(sums.values(), _Sums())
    training = sum((sums.get(name, _Sums()) for name in TRAINING), _Sums())
    inference = sums.get("inference", _Sums())
    evaluation = sums.get("evaluation", _Sums())
    return [
        _ratio("usd_per_1k_tokens", "cost per 1,000 tokens served", usd=(inference.token_usd_pico, 1000),
               count=inference.tokens, reason="no inference charge carries token counts"),
        _ratio("usd_per_1k_inferences", "cost per 1,000 inferences", usd=(inference.request_usd_pico, 1000),
               count=inference.requests, reason="no inference charge carries request counts"),
        _ratio("usd_per_training_hour", "cost per training device hour", usd=(training.usd_pico, 1_000_000),
               count=training.device_micro, reason="no training was charged"),
        _ratio("usd_per_evaluation", "cost per evaluated run", usd=(evaluation.usd_pico, 1), count=runs,
               reason="no evaluation was charged"),
        _ratio("usd_per_promotion_decision", "cost per promotion decision", usd=(promotions[1], 1),
               count=promotions[0], reason="no promotion decision was recorded"),
        _fraction("gpu_utilization_inference", "device utilization, inference", inference.busy_micro,
                  inference.measured_micro, "no inference charge carries busy time"),
        _fraction("gpu_utilization_training", "device utilization, training", training.busy_micro,
                  training.measured_micro, "no training charge carries busy time"),
        _fraction("spot_coverage_training", "training hours on spot", training.spot_micro, training.device_micro,
                  "no training was charged"),
        Kpi("idle_hours", "idle and unused device hours", from_micro(total.idle_micro), "h"),
        _per_hour(total),
        _share_of_revenue(total, revenue_usd),
        Kpi("cache_hit_rate", "semantic cache hit rate", None, "fraction", "there is no cache"),
    ]  # fmt: skip


def _ratio(name: str, label: str, *, usd: tuple[int, int], count: int, reason: str) -> Kpi:
    """USD per `usd[1]` of something: `usd[0]` pico-USD over `count`."""
    value = from_pico(usd[0]) * usd[1] / count if count else None
    return Kpi(name, label, value, "USD", "" if count else reason)


def _fraction(name: str, label: str, part: int, whole: int, reason: str) -> Kpi:
    return Kpi(name, label, part / whole if whole else None, "fraction", "" if whole else reason)


def _per_hour(total: _Sums) -> Kpi:
    label, reason = "tokens per device hour", "no charge carries token counts"
    hours = from_micro(total.token_micro)
    value = total.tokens / hours if hours and total.tokens else None
    return Kpi("tokens_per_device_hour", label, value, "tokens/h", "" if value is not None else reason)


def _share_of_revenue(total: _Sums, revenue_usd: Decimal | None) -> Kpi:
    label = "cost as a share of revenue"
    if not revenue_usd:
        return Kpi("cost_share_of_revenue", label, None, "fraction", "no revenue was given (--revenue-usd)")
    return Kpi("cost_share_of_revenue", label, from_pico(total.usd_pico) / revenue_usd, "fraction")


Query = sa.Select[*tuple[Any, ...]]


def _where(query: Query, start: datetime | None, end: datetime | None, team: str | None) -> Query:
    table = schema.charges
    if start is not None:
        query = query.where(table.c.start_us >= to_us(start))
    if end is not None:
        query = query.where(table.c.start_us < to_us(end))
    return query if team is None else query.where(table.c.team == team)


def _read(
    connection: Connection, start: datetime | None, end: datetime | None, team: str | None
) -> dict[str, _Sums]:  # fmt: skip
    """Sums by workload type."""
    c = schema.charges.c
    tokens = sa.func.coalesce(c.input_tokens, 0) + sa.func.coalesce(c.output_tokens, 0)
    has_tokens = c.input_tokens.is_not(None) | c.output_tokens.is_not(None)

    def total(value: sa.ColumnElement[int], when: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((when, value), else_=0)), 0)

    def money(when: sa.ColumnElement[bool]) -> tuple[sa.ColumnElement[int], sa.ColumnElement[int]]:
        return exact_sum(sa.case((when, c.effective_usd_pico), else_=0))

    query = sa.select(
        c.workload_type,
        *money(sa.true()),
        total(c.device_micro, sa.true()),
        total(c.device_micro, c.work.in_(("idle", "unused"))),
        total(c.device_micro, (c.purchase_option == "spot")),
        total(c.device_micro, c.busy_micro.is_not(None)),
        total(c.busy_micro, c.busy_micro.is_not(None)),
        total(tokens, has_tokens),
        *money(has_tokens),
        total(c.device_micro, has_tokens),
        total(c.num_requests, c.num_requests.is_not(None)),
        *money(c.num_requests.is_not(None)),
    ).group_by(c.workload_type)
    found = {}
    for row in connection.execute(_where(query, start, end, team)):
        device, idle, spot, measured, busy, num_tokens = (int(value) for value in row[3:9])
        found[row[0]] = _Sums(
            join_sum(row[1], row[2]), device, idle, spot, measured, busy, num_tokens, join_sum(row[9], row[10]),
            int(row[11]), int(row[12]), join_sum(row[13], row[14]),
        )  # fmt: skip
    return found


def _evaluation_runs(connection: Connection, start: datetime | None, end: datetime | None, team: str | None) -> int:
    c = schema.charges.c
    query = sa.select(sa.func.count(c.run_id.distinct())).where(c.workload_type == "evaluation", c.run_id != "")
    return int(connection.execute(_where(query, start, end, team)).scalar_one())


def _promotions(
    connection: Connection, start: datetime | None, end: datetime | None, team: str | None
) -> tuple[int, int]:  # fmt: skip
    """How many promotion decisions there were, and what they cost together (pico-USD)."""
    table = schema.promotions
    query = sa.select(sa.func.count(), *exact_sum(table.c.decision_pico))
    if start is not None:
        query = query.where(table.c.time_us >= to_us(start))
    if end is not None:
        query = query.where(table.c.time_us < to_us(end))
    if team is not None:
        query = query.where(table.c.team == team)
    row = connection.execute(query).one()
    return int(row[0]), join_sum(row[1], row[2])
