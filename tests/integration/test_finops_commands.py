"""The money's commands as a person meets them, the FOCUS file before its validator, the alert rules before promtool."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finops.focus.check import check
from finops.focus.columns import COLUMNS
from finops.ledger.ledger import Ledger
from tests.unit.finops.every_kind import NOW, fill

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
COMMANDS = ("approvals", "budgets", "focus", "ingest", "metrics", "report")


def run(module, *arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", module, *arguments], capture_output=True, text=True, timeout=60,
        check=False,
        env=environment, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("finops") / "ledger.db"
    ledger = Ledger(str(path), clock=lambda: NOW)
    fill(ledger)
    ledger.close()
    return path


@pytest.mark.parametrize("module", COMMANDS)
def test_help_has_an_example_and_an_unreadable_ledger_is_one_message(module, tmp_path):
    done = run(module, "--help")
    assert done.returncode == 0
    assert f"python -m pipeline {module}" in done.stdout.split("options:")[0].split("\n\n", 1)[1], "an example to copy"
    arguments = {
        "approvals": ["list"], "budgets": ["list"], "focus": ["export", "--output", str(tmp_path / "f.csv")],
        "ingest": ["csv", str(tmp_path / "none.csv")], "metrics": ["print"], "report": [],
    }[module]  # fmt: skip
    done = run(module, "--ledger", "postgresql://u:topsecretword@127.0.0.1:1/x", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "topsecretword" not in done.stderr


def test_the_price_catalogs_help_has_an_example_and_a_missing_file_is_one_message(tmp_path):
    assert "python -m pipeline prices refresh --from NEW.yaml" in run("prices", "--help").stdout
    done = run("prices", "--catalog", str(tmp_path / "none.yaml"), "list")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def validator():
    """The validator's program: FOCUS_VALIDATOR, the PATH, or the product's own environment."""
    home = Path(os.environ.get("PARSIMONY_HOME") or Path.home() / ".cache/parsimony")
    known = [os.environ.get("FOCUS_VALIDATOR"), shutil.which("focus-validator")]
    known += sorted(str(path) for path in home.glob("envs/focus-*/bin/focus-validator"))
    found = [path for path in known if path]
    if not found:
        pytest.skip("focus-validator is not installed: its environment is requirements/focus.txt with Python 3.12")
    return found[-1]


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_a_file_with_every_kind_of_row_passes_the_focus_validator(database, tmp_path, file_format):
    program, path = validator(), tmp_path / f"focus.{file_format}"
    done = run("focus", "--ledger", str(database), "export", "--format", file_format, "--output", str(path))
    assert done.returncode == 0, done.stderr
    report = check(path, program)
    assert report.passed, str(report)
    assert report.num_rules - report.num_skipped > 300
    assert report.unused == (), "a waiver that is not needed any more must go"


def faulty(rows):
    """Faults of each kind, and the rules that they break: those that the validator sees, and those that it does not."""
    usage = [row for row in rows if row["ChargeCategory"] == "Usage" and row["PricingQuantity"]]
    covered = next(row for row in rows if row["CommitmentDiscountStatus"] == "Used")
    rows[0]["BilledCost"] = ""
    usage[1]["ChargeCategory"] = "Usages"
    usage[2]["ServiceCategory"] = "Machine Learning"
    usage[3]["PricingCategory"] = "On Demand"
    usage[4]["ListUnitPrice"] = "9.99"
    usage[5]["ContractedUnitPrice"] = "9.99"
    usage[6]["BillingCurrency"] = "Dollars"
    usage[7]["SkuPriceId"] = ""
    usage[8]["ServiceSubcategory"] = "Virtual Machines"
    covered["CommitmentDiscountStatus"] = "Consumed"
    by_the_validator = {"BilledCost-C-003-M"}
    beside_it = {
        "ChargeCategory-C-003-M", "ServiceCategory-C-003-M", "PricingCategory-C-007-M", "ListUnitPrice-C-010-C",
        "ListCost-C-009-C", "ContractedUnitPrice-C-011-C", "SkuPriceId-C-005-C", "ServiceSubcategory-C-004-M",
        "CommitmentDiscountStatus-C-005-M",
    }  # fmt: skip
    return by_the_validator, beside_it


def test_the_check_finds_what_is_wrong(database, tmp_path):
    program, good, bad = validator(), tmp_path / "good.csv", tmp_path / "bad.csv"
    assert run("focus", "--ledger", str(database), "export", "--output", str(good)).returncode == 0
    with good.open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_the_validator, beside_it = faulty(rows)
    with bad.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)
    report = check(bad, program)
    assert not report.passed
    assert by_the_validator <= set(report.failed)
    assert beside_it <= {breach.rule for breach in report.breaches}
    assert "9.99" in str(report)


def promtool(*arguments, **options):
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)


def test_promtool_accepts_metrics_rules_and_their_tests(database):
    printed = run("metrics", "--ledger", str(database), "print")
    assert printed.returncode == 0
    done = promtool("check", "metrics", input=printed.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = ROOT / "conf/observability"
    done = promtool("check", "rules", str(folder / "alerts.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("test", "rules", "alerts_test.yml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_and_rules_name_metrics_that_exist():
    import re

    source = (ROOT / "finops/reports/prometheus.py").read_text()
    exported = set(re.findall(r'"(parsimony_[a-z0-9_]+)"', source))
    exported |= {f"parsimony_budget_{name}_usd" for name in ("limit", "spent", "held")}
    folder = ROOT / "conf/observability"
    board = json.loads((folder / "dashboard.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 8
    used = " ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", []))
    used += (folder / "alerts.yml").read_text()
    names = set(re.findall(r"parsimony_[a-z0-9_]+", used))
    assert names <= exported, names - exported
    assert len(names) >= 10
