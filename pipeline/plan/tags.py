"""A run's cost tags: checked against the policy, completed, put on charges."""

from __future__ import annotations

from dataclasses import replace

from core.errors import ConfigError, Problem
from finops.tags import TagPolicy
from pipeline.config import RunConfig

FAMILY = "model_family"
UNKNOWN = ("", "unknown", None)


def tag_problems(config: RunConfig) -> list[Problem]:
    """What is wrong with a run's tags, named by the keys that the user types."""
    try:
        found = _policy(config).problems(_given(config))
    except ConfigError as error:
        field, _, message = str(error).partition(": ")
        return [Problem(field, message, ("finops.tags.policy=require", "finops.tags.policy=default"))]
    return [_named(problem, config) for problem in found]


def with_tags(config: RunConfig) -> RunConfig:
    """The configuration with its complete tags: the same ones go to MLflow and to every charge."""
    tags = _policy(config).check(_given(config))
    family = tags.pop(FAMILY, config.model.family)
    return replace(config, tags=dict(tags), model=replace(config.model, family=family))


def charge_tags(config: RunConfig) -> dict[str, str]:
    """All cost tags of a run whose tags are complete."""
    return {**{key: str(value) for key, value in config.tags.items()}, FAMILY: config.model.family}


def _policy(config: RunConfig) -> TagPolicy:
    tags = config.finops.tags
    allowed = {key: tuple(values) for key, values in tags.allowed.items()}
    return TagPolicy(tags.policy, tuple(tags.required), allowed, tags.defaults)


def _given(config: RunConfig) -> dict[str, str]:
    family = config.tags.get(FAMILY)
    if family in UNKNOWN and config.model.family not in UNKNOWN:
        family = config.model.family
    return {key: value for key, value in {**config.tags, FAMILY: family}.items() if value not in (None, "")}


def _named(problem: Problem, config: RunConfig) -> Problem:
    """A problem of the tag policy under the key that the user types: `tags.team`, `model.family`."""
    tag = problem.field.removeprefix("finops.tags.")
    key = "model.family" if tag == FAMILY else f"tags.{tag}"
    typed = key if tag == FAMILY or tag in config.tags else f"+{key}"  # Hydra appends a new key with a plus sign
    ways = tuple(way.replace(problem.field, typed, 1) for way in problem.ways_out)
    return Problem(key, problem.message, ways)
