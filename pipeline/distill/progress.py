"""How fast the training is: tokens per second, and the share of the machine's arithmetic that the model uses.

Model FLOPs of a token (PaLM, arXiv 2204.02311, appendix B): 6 per weight that is multiplied and 12 per layer, position
and attention width for the student's forward and backward pass, and a third of that for a live teacher's forward pass.
Recomputed activations do not count. The peak is the data sheet's dense figure where the GPU is known, else the fastest
of a few large matrix products on this machine.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PEAK_FLOPS_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "MI300X": 1307e12,
}
"""Dense bfloat16 FLOP/s from the makers' data sheets; the first name that the device's name contains."""
SIZE = 1024
REPEATS = 5


def flops_per_token(model: PreTrainedModel, length: int, *, backward: bool) -> float:
    """Floating-point operations of one token in a sequence of `length`."""
    config = model.config
    embedding = model.get_input_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    weights = int(sum(parameter.numel() for parameter in model.parameters())) - (0 if tied else int(embedding))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = int(config.num_hidden_layers * length * config.num_attention_heads * head_dim)
    return (6.0 * weights + 12.0 * attention) if backward else (2.0 * weights + 4.0 * attention)


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s that the device could do, and where the figure comes from: `data sheet` or `measured`."""
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAK_FLOPS_BF16.items():
            if known in name and dtype == torch.bfloat16:
                return peak, "data sheet"
    left = torch.ones(SIZE, SIZE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(REPEATS):
        _settle(device)
        started = time.perf_counter()
        left @ left
        _settle(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * SIZE**3 / best, "measured"


def _settle(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_line(text: str) -> None:
    """One line of the log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
