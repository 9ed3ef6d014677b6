"""Health of a compressed checkpoint, on files of a few bytes and figures of no model: no torch."""

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.environments import ROOT
from core.errors import ConfigError, UserError
from core.files import plain
from pipeline.checkpoints import structure
from pipeline.checkpoints.structure import Finding, check_structure, files_of_layers
from pipeline.cli import inspect
from pipeline.health.compare import compare_logits, log_softmax, token_errors, typical
from pipeline.health.health import read_tokens, why_not_loadable
from pipeline.health.report import (
    DAMAGED,
    MEASURED,
    NOT_CHECKED,
    HealthError,
    HealthLimits,
    HealthReport,
    LayerHealth,
    judge,
    report_from,
    require_healthy,
)

NUMPY = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "I32": np.int32, "BF16": np.uint16, "F8_E4M3": np.uint8}
MODULES = structure.LLAMA_LAYER


def write_shard(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, values) in tensors.items():
        raw = values.astype(NUMPY[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def packed(module: str) -> dict[str, tuple[str, np.ndarray]]:
    return {
        f"{module}.weight_packed": ("I32", np.zeros((4, 1))),
        f"{module}.weight_scale": ("F32", np.full((4, 2), 0.5)),
        f"{module}.weight_shape": ("I32", np.array([4, 8])),
    }


def tensors_of(num_layers: int, *, quantized: bool) -> dict[str, tuple[str, np.ndarray]]:
    tensors = {name: ("BF16", np.full(4, 0x3F80)) for name in ("model.embed_tokens.weight", "model.norm.weight")}
    for index in range(num_layers):
        for module in MODULES:
            name = f"model.layers.{index}.{module}"
            linear = "layernorm" not in module
            tensors |= packed(name) if quantized and linear else {f"{name}.weight": ("F16", np.ones((4, 8)))}
    return tensors


def checkpoint(
    folder: Path, tensors: dict[str, tuple[str, np.ndarray]], *, num_shards: int = 2, num_layers: int = 3, **config
) -> Path:
    folder.mkdir(parents=True)
    settings = {"model_type": "llama", "num_hidden_layers": num_layers, "tie_word_embeddings": True, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    if num_shards == 1:
        write_shard(folder / "model.safetensors", tensors)
        return folder
    names, weight_map = list(tensors), {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        write_shard(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    (folder / structure.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "base", tensors_of(3, quantized=False), num_shards=1)


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_a_whole_checkpoint_has_no_findings(tmp_path: Path, base: Path, num_shards: int) -> None:
    folder = checkpoint(tmp_path / "candidate", tensors_of(3, quantized=True), num_shards=num_shards)
    assert check_structure(folder, base) == []
    assert check_structure(folder) == []
    assert files_of_layers(folder).keys() == {f"model.layers.{index}" for index in range(3)}


@given(cut=st.integers(1, 10_000))
def test_every_truncation_is_found_with_its_file_and_bytes(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = checkpoint(tmp_path_factory.mktemp("cut") / "candidate", tensors_of(3, quantized=True))
    file = folder / "model-00002-of-00002.safetensors"
    content = file.read_bytes()
    left = max(0, len(content) - cut)
    file.write_bytes(content[:left])
    (found,) = check_structure(folder)
    assert found.where == file.name
    assert found.kind == "damaged"
    assert "truncated" in found.message
    assert f"{left:,}" in found.message
    if "expected" in found.message:
        assert f"{len(content):,}" in found.message


def test_trailing_bytes_a_missing_shard_and_a_wrong_index_are_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "candidate", tensors_of(3, quantized=True), num_shards=3)
    first, second, third = sorted(folder.glob("*.safetensors"))
    first.write_bytes(first.read_bytes() + b"x")
    second.unlink()
    write_shard(third, {"model.norm.weight": ("F16", np.ones(4))})
    longer, missing, lacks = check_structure(folder)
    assert "longer" in longer.message
    assert missing.where == second.name
    assert "missing" in missing.message
    assert structure.INDEX in missing.message
    assert lacks.where == third.name
    assert "more" in lacks.message


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", struct.pack("<Q", 2**62), struct.pack("<Q", 4) + b"[1]]", struct.pack("<Q", 9) + b'{"a": {}}'],
)
def test_what_is_no_safetensors_file_is_found(tmp_path: Path, content: bytes) -> None:
    folder = checkpoint(tmp_path / "candidate", tensors_of(1, quantized=True), num_shards=1, num_layers=1)
    (folder / "model.safetensors").write_bytes(content)
    (found,) = check_structure(folder)
    assert found.where == "model.safetensors"


def test_a_shape_that_does_not_fit_its_bytes_is_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "candidate", tensors_of(3, quantized=True), num_shards=1)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape": [4, 2]', b'"shape": [4, 9]', 1))
    assert "for F32 of shape [4, 9]" in check_structure(folder)[0].message


def test_missing_layers_and_modules_are_named(tmp_path: Path, base: Path) -> None:
    tensors = tensors_of(3, quantized=True)
    kept = {
        name: value
        for name, value in tensors.items()
        if not name.startswith("model.layers.1.") and "layers.2.mlp.up_proj" not in name and "model.norm" not in name
    }
    folder = checkpoint(tmp_path / "candidate", kept)
    for found in (check_structure(folder, base), check_structure(folder)):
        assert [item.where for item in found] == ["model.layers.1", "model.norm", "model.layers.2"]
        assert "mlp.up_proj" in found[2].message


def test_a_tied_head_may_be_absent_and_an_untied_one_may_not(tmp_path: Path) -> None:
    tensors = tensors_of(3, quantized=True)
    assert not check_structure(checkpoint(tmp_path / "tied", tensors))
    (found,) = check_structure(checkpoint(tmp_path / "untied", tensors, tie_word_embeddings=False))
    assert found.where == "lm_head"


def test_a_candidate_with_fewer_layers_or_other_names_is_not_called_incomplete(tmp_path: Path, base: Path) -> None:
    assert not check_structure(checkpoint(tmp_path / "short", tensors_of(2, quantized=True), num_layers=2), base)
    renamed = {f"language_model.{name}": value for name, value in tensors_of(3, quantized=True).items()}
    assert not check_structure(checkpoint(tmp_path / "renamed", renamed), base)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("mlp.up_proj.weight_scale", ("F32", np.array([[1.0, np.nan], [1, 1], [1, np.inf], [1, 1]])), "2 of 8 values"),
        ("mlp.up_proj.weight_scale", ("BF16", np.full((4, 2), 0x7FC0)), "8 of 8 values"),
        ("mlp.up_proj.weight_scale", ("F16", np.array([[-np.inf, 1]] * 4)), "4 of 8 values"),
        ("mlp.up_proj.weight_scale", ("F8_E4M3", np.array([[0xFF, 0x7E]] * 4)), "4 of 8 values"),
        ("mlp.up_proj.weight_scale", ("F32", np.full((4, 2), -0.0)), "scales are zero throughout"),
        ("input_layernorm.weight", ("F16", np.zeros((4, 8))), "zero throughout, unlike the base"),
    ],
)
def test_bad_values_are_named_with_layer_and_file(tmp_path: Path, base: Path, name, value, expected) -> None:
    tensors = tensors_of(3, quantized=True)
    tensors[f"model.layers.1.{name}"] = value
    folder = checkpoint(tmp_path / "candidate", tensors)
    (found,) = check_structure(folder, base)
    file = json.loads((folder / structure.INDEX).read_text())["weight_map"][f"model.layers.1.{name}"]
    assert found.where == f"model.layers.1 in {file}"
    assert expected in found.message
    assert name in found.message


def test_integers_and_zeros_that_the_base_has_too_are_no_damage(tmp_path: Path) -> None:
    tensors = tensors_of(3, quantized=False)
    tensors["model.norm.weight"] = ("F16", np.zeros(4))
    base = checkpoint(tmp_path / "base", tensors)
    candidate = tensors_of(3, quantized=True) | {"model.norm.weight": tensors["model.norm.weight"]}
    candidate["model.layers.0.mlp.up_proj.weight_packed"] = ("I32", np.full((4, 1), -1))  # NaN's bits in a float
    assert check_structure(checkpoint(tmp_path / "candidate", candidate), base) == []


def test_packed_weights_need_their_scales(tmp_path: Path) -> None:
    tensors = tensors_of(3, quantized=True)
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    tensors["model.layers.1.mlp.up_proj.weight"] = ("I8", np.ones((4, 8)))
    for name in ("weight_packed", "weight_scale", "weight_shape"):
        del tensors[f"model.layers.1.mlp.up_proj.{name}"]
    messages = [item.message for item in check_structure(checkpoint(tmp_path / "candidate", tensors))]
    assert len(messages) == 2
    assert any("has no 'model.layers.0.mlp.up_proj.weight_scale'" in message for message in messages)
    assert any("is I8 but has no scale" in message for message in messages)


def test_a_folder_that_is_none_and_a_broken_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        check_structure(tmp_path / "nothing")
    folder = checkpoint(tmp_path / "candidate", tensors_of(1, quantized=True), num_layers=1)
    (folder / "config.json").write_text("{")
    assert check_structure(folder)[0].where == "config.json"
    for path in folder.glob("*"):
        path.unlink()
    (folder / "config.json").write_text("{}")
    assert "no *.safetensors" in check_structure(folder)[0].message


def healthy_report(**changes) -> HealthReport:
    layers = tuple(LayerHealth(f"model.layers.{index}", 0.1) for index in range(4))
    report = HealthReport(
        MEASURED,
        num_tokens=384,
        mean_kl_nats=0.05,
        top1_agreement=0.9,
        base_nll_nats=3.0,
        nll_nats=3.05,
        num_nonfinite_logits=0,
        embedding_error=0.0,
        head_error=0.0,
        layers=layers,
        layer_files={f"model.layers.{index}": "model.safetensors" for index in range(4)},
    )
    return dataclasses.replace(report, **changes)


def test_a_healthy_report_passes_and_survives_json() -> None:
    report = healthy_report()
    assert judge(report, HealthLimits()) == []
    require_healthy(report)
    assert report_from(json.loads(json.dumps(plain(report)))) == report
    assert report.metrics()["health/worst_local_error"] == 0.1
    assert report.perplexity_ratio == pytest.approx(np.exp(0.05))
    assert "model.layers.0" in report.line()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean_kl_nats": 5.0}, ["KL", "5", "max_mean_kl_nats"]),
        ({"top1_agreement": 0.1}, ["top-1", "0.1", "min_top1_agreement"]),
        ({"nll_nats": 9.0}, ["perplexity", "403", "max_perplexity_ratio"]),
        ({"mean_kl_nats": None}, ["KL", "could not be measured"]),
        ({"mean_kl_nats": float("nan")}, ["KL", "nan"]),
        ({"embedding_error": 0.9}, ["embeddings", "0.9"]),
        ({"head_error": 0.9}, ["head", "0.9"]),
        ({"num_nonfinite_logits": 1234, "mean_kl_nats": None}, ["1,234 logits are NaN"]),
    ],
)
def test_each_limit_stops_alone(change: dict, words: list[str]) -> None:
    with pytest.raises(HealthError) as caught:
        require_healthy(healthy_report(**change), folder="/made/here")
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == 2
    assert len(caught.value.findings) == 1
    for word in [*words, "/made/here", "->"]:
        assert word in str(caught.value)


def test_ties_broken_otherwise_do_not_stop() -> None:
    assert judge(healthy_report(mean_kl_nats=0.001, top1_agreement=0.1), HealthLimits()) == []
    assert judge(healthy_report(mean_kl_nats=0.1, top1_agreement=0.1), HealthLimits()) != []


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (LayerHealth("model.layers.2", 1.0), ["1 of the base's size", "max_local_error"]),
        (LayerHealth("model.layers.2", None), ["not finite"]),
        (LayerHealth("model.layers.2", 1.4, "model.layers.3", 0.08), ["the base's model.layers.3 does", "swapped"]),
    ],
)
def test_a_bad_layer_is_named_with_its_file(layer: LayerHealth, words: list[str]) -> None:
    layers = (LayerHealth("model.layers.0", 0.1), LayerHealth("model.layers.1", 0.2), layer)
    (found,) = judge(healthy_report(layers=layers, layer_files={layer.name: "model-2.safetensors"}), HealthLimits())
    assert found.where == "model.layers.2 in model-2.safetensors"
    for word in words:
        assert word in found.message
    assert healthy_report(layers=layers).worst_layer == layer


def test_a_rotated_residual_stream_is_judged_as_a_whole() -> None:
    layers = tuple(LayerHealth(f"model.layers.{index}", 1.4) for index in range(4))
    turned = healthy_report(embedding_error=1.4, layers=layers)
    assert judge(turned, HealthLimits()) == []
    assert judge(dataclasses.replace(turned, mean_kl_nats=5.0), HealthLimits())
    assert judge(dataclasses.replace(turned, layers=(*layers, LayerHealth("model.layers.4", 0.1))), HealthLimits())


@given(
    kl=st.floats(0, 10),
    agreement=st.floats(0, 1),
    nll=st.floats(0, 20),
    error=st.floats(0, 3),
    easier=st.floats(1, 4),
)
def test_looser_limits_never_add_findings(kl: float, agreement: float, nll: float, error: float, easier: float) -> None:
    layers = (LayerHealth("model.layers.0", error), LayerHealth("model.layers.1", 0.1))
    report = healthy_report(mean_kl_nats=kl, top1_agreement=agreement, nll_nats=nll, layers=layers)
    limits = HealthLimits()
    loose = HealthLimits(
        max_mean_kl_nats=limits.max_mean_kl_nats * easier,
        min_top1_agreement=limits.min_top1_agreement / easier,
        max_perplexity_ratio=limits.max_perplexity_ratio * easier,
        max_local_error=limits.max_local_error * easier,
        max_ends_error=limits.max_ends_error * easier,
    )
    assert {item.where for item in judge(report, loose)} <= {item.where for item in judge(report, limits)}
    assert len(judge(report, loose)) <= len(judge(report, limits))


def test_not_checked_passes_with_its_reason_and_without_figures() -> None:
    report = HealthReport(NOT_CHECKED, "bitsandbytes checkpoints are run on CUDA only")
    require_healthy(report)
    assert report.metrics() == {}
    assert report.line() == "not checked: bitsandbytes checkpoints are run on CUDA only"


def test_damaged_files_stop_with_all_findings() -> None:
    findings = (Finding("damaged", "a.safetensors", "truncated"), Finding("damaged", "b.safetensors", "is missing"))
    with pytest.raises(HealthError, match=r"(?s)a\.safetensors: truncated.*b\.safetensors: is missing.*remove the dam"):
        require_healthy(HealthReport(DAMAGED, "stopped at its files", findings))


def test_tokens_are_checked_before_anything_starts(tmp_path: Path, base: Path) -> None:
    (base / "config.json").write_text('{"vocab_size": 100}')
    path = tmp_path / "tokens.npy"
    np.save(path, np.arange(60).reshape(3, 20).astype(np.int32))
    tokens = read_tokens(path, base, 2, 8)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [list(range(8)), list(range(20, 28))]
    for bad in (np.zeros((2, 4)), np.zeros(4, int), np.zeros((3, 1), int), np.zeros((0, 4), int), np.full((1, 4), 100)):
        np.save(path, bad)
        with pytest.raises(ConfigError, match=r"tokens\.npy"):
            read_tokens(path, base, 2, 8)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tokens(path, base, 2, 8)


def test_formats_that_cannot_be_loaded_are_named() -> None:
    everything = dict.fromkeys(("compressed_tensors", "gptqmodel", "optimum", "accelerate", "bitsandbytes"), True)

    def why(method: str | None, device: str = "cpu", **installed: bool) -> str:
        config = {} if method is None else {"quantization_config": {"quant_method": method}}
        return why_not_loadable(config, device, everything | installed)

    assert [why(method) for method in (None, "compressed-tensors", "gptq")] == ["", "", ""]
    assert "CUDA" in why("bitsandbytes")
    assert why("bitsandbytes", "cuda") == ""
    assert "gptqmodel and optimum" in why("gptq", gptqmodel=False, optimum=False)


@given(
    seed=st.integers(0, 2**32 - 1), length=st.integers(2, 150), vocabulary=st.integers(2, 20), spread=st.floats(0, 30)
)
def test_divergence_agrees_with_its_definition(seed: int, length: int, vocabulary: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    base, own = (rng.normal(0, spread, (2, length, vocabulary)).astype(np.float32) for _ in range(2))
    token_ids = rng.integers(0, vocabulary, (2, length))
    found = compare_logits(base, own, token_ids)
    p, q = log_softmax(base), log_softmax(own)
    assert np.exp(p).sum(-1) == pytest.approx(1)
    assert found["mean_kl_nats"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), abs=1e-9)
    assert found["mean_kl_nats"] >= -1e-12
    assert found["top1_agreement"] == (base.argmax(-1) == own.argmax(-1)).mean()
    scored = [-q[row, place, token_ids[row, place + 1]] for row in range(2) for place in range(length - 1)]
    assert found["nll_nats"] == pytest.approx(np.mean(scored))
    itself = compare_logits(base, base + 3, token_ids)
    assert itself["mean_kl_nats"] == pytest.approx(0, abs=1e-5)
    assert itself["base_nll_nats"] == pytest.approx(itself["nll_nats"], abs=1e-4)


def test_one_bad_logit_leaves_no_figures() -> None:
    base = np.zeros((1, 4, 5), np.float32)
    own = base.copy()
    own[0, 2, 3] = np.nan
    found = compare_logits(base, own, np.zeros((1, 4), np.int64))
    assert found == {"num_tokens": 4, "num_nonfinite_logits": 1}


def test_one_huge_token_does_not_hide_the_others() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8)).astype(np.float32)
    base = x + rng.normal(size=x.shape).astype(np.float32)
    base[0] *= 1e6
    own = x.copy()
    own[0] = base[0]  # right only where it is huge: a sum over tokens would call it the same
    assert typical(token_errors(own, base, x)) == pytest.approx(1, abs=1e-5)
    assert typical(token_errors(base, base, x)) == 0
    own[7, 3] = np.nan
    assert typical(token_errors(own, base, x)) is None
    assert token_errors(x, x, x).tolist() == [0.0] * 50
    assert np.isinf(token_errors(x + 1, x, x)).all()


def test_the_judging_side_loads_no_torch() -> None:
    program = "import sys, pipeline.health.health; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_inspect_tells_whole_files_from_damaged_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tmp_path / "candidate", tensors_of(3, quantized=True), num_shards=1)
    assert inspect.main([str(folder)]) == 0
    assert "files: nothing found\nnum_bytes" in capsys.readouterr().out
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert inspect.main([str(folder)]) == 2
    assert "truncated: expected" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"no config\.json"):
        inspect.main([str(tmp_path)])
