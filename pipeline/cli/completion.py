"""Shell completion: Hydra's own, which knows keys and choices, with the verbs beside them.

eval "$(parsimony -sc install=bash)"       bash and zsh
parsimony -sc install=fish | source        fish
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from core.errors import ConfigError

ACTIONS = ("install", "uninstall", "query")
SHELLS = ("bash", "fish", "zsh")
LINE = "COMP_LINE"
"""The command line so far, as the shell hands it over."""


def complete(arguments: list[str], hydra: Callable[[list[str]], int], verbs: Iterable[str]) -> int:
    """Answer a shell: with the verbs where the first word is typed, and with what Hydra completes."""
    _check(arguments)
    line = os.environ.get(LINE, "")
    if any(one.startswith("query=") for one in arguments) and line:
        program, typed = split_line(line)
        first = typed.partition(" ")[0]
        if first in verbs and " " in typed:
            typed = typed.partition(" ")[2].lstrip()
        elif " " not in typed and "=" not in typed:
            print(" ".join(verb for verb in verbs if verb.startswith(typed)))
        os.environ[LINE] = f"{program[-1]} {typed}"
    return hydra(arguments)


def _check(arguments: list[str]) -> None:
    """Raises `ConfigError` where no action of a known shell is named."""
    asked = [one.partition("=") for one in arguments if not one.startswith("-")]
    if len(asked) != 1 or asked[0][0] not in ACTIONS or asked[0][2] not in SHELLS:
        given = " ".join("".join(one) for one in asked)
        raise ConfigError(
            f"-sc {given}: it must be one of {', '.join(ACTIONS[:2])}, and one of the shells {', '.join(SHELLS)}: "
            "-sc install=bash"
        )


def split_line(line: str) -> tuple[list[str], str]:
    """The words that start the program, and the rest of the line.

    >>> split_line("parsimony promote model=sm")
    (['parsimony'], 'promote model=sm')
    >>> split_line("python -m pipeline quant=a")
    (['python', '-m', 'pipeline'], 'quant=a')
    """
    words = line.split()
    count = 3 if words[1:2] == ["-m"] else 1
    rest = line
    for word in words[:count]:
        rest = rest.lstrip().removeprefix(word)
    return words[:count], rest.lstrip()
