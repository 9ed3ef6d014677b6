"""Search the engine's settings for the cheapest token at the latency objective, and keep the winner as a choice.

    parsimony tune model=smollm2-135m-q4_1                           under load=slo, 16 engines
    parsimony tune model=smollm2-135m-q4_1 quant=int8 --num-trials 30
    parsimony tune model=smollm2-135m-q4_1 load=sweep                without an objective: at saturation
    parsimony model=smollm2-135m-q4_1 engine=tuned/smollm2-135m-q4_1-cpu     serve with the winner

Each engine is one server: started once, measured, ended. The search starts from `engine=` and the presets; what is
measured is kept, so a search that was cut off goes on, and a run with the winner measures its speed no second time
(`load=` being the same). Only settings that keep the model as it is are searched. They change the rounding of its
answers, so a run with the winner asks the questions anew. The file that is written has the figures that it was chosen
by.

The optimizer is Optuna, called directly: Hydra's own sweeper for it is no longer maintained, and would start one
pipeline per point.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError
from pipeline.cli.compose import CONF, command_config
from pipeline.cli.options import config_of, parser
from pipeline.config import EngineConfig
from pipeline.tune import NUM_TRIALS, tune

PRESETS = ("default", "playbook", "latency", "throughput")


def presets() -> list[EngineConfig]:
    """The engines of conf/engine that a search starts from."""
    return [command_config([f"engine={name}", "home=/"]).engine for name in PRESETS]


def main(arguments: list[str]) -> int:
    """Tune and write the winner."""
    commands = parser("tune", __doc__)
    commands.add_argument("--num-trials", type=int, default=NUM_TRIALS, help=f"engines to try (default: {NUM_TRIALS})")
    commands.add_argument(
        "--out", type=Path, default=CONF / "engine" / "tuned", metavar="FOLDER",
        help="where the winner goes (default: conf/engine/tuned, so that engine=tuned/NAME finds it)",
    )  # fmt: skip
    options = commands.parse(arguments)
    if options.num_trials < 1:
        raise ConfigError(f"--num-trials {options.num_trials}: it must be a whole number, at least 1")
    tune(config_of(options, ["load=slo"]), options.num_trials, options.out, presets())
    return 0
