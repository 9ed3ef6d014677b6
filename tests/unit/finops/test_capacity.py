"""Reserved capacity and shared machines from files: taken once, conserved, and refused with their place."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from core.errors import UserError
from finops.cli.ingest import main
from finops.ledger.capacity import commitment_rates, ingest_commitments, shared_machine_charges
from finops.ledger.charges import Rate
from finops.ledger.ingest import read_csv
from finops.money import from_pico
from finops.tags import TagPolicy

COMMITMENTS = """id,accelerator,provider,region,num_devices,usd_per_hour,list_usd_per_hour,start,end,team
c1,NVIDIA L4,gcp,eu,2,0.5,0.8,2026-11-01,2026-11-11,research
"""
USAGE = """resource_id,accelerator,start,end,commitment_id
gpu-0,NVIDIA L4,2026-11-02,2026-11-03,{}
"""
USES = """machine_id,accelerator,machine_start,machine_end,start,end,slices,run_id,team
node/gpu,NVIDIA A100,2026-11-01T00:00,2026-11-01T04:00,2026-11-01T00:00,2026-11-01T04:00,3,a,research
node/gpu,NVIDIA A100,2026-11-01T00:00,2026-11-01T04:00,2026-11-01T01:00,2026-11-01T02:00,4,b,search
"""
POLICY = TagPolicy()


@pytest.fixture
def write(tmp_path):
    def written(text, name="file.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


def test_a_commitments_purchase_is_used_up_by_covered_and_unused_time(ledger, write):
    path = write(COMMITMENTS)
    ingest_commitments(ledger, path, POLICY, datetime(2026, 11, 1, tzinfo=UTC))
    rates = commitment_rates(ledger)
    assert rates["c1"].commitment_id == "c1"
    assert ledger.record(*read_csv(write(USAGE.format("c1"), "usage.csv"), None, POLICY, rates)) == 1
    ingest_commitments(ledger, path, POLICY)  # the clock is after the term's end
    rows = ledger.charges()
    used = {row.commitment_status: from_pico(row.effective_pico) for row in rows if row.commitment_status}
    assert used == {"Used": Decimal(12), "Unused": Decimal(2 * 240 - 24) / 2}
    billed = sum(row.billed_pico for row in rows)
    assert from_pico(billed) == Decimal("0.5") * 2 * 240 == ledger.total_usd()
    ingest_commitments(ledger, path, POLICY)
    assert len(ledger.charges()) == len(rows), "a file that is taken again changes nothing"


def test_usage_under_a_commitment_that_nobody_recorded_is_refused(ledger, write):
    with pytest.raises(UserError, match=r"line 2: commitment_id: 'c9' is not recorded\. Recorded: none"):
        list(read_csv(write(USAGE.format("c9")), None, POLICY, commitment_rates(ledger)))


def test_a_shared_machines_uses_and_idle_rest_are_its_cost(ledger, write):
    charges = shared_machine_charges(write(USES), Rate(Decimal("2.8"), "v1"), POLICY)
    assert ledger.record(*charges) == 3
    assert ledger.total_usd() == Decimal("2.8") * 4
    cost = {charge.run_id or "idle": from_pico(charge.effective_pico) for charge in charges}
    grain = Decimal("0.00001")  # quantities are whole micro-hours
    assert abs(cost["a"] - Decimal("2.8") * 4 * 3 / 7) < grain
    assert abs(cost["b"] - Decimal("2.8") * 4 / 7) < grain
    assert sum(cost.values()) == Decimal("2.8") * 4
    assert ledger.record(*shared_machine_charges(write(USES), Rate(Decimal("2.8"), "v1"), POLICY)) == 0


def test_the_command_takes_all_of_them(tmp_path, write, capsys):
    place = ["--ledger", str(tmp_path / "ledger.db")]
    price = ["--price", "2.8", "--price-version", "v1"]
    assert main([*place, "commitments", str(write(COMMITMENTS, "c.csv"))]) == 0
    assert main([*place, "csv", str(write(USAGE.format("c1"), "u.csv"))]) == 0
    assert main([*place, "shared-machines", str(write(USES, "s.csv")), *price]) == 0
    assert main([*place, "shared-machines", str(write(USES, "s.csv")), *price]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 purchase rows are in the ledger, ")
    assert lines[1:] == [
        "1 new charges, 0 known already", "3 new charges, 0 known already", "0 new charges, 3 known already",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (USES.replace("slices", "slcies"), r"column 'slcies' is not known; did you mean 'slices'"),
        (USES.replace(",3,a", ",,a"), r"line 2: slices is missing"),
        (USES.replace(",3,a", ",5,a"), r"oversubscribed: a \(5\), b \(4\)"),
        (USES.replace("2026-11-01T02:00", "soon"), r"line 3: end: 'soon' is not a date"),
    ],
)
def test_a_bad_row_is_named(text, message, write):
    with pytest.raises(UserError, match=message):
        shared_machine_charges(write(text), Rate(Decimal("2.8"), "v1"), POLICY)
