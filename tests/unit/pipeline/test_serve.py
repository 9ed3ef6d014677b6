from dataclasses import replace
from pathlib import Path

from pipeline.schema import EngineConfig
from pipeline.serve.vllm import PLUGIN, baseline_engine, server_command, server_environment, target_digest
from pipeline.types import Artifact
from tests.unit.pipeline.test_methods import H100
from tests.unit.pipeline.test_plan import MACHINE

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
    assert (PLUGIN / "parsimony_vllm.py").exists()


def test_the_targets_digest_changes_with_what_changes_an_answer(tmp_path: Path) -> None:
    def digest(engine: EngineConfig) -> str:
        return target_digest(ARTIFACT, engine, MACHINE, tmp_path / "bin" / "python")

    engine = EngineConfig()
    assert digest(engine) == digest(replace(engine, name="other", startup_timeout_s=1.0))
    assert digest(engine) != digest(replace(engine, kv_cache_dtype="fp8"))
    assert digest(engine) != digest(replace(engine, max_model_len=512))
