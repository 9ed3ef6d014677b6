"""Usage from outside: a serving fleet's hours and tokens, from CSV or from Prometheus text.

CSV columns: resource_id, accelerator, start, end, and any of run_id, stage, region, provider, num_devices, kind,
purchase_option, usd_per_hour, price_version, commitment_id, model_id, input_tokens, output_tokens, num_requests,
busy_device_hours, team, environment, model_family, workload_type. A column that is none of these is an error. An empty
cell is missing.

Prometheus: `parsimony_usage_device_seconds` (required), `parsimony_usage_busy_device_seconds`, `..._input_tokens`,
`..._output_tokens`, `..._requests`, each one value per period with labels resource_id, accelerator, start, end (ISO
8601) and the same optional ones: what recording rules or an exporter hand over. Ingesting a file again changes nothing.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import IO

from core.errors import UserError, closest
from finops.ledger.charges import Charge, Rate, Resource, device_charge
from finops.money import parse_moment, round_decimals, to_decimal, to_micro
from finops.tags import TagPolicy

_REQUIRED = ("resource_id", "accelerator", "start", "end")
_COUNTS = ("input_tokens", "output_tokens", "num_requests")
TAG_COLUMNS = ("team", "environment", "model_family", "workload_type")
COLUMNS = (
    *_REQUIRED, "run_id", "stage", "region", "provider", "num_devices", "kind", "purchase_option", "usd_per_hour",
    "price_version", "commitment_id", "model_id", *_COUNTS, "busy_device_hours", *TAG_COLUMNS,
)  # fmt: skip
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_METRICS = {
    "parsimony_usage_device_seconds": "device_seconds",
    "parsimony_usage_busy_device_seconds": "busy_device_seconds",
    "parsimony_usage_input_tokens": "input_tokens",
    "parsimony_usage_output_tokens": "output_tokens",
    "parsimony_usage_requests": "num_requests",
}


def read_csv(
    path: Path, rate: Rate | None, policy: TagPolicy, commitments: Mapping[str, Rate] | None = None
) -> Iterator[Charge]:
    """The charges of a CSV file, row by row. Raises `UserError` that names the line and column.

    `commitments` are the rates of recorded commitments by id (`finops.ledger.capacity.commitment_rates`).
    """
    with open_table(path) as file:
        reader = csv.DictReader(file)
        for name in reader.fieldnames or []:
            if name not in COLUMNS:
                raise UserError(
                    f"{path}: column '{name}' is not known{closest(name, COLUMNS)}. Known: {', '.join(COLUMNS)}"
                )
        for line, row in enumerate(reader, start=2):
            if None in row:
                raise UserError(f"{path}, line {line}: more cells than columns")
            cells = {key: value for key, value in row.items() if value}
            yield usage_charge(cells, rate, policy, f"{path}, line {line}", commitments or {})


def read_prometheus(path: Path, rate: Rate | None, policy: TagPolicy) -> Iterator[Charge]:
    """The charges of a text in Prometheus exposition format; metrics of other names are passed over."""
    with open_table(path) as file:
        rows = _join_samples(file, str(path))
    for where, row in rows:
        if "device_seconds" not in row:
            raise UserError(f"{where}: has tokens but no parsimony_usage_device_seconds of the same labels")
        yield usage_charge(row, rate, policy, where)


def open_table(path: Path) -> IO[str]:
    """A text file to read. Raises `UserError` where it cannot be read."""
    try:
        return path.open(newline="", encoding="utf-8")
    except OSError as error:
        raise UserError(f"usage: cannot read {path}: {error.strerror}") from None


def _join_samples(lines: Iterable[str], name: str) -> list[tuple[str, dict[str, str]]]:
    """Samples with equal labels become one row of labels and values."""
    rows: dict[tuple[tuple[str, str], ...], tuple[str, dict[str, str]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if match is None:
            raise UserError(f"{name}, line {number}: not a sample of Prometheus text: {line.strip()[:80]}")
        column = _METRICS.get(match["name"])
        if column is None:
            continue
        labels = {key: _unescape(value) for key, value in _LABEL.findall(match["labels"] or "")}
        _, row = rows.setdefault(tuple(sorted(labels.items())), (f"{name}, line {number}", dict(labels)))
        row[column] = match["value"]
    return list(rows.values())


def _unescape(value: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), value)


def usage_charge(
    row: Mapping[str, str],
    rate: Rate | None,
    policy: TagPolicy,
    where: str,
    commitments: Mapping[str, Rate] | None = None,
) -> Charge:
    """One row of usage as a charge, its price from the row or from `rate`. Raises `UserError` naming `where`."""
    for name in _REQUIRED:
        if name not in row:
            raise UserError(f"{where}: {name} is missing")
    try:
        start, end = (parse_moment(row[name], name) for name in ("start", "end"))
        num_devices = whole_number(row, "num_devices") or 1
        resource = Resource(
            row["resource_id"], row["accelerator"], row.get("kind", "GPU"), row.get("region", "unknown"),
            row.get("provider", "unknown"), num_devices,
        )  # fmt: skip
        quantity = None
        if "device_seconds" in row:
            quantity = _hours_micro(row, "device_seconds", Decimal(3600))
        charge = device_charge(
            run_id=row.get("run_id", ""), stage=row.get("stage", "serving"), resource=resource,
            rate=_covered_rate(row, commitments or {}) or row_rate(row, rate),
            tags=policy.check({tag: row.get(tag) for tag in TAG_COLUMNS}), start=start, end=end,
            status="external", quantity_micro=quantity,
        )  # fmt: skip
        busy = None
        if "busy_device_hours" in row:
            busy = _hours_micro(row, "busy_device_hours", Decimal(1))
        if "busy_device_seconds" in row:
            busy = _hours_micro(row, "busy_device_seconds", Decimal(3600))
        if busy is not None and busy > (charge.quantity_micro or 0):
            raise UserError("busy device time is longer than the device time")
        input_tokens, output_tokens, num_requests = (whole_number(row, name) for name in _COUNTS)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return charge.with_usage(
        model_id=row.get("model_id"), busy_micro=busy, input_tokens=input_tokens, output_tokens=output_tokens,
        num_requests=num_requests,
    )  # fmt: skip


def _covered_rate(row: Mapping[str, str], commitments: Mapping[str, Rate]) -> Rate | None:
    """The rate of the commitment that covers a row; None where the row names none."""
    name = row.get("commitment_id")
    if name is None:
        return None
    if name not in commitments:
        listed = ", ".join(sorted(commitments)) or "none"
        raise UserError(f"commitment_id: '{name}' is not recorded{closest(name, commitments)}. Recorded: {listed}")
    return commitments[name]


def row_rate(row: Mapping[str, str], rate: Rate | None) -> Rate:
    """The price of a row: its own, or `rate`. Raises `UserError` where it has neither."""
    if "usd_per_hour" in row:
        if "price_version" not in row:
            raise UserError("price_version is missing beside usd_per_hour")
        option = row.get("purchase_option", "on_demand")
        return Rate(to_decimal(row["usd_per_hour"], "usd_per_hour"), row["price_version"], option)
    if rate is None:
        raise UserError("usd_per_hour is missing and no --price was given")
    return replace(rate, purchase_option=row.get("purchase_option", rate.purchase_option))


def _hours_micro(row: Mapping[str, str], name: str, per_hour: Decimal) -> int:
    value = to_decimal(row[name], name)
    if value < 0:
        raise UserError(f"{name}: {value} is negative")
    return to_micro(round_decimals(value / per_hour, 6), name)


def whole_number(row: Mapping[str, str], name: str) -> int | None:
    """A cell as a whole number from 0; None where it is empty. Raises `UserError` for anything else."""
    if name not in row:
        return None
    value = to_decimal(row[name], name)
    if value != value.to_integral_value() or value < 0:
        raise UserError(f"{name}: {row[name]} is not a whole number from 0")
    return int(value)
