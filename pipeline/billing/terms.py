"""What a run means in money: its tags, its machine as a priced resource, the work its stages are. Pure, no database.

The effects (charges, budgets, approvals) are in `pipeline.billing.account`; nothing in here loads SQLAlchemy, so that
planning, errors and `--help` stay fast.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.environments import ROOT
from finops.ledger.charges import GPU_SLICES, Resource, Usage
from finops.ledger.rates import mig_share, num_devices
from pipeline.config import LEDGER_VARIABLE, LedgerConfig, TrackingConfig
from pipeline.types import Machine

if TYPE_CHECKING:
    from evals.types import Price

LEDGER_FILE = "finops.db"
"""Beside MLflow's `mlflow.db`: where the commands of `finops` look as well."""


def ledger_url(ledger: LedgerConfig, tracking: TrackingConfig) -> str:
    """Where the ledger is: as configured, else as the environment says, else beside MLflow's SQLite store."""
    given = ledger.uri or os.environ.get(LEDGER_VARIABLE)
    if given:
        return given if "://" in given else f"sqlite:///{Path(given).expanduser().resolve()}"
    uri = tracking.uri
    file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else ROOT / "mlruns" / "none"
    return f"sqlite:///{file.resolve().parent / LEDGER_FILE}"


def ledger_file(url: str) -> Path | None:
    """The file of a SQLite ledger; None for a server."""
    return Path(url.removeprefix("sqlite:///").partition("?")[0]) if url.startswith("sqlite:///") else None


def resource_of(price: Price, machine: Machine, host: str) -> Resource:
    """The machine, or the part of it, that the run holds."""
    share = mig_share(price.hardware)
    is_slice = share != 1
    return Resource(
        id=f"{host}/{machine.device}",
        accelerator=price.hardware,
        kind=kind_of(machine),
        num_devices=num_devices(price),
        mig_profile=price.hardware.partition("-mig-")[2] or None if is_slice else None,
        slices=round(share * GPU_SLICES) if is_slice else None,
    )


def kind_of(machine: Machine) -> str:
    """GPU or CPU."""
    return "GPU" if machine.device == "cuda" else "CPU"


def load_usage(result: Mapping[str, Any]) -> Usage:
    """Requests and tokens of a load stage's completed requests, for its charge; warm-up requests are not counted."""
    num_requests = input_tokens = output_tokens = 0
    for point in result.get("points", []):
        done = sum(int(repeat.get("num_completed") or 0) for repeat in point["repeats"])
        num_requests += done
        input_tokens += done * int(point["input_tokens"])
        output_tokens += done * int(point["output_tokens"])
    return {"num_requests": num_requests, "input_tokens": input_tokens, "output_tokens": output_tokens}
