"""The `key=value` arguments before Hydra reads them: mistakes that it words badly, and values that it cannot read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from core.errors import ConfigError, closest
from pipeline.config import RunConfig

_STRUCTURE = set("[]{}()'\",$\\")
"""What gives a value structure in Hydra's grammar; a value without it is taken as it is."""


MOVED = {"suite.num_items": "gate.max_items"}
"""Keys of earlier versions -> the key that stands for them."""


def moved_key(key: str, value: str = "N") -> str | None:
    r"""The message for a key of an earlier version; None for any other key.

    >>> moved_key("suite.num_items", "100")
    "suite.num_items: is gate.max_items now: questions are drawn from the task's whole split\n  -> gate.max_items=100"
    """
    if key not in MOVED:
        return None
    new = MOVED[key]
    return f"{key}: is {new} now: questions are drawn from the task's whole split\n  -> {new}={value}"


def key_of(argument: str) -> str:
    """The key of an argument without its prefix: `++quant.group_size=64` is of `quant.group_size`."""
    return argument.partition("=")[0].lstrip("+~").partition("@")[0]


def field_type(key: str) -> Any:
    """The schema's type of a key; None where the schema does not have it (or leaves it to a plug-in).

    >>> field_type("gate.max_items")
    int | None
    >>> field_type("gate.max_itmes") is None
    True
    """
    found: Any = RunConfig
    for part in key.split("."):
        if not dataclasses.is_dataclass(found):
            return None
        found = get_type_hints(found).get(part)
    return found


def check_arguments(arguments: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    """Check every `key=value` before Hydra does, so that a mistake is one sentence with the closest name.

    Raises:
        ConfigError: no `=`, an unknown choice or key, or a key that is given twice.

    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        name = key_of(argument)
        if "=" not in argument and not argument.startswith("~"):
            raise ConfigError(_without_equals(argument, arguments, groups))
        if not key.isascii():
            raise ConfigError(f"{argument}: a key is written in ASCII letters{closest(name, _keys(groups))}")
        if message := moved_key(name, value):
            raise ConfigError(message)
        if given.setdefault(name, value) != value:
            raise ConfigError(f"{name}: is given twice, as {given[name]} and as {value}; give it once")
        if "." not in name and name != "hydra" and "/" not in name:
            _check_name(name, value, groups)


def _keys(groups: Mapping[str, Sequence[str]]) -> list[str]:
    return [*groups, *(one for one in RunConfig.__dataclass_fields__ if one not in groups)]


def _without_equals(argument: str, arguments: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    if argument in groups:
        after = [*arguments[list(arguments).index(argument) + 1 :], "CHOICE"][0]
        choice = after if after in groups[argument] else "CHOICE"
        return f"'{argument}': '=' is missing: {argument}={choice}; choices: {', '.join(groups[argument])}"
    for group, names in groups.items():
        if argument in names:
            return f"'{argument}': '=' is missing: {group}={argument}"
    near = closest(argument, _keys(groups))
    return f"'{argument}': '=' is missing; configuration is written key=value, as in quant=int8{near}"


def _check_name(name: str, value: str, groups: Mapping[str, Sequence[str]]) -> None:
    if name not in groups:
        if name not in RunConfig.__dataclass_fields__:
            known = _keys(groups)
            raise ConfigError(f"'{name}': unknown key{closest(name, known)}; known: {', '.join(known)}")
        return
    for choice in value.strip("[]").split(","):
        if choice.strip() not in (*groups[name], "null", ""):
            listed = ", ".join(groups[name])
            raise ConfigError(f"{name}={choice}: unknown choice{closest(choice, groups[name])}; known: {listed}")


def readable(arguments: Sequence[str]) -> list[str]:
    """The arguments in a form that Hydra's grammar reads.

    A key that the schema has may be given although its choice's file does not name it, and a value with letters beyond
    ASCII is put in quotes.

    >>> readable(["model.name=größe", "suite.files={a: b}", "quant=awq"])
    ["++model.name='größe'", '++suite.files={a: b}', 'quant=awq']
    """
    return [_known(_quoted(argument)) for argument in arguments]


def _known(argument: str) -> str:
    key = argument.partition("=")[0]
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", key)
    return f"++{argument}" if plain and "." in key and field_type(key) is not None else argument


def _quoted(argument: str) -> str:
    key, separator, value = argument.partition("=")
    if not separator or value.isascii():
        return argument
    if _STRUCTURE & set(value):
        if re.search(r"['\"]", value):
            return argument  # quoted by the user
        raise ConfigError(
            f"{argument}: letters beyond ASCII inside a list or a mapping need quotes, as in '{key}=[\"größe\"]'"
        )
    return f"{key}='{value}'"
