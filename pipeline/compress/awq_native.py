"""W4A16 by AWQ (Lin et al., arXiv 2306.00978) in AWQ's own GEMM format, with GPTQModel: what autoawq wrote."""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.errors import Problem
from pipeline.compress import gptqmodel
from pipeline.compress.groups import auto_group_size, check_group_size
from pipeline.compress.memory import sequential_memory
from pipeline.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts


@dataclass(frozen=True)
class Args:
    """Settings of `quant=awq-native`."""

    group_size: int | None = None
    """Columns that share one scale and zero point: 128, 64 or 32; null takes the largest that divides every layer."""


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The group size divides every layer."""
    return check_group_size(args.group_size, facts)


def resolve(args: Args, facts: ModelFacts) -> Args:
    """With a definite group size."""
    return args if args.group_size is not None else replace(args, group_size=auto_group_size(facts))


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""
    settings = {"bits": 4, "group_size": job.args["group_size"], "sym": False, "method": "awq", "format": "gemm"}
    gptqmodel.quantize(job, settings)


METHOD = Method(
    name="awq-native",
    args=Args,
    compress=compress,
    weight_only_bits=4,
    needs_calibration=True,
    devices=("cuda",),
    refused={"cpu": "GPTQModel's AWQ needs CUDA"},
    nearest="awq",
    tools=gptqmodel.TOOLS,
    check=check,
    resolve=resolve,
    memory=sequential_memory,
)
