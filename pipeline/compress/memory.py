"""Peak memory of block-by-block compression, from shapes alone. Pure.

The libraries hold the whole checkpoint in host memory, bring one decoder block at a time to the device, run the
calibration text through it, and keep the text's hidden states for the next block. GPTQ adds one Hessian per layer of
the block, columns x columns in float32 (Frantar et al., arXiv 2210.17323, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.checkpoints.facts import linear_shapes
from pipeline.types import Machine, ModelFacts

LIBRARIES_BYTES = 900 * 2**20
"""What Python and the libraries take before a model is loaded: measured 0.8 GiB on a CPU."""
CUDA_CONTEXT_BYTES = 800 * 2**20
"""What a CUDA context and its libraries take on the device."""
FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """An estimate of a method's peak use, in bytes."""

    host_bytes: float
    device_bytes: float
    """0 on a CPU: all of it is host memory there."""


@dataclass(frozen=True)
class CalibrationSize:
    """How much text is run through the model: zero samples for a method without data."""

    num_samples: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return self.num_samples * self.length


def sequential_memory(
    facts: ModelFacts, machine: Machine, calibration: CalibrationSize, *, hessians: bool = True
) -> Memory:
    """Peak memory of a method that works block by block.

    Args:
        facts: the model.
        machine: on a CPU the work is done in float32, on a GPU in the checkpoint's own type.
        calibration: the text that runs through.
        hessians: whether the method keeps a Hessian for each layer of the block (GPTQ does).

    """
    on_gpu = machine.device == "cuda"
    working = facts.dtype_bytes if on_gpu else FLOAT32
    shapes = linear_shapes(facts)
    block = sum(rows * columns for rows, columns in shapes.values())
    # The block's inputs and outputs are both there while it runs.
    states = 2 * calibration.num_tokens * facts.hidden_size * working
    hessian = sum(columns * columns for _, columns in shapes.values()) * FLOAT32 if hessians else 0
    # One sequence at a time: attention scores in float32, and the head's logits.
    widest = max(facts.intermediate_size * 3, facts.num_heads * calibration.length)
    one_pass = calibration.length * max(widest, facts.vocab_size) * FLOAT32
    model = facts.num_parameters * working
    block_work = block * (working + 2 * FLOAT32) + hessian + one_pass
    if on_gpu:
        # The host holds the model and the copy that is written; the cached states are kept there too.
        return Memory(LIBRARIES_BYTES + 1.5 * model + states, CUDA_CONTEXT_BYTES + block_work)
    return Memory(LIBRARIES_BYTES + 1.5 * model + states + block_work, 0)


def data_free_memory(facts: ModelFacts, machine: Machine, calibration: CalibrationSize) -> Memory:
    """Peak memory of rounding without calibration text: the model and a layer's work."""
    return sequential_memory(facts, machine, CalibrationSize(0, 0), hessians=False)


def whole_model_memory(facts: ModelFacts, machine: Machine, calibration: CalibrationSize) -> Memory:
    """Peak memory of a method that loads the whole model onto the device (bitsandbytes)."""
    model = facts.num_parameters * facts.dtype_bytes
    return Memory(LIBRARIES_BYTES + model, CUDA_CONTEXT_BYTES + model)
