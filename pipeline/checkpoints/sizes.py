"""Sizes measured from safetensors headers: bytes by part and bits per weight by group of layers. No weights are read.

Bits per weight = 8 x all bytes of a group in the compressed checkpoint (weights, scales, zero points, biases) / number
of the base's parameters in that group. So 4-bit weights with 16-bit scales in groups of 64 show as 4.25 bits, and an
8B model's "INT4" shows what its 16-bit head and embeddings cost.

Names that are understood: compressed-tensors (weight_packed, weight_scale, weight_zero_point, weight_shape, ...), GPTQ
(qweight, qzeros, scales, g_idx), AWQ GEMM (qweight, qzeros, scales), bitsandbytes (weight with absmax, quant_map,
quant_state or SCB beside it), and plain 16 or 32 bit.

`parsimony inspect` prints the report.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import AssetError
from core.files import read_json
from pipeline.checkpoints.facts import tensor_headers

GROUPS = ("attention", "mlp", "embeddings", "lm_head", "norms", "other")
BITS_16 = ("F16", "BF16")
BITS_32 = ("F32",)
BITS_8_AND_LESS = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4")
"""Types of quantized weights; I32 has packed ones."""
PACKED = ("weight_packed", "qweight")
SIDE = re.compile(
    r"(?:^|\.)(?:weight_(?:scale|zero_point|shape|g_idx|global_scale|scale_inv|scale_2)"
    r"|(?:input|output|[qkv])_(?:scale|zero_point|global_scale)|qzeros|\w*scales|g_idx|SCB|weight_format"
    r"|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*))$"
)
"""What stands beside a quantized weight so that it can be read: scales, zero points, orders, shapes, tables."""
COMPONENT_GROUPS = (
    ("norms", re.compile(r"(?:^|_)(?:layer|rms)?norm\d*(?:_|$)|^ln(?:_|\d|$)")),
    ("lm_head", re.compile(r"^(?:lm_head|embed_out)$")),
    ("embeddings", re.compile(r"embed|^wte$|^wpe$")),
    ("attention", re.compile(r"attn|attention|^[qkvo]_proj$|^qkv_proj$")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|expert|moe|^(?:gate|up|down|gate_up)_proj$|^fc\d$")),
)
"""In this order, so that `self_attn.q_norm` is a norm; matched against each component of a tensor's name."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, as its file's header tells."""

    dtype: str
    """As safetensors writes it: BF16, F32, I8, I32, U8, F8_E4M3, ..."""
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Number of stored elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GroupSize:
    """One group of layers."""

    name: str
    num_bytes: int
    num_parameters: int | None
    """Parameters of the base in this group; None without a base."""
    bits_per_weight: float | None
    """None where there is no base, or no parameter in this group."""


@dataclass(frozen=True)
class SizeReport:
    """What a checkpoint's bytes are spent on. The five parts and the headers add up to `num_bytes`."""

    num_bytes: int
    """Bytes of the weight files."""
    base_bytes: int | None
    """Bytes of the base's weight files."""
    quantized_bytes: int
    scale_bytes: int
    """Scales, zero points and what else is needed to read quantized weights."""
    bits16_bytes: int
    bits32_bytes: int
    other_bytes: int
    """Tensors of any other type, such as integer buffers."""
    header_bytes: int
    """The files' own headers."""
    num_parameters: int | None
    """Stored parameters of the base; tied embeddings count once."""
    bits_per_weight: float | None
    """8 x tensor bytes / parameters."""
    groups: tuple[GroupSize, ...]
    """The groups that this checkpoint or its base has."""
    kept_16_bit: tuple[str, ...]
    """Modules whose weight matrix stayed in 16 bit; vectors (norms, biases) are not listed."""
    kept_32_bit: tuple[str, ...]
    """Modules whose weight matrix is in 32 bit."""
    tied_lm_head: bool
    """The head shares the embedding matrix and has no bytes of its own."""

    def metrics(self) -> dict[str, float]:
        """The report under its public metric names; what is not known is left out, never 0."""
        found = {"size/bytes": float(self.num_bytes)}
        if self.base_bytes is not None:
            found["size/ratio"] = self.base_bytes / self.num_bytes
        if self.bits_per_weight is not None:
            found["size/bits_per_weight"] = self.bits_per_weight
        for group in self.groups:
            if group.bits_per_weight is not None:
                found[f"size/bits_per_weight/{group.name}"] = group.bits_per_weight
        return found


def read_headers(folder: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of a checkpoint folder, and the bytes of its weight files.

    With an index (`model.safetensors.index.json`) its files count, else `model.safetensors`, else all `*.safetensors`.

    Raises:
        AssetError: there are no weights, a shard is absent, or a file is not as long as its header says.

    """
    tensors: dict[str, Tensor] = {}
    num_bytes = 0
    for path in weight_files(folder):
        size = path.stat().st_size
        try:
            headers = tensor_headers(path)
            with path.open("rb") as file:
                end = 8 + struct.unpack("<Q", file.read(8))[0]
            end += max((header["data_offsets"][1] for header in headers.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
            raise AssetError(
                f"{path} is not a whole safetensors file ({type(error).__name__}): make it again"
            ) from error
        if size != end:
            raise AssetError(f"{path} has {size} bytes, its header says {end}: cut short or changed; make it again")
        for name, header in headers.items():
            begin, stop = header["data_offsets"]
            tensors[name] = Tensor(str(header["dtype"]), tuple(header["shape"]), stop - begin)
        num_bytes += size
    return tensors, num_bytes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint.

    Raises:
        AssetError: there are none, or one that the index names is absent.

    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        absent = [path.name for path in files if not path.is_file()]
        if absent:
            raise AssetError(f"{folder}: {index.name} names files that are not there: {', '.join(absent)}")
        return files
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise AssetError(f"{folder}: no *.safetensors there")
    return files


def size_report_of(artifact: Path, base: Path | None) -> SizeReport:
    """The report of an artifact folder, beside its base's folder where there is one."""
    config = artifact / "config.json"
    tied = bool(read_json(config).get("tie_word_embeddings", False)) if config.is_file() else False
    return size_report(*read_headers(artifact), *((None, None) if base is None else read_headers(base)), tied=tied)


def size_report(
    tensors: Mapping[str, Tensor],
    num_bytes: int,
    base: Mapping[str, Tensor] | None,
    base_bytes: int | None,
    *,
    tied: bool,
) -> SizeReport:
    """Sort a checkpoint's bytes by part and by group. Pure.

    Args:
        tensors: the checkpoint's tensors.
        num_bytes: bytes of its weight files.
        base: the tensors of the 16-bit checkpoint it was made from; None where that is not known.
        base_bytes: bytes of the base's weight files.
        tied: whether its config.json ties the head to the embeddings.

    """
    parts = Counter({"quantized": 0, "scales": 0, "bits16": 0, "bits32": 0, "other": 0})
    by_group: Counter[str] = Counter()
    kept: dict[str, list[str]] = {"bits16": [], "bits32": []}
    for name, tensor in tensors.items():
        part = part_of(name, tensor)
        parts[part] += tensor.num_bytes
        by_group[group_of(name)] += tensor.num_bytes
        if part in kept and len(tensor.shape) > 1:
            kept[part].append(name.removesuffix(".weight"))
    tensor_bytes = sum(parts.values())
    count = None if base is None else sum(tensor.num_elements for tensor in base.values())
    return SizeReport(
        num_bytes=num_bytes,
        base_bytes=base_bytes,
        quantized_bytes=parts["quantized"],
        scale_bytes=parts["scales"],
        bits16_bytes=parts["bits16"],
        bits32_bytes=parts["bits32"],
        other_bytes=parts["other"],
        header_bytes=num_bytes - tensor_bytes,
        num_parameters=count,
        bits_per_weight=None if not count else 8 * tensor_bytes / count,
        groups=_groups(by_group, base),
        kept_16_bit=tuple(sorted(kept["bits16"], key=natural)),
        kept_32_bit=tuple(sorted(kept["bits32"], key=natural)),
        tied_lm_head=tied and not by_group["lm_head"],
    )


def _groups(by_group: Mapping[str, int], base: Mapping[str, Tensor] | None) -> tuple[GroupSize, ...]:
    parameters: Counter[str] = Counter()
    for name, tensor in (base or {}).items():
        parameters[group_of(name)] += tensor.num_elements
    if by_group.get("lm_head") and not parameters["lm_head"]:
        # The base ties its head, this checkpoint stores one of its own: it stands for the same matrix again.
        parameters["lm_head"] = max((t.num_elements for n, t in (base or {}).items() if _is_embedding(n, t)), default=0)
    found = []
    for name in GROUPS:
        stored, count = by_group.get(name, 0), parameters[name]
        if stored or count:
            known = None if base is None else count
            # An absent head is tied: it costs nothing here, and the embeddings' own line carries the bytes.
            bits = None if not count or (not stored and name == "lm_head") else 8 * stored / count
            found.append(GroupSize(name, stored, known, bits))
    return tuple(found)


def _is_embedding(name: str, tensor: Tensor) -> bool:
    return group_of(name) == "embeddings" and len(tensor.shape) == 2


def part_of(name: str, tensor: Tensor) -> str:
    """`quantized`, `scales`, `bits16`, `bits32` or `other`: what a tensor's bytes are spent on."""
    if SIDE.search(name):
        return "scales"
    if name.rpartition(".")[2] in PACKED:
        return "quantized"
    if tensor.dtype in BITS_16:
        return "bits16"
    if tensor.dtype in BITS_32:
        return "bits32"
    is_weight = name.rpartition(".")[2] == "weight" or len(tensor.shape) > 1
    return "quantized" if is_weight and tensor.dtype in BITS_8_AND_LESS else "other"


def group_of(name: str) -> str:
    """The group of layers that a tensor belongs to, by its name.

    >>> group_of("model.layers.3.self_attn.q_proj.weight_packed"), group_of("model.layers.3.self_attn.q_norm.weight")
    ('attention', 'norms')
    >>> group_of("transformer.wte.weight"), group_of("model.layers.0.mlp.experts.1.up_proj.qweight")
    ('embeddings', 'mlp')
    """
    components = name.split(".")
    for group, pattern in COMPONENT_GROUPS:
        if any(pattern.search(component) for component in components):
            return group
    return "other"


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which layer 10 follows layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def collapse(names: Sequence[str]) -> list[str]:
    """Module names with their layer numbers gathered, for a reader.

    >>> collapse(["lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.3.mlp.up_proj"])
    ['lm_head', 'model.layers.{0-1,3}.mlp.up_proj']
    """
    gathered: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        gathered.setdefault(pattern, []).extend([] if number is None else [int(number[0])])
    shown = {
        pattern: ranges(found) if len(found) < 2 else f"{{{ranges(found)}}}" for pattern, found in gathered.items()
    }
    return [pattern.replace("{}", numbers) for pattern, numbers in shown.items()]


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as ranges.

    >>> ranges([5, 0, 1, 2])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
