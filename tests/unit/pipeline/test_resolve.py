"""What a plan rests on: the price of the machine, within the places where it may run."""

from __future__ import annotations

from decimal import Decimal

import pytest

from core.errors import PriceError
from pipeline.config import HardwareConfig, RunConfig
from pipeline.plan.resolve import find_price
from tests.unit.pipeline.shapes import MACHINE


def test_the_price_is_of_offers_that_stand_where_the_run_may_run() -> None:
    everywhere, here = find_price(RunConfig(), MACHINE), find_price(RunConfig(residency=["us"]), MACHINE)
    assert here == everywhere
    with pytest.raises(PriceError, match="it can stand in US, outside AU, SG"):
        find_price(RunConfig(residency=["sg", "au"]), MACHINE)
    with pytest.raises(PriceError, match="its region is us-east-1, not eu-west-1"):
        find_price(RunConfig(region="eu-west-1"), MACHINE)


def test_an_own_price_is_taken_and_says_that_its_place_is_unknown() -> None:
    config = RunConfig(hardware=HardwareConfig(usd_per_hour=0.5), residency=["sg"])
    price = find_price(config, MACHINE)
    assert price.usd_per_hour == Decimal("0.5")
    assert "residency=sg is not checked" in price.warnings[0]
