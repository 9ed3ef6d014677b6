"""Reserved capacity and shared machines from CSV files: what `ingest` takes beside a fleet's usage.

Commitments, one a row: id, accelerator, provider, region, num_devices, usd_per_hour, list_usd_per_hour, start, end, and
any of purchase_option, kind, team, environment, model_family, workload_type. Each is bought, and what nobody used of it
so far is charged as unused. A usage row (`finops.ledger.ingest`) with a `commitment_id` is covered by it.

Shared machines, one use a row: machine_id, accelerator, machine_start, machine_end, start, end, slices, and any of
run_id, stage, region, provider, num_devices, usd_per_hour, price_version, purchase_option, mig_profile, team,
environment, model_family, workload_type. The uses of one machine and period share its cost, and the rest is idle.

Taking a file again changes nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from core.errors import UserError, closest
from finops.ledger import schema
from finops.ledger.charges import Charge, Rate, Resource
from finops.ledger.commitments import Commitment, buy, settle_unused
from finops.ledger.ingest import TAG_COLUMNS, open_table, row_rate, whole_number
from finops.ledger.ledger import Ledger
from finops.ledger.shared_machines import Use, split_machine
from finops.money import parse_moment, to_decimal
from finops.tags import TagPolicy

COMMITMENT_COLUMNS = (
    "id", "accelerator", "provider", "region", "num_devices", "usd_per_hour", "list_usd_per_hour", "start", "end",
)  # fmt: skip
USE_COLUMNS = ("machine_id", "accelerator", "machine_start", "machine_end", "start", "end", "slices")


def ingest_commitments(ledger: Ledger, path: Path, policy: TagPolicy, until: datetime | None = None) -> list[Charge]:
    """Buy the commitments of a file, and charge what nobody used of them until a moment (None: now).

    Returns the purchases and the unused rest, new and known alike. Raises `UserError` that names line and column.
    """
    charges: list[Charge] = []
    for where, row in _rows(path, COMMITMENT_COLUMNS, ("purchase_option", "kind", *TAG_COLUMNS)):
        try:
            commitment = _commitment(row)
            tags = policy.check({tag: row.get(tag) for tag in TAG_COLUMNS})
            charges += buy(ledger, commitment, tags)
            unused = settle_unused(ledger, commitment, until or ledger.clock(), tags)
        except UserError as error:
            raise type(error)(f"{where}: {error}") from None
        if unused is not None:
            charges.append(unused)
    return charges


def commitment_rates(ledger: Ledger) -> dict[str, Rate]:
    """Id of each recorded commitment -> the rate of usage that it covers."""
    with ledger.database.read() as connection:
        stored = connection.execute(sa.select(schema.commitments.c.terms)).scalars()
        return {found.id: found.rate() for found in (_commitment(json.loads(terms)) for terms in stored)}


def shared_machine_charges(path: Path, rate: Rate | None, policy: TagPolicy) -> list[Charge]:
    """The charges of a file of uses: one for each use, and one for the idle rest of each machine and period.

    `rate` is for rows without `usd_per_hour`. Raises `UserError` that names line and column.
    """
    optional = (
        "run_id", "stage", "region", "provider", "num_devices", "usd_per_hour", "price_version", "purchase_option",
        "mig_profile", *TAG_COLUMNS,
    )  # fmt: skip
    uses: dict[tuple[Resource, Rate, datetime, datetime], list[Use]] = {}
    for where, row in _rows(path, USE_COLUMNS, optional):
        try:
            machine = Resource(
                row["machine_id"], row["accelerator"], "GPU", row.get("region", "unknown"),
                row.get("provider", "unknown"), whole_number(row, "num_devices") or 1,
            )  # fmt: skip
            period = (
                parse_moment(row["machine_start"], "machine_start"),
                parse_moment(row["machine_end"], "machine_end"),
            )
            use = Use(
                row.get("run_id", ""), row.get("stage", "serving"),
                policy.check({tag: row.get(tag) for tag in TAG_COLUMNS}), whole_number(row, "slices") or 0,
                parse_moment(row["start"], "start"), parse_moment(row["end"], "end"), "external",
                mig_profile=row.get("mig_profile"),
            )  # fmt: skip
            uses.setdefault((machine, row_rate(row, rate), *period), []).append(use)
        except UserError as error:
            raise type(error)(f"{where}: {error}") from None
    idle_tags = policy.check({}) if policy.policy == "default" else {}  # idle time has the default owner, or none
    return [
        charge
        for (machine, price, start, end), found in uses.items()
        for charge in split_machine(machine, price, start, end, found, idle_tags=idle_tags)
    ]


def _commitment(row: Mapping[str, str]) -> Commitment:
    start, end = (parse_moment(row[name], name) for name in ("start", "end"))
    price, list_price = (to_decimal(row[name], name) for name in ("usd_per_hour", "list_usd_per_hour"))
    return Commitment(
        row["id"], row["accelerator"], row["provider"], row["region"], whole_number(row, "num_devices") or 0, price,
        list_price, start, end, row.get("purchase_option", "reserved_1y"), row.get("kind", "GPU"),
    )  # fmt: skip


def _rows(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row with its place in the file. An empty cell is missing."""
    known = (*required, *optional)
    with open_table(path) as file:
        reader = csv.DictReader(file)
        for name in reader.fieldnames or []:
            if name not in known:
                raise UserError(
                    f"{path}: column '{name}' is not known{closest(name, known)}. Known: {', '.join(known)}"
                )
        for line, cells in enumerate(reader, start=2):
            where = f"{path}, line {line}"
            if None in cells:
                raise UserError(f"{where}: more cells than columns")
            row = {name: text for name, text in cells.items() if text}
            for name in required:
                if name not in row:
                    raise UserError(f"{where}: {name} is missing")
            yield where, row
