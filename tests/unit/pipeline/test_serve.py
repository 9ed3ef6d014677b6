import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import EngineConfig
from pipeline.serve.engine import (
    PLUGIN,
    ROUNDING,
    SPECULATION,
    SPEED_ONLY,
    answer_variables,
    baseline_engine,
    engine_settings,
    server_command,
    server_environment,
    speed_digest,
    target_digest,
)
from pipeline.types import Artifact, Machine
from tests.unit.pipeline.shapes import MACHINE
from tests.unit.pipeline.test_methods import H100

PYTHON = Path("/env/bin/python")
ARTIFACT = Artifact(Path("/store/model"), "d" * 64, 1, "awq", None)


def test_the_kv_cache_type_is_passed_on_and_is_not_the_baselines() -> None:
    engine = EngineConfig(kv_cache_dtype="fp8")
    command = server_command(ARTIFACT, engine, H100, PYTHON, 8000)
    assert command[command.index("--kv-cache-dtype") + 1] == "fp8"
    plain = server_command(ARTIFACT, baseline_engine(engine), H100, PYTHON, 8000)
    assert "--kv-cache-dtype" not in plain
    assert baseline_engine(engine) == EngineConfig()


def test_vllm_finds_the_format_itself() -> None:
    assert "--quantization" not in server_command(ARTIFACT, EngineConfig(), H100, PYTHON, 8000)


def test_the_plugin_is_for_cpus_only() -> None:
    assert server_environment(EngineConfig(), MACHINE)["PYTHONPATH"] == str(PLUGIN)
    assert "PYTHONPATH" not in server_environment(EngineConfig(), H100)
    assert server_environment(EngineConfig(), MACHINE)["NUMBA_THREADING_LAYER"] == "workqueue"
    assert (PLUGIN / "parsimony_vllm.py").exists()


def digests(engine: EngineConfig) -> tuple[str, str]:
    python = Path("/nowhere/bin/python")
    return target_digest(ARTIFACT, engine, MACHINE, python), speed_digest(ARTIFACT, engine, MACHINE, python)


def test_a_name_and_a_time_limit_change_no_digest() -> None:
    assert digests(EngineConfig()) == digests(EngineConfig(name="other", startup_timeout_s=1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"kv_cache_dtype": "fp8"}, {"dtype": "float16"}, {"max_model_len": 512}, {"tensor_parallel_size": 2},
        {"enforce_eager": True}, {"extra_args": ["--seed", "1"]},
    ],
)  # fmt: skip
def test_what_can_change_an_answer_changes_both_digests(change: dict[str, Any]) -> None:
    answers, speed = digests(EngineConfig())
    other_answers, other_speed = digests(EngineConfig(**change))
    assert answers != other_answers
    assert speed != other_speed


@pytest.mark.parametrize("change", [{"gpu_memory_utilization": 0.5}, {"cpu_kvcache_gib": 4}])
def test_what_cannot_change_an_answer_changes_the_speeds_digest_alone(change: dict[str, Any]) -> None:
    answers, speed = digests(EngineConfig())
    other_answers, other_speed = digests(EngineConfig(**change))
    assert answers == other_answers
    assert speed != other_speed


def on(machine: Machine, engine: EngineConfig) -> str:
    return target_digest(ARTIFACT, engine, machine, Path("/nowhere/bin/python"))


def on_gpu(engine: EngineConfig) -> str:
    return on(H100, engine)


BATCH_CHANGES: list[dict[str, Any]] = [
    {"max_num_seqs": 16}, {"max_num_batched_tokens": 8192}, {"enable_chunked_prefill": True},
    {"enable_prefix_caching": False},
]  # fmt: skip
SPECULATIONS: list[dict[str, Any]] = [
    {"speculative": "ngram"}, {"speculative": "ngram", "num_speculative_tokens": 2},
    {"speculative": "draft_model", "draft_model": "/nowhere"},
]  # fmt: skip


@pytest.mark.parametrize("machine", [MACHINE, H100], ids=["cpu", "gpu"])
@pytest.mark.parametrize("base", [EngineConfig(), EngineConfig(batch_invariant=True)], ids=["plain", "invariant"])
def test_answers_depend_on_the_batch_and_on_speculation(machine: Machine, base: EngineConfig) -> None:
    """Each of these is another rounding of the same sums; batch invariance covers some kernels, and is no excuse."""
    engines = [base, *(replace(base, **change) for change in (*BATCH_CHANGES, *SPECULATIONS))]
    assert len({on(machine, engine) for engine in engines}) == len(engines)
    assert {key for change in (*BATCH_CHANGES, *SPECULATIONS[:1]) for key in change} == set(ROUNDING)


def test_batch_invariance_is_another_target() -> None:
    assert on_gpu(EngineConfig(batch_invariant=True)) != on_gpu(EngineConfig())


def test_a_cpus_answers_depend_on_the_number_of_its_threads_and_a_gpus_do_not() -> None:
    assert on(MACHINE, EngineConfig()) != on(replace(MACHINE, num_cpus=3), EngineConfig())
    assert on_gpu(EngineConfig()) == on(replace(H100, num_cpus=3), EngineConfig())


def test_a_draft_model_is_known_by_its_files(tmp_path: Path) -> None:
    engine = EngineConfig(speculative="draft_model", draft_model=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = on_gpu(engine)
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert on_gpu(engine) != first


def test_batch_invariance_is_asked_of_vllm_by_its_variable() -> None:
    assert server_environment(EngineConfig(batch_invariant=True), H100)["VLLM_BATCH_INVARIANT"] == "1"
    assert "VLLM_BATCH_INVARIANT" not in server_environment(EngineConfig(), H100)


def test_digests_without_batch_invariance_are_those_of_before_there_was_the_key() -> None:
    """Recorded answers and stages stay usable: the settings hold no key that says that something is off."""
    assert "batch_invariant" not in engine_settings(EngineConfig())
    assert engine_settings(EngineConfig(batch_invariant=True))["batch_invariant"] is True
    assert "environment" not in engine_settings(EngineConfig())


def test_the_engines_own_variables_reach_the_server_and_the_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    engine = EngineConfig(environment={"ONEDNN_MAX_CPU_ISA": "AVX"})
    assert server_environment(engine, MACHINE)["ONEDNN_MAX_CPU_ISA"] == "AVX"
    before, after = digests(EngineConfig()), digests(engine)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX"), ("VLLM_BATCH_INVARIANT", "1"), ("VLLM_DISABLED_KERNELS", "x"),
        ("VLLM_ATTENTION_BACKEND", "TRITON_ATTN"), ("NVIDIA_TF32_OVERRIDE", "0"), ("CUBLAS_WORKSPACE_CONFIG", ":4:8"),
        ("TORCH_COMPILE_DISABLE", "0"), ("VLLM_CPU_ATTN_SPLIT_KV", "0"), ("VLLM_USE_LOGITS_X", "1"),
    ],
)  # fmt: skip
def test_a_variable_that_the_server_takes_over_changes_both_digests(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    before, gpu = digests(EngineConfig()), on_gpu(EngineConfig())
    monkeypatch.setenv(name, value)
    after = digests(EngineConfig())
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert on_gpu(EngineConfig()) != gpu
    assert server_environment(EngineConfig(), H100)[name] == value


def test_variables_that_compute_nothing_and_secrets_are_in_no_digest() -> None:
    harmless = {
        "VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_API_KEY": "secret", "VLLM_CACHE_ROOT": "/x", "VLLM_PORT": "1",
        "VLLM_NO_USAGE_STATS": "1", "TORCH_HOME": "/x", "PATH": "/bin", "HOME": "/root", "VLLM_HOST_IP": "1",
        "VLLM_CPU_KVCACHE_SPACE": "9", "NUMBA_THREADING_LAYER": "tbb", "HF_TOKEN": "secret", "ONEDNN_VERBOSE": "1",
        "TORCHINDUCTOR_CACHE_DIR": "/x", "NCCL_DEBUG": "INFO",
    }  # fmt: skip
    assert answer_variables(harmless) == {}


def test_every_setting_is_in_one_of_the_digests() -> None:
    """A new setting counts as able to change an answer until somebody says that it is not."""
    of_speculation = {key for keys in SPECULATION.values() for key in keys}
    for key, value in vars(EngineConfig()).items():
        if key in ("name", "startup_timeout_s", *SPEED_ONLY, *of_speculation, "speculative"):
            continue
        changed = replace(EngineConfig(), **{key: ["x"] if isinstance(value, list) else f"not {value}"})
        assert digests(changed)[0] != digests(EngineConfig())[0], key


def test_settings_of_a_speculation_that_is_off_change_nothing() -> None:
    assert digests(EngineConfig()) == digests(EngineConfig(num_speculative_tokens=7, draft_model="/nowhere"))
    ngram = EngineConfig(speculative="ngram")
    assert digests(ngram) == digests(replace(ngram, draft_model="/nowhere"))
    assert digests(ngram)[1] != digests(replace(ngram, num_speculative_tokens=7))[1]


def test_another_draft_model_in_the_same_folder_is_another_speed(tmp_path: Path) -> None:
    engine = EngineConfig(speculative="draft_model", draft_model=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = digests(engine)
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert digests(engine)[1] != first[1]


def test_speculation_is_passed_on_and_is_not_the_baselines() -> None:
    engine = EngineConfig(speculative="draft_model", draft_model="/models/tiny", num_speculative_tokens=3)
    command = server_command(ARTIFACT, engine, H100, PYTHON, 8000)
    told = json.loads(command[command.index("--speculative-config") + 1])
    assert told == {"method": "draft_model", "model": "/models/tiny", "num_speculative_tokens": 3}
    assert "--speculative-config" not in server_command(ARTIFACT, baseline_engine(engine), H100, PYTHON, 8000)


@pytest.mark.parametrize(
    ("value", "option"), [(True, "--enable-chunked-prefill"), (False, "--no-enable-chunked-prefill")]
)
def test_chunked_prefill_is_passed_on_where_it_is_chosen(value: bool, option: str) -> None:
    assert option in server_command(ARTIFACT, EngineConfig(enable_chunked_prefill=value), H100, PYTHON, 8000)
    assert not any("chunked" in word for word in server_command(ARTIFACT, EngineConfig(), H100, PYTHON, 8000))
