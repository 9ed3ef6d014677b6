"""A run's plan with what it rests on: this machine or the one that is planned for, its price, and the free disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from core.environments import check_installed, serving_python
from core.errors import AssetError, ConfigError
from core.files import digest_json
from core.store import StageStore
from evals.load.scenario import LoadScenario, from_config
from evals.types import Price
from finops.pricing.prices import hardware_of_device, lookup
from pipeline.checkpoints.facts import facts_from_folder
from pipeline.checkpoints.sources import model_facts
from pipeline.compress import registry
from pipeline.config import RunConfig
from pipeline.plan.machine import find_machine
from pipeline.plan.plan import make_plan
from pipeline.plan.tags import with_tags
from pipeline.plan.variants import Variants, variants_of
from pipeline.stages.graph import Stage, pending, with_needs
from pipeline.types import Machine, Plan

NOT_BUILT = Path("/not-built/bin/python")
"""In place of an interpreter whose environment is not built."""
RUN_PACKAGES = ("lm-eval", "mlflow", "pip", "tokenizers", "torch", "transformers")
"""What every run needs, whatever its method: recording comes last, and must not be where the first one is missed."""


@dataclass(frozen=True)
class RunPlan:
    """What a run will do, and with what: everything that happens later walks `stages`."""

    config: RunConfig
    """The configuration with everything automatic made definite."""
    choices: Plan
    scenario: LoadScenario
    variants: Variants
    serving_python: Path
    store: StageStore
    """Where finished stages are looked up."""

    @property
    def home(self) -> Path:
        """The cache folder."""
        return Path(self.config.home)

    @cached_property
    def stages(self) -> tuple[Stage[object], ...]:
        """Every stage, once, in the order of the run."""
        return with_needs(self.variants.targets)

    @cached_property
    def pending(self) -> tuple[Stage[object], ...]:
        """The stages that the store does not have."""
        return pending(self.variants.targets, self.store)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the run makes and measures: what an approval binds to."""
        return digest_json([[stage.label, stage.name, stage.key] for stage in self.stages])


def resolve(config: RunConfig) -> RunPlan:
    """Plan a run on this machine.

    Raises:
        PlanError: it cannot run; holds every problem that was found.
        ConfigError, AssetError: the configuration names what there is not.

    """
    scenario = from_config(config.load)
    machine = planned_machine(config, find_machine())
    config, external = without_checkpoint(replace(config, engine=planned_engine(config, machine)))
    made = None if external is None else facts_from_folder(external.name, external)
    free = free_disk_bytes(Path(config.home))
    choices = make_plan(config, model_facts(config.model), machine, find_price(config, machine), free, made)
    config = with_tags(config)
    store = StageStore(Path(config.home) / "store")
    python = planned_serving_python(config)
    if not config.dry_run:
        check_installed(*RUN_PACKAGES, *registry.method(str(config.quant["method"])).tools)
    variants = variants_of(config, choices, scenario, external, python, store)
    return RunPlan(config, choices, scenario, variants, python, store)


def planned_serving_python(config: RunConfig) -> Path:
    """The serving environment's interpreter; a dry run needs none: nothing was measured with one that is not built."""
    try:
        return serving_python()
    except ConfigError:
        if not config.dry_run:
            raise
        return NOT_BUILT


def without_checkpoint(config: RunConfig) -> tuple[RunConfig, Path | None]:
    """For `quant=external`: the baseline's configuration, and the folder of the external checkpoint."""
    model = config.model
    if not registry.is_external(config.quant) or model.path is None or model.source == "path":
        return config, None
    return replace(config, model=replace(model, path=None)), Path(model.path)


def find_price(config: RunConfig, machine: Machine) -> Price:
    """The machine's row of the price catalog, or the user's own price."""
    hardware = config.hardware
    name = hardware.name
    if name == "auto" and machine.device == "cpu":
        name = "cpu"
    elif name == "auto":
        own = hardware.usd_per_hour is not None
        name = machine.device_name if own else hardware_of_device(machine.device_name)
    num_devices = machine.num_cpus if machine.device == "cpu" else config.engine.tensor_parallel_size
    return lookup(
        name,
        hardware.purchase_option,
        num_devices,
        usd_per_hour=hardware.usd_per_hour,
        region=config.region,
        residency=config.residency,
        today=datetime.now(UTC).date(),
    )


def planned_machine(config: RunConfig, found: Machine) -> Machine:
    """The machine that the plan is for: this one, or in a dry run the one that `hardware=` names."""
    hardware = config.hardware
    if hardware.name in ("auto", "cpu") or hardware.memory_gib is None:
        return found
    memory = int(hardware.memory_gib * 2**30)
    if not config.dry_run and found.device != "cuda":
        raise AssetError(
            f"hardware={hardware.name}: this machine has no GPU\n  -> dry_run=true plans for it\n  -> hardware=auto"
        )
    if config.dry_run:
        count = config.engine.tensor_parallel_size
        return replace(
            found,
            device="cuda",
            device_name=hardware.name,
            num_devices=count,
            device_memory_bytes=memory,
            host_memory_bytes=None,
            compute_capability=hardware.compute_capability,
        )
    return found


def planned_engine(config: RunConfig, machine: Machine) -> Any:
    """The engine with `dtype=auto` made definite: bfloat16 where the hardware computes it, else float32 on a CPU."""
    if config.engine.dtype != "auto" or machine.device != "cpu":
        return config.engine
    return replace(config.engine, dtype="bfloat16" if machine.has_bf16 else "float32")


def free_disk_bytes(folder: Path) -> int:
    """Free bytes on the disk that will hold this folder."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
