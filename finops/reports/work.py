"""The work of a stage, and the rough rule for what it takes. Pure: no database, so that planning stays fast.

The rule: the stage's fixed seconds + 2 x passes x parameters x tokens / ROUGH_FLOPS of the hardware's kind + bytes /
ROUGH_BYTES_PER_S, by a factor of 4 either way. It says so in `basis`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

from finops.money import round_decimals

ROUGH_FLOPS = {"CPU": 7e10, "GPU": 3e13}
"""Floating-point operations per second that a stage really reaches, by kind: orders of magnitude. The CPU's is what a
load sweep (6.7e10) and a distillation (8.8e10) reached on two cores; the GPU's is a guess."""
ROUGH_BYTES_PER_S = 3e7
"""Bytes that are downloaded, checked and unpacked per second."""
ROUGH_PARAMETERS_PER_S = 3e7
"""Weights that are read, converted and written per second, where no text goes through the model."""
ROUGH_FACTOR = 4.0
"""The rule's range, either way; no range is wider than it."""


@dataclass(frozen=True)
class StageWork:
    """A stage about to run. Unknown sizes are None; then they do not scale."""

    stage: str
    method: str
    hardware: str
    kind: str = "CPU"
    num_parameters: int | None = None
    num_tokens: int | None = None
    num_devices: int = 1
    passes: float = 1.0
    """Forward passes, or what costs as much, over the tokens."""
    num_bytes: int | None = None
    """Bytes that are downloaded or unpacked."""
    fixed_s: float = 60.0
    """Seconds that it takes whatever its size: libraries are imported, a server starts."""


@dataclass(frozen=True)
class StageEstimate:
    """Duration in seconds and cost in USD: expected, and the ends of the range. `basis` says what they rest on."""

    stage: str
    expected_s: float
    low_s: float
    high_s: float
    expected_usd: Decimal
    low_usd: Decimal
    high_usd: Decimal
    basis: str


def rough_seconds(work: StageWork) -> float:
    """The rough rule of the module's text. An unknown size adds nothing."""
    seconds = work.fixed_s + (work.num_bytes or 0) / ROUGH_BYTES_PER_S
    if work.num_parameters and work.num_tokens:
        operations = 2 * work.passes * work.num_parameters * work.num_tokens
        seconds += operations / (ROUGH_FLOPS.get(work.kind, ROUGH_FLOPS["CPU"]) * work.num_devices)
    elif work.num_parameters:
        seconds += work.num_parameters / ROUGH_PARAMETERS_PER_S
    return seconds


def rough_estimate(work: StageWork, usd_per_hour: Decimal) -> StageEstimate:
    """The rough rule alone, where nothing is recorded of such a stage."""
    expected = rough_seconds(work)
    basis = f"rough rule for {work.kind}: nothing recorded of stage {work.stage} on {work.hardware}"
    return estimate_of(work, expected, ROUGH_FACTOR, usd_per_hour, basis)


def estimate_of(work: StageWork, expected_s: float, factor: float, usd_per_hour: Decimal, basis: str) -> StageEstimate:
    """A duration with its range (by a factor either way), and what that costs at a price per device hour."""
    times = (expected_s, expected_s / factor, expected_s * factor)
    usd = [round_decimals(Decimal(repr(s)) / 3600 * work.num_devices * usd_per_hour, 6) for s in times]
    return StageEstimate(work.stage, *times, usd[0], usd[1], usd[2], basis)


def added_up(parts: Sequence[StageEstimate]) -> StageEstimate:
    """Several estimates of one stage's name as one. Adding the ends supposes that all are long together."""
    return StageEstimate(
        stage=parts[0].stage,
        expected_s=sum(one.expected_s for one in parts),
        low_s=sum(one.low_s for one in parts),
        high_s=sum(one.high_s for one in parts),
        expected_usd=sum((one.expected_usd for one in parts), Decimal(0)),
        low_usd=sum((one.low_usd for one in parts), Decimal(0)),
        high_usd=sum((one.high_usd for one in parts), Decimal(0)),
        basis="; ".join(dict.fromkeys(one.basis for one in parts)),
    )


def two_digits_up(value: Decimal) -> Decimal:
    """An amount to two significant digits, rounded up.

    >>> two_digits_up(Decimal("0.01234")), two_digits_up(Decimal("567")), two_digits_up(Decimal(0))
    (Decimal('0.013'), Decimal('5.7E+2'), Decimal('0'))
    """
    if value == 0:
        return Decimal(0)
    return value.quantize(Decimal(1).scaleb(value.adjusted() - 1), ROUND_UP)
