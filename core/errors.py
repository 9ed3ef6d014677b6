"""Every error the product raises on purpose.

    ParsimonyError
    ├── UserError            the user can fix it: one clear message, exit code 2, no traceback
    │   ├── ConfigError      a choice or key that does not exist, or a value of the wrong kind
    │   ├── PlanError        the plan's problems, all of them at once
    │   ├── AssetError       a model or data set that cannot be had here
    │   ├── PriceError       a price catalog or a price that breaks the catalog's rules
    │   ├── HealthError      a compressed checkpoint that is broken (pipeline.compress.health)
    │   └── PublishError     the hub refused, or cannot be reached (pipeline.compress.publish)
    ├── ToolError            a tool that we started (vLLM, lm-eval, ...) failed: last lines of its log, exit 1
    └── StoreError           the stage store contains something that it must not

A user's message names the field, the value, what is allowed and the way out. Anything else that escapes is a defect
of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


class ParsimonyError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what a command ends with."""

    exit_code = 1


class UserError(ParsimonyError):
    """Something that the user can fix."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown choice or key, or a value of the wrong kind."""


@dataclass(frozen=True)
class Problem:
    """One reason why a plan cannot run.

    `field` is the configuration key (`quant.group_size`), `message` what is wrong with its value, `ways_out` what to
    type instead.
    """

    field: str
    message: str
    ways_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The problem on one line, then one line per way out."""
        return "\n".join([f"{self.field}: {self.message}", *(f"    -> {way}" for way in self.ways_out)])


class PlanError(UserError):
    """All problems of a plan, found before anything expensive starts."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        title = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"the plan has {title}:\n" + "\n".join(f"  - {problem}" for problem in problems))


class AssetError(UserError):
    """A model or data set that cannot be had here."""


class PriceError(UserError):
    """A price catalog, or a price, that breaks the catalog's rules."""


class ToolError(ParsimonyError):
    """A tool that we started failed.

    The message ends with the last lines of its log; `log` is where the rest stands.
    """

    def __init__(self, message: str, log: Path | None = None, num_lines: int = 15) -> None:
        self.log = log
        if log is not None:
            message += f"\n  its log: {log}\n" + "\n".join(f"  | {line}" for line in tail(log, num_lines))
        super().__init__(message)


class StoreError(ParsimonyError):
    """The stage store contains something that it must not."""


def tail(path: Path, num_lines: int) -> list[str]:
    """The last non-empty lines of a text file; an unreadable file gives none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-num_lines:]


def closest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'awq'?"` for the closest known name, or an empty text."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""
