"""What distillation can be told. Pure; what can be wrong with it is in `check`.

    python -m pipeline model=smollm2-135m-q4_1 distill=depth-third quant=int8
    python -m pipeline distill=depth-third distill.student.drop_layers=[14,15,16] distill.train.num_steps=200

Every key has its line below; the choices are the files of conf/distill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

from pipeline.config import DistillConfig, StudentConfig
from pipeline.types import ModelFacts

ADAM_BYTES = 12
"""Bytes that a checkpoint keeps of each parameter: the float32 weight and AdamW's two float32 moments."""


def config_from(values: Mapping[str, Any]) -> DistillConfig:
    """The configuration that `core.files.plain` made JSON of."""
    parts = {item.name: item.default_factory for item in fields(DistillConfig) if item.default_factory is not MISSING}
    return DistillConfig(
        name=values["name"],
        **{name: part(**values[name]) for name, part in parts.items()},  # type: ignore[arg-type]
    )


def student_parameters(config: StudentConfig, facts: ModelFacts) -> int:
    """Parameters of a student that is cut from the base; the base's own number for a given checkpoint (a bound)."""
    if config.path is not None:
        return facts.num_parameters
    kept_layers = facts.num_layers - num_dropped(config, facts.num_layers)
    kv_heads = config.num_kv_heads or facts.num_kv_heads
    queries = facts.num_heads // facts.num_kv_heads
    neurons = config.intermediate_size or facts.intermediate_size
    layer_before = _layer_parameters(facts, facts.num_kv_heads, queries, facts.intermediate_size)
    layer_after = _layer_parameters(facts, kv_heads, queries, neurons)
    return facts.num_parameters - facts.num_layers * layer_before + kept_layers * layer_after


def student_facts(config: StudentConfig, facts: ModelFacts) -> ModelFacts:
    """Facts of a student that is cut from the base: what the next stages plan with. A given checkpoint has its own."""
    kv_heads = config.num_kv_heads or facts.num_kv_heads
    return replace(
        facts,
        num_layers=facts.num_layers - num_dropped(config, facts.num_layers),
        intermediate_size=config.intermediate_size or facts.intermediate_size,
        num_kv_heads=kv_heads,
        num_heads=kv_heads * (facts.num_heads // facts.num_kv_heads),
        num_parameters=student_parameters(config, facts),
    )


def num_dropped(config: StudentConfig, num_layers: int) -> int:
    """How many layers go."""
    if config.drop_layers is not None:
        return len(config.drop_layers)
    return round(num_layers * (config.drop_fraction or 0.0))


def _layer_parameters(facts: ModelFacts, kv_heads: int, queries_per_kv: int, neurons: int) -> int:
    attention = 2 * facts.hidden_size * facts.head_dim * kv_heads * (queries_per_kv + 1)
    return attention + 3 * facts.hidden_size * neurons + 2 * facts.hidden_size
