"""Look into a checkpoint's files: are they whole, and how many bits does each group of weights take?

    parsimony inspect /models/my-int4                    its files, and its bytes by part
    parsimony inspect /models/my-int4 /models/base       the same against the checkpoint that it was made from

Headers and bytes are read, no weights are loaded. Exit code 2 where a file is damaged.
"""

from __future__ import annotations

from pathlib import Path

from core.command import verb_parser
from core.console import say
from core.errors import ConfigError
from pipeline.checkpoints.sizes import SizeReport, collapse, size_report_of
from pipeline.checkpoints.structure import check_structure

DAMAGED = 2


def main(arguments: list[str]) -> int:
    """Print what the files say."""
    commands = verb_parser("inspect", __doc__)
    commands.add_argument("checkpoint", type=Path, help="a folder in Hugging Face form")
    commands.add_argument("base", type=Path, nargs="?", help="the checkpoint that it was made from")
    options = commands.parse(arguments)
    for folder in (options.checkpoint, options.base):
        if folder is not None and not (folder / "config.json").is_file():
            raise ConfigError(f"{folder}: there is no checkpoint (no config.json in it)")
    found = check_structure(options.checkpoint, options.base)
    for finding in found:
        say(str(finding))
    if found:
        return DAMAGED
    say("files: nothing found")
    show(size_report_of(options.checkpoint, options.base))
    return 0


def show(report: SizeReport) -> None:
    """The sizes, a line each."""
    for name, value in vars(report).items():
        lines = value if name == "groups" else collapse(value) if name.startswith("kept") else [value]
        for line in lines:
            say(f"{name:16} {line}")
