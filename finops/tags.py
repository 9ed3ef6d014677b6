"""Cost tags: who pays, for what. The same tags stand on MLflow runs, on charges and in FOCUS rows.

    policy: require     every required tag must be given; a missing one is a plan-time error
            default     a missing one takes the configured default

>>> TagPolicy(policy="default").check({"team": "research"})["workload_type"]
'evaluation'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.errors import ConfigError, Problem, closest
from core.redact import contains_secret
from finops.errors import TagError

REQUIRED = ("workload_type", "model_family", "team", "environment")
WORKLOAD_TYPES = ("training", "inference", "fine-tuning", "evaluation")
MAX_LENGTH = 256
"""Characters in a tag's key or value."""


@dataclass(frozen=True)
class TagPolicy:
    """What tags a run must carry.

    `allowed` limits a tag's values (an absent key allows any non-empty text). `defaults` are used under the policy
    `default` alone. Raises `ConfigError` for a policy that does not exist.
    """

    policy: str = "default"
    required: tuple[str, ...] = REQUIRED
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"workload_type": WORKLOAD_TYPES})
    defaults: Mapping[str, str] = field(
        default_factory=lambda: {
            "workload_type": "evaluation",
            "model_family": "unknown",
            "team": "default",
            "environment": "dev",
        }
    )

    def __post_init__(self) -> None:
        if self.policy not in ("require", "default"):
            raise ConfigError(
                f"finops.tags.policy: '{self.policy}' does not exist. It must be require or default"
                + closest(self.policy, ("require", "default"))
            )

    def problems(self, tags: Mapping[str, object]) -> list[Problem]:
        """Everything wrong with a run's tags, for the plan to list with its other problems."""
        given = {key: value for key, value in tags.items() if value not in (None, "")}
        found = [self._value_problem(key, value) for key, value in given.items()]
        for key in self.required:
            if key not in given and (self.policy == "require" or key not in self.defaults):
                way = f"finops.tags.{key}={(self.allowed.get(key) or ('NAME',))[0]}"
                found.append(Problem(f"finops.tags.{key}", "is required and not given", (way,)))
        return [problem for problem in found if problem is not None]

    def _value_problem(self, key: str, value: object) -> Problem | None:
        name = f"finops.tags.{key}"
        if not isinstance(value, str) or len(value) > MAX_LENGTH or len(key) > MAX_LENGTH:
            return Problem(name, f"must be a text of at most {MAX_LENGTH} characters")
        if contains_secret(value) or contains_secret(key):
            return Problem(name, "looks like a key or password; tags are shown to everybody", ("remove it",))
        allowed = self.allowed.get(key)
        if allowed and value not in allowed:
            ways = tuple(f"finops.tags.{key}={choice}" for choice in allowed)
            return Problem(name, f"'{value}' is not allowed{closest(value, allowed)}", ways)
        return None

    def check(self, tags: Mapping[str, object]) -> dict[str, str]:
        """The run's complete tags. Raises `TagError` that lists every problem."""
        problems = self.problems(tags)
        if problems:
            raise TagError("\n".join(["the run's tags break the policy:", *(f"  - {item}" for item in problems)]))
        complete = {key: self.defaults[key] for key in self.required if key in self.defaults}
        complete.update({key: str(value) for key, value in tags.items() if value not in (None, "")})
        return dict(sorted(complete.items()))
