"""W8A16: INT8 weights, 16-bit activations, by GPTQ (Frantar et al., arXiv 2210.17323) with llm-compressor.

Half the weight traffic at nearly the base's quality: for small batches, where reading weights is the limit. Output: a
compressed-tensors checkpoint (`pack-quantized`, 8 bit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import Problem
from pipeline.compress.backends import llmcompressor
from pipeline.compress.groups import check_share
from pipeline.compress.memory import sequential_memory
from pipeline.compress.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier


@dataclass(frozen=True)
class Args:
    """Settings of `quant=int8-weight-only`."""

    dampening: float = 0.01
    """GPTQ's dampening, as a share of the Hessian's mean diagonal."""


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """Dampening is a share."""
    return check_share("dampening", args.dampening)


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""

    def recipe() -> list[Modifier]:
        from llmcompressor.modifiers.gptq import GPTQModifier

        groups = llmcompressor.weight_only_groups(num_bits=8, group_size=None, symmetric=True)
        return [GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=job.args["dampening"])]

    llmcompressor.one_shot(job, recipe)


METHOD = Method(
    name="int8-weight-only",
    args=Args,
    compress=compress,
    products=("w8a16",),
    needs_calibration=True,
    tools=llmcompressor.TOOLS,
    check=check,
    memory=sequential_memory,
)
