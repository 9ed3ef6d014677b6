from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ConfigError, UserError
from finops.controls.alerts import AlertDispatcher, CallbackChannel
from finops.controls.budgets import Budgets
from finops.errors import BudgetExceededError, LedgerUnavailableError, ReservationError
from finops.ledger import schema
from finops.ledger.charges import Rate, Resource, device_charge
from finops.ledger.ledger import Ledger
from finops.ledger.spend import PERIODS, period_bounds

ONE_USD = Rate(Decimal(1), "v1")
amounts = st.integers(0, 6000).map(lambda cents: Decimal(cents) / 100)


def spend(ledger, tags, usd, *, index, reservation=None):
    """A charge of exactly `usd` dollars on a resource of its own, now."""
    now = ledger.clock()
    charge = device_charge(
        run_id="r", stage="s", resource=Resource(f"host-{index}", "cpu"), rate=ONE_USD, tags=tags, start=now, end=now,
        quantity_micro=int(usd * 10**6), hold_id=reservation and reservation.id,
    )  # fmt: skip
    ledger.record(charge)


def test_a_reservation_that_would_pass_a_limit_is_rejected_whole(ledger, tags):
    budgets = Budgets(ledger)
    budgets.define("team", limit_usd=Decimal(100), team="research")
    budgets.define("all", limit_usd=Decimal(50))
    reservation = budgets.reserve("r1", Decimal(30), tags)
    with pytest.raises(
        BudgetExceededError, match=r"all \(month from 2026-11-01\): limit 50.00 USD.*wanted 21.00"
    ) as caught:
        budgets.reserve("r2", Decimal(21), tags)
    assert caught.value.exit_code == 4
    assert "team (" not in str(caught.value), "only the budget that it would pass is named"
    assert [item.reserved_usd for item in budgets.status()] == [30, 30], "a rejected run reserves nothing anywhere"
    budgets.reserve("r3", Decimal(20), tags)
    reservation.release()
    assert {item.name: item.left_usd for item in budgets.status()} == {"all": 30, "team": 80}


def test_a_budget_covers_the_charges_with_its_tags(ledger, tags):
    budgets = Budgets(ledger)
    spend(ledger, tags, Decimal(3), index=0)
    budgets.define("mine", limit_usd=Decimal(10), team="research", environment="dev", model_family="smollm2")
    budgets.define("other", limit_usd=Decimal(10), team="search")
    spend(ledger, tags, Decimal(2), index=1)
    spend(ledger, tags | {"environment": "prod"}, Decimal(2), index=2)
    assert {item.name: item.spent_usd for item in budgets.status()} == {"mine": 5, "other": 0}
    budgets.reserve("r", Decimal(1000), {"team": "nobody"})
    with pytest.raises(BudgetExceededError, match="none covers team=nobody"):
        budgets.reserve("r", Decimal(1), {"team": "nobody"}, require_budget=True)


def test_charges_draw_on_their_reservation_and_settling_is_single_use(ledger, tags):
    budgets = Budgets(ledger)
    budgets.define("b", limit_usd=Decimal(10))
    reservation = budgets.reserve("r", Decimal(8), tags)
    spend(ledger, tags, Decimal(5), index=0, reservation=reservation)
    (status,) = budgets.status()
    assert (status.spent_usd, status.reserved_usd) == (5, 3)
    assert reservation.settle() == 5
    (status,) = budgets.status()
    assert (status.spent_usd, status.reserved_usd) == (5, 0)
    for again in (
        reservation.settle,
        reservation.release,
        reservation.heartbeat,
        lambda: reservation.extend(Decimal(1)),
    ):
        with pytest.raises(ReservationError, match="settled"):
            again()


def test_a_reservation_without_heartbeat_expires_and_can_not_be_used(ledger, tags, clock):
    budgets = Budgets(ledger)
    budgets.define("b", limit_usd=Decimal(10))
    reservation = budgets.reserve("r", Decimal(8), tags, ttl_s=60)
    clock.advance(59)
    reservation.heartbeat()
    clock.advance(59)
    with pytest.raises(BudgetExceededError):
        budgets.reserve("other", Decimal(8), tags)
    clock.advance(2)
    budgets.reserve("other", Decimal(8), tags)
    with pytest.raises(ReservationError, match="expired"):
        reservation.heartbeat()


def test_extending_asks_for_room_or_is_rejected(ledger, tags):
    budgets = Budgets(ledger)
    budgets.define("b", limit_usd=Decimal(10))
    reservation = budgets.reserve("r", Decimal(5), tags)
    reservation.extend(Decimal(4))
    with pytest.raises(BudgetExceededError):
        reservation.extend(Decimal(2))
    assert budgets.status()[0].reserved_usd == 9


def test_a_live_reservation_counts_in_the_next_period_too(ledger, tags, clock):
    budgets = Budgets(ledger)
    budgets.define("b", limit_usd=Decimal(10), period="day")
    reservation = budgets.reserve("r", Decimal(8), tags, ttl_s=7 * 86400)
    spend(ledger, tags, Decimal(1), index=0, reservation=reservation)
    clock.advance(86400)
    (status,) = budgets.status()
    assert (status.spent_usd, status.reserved_usd) == (0, 7)


def test_reserving_fails_closed(ledger, tags, fast_folder):
    ledger.database.engine.dispose()
    (fast_folder / "ledger.db").write_bytes(b"\0" * 4096)
    for suffix in ("-wal", "-shm"):
        (fast_folder / f"ledger.db{suffix}").unlink(missing_ok=True)
    with pytest.raises(LedgerUnavailableError, match="nothing is spent"):
        Budgets(ledger).reserve("r", Decimal(1), tags)


def test_a_budgets_definition_is_checked(ledger):
    budgets = Budgets(ledger)
    budgets.define("b", limit_usd=Decimal(10), team="a")
    budgets.define("b", limit_usd=Decimal(20), team="a")
    assert budgets.status()[0].limit_usd == 20
    with pytest.raises(UserError, match="do not change"):
        budgets.define("b", limit_usd=Decimal(10), team="other")
    with pytest.raises(ConfigError, match="did you mean 'month'"):
        budgets.define("c", limit_usd=Decimal(10), period="monthly")
    with pytest.raises(UserError, match="negative"):
        budgets.define("c", limit_usd=Decimal(-1))


@given(st.sampled_from(PERIODS), st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)))
def test_periods_tile_time(period, moment):
    moment = moment.replace(tzinfo=UTC)
    start, end = period_bounds(period, moment)
    assert start <= moment < end
    assert period_bounds(period, start) == (start, end)
    if period != "total":
        assert period_bounds(period, end)[0] == end
        assert period_bounds(period, start - timedelta(microseconds=1))[1] == start


steps = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "spend", "settle", "release", "heartbeat", "extend", "wait"]),
        amounts, st.integers(0, 9), st.sampled_from(["dev", "prod"]),
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_spend_and_live_reservations_never_pass_a_limit(make_ledger, tags, steps):
    """Any history of runs that spend no more than they reserve: at every step spend + live reservations <= limit."""
    ledger: Ledger = make_ledger()
    budgets = Budgets(ledger)
    budgets.define("all", limit_usd=Decimal(100), period="day")
    budgets.define("prod", limit_usd=Decimal(40), period="day", environment="prod")
    reservations = []
    for index, (action, usd, pick, environment) in enumerate(steps):
        with contextlib.suppress(BudgetExceededError, ReservationError):
            if action == "reserve":
                scope = tags | {"environment": environment}
                reservations.append([budgets.reserve(f"r{index}", usd, scope, ttl_s=100), usd, scope])
            elif action == "wait":
                ledger.clock.advance(30)
            elif reservations:
                run = reservations[pick % len(reservations)]
                reservation, left, scope = run
                if action == "spend":
                    reservation.heartbeat()  # a run whose reservation has died must stop
                    part = min(usd, left)
                    spend(ledger, scope, part, index=index, reservation=reservation)
                    run[1] -= part
                elif action == "extend":
                    reservation.extend(usd)
                    run[1] += usd
                else:
                    getattr(reservation, action)()
                    run[1] = run[1] if action == "heartbeat" else Decimal(0)
        for status in budgets.status():
            assert 0 <= status.spent_usd + status.reserved_usd <= status.limit_usd, (status, index)
    total = {item.name: item.spent_usd for item in budgets.status()}
    assert total["all"] == sum(row.effective_usd for row in ledger.charges())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(amounts, min_size=1, max_size=12), st.booleans())
def test_each_threshold_alerts_once(make_ledger, tags, spends, redefine):
    ledger: Ledger = make_ledger()
    budgets = Budgets(ledger)
    budgets.define("b", limit_usd=Decimal(100))
    heard: list[tuple[str, int]] = []
    channel = CallbackChannel("test", lambda alert: heard.append((alert.budget, alert.threshold_percent)))
    total = Decimal(0)
    for index, usd in enumerate(spends):
        spend(ledger, tags, usd, index=index)
        total += usd
        if redefine:
            budgets.define("b", limit_usd=Decimal(100))
        for _ in range(2):
            AlertDispatcher(ledger, [channel]).deliver()
        expected = [("b", threshold) for threshold in (80, 100) if total >= threshold]
        assert heard == expected


def test_alerts_come_again_in_the_next_period(ledger, tags, clock):
    Budgets(ledger).define("b", limit_usd=Decimal(10), period="day")
    heard = []
    dispatcher = AlertDispatcher(ledger, [CallbackChannel("test", lambda alert: heard.append(alert.period_start))])
    for day in range(2):
        spend(ledger, tags, Decimal(9), index=day)
        dispatcher.deliver()
        clock.advance(86400)
    assert heard == ["2026-11-20", "2026-11-21"]


def test_a_failing_channel_is_tried_again_and_stops_nothing(ledger, tags, clock):
    Budgets(ledger).define("b", limit_usd=Decimal(10))
    spend(ledger, tags, Decimal(10), index=0)
    heard, answers = [], [OSError("https://hooks.example/secret"), OSError("again")]

    def receive(alert):
        if answers:
            raise answers.pop()
        heard.append(alert.threshold_percent)

    dispatcher = AlertDispatcher(ledger, [CallbackChannel("test", receive)])
    assert dispatcher.deliver() == 0
    with ledger.database.read() as connection:
        assert connection.execute(sa.select(schema.deliveries.c.last_error).distinct()).scalars().all() == ["OSError"]
    clock.advance(1)
    assert dispatcher.deliver() == 0, "not before its time"
    clock.advance(2)
    assert dispatcher.deliver() == 2
    assert sorted(heard) == [80, 100]
    clock.advance(10_000)
    assert dispatcher.deliver() == 0
