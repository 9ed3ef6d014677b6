"""What a run means in money: its tags, its machine as a priced resource, the work its stages are. Pure, no database.

The effects (charges, budgets, approvals) are in `pipeline.billing.account`; nothing in here loads SQLAlchemy, so that
planning, errors and `--help` stay fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.environments import ROOT, serving_python, versions
from core.errors import ConfigError
from core.files import digest_json, plain
from evals.load.scenario import LoadScenario
from evals.quality.embedded import EMBEDDED_TASKS
from finops.ledger.charges import GPU_SLICES, Resource, Usage
from finops.ledger.rates import _mig_share, _num_devices
from pipeline.compress import registry
from pipeline.config import LEDGER_VARIABLE, RunConfig
from pipeline.distill.student_size import student_facts
from pipeline.types import Candidate, Machine, Plan

if TYPE_CHECKING:
    from evals.types import Price

LEDGER_FILE = "finops.db"
"""Beside MLflow's `mlflow.db`: where the commands of `finops` look as well."""
TOKENS_PER_ITEM = 150
"""Rough: a question with its choices. Only ratios of it matter once stages are recorded."""
QUALITY_TOOLS = ("lm-eval", "transformers")


@dataclass(frozen=True)
class Work:
    """One stage that a plan foresees for one variant."""

    label: str
    """The variant."""
    stage: str
    method: str
    num_tokens: int | None
    """Tokens that go through the model; None where nobody knows before."""
    num_parameters: int
    identity: str
    """SHA-256 of the settings that decide what this stage does: the same command finds it again."""


def ledger_url(config: RunConfig) -> str:
    """Where the ledger is: as configured, else as the environment says, else beside MLflow's SQLite store."""
    given = config.finops.ledger.uri or os.environ.get(LEDGER_VARIABLE)
    if given:
        return given if "://" in given else f"sqlite:///{Path(given).expanduser().resolve()}"
    tracking = config.tracking.uri
    file = Path(tracking.removeprefix("sqlite:///")) if tracking.startswith("sqlite:///") else ROOT / "mlruns" / "none"
    return f"sqlite:///{file.resolve().parent / LEDGER_FILE}"


def ledger_file(url: str) -> Path | None:
    """The file of a SQLite ledger; None for a server."""
    return Path(url.removeprefix("sqlite:///").partition("?")[0]) if url.startswith("sqlite:///") else None


def resource_of(price: Price, machine: Machine, host: str) -> Resource:
    """The machine, or the part of it, that the run holds."""
    share = _mig_share(price.hardware)
    is_slice = share != 1
    return Resource(
        id=f"{host}/{machine.device}",
        accelerator=price.hardware,
        kind=kind_of(machine),
        num_devices=_num_devices(price),
        mig_profile=price.hardware.partition("-mig-")[2] or None if is_slice else None,
        slices=round(share * GPU_SLICES) if is_slice else None,
    )


def kind_of(machine: Machine) -> str:
    """GPU or CPU."""
    return "GPU" if machine.device == "cuda" else "CPU"


def planned_works(config: RunConfig, plan: Plan, scenario: LoadScenario) -> list[Work]:
    """The stages of a plan, variant by variant, in their order; a student is made before any variant."""
    works = [_base_work(config, plan)] if config.model.source == "embedded" or plan.meaningless_quality else []
    if config.distill.enabled:
        works.append(_distill_work(config, plan))
    for candidate in (plan.baseline, plan.candidate):
        if candidate is not None:
            works += _variant_works(candidate, config, plan, scenario)
    return works


def _base_work(config: RunConfig, plan: Plan) -> Work:
    """The base checkpoint, where it is made here: fetched and dequantized, or of random weights."""
    seed = config.seed if plan.meaningless_quality else None
    tools = versions(Path(sys.executable), "transformers", "gguf", "torch")
    decides = {"model": config.model, "seed": seed, "tools": tools}
    return _work("", "base", config.model.weights, None, plan.facts.num_parameters, decides)


def _distill_work(config: RunConfig, plan: Plan) -> Work:
    train = config.distill.train
    tokens = train.num_steps * train.batch_size * config.distill.data.length
    decides = {"model": config.model, "distill": config.distill, "calib": config.calib, "seed": config.seed}
    return _work("", "distill", config.distill.name, tokens, plan.facts.num_parameters, decides)


def _variant_works(candidate: Candidate, config: RunConfig, plan: Plan, scenario: LoadScenario) -> list[Work]:
    is_baseline = candidate.role == "baseline"
    method, facts = registry.method(candidate.method), plan.facts
    made = {"model": config.model, "candidate": candidate, "seed": config.seed}
    if config.distill.enabled and not is_baseline:
        made["distill"] = config.distill
        facts = student_facts(config.distill.student, facts) if config.distill.student.path is None else facts
    calib = config.calib if method.needs_calibration else None
    made |= {"calib": calib, "tools": versions(Path(sys.executable), *method.tools)}
    served = {**made, "engine": config.engine, "machine": plan.machine.fingerprint, "vllm": _vllm()}
    asked = {**served, "suite": config.suite, "gate": None if is_baseline else config.gate}
    asked["lm_eval"] = versions(Path(sys.executable), *QUALITY_TOOLS)
    loaded = {**served, "load": scenario, "slo": (config.gate.slo_ttft_p99_s, config.gate.slo_tpot_p99_s)}
    calib_tokens = None if calib is None else calib.num_samples * calib.length
    stages = [("quality", quality_tokens(config), asked), ("load", load_tokens(scenario), loaded)]
    if candidate.method != "none":
        stages.insert(0, ("health", None, {**made, "device": plan.machine.device}))
    if method.compress is not None:
        stages.insert(0, ("compress", calib_tokens, made))
    return [
        _work(candidate.label, stage, candidate.method, tokens, facts.num_parameters, decides)
        for stage, tokens, decides in stages
    ]


def _work(
    label: str, stage: str, method: str, num_tokens: int | None, num_parameters: int, decides: Mapping[str, Any]
) -> Work:
    identity = digest_json({"stage": stage, **plain(decides)})
    return Work(label, stage, method, num_tokens, num_parameters, identity)


def _vllm() -> dict[str, str]:
    try:
        return versions(serving_python(), "vllm")
    except ConfigError:  # not built yet: nothing was measured with it
        return {}


def quality_tokens(config: RunConfig) -> int | None:
    """Tokens of the questions, roughly; None where a task's size is not known before it is loaded."""
    suite, total = config.suite, 0
    for task in suite.tasks:
        known = EMBEDDED_TASKS[task].num_items if task in EMBEDDED_TASKS and suite.source == "embedded" else None
        sizes = [size for size in (known, suite.num_items) if size is not None]
        if not sizes:
            return None
        total += min(sizes) * TOKENS_PER_ITEM
    return total * (1 + (suite.num_fewshot or 0))


def load_tokens(scenario: LoadScenario) -> int | None:
    """Input and output tokens of all requests: of a sweep that goes as far as it may, of a search that needs all of its
    points with the fewest requests. None for a trace, whose lengths are not known before.
    """
    if scenario.trace is not None:
        return None
    one = sum(point.num_requests * (point.input_tokens + point.output_tokens) for point in scenario.points)
    if scenario.sweep is not None:
        steps = [2**power for power in range(scenario.sweep.max_concurrency.bit_length())]
        requests = sum(max(scenario.sweep.min_requests, scenario.sweep.requests_per_slot * step) for step in steps)
        one += requests * (scenario.sweep.input_tokens + scenario.sweep.output_tokens)
    if scenario.search is not None:
        requests = scenario.search.max_points * scenario.search.min_requests
        one += requests * (scenario.search.input_tokens + scenario.search.output_tokens)
    return one * scenario.num_repeats


def load_usage(result: Mapping[str, Any]) -> Usage:
    """Requests and tokens of a load stage's completed requests, for its charge; warm-up requests are not counted."""
    num_requests = input_tokens = output_tokens = 0
    for point in result.get("points", []):
        done = sum(int(repeat.get("num_completed") or 0) for repeat in point["repeats"])
        num_requests += done
        input_tokens += done * int(point["input_tokens"])
        output_tokens += done * int(point["output_tokens"])
    return {"num_requests": num_requests, "input_tokens": input_tokens, "output_tokens": output_tokens}


def with_ledger(config: RunConfig, message: str) -> str:
    """Commands in a message, with the ledger that they must look at where they would not find it themselves."""
    where = ledger_url(config)
    file = ledger_file(where)
    if file is None and config.finops.ledger.uri is None:
        return message  # named by the environment, which the commands read as well
    if file is not None and file == (Path.cwd() / "mlruns" / file.name):
        return message
    for command in ("approvals", "budgets"):
        message = message.replace(f"finops.cli.{command} ", f"finops.cli.{command} --ledger {where} ")
    return message
