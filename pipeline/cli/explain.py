"""Hydra's and OmegaConf's errors in our words: the key, the value, what is allowed, the way out."""

from __future__ import annotations

import re
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import closest
from pipeline.cli.arguments import field_type, moved_key
from pipeline.config import RunConfig

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
TAGS = ("workload_type", "team", "environment")

Keys = Mapping[str, Mapping[str, Sequence[str]]]
"""Group whose keys belong to a plug-in -> choice -> its keys."""


def is_hydra_error(error: BaseException) -> bool:
    """Whether an error is Hydra's or OmegaConf's word on the user's configuration."""
    return type(error).__module__.split(".")[0] in ("hydra", "omegaconf", "antlr4", "yaml")


def hydra_message(error: BaseException, keys: Keys | None = None, arguments: Sequence[str] = ()) -> str:
    """Hydra's error in one or a few lines, with the closest known key where one was misspelt.

    `arguments` are those that the user typed: a way out repeats the value.
    """
    text = str(error)
    if overridden := re.match(r"Could not override '([\w.]+)'", text):
        key = overridden.group(1)
        typed = next((one for one in arguments if one.startswith(f"{key}=")), f"{key}=...")
        return unknown_key(key, keys or {}, typed)
    if "LexerNoViableAltException" in text or "mismatched input" in text or "token recognition" in text:
        argument = re.search(r"parsing override '(.*)'", text)
        what = argument.group(1) if argument else text.splitlines()[0].partition("LexerNoViableAltException: ")[2]
        key, _, value = what.lstrip("+").partition("=")
        quote = '"' if "'" in value else "'"
        way = shlex.quote(f"{key}={quote}{value}{quote}")
        return f"{key}={value}: cannot be read; a value with special characters needs quotes: {way}"
    full_key = getattr(error, "full_key", None) or ""
    if message := moved_key(full_key):
        return message
    lines = [
        line for line in text.splitlines() if line.strip() and not line.strip().startswith(("full_key", "object_type"))
    ]
    message = "\n  ".join(lines[:6])
    if converted := re.match(r"Value '(.*)' (?:of type '.*' could not be|is not a valid)", message):
        return f"{full_key}={converted.group(1)}: it must be {kind_of(field_type(full_key))}"
    if "is not a ListConfig" in message:
        message = f"not a list\n  -> in brackets, without spaces: {full_key}=[one,two]"
    return f"{full_key}: {message}" if full_key else message


def kind_of(wanted: Any) -> str:
    """A type in words.

    >>> kind_of(int | None), kind_of(list[str]), kind_of(float)
    ('a whole number or null', 'a list in brackets: [one,two]', 'a number')
    """
    if isinstance(wanted, types.UnionType) or typing.get_origin(wanted) is typing.Union:
        parts = [one for one in typing.get_args(wanted) if one is not type(None)]
        return " or ".join([*map(kind_of, parts), "null"])
    if typing.get_origin(wanted) is list:
        return "a list in brackets: [one,two]"
    if typing.get_origin(wanted) is dict:
        return "a mapping in braces: {key: value}"
    return KINDS.get(wanted, "of another kind")


def unknown_key(key: str, keys: Keys, typed: str) -> str:
    """The message for a key that its group does not have; `typed` is the argument as the user gave it."""
    group, _, last = key.rpartition(".")
    if group == "tags":
        return f"{key}: unknown tag{closest(last, TAGS)}; known: {', '.join(TAGS)}; a new tag is written +{typed}"
    if group in keys:
        return _key_of_another_choice(key, group, last, keys[group])
    known = list(getattr(field_type(group), "__dataclass_fields__", {}))
    listed = (
        f"; known: {', '.join(known)}" if known else f"; groups and keys: {', '.join(RunConfig.__dataclass_fields__)}"
    )
    return f"{key}: unknown key{closest(last, known)}{listed}"


def _key_of_another_choice(key: str, group: str, last: str, choices: Mapping[str, Sequence[str]]) -> str:
    having = [name for name, names in choices.items() if last in names]
    if having:
        return f"{key}: this choice of {group}= has no such key; those that do: {', '.join(having)}"
    known = sorted({name for names in choices.values() for name in names} - {"method", "name", "defaults"})
    return f"{key}: no choice of {group}= has such a key{closest(last, known)}; known: {', '.join(known)}"
