"""Files in and out: FOCUS export and import, usage ingestion."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal

import pytest
from every_kind import COMMITMENT, GPU, HOUR, NOW, ON_DEMAND, START, TAGS, fill
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, UserError
from finops.cli import focus, ingest
from finops.focus.columns import COLUMNS, pico_text
from finops.focus.export import export
from finops.focus.reconcile import import_file
from finops.ledger.charges import Rate, device_charge
from finops.ledger.ingest import read_csv, read_prometheus
from finops.money import from_pico
from finops.tags import TagPolicy

RATE = Rate(Decimal("0.825"), "v1")


@pytest.fixture
def rows(ledger, tmp_path):
    fill(ledger)
    path = tmp_path / "focus.csv"
    assert export(ledger, path) == len(ledger.charges())
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@given(st.integers(-(10**18), 10**18))
def test_decimals_are_exact_and_have_a_point(amount):
    text = pico_text(amount)
    assert Decimal(text) == from_pico(amount)
    assert "." in text
    assert not text.endswith("00")


def test_the_file_holds_the_ledgers_costs_exactly(ledger, rows):
    for column, name in (("BilledCost", "billed"), ("EffectiveCost", "effective"), ("ListCost", "list")):
        assert sum(Decimal(row[column]) for row in rows) == from_pico(
            sum(getattr(charge, f"{name}_pico") for charge in ledger.charges())
        )


def test_every_unit_price_times_quantity_is_its_cost(rows):
    priced = [row for row in rows if row["PricingQuantity"]]
    assert len(priced) > 10
    for row in priced:
        quantity = Decimal(row["PricingQuantity"])
        assert Decimal(row["ListUnitPrice"]) * quantity == Decimal(row["ListCost"])
        assert Decimal(row["ContractedUnitPrice"]) * quantity == Decimal(row["ContractedCost"])


def test_missing_is_empty_and_tags_are_json_scalars(rows):
    for row in rows:
        assert set(row) == set(COLUMNS)
        assert (row["PricingUnit"] == "") == (row["PricingQuantity"] == "")
        assert (row["CommitmentDiscountStatus"] == "") == (
            row["CommitmentDiscountId"] == "" or row["ChargeCategory"] == "Purchase"
        )
        assert all(isinstance(value, str) for value in json.loads(row["Tags"]).values())
        assert row["InvoiceId"] == ""


def test_a_commitment_balances_and_only_covered_usage_is_committed(rows):
    mine = [row for row in rows if row["CommitmentDiscountId"] == COMMITMENT.id]
    by_category = defaultdict(list)
    for row in mine:
        by_category[row["ChargeCategory"]].append(row)
    assert {row["CommitmentDiscountStatus"] for row in by_category["Usage"]} == {"Used", "Unused"}
    billed = sum(Decimal(row["BilledCost"]) for row in by_category["Purchase"])
    assert billed == sum(Decimal(row["EffectiveCost"]) for row in by_category["Usage"])
    assert billed == COMMITMENT.usd_per_hour * 2 * 61 * 24
    assert {Decimal(row["EffectiveCost"]) for row in by_category["Purchase"]} == {0}
    for row in by_category["Usage"]:
        assert Decimal(row["BilledCost"]) == 0
        assert row["PricingCategory"] == "Committed"
        assert (row["ConsumedQuantity"] == "") == (row["CommitmentDiscountStatus"] == "Unused")


def test_a_correction_is_one_only_of_an_earlier_billing_period(rows):
    corrections = {row["x_RunId"]: row for row in rows if row["x_CorrectsChargeKey"]}
    late, early = corrections["r1"], corrections["r8"]
    assert (late["ChargeClass"], late["ChargeCategory"]) == ("Correction", "Usage")
    assert late["BillingPeriodStart"] == "2026-11-01T00:00:00Z"
    assert late["ChargePeriodStart"].startswith("2026-10-03")
    assert (early["ChargeClass"], early["ChargeCategory"]) == ("", "Adjustment")


def test_spot_lost_work_mig_and_currency_are_told(rows):
    by_run = defaultdict(list)
    for row in rows:
        by_run[row["x_RunId"]].append(row)
    assert [(row["x_Work"], row["PricingCategory"]) for row in by_run["r2"]] == [
        ("useful", "Dynamic"),
        ("lost", "Dynamic"),
    ]
    (euro,) = by_run["r3"]
    assert (euro["BillingCurrency"], euro["PricingCurrency"], euro["x_FxRate"]) == ("EUR", "USD", "0.9234")
    assert Decimal(euro["PricingCurrencyListUnitPrice"]) == Decimal("4.2")
    assert by_run["r4"][0]["x_MigProfile"] == "3g.20gb"
    shares = [row for row in rows if row["ResourceId"].startswith("node-4/gpu-0")]
    assert sum(Decimal(row["EffectiveCost"]) for row in shares) == Decimal("3.85") * 2


def test_the_period_bounds_the_charges_start(ledger, tmp_path):
    fill(ledger)
    whole = export(ledger, tmp_path / "all.csv")
    october = export(ledger, tmp_path / "a.csv", start=START.replace(day=1), end=START.replace(month=11, day=1))
    rest = export(ledger, tmp_path / "b.csv", end=START.replace(day=1))
    rest += export(ledger, tmp_path / "c.csv", start=START.replace(month=11, day=1))
    assert whole == october + rest
    assert rest > 0 < october


def test_parquet_holds_the_same_rows(ledger, tmp_path):
    import pyarrow.parquet as pq

    fill(ledger)
    num_rows = export(ledger, tmp_path / "f.parquet", file_format="parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.num_rows == num_rows
    total = sum(table["EffectiveCost"].to_pylist())
    assert total == pytest.approx(float(sum(from_pico(row.effective_pico) for row in ledger.charges())))
    assert table["InvoiceId"].null_count == num_rows


def test_bad_exports_are_refused_and_leave_no_file(ledger, tmp_path):
    with pytest.raises(ConfigError, match=r"--version: '1\.3'"):
        export(ledger, tmp_path / "f.csv", version="1.3")
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        export(ledger, tmp_path / "f.csv", file_format="parket")
    with pytest.raises(UserError, match="--to"):
        export(ledger, tmp_path / "f.csv", start=START, end=START)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="--output"):
        export(ledger, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def provider_file(path, rows):
    names = ["ResourceId", "ChargePeriodStart", "ChargePeriodEnd", "BillingCurrency", "ChargeCategory", "ListCost",
             "ContractedCost", "BilledCost", "EffectiveCost", "PricingQuantity", "PricingUnit"]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for resource, start, end, cost, hours in rows:
            stamps = [moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in (start, end)]
            writer.writerow([resource, *stamps, "USD", "Usage", cost, cost, cost, cost, hours, "Hours"])
    return path


def test_an_imported_bill_replaces_the_estimate_and_charges_the_rest_as_idle(ledger, tmp_path):
    thirds = [(START, START + HOUR / 3), (START + HOUR / 3, START + HOUR / 2)]
    for first, last in thirds:
        ledger.record(
            device_charge(
                run_id=f"r{first.minute}", stage="s", resource=GPU, rate=ON_DEMAND, tags=TAGS, start=first, end=last
            )
        )
    bill = provider_file(tmp_path / "bill.csv", [(GPU.id, START, START + HOUR, "0.77", "1.0"),
                                                 ("unknown", START, START + HOUR, "5.00", "1.0")])  # fmt: skip
    report = import_file(ledger, bill)
    assert (report.num_bills, report.num_matched, report.billed_unmatched) == (2, 1, 5)
    assert ledger.total_usd() == Decimal("0.77")
    idle = [row for row in ledger.charges() if row.work == "idle"]
    assert sum(row.effective_usd for row in idle) == pytest.approx(Decimal("0.385"), abs=Decimal("1e-6"))
    assert import_file(ledger, bill).num_corrections == 0, "again changes nothing"
    assert ledger.total_usd() == Decimal("0.77")
    import_file(ledger, provider_file(tmp_path / "final.csv", [(GPU.id, START, START + HOUR, "0.80", "1.0")]))
    assert ledger.total_usd() == Decimal("0.80")


def test_a_bad_provider_file_names_the_line(ledger, tmp_path):
    ledger.record(
        device_charge(run_id="r", stage="s", resource=GPU, rate=ON_DEMAND, tags=TAGS, start=START, end=START + HOUR)
    )
    bad = provider_file(tmp_path / "bad.csv", [(GPU.id, START, START + HOUR, "a lot", "1.0")])
    with pytest.raises(UserError, match=r"bad.csv, row 2: ListCost: 'a lot'"):
        import_file(ledger, bad)
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a FOCUS file: it has no column ResourceId"):
        import_file(ledger, tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot read"):
        import_file(ledger, tmp_path / "absent.csv")


USAGE = """resource_id,accelerator,start,end,num_devices,\
input_tokens,output_tokens,num_requests,busy_device_hours,team,workload_type
fleet/0,NVIDIA L4,2026-10-01T00:00:00Z,2026-10-01T12:00:00Z,2,1000000,200000,5000,20.5,search,inference
fleet/1,NVIDIA L4,2026-10-01T00:00:00Z,2026-10-01T06:00:00Z,,,,,,search,inference
"""


def test_a_fleets_usage_is_ingested_once(ledger, tmp_path):
    path = tmp_path / "usage.csv"
    path.write_text(USAGE)
    for _ in range(2):
        ledger.record(*read_csv(path, RATE, TagPolicy()))
    first, second = ledger.charges()
    assert (first.device_hours, first.input_tokens, first.num_requests, first.busy_micro) == (
        24,
        10**6,
        5000,
        20_500_000,
    )
    assert (second.input_tokens, second.busy_micro, second.team) == (None, None, "search")
    assert ledger.total_usd() == Decimal("0.825") * 30


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("resource_id,", "resorce_id,", "column 'resorce_id' is not known; did you mean 'resource_id'"),
        ("5000", "5000.5", "line 2: num_requests: 5000.5 is not a whole number"),
        ("20.5", "25", "line 2: busy device time is longer"),
        ("2026-10-01T12:00:00Z", "noon", "line 2: end: 'noon' is not a date"),
        ("fleet/0,", ",", "line 2: resource_id is missing"),
    ],
)
def test_bad_usage_names_line_and_column(tmp_path, old, new, message):
    path = tmp_path / "usage.csv"
    path.write_text(USAGE.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        list(read_csv(path, RATE, TagPolicy()))


def test_prometheus_text_is_ingested(tmp_path):
    labels = (
        'resource_id="f/0",accelerator="NVIDIA L4",start="2026-10-01T00:00:00Z",end="2026-10-01T01:00:00Z",team="a"'
    )
    path = tmp_path / "scrape.txt"
    path.write_text(
        "# HELP parsimony_usage_device_seconds x\n"
        f"parsimony_usage_device_seconds{{{labels}}} 1800\n"
        f"parsimony_usage_output_tokens{{{labels}}} 1.2e6 1700000000000\n"
        "go_goroutines 12\n"
    )
    (charge,) = read_prometheus(path, RATE, TagPolicy())
    assert (charge.device_hours, charge.output_tokens, charge.input_tokens) == (Decimal("0.5"), 1_200_000, None)
    path.write_text("not { a sample\n")
    with pytest.raises(UserError, match="line 1: not a sample"):
        list(read_prometheus(path, RATE, TagPolicy()))


def test_the_commands_write_and_read(ledger, tmp_path, capsys):
    usage = tmp_path / "usage.csv"
    usage.write_text(USAGE)
    url = ["--ledger", ledger.database.url]
    assert ingest.main([*url, "csv", str(usage), "--price", "0.825", "--price-version", "v1"]) == 0
    assert focus.main([*url, "export", "--from", "2026-10-01", "--output", str(tmp_path / "f.csv")]) == 0
    assert "2 new charges" in (text := capsys.readouterr().out)
    assert "2 rows of FOCUS 1.2" in text
    with pytest.raises(UserError, match="--price"):
        ingest.main([*url, "csv", str(usage), "--price", "0.825"])
    with pytest.raises(UserError, match="--from: 'yesterday'"):
        focus.main([*url, "export", "--from", "yesterday", "--output", str(tmp_path / "f.csv")])
    assert START + timedelta(days=1) < NOW
