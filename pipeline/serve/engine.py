"""The engine as data: vLLM's settings, command line and environment, and the digests of what they decide. Pure."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.environments import versions
from core.files import digest_file, digest_json
from pipeline.config import EngineConfig
from pipeline.types import Artifact, Machine

MODEL_NAME = "model"
PLUGIN = Path(__file__).parent / "plugin"
"""The folder of our vLLM plug-in: kernels that vLLM lacks on some processors."""
LOOPBACK = "127.0.0.1"
SMALL_MACHINE_CPUS = 4
NUMBA_LAYER = "workqueue"
"""vLLM's n-gram proposer runs in Numba, whose OpenMP layer leaves the whole worker with a single thread."""
SPEED_ONLY = ("gpu_memory_utilization", "cpu_kvcache_gib")
"""Settings that cannot change an answer, so that quality is not measured again for them: how much is remembered."""
ROUNDING = ("max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "enable_prefix_caching", "speculative")
"""Settings that change no answer in exact arithmetic: each token is computed from the same numbers whichever step it
falls into, and a proposed token is kept only where the model itself would have chosen it
(https://arxiv.org/abs/2211.17192). But they decide what is computed in one step, and the order of the sums depends on
that: of a GPU's matrix products, and of attention over long texts on a CPU too. Answers flip by it, above all where
activations are INT8 (benchmarks/results/noise-2026-11-27.md). So they belong to the answers, as does all else but
`SPEED_ONLY`. vLLM's batch invariance takes nothing away from that: it does not cover every kernel of quantized weights,
and what it leaves is measured (`parsimony noise`), not believed.
"""
SPECULATION = {
    "ngram": ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"),
    "draft_model": ("num_speculative_tokens", "draft_model"),
}
"""Who can propose tokens, and the settings that shape it."""


VARIABLES = re.compile(
    r"(VLLM|OMP|GOMP|KMP|MKL|ONEDNN|DNNL|OPENBLAS|BLIS|ATEN|TORCH|TORCHINDUCTOR|PYTORCH|CUBLAS|CUBLASLT|CUDNN|NCCL|"
    r"TRITON|FLASHINFER|FLASH_ATTENTION)_\w+|NVIDIA_TF32_OVERRIDE|LD_PRELOAD"
)
"""Variables of the environment that vLLM, or what computes below it, reads."""
HARMLESS = frozenset(
    (
        *("LOG", "LOGGING", "DEBUG", "VERBOSE", "TRACE", "PROFILER", "USAGE", "STATS", "TRACK", "TELEMETRY"),
        *("TIMEOUT", "HTTP", "PORT", "HOST", "IP", "DIR", "PATH", "ROOT", "HOME", "JOBS"),
        *("KEY", "TOKEN", "SECRET", "PASSWORD"),
    )
)
"""Words in the names of those that say where something lies or is written, or who may ask: they compute nothing, and
some are secret."""
SET_BY_US = ("VLLM_CPU_KVCACHE_SPACE", "NUMBA_THREADING_LAYER")
"""Variables that `server_environment` sets whatever the user's environment says."""


def answer_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the server takes over from the user's environment and that may change an answer.

    >>> answer_variables({"ONEDNN_MAX_CPU_ISA": "AVX2", "VLLM_LOGGING_LEVEL": "DEBUG", "HOME": "/root"})
    {'ONEDNN_MAX_CPU_ISA': 'AVX2'}
    """
    return {
        name: value
        for name, value in sorted(environment.items())
        if VARIABLES.fullmatch(name) and HARMLESS.isdisjoint(name.split("_")) and name not in SET_BY_US
    }


def engine_settings(engine: EngineConfig) -> dict[str, object]:
    """The settings that shape the server, without names, time limits and the settings of what is off."""
    of_speculation = {key for keys in SPECULATION.values() for key in keys}
    unused = of_speculation - set(SPECULATION.get(engine.speculative or "", ()))
    # Digests of servers without them stay what they were before there were such keys.
    unused |= {key for key in ("batch_invariant", "environment") if not getattr(engine, key)}
    left_out = {"name", "startup_timeout_s", *unused}
    return {key: value for key, value in vars(engine).items() if key not in left_out}


def baseline_engine(engine: EngineConfig) -> EngineConfig:
    """The engine without what makes it another candidate: plain keys and values, and no speculation.

    Batching, memory and caching stay: baseline and candidate are compared under the same.
    """
    return replace(engine, kv_cache_dtype="auto", speculative=None)


def target_digest(artifact: Artifact, engine: EngineConfig, machine: Machine, python: Path) -> str:
    """SHA-256 of all that can change an answer of the served model: the answers go by it."""
    return digest_json({"artifact": artifact.digest, **answer_inputs(engine, machine, python)})


def answer_inputs(engine: EngineConfig, machine: Machine, python: Path) -> dict[str, object]:
    """All that can change an answer beside the weights: the quality stage goes by it."""
    changes = {key: value for key, value in engine_settings(engine).items() if key not in SPEED_ONLY}
    decides = _identity(machine, python) | {"engine": changes}
    if machine.device == "cpu":
        decides["num_cpus"] = machine.num_cpus  # short questions do not depend on the threads, long texts may
    if engine.speculative is not None:
        decides["draft"] = _draft_files(engine)
    return decides


def speed_digest(artifact: Artifact, engine: EngineConfig, machine: Machine, python: Path) -> str:
    """SHA-256 of all that can change the served model's speed: load points go by it."""
    return digest_json({"artifact": artifact.digest, **speed_inputs(engine, machine, python)})


def speed_inputs(engine: EngineConfig, machine: Machine, python: Path) -> dict[str, object]:
    """All that can change the speed beside the weights: the load stage goes by it."""
    draft = _draft_files(engine)
    decides = _identity(machine, python) | {"engine": engine_settings(engine), "draft": draft, "of": "speed"}
    if engine.speculative == "ngram" and machine.device == "cpu":
        decides["numba_threading_layer"] = NUMBA_LAYER
    return decides


def _draft_files(engine: EngineConfig) -> list[list[object]] | None:
    """Names, sizes and times of the files of the model that proposes; None where no model does."""
    if engine.speculative != "draft_model" or engine.draft_model is None:
        return None
    files = sorted(Path(engine.draft_model).glob("*"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _identity(machine: Machine, python: Path) -> dict[str, object]:
    """Tools, device and variables: what both answers and speed depend on beside the weights."""
    found: dict[str, object] = {
        "vllm": versions(python, "vllm", "torch", "transformers", "compressed-tensors"),
        "device": [machine.device, machine.device_name],
        "plugin": digest_file(PLUGIN / "parsimony_vllm.py") if machine.device == "cpu" else None,
    }
    if variables := answer_variables(os.environ):
        found["environment"] = variables
    return found


def server_command(artifact: Artifact, engine: EngineConfig, machine: Machine, python: Path, port: int) -> list[str]:
    """The server's command line. vLLM detects the checkpoint's format: `--quantization` could force a slow kernel."""
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        "--model",
        str(artifact.path),
        "--served-model-name",
        MODEL_NAME,
        "--host",
        LOOPBACK,
        "--port",
        str(port),
    ]
    command += ["--dtype", engine.dtype, "--max-model-len", str(engine.max_model_len)]
    command += ["--max-num-seqs", str(engine.max_num_seqs), "--tensor-parallel-size", str(engine.tensor_parallel_size)]
    command += ["--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching"]
    if engine.max_num_batched_tokens is not None:
        command += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
    if engine.enable_chunked_prefill is not None:
        command.append(f"--{'' if engine.enable_chunked_prefill else 'no-'}enable-chunked-prefill")
    if engine.speculative is not None:
        command += ["--speculative-config", json.dumps(speculative_config(engine))]
    if engine.kv_cache_dtype != "auto":
        command += ["--kv-cache-dtype", engine.kv_cache_dtype]
    if machine.device == "cuda":
        command += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
    if is_eager(engine, machine):
        command.append("--enforce-eager")
    return [*command, *engine.extra_args]


def is_eager(engine: EngineConfig, machine: Machine) -> bool:
    """Whether vLLM runs the model without compiling it; on a CPU that is the default."""
    return engine.enforce_eager if engine.enforce_eager is not None else machine.device == "cpu"


def speculative_config(engine: EngineConfig) -> dict[str, object]:
    """What vLLM's `--speculative-config` contains.

    >>> speculative_config(EngineConfig(speculative="ngram", num_speculative_tokens=3))
    {'method': 'ngram', 'num_speculative_tokens': 3, 'prompt_lookup_max': 4, 'prompt_lookup_min': 2}
    """
    assert engine.speculative is not None
    named = {"draft_model": "model"}
    keys = SPECULATION[engine.speculative]
    return {"method": engine.speculative, **{named.get(key, key): getattr(engine, key) for key in keys}}


def server_environment(engine: EngineConfig, machine: Machine) -> dict[str, str]:
    """The server's environment: no hub, no usage reports, the KV cache's size on a CPU."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    # The serving environment has versions of its own: nothing of ours may stand before them.
    environment.pop("PYTHONPATH", None)
    if engine.batch_invariant:
        environment["VLLM_BATCH_INVARIANT"] = "1"
    if machine.device == "cpu":
        environment["PYTHONPATH"] = str(PLUGIN)
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(engine.cpu_kvcache_gib)
        environment["NUMBA_THREADING_LAYER"] = NUMBA_LAYER
        if is_eager(engine, machine):
            # Else one small function is compiled when the first prompt is scored: 13 s, and a C++ compiler is needed.
            environment.setdefault("TORCH_COMPILE_DISABLE", "1")
        # vLLM keeps one core free of its workers; on a small machine that is half of it.
        if machine.num_cpus <= SMALL_MACHINE_CPUS:
            environment.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    return environment | {name: str(value) for name, value in engine.environment.items()}
