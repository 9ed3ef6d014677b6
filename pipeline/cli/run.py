"""Make a cheaper variant, measure it beside its baseline, price both, record, and promote it or say why not.

    parsimony model=smollm2-135m-q4_1 quant=int8
    parsimony run model=smollm2-135m-q4_1 quant=int8 --json       the decision as one JSON object on standard output
    parsimony --multirun quant=none,int8                          several candidates; the baseline is measured once
    parsimony quant=int8 fail_on_hold=true                        exit code 5 where the variant is not promoted, 6 where
                                                                  that is not decided
    parsimony plan model=llama3-8b quant=int8                     what a run would do; nothing is loaded
    parsimony quant=awq --cfg job                                 the composed configuration

Every stage is found by what went into it: the same command again goes on where the last one stopped.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from core import console
from core.command import CONSOLE_SCRIPT, MODULE, Parser, program, verb_parser
from core.errors import ConfigError
from pipeline.cli.app import VERBS, run_command
from pipeline.cli.arguments import check_arguments, readable
from pipeline.cli.completion import complete
from pipeline.cli.compose import CONF, loader, plugin_keys, read_choices, run_config, use_plugin_packages
from pipeline.cli.explain import hydra_message, is_hydra_error
from pipeline.cli.sweep import num_candidates

JSON = "--json"
SWITCHES = {
    ("--multirun", "-m"): "run several candidates: one for each value of a comma-separated list",
    ("--resolve",): "with --cfg: resolve what refers to other keys",
    (JSON,): "print the decision as one JSON object on standard output, all else on standard error",
}
VALUES: dict[tuple[str, ...], dict[str, Any]] = {
    ("--config-dir", "-cd"): {"metavar": "DIR", "help": "a further folder of configuration files, laid out as conf/"},
    ("--cfg", "-c"): {"choices": ("job", "hydra", "all"), "help": "show the configuration instead of running"},
    ("--package", "-p"): {"metavar": "NAME", "help": "with --cfg: show only this part"},
    ("--info", "-i"): {
        "choices": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        "help": "show what Hydra knows instead of running",
    },
}
"""Hydra's own options that make sense here."""


def run_parser() -> Parser:
    """The options of a run: Hydra's own that make sense here, and ours."""
    found = verb_parser("run", __doc__)
    found.add_argument("overrides", nargs="*", metavar="key=value", help="configuration")
    for names, text in SWITCHES.items():
        found.add_argument(*names, action="store_true", help=text)
    for names, settings in VALUES.items():
        found.add_argument(*names, **settings)
    return found


def plan(arguments: list[str]) -> int:
    """A dry run: the plan, its estimate and its problems."""
    dry = [one for one in arguments if one.partition("=")[0] != "dry_run"]
    return main([*dry, "dry_run=true"])


def main(arguments: list[str]) -> int:
    """Let Hydra compose the configuration, or each job's of a multirun, and run it."""
    if any(one in ("-sc", "--shell-completion") for one in arguments):
        return complete(arguments, compose_and_run, VERBS)
    options = run_parser().parse(arguments)
    shown = [name for name in ("--cfg", "--info") if getattr(options, name.removeprefix("--"))]
    if shown and (options.multirun or len(shown) > 1):
        raise ConfigError(f"{shown[0]}: it shows instead of running; leave {(shown[1:] or ['--multirun'])[0]} out")
    if options.json:
        if options.multirun:
            raise ConfigError(f"{JSON}: a sweep has several decisions; leave --multirun out")
        console.to_stderr()
    with loader(options.config_dir) as hydra:
        check_arguments(options.overrides, read_choices(hydra, options.overrides))
    given = set(options.overrides)
    rest = [one for one in arguments if one not in given and one != JSON]
    try:
        return compose_and_run([*rest, *readable(options.overrides)])
    except Exception as error:
        if not is_hydra_error(error):
            raise
        keys = plugin_keys(options.overrides, options.config_dir)
        raise ConfigError(hydra_message(error, keys, options.overrides)) from error


def compose_and_run(arguments: list[str]) -> int:
    """Hand the arguments to Hydra's own main."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach run_command, which explains them
    import hydra

    codes: list[int] = []
    is_sweep = any(one in ("--multirun", "-m") for one in arguments)
    together = num_candidates([one for one in arguments if "=" in one and not one.startswith("-")]) if is_sweep else 1

    def job(composed: object) -> None:
        codes.append(run_command(lambda _: run_one(composed, together), []))

    use_plugin_packages()
    name, before = program(), sys.argv  # Hydra's completion script names the program
    sys.argv = [CONSOLE_SCRIPT if name == MODULE else name, *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    finally:
        sys.argv = before
    return max(codes, default=0)


def run_one(composed: object, num_together: int = 1) -> int:
    """Run one composed configuration; `num_together` candidates are tried in one sweep."""
    config = run_config(composed)
    if config.gate.num_candidates is None:
        config.gate.num_candidates = num_together
    from pipeline.run import run  # loads SQLAlchemy: not for --help, nor for a mistake

    return run(config)
