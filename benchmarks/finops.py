"""How fast the ledger is: adding a charge, a year's showback, a year's FOCUS file.

    python -m benchmarks.finops                      # 1,000,000 charges; about 5 minutes
    python -m benchmarks.finops --num-charges 50000 --folder /tmp/bench

Targets: a charge in under 2 ms (with a budget to book it to), showback of 1,000,000 charges in under 2 s, their FOCUS
file in under 60 s and 500 MB. Writes benchmarks/results/finops-DATE.json with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import sqlite3
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import sqlalchemy as sa

from finops.controls.budgets import Budgets
from finops.focus.export import export
from finops.ledger import schema
from finops.ledger.charges import Charge, Rate, Resource, device_charge
from finops.ledger.ledger import COLUMNS, Ledger
from finops.reports.report import gather
from finops.reports.showback import showback

START = datetime(2025, 11, 1, tzinfo=UTC)
TEAMS = [f"team-{number}" for number in range(12)]
WORKLOADS = ("training", "inference", "fine-tuning", "evaluation")
FAMILIES = ("llama", "qwen", "smollm2", "mistral")
PRICES = {"NVIDIA L4": "0.825", "NVIDIA A100": "3.85", "NVIDIA H100": "10.25", "NVIDIA T4": "0.425"}
OPTIONS = ("on_demand", "spot", "reserved_1y")


def charge(index: int, rng: random.Random) -> Charge:
    """A plausible charge somewhere in the year."""
    accelerator = rng.choice(list(PRICES))
    start = START + timedelta(seconds=rng.randrange(365 * 86400))
    tags = {
        "team": rng.choice(TEAMS), "environment": rng.choice(("dev", "prod")), "model_family": rng.choice(FAMILIES),
        "workload_type": rng.choice(WORKLOADS),
    }  # fmt: skip
    return device_charge(
        run_id=f"run-{index // 5}", stage=rng.choice(("quantize", "evaluate", "serve", "load")), tags=tags,
        resource=Resource(f"node-{index % 500}/gpu-{index}", accelerator, "GPU", "europe-west4", "gcp"),
        rate=Rate(Decimal(PRICES[accelerator]), "catalog@2025-11-01", rng.choice(OPTIONS)), start=start,
        end=start + timedelta(seconds=rng.uniform(10, 7200)), created=start,
    ).with_usage(input_tokens=rng.randrange(10**6), output_tokens=rng.randrange(10**5))  # fmt: skip


def measure_inserts(folder: Path, num: int) -> dict[str, float]:
    """Milliseconds to record one charge in its own transaction, with one budget: median and 99th percentile."""
    ledger = Ledger(str(folder / "insert.db"))
    Budgets(ledger).define("year", limit_usd=Decimal(10**6), period="total")
    rng, times = random.Random(1), []
    for index in range(num):
        one = charge(index, rng)
        begun = time.perf_counter()
        ledger.record(one)
        times.append((time.perf_counter() - begun) * 1e3)
    ledger.close()
    times = sorted(times[num // 20 :])
    return {"median_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99)]}


def fill(path: Path, num: int, num_templates: int = 20_000) -> float:
    """Fill a ledger in large transactions, with copies of `num_templates` charges under keys of their own; seconds."""
    ledger, rng, begun = Ledger(str(path)), random.Random(2), time.perf_counter()
    templates = [charge(index, rng) for index in range(min(num, num_templates))]
    rows = [{name: getattr(one, name) for name in COLUMNS} for one in templates]
    for first in range(0, num, len(rows)):
        batch = [
            {**row, "key": f"{first + index:08x}{row['key'][8:]}", "run_id": f"run-{(first + index) // 5}"}
            for index, row in enumerate(rows[: num - first])
        ]
        with ledger.database.write() as connection:
            connection.execute(sa.insert(schema.charges), batch)
    ledger.close()
    return time.perf_counter() - begun


def measure_export(path: Path, output: Path, file_format: str, answers: SimpleQueue[dict[str, float]]) -> None:
    """Export in this (fresh) process: seconds, rows, peak resident memory of the whole process in MB."""
    ledger = Ledger(str(path), create=False)
    begun = time.perf_counter()
    rows = export(ledger, output, file_format=file_format)
    seconds = time.perf_counter() - begun
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put({"rows": rows, "wall_s": seconds, "peak_mb": peak_mb, "file_mb": output.stat().st_size / 1e6})


def measure(path: Path, folder: Path) -> dict[str, object]:
    """Showback, the whole report and both exports."""
    ledger = Ledger(str(path), create=False)
    found: dict[str, object] = {}
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        shares = showback(ledger)
        times.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    gather(ledger)
    found["showback_s"] = {"first": times[0], "best": min(times)}
    found["whole_report_s"] = time.perf_counter() - begun
    assert sum(share.usd for share in shares) == ledger.total_usd()
    ledger.close()
    spawn = multiprocessing.get_context("spawn")
    for file_format in ("csv", "parquet"):
        answers = spawn.SimpleQueue()
        arguments = (path, folder / f"focus.{file_format}", file_format, answers)
        process = spawn.Process(target=measure_export, args=arguments)
        process.start()
        process.join()
        found[f"focus_{file_format}"] = answers.get()
    return found


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-charges", type=int, default=1_000_000)
    parser.add_argument("--num-inserts", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where to put the databases; kept (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, object] = {
            "date": datetime.now(UTC).date().isoformat(), "num_charges": options.num_charges,
            "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count(),
                        "load_average_at_start": os.getloadavg()[0], "python": platform.python_version(),
                        "sqlite": sqlite3.sqlite_version, "sqlalchemy": sa.__version__},
            "insert": measure_inserts(folder, options.num_inserts),
        }  # fmt: skip
        path = folder / f"year-{options.num_charges}.db"
        if not path.exists():
            result["fill_s"] = fill(path, options.num_charges)
        result["database_mb"] = path.stat().st_size / 1e6
        result.update(measure(path, folder))
    text = json.dumps(result, indent=2)
    print(text)
    output = Path(__file__).parent / "results" / f"finops-{result['date']}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(text + "\n")


if __name__ == "__main__":
    main()
