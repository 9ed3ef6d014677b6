"""W4A16 by AWQ (Lin et al., arXiv 2306.00978) in AWQ's own GEMM format, with GPTQModel: what autoawq wrote."""

from __future__ import annotations

from pipeline.compress.backends import gptqmodel
from pipeline.compress.groups import GroupArgs, check_groups, resolve_group_size
from pipeline.compress.memory import sequential_memory
from pipeline.compress.registry import CompressJob, Method


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""
    settings = {"bits": 4, "group_size": job.args["group_size"], "sym": False, "method": "awq", "format": "gemm"}
    gptqmodel.quantize(job, settings)


METHOD = Method(
    name="awq-native",
    args=GroupArgs,
    compress=compress,
    products=("w4a16",),
    needs_calibration=True,
    devices=("cuda",),
    refused={"cpu": "GPTQModel's AWQ needs CUDA"},
    nearest="awq",
    tools=gptqmodel.TOOLS,
    check=check_groups,
    resolve=resolve_group_size,
    memory=sequential_memory,
)
