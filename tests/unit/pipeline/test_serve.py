import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import EngineConfig
from pipeline.serve.engine import (
    PLUGIN,
    SPECULATION,
    SPEED_ONLY,
    baseline_engine,
    server_command,
    server_environment,
    speed_digest,
    target_digest,
)
from pipeline.types import Artifact
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


@pytest.mark.parametrize(
    "change",
    [
        {"max_num_seqs": 16}, {"max_num_batched_tokens": 8192}, {"enable_chunked_prefill": True},
        {"gpu_memory_utilization": 0.5}, {"cpu_kvcache_gib": 4}, {"enable_prefix_caching": False},
        {"speculative": "ngram"}, {"speculative": "draft_model", "draft_model": "/nowhere"},
    ],
)  # fmt: skip
def test_what_cannot_change_an_answer_changes_the_speeds_digest_alone(change: dict[str, Any]) -> None:
    answers, speed = digests(EngineConfig())
    other_answers, other_speed = digests(EngineConfig(**change))
    assert answers == other_answers
    assert speed != other_speed


def test_every_setting_is_in_one_of_the_digests() -> None:
    """A new setting counts as able to change an answer until somebody says that it is not."""
    of_speculation = {key for keys in SPECULATION.values() for key in keys}
    for key, value in vars(EngineConfig()).items():
        if key in ("name", "startup_timeout_s", *SPEED_ONLY, *of_speculation):
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
    assert digests(engine)[0] == first[0]
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
