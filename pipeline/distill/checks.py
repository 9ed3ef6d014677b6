"""What can be seen to be wrong with a distillation before anything is read or loaded. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.errors import Problem, closest
from pipeline.config import DistillConfig, StudentConfig
from pipeline.distill.student_size import ADAM_BYTES, num_dropped, student_parameters
from pipeline.types import Machine, ModelFacts

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "none")
DATA_MODES = ("text", "teacher", "on_policy")
TEACHER_MODES = ("live", "cached")
ACTIVATION_BYTES = 4
"""Bytes of a frozen teacher's weight while it runs: float32 on a CPU, an upper bound on a GPU."""
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("student.drop_fraction", lambda value: value is None or 0 < value < 1, "null, or between 0 and 1"),
    ("objective.divergence_weight", lambda value: value >= 0, "at least 0"),
    ("objective.temperature", lambda value: value > 0, "above 0"),
    ("objective.beta", lambda value: 0 < value < 1, "between 0 and 1"),
    ("objective.cross_entropy_weight", lambda value: value >= 0, "at least 0"),
    ("objective.hidden_weight", lambda value: value >= 0, "at least 0"),
    ("data.length", lambda value: value >= 16, "at least 16"),
    ("data.max_tokens", lambda value: value is None or value >= 16, "null, or at least 16"),
    ("data.prompt_tokens", lambda value: value >= 1, "at least 1"),
    ("data.sampling_temperature", lambda value: value > 0, "above 0"),
    ("data.on_policy_fraction", lambda value: 0 < value <= 1, "above 0, at most 1"),
    ("data.seed", lambda value: value >= 0, "at least 0"),
    ("teacher.top_k", lambda value: value >= 1, "at least 1"),
    ("train.num_steps", lambda value: value >= 1, "at least 1"),
    ("train.batch_size", lambda value: value >= 1, "at least 1"),
    ("train.micro_batch_size", lambda value: value >= 1, "at least 1"),
    ("train.learning_rate", lambda value: value > 0, "above 0"),
    ("train.warmup_fraction", lambda value: 0 <= value < 1, "at least 0, below 1"),
    ("train.weight_decay", lambda value: value >= 0, "at least 0"),
    ("train.max_grad_norm", lambda value: value > 0, "above 0"),
    ("train.chunk_tokens", lambda value: value >= 1, "at least 1"),
    ("train.log_every_steps", lambda value: value >= 1, "at least 1"),
    ("train.diverge_factor", lambda value: value > 1, "above 1"),
    ("train.num_processes", lambda value: value >= 1, "at least 1"),
    ("spot.every_steps", lambda value: value >= 1, "at least 1"),
    ("spot.keep", lambda value: value >= 1, "at least 1"),
    ("spot.grace_s", lambda value: value > 0, "above 0"),
    ("spot.heartbeat_s", lambda value: value >= 0, "at least 0"),
)
"""Keys of `distill` whose value has a range: key, test, and the range in words."""


def check(config: DistillConfig, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """Every problem that configuration and facts show; nothing is read or loaded."""
    if not config.enabled:
        return []
    problems = _check_ranges(config)
    if problems:
        return problems
    return [
        *_check_student(config, facts),
        *_check_choices(config),
        *_check_data(config, facts),
        *_check_processes(config, machine),
        *_check_memory(config, facts, machine),
    ]


def _check_ranges(config: DistillConfig) -> list[Problem]:
    problems = []
    for key, allowed, words in RANGES:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not allowed(value):
            problems.append(Problem(f"distill.{key}", f"{value} is not allowed; it must be {words}"))
    return problems


def _check_student(config: DistillConfig, facts: ModelFacts) -> list[Problem]:
    student = config.student
    cuts = {
        "drop_fraction": student.drop_fraction,
        "drop_layers": student.drop_layers,
        "intermediate_size": student.intermediate_size,
        "num_kv_heads": student.num_kv_heads,
    }
    given = [name for name, value in cuts.items() if value is not None]
    if student.path is not None:
        if given:
            message = f"a given checkpoint is not cut: {', '.join(f'distill.student.{name}' for name in given)}"
            return [Problem("distill.student.path", message, ("remove one of the two",))]
        return []
    if not given:
        ways = ("distill.student.drop_fraction=0.33", "distill.student.path=/a/smaller/checkpoint")
        return [Problem("distill.student", "nothing says how the student is made", ways)]
    problems = []
    if student.drop_layers is not None:
        problems += _check_layers(student, facts)
    elif student.drop_fraction is not None and num_dropped(student, facts.num_layers) < 1:
        message = f"{student.drop_fraction} of {facts.num_layers} layers is less than one layer"
        problems.append(Problem("distill.student.drop_fraction", message))
    for name, most, what in (
        ("intermediate_size", facts.intermediate_size, "neurons"),
        ("num_kv_heads", facts.num_kv_heads, "key-value heads"),
    ):
        value = cuts[name]
        if isinstance(value, int) and not 1 <= value <= most:
            problems.append(
                Problem(f"distill.student.{name}", f"{value} is not allowed; '{facts.name}' has {most} {what}")
            )
    return problems


def _check_layers(student: StudentConfig, facts: ModelFacts) -> list[Problem]:
    layers = student.drop_layers or []
    key = "distill.student.drop_layers"
    problems = []
    outside = [layer for layer in layers if not 0 <= layer < facts.num_layers]
    if outside:
        listed = ", ".join(map(str, outside))
        message = f"layer {listed} does not exist; '{facts.name}' has layers 0 to {facts.num_layers - 1}"
        problems.append(Problem(key, message))
    if len(set(layers)) < len(layers):
        problems.append(Problem(key, f"a layer is listed twice: {layers}"))
    if not layers or len(layers) >= facts.num_layers:
        problems.append(Problem(key, f"{len(layers)} of {facts.num_layers} layers is not a student"))
    if student.drop_fraction is not None:
        problems.append(Problem(key, "give the layers or distill.student.drop_fraction, not both"))
    return problems


def _check_choices(config: DistillConfig) -> list[Problem]:
    problems = []
    for key, value, known in (
        ("objective.divergence", config.objective.divergence, DIVERGENCES),
        ("data.mode", config.data.mode, DATA_MODES),
        ("teacher.mode", config.teacher.mode, TEACHER_MODES),
    ):
        if value not in known:
            message = f"'{value}' is not one of {', '.join(known)}{closest(value, known)}"
            problems.append(Problem(f"distill.{key}", message))
    objective = config.objective
    total = objective.cross_entropy_weight + objective.hidden_weight
    if objective.divergence != "none":
        total += objective.divergence_weight
    if total == 0:
        ways = ("distill.objective.cross_entropy_weight=1 for plain fine-tuning",)
        problems.append(Problem("distill.objective", "every weight is 0: there is nothing to minimize", ways))
    if config.data.mode == "on_policy" and config.train.fsdp:
        message = "a sharded student cannot write sequences"
        problems.append(Problem("distill.data.mode", message, ("distill.train.fsdp=false", "distill.data.mode=text")))
    if config.teacher.mode == "cached":
        if objective.hidden_weight > 0:
            message = "hidden states are not in the teacher's cache"
            problems.append(Problem("distill.objective.hidden_weight", message, ("distill.teacher.mode=live",)))
        if config.data.mode == "on_policy":
            message = "a cache cannot contain what the student has yet to write"
            problems.append(Problem("distill.data.mode", message, ("distill.teacher.mode=live",)))
    return problems


def _check_data(config: DistillConfig, facts: ModelFacts) -> list[Problem]:
    data, train = config.data, config.train
    problems = []
    if not data.sources:
        ways = ("distill.data.sources=[/a/text/file.txt]", "distill.data.sources=[squad,coqa,drop,lambada]")
        problems.append(Problem("distill.data.sources", "no text is given", ways))
    if data.length > facts.max_positions:
        message = f"{data.length} is longer than the {facts.max_positions} positions of '{facts.name}'"
        problems.append(Problem("distill.data.length", message, (f"distill.data.length={facts.max_positions}",)))
    if data.mode != "text" and data.prompt_tokens >= data.length:
        message = f"{data.prompt_tokens} leaves nothing to write in sequences of {data.length} tokens"
        problems.append(Problem("distill.data.prompt_tokens", message))
    if config.teacher.top_k >= facts.vocab_size:
        message = f"{config.teacher.top_k} is not below the vocabulary's {facts.vocab_size} tokens"
        problems.append(Problem("distill.teacher.top_k", message))
    per_pass = train.micro_batch_size * train.num_processes
    if train.batch_size % per_pass:
        message = (
            f"{train.batch_size} is no multiple of micro_batch_size x num_processes = "
            f"{train.micro_batch_size} x {train.num_processes}"
        )
        problems.append(Problem("distill.train.batch_size", message, (f"distill.train.batch_size={per_pass}",)))
    return problems


def _check_processes(config: DistillConfig, machine: Machine) -> list[Problem]:
    train = config.train
    problems = []
    if machine.device == "cuda" and train.num_processes > machine.num_devices:
        message = f"{train.num_processes} GPUs are asked for, this machine has {machine.num_devices}"
        way = f"distill.train.num_processes={machine.num_devices}"
        problems.append(Problem("distill.train.num_processes", message, (way,)))
    if train.fsdp and train.num_processes < 2:
        ways = ("distill.train.fsdp=false", "distill.train.num_processes=2")
        problems.append(Problem("distill.train.fsdp", "one process has nothing to shard over", ways))
    if train.bf16 and not machine.has_bf16:
        message = f"{machine.device_name} has no bfloat16 instructions"
        problems.append(Problem("distill.train.bf16", message, ("distill.train.bf16=false",)))
    return problems


def _check_memory(config: DistillConfig, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """Student weights, gradients and moments, and a live teacher, must fit; activations come on top."""
    if config.student.path is not None:
        return []
    student = student_parameters(config.student, facts) * (ADAM_BYTES + 4)
    if config.train.fsdp:
        student //= config.train.num_processes
    live = config.needs_teacher and config.teacher.mode == "live"
    teacher = facts.num_parameters * (2 if machine.device == "cuda" else ACTIVATION_BYTES) if live else 0
    room = machine.device_memory_bytes if machine.device == "cuda" else machine.host_memory_bytes
    if machine.device == "cpu":
        student, teacher = student * config.train.num_processes, teacher * config.train.num_processes
    if room is None or student + teacher <= room:
        return []
    message = (
        f"the student's weights, gradients and moments need {student / 2**30:.1f} GiB, the teacher "
        f"{teacher / 2**30:.1f} GiB; {machine.device_name} has {room / 2**30:.1f} GiB"
    )
    ways = ("distill.teacher.mode=cached", "distill.train.fsdp=true over more GPUs")
    return [Problem("distill", message, ways)]
