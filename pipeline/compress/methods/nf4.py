"""NF4: 4-bit weights on the quantiles of a normal distribution (Dettmers et al., QLoRA, arXiv 2305.14314). No data.

By bitsandbytes, in blocks of 64 weights, served by vLLM on a GPU. One GPU a replica: vLLM does not split such weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.compress.backends import bitsandbytes
from pipeline.compress.memory import whole_model_memory
from pipeline.compress.registry import CompressJob, Method


@dataclass(frozen=True)
class Args:
    """Settings of `quant=nf4`."""

    double_quant: bool = False
    """Quantize the blocks' scales as well: 0.4 bit a weight less."""


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""
    settings = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_use_double_quant": job.args["double_quant"],
    }
    bitsandbytes.load_and_save(job, settings)


METHOD = Method(
    name="nf4",
    args=Args,
    compress=compress,
    devices=("cuda",),
    refused=bitsandbytes.NO_CPU,
    nearest="rtn-int4",
    tools=bitsandbytes.TOOLS,
    memory=whole_model_memory,
    splits=False,
)
