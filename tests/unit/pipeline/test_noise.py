"""The noise floor's stage: the second path, its key, what it asks, and how a run finds what it measured."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, PlanError, ToolError
from core.files import plain
from evals.config import SuiteConfig
from evals.decide.evidence import Evidence
from evals.decide.noise_floor import noise_report
from evals.gate.sequential import uniform_sampling_order
from evals.quality import run as quality_run
from evals.quality.run import answers_digest
from evals.stats import mean_estimate
from evals.types import (
    ItemOutcome,
    LoadPoint,
    LoadReport,
    NoiseReport,
    Price,
    QualityReport,
    Target,
    TaskNoise,
    TaskResult,
)
from pipeline import noise as noise_module
from pipeline.config import EngineConfig, ModelConfig, NoiseConfig, RunConfig
from pipeline.noise import VariantNoise, flips_text, noise_json, show
from pipeline.plan.resolve import RunPlan
from pipeline.record.metrics import noise_metrics
from pipeline.report.decision_page import make_record, page
from pipeline.serve.checks import check_batch_invariance
from pipeline.serve.engine import server_environment
from pipeline.serve.paths import first_path, second_path
from pipeline.stages import noise as noise_stage
from pipeline.stages.graph import Effects, pending
from pipeline.stages.measure import measure
from pipeline.stages.noise import Noise, is_same
from tests.unit.pipeline.plans import POINT, run_plan, stored
from tests.unit.pipeline.shapes import MACHINE, SHAPE
from tests.unit.pipeline.test_decide import GATE, GOOD, evidence, rank
from tests.unit.pipeline.test_methods import H100

PRICE = Price("cpu", Decimal("0.1"), Decimal("0.1"), "on_demand", "test", "", 2)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name="tiny", source="embedded", family="smollm2", shape={**SHAPE, "model_type": "llama"}),
        quant={"method": "rtn-int8"},
        suite=SuiteConfig(name="small", tasks=["arc_easy"]),
        load={"name": "one", "num_repeats": 2, "points": [POINT]},
        noise=NoiseConfig(max_items=6),
        home=str(tmp_path / "home"),
        dry_run=True,
    )


def plan_of(config: RunConfig) -> RunPlan:
    return run_plan(config, PRICE)


def noise_of(config: RunConfig, index: int = -1) -> Noise:
    return plan_of(config).variants.all[index].noise


# The second path -------------------------------------------------------------------------------------------------


def test_a_gpu_is_asked_with_another_number_in_flight() -> None:
    engine = EngineConfig()
    eight, one = first_path(engine, 8), first_path(engine, 1)
    assert second_path(eight, H100).num_concurrent == 1
    assert second_path(one, H100).num_concurrent > 1
    for first in (eight, one):
        second = second_path(first, H100)
        assert second.engine == engine, "the same server"
        assert second.inputs != first.inputs
        assert not second.must_differ, "a server whose answers do not depend on the batch has no noise of that kind"


@pytest.mark.parametrize(
    ("has_avx512", "dtype", "name"),
    [(True, "bfloat16", "AVX512_CORE"), (True, "float32", "AVX2"), (False, "float32", "AVX"), (False, "auto", "AVX")],
)
def test_a_cpus_second_path_is_an_older_instruction_set(has_avx512: bool, dtype: str, name: str) -> None:
    machine = replace(MACHINE, has_int4=has_avx512)
    first = first_path(EngineConfig(dtype=dtype, environment={"A": "1"}), 8)
    second = second_path(first, machine)
    assert second.engine.environment == {"A": "1", "ONEDNN_MAX_CPU_ISA": name, "PARSIMONY_LAST_DIGITS": "1"}
    assert replace(second.engine, environment={"A": "1"}) == first.engine, "and nothing else of the server"
    assert second.num_concurrent == 8
    assert second.must_differ
    assert second.inputs != first.inputs


def test_a_path_is_another_one_whatever_the_shell_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    second = second_path(first_path(EngineConfig(), 8), MACHINE)
    assert server_environment(second.engine, MACHINE)["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE"


# The stage -------------------------------------------------------------------------------------------------------


def test_the_key_is_of_what_decides_the_answers(config: RunConfig) -> None:
    same = noise_of(config).key
    for other in (
        replace(config, gate=replace(config.gate, delta_points=5.0)),
        replace(config, engine=replace(config.engine, name="other", startup_timeout_s=5.0, cpu_kvcache_gib=1)),
        replace(config, load={**config.load, "num_repeats": 3}),
    ):
        assert noise_of(other).key == same
    for other in (
        replace(config, noise=NoiseConfig(max_items=7)),
        replace(config, suite=replace(config.suite, num_fewshot=2)),
        replace(config, engine=replace(config.engine, dtype="bfloat16")),
        replace(config, quant={"method": "rtn-int4"}),
    ):
        assert noise_of(other).key != same
    assert noise_of(config, 0).key != same


def test_a_run_plans_no_noise_and_the_noise_plans_no_run(config: RunConfig) -> None:
    plan = plan_of(config)
    assert "noise" not in {stage.name for stage in plan.stages}
    names = [stage.name for stage in pending([one.noise for one in plan.variants.all], plan.store)]
    assert names.count("noise") == 2
    assert not {"quality", "load", "health"} & set(names)
    assert {"compress", "base", "datasets"} <= set(names)


def test_less_is_estimated_for_fewer_items(config: RunConfig) -> None:
    few, many = noise_of(config).work, noise_of(replace(config, noise=NoiseConfig(max_items=12))).work
    assert few.num_tokens is not None
    assert many.num_tokens == 2 * few.num_tokens
    assert noise_of(replace(config, noise=NoiseConfig(max_items=10**6))).work.num_tokens is not None
    assert few.passes == 2.0


class FakeServed:
    """A server that is never started; its digest is its engine's."""

    def __init__(
        self, artifact: Any, engine: EngineConfig, machine: Any, python: Path, log: Path, on_start: Any
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("log")
        self.engine, self.log = engine, log

    def launch(self) -> Target:
        return Target("http://127.0.0.1:1", "model", Path(), {}, f"server {plain(self.engine)}")

    def wait(self) -> None:
        pass

    def __enter__(self) -> "FakeServed":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def result(scores: list[float], shift: float = 0.0, num_total: int = 20) -> TaskResult:
    items = tuple(ItemOutcome(i, score, (-1.0 - shift, -2.0), 0) for i, score in enumerate(scores))
    order = uniform_sampling_order("arc_easy", range(num_total), "baseline")
    return TaskResult("arc_easy", "acc", mean_estimate(scores), items, num_total, "same", order)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Replaces lm-eval: the second call's scores differ in one item; lists (digest, num_concurrent, folder)."""
    calls: list[tuple[str, int, str]] = []

    def run_suite(target: Target, suite: Any, folder: Path, tools: Any, sampling: Any) -> QualityReport:
        folder.mkdir(parents=True)
        assert sampling.budgets == {"arc_easy": 6}
        calls.append((target.digest, suite.num_concurrent, folder.name))
        tools.on_answers(2, 1)
        tools.on_progress(6, 6)
        is_second = folder.name == "second"
        scores = [float(is_second), 1.0, 0.0, 1.0, 1.0, 0.0]
        return QualityReport({"arc_easy": result(scores, 0.5 if is_second else 0.0)})

    monkeypatch.setattr(noise_stage, "run_suite", run_suite)
    return calls


def store_base(plan: RunPlan) -> None:
    """A base checkpoint and questions, as if they had been made."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "hf_datasets").mkdir()
        return {"digest": "d" * 64}

    for stage in pending([plan.variants.all[0].noise], plan.store):
        if stage.name != "noise":
            stored(stage, plan.store, make)


def effects_for(plan: RunPlan) -> Effects:
    return Effects(plan.store, plan.home, Path("python"), serve=FakeServed)  # type: ignore[arg-type]


def test_both_paths_are_asked_and_compared(config: RunConfig, asked: list[tuple[str, int, str]]) -> None:
    plan = plan_of(config)
    store_base(plan)
    noise, effects = plan.variants.all[0].noise, effects_for(plan)
    with effects.serving():
        report = effects.result(noise)
    one = report.tasks["arc_easy"]
    assert (one.num_items, one.num_items_total) == (6, 20)
    assert one.flip_rate == pytest.approx(1 / 6)
    assert one.max_nats == 0.5
    assert [folder for _, _, folder in asked] == ["second", "first"]
    (second, _, _), (first, _, _) = asked
    ordinary = f"server {plain(noise.served.engine)}"
    assert first == ordinary, "the answers of the quality stage are the first path's"
    assert second != ordinary
    assert effects.found(noise).result["work_share"] == pytest.approx(2 / 3)
    assert (effects.found(noise).folder / "second").is_dir()


@pytest.mark.parametrize("num_answered", [6, 5])
def test_answers_of_the_quality_stage_are_not_asked_again(
    config: RunConfig, asked: list[tuple[str, int, str]], num_answered: int
) -> None:
    plan = plan_of(config)
    store_base(plan)
    baseline = plan.variants.all[0]
    known = QualityReport({"arc_easy": result([0.0, 1.0, 0.0, 1.0, 1.0, 0.0][:num_answered])})
    stored(baseline.quality, plan.store, lambda folder: plain(known))
    effects = effects_for(plan)
    with effects.serving():
        report = effects.result(baseline.noise)
    assert report.tasks["arc_easy"].flip_rate == pytest.approx(1 / 6)
    assert [folder for _, _, folder in asked] == (["second"] if num_answered == 6 else ["second", "first"])


def test_a_path_that_gives_the_same_numbers_is_no_other_path(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_suite(target: Target, suite: Any, folder: Path, tools: Any, sampling: Any) -> QualityReport:
        folder.mkdir(parents=True)
        return QualityReport({"arc_easy": result([1.0, 0.0])})

    monkeypatch.setattr(noise_stage, "run_suite", run_suite)
    plan = plan_of(config)
    store_base(plan)
    effects = effects_for(plan)
    with effects.serving(), pytest.raises(ToolError, match=r"equal to the last digit .* nothing is known of the noise"):
        effects.result(plan.variants.all[0].noise)
    assert plan.variants.all[0].noise.find(plan.store) is None


def test_equal_numbers_are_told_from_no_numbers() -> None:
    report = QualityReport({"arc_easy": result([1.0, 0.0])})
    assert is_same(noise_report(("a", "b"), report.tasks, report.tasks))
    written = QualityReport({"t": replace(result([1.0]), items=(ItemOutcome(0, 1.0),))})
    assert not is_same(noise_report(("a", "b"), written.tasks, written.tasks))


# What a run does with it -----------------------------------------------------------------------------------------


def a_report(flip_rate: float = 0.05) -> NoiseReport:
    one = TaskNoise("arc_easy", 60, 0, 800, flip_rate, flip_rate**0.5, 0.2, 0.9, 0.03)
    return NoiseReport(("vLLM", "another"), {"arc_easy": one})


def test_a_run_finds_the_noise_that_was_measured(config: RunConfig) -> None:
    plan = plan_of(config)
    store_base(plan)
    baseline = plan.variants.all[0]
    quality = QualityReport({"arc_easy": result([1.0, 0.0])})
    repeat = {"req_per_s": 1.0, "total_tok_per_s": 40.0}
    load = plain(LoadReport("one", (LoadPoint("c1", 1, 32, 8, (repeat, repeat), 0),)))
    for stage, value in ((baseline.quality, plain(quality)), (baseline.load, load)):
        stored(stage, plan.store, lambda folder, value=value: value)
    before = measure(baseline, effects_for(plan), PRICE, 0.4)
    assert before.quality.noise is None
    assert "noise" not in before.stage_keys
    stored(baseline.noise, plan.store, lambda folder: plain(a_report()))
    after = measure(baseline, effects_for(plan), PRICE, 0.4)
    assert after.quality == replace(quality, noise=a_report())
    assert after.stage_keys == {**before.stage_keys, "noise": baseline.noise.key}, "another record in MLflow"
    # More items are another stage: a run looks for what its own noise.max_items names.
    other = plan_of(replace(config, noise=NoiseConfig(max_items=7))).variants.all[0]
    assert measure(other, effects_for(plan), PRICE, 0.4).quality.noise is None


def test_the_decisions_page_shows_the_floor_where_it_was_measured() -> None:
    candidate, baseline = evidence(GOOD, "0.5"), evidence(GOOD, "1")

    def shown(candidate: Evidence, baseline: Evidence) -> str:
        ranking = rank([candidate], baseline, GATE, 0)
        return page(make_record("m", ranking, 0, [candidate], baseline, GATE), None)

    assert "The noise floor" not in shown(candidate, baseline)
    noisy = [replace(one, quality=replace(one.quality, noise=a_report())) for one in (candidate, baseline)]
    text = shown(*noisy)
    assert "The noise floor" in text
    assert "<td>5.0%</td><td>5.0%</td><td>0.2 rms</td><td>0.2 rms</td><td>1.6 points of 800</td>" in text


def test_its_metrics_are_there_where_it_was_measured() -> None:
    quality = QualityReport({"arc_easy": result([1.0, 0.0], num_total=800)})
    assert noise_metrics(quality, quality) == {}
    noisy = replace(quality, noise=a_report())
    alone = noise_metrics(noisy, None)
    assert alone["noise/arc_easy/flip_rate"] == 0.05
    assert "noise/arc_easy/resolvable_points" not in alone
    assert "noise/arc_easy/resolvable_points" not in noise_metrics(noisy, quality)
    found = noise_metrics(noisy, noisy)
    assert found["noise/arc_easy/resolvable_points"] == pytest.approx(200 * (0.1 / 1600) ** 0.5)
    missing = replace(a_report().tasks["arc_easy"], rms_nats=None, max_nats=None)
    names = noise_metrics(replace(quality, noise=NoiseReport(("a", "b"), {"arc_easy": missing})), None)
    assert not [name for name in names if "nats" in name]


# The verb --------------------------------------------------------------------------------------------------------


def test_the_tables_say_what_can_be_decided(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    found = [VariantNoise("none", a_report(0.0)), VariantNoise("rtn-int8", a_report(0.05))]
    show(found, plan_of(config))
    said = capsys.readouterr().out
    assert "5.0% [1.7%, 13.7%]" in said
    # Told by the score that decides: the probability moves by 0.03 rms, 0.21 points of it, a margin of 0.27.
    assert "arc_easy 800 0.27 points 2 points can be decided" in " ".join(said.split())
    by_accuracy = replace(config, gate=replace(config.gate, delta_points=1.0, score="accuracy"))
    show(found, plan_of(by_accuracy))
    said = capsys.readouterr().out
    assert "arc_easy 800 1.1 points 1 points below" in " ".join(said.split())
    assert "below the noise floor: not decided" in said
    show(found[:1], plan_of(config))
    assert "can resolve" not in capsys.readouterr().out
    show([], plan_of(config))
    assert capsys.readouterr().out == ""


def test_the_json_has_every_figure(config: RunConfig) -> None:
    found = [VariantNoise("none", a_report(0.0)), VariantNoise("rtn-int8", a_report(0.05))]
    value = json.loads(noise_json(found, plan_of(config)))
    assert value["model"] == "tiny"
    assert value["variants"]["rtn-int8"]["arc_easy"]["flip_rate"] == 0.05
    assert value["floors"][0]["resolvable_points"] == pytest.approx(200 * (0.05 / 1600) ** 0.5)
    assert value["margins_points"] == {"arc_easy": 2.0}
    assert json.loads(noise_json([], plan_of(config)))["variants"] == {}


def test_flips_have_an_interval_also_where_there_are_none() -> None:
    assert flips_text(0.0, 64) == "0.0% [0.0%, 5.7%]"


def test_a_dry_run_estimates_and_random_weights_are_refused(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(config)
    assert noise_module.measure_noise(plan) == []
    said = capsys.readouterr().out
    assert "rtn-int8  noise" in said
    assert "dry run: nothing was loaded or started" in said
    random = plan_of(replace(config, model=replace(config.model, weights="random")))
    with pytest.raises(ConfigError, match="the weights are random"):
        noise_module.measure_noise(random)


# What an answer depends on ---------------------------------------------------------------------------------------


def test_batch_invariance_is_refused_where_it_cannot_run_with_the_reason() -> None:
    wanted = EngineConfig(batch_invariant=True)
    assert check_batch_invariance(EngineConfig(), MACHINE) == []
    assert check_batch_invariance(wanted, H100) == []
    (on_cpu,) = check_batch_invariance(wanted, MACHINE)
    assert "GPUs alone" in on_cpu.message
    (too_old,) = check_batch_invariance(wanted, replace(H100, compute_capability=7.5, device_name="T4"))
    assert too_old.message == "it needs compute capability 8.0, T4 has 7.5"


def test_the_plan_refuses_batch_invariance_on_a_cpu(config: RunConfig) -> None:
    with pytest.raises(PlanError, match=r"engine\.batch_invariant"):
        plan_of(replace(config, engine=replace(config.engine, batch_invariant=True)))


def test_answers_go_by_the_number_in_flight() -> None:
    target = Target("http://127.0.0.1:1", "model", Path(), {}, "digest")
    assert (
        len({answers_digest(target, 1), answers_digest(target, 8), answers_digest(replace(target, digest="x"), 8)}) == 3
    )


def test_the_worker_is_given_that_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Launcher:
        def run(self, job: Any, **more: Any) -> dict[str, Any]:
            told.append(job.payload)
            return {"tasks": {}, "items_needed": {}, "num_fresh": 0, "num_known": 0}

    target = Target("http://127.0.0.1:1", "model", Path(), {}, "digest")
    suite = quality_run.Suite("hub", ("arc_easy",), None, 4, False)
    tools = quality_run.Tools(Path("python"), tmp_path / "answers.sqlite", None, launcher=Launcher())
    quality_run.run_suite(target, suite, tmp_path / "job", tools, quality_run.Sampling("baseline"))
    assert told[0]["target"].digest == answers_digest(target, 4) != "digest"
