"""W8A8: INT8 weights and INT8 dynamic activations, by llm-compressor.

SmoothQuant (Xiao et al., arXiv 2211.10438) moves activation outliers into the weights, then GPTQ (Frantar et al., arXiv
2210.17323) rounds the weights of one block after another against the calibration text. The head and the embeddings stay
in 16 bit. Output: a compressed-tensors checkpoint (`int-quantized`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import Problem
from pipeline.compress.backends import llmcompressor
from pipeline.compress.memory import sequential_memory
from pipeline.compress.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier


@dataclass(frozen=True)
class Args:
    """Settings of `quant=int8`."""

    smoothing_strength: float = 0.8
    """SmoothQuant's alpha: the share of the activations' range that moves into the weights."""
    dampening: float = 0.01
    """GPTQ's dampening, as a share of the Hessian's mean diagonal."""


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """Both settings are shares."""
    problems = []
    if not 0 <= args.smoothing_strength <= 1:
        problems.append(Problem("quant.smoothing_strength", f"{args.smoothing_strength} is not between 0 and 1"))
    if not 0 < args.dampening < 1:
        problems.append(Problem("quant.dampening", f"{args.dampening} is not between 0 and 1"))
    return problems


def compress(job: CompressJob) -> None:
    """Write the INT8 checkpoint."""

    def recipe() -> list[Modifier]:
        from llmcompressor.modifiers.quantization import GPTQModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        return [
            SmoothQuantModifier(smoothing_strength=job.args["smoothing_strength"]),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], dampening_frac=job.args["dampening"]),
        ]

    llmcompressor.one_shot(job, recipe)


METHOD = Method(
    name="int8",
    args=Args,
    compress=compress,
    needs_calibration=True,
    tools=llmcompressor.TOOLS,
    check=check,
    memory=sequential_memory,
    products=("w8a8",),
)
