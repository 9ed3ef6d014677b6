"""What a variant saves for a fleet, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evals.decide.evidence import Evidence
from evals.decide.fleet import describe_fleet, machine_rate
from evals.types import LoadReport, ThetaSlo
from tests.unit.pipeline.test_decide import GOOD, a_loop, evidence, rounds

SLOW, FAST = (160.0, 161.0, 159.0), (320.0, 322.0, 318.0)  # 1 and 2 requests per second


def serving(load: LoadReport) -> Evidence:
    return replace(evidence(GOOD), load=load)


def test_a_faster_variant_saves_only_where_one_machine_is_not_enough() -> None:
    words = describe_fleet(serving(a_loop(SLOW)), serving(a_loop(FAST)))
    assert words is not None
    assert words.startswith("one machine carries 2 requests/s at saturation, the baseline's 1: it saves nothing while")
    assert "at most 50% of a large fleet" in words


@pytest.mark.parametrize(
    ("peak", "meaning"),
    [
        (0.5, "at 0.5 requests/s it saves nothing now: 1 machine either way"),
        (3.9, "at 3.9 requests/s it removes 2 of 4 machines, 2 USD per hour less"),
    ],
)
def test_at_a_declared_peak_it_counts_machines(peak: float, meaning: str) -> None:
    words = describe_fleet(serving(a_loop(SLOW)), serving(a_loop(FAST)), peak)
    assert words is not None
    assert meaning in words


def test_a_slower_one_costs_more_and_an_equal_one_nothing() -> None:
    assert "it saves nothing at any load" in (describe_fleet(serving(a_loop(FAST)), serving(a_loop(SLOW))) or "")
    assert "costs more: 4 instead of 2 machines" in (
        describe_fleet(serving(a_loop(FAST)), serving(a_loop(SLOW)), 3.9) or ""
    )
    assert "it saves nothing at any load" in (describe_fleet(serving(a_loop(SLOW)), serving(a_loop(SLOW))) or "")


def test_noise_is_named_and_what_was_not_measured_gives_no_words() -> None:
    noisy = describe_fleet(
        serving(a_loop((100, 120, 110))),
        replace(serving(a_loop((105, 125, 112))), price_rounds=rounds(0.97, spread=0.05)),
    )
    assert noisy is not None
    assert noisy.endswith("(that it is cheaper is not shown)")
    searched = a_loop(SLOW, ThetaSlo(2.0, 0.2, 1.5, 1.6, 6))
    assert machine_rate(searched) == 1.5
    assert describe_fleet(serving(a_loop(SLOW)), serving(searched)) is None, "two kinds of rate"
    paced = a_loop(SLOW)
    assert machine_rate(replace(paced, points=(replace(paced.points[0], trace="azure"),))) is None
    unheld = a_loop(SLOW, ThetaSlo(2.0, 0.2, None, 0.2, 6))
    assert describe_fleet(serving(searched), serving(unheld)) is None
