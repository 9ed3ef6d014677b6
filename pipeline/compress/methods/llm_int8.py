"""LLM.int8() (Dettmers et al., arXiv 2208.07339): INT8 products, outlier columns in 16 bit. No data.

By bitsandbytes, served by vLLM on a GPU, without CUDA graphs. One GPU a replica: vLLM does not split such weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import Problem
from pipeline.compress.backends import bitsandbytes
from pipeline.compress.memory import whole_model_memory
from pipeline.compress.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts


@dataclass(frozen=True)
class Args:
    """Settings of `quant=llm-int8`."""

    threshold: float = 6.0
    """Columns whose activations exceed this stay in 16 bit."""


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The threshold is positive."""
    if args.threshold > 0:
        return []
    return [Problem("quant.threshold", f"{args.threshold} is not above 0", ("quant.threshold=6.0",))]


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""
    bitsandbytes.load_and_save(job, {"load_in_8bit": True, "llm_int8_threshold": job.args["threshold"]})


METHOD = Method(
    name="llm-int8",
    args=Args,
    compress=compress,
    devices=("cuda",),
    refused=bitsandbytes.NO_CPU,
    nearest="rtn-int8",
    tools=bitsandbytes.TOOLS,
    check=check,
    memory=whole_model_memory,
    splits=False,
)
