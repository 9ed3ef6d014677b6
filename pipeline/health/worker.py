"""The process that measures a candidate: `core.jobs` calls `work`.

Runs the base once (or takes its outputs from the cache), frees it, then loads the candidate as its users would, through
transformers: float32 on a CPU, the base's own 16 bit type on CUDA. Memory: one model at a time.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.files import digest_json, read_json
from pipeline.checkpoints.structure import Finding, named, read_shards
from pipeline.health.compare import Outputs, compare_layers, compare_logits, run
from pipeline.health.health import HealthJob, NotCheckedError, read_tokens, why_not_loadable
from pipeline.health.report import DAMAGED, MEASURED, NOT_CHECKED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROVEN = ("", "compressed-tensors", "gptq")
"""Formats that load here for sure: an error of these is the checkpoint's, an error of others may be the loader's."""
PACKAGES = ("compressed_tensors", "gptqmodel", "optimum", "accelerate", "bitsandbytes")


class UnloadableError(Exception):
    """Transformers cannot load the candidate although its format is supported."""


@dataclass(frozen=True)
class Runtime:
    """Where and in which type both models run."""

    device: str
    dtype: torch.dtype


def work(job: HealthJob) -> dict[str, object]:
    """Measure what the job names: the report's fields."""
    started = time.monotonic()
    try:
        report = measured(job)
    except NotCheckedError as reason:
        report = {"status": NOT_CHECKED, "reason": str(reason)}
    except UnloadableError as error:
        finding = Finding("unloadable", str(job["candidate"]), f"transformers cannot load it: {error}")
        report = {"status": DAMAGED, "reason": "stopped at loading", "findings": [finding]}
    return {**report, "wall_s": time.monotonic() - started}


def measured(job: HealthJob) -> dict[str, object]:
    """The report's fields, without the time.

    Raises:
        NotCheckedError: this machine cannot run base or candidate.
        UnloadableError: the candidate's format is supported, but it does not load.

    """
    base, candidate = Path(job["base"]), Path(job["candidate"])
    runtime = runtime_for(base)
    installed = {name: importlib.util.find_spec(name) is not None for name in PACKAGES}
    if reason := why_not_loadable(read_json(candidate / "config.json"), runtime.device, installed):
        raise NotCheckedError(reason)
    require_memory(base, runtime)
    token_ids = read_tokens(Path(job["tokens"]), base, job["num_sequences"], job["length"])
    cache = None if job["base_cache"] is None else Path(job["base_cache"])
    expected, reused = base_outputs(base, token_ids, runtime, cache)
    if not np.isfinite(expected.logits).all():
        raise NotCheckedError(f"the base {base} itself gives NaN or infinite logits: nothing can be compared with it")
    model, missing = load_candidate(candidate, runtime)
    own = run(model, token_ids)
    findings = []
    if missing:
        findings.append(
            Finding("damaged", "weight files", f"lack what transformers then fills at random: {named(missing)}")
        )
    if own.logits.shape != expected.logits.shape:
        sizes = f"{own.logits.shape[-1]:,} tokens, the base's {expected.logits.shape[-1]:,}"
        findings.append(Finding("damaged", "vocabulary", f"the candidate's has {sizes}"))
    return {
        "status": MEASURED,
        "findings": findings,
        "device": runtime.device,
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "base_reused": reused,
        **compare_logits(expected.logits, own.logits, token_ids),
        **compare_layers(model, token_ids, expected, own, job["suspect_above"]),
    }


def runtime_for(base: Path) -> Runtime:
    """CUDA in the base's 16 bit type where there is a GPU, else float32: most processors emulate 16 bit."""
    import torch
    from transformers import AutoConfig

    if not torch.cuda.is_available():
        return Runtime("cpu", torch.float32)
    dtype = AutoConfig.from_pretrained(base).dtype
    return Runtime("cuda", dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16)


def require_memory(base: Path, runtime: Runtime) -> None:
    """One model at a time is held unpacked (and, while it loads, packed too): the base's parameters say what is needed.

    Raises:
        NotCheckedError: there is not enough memory.

    """
    import psutil
    import torch

    shapes = [entry["shape"] for shard in read_shards(base)[0] for entry in shard.tensors.values()]
    needed = sum(map(math.prod, shapes)) * runtime.dtype.itemsize * 1.3
    free = torch.cuda.mem_get_info()[0] if runtime.device == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise NotCheckedError(
            f"one unpacked model in {runtime.dtype} needs {needed / 2**30:.1f} GiB of {runtime.device} memory, "
            f"{free / 2**30:.1f} GiB are free"
        )


def base_outputs(
    base: Path, token_ids: NDArray[np.int64], runtime: Runtime, cache: Path | None
) -> tuple[Outputs, bool]:
    """The base's outputs, and whether they came from the cache."""
    key = base_key(base, token_ids, runtime)
    if cache is not None and (kept := read_cache(cache, key)) is not None:
        return kept, True
    model, _ = load(base, runtime)
    outputs = run(model, token_ids)
    # `require_memory` counts on one model at a time.
    del model
    gc.collect()
    if runtime.device == "cuda":
        import torch

        torch.cuda.empty_cache()
    if cache is not None:
        write_cache(cache, key, outputs)
    return outputs, False


def base_key(base: Path, token_ids: NDArray[np.int64], runtime: Runtime) -> str:
    """SHA-256 of what the base's outputs depend on; its weights stand by their files' headers and sizes."""
    shards = {
        shard.path.name: [shard.path.stat().st_size, digest_json(shard.tensors)] for shard in read_shards(base)[0]
    }
    tokens = hashlib.sha256(token_ids.tobytes()).hexdigest()
    where = [str(base.resolve()), runtime.device, str(runtime.dtype)]
    config = read_json(base / "config.json")
    return digest_json([where, config, shards, list(token_ids.shape), tokens])


def read_cache(cache: Path, key: str) -> Outputs | None:
    """The outputs that were kept under this key; None where the file is absent, unreadable or another base's."""
    try:
        with np.load(cache, allow_pickle=False) as kept:
            if str(kept["key"]) == key:
                return Outputs(kept["logits"], kept["hidden"])
            print(f"{cache} belongs to another base or other tokens: it is made again")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError) as error:
        print(f"{cache} cannot be read ({error}): it is made again")
    return None


def write_cache(cache: Path, key: str, outputs: Outputs) -> None:
    """Keep the outputs, whole or not at all. float32: 16 bit would round the residual stream by more than INT8 errs."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, key=np.array(key), logits=outputs.logits, hidden=outputs.hidden)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(cache)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path, runtime: Runtime) -> tuple[PreTrainedModel, list[str]]:
    """A checkpoint ready to run, and the names of the parameters that its files lack."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=runtime.dtype, device_map={"": runtime.device}, output_loading_info=True
    )
    return model.eval(), sorted(info["missing_keys"])


def load_candidate(folder: Path, runtime: Runtime) -> tuple[PreTrainedModel, list[str]]:
    """`load`, with failures sorted into the machine's and the candidate's.

    Raises:
        NotCheckedError: no loader for this format here, or no memory.
        UnloadableError: the format is known to load here.

    """
    import torch

    method = (read_json(folder / "config.json").get("quantization_config") or {}).get("quant_method", "")
    try:
        return load(folder, runtime)
    except (MemoryError, torch.OutOfMemoryError, ImportError) as error:
        raise NotCheckedError(f"it cannot be loaded here: {first_line(error)}") from error
    except Exception as error:
        if method in PROVEN:
            raise UnloadableError(first_line(error)) from error
        raise NotCheckedError(f"transformers does not load quant_method={method} here: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error's kind and first line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"
