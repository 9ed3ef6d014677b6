"""What serving a model takes of memory, in the type that it is served in. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import Problem
from pipeline.config import EngineConfig
from pipeline.types import Machine, ModelFacts

GIB = 2**30
SERVER_BYTES = 1.5 * GIB
"""vLLM's API server and its worker without a model: measured 1.3 GiB on a CPU."""
GPU_WORK_BYTES = 1.0 * GIB
"""Activations and captured graphs of one GPU: vLLM's own start-up profile is of this order."""
GPU_SHARE_TOGETHER = 0.95
HOST_SHARE_TOGETHER = 0.8
"""Of the memory, at most, that several servers at once may take: other programs run there too."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def weight_bytes_served(engine: EngineConfig, facts: ModelFacts) -> int:
    """Bytes of a plain checkpoint's weights in the type that they are served in; `auto` keeps the checkpoint's own."""
    return facts.num_parameters * DTYPE_BYTES.get(engine.dtype, facts.dtype_bytes)


def fit_together(engines: Sequence[EngineConfig], num_parameters: Sequence[int], machine: Machine) -> bool:
    """Whether several models can be served at once: their weights as plain ones, KV caches and servers, and a client.

    On a GPU vLLM takes its declared share of each device from the start, so the shares are added up. On a machine whose
    memory is not known nothing is promised.
    """
    if machine.device != "cpu":
        return sum(engine.gpu_memory_utilization for engine in engines) <= GPU_SHARE_TOGETHER
    if machine.host_memory_bytes is None:
        return False
    weights = sum(
        count * DTYPE_BYTES.get(engine.dtype, DTYPE_BYTES["float32"])
        for engine, count in zip(engines, num_parameters, strict=True)
    )
    caches = sum(engine.cpu_kvcache_gib for engine in engines) * GIB
    return weights + caches + (len(engines) + 1) * SERVER_BYTES <= HOST_SHARE_TOGETHER * machine.host_memory_bytes


def memory_problems(engine: EngineConfig, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """Whether the baseline, the largest of the variants, fits where it is served.

    On a CPU weights, KV cache and server share the host's memory; on a GPU vLLM takes its share of each device. Where a
    plan is made for a machine whose memory is not known, nothing is checked.
    """
    weights = weight_bytes_served(engine, facts)
    served = engine.dtype if engine.dtype in DTYPE_BYTES else "its own type"
    if machine.device == "cpu":
        room = machine.host_memory_bytes
        needed = weights + engine.cpu_kvcache_gib * GIB + SERVER_BYTES
        parts = (
            f"{weights / GIB:.1f} GiB of weights in {served}, {engine.cpu_kvcache_gib} GiB of KV cache and the server"
        )
        ways = [] if engine.dtype == "bfloat16" else ["engine.dtype=bfloat16, where the processor computes it"]
        ways += ["a smaller model", "a machine with more memory"]
    else:
        room = None if machine.device_memory_bytes is None else round(
            engine.gpu_memory_utilization * machine.device_memory_bytes
        )  # fmt: skip
        needed = weights / engine.tensor_parallel_size + GPU_WORK_BYTES
        parts = (
            f"{weights / engine.tensor_parallel_size / GIB:.1f} GiB of weights a GPU in {served}, and room to work in"
        )
        ways = ["engine.tensor_parallel_size=2, or more", "a smaller model", "a GPU with more memory"]
    if room is None or needed <= room:
        return []
    message = f"serving '{facts.name}' takes about {needed / GIB:.1f} GiB ({parts}), there are {room / GIB:.1f} GiB"
    return [Problem("engine.dtype" if machine.device == "cpu" else "hardware", message, tuple(ways))]
