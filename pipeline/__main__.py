"""The command line: `python -m pipeline [VERB] [key=value ...] [--option ...]`; no verb means run.

    python -m pipeline model=smollm2-135m-q4_1 quant=int8
    python -m pipeline --multirun quant=none,int8
    python -m pipeline promote model=smollm2-135m-q4_1 --json
    python -m pipeline --help

Exit codes: 0 done (promoted or not), 1 a tool or the product failed, 2 something that you can fix, 3 the run waits for
an approval, 4 it would pass a budget, 5 not promoted under `fail_on_hold=true`, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from core.command import VARIABLE, program
from pipeline.cli.app import dispatch, run_command


def main() -> None:
    """The console script."""
    os.environ.setdefault(VARIABLE, program())  # told before Hydra changes sys.argv, and to every child process
    sys.exit(run_command(dispatch, sys.argv[1:]))


if __name__ == "__main__":
    main()
