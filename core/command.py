"""The product's own command line: how a message words a command that works as typed, verbs, and options.

    command("approvals approve 3")     # scripts/pipeline approvals approve 3, parsimony ... or python -m pipeline ...

Which of the three it is follows from how this process was started: `scripts/pipeline` exports PARSIMONY_COMMAND, the
installed console script is called `parsimony`, and anything else is taken for `python -m pipeline`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from core.errors import ConfigError, closest

VARIABLE = "PARSIMONY_COMMAND"
CONSOLE_SCRIPT = "parsimony"
MODULE = "python -m pipeline"
_EXAMPLE = re.compile(rf"(?m)(^\s*(?:[A-Z_]+=\S+ )*|`|\$\(){CONSOLE_SCRIPT}(?= )")
"""The console script's name where a help text types it: at the start of a line, after a backtick or inside $()."""


def program() -> str:
    """What the user types before the verb."""
    if given := os.environ.get(VARIABLE):
        return given
    return CONSOLE_SCRIPT if Path(sys.argv[0]).name == CONSOLE_SCRIPT else MODULE


def command(text: str = "") -> str:
    """A command of this product that works as typed; `text` is the verb and what follows it."""
    return f"{program()} {text}".rstrip()


def as_typed(text: str) -> str:
    """A help text whose examples name the program as the user typed it; it is written with `parsimony`."""
    return _EXAMPLE.sub(lambda found: found.group(1) + program(), text)


@dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    place: str
    """`module:function`; the function takes the arguments after the verb and returns the exit code."""
    summary: str
    """One line for `--help`."""

    def load(self) -> Callable[[list[str]], int]:
        """Import the function: only the verb that is used costs its imports."""
        module, _, name = self.place.partition(":")
        found: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
        return found


def verb_lines(verbs: Mapping[str, Verb]) -> str:
    """The verbs with their summaries, one a line."""
    width = max(len(name) for name in verbs)
    return "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in verbs.items())


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `ConfigError`s of a sentence with the closest name.

    Options may stand anywhere. Values are never abbreviated: `--rol` is a mistake, not `--rollback`.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def options(self) -> list[str]:
        """Every option of this parser and of its actions' parsers, as typed."""
        found: list[str] = []
        for action in self._actions:
            found += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    found += child.options()
        return list(dict.fromkeys(found))

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments.

        Raises:
            ConfigError: an option that does not exist, a wrong or a missing value.

        """
        read = self.parse_known_args if self._subparsers else self.parse_known_intermixed_args
        options, unknown = read(list(arguments))
        if unknown:
            name = unknown[0].partition("=")[0]
            known = self.options()
            what = "option" if name.startswith("-") else "argument"
            listed = ", ".join(one for one in known if one.startswith("--"))
            raise ConfigError(f"{self.prog} {name}: unknown {what}{closest(name, known)}; options: {listed}")
        return options

    def error(self, message: str) -> NoReturn:
        """Argparse's own mistakes, in our words."""
        if found := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            name, value, choices = found.groups()
            known = [one.strip("' ") for one in choices.split(",")]
            where = f"{name} {value}" if name.startswith("-") else value
            raise ConfigError(f"{self.prog} {where}: unknown{closest(value, known)}; known: {', '.join(known)}")
        if found := re.match(r"argument (\S+): invalid (\w+) value: '(.*)'", message):
            name, kind, value = found.groups()
            kinds = {"int": "a whole number", "float": "a number"}
            raise ConfigError(f"{self.prog} {name} {value}: it must be {kinds.get(kind, kind)}")
        missing = message.replace("the following arguments are required", "missing")
        raise ConfigError(f"{self.prog}: {missing}\n  -> {self.prog} --help")


def verb_parser(verb: str, text: str | None) -> Parser:
    """A parser for one verb, whose help shows the text with its examples as they are typed here."""
    return Parser(prog=command(verb), description=as_typed(text or ""))
