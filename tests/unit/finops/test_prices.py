"""The price catalog: its rules, look-ups, and the names of devices."""

import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import PriceError
from finops.cli.prices import main
from finops.pricing.api_prices import api_list_price
from finops.pricing.catalog import Catalog, Hardware, Offer, load_catalog
from finops.pricing.prices import (
    CATALOG,
    default_catalog,
    device_facts,
    hardware_of_device,
    lookup,
    serving_price,
    with_lost_work,
)

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


def catalog_file(tmp_path, *offers, name="catalog.yaml", **sections):
    path = tmp_path / name
    path.write_text(yaml.safe_dump({"hardware": {"x": {"unit": "gpu"}}, "offers": list(offers)} | sections))
    return path


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
    row = device_facts(choice["name"])
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
        ({"currency": "EUR"}, "EUR has no rate under `fx`"),
        ({"residency": ["Singapore"]}, "'SINGAPORE' is no ISO 3166 code"),
        ({"interruptions_per_hour": "-1"}, "interruptions_per_hour is -1"),
    ],
)
def test_bad_rows_are_refused_by_name_and_reason(tmp_path, change, reason):
    with pytest.raises(PriceError) as caught:
        load_catalog(catalog_file(tmp_path, OFFER | {"purchase_option": "on_demand"}, OFFER | change))
    assert reason in str(caught.value)
    assert str(caught.value).count("\n") == 1


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
    catalog = load_catalog(catalog_file(tmp_path, OFFER | {"purchase_option": "on_demand"}))
    assert lookup("x", catalog=catalog, today=date(2027, 4, 1)).warnings == ()
    assert "more than a year old" in lookup("x", catalog=catalog, today=date(2027, 6, 1)).warnings[0]


@settings(deadline=None)
@given(st.decimals("0.0001", "500", places=4), st.decimals("0", "500", places=4), st.integers(1, 64))
def test_money_stays_exact(low, more, num_devices):
    offer = Offer("x", "spot", low, low + more, "p", "any", "USD", "2026", "s")
    price = lookup("x", "spot", num_devices, catalog=Catalog({"x": Hardware("x", "gpu")}, (offer,)))
    assert price.usd_per_hour_lo == low * num_devices
    assert price.usd_per_hour_hi == (low + more) * num_devices


def test_our_catalog_holds_money_as_text():
    for row in yaml.safe_load(CATALOG.read_text())["offers"]:
        assert isinstance(row["low"], str), row
        assert isinstance(row["high"], str), row


def test_a_slice_costs_its_share_and_has_its_memory():
    whole, slice_ = lookup("a100-80gb"), lookup("a100-80gb-mig-3g.40gb", num_devices=2)
    assert float(slice_.usd_per_hour) == pytest.approx(float(whole.usd_per_hour) * 3 / 7 * 2)
    assert device_facts("a100-80gb-mig-3g.40gb").memory_gib == 40
    assert device_facts("a100-80gb-mig-3g.40gb").compute_capability == Decimal("8.0")


def test_seven_slices_cost_the_whole_gpu():
    assert float(lookup("h100-80gb-mig-1g.10gb", num_devices=7).usd_per_hour) == pytest.approx(10.25)


@pytest.mark.parametrize("name", ["a100-80gb-mig-1g.5gb", "l4-24gb-mig-1g.10gb", "a100-80gb-mig-"])
def test_a_profile_that_there_is_not_is_refused(name):
    with pytest.raises(PriceError, match="has no row"):
        lookup(name)


def test_a_slice_by_the_name_that_the_driver_prints():
    assert hardware_of_device("NVIDIA A100-SXM4-80GB MIG 1g.10gb") == "a100-80gb-mig-1g.10gb"
    with pytest.raises(PriceError, match="has no row"):
        hardware_of_device("NVIDIA A100-SXM4-80GB MIG 1g.11gb")


def test_a_profile_larger_than_its_gpu_is_refused(tmp_path):
    mig = {"1g.99gb": {"slices": 1, "memory_gib": 99, "max_instances": 1}}
    hardware = {"x": {"unit": "gpu", "memory_gib": 80, "mig": mig}}
    with pytest.raises(PriceError, match="more memory than the whole device"):
        load_catalog(catalog_file(tmp_path, OFFER, hardware=hardware))


def test_residency_removes_offers_and_says_which(tmp_path):
    singapore = OFFER | {"provider": "q", "region": "sg-1", "residency": ["sg"], "low": "1.50"}
    anywhere = OFFER | {"provider": "r", "region": "eu-any", "residency": ["de", "us"]}
    catalog = load_catalog(catalog_file(tmp_path, OFFER, singapore, anywhere))
    price = lookup("x", "spot", residency=["sg", "au"], catalog=catalog)
    assert price.usd_per_hour_lo == Decimal("1.50")
    removed = [warning for warning in price.warnings if warning.startswith("removed")]
    assert any("does not say in which country" in warning for warning in removed)
    assert any("r / eu-any: it can stand in DE, US" in warning for warning in removed)
    with pytest.raises(PriceError, match="keeps the constraints") as caught:
        lookup("x", "spot", residency=["jp"], catalog=catalog)
    assert str(caught.value).count("  - ") == 3


def test_a_code_that_is_no_country_is_refused():
    with pytest.raises(PriceError, match="residency: 'singapore' is no ISO 3166 code"):
        lookup("l4-24gb", residency=["sg", "singapore"])


def test_a_price_of_your_own_does_not_say_where_the_machine_stands():
    price = lookup("mine", usd_per_hour=2, region="here", residency=["sg"])
    assert [text.partition(" is not checked")[0] for text in price.warnings] == ["region=here", "residency=sg"]
    assert lookup("mine", usd_per_hour=2).warnings == ()


def test_a_region_is_a_constraint(tmp_path):
    here = OFFER | {"region": "here", "low": "1.10"}
    catalog = load_catalog(catalog_file(tmp_path, OFFER, here))
    assert lookup("x", "spot", region="here", catalog=catalog).usd_per_hour_lo == Decimal("1.10")
    with pytest.raises(PriceError, match="its region is any, not there"):
        lookup("x", "spot", region="there", catalog=catalog)


def test_a_currency_converts_with_its_dated_rate(tmp_path):
    fx = {"EUR": {"usd": "1.10", "as_of": "2026-05-04", "source": "test"}}
    catalog = load_catalog(catalog_file(tmp_path, OFFER | {"currency": "EUR"}, fx=fx))
    price = lookup("x", "spot", catalog=catalog, today=date(2028, 1, 1))
    assert (price.usd_per_hour_lo, price.usd_per_hour_hi) == (Decimal("1.1"), Decimal("2.2"))
    assert any("EUR converted at 1.10 USD (test, 2026-05-04)" in warning for warning in price.warnings)
    assert any("the rate of EUR is of 2026-05-04" in warning for warning in price.warnings)


@pytest.mark.parametrize("rate", [{"usd": "0", "as_of": "2026", "source": "s"}, {"usd": "1.1", "source": "s"}, "1.1"])
def test_a_bad_rate_is_refused(tmp_path, rate):
    with pytest.raises(PriceError, match="fx EUR"):
        load_catalog(catalog_file(tmp_path, OFFER, fx={"EUR": rate}))


def test_spot_says_how_often_it_is_taken_back_or_that_nobody_does(tmp_path):
    known = load_catalog(catalog_file(tmp_path, OFFER | {"interruptions_per_hour": "0.05"}))
    price = lookup("x", "spot", catalog=known)
    assert price.warnings == ()
    assert with_lost_work(price, 3600, 0).usd_per_hour_lo == Decimal("1.025")
    unknown = lookup("x", "spot", catalog=load_catalog(catalog_file(tmp_path, OFFER)))
    assert "nobody says how often" in unknown.warnings[0]
    with pytest.raises(PriceError, match="nobody says"):
        with_lost_work(unknown, 3600, 0)
    assert serving_price(unknown, 60) == unknown


def test_a_spot_machine_that_serves_costs_what_its_successor_takes_to_start(tmp_path):
    offer = OFFER | {"low": "1", "high": "2", "interruptions_per_hour": "0.1"}
    price = lookup("x", "spot", catalog=load_catalog(catalog_file(tmp_path, offer)))
    serving = serving_price(price, 72)
    assert (serving.usd_per_hour_lo, serving.usd_per_hour_hi) == (Decimal("1.002"), Decimal("2.004"))
    assert "taken back 0.1 times an hour, 72 s" in serving.warnings[-1]
    unmeasured = serving_price(price, None)
    assert unmeasured.usd_per_hour_lo == price.usd_per_hour_lo
    assert "not known how long this server takes" in unmeasured.warnings[-1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"low": "0.01"}, "low jumps from 1.00 to 0.01"),
        ({"high": "10.00"}, "high jumps from 2.00 to 10.00"),
        ({"as_of": "2026-04"}, "as_of goes back from 2026-05 to 2026-04"),
        ({"low": "0"}, "low is 0; it must be above 0"),
        ({"as_of": None}, "no `as_of`"),
    ],
)
def test_a_refresh_out_of_bounds_changes_nothing(tmp_path, change, reason):
    old = catalog_file(tmp_path, OFFER)
    content = old.read_text()
    new = catalog_file(tmp_path, OFFER | change, name="new.yaml")
    with pytest.raises(PriceError) as raised:
        main(["--catalog", str(old), "refresh", "--from", str(new)])
    assert reason in str(raised.value)
    assert old.read_text() == content


def test_a_refresh_takes_new_rows_and_keeps_the_rest(tmp_path, capsys):
    other = OFFER | {"provider": "q"}
    old = catalog_file(tmp_path, OFFER, other)
    newer = OFFER | {"low": "0.80", "as_of": "2026-10", "interruptions_per_hour": "0.1", "residency": ["us"]}
    new = catalog_file(tmp_path, newer, OFFER | {"provider": "z"}, name="new.yaml")
    assert main(["--catalog", str(old), "refresh", "--from", str(new)]) == 0
    assert "1.00-2.00 -> 0.80-2.00" in capsys.readouterr().out
    offers = {offer.provider: offer for offer in load_catalog(old).offers}
    assert offers["p"].low == Decimal("0.80")
    assert offers["p"].interruptions_per_hour == Decimal("0.1")
    assert offers["p"].residency == ("US",)
    assert offers["q"].low == Decimal("1.00")
    assert set(offers) == {"p", "q", "z"}
    assert main(["--catalog", str(old), "list"]) == 0
    assert "as of 2026-10" in capsys.readouterr().out


def test_a_whole_catalog_refreshes_from_itself(tmp_path, capsys):
    copy = tmp_path / "copy.yaml"
    copy.write_text(CATALOG.read_text())
    assert main(["--catalog", str(copy), "refresh", "--from", str(CATALOG)]) == 0
    assert capsys.readouterr().out == "no price changes\n"
    assert load_catalog(copy) == default_catalog()


def test_api_prices_are_labelled_as_what_they_are():
    pytest.importorskip("genai_prices")
    price = api_list_price("llama-3.1-8b-instant", "groq")
    assert price.label == "public API list price, no SLO"
    assert 0 < price.usd_per_1m_input_tokens < price.usd_per_1m_output_tokens < 10
    with pytest.raises(PriceError, match="no public API price for 'smollm2-135m'"):
        api_list_price("smollm2-135m")


def test_without_the_package_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(PriceError, match="pip install genai-prices"):
        api_list_price("llama-3.1-8b-instant")
