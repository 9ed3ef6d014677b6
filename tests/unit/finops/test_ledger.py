from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from finops.errors import ChargeConflictError, LedgerUnavailableError
from finops.ledger.charges import Rate, Resource, cut, device_charge
from finops.ledger.commitments import Commitment, buy, settle_unused
from finops.ledger.ledger import Ledger
from finops.ledger.meter import Meter, Preempted
from finops.ledger.schema import metadata
from finops.ledger.shared_machines import Use, split_machine
from finops.money import from_pico, round_decimals, to_us

START = datetime(2026, 10, 3, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
properties = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
prices = st.integers(0, 99_000_000).map(lambda micro: Decimal(micro).scaleb(-6))


def charge_of(gpu, rate, tags, start=START, end=START + HOUR, **changes):
    values = {"run_id": "r1", "stage": "serve", "resource": gpu, "rate": rate, "tags": tags, "start": start, "end": end}
    return device_charge(**{**values, **changes})


def test_costs_are_list_contracted_billed_and_effective(gpu, rate, tags):
    charge = charge_of(gpu, rate, tags, end=START + HOUR / 2)
    assert from_pico(charge.list_pico) == Decimal("0.475")
    assert charge.billed_cost == charge.effective_usd == Decimal("0.4125")


def test_a_row_freezes_its_exchange_rate(gpu, tags):
    rate = Rate(Decimal("2"), "v1", currency="EUR", fx_rate=Decimal("0.9"), fx_date="2026-10-03")
    charge = charge_of(gpu, rate, tags)
    assert (charge.billed_cost, charge.currency) == (Decimal("1.8"), "EUR")
    assert (charge.fx_rate, charge.fx_date, charge.effective_usd) == ("0.9", "2026-10-03", Decimal(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"currency": "EUR"}, "fx_date"),
        ({"fx_rate": Decimal(2)}, "fx_rate"),
        ({"purchase_option": "spott"}, "did you mean 'spot'"),
        ({"usd_per_hour": Decimal(-1)}, "usd_per_hour"),
        ({"usd_per_hour": 0.5}, "exact money"),
    ],
)
def test_a_bad_price_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Rate(**{"usd_per_hour": Decimal(1), "price_version": "v1", **changes})


def test_recording_again_changes_nothing_and_other_figures_are_refused(ledger, gpu, rate, tags):
    charge = charge_of(gpu, rate, tags)
    assert ledger.record(charge, charge) == 1
    assert ledger.record(charge) == 0
    dearer = replace(charge, effective_pico=charge.effective_pico + 1)
    other = charge_of(gpu, rate, tags, start=START + HOUR, end=START + 2 * HOUR)
    with pytest.raises(ChargeConflictError, match=r"Ledger.correct"):
        ledger.record(other, dearer)
    assert len(ledger.charges()) == 1, "a refused call records nothing"


@properties
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20), prices), min_size=1, max_size=8), st.randoms())
def test_reordering_and_replaying_change_nothing(make_ledger, gpu, tags, uses, rng: random.Random):
    charges = [
        charge_of(replace(gpu, id=f"gpu-{index}"), Rate(price, "v1"), tags, start=START + first * HOUR,
                  end=START + (first + length) * HOUR)
        for index, (first, length, price) in enumerate(uses)
    ]  # fmt: skip
    ledger = make_ledger()
    ledger.record(*charges)
    before = sorted(ledger.charges(), key=lambda charge: charge.key)
    shuffled = charges * 2
    rng.shuffle(shuffled)
    again = make_ledger()
    for charge in shuffled:
        again.record(charge)
    assert sorted(again.charges(), key=lambda charge: charge.key) == before
    assert again.total_usd() == sum(charge.effective_usd for charge in charges)


@pytest.mark.parametrize("statement", ["UPDATE finops_charges SET billed_pico = 0", "DELETE FROM finops_charges"])
def test_charges_are_append_only(ledger, gpu, rate, tags, statement):
    ledger.record(charge_of(gpu, rate, tags))
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), ledger.database.write() as connection:
        connection.execute(sa.text(statement))


def test_corrections_are_rows_with_the_difference(ledger, gpu, rate, tags):
    charge = charge_of(gpu, rate, tags)
    ledger.record(charge)
    first = ledger.correct(charge.key, reason="invoice", billed=Decimal("0.80"), effective=Decimal("0.80"))
    assert (first.charge_class, first.corrects) == ("Correction", charge.key)
    assert first.effective_usd == Decimal("-0.025")
    ledger.correct(charge.key, reason="invoice", billed=Decimal("0.80"), effective=Decimal("0.80"))
    assert ledger.total_usd() == Decimal("0.80")
    ledger.correct(charge.key, reason="credit note", effective=Decimal("0.70"))
    assert ledger.total_usd() == Decimal("0.70")
    assert len(ledger.charges(key=charge.key)) == 3
    with pytest.raises(UserError, match="itself a correction"):
        ledger.correct(first.key, reason="again", billed=Decimal(1))
    with pytest.raises(UserError, match="no charge has the key"):
        ledger.correct("0" * 64, reason="unknown", billed=Decimal(1))


@properties
@given(prices, st.integers(0, 10**11), st.lists(st.integers(0, 10**11), max_size=6), st.integers(1, 8))
def test_consecutive_charges_sum_to_the_machines_bill(gpu, tags, price, length_us, cuts_us, num_devices):
    """Preemption and resume: however a period is cut, its parts cost what the whole costs, to the last unit."""
    gpu, rate = replace(gpu, num_devices=num_devices), Rate(price, "v1")
    end = START + timedelta(microseconds=length_us)
    edges = sorted([START, end, *(START + timedelta(microseconds=min(at, length_us)) for at in cuts_us)])
    parts = [charge_of(gpu, rate, tags, a, b) for a, b in itertools.pairwise(edges)]
    whole = charge_of(gpu, rate, tags, START, end)
    assert sum(part.effective_pico for part in parts) == whole.effective_pico
    exact = Decimal(length_us) / 3_600_000_000 * price * num_devices
    assert abs(whole.effective_usd - exact) <= price * num_devices * Decimal("0.000001")


@properties
@given(prices, st.lists(st.tuples(st.integers(1, 7), st.integers(0, 59), st.integers(0, 59)), max_size=5))
def test_mig_shares_and_idle_sum_to_the_machines_bill(gpu, tags, price, wanted):
    uses, end = [], START + HOUR
    for index, (slices, *minutes) in enumerate(wanted):
        first, last = (START + timedelta(minutes=minute) for minute in sorted(minutes))
        use = Use(f"r{index}", "serve", tags, slices, first, last)
        overlapping = [other for other in uses if other.start < use.end and use.start < other.end]
        if sum(other.slices for other in overlapping) + slices <= 7:
            uses.append(use)
    charges = split_machine(gpu, Rate(price, "v1"), START, end, uses, idle_tags=tags)
    assert sum(charge.effective_pico for charge in charges) == charge_of(gpu, Rate(price, "v1"), tags).effective_pico
    for use, charge in zip(uses, charges, strict=False):
        exact = Decimal(use.slices) / 7 * Decimal((use.end - use.start).seconds) / 3600 * price
        assert abs(charge.effective_usd - exact) < Decimal("0.005")


def test_an_oversubscribed_machine_is_refused(gpu, rate, tags):
    uses = [Use("a", "s", tags, 4, START, START + HOUR), Use("b", "s", tags, 4, START, START + HOUR)]
    with pytest.raises(UserError, match=r"oversubscribed: a \(4\), b \(4\)"):
        split_machine(gpu, rate, START, START + HOUR, uses, idle_tags=tags)


@properties
@given(prices, st.integers(0, 7200), st.integers(0, 7200))
def test_a_cut_labels_lost_work_and_keeps_the_cost(gpu, tags, price, length_s, safe_s):
    whole = charge_of(gpu, Rate(price, "v1"), tags, end=START + timedelta(seconds=length_s))
    parts = cut(whole, to_us(START + timedelta(seconds=safe_s)), ("useful", "lost"))
    assert sum(part.effective_pico for part in parts) == whole.effective_pico
    assert sum(part.quantity_micro for part in parts) == whole.quantity_micro
    useful_us = sum(part.end_us - part.start_us for part in parts if part.work == "useful")
    assert abs(useful_us - min(length_s, safe_s) * 1_000_000) <= 3600


def test_a_metered_stage_costs_its_wall_time(ledger, gpu, rate, tags, clock):
    with Meter(ledger, run_id="r1", stage="quantize", resource=gpu, rate=rate, tags=tags) as meter:
        clock.advance(1234.5)
        meter.usage(output_tokens=7)
    (charge,) = meter.charges
    bill = Decimal("1234.5") / 3600 * rate.usd_per_hour
    assert round_decimals(charge.effective_usd, 2) == round_decimals(bill, 2)
    assert (charge.status, charge.work, charge.output_tokens) == ("completed", "useful", 7)
    assert ledger.charges(run_id="r1") == [charge]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "failed"), (Preempted, "preempted"), (KeyboardInterrupt, "preempted")]
)
def test_an_ended_stage_is_charged_and_its_lost_work_labelled(ledger, gpu, rate, tags, clock, error, status):
    with (  # noqa: PT012 - the block is the stage
        pytest.raises(error),
        Meter(ledger, run_id="r1", stage="distill", resource=gpu, rate=rate, tags=tags) as meter,
    ):
        clock.advance(1800)
        meter.checkpoint()
        clock.advance(900)
        raise error
    assert [(charge.work, charge.status, charge.device_hours) for charge in meter.charges] == [
        ("useful", status, Decimal("0.5")),
        ("lost", status, Decimal("0.25")),
    ]


def test_a_dead_stage_is_found_once_and_charged_until_its_last_sign_of_life(ledger, gpu, rate, tags, clock):
    opened = ledger.open_charge(run_id="r1", stage="distill", resource=gpu, rate=rate, tags=tags, heartbeat_every_s=36)
    clock.advance(360)
    ledger.heartbeat(opened.id, checkpoint=True)
    clock.advance(360)
    ledger.heartbeat(opened.id)
    assert ledger.recover() == [], "it lives"
    clock.advance(100_000)
    found = ledger.recover()
    assert [(charge.work, charge.device_hours) for charge in found] == [
        ("useful", Decimal("0.1")),
        ("lost", Decimal("0.11")),
    ], "to the last heartbeat and one interval"
    assert {charge.status for charge in found} == {"killed"}
    assert ledger.recover() == []
    assert ledger.close_charge(opened) == [], "who comes back finds it closed"
    with pytest.raises(LedgerUnavailableError, match="closed by another process"):
        ledger.heartbeat(opened.id)


def test_a_failing_heartbeat_stops_the_stage(ledger, gpu, rate, tags):
    with (  # noqa: PT012 - the block is the stage
        pytest.raises(LedgerUnavailableError, match="closed by another"),
        Meter(ledger, run_id="r1", stage="s", resource=gpu, rate=rate, tags=tags, heartbeat_every_s=0.01) as meter,
    ):
        ledger.close_charge(meter._opened)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            meter.check()
            time.sleep(0.01)


@properties
@given(
    st.lists(st.tuples(st.integers(0, 700), st.integers(1, 40)), max_size=4), st.lists(st.integers(0, 720), max_size=3)
)
@example(uses=[(672, 40)], settled_at=[711])  # usage that goes on while it is settled was counted twice
def test_a_commitments_used_and_unused_cost_equals_its_purchase(make_ledger, tags, uses, settled_at):
    ledger = make_ledger()
    start = datetime(2026, 10, 15, tzinfo=UTC)
    commitment = Commitment(
        "c1", "NVIDIA L4", "gcp", "eu", 4, Decimal("0.495"), Decimal("0.825"), start, start + 720 * HOUR
    )
    buy(ledger, commitment, tags)
    for index, (first, length) in enumerate(uses):
        resource = Resource(f"gpu-{index}", "NVIDIA L4", "GPU")
        ledger.record(
            charge_of(
                resource,
                commitment.rate(),
                tags,
                start + first * HOUR,
                start + (first + min(length, 720 - first)) * HOUR,
            )
        )
    for hours in [*sorted(settled_at), 720, 720]:
        settle_unused(ledger, commitment, start + hours * HOUR, tags)
    rows = ledger.charges()
    paid = sum(row.billed_pico for row in rows if row.charge_category == "Purchase")
    assert paid == sum(row.effective_pico for row in rows if row.charge_category == "Usage")
    assert paid == to_pico_hours(commitment)
    assert all(row.effective_pico == 0 for row in rows if row.charge_category == "Purchase")
    assert all(row.billed_pico == 0 for row in rows if row.charge_category == "Usage")


def to_pico_hours(commitment):
    return int(commitment.usd_per_hour * 720 * commitment.num_devices * 10**12)


def test_more_usage_than_a_commitment_holds_is_refused(ledger, gpu, tags):
    commitment = Commitment("c1", "NVIDIA L4", "gcp", "eu", 1, Decimal("0.495"), Decimal("0.825"), START, START + HOUR)
    buy(ledger, commitment, tags)
    for name in ("a", "b"):
        ledger.record(charge_of(replace(gpu, id=name), commitment.rate(), tags))
    with pytest.raises(UserError, match="more usage"):
        settle_unused(ledger, commitment, START + HOUR, tags)


def test_secrets_never_reach_a_charge(ledger, gpu, rate, tags, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "plain-looking-value")
    charge = charge_of(gpu, rate, tags | {"note": "x plain-looking-value y", "owner": "sk-abcdefgh12345678"})
    assert "plain-looking-value" not in charge.tags
    assert "sk-abcdefgh" not in charge.tags


def test_a_missing_or_foreign_ledger_is_one_clear_error(tmp_path):
    with pytest.raises(LedgerUnavailableError, match="there is no ledger at"):
        Ledger(str(tmp_path / "none.db"), create=False)
    with pytest.raises(LedgerUnavailableError, match="must be SQLite or PostgreSQL"):
        Ledger("mysql://user@host/name")
    with pytest.raises(LedgerUnavailableError, match="not a database URL"):
        Ledger("://")
    (tmp_path / "text.db").write_text("this is no database, but a text that is long enough to be read as one" * 20)
    with pytest.raises(LedgerUnavailableError, match="not a database"):
        Ledger(str(tmp_path / "text.db"))


def test_an_unreachable_server_hides_the_password():
    with pytest.raises(LedgerUnavailableError, match="nothing is spent") as caught:
        Ledger("postgresql://user:hunter2hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)


def test_migrations_give_the_schema_that_the_code_uses(ledger):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with ledger.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "finops_alembic_version"})
        assert compare_metadata(context, metadata) == []


def test_a_newer_ledger_is_refused(ledger):
    with ledger.database.write() as connection:
        connection.execute(sa.text("UPDATE finops_alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerUnavailableError, match="revision 9999"):
        Ledger(ledger.database.url)
