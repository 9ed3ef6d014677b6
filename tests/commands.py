"""Every command of the product that a document, a help text, a comment or a message names."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli.app import VERBS

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = r"(?:scripts/pipeline|parsimony|python -m pipeline)"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "examples/*", "mlruns/README.md")
COMMENTS = ("conf/**/*.yaml", "scripts/*")
CODE = ("core", "finops", "evals", "pipeline", "benchmarks")
AT_START = re.compile(rf"^\s*(?:\$ |exec )?(?:[A-Z_]+=\S+ )*{PROGRAMS}(?= |$)(.*)$")
IN_TICKS = re.compile(rf"`(?:[A-Z_]+=\S+ )*{PROGRAMS}(?= |`)([^`]*)`")
IN_COMMENT = re.compile(rf"#\s+{PROGRAMS}(?= )(.*)$|\({PROGRAMS}(?= )([^)]*)\)")
AFTER = re.compile(r"\s{2,}|\s#\s|\s[>|]\s|\s&&|\s\|\||\s2>|;\s|$")
"""What ends a command on its line: an explanation in a column of its own, a comment, another command."""
PLACEHOLDERS = {
    "NAME": "smollm2-135m-q4_1", "MODEL": "smollm2-135m-q4_1", "AMOUNT": "5", "USD": "5", "VARIANT": "int8",
    "CHOICE": "int8", "VERB": "promote", "DATE": "2026-10-01", "N": "3", "ID": "3", "MONTH": "month", "DIR": "/tmp",
}  # fmt: skip
"""What stands for a word in capitals: something that the key takes."""
MADE_FIRST = ("engine=tuned/", "quant=rtn-int4-asym")
"""Choices that the text around a command has the reader make first: by `tune`, by the way to add a method."""


@dataclass(frozen=True)
class Named:
    """A command and where it is named."""

    place: str
    text: str
    """What follows the program's name."""

    @property
    def arguments(self) -> list[str]:
        """As the shell would split it, placeholders filled in; `...` says that more may follow.

        A verb without anything else is only mentioned (`focus export`): it must exist, as its `--help` shows.
        """
        words = shlex.split(self.text.strip())
        filled = [_filled(word) for word in words if not word.endswith("...") or word == "model=..."]
        is_mention = bool(filled) and all(re.fullmatch("[a-z]+", word) for word in filled)
        return [*filled, "--help"] if is_mention else filled


def _filled(word: str) -> str:
    word = word.replace("=...", "=NAME")
    return re.sub(r"\b[A-Z]{1,10}\b", lambda found: PLACEHOLDERS.get(found.group(), found.group()), word)


def commands() -> list[Named]:
    """All of them, each once a place."""
    found = [*_of_documents(), *_of_comments(), *_of_code()]
    return list(dict.fromkeys(one for one in found if "[" not in one.text.split("=")[0]))


def _of_documents() -> Iterator[Named]:
    for pattern in DOCUMENTS:
        for path in sorted(one for one in ROOT.glob(pattern) if one.is_file()):
            yield from of_text(path.read_text(), str(path.relative_to(ROOT)))


def _of_comments() -> Iterator[Named]:
    for pattern in COMMENTS:
        for path in sorted(one for one in ROOT.glob(pattern) if one.is_file()):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                for found in IN_COMMENT.finditer(line):
                    yield Named(f"{path.relative_to(ROOT)}:{number}", _cut(found.group(1) or found.group(2)))


def _of_code() -> Iterator[Named]:
    """Those in texts, and those that messages word with `command("...")`."""
    for room in CODE:
        for path in sorted((ROOT / room).rglob("*.py")):
            place = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                    yield from of_text(node.value, place)
                if isinstance(node, ast.Call) and _is_command(node.func) and node.args:
                    text = _worded(node.args[0])
                    if text is not None:
                        yield Named(f"{place}:{node.lineno}", text)


def _is_command(function: ast.expr) -> bool:
    return (isinstance(function, ast.Name) and function.id == "command") or (
        isinstance(function, ast.Attribute) and function.attr == "command"
    )


def _worded(argument: ast.expr) -> str | None:
    """A message's command; what is filled in when it runs stands as a placeholder."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    if not isinstance(argument, ast.JoinedStr):
        return None
    parts = [str(one.value) if isinstance(one, ast.Constant) else "\0" for one in argument.values]
    text = "".join(parts)
    if text.startswith("\0"):
        return None  # the verb itself is filled in: whoever calls it is looked at
    text = re.sub(r"(approve|reject|--port) \0", r"\1 3", text)
    return text.replace("month\0", "month").replace(" \0", " NAME").replace("=\0", "=NAME").replace("\0", "")


def of_text(text: str, place: str) -> Iterator[Named]:
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    for number, line in enumerate(lines, 1):
        if found := AT_START.match(line):
            yield Named(f"{place}:{number}", _cut(found.group(1)))
        for inside in IN_TICKS.finditer(line):
            yield Named(f"{place}:{number}", inside.group(1))


def _cut(text: str) -> str:
    """A command's own words: quotes may hold what else would end it."""
    quoted: list[str] = []

    def keep(found: re.Match[str]) -> str:
        quoted.append(found.group())
        return f"\0{len(quoted) - 1}\0"

    masked = re.sub(r"'[^']*'|\"[^\"]*\"", keep, text.strip())
    masked = AFTER.split(masked, maxsplit=1)[0]
    return re.sub("\0(\\d+)\0", lambda found: quoted[int(found.group(1))], masked)


def verb_of(arguments: list[str]) -> tuple[str, list[str]]:
    """The verb, and what follows it."""
    if arguments and arguments[0] in VERBS:
        return arguments[0], arguments[1:]
    return "run", arguments
