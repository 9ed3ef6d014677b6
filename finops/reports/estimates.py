"""What a stage will take and cost, from what similar stages took.

Similar means: the same stage, method and hardware; else the same stage and hardware. Of each recorded duration the part
beyond what such a stage takes whatever its size (`StageWork.fixed_s`) is scaled by the ratio of parameters x tokens.
The expected duration is the geometric mean of the scaled ones. The range is a 90% prediction interval of a log-normal,
with a prior (two observations that spread by a factor of 1.4) so that one lucky run does not look certain, wider the
further the work lies from what was seen, and never wider than the rough rule's.

Before any exist, the rough rule of `work` stands in.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import sqlalchemy as sa

from finops.ledger import schema
from finops.ledger.charges import Rate
from finops.ledger.database import Row, exact_sum, insert_ignore, join_sum
from finops.ledger.ledger import Ledger
from finops.money import from_pico, from_us, to_pico, to_us
from finops.reports.work import (
    ROUGH_FACTOR,
    StageEstimate,
    StageWork,
    estimate_of,
    rough_estimate,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

PRIOR_LOG_SD = math.log(1.4)
PRIOR_RUNS = 2
FIXED_SHARE = 0.8
"""At most this share of a recorded duration counts as fixed."""
EXTRAPOLATION = 0.2
"""Standard deviation of the log duration gained per factor of e between this work and the nearest recorded."""
MAX_RUNS = 30


@dataclass(frozen=True)
class RunEstimate:
    """All stages of a run. Adding the ends is cautious: it supposes that the stages are long together."""

    stages: tuple[StageEstimate, ...]

    @property
    def expected_usd(self) -> Decimal:
        """Sum of the expected costs."""
        return sum((stage.expected_usd for stage in self.stages), Decimal(0))

    @property
    def low_usd(self) -> Decimal:
        """Sum of the lower ends."""
        return sum((stage.low_usd for stage in self.stages), Decimal(0))

    @property
    def high_usd(self) -> Decimal:
        """Sum of the upper ends: what to reserve."""
        return sum((stage.high_usd for stage in self.stages), Decimal(0))


@dataclass(frozen=True)
class EstimateError:
    """Estimate against actual of one stage of a finished run."""

    run_id: str
    stage: str
    time: datetime
    expected_s: float
    actual_s: float
    expected_usd: Decimal
    actual_usd: Decimal
    within_range: bool
    low_s: float
    high_s: float
    basis: str

    @property
    def relative_error(self) -> float | None:
        """(actual - expected) / actual duration; None for an actual of zero."""
        return (self.actual_s - self.expected_s) / self.actual_s if self.actual_s else None


def record_stage(
    ledger: Ledger, run_id: str, work: StageWork, duration_s: float, *, status: str = "completed"
) -> None:  # fmt: skip
    """Record how long a stage took (monotonic seconds): what later estimates rest on.

    Only `completed` ones count there; `partial` says that part of the work was found done. Both are held against the
    run's own estimate.
    """
    with ledger.database.write() as connection:
        connection.execute(
            insert_ignore(schema.stage_runs, ledger.database.is_sqlite),
            {
                "run_id": run_id, "stage": work.stage, "method": work.method, "hardware": work.hardware,
                "num_parameters": work.num_parameters, "num_tokens": work.num_tokens,
                "duration_us": round(duration_s * 1e6), "status": status, "created_us": to_us(ledger.clock()),
            },
        )  # fmt: skip


def estimate_run(ledger: Ledger, stage_works: Sequence[StageWork], rate: Rate) -> RunEstimate:
    """Duration and cost of each stage at a rate."""
    with ledger.database.read() as connection:
        return RunEstimate(tuple(_stage(connection, work, rate) for work in stage_works))


def _stage(connection: Connection, work: StageWork, rate: Rate) -> StageEstimate:
    rows, basis = _similar(connection, work)
    if not rows:
        return rough_estimate(work, rate.usd_per_hour)
    expected, factor = _from_runs(rows, work)
    runs = "run" if len(rows) == 1 else "runs"
    return estimate_of(work, expected, factor, rate.usd_per_hour, f"{len(rows)} recorded {runs} of {basis}")


def _similar(connection: Connection, work: StageWork) -> tuple[Sequence[Row], str]:
    table = schema.stage_runs
    base = (
        sa.select(table)
        .where(table.c.stage == work.stage, table.c.hardware == work.hardware, table.c.status == "completed")
        .where(table.c.duration_us > 0)
        .order_by(table.c.created_us.desc(), table.c.id.desc())
        .limit(MAX_RUNS)
    )
    rows = connection.execute(base.where(table.c.method == work.method)).all()
    if rows:
        return rows, f"{work.stage} by {work.method} on {work.hardware}"
    return connection.execute(base).all(), f"{work.stage} by other methods on {work.hardware}"


def _from_runs(rows: Sequence[Row], work: StageWork) -> tuple[float, float]:
    """Geometric mean of the scaled durations (s), and the factor of the 90% interval around it."""
    logs, distances = [], []
    for row in rows:
        scale = _ratio(work.num_parameters, row.num_parameters) * _ratio(work.num_tokens, row.num_tokens)
        took = row.duration_us / 1e6
        fixed = min(work.fixed_s, FIXED_SHARE * took)
        scaled = fixed + (took - fixed) * scale
        logs.append(math.log(scaled))
        distances.append(abs(math.log(scaled / took)))
    mean = statistics.fmean(logs)
    freedom = PRIOR_RUNS + len(logs) - 1
    spread = PRIOR_RUNS * PRIOR_LOG_SD**2 + sum((value - mean) ** 2 for value in logs)
    variance = spread / (freedom + 1) * (1 + 1 / len(logs)) + (EXTRAPOLATION * min(distances)) ** 2
    factor = math.exp(_student_95(freedom) * math.sqrt(variance))
    return math.exp(mean), min(factor, ROUGH_FACTOR)


def _ratio(new: int | None, old: int | None) -> float:
    return new / old if new and old else 1.0


def _student_95(freedom: int) -> float:
    """95% point of Student's t, by the expansion of Cornish and Fisher (within 2% from 2 degrees of freedom)."""
    z = statistics.NormalDist().inv_cdf(0.95)
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + first + second + third


def save_estimate(ledger: Ledger, run_id: str, estimate: RunEstimate) -> None:
    """Keep a run's estimate, to hold it against what it really takes. The first one saved stands."""
    now_us = to_us(ledger.clock())
    with ledger.database.write() as connection:
        for stage in estimate.stages:
            connection.execute(
                insert_ignore(schema.estimates, ledger.database.is_sqlite),
                {
                    "run_id": run_id, "stage": stage.stage, "expected_us": round(stage.expected_s * 1e6),
                    "low_us": round(stage.low_s * 1e6), "high_us": round(stage.high_s * 1e6),
                    "expected_pico": to_pico(stage.expected_usd), "low_pico": to_pico(stage.low_usd),
                    "high_pico": to_pico(stage.high_usd), "basis": stage.basis, "created_us": now_us,
                },
            )  # fmt: skip


def estimate_errors(ledger: Ledger, *, since: datetime | None = None) -> list[EstimateError]:
    """Every estimated stage that completed, oldest first: estimate against actual."""
    guess, run, charge = schema.estimates, schema.stage_runs, schema.charges
    query = (
        sa.select(
            guess, sa.func.sum(run.c.duration_us).label("actual_us"), sa.func.max(run.c.created_us).label("done_us")
        )
        .join(run, sa.and_(run.c.run_id == guess.c.run_id, run.c.stage == guess.c.stage))
        .where(run.c.status.in_(("completed", "partial")))
        .group_by(*guess.c)
        .order_by(sa.func.max(run.c.created_us))
    )
    if since is not None:
        query = query.where(run.c.created_us >= to_us(since))
    found = []
    with ledger.database.read() as connection:
        for row in connection.execute(query).all():
            cost = sa.select(*exact_sum(charge.c.effective_usd_pico)).where(
                charge.c.run_id == row.run_id, charge.c.stage == row.stage
            )
            actual = from_pico(join_sum(*connection.execute(cost).one()))
            found.append(
                EstimateError(
                    row.run_id, row.stage, from_us(row.done_us), row.expected_us / 1e6, int(row.actual_us) / 1e6,
                    from_pico(row.expected_pico), actual, bool(row.low_us <= row.actual_us <= row.high_us),
                    row.low_us / 1e6, row.high_us / 1e6, row.basis,
                )
            )  # fmt: skip
    return found


def mean_absolute_relative_error(errors: Sequence[EstimateError]) -> float | None:
    """Mean of |actual - expected| / actual over stages; None where there are none."""
    values = [abs(error.relative_error) for error in errors if error.relative_error is not None]
    return statistics.fmean(values) if values else None
