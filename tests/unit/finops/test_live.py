"""What the ledger holds open now."""

from datetime import timedelta
from decimal import Decimal

from finops.controls.budgets import Budgets
from finops.reports.live import live
from tests.unit.finops.conftest import TAGS


def test_open_charges_and_reservations_until_they_end(ledger, clock, gpu, rate):
    assert (live(ledger).charges, live(ledger).reservations) == ((), ())
    opened = ledger.open_charge(run_id="r1", stage="quality", resource=gpu, rate=rate, tags=TAGS)
    hold = Budgets(ledger).reserve("r1", Decimal("2.5"), TAGS, ttl_s=60)
    found = live(ledger)
    (charge,), (reservation,) = found.charges, found.reservations
    assert (charge.run_id, charge.stage, charge.started) == ("r1", "quality", clock.now)
    assert (reservation.amount_usd, reservation.used_usd) == (Decimal("2.5"), 0)
    assert reservation.expires == clock.now + timedelta(seconds=60)
    clock.advance(30)
    ledger.close_charge(opened)
    assert live(ledger).charges == ()
    clock.advance(31)
    assert live(ledger).reservations == (), "an expired reservation holds nothing"
    assert hold.id
