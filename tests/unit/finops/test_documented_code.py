"""The code of docs/finops.md runs as it stands there, against a ledger of its own."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

from finops.controls.budgets import Budgets
from finops.ledger.ledger import Ledger

PAGE = Path(__file__).resolve().parents[3] / "docs" / "finops.md"


def test_the_ledger_from_your_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSIMONY_LEDGER_URL", f"sqlite:///{tmp_path}/finops.db")
    monkeypatch.setenv("PARSIMONY_USER", "somebody")
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    budget = Ledger()
    Budgets(budget).define("search", limit_usd=Decimal(5000), period="month", team="search")
    done: list[str] = []
    names: dict[str, object] = {
        "problems": [],
        "tags": {
            "workload_type": "inference", "model_family": "llama", "team": "search", "environment": "production",
        },
        "price": {"usd_per_hour": Decimal("0.8"), "price_version": "catalog@2026-11-01", "region": "europe-west4"},
        "plan": {"model": "smollm2-135m"},
        "threshold_usd": Decimal(1000),
        "run_id": "run-1",
        "steps": [lambda: done.append("step")],
        "duration_s": 60.0,
        "mlflow_run_id": "m1",
        "client": None,
    }  # fmt: skip
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["problems"] == []
    assert done == ["step"]
    assert names["cost_usd"] == sum(charge.effective_usd for charge in budget.charges())
    assert all("search" in str(charge.tags) for charge in budget.charges())
    (status,) = Budgets(budget).status()
    assert status.spent_usd == names["cost_usd"]
