"""Spend on a page: showback, unit costs, success metrics, budgets, estimates, savings, right-sizing.

parsimony report --from 2026-10-01 --to 2026-11-01
parsimony report --team research --format csv --output october.csv
parsimony report --format html --output october.html --revenue-usd 120000 --reserved "NVIDIA L4=0.495"
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from finops.controls.budgets import Budget, Budgets
from finops.ledger.ledger import Ledger
from finops.money import usd_text
from finops.reports.estimates import EstimateError, estimate_errors
from finops.reports.kpis import Kpi, kpis
from finops.reports.savings import Reservation, Saving, right_size, savings
from finops.reports.showback import Share, cube, shares, top_drivers


@dataclass(frozen=True)
class Report:
    """Everything that a report shows; the three renderings read the same figures."""

    created: datetime
    start: datetime | None
    end: datetime | None
    team: str | None
    shares: list[Share]
    drivers: tuple[tuple[str, Decimal], ...]
    kpis: list[Kpi]
    budgets: list[Budget]
    errors: list[EstimateError]
    savings: list[Saving]
    reservations: list[Reservation]

    @property
    def total_usd(self) -> Decimal:
        """Sum of the shares."""
        return sum((share.usd for share in self.shares), Decimal(0))

    @property
    def period(self) -> str:
        """`2026-10-01 to 2026-11-01 (UTC)`, or what is open of it."""
        if self.start is None and self.end is None:
            return "everything recorded"
        start = self.start.date().isoformat() if self.start else "the beginning"
        return f"{start} to {self.end.date().isoformat() if self.end else 'now'} (UTC, end exclusive)"


def gather(
    ledger: Ledger, *, start: datetime | None = None, end: datetime | None = None, team: str | None = None,
    revenue_usd: Decimal | None = None, reserved_usd_per_hour: Mapping[str, Decimal] | None = None,
) -> Report:  # fmt: skip
    """Read everything a report needs. Raises `UserError` for an empty period or a team without charges."""
    cells = cube(ledger, start=start, end=end, team=team)
    return Report(
        created=ledger.clock(), start=start, end=end, team=team, shares=shares(cells), drivers=top_drivers(cells),
        kpis=kpis(ledger, start=start, end=end, team=team, revenue_usd=revenue_usd),
        budgets=[item for item in Budgets(ledger).status() if team is None or item.team in (None, team)],
        errors=estimate_errors(ledger, since=start),
        savings=savings(ledger),
        reservations=right_size(ledger, reserved_usd_per_hour or {}, start=start, end=end),
    )  # fmt: skip


def sections(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """The report as tables: title, header, rows of texts."""
    return [
        (
            "showback",
            ["team", "USD", "device hours", "lost work USD", "last month", "top cost drivers"],
            [
                [
                    share.team or "(none)", usd_text(share.usd), f"{share.device_hours:.2f}",
                    usd_text(share.lost_usd), "" if share.trend is None else f"{share.trend:+.0%}",
                    "; ".join(f"{name}: {usd_text(usd)}" for name, usd in share.drivers),
                ]
                for share in report.shares
            ] + [["all", usd_text(report.total_usd), "", "", "", ""]],
        ),
        (
            "unit costs and success metrics",
            ["metric", "value", "target", "met"],
            [[kpi.label, kpi.text, kpi.target, {True: "yes", False: "no", None: ""}[kpi.met]] for kpi in report.kpis],
        ),
        (
            "budgets",
            ["budget", "for", "period from", "limit USD", "spent", "reserved", "left"],
            [
                [item.name, item.scope, f"{item.period} {item.period_start.date()}",
                 *(usd_text(value) for value in (item.limit_usd, item.spent_usd, item.reserved_usd, item.left_usd))]
                for item in report.budgets
            ],
        ),
        (
            "estimate against actual",
            ["run", "stage", "estimated s", "actual s", "estimated USD", "actual USD", "within range"],
            [
                [error.run_id, error.stage, f"{error.expected_s:.1f}", f"{error.actual_s:.1f}",
                 usd_text(error.expected_usd), usd_text(error.actual_usd), "yes" if error.within_range else "no"]
                for error in report.errors
            ],
        ),
        (
            "saved by promotions",
            ["model", "promoted", "replaced", "since", "tokens served", "saved USD"],
            [
                [item.model_name, item.model_id, item.replaced_model_id or "", f"{item.time:%Y-%m-%d}",
                 f"{item.num_tokens}", usd_text(item.usd) if item.usd is not None else f"unknown: {item.reason}"]
                for item in report.savings
            ],
        ),
        (
            "right-sizing of reservations",
            ["accelerator", "on demand USD/h", "reserved USD/h", "pays above", "best number", "would have saved USD"],
            [
                [item.accelerator, f"{item.on_demand_usd_per_hour:.4f}", f"{item.reserved_usd_per_hour:.4f}",
                 f"{item.break_even:.0%} use", str(item.best_num), str(item.best_saving_usd)]
                for item in report.reservations
            ],
        ),
    ]  # fmt: skip


def as_text(report: Report) -> str:
    """Aligned tables for a terminal; an empty one says so."""
    lines = [f"Spend: {report.period}" + (f", team {report.team}" if report.team else ""), ""]
    for title, header, rows in sections(report):
        lines.append(title.upper())
        if not rows:
            lines += ["  nothing recorded", ""]
            continue
        widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
        for row in [header, *rows]:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  " + "  ".join(cells).rstrip())
        lines.append("")
    return "\n".join(lines)


def as_csv(report: Report) -> str:
    """Long form: section, row, column, value. Texts that a spreadsheet would run as a formula are quoted."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["section", "row", "column", "value"])
    for title, header, rows in sections(report):
        for row in rows:
            for name, value in zip(header[1:], row[1:], strict=True):
                writer.writerow([title, _inert(row[0]), name, _inert(value)])
    return stream.getvalue()


def _inert(text: str) -> str:
    is_formula = text[:1] in ("=", "+", "-", "@") and not text.lstrip("+-").rstrip("%").replace(".", "").isdigit()
    return f"'{text}" if is_formula else text
