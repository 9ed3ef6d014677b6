"""W4A16 by GPTQ (Frantar et al., arXiv 2210.17323), with llm-compressor.

Weights in INT4 with a scale for each group of columns, rounded one column after another so that later columns make up
for the error of earlier ones on the calibration text. Symmetric, so that vLLM's Marlin kernels serve it on a GPU.
Columns are taken in the order of their activations' energy, and stored in the usual one (no cost when serving).
Output: a compressed-tensors checkpoint (`pack-quantized`). What auto-gptq wrote is `quant=gptq-native`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from common.errors import Problem
from pipeline.compress import llmcompressor
from pipeline.compress.groups import auto_group_size, check_group_size, check_share, check_symmetric
from pipeline.compress.memory import sequential_memory
from pipeline.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts


@dataclass(frozen=True)
class Args:
    """Settings of `quant=gptq`."""

    group_size: int | None = None
    """Columns that share one scale: 128, 64 or 32; null takes the largest that divides every layer."""
    symmetric: bool = True
    """Symmetric around zero: what the Marlin kernels need."""
    dampening: float = 0.01
    """Dampening, as a share of the Hessian's mean diagonal."""


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """Group size, kernel and dampening."""
    return [
        *check_group_size(args.group_size, facts),
        *check_symmetric(args.symmetric, machine),
        *check_share("dampening", args.dampening),
    ]


def resolve(args: Args, facts: ModelFacts) -> Args:
    """With a definite group size."""
    return args if args.group_size is not None else replace(args, group_size=auto_group_size(facts))


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""

    def recipe() -> list[Any]:
        from llmcompressor.modifiers.gptq import GPTQModifier

        groups = llmcompressor.weight_only_groups(
            num_bits=4, group_size=job.args["group_size"], symmetric=job.args["symmetric"]
        )
        return [GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=job.args["dampening"])]

    llmcompressor.one_shot(job, recipe)


METHOD = Method(
    name="gptq",
    args=Args,
    compress=compress,
    weight_only_bits=4,
    needs_calibration=True,
    tools=llmcompressor.TOOLS,
    check=check,
    resolve=resolve,
    memory=sequential_memory,
)
