"""W8A8 by rounding to nearest, without data: the control that `int8` must beat.

INT8 weights with one scale a row, INT8 activations with one scale a token, computed as the model runs. Output: a
compressed-tensors checkpoint (`int-quantized`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.compress.backends import llmcompressor
from pipeline.compress.memory import data_free_memory
from pipeline.compress.registry import CompressJob, Method

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier


@dataclass(frozen=True)
class Args:
    """It has no settings."""


def compress(job: CompressJob) -> None:
    """Write the checkpoint."""

    def recipe() -> list[Modifier]:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return [QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])]

    llmcompressor.one_shot(job, recipe)


METHOD = Method(
    name="rtn-int8",
    args=Args,
    compress=compress,
    tools=llmcompressor.TOOLS,
    memory=data_free_memory,
    products=("w8a8",),
)
