"""What a checkpoint's files say before anything is loaded: whole or truncated, complete, finite, not zeroed.

Reads headers and bytes only (safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes), needs no
torch, and takes seconds for gigabytes. `parsimony inspect` prints what it finds.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from pipeline.checkpoints.facts import TensorHeader

INDEX = "model.safetensors.index.json"
LAYER = re.compile(r"^(?P<stack>(?:.*\.)?(?:layers|h|blocks))\.(?P<index>\d+)\.(?P<rest>.+)$")
"""`model.layers.7.mlp.up_proj.weight` -> stack `model.layers`, index 7, rest `mlp.up_proj.weight`."""
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    "F4": 4,
}
SCALES = re.compile(r"\.(weight_scale|weight_scale_inv|weight_global_scale|input_scale|scales|weight\.absmax|SCB)$")
COMPANIONS = {"weight_packed": ("weight_scale",), "qweight": ("scales",)}
"""Packed weights -> what else is needed to read them."""
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
LLAMA_LAYER = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
CHUNK_ELEMENTS = 1 << 22
Bits = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.uint64]
"""Raw values of any width."""
MAX_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """One reason not to trust a checkpoint."""

    kind: str
    """`damaged` (its files or values), `unloadable`, or `quality` (it computes something too far from the base)."""
    where: str
    """The file, tensor or layer."""
    message: str

    def __str__(self) -> str:
        """The finding on one line."""
        return f"{self.where}: {self.message}"


@dataclass(frozen=True)
class Shard:
    """A weight file's header."""

    path: Path
    data_start: int
    """Offset of the tensors' bytes in the file."""
    tensors: Mapping[str, TensorHeader]
    """Tensor name -> dtype, shape, data_offsets."""


def check_structure(folder: Path, base: Path | None = None) -> list[Finding]:
    """Everything wrong with a checkpoint's files; an empty list where nothing is.

    Args:
        folder: a checkpoint in Hugging Face form.
        base: the checkpoint that it was made from: then every module of the base must be there too.

    """
    config = _config(folder)
    if isinstance(config, Finding):
        return [config]
    shards, findings = read_shards(folder)
    if findings:  # names and values mean nothing where the files are not whole
        return findings
    if not shards:
        return [Finding("damaged", str(folder), "no *.safetensors file there")]
    names = {name for shard in shards for name in shard.tensors}
    base_names = None if base is None else {name for shard in read_shards(base)[0] for name in shard.tensors}
    findings += missing_modules(config, names, base_names)
    findings += missing_companions(shards)
    return findings + check_values(shards, base)


def read_shards(folder: Path) -> tuple[list[Shard], list[Finding]]:
    """Headers of all weight files, and what is wrong with the files themselves."""
    index = folder / INDEX
    listed: dict[str, str] = {}
    if index.exists():
        try:
            listed = dict(json.loads(index.read_text())["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return [], [Finding("damaged", INDEX, f"cannot be read ({error!r})")]
    paths = [folder / name for name in sorted(set(listed.values()))] or sorted(folder.glob("*.safetensors"))
    shards: list[Shard] = []
    findings: list[Finding] = []
    for path in paths:
        shard = read_shard(path)
        if isinstance(shard, Finding):
            findings.append(shard)
            continue
        shards.append(shard)
        absent = [name for name, file in listed.items() if file == path.name and name not in shard.tensors]
        if absent:
            findings.append(Finding("damaged", path.name, f"lacks what {INDEX} says it has: {named(absent)}"))
    return shards, findings


def read_shard(path: Path) -> Shard | Finding:
    """The header of one safetensors file, checked against the file's size and the tensors' shapes."""
    try:
        return _shard(path)
    except FileNotFoundError:
        problem = f"is missing, but {INDEX} names it"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except _DamageError as error:
        problem = str(error)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        problem = f"its header is no safetensors header ({error!r})"
    return Finding("damaged", path.name, problem)


class _DamageError(Exception):
    """What is wrong with a file."""


def _shard(path: Path) -> Shard:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = file.read(length) if 2 <= length <= size else b""
    if not text or len(text) < length:
        raise _DamageError(f"truncated or no safetensors file: {size:,} bytes, its header needs {8 + length:,}")
    tensors = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
    expected = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    if size != expected:
        what = "truncated" if size < expected else "longer than its header says"
        raise _DamageError(f"{what}: expected {expected:,} bytes, found {size:,}")
    for name, entry in tensors.items():
        bits, (begin, end) = DTYPE_BITS.get(entry["dtype"]), entry["data_offsets"]
        if bits is not None and math.prod(entry["shape"]) * bits != (end - begin) * 8:
            raise _DamageError(f"'{name}' has {end - begin:,} bytes for {entry['dtype']} of shape {entry['shape']}")
    return Shard(path, 8 + length, tensors)


def missing_modules(config: Mapping[str, Any], names: set[str], base_names: set[str] | None) -> list[Finding]:
    """Layers and modules that the model needs and the files lack.

    What is needed: all modules of the base, else those of the Llama family, else at least every layer's index.
    """
    text = config.get("text_config") or config
    count = int(text.get("num_hidden_layers") or text.get("n_layer") or 0)
    indices: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if match := LAYER.match(name):
            indices[match["stack"]].add(int(match["index"]))
    stack = max(indices, key=lambda key: len(indices[key]), default="layers")
    absent = sorted(set(range(count)) - indices[stack])
    findings = [Finding("damaged", f"{stack}.{index}", f"no tensor of this layer, of {count}") for index in absent]
    needed = _needed(config, count, base_names)
    held = {name.rpartition(".")[0] for name in names}
    if config.get("tie_word_embeddings") or text.get("tie_word_embeddings"):
        needed = {name for name in needed if not name.endswith("lm_head")}
    missing = needed - held
    if len(missing) * 2 > len(needed):  # another naming scheme, not a checkpoint that lost most of itself
        return findings
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in sorted(missing):
        match = LAYER.match(name)
        if match is None:
            findings.append(Finding("damaged", name, "no tensor of this module in any weight file"))
        elif int(match["index"]) not in absent:
            grouped[f"{match['stack']}.{match['index']}"].append(match["rest"])
    return findings + [Finding("damaged", layer, f"lacks {named(parts)}") for layer, parts in grouped.items()]


def _needed(config: Mapping[str, Any], count: int, base_names: set[str] | None) -> set[str]:
    """Names of the modules that must be there; experts are left out, since tools store them in more than one way."""
    if base_names is not None:
        modules = {name.removesuffix(".weight") for name in base_names if name.endswith(".weight")}
        return {
            name
            for name in modules
            if ".experts." not in name and not ((match := LAYER.match(name)) and int(match["index"]) >= count)
        }
    if config.get("model_type") not in LLAMA_LIKE:
        return set()
    layers = {f"model.layers.{index}.{name}" for index in range(count) for name in LLAMA_LAYER}
    return layers | {"model.embed_tokens", "model.norm", "lm_head"}


def missing_companions(shards: Iterable[Shard]) -> list[Finding]:
    """Packed weights without the scales that belong to them."""
    names = {name for shard in shards for name in shard.tensors}
    findings = []
    for shard in shards:
        for name, entry in shard.tensors.items():
            module, _, kind = name.rpartition(".")
            for other in COMPANIONS.get(kind, ()):
                if f"{module}.{other}" not in names:
                    findings.append(Finding("damaged", shard.path.name, f"'{name}' has no '{module}.{other}'"))
            if kind == "weight" and entry["dtype"] in ("I8", "F8_E4M3", "F8_E5M2"):
                scales = (f"{module}.{scale}" for scale in ("weight_scale", "weight_scale_inv", "SCB"))
                if not any(scale in names for scale in scales):
                    findings.append(
                        Finding("damaged", shard.path.name, f"'{name}' is {entry['dtype']} but has no scale")
                    )
    return findings


def check_values(shards: Iterable[Shard], base: Path | None = None) -> list[Finding]:
    """Tensors with NaN or infinity, scales that are zero throughout, weights that are zero where the base's are not.

    Findings of one layer and kind are joined into one.
    """
    grouped: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    originals = {} if base is None else {name: shard for shard in read_shards(base)[0] for name in shard.tensors}
    for shard in shards:
        for name, entry in shard.tensors.items():
            num_nonfinite, all_zero = scan(shard, name)
            match = LAYER.match(name)
            layer = f"{match['stack']}.{match['index']}" if match else name
            if num_nonfinite:
                share = f"'{name}' ({num_nonfinite:,} of {math.prod(entry['shape']):,} values)"
                grouped[shard.path.name, layer, "not finite (NaN or infinity)"].append(share)
            elif all_zero and SCALES.search(name):
                grouped[shard.path.name, layer, "scales are zero throughout"].append(f"'{name}'")
            elif all_zero and name in originals and not scan(originals[name], name)[1]:
                grouped[shard.path.name, layer, "zero throughout, unlike the base"].append(f"'{name}'")
    return [
        Finding("damaged", f"{layer} in {file}", f"{what}: {named(names)}")
        for (file, layer, what), names in grouped.items()
    ]


def scan(shard: Shard, name: str) -> tuple[int, bool]:
    """Number of non-finite values of a tensor, and whether all its values are zero (False for an empty one)."""
    entry = shard.tensors[name]
    raw = {8: "u1", 16: "<u2", 32: "<u4", 64: "<u8"}.get(DTYPE_BITS.get(entry["dtype"], 0))
    begin, end = entry["data_offsets"]
    if raw is None or end == begin:
        return 0, False
    dtype = np.dtype(raw)
    values = np.memmap(shard.path, dtype, "r", shard.data_start + begin, ((end - begin) // dtype.itemsize,))
    test = NONFINITE.get(entry["dtype"])
    if test is None and not SCALES.search(name):
        return 0, False  # integers: any value is a legal one
    num_nonfinite, all_zero = 0, True
    unsigned = entry["dtype"].startswith("U") or entry["dtype"] == "F8_E8M0"
    value_bits = (1 << (8 * dtype.itemsize - (0 if unsigned else 1))) - 1  # minus zero is zero
    for start in range(0, len(values), CHUNK_ELEMENTS):
        chunk = np.asarray(values[start : start + CHUNK_ELEMENTS])
        num_nonfinite += int(np.count_nonzero(test(chunk))) if test is not None else 0
        all_zero = all_zero and not bool(np.any(chunk & dtype.type(value_bits)))
    return num_nonfinite, all_zero


def _exponent_full(mask: int) -> Callable[[Bits], NDArray[np.bool_]]:
    """Test of raw bits: IEEE 754 values with every exponent bit set are NaN or infinite."""

    def test(bits: Bits) -> NDArray[np.bool_]:
        wide = bits.dtype.type(mask)
        return np.asarray((bits & wide) == wide)

    return test


NONFINITE = {
    "F64": _exponent_full(0x7FF0000000000000),
    "F32": _exponent_full(0x7F800000),
    "F16": _exponent_full(0x7C00),
    "BF16": _exponent_full(0x7F80),
    "F8_E5M2": _exponent_full(0x7C),
    "F8_E4M3": _exponent_full(0x7F),  # its only NaN; the format has no infinity (OCP 8-bit floating point)
    "F8_E8M0": _exponent_full(0xFF),
}


def files_of_layers(folder: Path) -> dict[str, str]:
    """Layer (`model.layers.7`) -> the weight files that hold it."""
    files: dict[str, set[str]] = defaultdict(set)
    for shard in read_shards(folder)[0]:
        for name in shard.tensors:
            if match := LAYER.match(name):
                files[f"{match['stack']}.{match['index']}"].add(shard.path.name)
    return {layer: ", ".join(sorted(names)) for layer, names in files.items()}


def _config(folder: Path) -> dict[str, Any] | Finding:
    if not folder.is_dir():
        raise ConfigError(f"checkpoint {folder}: no such folder; give a checkpoint in Hugging Face form")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        return Finding("damaged", "config.json", f"cannot be read ({error})")
    return config if isinstance(config, dict) else Finding("damaged", "config.json", "is no JSON object")


def named(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest
