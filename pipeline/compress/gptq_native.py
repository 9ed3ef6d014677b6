"""W4A16 by GPTQ (Frantar et al., arXiv 2210.17323) in GPTQ's own checkpoint format, with GPTQModel.

The format that auto-gptq wrote (qweight, qzeros, scales, g_idx), for servers that read only that. Symmetric, columns in
their stored order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.errors import Problem
from pipeline.compress import gptqmodel
from pipeline.compress.groups import auto_group_size, check_group_size, check_share, check_symmetric
from pipeline.compress.memory import sequential_memory
from pipeline.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts


@dataclass(frozen=True)
class Args:
    """Settings of `quant=gptq-native`."""

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
    gptqmodel.quantize(
        job,
        {
            "bits": 4,
            "group_size": job.args["group_size"],
            "sym": job.args["symmetric"],
            "desc_act": False,
            "damp_percent": job.args["dampening"],
        },
    )


METHOD = Method(
    name="gptq-native",
    args=Args,
    compress=compress,
    weight_only_bits=4,
    needs_calibration=True,
    tools=gptqmodel.TOOLS,
    check=check,
    resolve=resolve,
    resumable=True,
    memory=sequential_memory,
)
