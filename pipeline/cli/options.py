"""A verb's arguments: `key=value` for Hydra, options for the verb."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from core.command import Parser, verb_parser
from pipeline.cli.compose import command_config
from pipeline.config import RunConfig


def parser(verb: str, text: str | None) -> Parser:
    """A parser for a verb that takes configuration as well."""
    found = verb_parser(verb, text)
    found.add_argument("overrides", nargs="*", metavar="key=value", help="configuration, as of a run")
    found.add_argument("--config-dir", metavar="DIR", help="a further folder of configuration files, laid out as conf/")
    return found


def config_of(options: argparse.Namespace, defaults: Sequence[str] = ()) -> RunConfig:
    """The configuration that a verb was given; `defaults` stand where the user chose nothing for their keys."""
    given = {one.partition("=")[0] for one in options.overrides}
    rest = [one for one in defaults if one.partition("=")[0] not in given]
    return command_config([*options.overrides, *rest], options.config_dir)
