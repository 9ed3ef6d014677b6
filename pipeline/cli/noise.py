"""Measure the noise floor: each variant against itself, along two equivalent paths.

    parsimony noise model=smollm2-135m-q4_1 quant=rtn-int8               baseline and candidate
    parsimony noise model=smollm2-135m-q4_1 quant=rtn-int8 noise.max_items=200
    parsimony noise model=smollm2-135m-q4_1 --json                       one JSON object on standard output

Rounding depends on the order in which numbers are added, and another kernel adds them in another order. That moves
log-likelihoods a little, or a lot where activations are INT8, and answers flip although the checkpoint is the same. A
margin that is smaller than what these flips can move is not decided by any number of questions.

It shows per task the flips (the share of items whose score differs), the differences of log-likelihoods in nats, those
of the right choice's probability, and the smallest margin that baseline and candidate can resolve. Later runs with the
same suite and engine carry it into their decision, where a smaller margin is refused.
"""

from __future__ import annotations

from core import console
from pipeline.cli.options import config_of, parser
from pipeline.noise import run_noise
from pipeline.plan.resolve import resolve
from pipeline.report.console import show_plan


def main(arguments: list[str]) -> int:
    """Measure and show it."""
    commands = parser("noise", __doc__)
    commands.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, the rest on standard error"
    )
    options = commands.parse(arguments)
    if options.json:
        console.to_stderr()
    plan = resolve(config_of(options))
    show_plan(plan)
    return run_noise(plan)
