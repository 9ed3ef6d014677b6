"""The price catalog: its rules, look-ups, and the names of devices."""

import doctest
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import finops.prices
from common.errors import PriceError
from finops.prices import CATALOG, default_catalog, hardware_of_device, load_catalog, lookup

CONF = Path(__file__).parents[3] / "conf" / "hardware"
OFFER = {
    "hardware": "x",
    "purchase_option": "spot",
    "low": "1.00",
    "high": "2.00",
    "provider": "p",
    "region": "any",
    "currency": "USD",
    "as_of": "2026-05",
    "source": "s",
}


def catalog_file(tmp_path, *offers):
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump({"hardware": {"x": {"unit": "gpu"}}, "offers": list(offers)}))
    return path


def test_worked_examples():
    assert doctest.testmod(finops.prices).failed == 0


@pytest.mark.parametrize(
    ("hardware", "option", "low", "high"),
    [
        ("a100-80gb", "on_demand", "3.50", "4.20"),
        ("a100-80gb", "reserved_1y", "2.10", "2.50"),
        ("h100-80gb", "spot", "2.55", "4.80"),
        ("l4-24gb", "on_demand", "0.70", "0.95"),
        ("t4-16gb", "spot", "0.10", "0.18"),
        ("mi300x-192gb", "reserved_1y", "4.20", "5.70"),
    ],
)
def test_the_playbooks_table(hardware, option, low, high):
    price = lookup(hardware, option)
    assert (price.usd_per_hour_lo, price.usd_per_hour_hi) == (Decimal(low), Decimal(high))
    assert price.as_of == "2026"
    assert price.source


def test_a_cpu_is_priced_per_vcpu():
    two, four = lookup("cpu", num_devices=2), lookup("cpu", num_devices=4)
    assert two.usd_per_hour_lo == Decimal("0.0960")
    assert two.usd_per_hour_hi == Decimal("0.11592")
    assert four.usd_per_hour == 2 * two.usd_per_hour


def test_the_users_price_is_of_the_whole_machine():
    price = lookup("my-box", num_devices=8, usd_per_hour="12.5")
    assert price.usd_per_hour == Decimal("12.5")
    assert price.num_devices == 8
    assert "given by the user" in price.source


@pytest.mark.parametrize("bad", ["0", "-1", "nan", "much"])
def test_an_impossible_price_is_refused(bad):
    with pytest.raises(PriceError, match="usd_per_hour"):
        lookup("my-box", usd_per_hour=bad)


def test_unknown_hardware_names_the_closest_and_the_way_out():
    with pytest.raises(PriceError, match="did you mean 'h100-80gb'") as caught:
        lookup("h100-80g")
    assert "hardware.usd_per_hour=" in str(caught.value)


def test_an_option_without_an_offer_names_those_that_there_are():
    with pytest.raises(PriceError, match="no 'spot' offer for cpu; offers: on_demand"):
        lookup("cpu", "spot")


@pytest.mark.parametrize(
    ("device", "hardware"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-80gb"),
        ("NVIDIA L4", "l4-24gb"),
        ("Tesla T4", "t4-16gb"),
        ("AMD Instinct MI300X", "mi300x-192gb"),
    ],
)
def test_devices_by_the_name_that_the_driver_prints(device, hardware):
    assert hardware_of_device(device) == hardware


@pytest.mark.parametrize(
    "device", ["NVIDIA A100-SXM4-40GB", "NVIDIA L40S", "NVIDIA H100 NVL", "NVIDIA GH200 480GB", ""]
)
def test_a_device_without_a_row_is_refused_with_the_way_out(device):
    with pytest.raises(PriceError, match=r"hardware\.usd_per_hour="):
        hardware_of_device(device)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_hardware_choice_has_a_row_with_the_same_facts(path):
    choice = yaml.safe_load(path.read_text())
    assert choice["name"] == path.stem
    if choice["name"] == "auto":
        return
    lookup(choice["name"], choice["purchase_option"])
    row = default_catalog().hardware[choice["name"]]
    for key in ("memory_gib", "compute_capability"):
        ours, theirs = choice[key], getattr(row, key)
        assert (ours is None) == (theirs is None)
        assert ours is None or Decimal(str(ours)) == theirs


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"low": "0"}, "low is 0; it must be above 0"),
        ({"low": "-1"}, "low is -1"),
        ({"low": "nan"}, "low is nan"),
        ({"low": "cheap"}, "low is 'cheap', no number"),
        ({"low": "3.00"}, "low 3.00 is above high 2.00"),
        ({"as_of": ""}, "no `as_of`"),
        ({"as_of": "last week"}, "as_of 'last week' is no date"),
        ({"as_of": "2026-13"}, "is no date"),
        ({"source": None}, "no `source`"),
        ({"hardware": "y"}, "hardware 'y' is not described"),
        ({"purchase_option": "free"}, "purchase_option; allowed"),
        ({"currency": "dollars"}, "no ISO 4217 code"),
        ({"discount": "0.5"}, "unknown key 'discount'"),
    ],
)
def test_bad_rows_are_refused_by_name_and_reason(tmp_path, change, reason):
    with pytest.raises(PriceError) as caught:
        load_catalog(catalog_file(tmp_path, OFFER | {"purchase_option": "on_demand"}, OFFER | change))
    assert reason in str(caught.value)
    assert "offer 1" in str(caught.value)
    assert "offer 0" not in str(caught.value)


def test_all_bad_rows_are_listed_at_once(tmp_path):
    with pytest.raises(PriceError) as caught:
        load_catalog(catalog_file(tmp_path, OFFER | {"low": "0"}, OFFER | {"high": "0"}))
    assert "offer 0" in str(caught.value)
    assert "offer 1" in str(caught.value)


def test_the_same_offer_twice_is_refused(tmp_path):
    with pytest.raises(PriceError, match="listed more than once"):
        load_catalog(catalog_file(tmp_path, OFFER, OFFER))


@pytest.mark.parametrize("text", ["", "[1, 2]", "hardware: {", "offers: []"])
def test_what_is_no_catalog_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(PriceError, match="price catalog"):
        load_catalog(tmp_path / "c.yaml")


def test_a_missing_file_is_the_users_error(tmp_path):
    with pytest.raises(PriceError, match="cannot be read"):
        load_catalog(tmp_path / "none.yaml")


def test_offers_of_several_providers_give_one_range(tmp_path):
    other = OFFER | {"provider": "q", "low": "0.50", "high": "0.60", "as_of": "2025"}
    price = lookup("x", "spot", 2, catalog=load_catalog(catalog_file(tmp_path, OFFER, other)))
    assert (price.usd_per_hour_lo, price.usd_per_hour_hi) == (Decimal("1.00"), Decimal("4.00"))
    assert price.as_of == "2025"


def test_old_prices_warn(tmp_path):
    catalog = load_catalog(catalog_file(tmp_path, OFFER))
    assert lookup("x", "spot", catalog=catalog, today=date(2027, 4, 1)).warnings == ()
    assert "more than a year old" in lookup("x", "spot", catalog=catalog, today=date(2027, 6, 1)).warnings[0]


@given(st.decimals("0.0001", "500", places=4), st.decimals("0", "500", places=4), st.integers(1, 64))
def test_money_stays_exact(low, more, num_devices):
    from finops.prices import Catalog, Hardware, Offer

    offer = Offer("x", "spot", low, low + more, "p", "any", "USD", "2026", "s")
    price = lookup("x", "spot", num_devices, catalog=Catalog({"x": Hardware("x", "gpu")}, (offer,)))
    assert price.usd_per_hour_lo == low * num_devices
    assert price.usd_per_hour_hi == (low + more) * num_devices


def test_our_catalog_holds_money_as_text():
    for row in yaml.safe_load(CATALOG.read_text())["offers"]:
        assert isinstance(row["low"], str), row
        assert isinstance(row["high"], str), row
