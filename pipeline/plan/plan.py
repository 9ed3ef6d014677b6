"""From configuration and facts to a Plan, or to every problem at once. It asks no machine, and reads no file but the
task files that it is given (`suite.files`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import PlanError, Problem, closest
from evals.config import GateConfig, SuiteConfig
from evals.gate.scores import SCORES
from evals.gate.sequential import ORDERS
from evals.quality.chat import missing_template
from evals.quality.embedded import EMBEDDED_TASKS
from evals.quality.task_file import task_file_problem
from evals.types import Price
from pipeline.compress import registry
from pipeline.config import RunConfig
from pipeline.distill.checks import check as check_distill
from pipeline.distill.student_size import student_facts
from pipeline.plan.checks import (
    check_device,
    check_external,
    check_model,
    check_numbers,
    check_publish,
    check_room,
    check_split,
    fleet_problems,
    ledger_problems,
)
from pipeline.plan.tags import tag_problems
from pipeline.serve.checks import check_batch_invariance, check_engine, check_kv_cache, check_size, engine_suffix
from pipeline.serve.memory import memory_problems
from pipeline.types import Candidate, Machine, ModelFacts, Plan

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
"""An external checkpoint's format -> what its layers multiply. Those of INT4 may have INT8 weights (`quant_bits`)."""
RANDOM_WEIGHTS = "the weights are random: quality is meaningless, and such a run is never promoted"


def make_plan(
    config: RunConfig,
    facts: ModelFacts,
    machine: Machine,
    price: Price,
    free_disk_bytes: int,
    external: ModelFacts | None = None,
) -> Plan:
    """Decide what a run will do.

    Args:
        config: the run's configuration.
        facts: the base model.
        machine: where it will run.
        price: what that costs.
        free_disk_bytes: room for what will be made.
        external: facts of an external checkpoint (`quant=external`).

    Raises:
        PlanError: it cannot run; holds every problem that was found, each with its ways out.

    """
    values = dict(config.quant)
    name = str(values.pop("method", "none"))
    method = registry.method(name)
    args = registry.method_args(name, values)
    name = method.name  # an alias gives the same label and plan
    of_distill = check_distill(config.distill, facts, machine)
    cut = config.distill.enabled and config.distill.student.path is None and not of_distill
    compressed = student_facts(config.distill.student, facts) if cut else facts
    of_external = check_external(config.model.name, facts, external) if registry.is_external(config.quant) else []
    problems = [
        *of_external,
        *check_model(config.model, facts),
        *of_distill,
        *check_device(method, machine),
        *method.check(args, compressed, machine),
        *check_numbers(config),
        *_check_suite(config.suite),
        *_check_chat(config.suite, facts, external),
        *_check_gate(config.gate, config.suite.tasks),
        *check_size(config.engine, facts, machine),
        *check_engine(config.engine, facts),
        *memory_problems(config.engine, facts, machine),
        *check_kv_cache(config.engine, machine),
        *check_batch_invariance(config.engine, machine),
        *check_split(method, config.engine, machine),
        *check_room(method, config.calib, facts, machine, free_disk_bytes),
        *check_publish(config.publish),
        *tag_problems(config),
        *ledger_problems(config.finops),
        *fleet_problems(config.peak_req_per_s, config.finops.energy),
    ]
    if problems:
        raise PlanError(problems)
    random = config.model.weights == "random"
    baseline = Candidate("baseline", "none", {}, "none")
    candidate = _candidate(name, method, args, compressed, config, external)
    notes = [config.model.note] if config.model.note else []
    notes += list(price.warnings)
    notes += _kernel_notes(method, machine, external)
    if random:
        notes.append(RANDOM_WEIGHTS)
    return Plan(
        facts=facts,
        machine=machine,
        price=price,
        baseline=baseline,
        candidate=candidate,
        quality_invalid_reason=RANDOM_WEIGHTS if random else "",
        notes=tuple(notes),
    )


def _candidate(
    name: str, method: registry.Method, args: Any, facts: ModelFacts, config: RunConfig, external: ModelFacts | None
) -> Candidate | None:
    """What is compared with the baseline; None where the baseline itself was asked for."""
    suffix = engine_suffix(config.engine)
    if external is not None:
        made = {"format": external.quant_format or "16 bit"}
        return Candidate("candidate", name, made, f"{name}:{made['format']}{suffix}")
    student = config.distill.name if config.distill.enabled else ""
    if name == "none" and not suffix and not student:
        return None
    label = student if student and name == "none" else f"{student}+{name}" if student else name
    return Candidate("candidate", name, vars(method.resolve(args, facts)), label + suffix)


def _kernel_notes(method: registry.Method, machine: Machine, external: ModelFacts | None) -> list[str]:
    """What serves the weights where vLLM has no kernel of its own for them."""
    if machine.device != "cpu":
        return []
    lacking = {"w4a16": not machine.has_int4, "w8a16": True, "w8a8": not machine.has_int8}
    products = method.products
    if external is not None:
        products = PRODUCTS_OF_FORMAT.get(external.quant_format or "", ())
        if external.quant_bits == 8:
            products = tuple("w8a16" if product == "w4a16" else product for product in products)
    return [NO_KERNEL[product] for product in products if lacking[product]]


def _check_suite(suite: SuiteConfig) -> list[Problem]:
    if suite.source not in ("embedded", "hub", "files"):
        return [Problem("suite.source", f"'{suite.source}' is not one of embedded, hub, files")]
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
    if suite.source == "files":
        problems += _check_task_files(suite.tasks, suite.files)
    return problems


def _check_chat(suite: SuiteConfig, *checkpoints: ModelFacts | None) -> list[Problem]:
    """Every checkpoint whose folder is here has the chat template that the suite asks for."""
    if not suite.apply_chat_template:
        return []
    without = [facts for facts in checkpoints if facts is not None and facts.has_chat_template is False]
    return [missing_template(facts.name) for facts in without]


def _check_task_files(tasks: Sequence[str], files: Mapping[str, str]) -> list[Problem]:
    """Every task has a file that is there and names it, so that lm-eval finds the task under its name."""
    problems = []
    for task in tasks:
        field = f"suite.files.{task}"
        if task not in files:
            way = f"suite.files={{{task}: /a/folder/{task}.yaml}}"
            problems.append(Problem("suite.files", f"no task file is given for '{task}'{closest(task, files)}", (way,)))
        elif (wrong := task_file_problem(task, Path(files[task]).expanduser())) is not None:
            problems.append(Problem(field, wrong))
    return problems


def _check_gate(gate: GateConfig, tasks: Sequence[str]) -> list[Problem]:
    """Order and score are known, and every task that the gate names is one of the suite's."""
    problems = []
    for key, value, known in (("gate.order", gate.order, ORDERS), ("gate.score", gate.score, SCORES)):
        if value not in known:
            problems.append(Problem(key, f"'{value}' is not one of {', '.join(known)}{closest(value, known)}"))
    if gate.tasks is not None and not gate.tasks:
        problems.append(Problem("gate.tasks", "no task decides, so nothing could be promoted", ("gate.tasks=null",)))
    named = [("gate.tasks", task) for task in gate.tasks or ()]
    named += [("gate.task_delta_points", task) for task in gate.task_delta_points]
    for key, task in named:
        if task not in tasks:
            listed = f"the suite's tasks: {', '.join(tasks)}"
            problems.append(Problem(key, f"'{task}' is not in the suite{closest(task, tasks)}; {listed}"))
    for task, points in gate.task_delta_points.items():
        if not 0 <= points < 100:
            problems.append(Problem(f"gate.task_delta_points.{task}", f"{points} is not at least 0 and below 100"))
    return problems
