"""W4A16 by AWQ (Lin et al., arXiv 2306.00978), with llm-compressor.

Channels that see large activations are scaled up before the weights are rounded, and the layer before is scaled down:
the scales are searched on the calibration text. Asymmetric INT4 groups. Output: a compressed-tensors checkpoint
(`pack-quantized`). What autoawq wrote is `quant=awq-native`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import Problem
from pipeline.compress.backends import llmcompressor
from pipeline.compress.groups import GroupArgs, check_group_size, resolve_group_size
from pipeline.compress.memory import sequential_memory
from pipeline.compress.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier


@dataclass(frozen=True)
class Args(GroupArgs):
    """Settings of `quant=awq`."""

    symmetric: bool = False
    """Asymmetric groups have a zero point each."""
    num_grid: int = 20
    """Scales tried for each layer."""


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """Group size and grid."""
    problems = check_group_size(args.group_size, facts)
    if args.num_grid < 2:
        problems.append(Problem("quant.num_grid", f"{args.num_grid} is below 2"))
    return problems


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""

    def recipe() -> list[Modifier]:
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        llmcompressor.allow_unpinned_memory()
        groups = llmcompressor.weight_only_groups(
            num_bits=4, group_size=job.args["group_size"], symmetric=job.args["symmetric"]
        )
        return [
            AWQModifier(n_grid=job.args["num_grid"]),
            QuantizationModifier(config_groups=groups, ignore=["lm_head"]),
        ]

    llmcompressor.one_shot(job, recipe)


METHOD = Method(
    name="awq",
    args=Args,
    compress=compress,
    products=("w4a16",),
    needs_calibration=True,
    tools=llmcompressor.TOOLS,
    check=check,
    resolve=resolve_group_size,
    memory=sequential_memory,
)
