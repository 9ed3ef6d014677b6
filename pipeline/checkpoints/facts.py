"""Facts of a model from its config.json and its weight files' headers: no weights are loaded.

>>> shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
...          "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
...          "tie_word_embeddings": True}
>>> facts_from_shape("smollm2-135m", shape).num_parameters
134515008
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from core.errors import ConfigError
from evals.quality.chat import has_chat_template
from pipeline.types import ModelFacts

REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
BIASED_QKV = ("qwen2",)
"""Model types whose query, key and value projections have a bias."""


class TensorHeader(TypedDict):
    """One tensor in the header of a safetensors file."""

    dtype: str
    """BF16, F32, I8, ..."""
    shape: list[int]
    data_offsets: tuple[int, int]
    """First byte and the one after the last, counted from the end of the header."""


def facts_from_shape(name: str, shape: Mapping[str, Any], num_parameters: int | None = None) -> ModelFacts:
    """Facts from the entries of a config.json of the Llama family (Llama, Qwen2, Mistral, SmolLM2).

    Raises:
        ConfigError: an entry is missing; the message names it.

    """
    missing = [key for key in REQUIRED if key not in shape]
    if missing:
        raise ConfigError(f"model.shape of '{name}' lacks {', '.join(missing)}: copy them from the model's config.json")
    heads = int(shape["num_attention_heads"])
    head_dim = int(shape.get("head_dim") or shape["hidden_size"] // heads)
    facts = ModelFacts(
        name=name,
        architecture=str((shape.get("architectures") or ["unknown"])[0]),
        hidden_size=int(shape["hidden_size"]),
        intermediate_size=int(shape["intermediate_size"]),
        num_layers=int(shape["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(shape.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        vocab_size=int(shape["vocab_size"]),
        max_positions=int(shape["max_position_embeddings"]),
        tie_word_embeddings=bool(shape.get("tie_word_embeddings", False)),
        num_parameters=0,
        quant_format=quant_format(shape.get("quantization_config")),
        quant_bits=quant_bits(shape.get("quantization_config")),
    )
    count = num_parameters or count_parameters(facts, biased_qkv=shape.get("model_type") in BIASED_QKV)
    return ModelFacts(**{**vars(facts), "num_parameters": count})


def facts_from_folder(name: str, folder: Path) -> ModelFacts:
    """Facts of a checkpoint folder.

    Raises:
        ConfigError: it is no folder in Hugging Face form with safetensors weights.

    """
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigError(f"model.path={folder}: no config.json there; give a folder in Hugging Face form")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(
            f"model.path={folder}: no *.safetensors there; convert the weights first "
            "(transformers: from_pretrained(...).save_pretrained(folder))"
        )
    shape = json.loads(config.read_text())
    count = sum(_elements(tensor["shape"]) for path in weights for tensor in tensor_headers(path).values())
    facts = facts_from_shape(name, shape, count if not shape.get("quantization_config") else None)
    return replace(facts, has_chat_template=has_chat_template(folder))


def count_parameters(facts: ModelFacts, *, biased_qkv: bool = False) -> int:
    """Parameters of a Llama-like model: embeddings, attention, gated MLP, norms."""
    hidden, kv_width, q_width = (
        facts.hidden_size,
        facts.num_kv_heads * facts.head_dim,
        facts.num_heads * facts.head_dim,
    )
    attention = 2 * hidden * q_width + 2 * hidden * kv_width + (q_width + 2 * kv_width if biased_qkv else 0)
    layer = attention + 3 * hidden * facts.intermediate_size + 2 * hidden
    embeddings = facts.vocab_size * hidden * (1 if facts.tie_word_embeddings else 2)
    return embeddings + facts.num_layers * layer + hidden


def linear_shapes(facts: ModelFacts) -> dict[str, tuple[int, int]]:
    """The linear layers of one decoder block, name -> (rows, columns): what the compression methods quantize."""
    q_width, kv_width = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    hidden, intermediate = facts.hidden_size, facts.intermediate_size
    return {
        "self_attn.q_proj": (q_width, hidden),
        "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden),
        "self_attn.o_proj": (hidden, q_width),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """The header of a safetensors file: tensor name -> dtype, shape, data_offsets."""
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header: dict[str, TensorHeader] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header


def quant_format(config: Mapping[str, Any] | None) -> str | None:
    """The name of a checkpoint's own quantization format, or None."""
    if not config:
        return None
    return str(config.get("format") or config.get("quant_method") or "unknown")


def quant_bits(config: Mapping[str, Any] | None) -> int | None:
    """Bits of a checkpoint's smallest quantized weights, or None where it does not say.

    >>> quant_bits({"quant_method": "gptq", "bits": 4}), quant_bits({"quant_method": "fp8"})
    (4, None)
    >>> quant_bits({"config_groups": {"group_0": {"weights": {"num_bits": 8}}, "group_1": {"weights": None}}})
    8
    >>> quant_bits({"config_groups": {"W4A16": ["Linear"]}})  # a preset by its name alone: None
    """
    if not config:
        return None
    groups = [group for group in (config.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    found = [
        config.get("bits"),
        config.get("w_bit"),
        *((group.get("weights") or {}).get("num_bits") for group in groups),
    ]
    return min((bits for bits in found if isinstance(bits, int)), default=None)


def _elements(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
