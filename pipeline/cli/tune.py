"""Search the engine's settings for the cheapest token at the latency objective, and keep the winner as a choice.

    python -m pipeline.cli.tune model=smollm2-135m-q4_1                          under load=slo, 16 engines
    python -m pipeline.cli.tune model=... quant=int8 +num_trials=30
    python -m pipeline.cli.tune model=... load=sweep                             without an objective: at saturation
    python -m pipeline model=... engine=tuned/smollm2-135m-q4_1-cpu          serve with the winner

Each engine is one server: started once, measured, ended. The search starts from `engine=` and the presets; what is
measured is kept, so a search that was cut off goes on, and a run with the winner measures its speed no second time
(`load=` being the same). Only settings that cannot change an answer are searched: the winner's quality is the
variant's. The file that is written holds the figures it was chosen by.

The optimiser is Optuna, called directly: Hydra's own sweeper for it is no longer maintained, and would start one
pipeline per point.
"""

from __future__ import annotations

import sys
from pathlib import Path

from core.errors import ConfigError
from pipeline.cli.app import run_command
from pipeline.config import EngineConfig
from pipeline.tune import NUM_TRIALS, tune

PRESETS = ("default", "playbook", "latency", "throughput")


def presets() -> list[EngineConfig]:
    """The engines of conf/engine that a search starts from."""
    from hydra import compose, initialize_config_dir

    from pipeline.cli.app import CONF, run_config

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return [run_config(compose("config", overrides=[f"engine={name}", "home=/"])).engine for name in PRESETS]


def main(arguments: list[str]) -> int:
    """Tune and write the winner."""
    from pipeline.cli.app import CONF, command_config, own_options

    defaults = {"+num_trials": str(NUM_TRIALS), "+out": str(CONF / "engine" / "tuned")}
    own, rest = own_options(arguments, defaults)
    if not own["+num_trials"].isdigit() or int(own["+num_trials"]) < 1:
        raise ConfigError(f"+num_trials={own['+num_trials']}: it must be a whole number, at least 1")
    if not any(argument.startswith("load=") for argument in rest):
        rest.append("load=slo")
    tune(command_config(rest, __doc__), int(own["+num_trials"]), Path(own["+out"]), presets())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
