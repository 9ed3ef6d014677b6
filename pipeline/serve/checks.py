"""What is wrong with an engine before a server is started, and what it adds to a candidate's name. Pure.

The limits are vLLM's own, told earlier: a server takes a minute to refuse them.
"""

from __future__ import annotations

from collections.abc import Iterable

from core.errors import Problem, closest
from pipeline.config import EngineConfig
from pipeline.types import AUTO, FP8_CAPABILITY, GIB, Machine, ModelFacts

KV_CACHE_DTYPES = (AUTO, "fp8")

BATCH_INVARIANT_CAPABILITY = 8.0
"""https://docs.vllm.ai/en/v0.32.0/features/batch_invariance/"""

PROPOSERS = ("ngram", "draft_model")


def check_engine(engine: EngineConfig, facts: ModelFacts) -> list[Problem]:
    """Every problem of the batching and of the speculation."""
    return [*_check_batching(engine), *_check_speculation(engine, facts)]


def engine_suffix(engine: EngineConfig) -> str:
    """What makes another candidate of the same weights: its keys and values, and who proposes its tokens.

    >>> engine_suffix(EngineConfig(kv_cache_dtype="fp8")), engine_suffix(EngineConfig(speculative="ngram"))
    ('+fp8-kv-cache', '+ngram')
    """
    suffix = "" if engine.kv_cache_dtype == "auto" else f"+{engine.kv_cache_dtype}-kv-cache"
    return suffix if engine.speculative is None else f"{suffix}+{engine.speculative.replace('_', '-')}"


def _check_batching(engine: EngineConfig) -> Iterable[Problem]:
    tokens = engine.max_num_batched_tokens
    if tokens is None:
        return
    key = "engine.max_num_batched_tokens"
    if tokens < engine.max_num_seqs:
        ways = (f"{key}={engine.max_num_seqs}", f"engine.max_num_seqs={max(tokens, 1)}")
        yield Problem(key, f"{tokens} are fewer than the {engine.max_num_seqs} sequences of a step", ways)
    if engine.enable_chunked_prefill is False and tokens < engine.max_model_len:
        message = f"{tokens} are fewer than the {engine.max_model_len} of the longest prompt, which may not be cut"
        yield Problem(key, message, ("engine.enable_chunked_prefill=true", f"{key}={engine.max_model_len}"))


def _check_speculation(engine: EngineConfig, facts: ModelFacts) -> Iterable[Problem]:
    proposer = engine.speculative
    if proposer is None:
        return
    if proposer not in PROPOSERS:
        message = f"'{proposer}' is not one of {', '.join(PROPOSERS)}, or null{closest(proposer, PROPOSERS)}"
        yield Problem("engine.speculative", message)
        return
    if not 1 <= engine.num_speculative_tokens < engine.max_model_len:
        message = f"{engine.num_speculative_tokens} is not allowed; it must be at least 1 and below max_model_len"
        yield Problem("engine.num_speculative_tokens", message)
    if proposer == "ngram" and not 1 <= engine.prompt_lookup_min <= engine.prompt_lookup_max:
        message = (
            f"{engine.prompt_lookup_max} is not allowed; it must be at least prompt_lookup_min, and that at least 1"
        )
        yield Problem("engine.prompt_lookup_max", message)
    if proposer == "draft_model" and not engine.draft_model:
        way = "engine.draft_model=FOLDER of a small model that has the same vocabulary"
        yield Problem("engine.draft_model", f"no model is given that proposes tokens for '{facts.name}'", (way,))


def check_kv_cache(engine: EngineConfig, machine: Machine) -> list[Problem]:
    """FP8 keys and values need FP8 units on a GPU, and AVX-512 or AMX on a CPU."""
    wanted = engine.kv_cache_dtype
    if wanted not in KV_CACHE_DTYPES:
        return [Problem("engine.kv_cache_dtype", f"'{wanted}' is not one of {', '.join(KV_CACHE_DTYPES)}")]
    if wanted == AUTO:
        return []
    if machine.device == "cuda":
        has = (machine.compute_capability or 0) >= FP8_CAPABILITY
        needed = f"compute capability {FP8_CAPABILITY}, {machine.device_name} has {machine.compute_capability}"
    else:
        has, needed = machine.has_fp8_cache, f"AVX-512 or AMX on a CPU, {machine.device_name} has neither"
    if has:
        return []
    return [Problem("engine.kv_cache_dtype", f"'{wanted}' needs {needed}", (f"engine.kv_cache_dtype={AUTO}",))]


def check_batch_invariance(engine: EngineConfig, machine: Machine) -> list[Problem]:
    """VLLM makes a GPU's kernels independent of the batch from compute capability 8.0 on; a CPU's are."""
    if not engine.batch_invariant:
        return []
    if machine.device == "cuda" and (machine.compute_capability or 0) >= BATCH_INVARIANT_CAPABILITY:
        return []
    if machine.device == "cuda":
        needed = f"it needs compute capability {BATCH_INVARIANT_CAPABILITY}"
        message = f"{needed}, {machine.device_name} has {machine.compute_capability}"
    else:
        message = "vLLM has it for GPUs alone; on a CPU an answer does not depend on the batch as it is"
    return [Problem("engine.batch_invariant", message, ("engine.batch_invariant=false",))]


def check_size(engine: EngineConfig, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The model's positions, the GPUs of one replica and their attention heads."""
    problems = []
    if engine.max_model_len > facts.max_positions:
        message = f"{engine.max_model_len} is longer than the {facts.max_positions} positions of '{facts.name}'"
        problems.append(Problem("engine.max_model_len", message, (f"engine.max_model_len={facts.max_positions}",)))
    if machine.device == "cuda" and engine.tensor_parallel_size > machine.num_devices:
        message = f"{engine.tensor_parallel_size} GPUs are asked for, this machine has {machine.num_devices}"
        problems.append(
            Problem("engine.tensor_parallel_size", message, (f"engine.tensor_parallel_size={machine.num_devices}",))
        )
    if facts.num_heads % engine.tensor_parallel_size:
        message = f"{engine.tensor_parallel_size} does not divide the {facts.num_heads} attention heads"
        problems.append(Problem("engine.tensor_parallel_size", message))
    if machine.device == "cuda":
        room = (machine.device_memory_bytes or 0) * engine.gpu_memory_utilization * engine.tensor_parallel_size
    else:
        room = (machine.host_memory_bytes or 0) - engine.cpu_kvcache_gib * GIB
    if facts.num_bytes > room:
        message = (
            f"the 16-bit baseline needs {facts.num_bytes / GIB:.1f} GiB to be served, "
            f"{machine.device_name} leaves {max(room, 0) / GIB:.1f} GiB"
        )
        more_gpus = ("engine.tensor_parallel_size= over more GPUs",) if machine.device == "cuda" else ()
        ways = (*more_gpus, "a smaller model", "a machine with more memory")
        problems.append(Problem("model", message, ways))
    return problems
