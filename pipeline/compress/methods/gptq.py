"""W4A16 by GPTQ (Frantar et al., arXiv 2210.17323), with llm-compressor.

Weights in INT4 with a scale for each group of columns, rounded one column after another so that later columns make up
for the error of earlier ones on the calibration text. Symmetric, so that vLLM's Marlin kernels serve it on a GPU.
Columns are taken in the order of their activations' energy, and stored in the usual one (no cost when serving).
Output: a compressed-tensors checkpoint (`pack-quantized`). What auto-gptq wrote is `quant=gptq-native`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.compress.backends import llmcompressor
from pipeline.compress.groups import GptqArgs, check_gptq, resolve_group_size
from pipeline.compress.memory import sequential_memory
from pipeline.compress.registry import CompressJob, Method

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""

    def recipe() -> list[Modifier]:
        from llmcompressor.modifiers.gptq import GPTQModifier

        groups = llmcompressor.weight_only_groups(
            num_bits=4,
            group_size=job.args["group_size"],
            symmetric=job.args["symmetric"],
            observer=job.args["observer"],
        )
        return [GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=job.args["dampening"])]

    llmcompressor.one_shot(job, recipe)


METHOD = Method(
    name="gptq",
    args=GptqArgs,
    compress=compress,
    products=("w4a16",),
    needs_calibration=True,
    tools=llmcompressor.TOOLS,
    check=check_gptq,
    resolve=resolve_group_size,
    memory=sequential_memory,
)
