"""W8A8 in FP8 (E4M3), static: one scale a tensor, the activations' from the calibration text.

Saves the work of finding activation scales as the model runs, and loses some range. Needs compute capability 8.9.
Output: a compressed-tensors checkpoint (`float-quantized`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.compress.backends import llmcompressor
from pipeline.compress.memory import sequential_memory
from pipeline.compress.methods.fp8 import NO_CPU, check_fp8
from pipeline.compress.registry import CompressJob, Method


@dataclass(frozen=True)
class Args:
    """It has no settings beside the calibration text."""


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""
    llmcompressor.round_to_preset(job, "FP8")


METHOD = Method(
    name="fp8-static",
    args=Args,
    compress=compress,
    needs_calibration=True,
    devices=("cuda",),
    refused=NO_CPU,
    nearest="int8",
    tools=llmcompressor.TOOLS,
    check=check_fp8,
    memory=sequential_memory,
)
