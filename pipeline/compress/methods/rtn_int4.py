"""W4A16 by rounding to nearest, without data: the control that `gptq` and `awq` must beat.

Output: a compressed-tensors checkpoint (`pack-quantized`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.compress.backends import llmcompressor
from pipeline.compress.groups import GroupArgs, check_groups, resolve_group_size
from pipeline.compress.memory import data_free_memory
from pipeline.compress.registry import CompressJob, Method

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""

    def recipe() -> list[Modifier]:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        groups = llmcompressor.weight_only_groups(num_bits=4, group_size=job.args["group_size"], symmetric=True)
        return [QuantizationModifier(config_groups=groups, ignore=["lm_head"])]

    llmcompressor.one_shot(job, recipe)


METHOD = Method(
    name="rtn-int4",
    args=GroupArgs,
    compress=compress,
    products=("w4a16",),
    tools=llmcompressor.TOOLS,
    check=check_groups,
    resolve=resolve_group_size,
    memory=data_free_memory,
)
