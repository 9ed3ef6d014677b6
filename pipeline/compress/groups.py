"""Settings that the grouped 4-bit methods share: a group is a run of columns that share one scale. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from core.errors import Problem
from pipeline.checkpoints.facts import linear_shapes
from pipeline.types import Machine, ModelFacts

OBSERVERS = ("mse", "minmax")
GROUP_SIZES = (128, 64, 32)
"""What vLLM's kernels serve, the usual one first."""


@dataclass(frozen=True)
class GroupArgs:
    """Settings of every grouped method."""

    group_size: int | None = None
    """Columns that share one scale: 128, 64 or 32; null takes the largest that divides every layer."""


@dataclass(frozen=True)
class GptqArgs(GroupArgs):
    """Settings of `quant=gptq` and `quant=gptq-native`."""

    symmetric: bool = True
    """Symmetric around zero: what the Marlin kernels need."""
    dampening: float = 0.01
    """Dampening, as a share of the Hessian's mean diagonal."""
    observer: str = "mse"
    """How a group's scale is found: `mse` searches the one of least error |q - w|^2.4, `minmax` takes the largest."""


Grouped = TypeVar("Grouped", bound=GroupArgs)


def check_groups(args: GroupArgs, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The group size divides every layer."""
    return check_group_size(args.group_size, facts)


def check_gptq(args: GptqArgs, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """Group size, kernel and dampening."""
    return [
        *check_group_size(args.group_size, facts),
        *check_symmetric(args.symmetric, machine),
        *check_share("dampening", args.dampening),
        *check_observer(args.observer),
    ]


def resolve_group_size(args: Grouped, facts: ModelFacts) -> Grouped:
    """With a definite group size."""
    return args if args.group_size is not None else replace(args, group_size=auto_group_size(facts))


def auto_group_size(facts: ModelFacts) -> int | None:
    """The largest group size that divides the columns of every quantized layer; None where none does."""
    for size in GROUP_SIZES:
        if not offenders(size, facts):
            return size
    return None


def offenders(size: int, facts: ModelFacts) -> dict[str, int]:
    """The layers whose columns a group size does not divide: name -> columns."""
    return {name: columns for name, (_, columns) in linear_shapes(facts).items() if columns % size}


def check_group_size(size: int | None, facts: ModelFacts) -> list[Problem]:
    """Problems of a group size; None takes the largest that fits."""
    fitting = [str(one) for one in GROUP_SIZES if not offenders(one, facts)]
    if size is None:
        if fitting:
            return []
        message = f"no group size of {', '.join(map(str, GROUP_SIZES))} divides every layer of '{facts.name}'"
        return [Problem("quant.group_size", message, ("quant=int8, which has one scale a row",))]
    ways = tuple(f"quant.group_size={one}" for one in fitting) or ("quant=int8, which has one scale a row",)
    if size not in GROUP_SIZES:
        message = f"{size} is not one of {', '.join(map(str, GROUP_SIZES))}"
        return [Problem("quant.group_size", message, ways)]
    named = ", ".join(f"{name} ({columns})" for name, columns in offenders(size, facts).items())
    if not named:
        return []
    return [Problem("quant.group_size", f"{size} does not divide the columns of {named}", ways)]


def check_symmetric(symmetric: bool, machine: Machine) -> list[Problem]:
    """GPTQ for a GPU must be symmetric: the Marlin kernels serve only that."""
    if symmetric or machine.device != "cuda":
        return []
    message = "false: on a GPU the Marlin kernels serve symmetric GPTQ only"
    return [Problem("quant.symmetric", message, ("quant.symmetric=true", "quant=awq, which is asymmetric"))]


def check_observer(observer: str) -> list[Problem]:
    """One of the ways to find a scale."""
    if observer in OBSERVERS:
        return []
    ways = tuple(f"quant.observer={one}" for one in OBSERVERS)
    return [Problem("quant.observer", f"'{observer}' is not one of {', '.join(OBSERVERS)}", ways)]


def check_share(key: str, value: float) -> list[Problem]:
    """A setting that is a share, above 0 and below 1."""
    return [] if 0 < value < 1 else [Problem(f"quant.{key}", f"{value} is not between 0 and 1")]
