"""The engine as data: vLLM's settings, command line and environment, and the digests of what they decide. Pure."""

from __future__ import annotations

import json
import os
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
SPEED_ONLY = (
    "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "gpu_memory_utilization", "cpu_kvcache_gib",
    "enable_prefix_caching", "speculative",
)  # fmt: skip
"""Settings that cannot change an answer, so that quality is not measured again for them.

The first six say which tokens are computed in one step and which are remembered: each token is computed from the same
numbers whichever step it falls into. Speculation keeps a proposed token only where the model itself would have chosen
it (https://arxiv.org/abs/2211.17192), and lm-eval's requests are greedy. Both are exact up to rounding of sums, whose
order depends on the batch: two runs of one engine differ by as much. Everything else counts as able to change an
answer: dtype and kv_cache_dtype do, and what nobody has proved harmless (extra_args, tensor parallelism, compilation).
"""
SPECULATION = {
    "ngram": ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"),
    "draft_model": ("num_speculative_tokens", "draft_model"),
}
"""Who can propose tokens, and the settings that shape it."""


def engine_settings(engine: EngineConfig) -> dict[str, object]:
    """The settings that shape the server, without names, time limits and the settings of a speculation that is off."""
    of_speculation = {key for keys in SPECULATION.values() for key in keys}
    unused = of_speculation - set(SPECULATION.get(engine.speculative or "", ()))
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
    of_speculation = {key for keys in SPECULATION.values() for key in keys}
    settings = engine_settings(engine)
    changes = {key: value for key, value in settings.items() if key not in (*SPEED_ONLY, *of_speculation)}
    return _identity(machine, python) | {"engine": changes}


def speed_digest(artifact: Artifact, engine: EngineConfig, machine: Machine, python: Path) -> str:
    """SHA-256 of all that can change the served model's speed: load points go by it."""
    return digest_json({"artifact": artifact.digest, **speed_inputs(engine, machine, python)})


def speed_inputs(engine: EngineConfig, machine: Machine, python: Path) -> dict[str, object]:
    """All that can change the speed beside the weights: the load stage goes by it."""
    draft = None
    if engine.speculative == "draft_model" and engine.draft_model is not None:
        files = sorted(Path(engine.draft_model).glob("*"))
        draft = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    decides = _identity(machine, python) | {"engine": engine_settings(engine), "draft": draft, "of": "speed"}
    if engine.speculative == "ngram" and machine.device == "cpu":
        decides["numba_threading_layer"] = NUMBA_LAYER
    return decides


def _identity(machine: Machine, python: Path) -> dict[str, object]:
    """Tools and device: what both answers and speed depend on beside the weights."""
    return {
        "vllm": versions(python, "vllm", "torch", "transformers", "compressed-tensors"),
        "device": [machine.device, machine.device_name],
        "plugin": digest_file(PLUGIN / "parsimony_vllm.py") if machine.device == "cpu" else None,
    }


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
    return environment
