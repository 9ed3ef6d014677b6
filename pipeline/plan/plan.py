"""From configuration and facts to a Plan, or to every problem at once. Pure: it reads no file and asks no machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.errors import PlanError, Problem, closest
from core.files import digest_json, plain
from evals.gate.sequential import ORDERS
from evals.quality.embedded import EMBEDDED_TASKS
from evals.types import Price
from pipeline.billing.terms import fleet_problems, ledger_problems, tag_problems
from pipeline.checkpoints.publish import name_problem
from pipeline.compress import registry
from pipeline.compress.memory import CalibrationSize
from pipeline.compress.methods.fp8 import FP8_CAPABILITY
from pipeline.config import RunConfig
from pipeline.distill.checks import check as check_distill
from pipeline.distill.student_size import student_facts
from pipeline.serve.checks import check_engine, engine_suffix
from pipeline.types import Candidate, Machine, ModelFacts, Plan

WORKING_SPACE = 2.5
"""Disk needed, as a multiple of the checkpoint: the base in 16 bit, the variant, and a copy while it is written."""
AUTO = "auto"
SERVED_AS_PLAIN = (
    "vLLM has no kernel for {} on this processor: they become plain ones again as the model loads; quality is that of "
    "the quantized weights, speed and price are those of plain ones"
)
NO_KERNEL = {
    "w4a16": SERVED_AS_PLAIN.format("INT4 weights"),
    "w8a16": SERVED_AS_PLAIN.format("INT8 weights with 16-bit activations"),
    "w8a8": "vLLM has no kernel for INT8 products that is right on this processor (without VNNI sums are cut off at 16 "
    "bits): the same codes are multiplied in float32; quality is that of the quantized model, speed and price are not",
}
"""What a plan says where vLLM lacks the kernel of a product (`registry.Method.products`)."""
PRODUCTS_OF_FORMAT = {
    "pack-quantized": ("w4a16",), "gptq": ("w4a16",), "awq": ("w4a16",), "int-quantized": ("w8a8",),
    "mixed-precision": ("w4a16", "w8a8"),
}  # fmt: skip
"""A format made elsewhere -> what its layers multiply; those of INT4 hold INT8 weights where the checkpoint says so."""
KV_CACHE_DTYPES = (AUTO, "fp8")
RANDOM_WEIGHTS = "the weights are random: quality is meaningless, and such a run is never promoted"
GIB = 2**30


def make_plan(
    config: RunConfig,
    facts: ModelFacts,
    machine: Machine,
    price: Price,
    free_disk_bytes: int,
    elsewhere: ModelFacts | None = None,
) -> Plan:
    """Decide what a run will do.

    Args:
        config: the run's configuration.
        facts: the base model.
        machine: where it will run.
        price: what that costs.
        free_disk_bytes: room for what will be made.
        elsewhere: facts of a checkpoint that was made elsewhere (`quant=as-is`).

    Raises:
        PlanError: it cannot run; holds every problem that was found, each with its ways out.

    """
    values = dict(config.quant)
    name = str(values.pop("method", "none"))
    method = registry.method(name)
    args = registry.method_args(name, values)
    of_distill = check_distill(config.distill, facts, machine)
    cut = config.distill.enabled and config.distill.student.path is None and not of_distill
    compressed = student_facts(config.distill.student, facts) if cut else facts
    problems = [
        *_check_model(config, facts, elsewhere),
        *of_distill,
        *_check_device(method, machine),
        *method.check(args, compressed, machine),
        *_check_numbers(config),
        *_check_suite(config),
        *_check_gate(config),
        *_check_engine(config, facts, machine),
        *check_engine(config.engine, facts),
        *_check_kv_cache(config, machine),
        *_check_split(method, config, machine),
        *_check_room(method, config, facts, machine, free_disk_bytes),
        *_check_publish(config),
        *tag_problems(config),
        *ledger_problems(config),
        *fleet_problems(config),
    ]
    if problems:
        raise PlanError(problems)
    random = config.model.weights == "random"
    baseline = Candidate("baseline", "none", {}, "none")
    candidate = _candidate(name, method, args, compressed, config, elsewhere)
    decides = {
        "model": config.model,
        "candidate": candidate,
        "distill": {key: value for key, value in plain(config.distill).items() if key != "spot"},
        "calib": config.calib if method.needs_calibration else None,
        "suite": config.suite,
        "load": config.load,
        "engine": config.engine,
        "machine": machine.fingerprint,
        "price": price,
        "gate": config.gate,
        "seed": config.seed,
    }
    notes = [config.model.note] if config.model.note else []
    notes += list(price.warnings)
    notes += _kernel_notes(method, machine, elsewhere)
    if random:
        notes.append(RANDOM_WEIGHTS)
    return Plan(
        facts=facts,
        machine=machine,
        price=price,
        baseline=baseline,
        candidate=candidate,
        meaningless_quality=RANDOM_WEIGHTS if random else "",
        notes=tuple(notes),
        plan_hash=digest_json(decides),
    )


def _candidate(
    name: str, method: registry.Method, args: Any, facts: ModelFacts, config: RunConfig, elsewhere: ModelFacts | None
) -> Candidate | None:
    """What is compared with the baseline; None where the baseline itself was asked for."""
    suffix = engine_suffix(config.engine)
    if elsewhere is not None:
        made = {"format": elsewhere.quant_format or "16 bit"}
        return Candidate("candidate", name, made, f"{name}:{made['format']}{suffix}")
    student = config.distill.name if config.distill.enabled else ""
    if name == "none" and not suffix and not student:
        return None
    label = student if student and name == "none" else f"{student}+{name}" if student else name
    return Candidate("candidate", name, vars(method.resolve(args, facts)), label + suffix)


def _kernel_notes(method: registry.Method, machine: Machine, elsewhere: ModelFacts | None) -> list[str]:
    """What serves the weights where vLLM has no kernel of its own for them."""
    if machine.device != "cpu":
        return []
    lacking = {"w4a16": not machine.has_int4, "w8a16": True, "w8a8": not machine.has_int8}
    products = method.products
    if elsewhere is not None:
        products = PRODUCTS_OF_FORMAT.get(elsewhere.quant_format or "", ())
        if elsewhere.quant_bits == 8:
            products = tuple("w8a16" if product == "w4a16" else product for product in products)
    return [NO_KERNEL[product] for product in products if lacking[product]]


def _check_model(config: RunConfig, facts: ModelFacts, elsewhere: ModelFacts | None) -> list[Problem]:
    problems = []
    if config.quant.get("method") == "as-is":
        problems += _check_elsewhere(config, facts, elsewhere)
    if config.model.weights not in ("real", "random"):
        ways = ("model.weights=real", "model.weights=random")
        problems.append(Problem("model.weights", f"'{config.model.weights}' is not one of real, random", ways))
    if facts.quant_format is not None:
        problems.append(
            Problem(
                "model.path",
                f"this checkpoint is quantized already (format '{facts.quant_format}')",
                ("model=NAME model.path=FOLDER quant=as-is, NAME being the model that it was made from",),
            )
        )
    return problems


def _check_elsewhere(config: RunConfig, facts: ModelFacts, elsewhere: ModelFacts | None) -> list[Problem]:
    """The checkpoint made elsewhere is of the baseline's shape."""
    if elsewhere is None:
        way = "model=NAME model.path=FOLDER quant=as-is, NAME being the model that it was made from"
        return [Problem("model.path", "quant=as-is takes a checkpoint made elsewhere, and none is given", (way,))]
    same = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size")
    differ = [key for key in same if getattr(facts, key) != getattr(elsewhere, key)]
    if not differ:
        return []
    named = ", ".join(f"{key} {getattr(elsewhere, key)} against {getattr(facts, key)}" for key in differ)
    message = f"the checkpoint is not a form of '{config.model.name}': {named}"
    return [Problem("model.path", message, ("model= the model that it was made from",))]


def _check_device(method: registry.Method, machine: Machine) -> list[Problem]:
    if machine.device in method.devices:
        return []
    why = method.refused.get(machine.device)
    works = [name for name in registry.COMPRESS if machine.device in registry.method(name).devices]
    ways = [f"on this machine: {', '.join(f'quant={name}' for name in works)}"]
    if method.nearest:
        ways.insert(0, f"quant={method.nearest} is the nearest that does")
    message = f"'{method.name}' does not run on {machine.device}" + (f": {why}" if why else "")
    return [Problem("quant.method", message, tuple(ways))]


def _check_kv_cache(config: RunConfig, machine: Machine) -> list[Problem]:
    """FP8 keys and values need FP8 units on a GPU, and AVX-512 or AMX on a CPU."""
    wanted = config.engine.kv_cache_dtype
    if wanted not in KV_CACHE_DTYPES:
        return [Problem("engine.kv_cache_dtype", f"'{wanted}' is not one of {', '.join(KV_CACHE_DTYPES)}")]
    if wanted == AUTO:
        return []
    if machine.device == "cuda":
        has = (machine.compute_capability or 0) >= FP8_CAPABILITY
        needed = f"compute capability {FP8_CAPABILITY}, {machine.device_name} has {machine.compute_capability}"
    else:
        has, needed = machine.has_fp8_cache, f"AVX-512 or AMX on a CPU, {machine.device_name} has neither"
    if has:
        return []
    return [Problem("engine.kv_cache_dtype", f"'{wanted}' needs {needed}", (f"engine.kv_cache_dtype={AUTO}",))]


def _check_split(method: registry.Method, config: RunConfig, machine: Machine) -> list[Problem]:
    """Whether the checkpoint can be split over the GPUs of one replica."""
    count = config.engine.tensor_parallel_size
    if machine.device != "cuda" or count == 1 or method.splits:
        return []
    message = f"vLLM does not split a checkpoint of '{method.name}' over {count} GPUs"
    return [Problem("engine.tensor_parallel_size", message, ("engine.tensor_parallel_size=1", "quant=gptq"))]


NUMBERS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("suite.num_items", lambda value: value is None or value >= 2, "null, or at least 2"),
    ("suite.num_concurrent", lambda value: value >= 1, "at least 1"),
    ("suite.num_fewshot", lambda value: value is None or value >= 0, "null, or at least 0"),
    ("calib.num_samples", lambda value: value >= 1, "at least 1"),
    ("calib.length", lambda value: value >= 16, "at least 16"),
    ("gate.delta_points", lambda value: 0 <= value < 100, "at least 0, below 100 (2 is 2 points of the score)"),
    ("gate.alpha", lambda value: 0 < value < 0.5, "between 0 and 0.5"),
    ("gate.beta", lambda value: 0 < value < 0.5, "between 0 and 0.5"),
    ("gate.num_candidates", lambda value: value >= 1, "at least 1"),
    ("gate.max_items", lambda value: value is None or value >= 1, "null, or at least 1"),
    ("gate.block_items", lambda value: value >= 1, "at least 1"),
    ("gate.max_age_days", lambda value: value > 0, "above 0"),
    ("gate.num_resamples", lambda value: value >= 100, "at least 100"),
    ("gate.utilisation", lambda value: 0 < value <= 1, "above 0, at most 1"),
    ("gate.slo_ttft_p99_s", lambda value: value is None or value > 0, "null, or above 0"),
    ("gate.slo_tpot_p99_s", lambda value: value is None or value > 0, "null, or above 0"),
    ("engine.max_model_len", lambda value: value >= 256, "at least 256"),
    ("engine.max_num_seqs", lambda value: value >= 1, "at least 1"),
    ("engine.gpu_memory_utilization", lambda value: 0 < value <= 1, "above 0, at most 1"),
    ("engine.cpu_kvcache_gib", lambda value: value >= 1, "at least 1"),
    ("engine.tensor_parallel_size", lambda value: value >= 1, "at least 1"),
    ("engine.startup_timeout_s", lambda value: value > 0, "above 0"),
    ("seed", lambda value: value >= 0, "at least 0"),
)
"""Keys whose value has a range: key, test, and the range in words."""


def _check_numbers(config: RunConfig) -> list[Problem]:
    problems = []
    for key, allowed, words in NUMBERS:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not allowed(value):
            problems.append(Problem(key, f"{value} is not allowed; it must be {words}"))
    return problems


def _check_suite(config: RunConfig) -> list[Problem]:
    suite = config.suite
    if suite.source not in ("embedded", "hub"):
        return [Problem("suite.source", f"'{suite.source}' is not one of embedded, hub")]
    if not suite.tasks:
        return [Problem("suite.tasks", "no task is given", ("suite=small",))]
    problems = []
    if len(set(suite.tasks)) < len(suite.tasks):
        problems.append(Problem("suite.tasks", f"a task is listed twice: {', '.join(suite.tasks)}"))
    if suite.source == "embedded":
        for task in suite.tasks:
            if task not in EMBEDDED_TASKS:
                message = (
                    f"'{task}' is not embedded{closest(task, EMBEDDED_TASKS)}; embedded: {', '.join(EMBEDDED_TASKS)}"
                )
                problems.append(Problem("suite.tasks", message, ("suite=hub for the hub's tasks",)))
    return problems


def _check_gate(config: RunConfig) -> list[Problem]:
    """The order is known, and every task that the gate names is one of the suite's."""
    gate, tasks = config.gate, config.suite.tasks
    problems = []
    if gate.order not in ORDERS:
        problems.append(Problem("gate.order", f"'{gate.order}' is not one of {', '.join(ORDERS)}"))
    if gate.tasks is not None and not gate.tasks:
        problems.append(Problem("gate.tasks", "no task decides, so nothing could be promoted", ("gate.tasks=null",)))
    named = [("gate.tasks", task) for task in gate.tasks or ()]
    named += [("gate.task_delta_points", task) for task in gate.task_delta_points]
    for key, task in named:
        if task not in tasks:
            known = f"the suite's tasks: {', '.join(tasks)}"
            problems.append(Problem(key, f"'{task}' is not in the suite{closest(task, tasks)}; {known}"))
    for task, points in gate.task_delta_points.items():
        if not 0 <= points < 100:
            problems.append(Problem(f"gate.task_delta_points.{task}", f"{points} is not at least 0 and below 100"))
    return problems


def _check_publish(config: RunConfig) -> list[Problem]:
    wrong = None if config.publish.hub is None else name_problem(config.publish.hub)
    return [] if wrong is None else [Problem("publish.hub", wrong)]


def _check_engine(config: RunConfig, facts: ModelFacts, machine: Machine) -> list[Problem]:
    engine = config.engine
    problems = []
    if engine.max_model_len > facts.max_positions:
        message = f"{engine.max_model_len} is longer than the {facts.max_positions} positions of '{facts.name}'"
        problems.append(Problem("engine.max_model_len", message, (f"engine.max_model_len={facts.max_positions}",)))
    if machine.device == "cuda" and engine.tensor_parallel_size > machine.num_devices:
        message = f"{engine.tensor_parallel_size} GPUs are asked for, this machine has {machine.num_devices}"
        problems.append(
            Problem("engine.tensor_parallel_size", message, (f"engine.tensor_parallel_size={machine.num_devices}",))
        )
    if facts.num_heads % engine.tensor_parallel_size:
        message = f"{engine.tensor_parallel_size} does not divide the {facts.num_heads} attention heads"
        problems.append(Problem("engine.tensor_parallel_size", message))
    if machine.device == "cuda":
        room = (machine.device_memory_bytes or 0) * engine.gpu_memory_utilization * engine.tensor_parallel_size
    else:
        room = (machine.host_memory_bytes or 0) - engine.cpu_kvcache_gib * GIB
    if facts.num_bytes > room:
        message = (
            f"the 16-bit baseline needs {facts.num_bytes / GIB:.1f} GiB to be served, "
            f"{machine.device_name} leaves {max(room, 0) / GIB:.1f} GiB"
        )
        more_gpus = ("engine.tensor_parallel_size= over more GPUs",) if machine.device == "cuda" else ()
        ways = (*more_gpus, "a smaller model", "a machine with more memory")
        problems.append(Problem("model", message, ways))
    return problems


def _check_room(
    method: registry.Method, config: RunConfig, facts: ModelFacts, machine: Machine, free_disk_bytes: int
) -> list[Problem]:
    problems = []
    disk = WORKING_SPACE * facts.num_bytes
    if disk > free_disk_bytes:
        message = f"about {disk / GIB:.1f} GiB of disk are needed, {free_disk_bytes / GIB:.1f} GiB are free there"
        problems.append(Problem("home", message, ("free some space", "home=/another/disk, or export PARSIMONY_HOME")))
    if method.memory is not None:
        problems += _check_memory(method, config, facts, machine)
    return problems


def _check_memory(method: registry.Method, config: RunConfig, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The estimated peak fits into host and device memory; names the calibration that would fit."""
    assert method.memory is not None
    estimate = method.memory
    calib = config.calib
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
