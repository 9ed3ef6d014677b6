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

from core.console import ProgressBars, duration
from core.store import StageStore
from pipeline.cli.app import run_command
from pipeline.cli.compose import command_config
from pipeline.plan.resolve import resolve
from pipeline.stages.graph import Effects


def main(arguments: list[str]) -> int:
    """Make the base and the variants in turn; one that is refused or fails is named, and the rest goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", action="append", required=True, metavar="NAME", help="a file of conf/quant/")
    options, overrides = parser.parse_known_args(arguments)
    codes = [run_command(partial(_make, quant=quant), overrides) for quant in options.quant]
    return max(codes)


def _make(overrides: list[str], quant: str) -> int:
    plan = resolve(command_config([*overrides, f"quant={quant}"]))
    store = StageStore(plan.store.root, hooks=(ProgressBars(plan.config.model.name),))
    effects = Effects(store, plan.home, plan.serving_python)
    stage = plan.variants.all[-1].checkpoint
    artifact, made = effects.result(stage), effects.found(stage)
    if made.reused and stage.name == "compress":
        print(f"{quant}: reused, made in {duration(made.wall_s)}", file=sys.stderr)
    print(f"{quant}={artifact.path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
