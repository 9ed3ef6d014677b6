import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import AssetError
from pipeline.checkpoints.sizes import Tensor, collapse, group_of, read_headers, size_report, size_report_of

BYTES = {"F16": 2, "BF16": 2, "F32": 4, "I8": 1, "U8": 1, "I32": 4, "I64": 8, "F8_E4M3": 1}
HIDDEN, WIDE, VOCABULARY, LAYERS = 128, 256, 512, 2
LINEARS = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
ATTENTION = LAYERS * 4 * HIDDEN * HIDDEN
MLP = LAYERS * 3 * HIDDEN * WIDE


def tensor(dtype: str, *shape: int) -> Tensor:
    return Tensor(dtype, shape, BYTES[dtype] * math.prod(shape))


def around(dtype: str = "BF16", *, head: bool = False) -> dict[str, Tensor]:
    """What is never quantized: embeddings, norms, perhaps a head."""
    found = {"model.embed_tokens.weight": tensor(dtype, VOCABULARY, HIDDEN), "model.norm.weight": tensor(dtype, HIDDEN)}
    for layer in range(LAYERS):
        found[f"model.layers.{layer}.input_layernorm.weight"] = tensor(dtype, HIDDEN)
        found[f"model.layers.{layer}.self_attn.q_norm.weight"] = tensor(dtype, HIDDEN)
    if head:
        found["lm_head.weight"] = tensor(dtype, VOCABULARY, HIDDEN)
    return found


def model(quantized, **kwargs) -> dict[str, Tensor]:
    """A checkpoint whose linear layers are written by `quantized(name, rows, columns)`."""
    found = around(**kwargs)
    for layer in range(LAYERS):
        for name, (rows, columns) in LINEARS.items():
            found |= quantized(f"model.layers.{layer}.{name}", rows, columns)
    return found


def plain(name, rows, columns):
    return {f"{name}.weight": tensor("BF16", rows, columns)}


def int8(name, rows, columns):
    return {f"{name}.weight": tensor("I8", rows, columns), f"{name}.weight_scale": tensor("F32", rows, 1)}


def packed(name, rows, columns, group=64):
    return {
        f"{name}.weight_packed": tensor("I32", rows, columns // 8),
        f"{name}.weight_scale": tensor("BF16", rows, columns // group),
        f"{name}.weight_zero_point": tensor("I32", rows // 8, columns // group),
        f"{name}.weight_shape": tensor("I64", 2),
    }


def gptq(name, rows, columns, group=64):
    return {
        f"{name}.qweight": tensor("I32", columns // 8, rows),
        f"{name}.qzeros": tensor("I32", columns // group, rows // 8),
        f"{name}.scales": tensor("F16", columns // group, rows),
        f"{name}.g_idx": tensor("I32", columns),
    }


def awq(name, rows, columns, group=64):
    return {
        f"{name}.qweight": tensor("I32", columns, rows // 8),
        f"{name}.qzeros": tensor("I32", columns // group, rows // 8),
        f"{name}.scales": tensor("F16", columns // group, rows),
    }


def nf4(name, rows, columns):
    return {
        f"{name}.weight": tensor("U8", rows * columns // 2, 1),
        f"{name}.weight.absmax": tensor("U8", rows * columns // 64),
        f"{name}.weight.nested_absmax": tensor("F32", max(1, rows * columns // 64 // 256)),
        f"{name}.weight.nested_quant_map": tensor("F32", 256),
        f"{name}.weight.quant_map": tensor("F32", 16),
        f"{name}.weight.quant_state.bitsandbytes__nf4": tensor("U8", 80),
    }


def llm_int8(name, rows, columns):
    return {
        f"{name}.weight": tensor("I8", rows, columns),
        f"{name}.SCB": tensor("F32", rows),
        f"{name}.weight_format": tensor("U8"),
    }


def fp8(name, rows, columns):
    return {f"{name}.weight": tensor("F8_E4M3", rows, columns), f"{name}.weight_scale": tensor("BF16", rows, 1)}


FORMATS = {
    "int8": (int8, 8),
    "packed": (packed, 4),
    "gptq": (gptq, 4),
    "awq": (awq, 4),
    "nf4": (nf4, 4),
    "llm_int8": (llm_int8, 8),
    "fp8": (fp8, 8),
}


def report_of(tensors, base=None, *, tied=True):
    base = model(plain) if base is None else base
    total = sum(one.num_bytes for one in tensors.values())
    return size_report(tensors, total + 1000, base, sum(one.num_bytes for one in base.values()), tied=tied)


def bits_of(report) -> dict[str, float | None]:
    return {group.name: group.bits_per_weight for group in report.groups}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_splits_into_weights_scales_and_16_bit(name: str) -> None:
    quantized, bits = FORMATS[name]
    report = report_of(model(quantized))
    assert report.quantized_bytes == (ATTENTION + MLP) * bits // 8
    assert report.bits16_bytes == sum(one.num_bytes for one in around().values())
    assert report.bits32_bytes == report.other_bytes == 0
    assert report.scale_bytes > 0
    assert report.kept_16_bit == ("model.embed_tokens",)
    found = bits_of(report)
    assert bits < found["attention"] < bits * 1.2
    assert bits < found["mlp"] < bits * 1.2
    assert found["embeddings"] == found["norms"] == 16


def test_bits_per_weight_by_hand() -> None:
    # 4 bits, and per 64 columns a 16-bit scale and a 4-bit zero point; two 64-bit shape entries per layer
    expected = 4 + (16 + 4) / 64
    found = bits_of(report_of(model(packed)))
    assert found["attention"] == pytest.approx(expected + 128 / (HIDDEN * HIDDEN))
    assert found["mlp"] == pytest.approx(expected + 128 / (HIDDEN * WIDE))
    assert bits_of(report_of(model(awq)))["mlp"] == pytest.approx(expected)


def test_a_plain_checkpoint_is_16_bit_everywhere() -> None:
    report = report_of(model(plain, head=True), model(plain, head=True), tied=False)
    assert set(bits_of(report).values()) == {16.0}
    assert report.bits_per_weight == 16
    assert report.quantized_bytes == report.scale_bytes == 0
    assert not report.tied_lm_head
    assert "lm_head" in report.kept_16_bit
    assert "model.layers.1.mlp.down_proj" in report.kept_16_bit


def test_a_tied_head_has_no_bytes_and_no_bits() -> None:
    report = report_of(model(int8))
    assert report.tied_lm_head
    assert "lm_head" not in bits_of(report)
    duplicated = report_of(model(int8), model(plain, head=True))
    assert bits_of(duplicated)["lm_head"] is None
    assert "size/bits_per_weight/lm_head" not in duplicated.metrics()


def test_a_head_that_the_base_ties_stands_for_the_embedding_matrix() -> None:
    tensors = model(int8) | int8("lm_head", VOCABULARY, HIDDEN)
    report = report_of(tensors)
    assert not report.tied_lm_head
    assert bits_of(report)["lm_head"] == pytest.approx(8 + 32 / HIDDEN)


def test_without_a_base_nothing_is_claimed_per_weight() -> None:
    tensors = model(gptq)
    report = size_report(tensors, 10**6, None, None, tied=True)
    assert report.bits_per_weight is None
    assert report.num_parameters is None
    assert all(group.bits_per_weight is None and group.num_parameters is None for group in report.groups)
    assert report.metrics() == {"size/bytes": 1e6}


def test_metric_names() -> None:
    report = report_of(model(int8))
    assert set(report.metrics()) == {
        "size/bytes",
        "size/ratio",
        "size/bits_per_weight",
        "size/bits_per_weight/attention",
        "size/bits_per_weight/mlp",
        "size/bits_per_weight/embeddings",
        "size/bits_per_weight/norms",
    }
    assert report.metrics()["size/ratio"] == report.base_bytes / report.num_bytes > 1


def test_a_skipped_layer_and_a_32_bit_one_are_named() -> None:
    tensors = model(int8)
    del tensors["model.layers.1.mlp.down_proj.weight_scale"]
    tensors["model.layers.1.mlp.down_proj.weight"] = tensor("BF16", HIDDEN, WIDE)
    tensors["model.layers.0.mlp.gate.weight"] = tensor("F32", 8, HIDDEN)
    tensors["model.layers.0.self_attn.k_scale"] = tensor("F32")
    tensors["model.position_ids"] = tensor("I64", 1, 64)
    report = report_of(tensors)
    assert report.kept_16_bit == ("model.embed_tokens", "model.layers.1.mlp.down_proj")
    assert report.kept_32_bit == ("model.layers.0.mlp.gate",)
    assert report.other_bytes == 512


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.layers.0.post_attention_layernorm.weight", "norms"),
        ("model.decoder.layers.0.self_attn_layer_norm.weight", "norms"),
        ("transformer.h.0.ln_1.weight", "norms"),
        ("transformer.h.0.attn.c_attn.weight", "attention"),
        ("transformer.h.0.mlp.c_fc.weight", "mlp"),
        ("model.decoder.embed_positions.weight", "embeddings"),
        ("model.decoder.layers.0.fc1.weight", "mlp"),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", "mlp"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", "attention"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "mlp"),
        ("embed_out.weight", "lm_head"),
        ("lm_head.weight_packed", "lm_head"),
        ("model.layers.0.mixer.A_log", "other"),
    ],
)
def test_groups_of_common_names(name: str, group: str) -> None:
    assert group_of(name) == group


@given(
    st.sampled_from([quantized for quantized, _ in FORMATS.values()] + [plain]),
    st.integers(0, LAYERS * len(LINEARS)),
    st.booleans(),
)
def test_parts_and_groups_always_add_up(quantized, num_plain: int, head: bool) -> None:
    calls = iter(range(10**6))

    def mixed(name, rows, columns):
        return (plain if next(calls) < num_plain else quantized)(name, rows, columns)

    tensors = model(mixed, head=head)
    report = report_of(tensors, model(plain, head=head), tied=not head)
    parts = (report.quantized_bytes, report.scale_bytes, report.bits16_bytes, report.bits32_bytes, report.other_bytes)
    assert sum(parts) + report.header_bytes == report.num_bytes
    assert sum(group.num_bytes for group in report.groups) == sum(parts)
    assert sum(group.num_parameters for group in report.groups) == report.num_parameters
    mean = sum(group.bits_per_weight * group.num_parameters for group in report.groups) / report.num_parameters
    assert report.bits_per_weight == pytest.approx(mean)
    whole = {f"model.layers.{number // len(LINEARS)}" for number in range(num_plain)}
    assert all(any(name.startswith(layer) for name in report.kept_16_bit) for layer in whole)


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file with the right header and zeros behind it."""
    header, begin = {}, 0
    for name, one in tensors.items():
        header[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [begin, begin + one.num_bytes]}
        begin += one.num_bytes
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(begin))


def test_folders_are_read_with_their_index(tmp_path: Path) -> None:
    tensors = list(model(int8).items())
    shards = {"model-1-of-2.safetensors": dict(tensors[:9]), "model-2-of-2.safetensors": dict(tensors[9:])}
    for name, part in shards.items():
        write_shard(tmp_path / name, part)
    write_shard(tmp_path / "consolidated.safetensors", dict(tensors))
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    found, num_bytes = read_headers(tmp_path)
    assert found == dict(tensors)
    assert num_bytes == sum((tmp_path / name).stat().st_size for name in shards)
    assert size_report_of(tmp_path, None).tied_lm_head
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(AssetError, match=r"not there: model-2-of-2\.safetensors"):
        read_headers(tmp_path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_shard(path, around())
    whole = path.read_bytes()
    for length in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(AssetError, match=r"model\.safetensors"):
            read_headers(tmp_path)
    path.unlink()
    with pytest.raises(AssetError, match="no \\*"):
        read_headers(tmp_path)


def test_layer_numbers_are_gathered() -> None:
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1, 2, 5)] + ["lm_head"]
    names.append("model.layers.7.mlp.down_proj")
    assert collapse(names) == ["model.layers.{0-2,5}.mlp.up_proj", "lm_head", "model.layers.7.mlp.down_proj"]
