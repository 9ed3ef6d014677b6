"""The checks of a plan: each returns its problems. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from core.errors import Problem
from pipeline.checkpoints.publish import name_problem
from pipeline.compress import registry
from pipeline.compress.memory import CalibrationSize
from pipeline.config import (
    LEDGER_VARIABLE,
    CalibConfig,
    EnergyConfig,
    EngineConfig,
    FinopsConfig,
    ModelConfig,
    PublishConfig,
    RunConfig,
)
from pipeline.types import GIB, Machine, ModelFacts

WORKING_SPACE = 2.5
"""Disk needed, as a multiple of the checkpoint: the base in 16 bit, the variant, and a copy while it is written."""
NUMBERS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("suite.num_concurrent", lambda value: value >= 1, "at least 1"),
    ("suite.num_fewshot", lambda value: value is None or value >= 0, "null, or at least 0"),
    ("calib.num_samples", lambda value: value >= 1, "at least 1"),
    ("calib.length", lambda value: value >= 16, "at least 16"),
    ("gate.delta_points", lambda value: 0 <= value < 100, "at least 0, below 100 (2 is 2 points of the score)"),
    ("gate.alpha", lambda value: 0 < value < 0.5, "between 0 and 0.5"),
    ("gate.beta", lambda value: 0 < value < 0.5, "between 0 and 0.5"),
    ("gate.num_candidates", lambda value: value is None or value >= 1, "null, or at least 1"),
    ("gate.guard_delta_points", lambda value: value is None or 0 < value < 100, "null, or above 0 and below 100"),
    ("gate.max_items", lambda value: value is None or value >= 1, "null, or at least 1"),
    ("gate.block_items", lambda value: value >= 1, "at least 1"),
    ("gate.max_age_days", lambda value: value > 0, "above 0"),
    ("gate.num_resamples", lambda value: value >= 100, "at least 100"),
    ("gate.price_rounds", lambda value: value == 0 or 2 <= value <= 1000, "0 (no rounds), or 2 to 1000"),
    ("gate.price_repeats", lambda value: 1 <= value <= 100, "1 to 100"),
    ("gate.utilisation", lambda value: 0 < value <= 1, "above 0, at most 1"),
    ("gate.slo_ttft_p99_s", lambda value: value is None or value > 0, "null, or above 0"),
    ("gate.slo_tpot_p99_s", lambda value: value is None or value > 0, "null, or above 0"),
    ("noise.max_items", lambda value: value >= 2, "at least 2"),
    ("engine.max_model_len", lambda value: value >= 256, "at least 256"),
    ("engine.max_num_seqs", lambda value: value >= 1, "at least 1"),
    ("engine.gpu_memory_utilization", lambda value: 0 < value <= 1, "above 0, at most 1"),
    ("engine.cpu_kvcache_gib", lambda value: value >= 1, "at least 1"),
    ("engine.tensor_parallel_size", lambda value: value >= 1, "at least 1"),
    ("engine.startup_timeout_s", lambda value: value > 0, "above 0"),
    ("seed", lambda value: value >= 0, "at least 0"),
)
"""Keys whose value has a range: key, test, and the range in words."""


def check_model(model: ModelConfig, facts: ModelFacts) -> list[Problem]:
    """The weights are real or random, and the base is no quantized checkpoint."""
    problems = []
    if model.weights not in ("real", "random"):
        ways = ("model.weights=real", "model.weights=random")
        problems.append(Problem("model.weights", f"'{model.weights}' is not one of real, random", ways))
    if facts.quant_format is not None:
        problems.append(
            Problem(
                "model.path",
                f"this checkpoint is quantized already (format '{facts.quant_format}')",
                ("model=NAME model.path=FOLDER quant=external, NAME being the model that it was made from",),
            )
        )
    return problems


def check_external(model: str, facts: ModelFacts, external: ModelFacts | None) -> list[Problem]:
    """The external checkpoint is of the baseline's shape."""
    if external is None:
        way = "model=NAME model.path=FOLDER quant=external, NAME being the model that it was made from"
        return [Problem("model.path", "quant=external needs the folder of an external checkpoint", (way,))]
    same = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size")
    differ = [key for key in same if getattr(facts, key) != getattr(external, key)]
    if not differ:
        return []
    named = ", ".join(f"{key} {getattr(external, key)} against {getattr(facts, key)}" for key in differ)
    message = f"the checkpoint is not a form of '{model}': {named}"
    return [Problem("model.path", message, ("model= the model that it was made from",))]


def check_device(method: registry.Method, machine: Machine) -> list[Problem]:
    """The method runs on this device."""
    if machine.device in method.devices:
        return []
    why = method.refused.get(machine.device)
    methods = [name for name in registry.known_methods() if machine.device in registry.method(name).devices]
    ways = [f"on this machine: {', '.join(f'quant={name}' for name in methods)}"]
    if method.nearest:
        ways.insert(0, f"quant={method.nearest} is the nearest that does")
    message = f"'{method.name}' does not run on {machine.device}" + (f": {why}" if why else "")
    return [Problem("quant.method", message, tuple(ways))]


def check_split(method: registry.Method, engine: EngineConfig, machine: Machine) -> list[Problem]:
    """Whether the checkpoint can be split over the GPUs of one replica."""
    count = engine.tensor_parallel_size
    if machine.device != "cuda" or count == 1 or method.splits:
        return []
    message = f"vLLM does not split a checkpoint of '{method.name}' over {count} GPUs"
    return [Problem("engine.tensor_parallel_size", message, ("engine.tensor_parallel_size=1", "quant=gptq"))]


def check_numbers(config: RunConfig) -> list[Problem]:
    """Every number is in its range."""
    problems = []
    for key, allowed, words in NUMBERS:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not allowed(value):
            problems.append(Problem(key, f"{value} is not allowed; it must be {words}"))
    return problems


def check_publish(publish: PublishConfig) -> list[Problem]:
    """The hub's name for the checkpoint can be one."""
    wrong = None if publish.hub is None else name_problem(publish.hub)
    return [] if wrong is None else [Problem("publish.hub", wrong)]


def check_room(
    method: registry.Method, calib: CalibConfig, facts: ModelFacts, machine: Machine, free_disk_bytes: int
) -> list[Problem]:
    """The disk holds what is made, and memory the making."""
    problems = []
    disk = WORKING_SPACE * facts.num_bytes
    if disk > free_disk_bytes:
        message = f"about {disk / GIB:.1f} GiB of disk are needed, {free_disk_bytes / GIB:.1f} GiB are free there"
        problems.append(Problem("home", message, ("free some space", "home=/another/disk, or export PARSIMONY_HOME")))
    if method.memory is not None:
        problems += _check_memory(method, calib, facts, machine)
    return problems


def _check_memory(method: registry.Method, calib: CalibConfig, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The estimated peak fits into host and device memory; names the calibration that would fit."""
    assert method.memory is not None
    estimate = method.memory
    asked = CalibrationSize(calib.num_samples, calib.length) if method.needs_calibration else CalibrationSize(0, 0)
    host_room = float("inf") if machine.host_memory_bytes is None else machine.host_memory_bytes
    device_room = machine.device_memory_bytes if machine.device == "cuda" else None

    def fits(size: CalibrationSize) -> bool:
        need = estimate(facts, machine, size)
        return need.host_bytes <= host_room and (device_room is None or need.device_bytes <= device_room)

    if fits(asked):
        return []
    need = estimate(facts, machine, asked)
    ways = ["a smaller model", "a machine with more memory"]
    shorter = [length for length in (4096, 2048, 1024, 512, 256, 128) if length < calib.length]
    fewer = [count for count in (512, 256, 128, 64, 32, 16, 8, 4) if count < calib.num_samples]
    for length in shorter if method.needs_calibration else ():
        if fits(CalibrationSize(calib.num_samples, length)):
            ways.insert(0, f"calib.length={length}")
            break
    for count in fewer if method.needs_calibration else ():
        if fits(CalibrationSize(count, calib.length)):
            ways.insert(0, f"calib.num_samples={count}")
            break
    device = "" if device_room is None else f" and {need.device_bytes / GIB:.1f} GiB on the GPU"
    have = "an unknown amount" if machine.host_memory_bytes is None else f"{host_room / GIB:.1f} GiB"
    have += "" if device_room is None else f" and {device_room / GIB:.1f} GiB"
    message = f"'{method.name}' needs about {need.host_bytes / GIB:.1f} GiB of host memory{device}, there are {have}"
    return [Problem("quant.method", message, tuple(ways))]


def ledger_problems(finops: FinopsConfig) -> list[Problem]:
    """A password in a URL would stand in logs and in MLflow; a negative threshold means nothing."""
    problems = []
    uri, threshold = finops.ledger.uri, finops.approval.threshold_usd
    if uri is not None and urlsplit(uri).password:
        way = f"export {LEDGER_VARIABLE}=..., and finops.ledger.uri=null"
        problems.append(Problem("finops.ledger.uri", "holds a password, which would be recorded", (way,)))
    if threshold is not None and not 0 <= threshold < 1e6:
        message = f"{threshold} is not allowed; it must be null, or at least 0 and below 1000000 (USD)"
        problems.append(Problem("finops.approval.threshold_usd", message))
    return problems


def fleet_problems(peak: float | None, energy: EnergyConfig) -> list[Problem]:
    """What is wrong with the peak load and the price of electricity."""
    problems = []
    if peak is not None and not 0 < peak < 1e9:
        problems.append(Problem("peak_req_per_s", f"{peak} is not allowed; it must be null, or above 0 (requests/s)"))
    if energy.usd_per_kwh is not None and not 0 < energy.usd_per_kwh < 100:
        message = f"{energy.usd_per_kwh} is not allowed; it must be null, or above 0 and below 100 (USD)"
        problems.append(Problem("finops.energy.usd_per_kwh", message))
    if not 1 <= energy.power_usage_effectiveness < 10:
        message = f"{energy.power_usage_effectiveness} is not allowed; it must be at least 1 and below 10"
        problems.append(Problem("finops.energy.power_usage_effectiveness", message))
    return problems
