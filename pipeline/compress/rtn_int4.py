"""W4A16 by rounding to nearest, without data: the control that `gptq` and `awq` must beat.

Output: a compressed-tensors checkpoint (`pack-quantized`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from common.errors import Problem
from pipeline.compress import llmcompressor
from pipeline.compress.groups import auto_group_size, check_group_size
from pipeline.compress.memory import data_free_memory
from pipeline.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts


@dataclass(frozen=True)
class Args:
    """Settings of `quant=rtn-int4`."""

    group_size: int | None = None
    """Columns that share one scale: 128, 64 or 32; null takes the largest that divides every layer."""


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The group size divides every layer."""
    return check_group_size(args.group_size, facts)


def resolve(args: Args, facts: ModelFacts) -> Args:
    """With a definite group size."""
    return args if args.group_size is not None else replace(args, group_size=auto_group_size(facts))


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""

    def recipe() -> list[Any]:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        groups = llmcompressor.weight_only_groups(num_bits=4, group_size=job.args["group_size"], symmetric=True)
        return [QuantizationModifier(config_groups=groups, ignore=["lm_head"])]

    llmcompressor.one_shot(job, recipe)


METHOD = Method(
    name="rtn-int4",
    args=Args,
    compress=compress,
    weight_only_bits=4,
    tools=llmcompressor.TOOLS,
    check=check,
    resolve=resolve,
    memory=data_free_memory,
)
