"""W8A8 in FP8 (E4M3), dynamic: weights with one scale a row, activations with one a token as the model runs. No data.

For GPUs with FP8 units (compute capability 8.9 or newer: L4, H100). Format: Micikevicius et al., arXiv 2209.05433.
Output: a compressed-tensors checkpoint (`float-quantized`).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import Problem
from pipeline.compress.backends import llmcompressor
from pipeline.compress.memory import data_free_memory
from pipeline.compress.registry import CompressJob, Method
from pipeline.types import FP8_CAPABILITY, Machine, ModelFacts

NO_CPU = {"cpu": "vLLM's FP8 kernels need a GPU (on processors only those with AMX tiles have one)"}


@dataclass(frozen=True)
class Args:
    """It has no settings."""


def check_fp8(args: object, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The GPU has FP8 units."""
    capability = machine.compute_capability
    if machine.device != "cuda" or capability is None or capability >= FP8_CAPABILITY:
        return []
    message = f"FP8 needs compute capability {FP8_CAPABILITY} or newer, {machine.device_name} has {capability}"
    return [Problem("quant.method", message, ("quant=int8", "an L4, H100 or newer GPU"))]


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""
    llmcompressor.round_to_preset(job, "FP8_DYNAMIC")


METHOD = Method(
    name="fp8",
    args=Args,
    compress=compress,
    devices=("cuda",),
    refused=NO_CPU,
    nearest="int8",
    tools=llmcompressor.TOOLS,
    check=check_fp8,
    memory=data_free_memory,
)
