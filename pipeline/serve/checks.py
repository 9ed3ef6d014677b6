"""What is wrong with an engine before a server is started, and what it adds to a candidate's name. Pure.

The limits are vLLM's own, told earlier: a server takes a minute to refuse them.
"""

from __future__ import annotations

from collections.abc import Iterable

from core.errors import Problem, closest
from pipeline.config import EngineConfig
from pipeline.types import ModelFacts

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
