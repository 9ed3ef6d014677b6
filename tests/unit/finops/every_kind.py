"""A ledger with every kind of row that can be exported: what the FOCUS tests validate."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from finops.ledger.charges import Rate, Resource, cut, device_charge, quantity_charge
from finops.ledger.commitments import Commitment, buy, settle_unused
from finops.ledger.ledger import Ledger
from finops.ledger.shared_machines import Use, split_machine
from finops.money import to_us

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
START = datetime(2026, 10, 3, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
TAGS = {
    "team": "research", "environment": "dev", "model_family": "smollm2", "workload_type": "evaluation",
    "cost_center": "42",
}  # fmt: skip
GPU = Resource("node-1/gpu-0", "NVIDIA L4", "GPU", "europe-west4", "gcp")
EURO = Rate(
    Decimal("4.2"), "catalog@2026-10-01", currency="EUR", fx_rate=Decimal("0.9234"), fx_date="2026-10-03"
)  # fmt: skip
ON_DEMAND = Rate(Decimal("0.825"), "catalog@2026-10-01", list_usd_per_hour=Decimal("0.95"))
COMMITMENT = Commitment(
    "l4-2026", "NVIDIA L4", "gcp", "europe-west4", 2, Decimal("0.495"), Decimal("0.825"),
    datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC),
)  # fmt: skip


def fill(ledger: Ledger) -> None:
    """On demand, spot with lost work, euro, MIG shares and idle, commitment, tokens, CPU, corrections."""
    on_demand = device_charge(
        run_id="r1", stage="quantize", resource=GPU, rate=ON_DEMAND, tags=TAGS, start=START,
        end=START + timedelta(minutes=7, seconds=13.37),
    ).with_usage(model_id="m1", input_tokens=10, output_tokens=20, num_requests=3, busy_micro=100)  # fmt: skip
    spot = device_charge(
        run_id="r2", stage="distill", resource=replace(GPU, id="node-2/gpu-0"),
        rate=Rate(Decimal("0.295"), "catalog@2026-10-01", "spot", list_usd_per_hour=Decimal("0.95")),
        tags=TAGS | {"workload_type": "training"}, start=START, end=START + 3 * HOUR, status="preempted",
    )  # fmt: skip
    euro = device_charge(
        run_id="r3", stage="serve", resource=replace(GPU, id="node-3/gpu-0", accelerator="NVIDIA A100", num_devices=4),
        rate=EURO, tags=TAGS, start=START, end=START + HOUR,
    )  # fmt: skip
    ledger.record(on_demand, *cut(spot, to_us(START + 2 * HOUR), ("useful", "lost")), euro)
    uses = [
        Use("r4", "serve", TAGS, 3, START, START + 2 * HOUR, mig_profile="3g.20gb"),
        Use("r5", "serve", TAGS, 2, START, START + HOUR, mig_profile="2g.10gb"),
    ]
    machine = Resource("node-4/gpu-0", "NVIDIA A100", "GPU", "europe-west4", "gcp")
    price = Rate(Decimal("3.85"), "catalog@2026-10-01")
    ledger.record(*split_machine(machine, price, START, START + 2 * HOUR, uses, idle_tags=TAGS))
    fill_commitment(ledger)
    judge = quantity_charge(
        run_id="r7", stage="judge", resource=Resource("api/judge", "judge-model", "API", "global", "some-api"),
        rate=Rate(Decimal(0), "api@2026-10-01"), usd_per_unit=Decimal("0.00015"), quantity=Decimal("1234.567"),
        unit="1000 Tokens", meter="input_tokens", tags=TAGS, start=START, end=START + HOUR,
    )  # fmt: skip
    host = device_charge(
        run_id="r9", stage="evaluate", resource=Resource("host-7", "x86-64 2 cores"), rate=Rate(Decimal("0.1"), "user"),
        tags=TAGS, start=NOW - 9 * HOUR, end=NOW - 8 * HOUR,
    )  # fmt: skip
    recent = device_charge(
        run_id="r8", stage="evaluate", resource=GPU, rate=ON_DEMAND, tags=TAGS, start=NOW - 5 * HOUR, end=NOW - 4 * HOUR
    )
    ledger.record(judge, host, recent)
    ledger.correct(on_demand.key, reason="invoice", billed=Decimal("0.11"), effective=Decimal("0.11"))
    ledger.correct(recent.key, reason="wrong price", billed=Decimal("0.5"), effective=Decimal("0.5"))


def fill_commitment(ledger: Ledger) -> None:
    """A commitment over two months, usage that it covers, and its unused rest settled in three steps."""
    buy(ledger, COMMITMENT, TAGS)
    ledger.record(
        device_charge(
            run_id="r6", stage="serve", resource=replace(GPU, id="node-5/gpu-0"), rate=COMMITMENT.rate(), tags=TAGS,
            start=START, end=START + 100 * HOUR + timedelta(seconds=17),
        )
    )  # fmt: skip
    for until in (datetime(2026, 9, 15, tzinfo=UTC), datetime(2026, 10, 20, tzinfo=UTC), COMMITMENT.end):
        settle_unused(ledger, COMMITMENT, until, TAGS)
