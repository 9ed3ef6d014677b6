"""From a plan's choices to its stages: what each variant goes through, as one list in the order of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from core.store import StageStore
from evals.decide.declared import declared_rule
from evals.decide.task_gates import rule_of
from evals.gate.sequential import LOCKSTEP_ABOVE
from evals.load.scenario import LoadScenario
from evals.load.summary import Slo
from evals.quality.run import Suite
from evals.quality.sizes import split_size
from pipeline.compress import registry
from pipeline.config import EngineConfig, RunConfig
from pipeline.distill.results import MachinePrice
from pipeline.distill.student_size import student_facts
from pipeline.serve.engine import baseline_engine
from pipeline.stages.base import base_stage, local_checkpoint
from pipeline.stages.compress import Compress
from pipeline.stages.data import Calibration
from pipeline.stages.distill import Distill, distill_stage
from pipeline.stages.graph import Stage
from pipeline.stages.health import Health
from pipeline.stages.load import Load
from pipeline.stages.noise import Noise
from pipeline.stages.price import InterleavedPrice
from pipeline.stages.quality import Gated, Quality
from pipeline.stages.served import Served
from pipeline.types import Artifact, Candidate, ModelFacts, Plan


@dataclass(frozen=True)
class Variant:
    """One candidate with its stages."""

    candidate: Candidate
    checkpoint: Stage[Artifact]
    """Where its weights come from; the base's own stage for the baseline."""
    health: Health | None
    """None where the weights are the base's own."""
    quality: Quality
    load: Load
    noise: Noise
    """Made by `parsimony noise` alone; a run reads it where it is in the store."""
    price: InterleavedPrice | None = None
    """None for the baseline, where theta_slo is searched, and where no rounds are asked for."""

    @property
    def stages(self) -> tuple[Stage[object], ...]:
        """Its stages, in the order of the run."""
        found = (self.checkpoint, self.health, self.quality, self.load, self.price)
        return tuple(stage for stage in found if stage is not None)


@dataclass(frozen=True)
class Variants:
    """Everything that a run measures."""

    base: Stage[Artifact]
    student: Distill | None
    all: tuple[Variant, ...]
    """The baseline, then the candidate where there is one."""

    @property
    def targets(self) -> tuple[Stage[object], ...]:
        """The stages whose results a run reports, in the order of the run."""
        shared = (self.base,) if self.student is None else (self.base, self.student)
        return (*shared, *(stage for variant in self.all for stage in variant.stages))


def variants_of(
    config: RunConfig,
    plan: Plan,
    scenario: LoadScenario,
    external: Path | None,
    serving_python: Path,
    store: StageStore,
) -> Variants:
    """The stages of a plan.

    Args:
        config: with everything automatic made definite.
        plan: the choices, checked.
        scenario: the load.
        external: folder of a checkpoint that was quantized elsewhere.
        serving_python: interpreter of the serving environment.
        store: where finished stages are looked up; remembers the digests of local folders.

    Raises:
        AssetError: the base comes from the hub, which does not answer.

    """
    base = base_stage(config.model, plan.facts, config.seed, store, is_online=not config.dry_run)
    build = _Builder(config, plan, scenario, serving_python)
    baseline = build.variant(plan.baseline, base, base, plan.facts, None)
    if plan.candidate is None:
        return Variants(base, None, (baseline,))
    source, student, facts = base, None, plan.facts
    if config.distill.enabled:
        source = student = distill_stage(
            base,
            config.distill,
            config.calib,
            config.seed,
            facts=facts,
            price=MachinePrice(config.hardware.purchase_option, plan.price.usd_per_hour),
            engine=config.engine,
            machine=plan.machine,
            serving_python=serving_python,
            store=store,
        )
        if config.distill.student.path is None:
            facts = student_facts(config.distill.student, facts)
    if external is not None:
        given = local_checkpoint(external, store)
        checkpoint: Stage[Artifact] = replace(given, method=plan.candidate.method, label=plan.candidate.label)
    else:
        checkpoint = build.compressed(plan.candidate, source, facts)
    candidate = build.variant(plan.candidate, checkpoint, base, facts, baseline)
    return Variants(base, student, (baseline, candidate))


@dataclass(frozen=True)
class _Builder:
    config: RunConfig
    plan: Plan
    scenario: LoadScenario
    serving_python: Path

    def compressed(self, candidate: Candidate, source: Stage[Artifact], facts: ModelFacts) -> Stage[Artifact]:
        """The checkpoint that a method makes; the source itself where the method makes none."""
        method, config = registry.method(candidate.method), self.config
        if method.compress is None:
            return source
        suite = config.suite
        text = Calibration(config.calib, source, suite.source, tuple(suite.tasks)) if method.needs_calibration else None
        args = candidate.method_args
        size = facts.num_parameters
        return Compress(method, args, source, text, config.seed, config.model, size, candidate.label)

    def variant(
        self,
        candidate: Candidate,
        checkpoint: Stage[Artifact],
        base: Stage[Artifact],
        facts: ModelFacts,
        baseline: Variant | None,
    ) -> Variant:
        """A candidate's stages behind its checkpoint."""
        config, plan = self.config, self.plan
        label, size = candidate.label, facts.num_parameters
        engine = config.engine if baseline is not None else baseline_engine(config.engine)
        name = f"{config.model.name}/{label}"
        served = Served(checkpoint, engine, plan.machine, self.serving_python, candidate.method, size, name)
        gated = None if baseline is None else self._gated(baseline.quality)
        is_other = checkpoint.key != base.key
        load = Load(served, self.scenario, slo_of(config), config.seed, label)
        quality = Quality(served, suite_of(config), gated, self._budgets, plan.quality_invalid_reason, label)
        return Variant(
            candidate,
            checkpoint,
            Health(checkpoint, base, plan.machine.device, candidate.method, size, label) if is_other else None,
            quality,
            load,
            Noise(quality, config.noise.max_items, label),
            None if baseline is None else self.price(load, baseline.load),
        )

    def _gated(self, baseline: Quality) -> Gated:
        gate, tasks = self.config.gate, self.config.suite.tasks
        return Gated(rule_of(gate, tasks, gate.alpha), baseline, declared_rule(gate, tasks), gate.num_candidates or 1)

    @property
    def _budgets(self) -> dict[str, int]:
        """Most items of the tasks that baseline and candidate are asked in one uniform order."""
        suite, gate = self.config.suite, self.config.gate
        if gate.max_items is None or gate.order == "guided":
            return {}
        shared = gate.order == "uniform"
        return {
            task: gate.max_items for task in suite.tasks if shared or split_size(suite.source, task) > LOCKSTEP_ABOVE
        }

    def price(self, candidate: Load, baseline: Load) -> InterleavedPrice | None:
        """The stage that compares both in turn. Where theta_slo is searched, the brackets are compared instead."""
        gate = self.config.gate
        if self.scenario.search is not None or not gate.price_rounds:
            return None
        return InterleavedPrice(candidate, baseline, gate.price_rounds, gate.price_repeats, candidate.label)


def suite_of(config: RunConfig) -> Suite:
    """The questions as the evaluation takes them."""
    suite = config.suite
    files = {task: Path(file).expanduser().resolve() for task, file in suite.files.items()}
    return Suite(
        source=suite.source,
        tasks=tuple(suite.tasks),
        num_fewshot=suite.num_fewshot,
        num_concurrent=suite.num_concurrent,
        apply_chat_template=suite.apply_chat_template,
        files=files if suite.source == "files" else {},
    )


def slo_of(config: RunConfig) -> Slo:
    """The limits on latency that the gate sets."""
    return Slo(config.gate.slo_ttft_p99_s, config.gate.slo_tpot_p99_s)


def load_with_engine(variant: Variant, engine: EngineConfig, scenario: LoadScenario) -> Load:
    """A variant's load stage with another engine and load: what a search over engines measures."""
    return replace(variant.load, served=replace(variant.load.served, engine=engine), scenario=scenario)
