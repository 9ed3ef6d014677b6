"""Do the printed ranges hold what stages really take? Runs of different sizes, one after the other, in one new ledger.

    python -m benchmarks.estimates --out benchmarks/results/estimates-2026-11-27.json [--runs 14]

Every run is the product's own command in a process of its own, with a cache folder and stores of the benchmark's: the
first ones are estimated by the rough rule, later ones from what was recorded. Sizes differ in items, requests, tokens,
calibration text, method and the model's own size (random weights). What is counted is, per run and stage, whether the
actual time lies within the printed range, and how far the range's upper end is from its middle. The bar: at least 80%
within, and at most 4 times once a similar run is recorded. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.environments import home, serving_python, versions
from core.files import write_json
from finops.ledger.ledger import Ledger
from finops.reports.estimates import EstimateError, estimate_errors

SHARED_STAGES = ("fetch", "base", "datasets")
"""Taken from the user's cache where they are there: downloads say nothing of this machine."""
SMALL_MODEL = ["model.weights=random", "model.shape.num_hidden_layers=10"]
RUNS: tuple[tuple[str, ...], ...] = (
    ("quant=rtn-int8", "gate.order=uniform", "gate.max_items=8"),
    ("quant=none", "gate.order=uniform", "gate.max_items=16", "seed=1"),
    ("quant=none", "gate.order=uniform", "gate.max_items=32", "seed=2", "load.num_repeats=4"),
    ("quant=rtn-int4", "gate.order=uniform", "gate.max_items=12", "seed=3"),
    ("quant=none", "gate.order=uniform", "gate.max_items=6", "seed=4", *SMALL_MODEL),
    ("quant=none", "gate.order=uniform", "gate.max_items=48", "seed=5"),
    ("quant=none", "gate.order=uniform", "gate.max_items=24", "seed=6", *SMALL_MODEL),
    ("quant=none", "suite.tasks=[sciq]", "gate.order=uniform", "gate.max_items=12", "seed=7"),
    (
        "quant=none",
        "suite.tasks=[hellaswag]",
        "gate.order=uniform",
        "gate.max_items=24",
        "seed=8",
        "load.num_repeats=3",
    ),
    ("quant=rtn-int8", "gate.order=uniform", "gate.max_items=20", "seed=9"),
    ("quant=none", "gate.order=uniform", "gate.max_items=10", "seed=10", "load.num_repeats=6"),
    ("quant=none", "gate.order=uniform", "gate.max_items=40", "seed=11", "load.num_repeats=1"),
    ("quant=int8", "gate.order=uniform", "gate.max_items=12", "seed=12", "calib.num_samples=8", "calib.length=128"),
    ("quant=int8", "gate.order=uniform", "gate.max_items=10", "seed=13", "calib.num_samples=16", "calib.length=128"),
)
LOAD = (
    "load.points=[{concurrency: 1, input_tokens: 64, output_tokens: 16, num_requests: 2},"
    "{concurrency: 8, input_tokens: 64, output_tokens: 16, num_requests: 16}]"
)


def run(place: Path, settings: tuple[str, ...]) -> float:
    """One run of the product; returns its wall time in seconds."""
    common = [
        f"home={place / 'home'}",
        f"tracking.uri=sqlite:///{place}/mlflow.db",
        f"tracking.artifacts={place}/artifacts",
        "load.mix=null",
        "load.num_repeats=2",
        LOAD,
    ]
    keys = {one.partition("=")[0] for one in settings}
    command = [sys.executable, "-m", "pipeline", *(one for one in common if one.partition("=")[0] not in keys)]
    started = time.monotonic()
    ended = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(settings)} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return time.monotonic() - started


def row(error: EstimateError) -> dict[str, object]:
    """One stage of one run, in seconds."""
    return {
        "run": error.run_id,
        "stage": error.stage,
        "expected_s": round(error.expected_s, 2),
        "low_s": round(error.low_s, 2),
        "high_s": round(error.high_s, 2),
        "actual_s": round(error.actual_s, 2),
        "within": error.within_range,
        "basis": error.basis,
    }


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """The shares that the bar is about."""
    recorded = [one for one in rows if not str(one["basis"]).startswith("rough rule")]
    widths = [float(str(one["high_s"])) / float(str(one["expected_s"])) for one in recorded]
    return {
        "num_stages": len(rows),
        "share_within": sum(bool(one["within"]) for one in rows) / len(rows),
        "num_from_recorded": len(recorded),
        "share_within_from_recorded": sum(bool(one["within"]) for one in recorded) / max(len(recorded), 1),
        "widest_from_recorded": max(widths, default=None),
    }


def main() -> None:
    """Run them all, then hold estimates against what was taken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=len(RUNS), help=f"the first so many of {len(RUNS)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "home" / "store").mkdir(parents=True)
        for stage in SHARED_STAGES:
            shared = home() / "store" / stage
            shared.mkdir(parents=True, exist_ok=True)
            (place / "home" / "store" / stage).symlink_to(shared)
        load_before, walls = os.getloadavg(), {}
        for settings in RUNS[: options.runs]:
            walls[" ".join(settings)] = round(run(place, settings), 1)
            print(f"{' '.join(settings)}: {walls[' '.join(settings)]} s", flush=True)
        ledger = Ledger(f"sqlite:///{place}/finops.db")
        rows = [row(one) for one in estimate_errors(ledger)]
        ledger.close()
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "load_average": [load_before, os.getloadavg()],
        },
        "versions": versions(Path(sys.executable), "lm-eval", "transformers", "torch", "llmcompressor")
        | versions(serving_python(), "vllm"),
        "runs": walls,
        "summary": summary(rows),
        "stages": rows,
    }
    write_json(options.out, found)
    print(json.dumps(found["summary"], indent=2))


if __name__ == "__main__":
    main()
