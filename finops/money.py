"""Exact money and time: integers underneath, Decimal at the edges, and splits that lose nothing.

Three fixed units make every cost of the ledger exact, so that sums in SQL are integer sums:

    cost       integer pico-units of a currency (1e-12)      at most 9.2 million per charge (64 bits)
    quantity   integer micro-units (1e-6): micro-hours of a device, thousands of tokens with three decimals
    price      at most 6 decimals, per hour or per thousand tokens: price x quantity is a whole number of pico-units

A moment in time lies on a grid of one micro-hour (3.6 ms), so the lengths of consecutive periods add up without
rounding: the charges of a machine sum to the machine's bill by construction, however often a run was cut.

>>> split(100, [1, 1, 1])
[34, 33, 33]
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

from core.errors import UserError

PICO = 10**12
MICRO = 10**6
TICK_US = 3600
"""Microseconds in one micro-hour, the grid on which charges begin and end."""
MAX_PICO = 2**63 - 1
UNIT_PRICE_DECIMALS = 6
"""Decimals of a price per hour, or per thousand tokens; more are rounded half-even when a charge is made."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MoneyError(UserError):
    """An amount, quantity or price that the ledger cannot store exactly."""


def to_decimal(value: object, field: str = "amount") -> Decimal:
    """A finite Decimal from Decimal, int or text. A float is refused: it is not exact."""
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, str)):
        raise MoneyError(f"{field}: {value!r} is not exact money. Give a Decimal, an integer or a decimal text.")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise MoneyError(f"{field}: {value!r} is not a decimal number. Write it as 12.34") from None
    if not number.is_finite():
        raise MoneyError(f"{field}: {value!r} is not finite.")
    return number


def _scaled(value: Decimal, digits: int, field: str) -> int:
    sign, figures, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    whole = int("".join(map(str, figures)) or "0")
    shift = exponent + digits
    if shift >= 0:
        number = whole * 10**shift
    else:
        number, rest = divmod(whole, 10**-shift)
        if rest:
            raise MoneyError(f"{field}: {value} has more than {digits} decimals; round it first.")
    if number > MAX_PICO:
        raise MoneyError(f"{field}: {value} is too large for one row. Split it, for example by billing period.")
    return int(-number if sign else number)


def to_pico(amount: Decimal, field: str = "amount") -> int:
    """An amount in pico-units. Raises `MoneyError` where it has more than 12 decimals or does not fit 64 bits."""
    return _scaled(amount, 12, field)


def to_micro(quantity: Decimal, field: str = "quantity") -> int:
    """A quantity in micro-units. Raises `MoneyError` where it has more than 6 decimals."""
    return _scaled(quantity, 6, field)


def from_pico(amount: int) -> Decimal:
    """The exact Decimal of an amount in pico-units."""
    return Decimal(amount).scaleb(-12)


def from_micro(quantity: int) -> Decimal:
    """The exact Decimal of a quantity in micro-units."""
    return Decimal(quantity).scaleb(-6)


def round_decimals(value: Decimal, decimals: int) -> Decimal:
    """Half-even rounding to a number of decimals."""
    return value.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN)


def usd_text(amount: Decimal) -> str:
    """An amount for people: cents, and below ten of them two significant digits.

    >>> usd_text(Decimal("12.345")), usd_text(Decimal("0.001234")), usd_text(Decimal(0))
    ('12.34', '0.0012', '0')
    """
    if amount == 0:
        return "0"
    decimals = 2 if abs(amount) >= Decimal("0.1") else 1 - amount.adjusted()
    return f"{round_decimals(amount, decimals):f}"


def cost_pico(unit_price: Decimal, quantity_micro: int, field: str = "unit price") -> int:
    """Unit price x quantity in pico-units, exact.

    Raises `MoneyError` where the product has more than 12 decimals: the price carries too many for its quantity.
    """
    return _scaled(unit_price * from_micro(quantity_micro), 12, f"{field} x quantity")


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Split an integer by weights so that the parts add up to it: the largest-remainder (Hamilton) method.

    Ties go to the earlier part; a negative total splits as its positive, negated. Raises ValueError for no weights,
    a negative one, or all of them zero.
    """
    whole = sum(weights)
    if whole <= 0 or min(weights) < 0:
        raise ValueError(f"weights must be non-negative and not all zero: {list(weights)}")
    sign, total = (-1, -total) if total < 0 else (1, total)
    parts = [total * weight // whole for weight in weights]
    rests = [total * weight % whole for weight in weights]
    order = sorted(range(len(parts)), key=lambda index: (-rests[index], index))
    for index in order[: total - sum(parts)]:
        parts[index] += 1
    return [sign * part for part in parts]


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 of an aware moment, snapped to the micro-hour grid."""
    if moment.tzinfo is None:
        raise MoneyError(f"time: {moment.isoformat()} has no time zone; give UTC, for example {moment.isoformat()}Z")
    exact = (moment - EPOCH) // timedelta(microseconds=1)
    return (exact + TICK_US // 2) // TICK_US * TICK_US


def from_us(moment_us: int) -> datetime:
    """The UTC moment of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=moment_us)


def parse_moment(text: str, field: str) -> datetime:
    """A date (`2026-10-01`, midnight UTC) or an ISO 8601 moment as an aware UTC datetime.

    Raises `UserError` that names the field for anything else.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{field}: '{text}' is not a date. Write 2026-10-01, or a moment such as 2026-10-01T12:00:00Z"
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def month_of(moment: date) -> int:
    """The month as yyyymm, as in the ledger's index."""
    return moment.year * 100 + moment.month


def day_of(moment: date) -> int:
    """The day as yyyymmdd."""
    return moment.year * 10000 + moment.month * 100 + moment.day
