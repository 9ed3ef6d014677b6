"""The report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from decimal import Decimal
from html import escape

from core.svg import bars, gauge, money, scatter, stacked_bars
from finops.money import usd_text
from finops.reports.report import Report, sections

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 960px;
       padding: 24px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 8px; }
p { margin: 4px 0 12px; } .muted { color: #595959; fill: #595959; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid #ddd; vertical-align: top; min-width: 3em;
         overflow-wrap: break-word; }
th { white-space: nowrap; } td:first-child { white-space: nowrap; } td.long { min-width: 20em; }
.scroll { overflow-x: auto; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { width: 100%; max-width: 720px; height: auto; display: block; margin: 8px 0; }
svg text { font: 12.5px system-ui, sans-serif; fill: #1a1a1a; } svg text.muted { fill: #595959; }
svg .track { fill: #eee; } svg .grid { stroke: #ddd; } svg .limit { stroke: #1a1a1a; stroke-dasharray: 4 3; }
.good { color: #00664a; } .bad { color: #a33b00; }
.big { font-size: 30px; font-weight: 600; margin: 12px 0 0; }
"""


def as_html(report: Report) -> str:
    """The whole page."""
    charts = {
        "showback": _spend(report),
        "budgets": "".join(_budgets(report)),
        "estimate against actual": _estimates(report),
        "right-sizing of reservations": _reservations(report),
    }
    parts = [_head(report)]
    for title, header, rows in sections(report):
        parts.append(f"<h2>{escape(title.capitalize())}</h2>{charts.get(title, '')}")
        parts.append(_table(header, rows) if rows else '<p class="muted">Nothing recorded.</p>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Spend: {escape(report.period)}</title><style>{_STYLE}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


def _head(report: Report) -> str:
    team = f", team {escape(report.team)}" if report.team else ""
    return (
        f'<h1>Spend</h1><p class="muted">{escape(report.period)}{team}. Written '
        f"{report.created:%Y-%m-%d %H:%M} UTC. Effective cost in USD.</p>"
        f'<p class="big">{Decimal(usd_text(report.total_usd)):,f} USD</p>'
    )


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").lstrip("+-").rstrip("%").isdigit()


def _table(header: list[str], rows: list[list[str]]) -> str:
    numeric = [all(_is_number(row[i]) or not row[i] for row in rows) for i in range(len(header))]

    def cell(tag: str, index: int, text: str) -> str:
        kind = "number" if numeric[index] else {"yes": "good", "no": "bad"}.get(text, "long" if len(text) > 40 else "")
        return f"<{tag} class={kind}>{escape(text)}</{tag}>" if kind else f"<{tag}>{escape(text)}</{tag}>"

    lines = ["".join(cell("th", index, text) for index, text in enumerate(header))]
    lines += ["".join(cell("td", index, text) for index, text in enumerate(row)) for row in rows]
    return f"<div class=scroll><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def _spend(report: Report) -> str:
    if not report.shares:
        return ""
    months = sorted({month for share in report.shares for month in share.by_month})
    series = {
        share.team or "(none)": [float(share.by_month.get(month, 0)) for month in months] for share in report.shares
    }
    years = [month // 100 for month in months]
    is_new_year = [number == 0 or year != years[number - 1] for number, year in enumerate(years)]
    labels = [
        f"{month // 100}-{month % 100:02d}" if new else f"{month % 100:02d}"
        for month, new in zip(months, is_new_year, strict=True)
    ]
    drivers = [(name, float(usd)) for name, usd in report.drivers]
    return (
        f"<p>Spend by team and month</p>{stacked_bars(labels, series, 'USD')}"
        f"<p>Top {len(drivers)} cost drivers</p>{bars(drivers, 'USD')}"
    )


def _budgets(report: Report) -> list[str]:
    return [
        gauge(
            f"{item.name} ({item.scope}): {money(float(item.spent_usd))} spent, "
            f"{money(float(item.reserved_usd))} reserved, of {money(float(item.limit_usd))} USD",
            [("spent", float(item.spent_usd)), ("reserved", float(item.reserved_usd))], float(item.limit_usd), "USD",
        )
        for item in report.budgets
    ]  # fmt: skip


def _estimates(report: Report) -> str:
    points = [
        (
            error.expected_s,
            error.actual_s,
            f"{error.run_id} {error.stage}: {error.expected_s:.0f} s, {error.actual_s:.0f} s",
        )
        for error in report.errors
        if error.expected_s > 0 and error.actual_s > 0
    ]
    return scatter(points, "estimated seconds", "actual seconds") if points else ""


def _reservations(report: Report) -> str:
    parts = []
    for item in report.reservations:
        rows = [(f"{n} reserved", float(usd)) for n, usd in enumerate(item.saving_by_num, start=1)][:8]
        parts.append(f"<p>{escape(item.accelerator)}: USD saved over {item.period_hours:.0f} h</p>{bars(rows, 'USD')}")
    return "".join(parts)
