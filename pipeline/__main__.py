"""The command `python -m pipeline`: composes the configuration with Hydra and runs each job.

    python -m pipeline model=smollm2-135m-q4_1 quant=int8
    python -m pipeline --multirun quant=none,int8
    python -m pipeline --help

Exit codes: 0 done (promoted or held), 1 a tool or the product failed, 2 something that you can mend, 3 the run waits
for an approval, 4 it would pass a budget, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from pipeline.cli.app import CONF, check_choices, run_command, run_config


def compose_and_run(arguments: list[str]) -> int:
    """Let Hydra compose the configuration, or each job's of a multirun, and run it."""
    check_choices(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach run_command, which explains them
    import hydra

    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(composed: object) -> None:
        codes.append(run_command(lambda _: run_one(composed), []))

    sys.argv = ["pipeline", *arguments]
    job()
    return max(codes, default=0)


def run_one(composed: object) -> int:
    """Run one composed configuration."""
    config = run_config(composed)
    from pipeline.run import run

    run(config)
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run_command(compose_and_run, sys.argv[1:]))


if __name__ == "__main__":
    main()
