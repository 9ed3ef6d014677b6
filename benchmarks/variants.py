"""Make variants through the product's own stages, without serving them, for the benchmarks that take folders.

    python -m benchmarks.variants model=smollm2-135m-q4_1 --quant int8 --quant gptq

Prints `NAME=FOLDER` for the base (`none`) and each variant: what `benchmarks.perplexity` and `benchmarks.answers` want.
Finished ones are found in the store, and a run of the product finds them there too. Further arguments are the run's own
(`calib.num_samples=16`).
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from core.console import Console, duration
from core.files import read_json
from core.store import StageStore
from pipeline.cli.app import run_command
from pipeline.cli.compose import command_config
from pipeline.plan.resolve import plan_run
from pipeline.stages.base import base_model
from pipeline.stages.compress import compress


def main(arguments: list[str]) -> int:
    """Make the base and the variants in turn; one that is refused or fails is named, and the rest goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", action="append", required=True, metavar="NAME", help="a file of conf/quant/")
    options, overrides = parser.parse_known_args(arguments)
    codes = [run_command(partial(_make, quant=quant), overrides) for quant in options.quant]
    return max(codes)


def _make(overrides: list[str], quant: str) -> int:
    planned = plan_run(command_config([*overrides, f"quant={quant}"]))
    config, plan = planned.config, planned.plan
    store = StageStore(Path(config.home) / "store")
    base = base_model(config.model, config.seed, store)
    if plan.candidate is None:
        print(f"none={base.path}", flush=True)
        return 0
    console = Console(quant)
    artifact, made = compress(plan.candidate, base, config, plan.plan_hash, store, console.stage, planned.elsewhere)
    if made is not None and made.reused:
        took = read_json(artifact.path / "manifest.json")["wall_s"]
        print(f"{quant}: reused, made in {duration(took)}", file=sys.stderr)
    print(f"{quant}={artifact.path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
