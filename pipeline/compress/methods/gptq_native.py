"""W4A16 by GPTQ (Frantar et al., arXiv 2210.17323) in GPTQ's own checkpoint format, with GPTQModel.

The format that auto-gptq wrote (qweight, qzeros, scales, g_idx), for servers that read only that. Symmetric, columns in
their stored order.
"""

from __future__ import annotations

from pipeline.compress.backends import gptqmodel
from pipeline.compress.groups import GptqArgs, check_gptq, resolve_group_size
from pipeline.compress.memory import sequential_memory
from pipeline.compress.registry import CompressJob, Method

MSE_NORM = 2.4
"""The power of the error that is minimized: the GPTQ authors' own, and llm-compressor's."""


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
            "mse": MSE_NORM if job.args["observer"] == "mse" else 0.0,
        },
    )


METHOD = Method(
    name="gptq-native",
    args=GptqArgs,
    compress=compress,
    products=("w4a16",),
    needs_calibration=True,
    tools=gptqmodel.TOOLS,
    check=check_gptq,
    resolve=resolve_group_size,
    resumable=True,
    memory=sequential_memory,
)
