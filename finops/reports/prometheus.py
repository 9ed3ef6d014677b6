"""Spend as Prometheus metrics (text exposition format 0.0.4), names under `parsimony_` (OpenCost has others).

Figures are read from the ledger at each scrape, at most once per `--cache-s`. A ledger that cannot be read gives
`parsimony_ledger_up 0` and nothing else: a dashboard shows a gap, not an old or free figure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from core.errors import UserError
from finops.controls.budgets import Budgets
from finops.ledger.ledger import Ledger
from finops.reports.estimates import estimate_errors, mean_absolute_relative_error
from finops.reports.kpis import kpis
from finops.reports.showback import cube

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_KPI_METRICS = {
    "usd_per_1k_tokens": ("parsimony_cost_per_thousand_tokens_usd", "Cost per 1,000 tokens served, last 30 days."),
    "usd_per_1k_inferences": ("parsimony_cost_per_thousand_inferences_usd", "Cost per 1,000 inferences, last 30 days."),
    "usd_per_training_hour": ("parsimony_cost_per_training_hour_usd", "Cost per training device hour, last 30 days."),
    "usd_per_evaluation": ("parsimony_cost_per_evaluation_usd", "Cost per evaluated run, last 30 days."),
    "usd_per_promotion_decision": ("parsimony_cost_per_promotion_usd", "Cost per promotion decision, last 30 days."),
    "gpu_utilization_inference": (
        "parsimony_inference_utilization_ratio", "Busy over charged device time, inference, last 30 days."),
    "gpu_utilization_training": (
        "parsimony_training_utilization_ratio", "Busy over charged device time, training, last 30 days."),
    "spot_coverage_training": ("parsimony_training_spot_ratio", "Share of training hours on spot, last 30 days."),
    "idle_hours": ("parsimony_idle_device_seconds", "Idle and unused device time, last 30 days."),
    "tokens_per_device_hour": ("parsimony_tokens_per_device_hour", "Tokens per device hour, last 30 days."),
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One metric family and its samples: labels and value."""

    name: str
    kind: str
    help: str
    samples: list[tuple[Mapping[str, str], float]]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(metrics: Iterable[Metric]) -> str:
    """Text exposition; a family without samples is left out (missing is not zero)."""
    lines = []
    for metric in metrics:
        if not metric.samples:
            continue
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for labels, value in metric.samples:
            inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            lines.append(f"{metric.name}{{{inside}}} {value!r}" if inside else f"{metric.name} {value!r}")
    return "\n".join(lines) + "\n"


def collect(ledger: Ledger) -> list[Metric]:
    """All metrics from the ledger as it stands."""
    since = ledger.clock() - timedelta(days=30)
    spend: dict[tuple[str, ...], list[float]] = {}
    for cell in cube(ledger):
        row = spend.setdefault(
            (cell.team, cell.environment, cell.model_family, cell.workload_type, cell.work), [0.0, 0.0]
        )
        row[0] += cell.usd_pico / 1e12
        row[1] += cell.device_micro * 3600 / 1e6
    names = ("team", "environment", "model_family", "workload_type", "work")
    metrics = [
        Metric("parsimony_ledger_up", "gauge", "1 if the ledger could be read.", [({}, 1.0)]),
        # Corrections can lower it: a gauge, not a counter.
        Metric("parsimony_spend_usd", "gauge", "Effective cost recorded since the beginning, in USD.",
               [(dict(zip(names, key, strict=True)), row[0]) for key, row in spend.items()]),
        Metric("parsimony_device_seconds", "gauge", "Device time charged since the beginning.",
               [(dict(zip(names, key, strict=True)), row[1]) for key, row in spend.items()]),
    ]  # fmt: skip
    budgets = [({"budget": item.name, "period": item.period}, item) for item in Budgets(ledger).status()]
    for name, text in (
        ("limit", "Limit of the budget."),
        ("spent", "Spent of the budget in its current period."),
        ("reserved", "Reserved by running work."),
    ):
        samples: list[tuple[Mapping[str, str], float]] = [
            (labels, float(getattr(item, f"{name}_usd"))) for labels, item in budgets
        ]
        public = "held" if name == "reserved" else name  # the series' name in dashboards and alert rules
        metrics.append(Metric(f"parsimony_budget_{public}_usd", "gauge", f"{text} USD.", samples))
    for kpi in kpis(ledger, start=since):
        if kpi.name in _KPI_METRICS and kpi.value is not None:
            name, text = _KPI_METRICS[kpi.name]
            scale = 3600 if kpi.unit == "h" else 1  # base units, as promtool wants them
            metrics.append(Metric(name, "gauge", text, [({}, float(kpi.value) * scale)]))
    error = mean_absolute_relative_error(estimate_errors(ledger, since=since))
    if error is not None:
        text = "Mean absolute relative error of stage estimates, last 30 days."
        metrics.append(Metric("parsimony_estimate_error_ratio", "gauge", text, [({}, error)]))
    return metrics


def exposition(open_ledger: Callable[[], Ledger]) -> str:
    """The text of one scrape. A ledger that cannot be read gives `parsimony_ledger_up 0`."""
    try:
        ledger = open_ledger()
        try:
            return render(collect(ledger))
        finally:
            ledger.close()
    except UserError:
        return render([Metric("parsimony_ledger_up", "gauge", "1 if the ledger could be read.", [({}, 0.0)])])


def server(open_ledger: Callable[[], Ledger], host: str, port: int, cache_s: float = 15.0) -> ThreadingHTTPServer:
    """An HTTP server with /metrics and /healthz, not yet serving. Port 0 takes a free one."""
    lock = threading.Lock()
    cached: tuple[float, str] | None = None

    def text() -> str:
        nonlocal cached
        with lock:
            now = time.monotonic()
            if cached is None or now - cached[0] >= cache_s:
                cached = now, exposition(open_ledger)
            return cached[1]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            status, body = {"/metrics": (200, None), "/healthz": (200, "ok\n")}.get(path, (404, "see /metrics\n"))
            data = (text() if body is None else body).encode()
            self.send_response(status)
            self.send_header("Content-Type", CONTENT_TYPE if body is None else "text/plain")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Scrapes are not worth a log line."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host, --port: cannot listen on {host}:{port}: {error}") from None
