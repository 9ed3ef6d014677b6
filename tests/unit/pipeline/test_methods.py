"""Every compression method: its choice file, where it runs, and what is refused before anything is loaded."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, PlanError
from pipeline.checkpoints.facts import facts_from_shape, linear_shapes
from pipeline.compress import registry
from pipeline.compress.groups import GROUP_SIZES, auto_group_size, offenders
from pipeline.compress.memory import CalibrationSize, sequential_memory
from pipeline.config import CalibConfig, EngineConfig
from pipeline.plan.plan import make_plan
from pipeline.types import Machine, ModelFacts
from tests.unit.pipeline.shapes import FACTS, MACHINE, SHAPE
from tests.unit.pipeline.test_plan import FREE, PRICE, a_config, problems_of

CONF = Path(__file__).resolve().parents[3] / "conf" / "quant"
H100 = Machine("cuda", "NVIDIA H100 80GB HBM3", 8, 16, 200 * 2**30, 80 * 2**30, 9.0)
A100 = replace(H100, device_name="NVIDIA A100-SXM4-80GB", compute_capability=8.0)
LLAMA = facts_from_shape(
    "llama",
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
)
CPU_METHODS = {"none", "rtn-int8", "rtn-int4", "int8", "gptq", "gptq-native", "awq", "int8-weight-only", "mixed"}
WITHOUT_CPU = {"awq-native", "fp8", "fp8-static", "nf4", "llm-int8"}


def planned(method: str, machine: Machine = MACHINE, facts: ModelFacts = FACTS, **changes: object):
    return make_plan(a_config(quant={"method": method}, **changes), facts, machine, PRICE, FREE)


@pytest.mark.parametrize("name", registry.COMPRESS)
def test_every_method_has_a_choice_file_with_exactly_its_settings(name: str) -> None:
    stored = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert stored.pop("method") == name
    method = registry.method(name)
    assert method.name == name
    assert stored == {one.name: one.default for one in dataclasses.fields(method.args)}


def test_every_choice_file_is_a_method() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {*registry.COMPRESS, *registry.ALIASES}


@pytest.mark.parametrize("name", sorted(set(registry.COMPRESS) - {"none", "external"}))
def test_every_method_plans_on_an_h100(name: str) -> None:
    plan = planned(name, H100, LLAMA)
    assert plan.candidate is not None
    assert plan.candidate.method == name


def test_every_method_is_tried_on_a_cpu() -> None:
    assert set(registry.COMPRESS) - CPU_METHODS - WITHOUT_CPU <= {"as-is", "external"}


@pytest.mark.parametrize("name", sorted(CPU_METHODS - {"none"}))
def test_methods_that_run_on_a_cpu(name: str) -> None:
    assert planned(name).candidate is not None


@pytest.mark.parametrize("name", sorted(WITHOUT_CPU))
def test_the_others_say_why_not_and_name_the_nearest(name: str) -> None:
    with pytest.raises(PlanError) as raised:
        planned(name)
    problem = next(one for one in raised.value.problems if one.field == "quant.method")
    method = registry.method(name)
    assert method.refused["cpu"] in problem.message
    assert method.nearest in CPU_METHODS
    assert problem.ways_out[0] == f"quant={method.nearest} is the nearest that does"


def test_a_group_size_that_does_not_divide_names_every_layer() -> None:
    found = problems_of(a_config(quant={"method": "gptq", "group_size": 128}))
    assert "self_attn.q_proj (576)" in found["quant.group_size"]
    assert "mlp.gate_proj (576)" in found["quant.group_size"]
    assert "down_proj" not in found["quant.group_size"]


@pytest.mark.parametrize("size", [0, -1, 48, 3, 4096])
def test_a_group_size_that_no_kernel_serves_is_refused(size: int) -> None:
    assert "128, 64, 32" in problems_of(a_config(quant={"method": "awq", "group_size": size}))["quant.group_size"]


@pytest.mark.parametrize(("facts", "expected"), [(FACTS, 64), (LLAMA, 128)])
def test_the_automatic_group_size_is_resolved_in_the_plan(facts: ModelFacts, expected: int) -> None:
    plan = planned("gptq", H100, facts)
    assert plan.candidate is not None
    assert plan.candidate.method_args["group_size"] == expected


@given(hidden=st.integers(1, 64), intermediate=st.integers(1, 64))
def test_the_automatic_group_size_divides_every_layer_or_is_refused(hidden: int, intermediate: int) -> None:
    shape = {**SHAPE, "hidden_size": 16 * hidden, "intermediate_size": 16 * intermediate, "num_attention_heads": 1}
    facts = facts_from_shape("any", {**shape, "num_key_value_heads": 1})
    size = auto_group_size(facts)
    columns = [wide for _, wide in linear_shapes(facts).values()]
    if size is None:
        assert all(any(wide % one for wide in columns) for one in GROUP_SIZES)
    else:
        assert all(wide % size == 0 for wide in columns)
        assert all(offenders(larger, facts) for larger in GROUP_SIZES if larger > size)


@pytest.mark.parametrize("name", ["gptq", "gptq-native", "mixed"])
def test_an_unknown_observer_is_refused_with_the_known_ones(name: str) -> None:
    found = problems_of(a_config(quant={"method": name, "observer": "entropy"}))
    assert "'entropy' is not one of mse, minmax" in found["quant.observer"]


def test_asymmetric_gptq_is_for_cpus_only() -> None:
    asymmetric = {"method": "gptq", "symmetric": False}
    assert "Marlin" in problems_of(a_config(quant=asymmetric), machine=H100)["quant.symmetric"]
    assert make_plan(a_config(quant=asymmetric), FACTS, MACHINE, PRICE, FREE).candidate is not None


@pytest.mark.parametrize("name", ["fp8", "fp8-static"])
def test_fp8_needs_a_gpu_with_fp8_units(name: str) -> None:
    found = problems_of(a_config(quant={"method": name}), machine=A100)
    assert "8.9" in found["quant.method"]
    assert "8.0" in found["quant.method"]


def test_an_fp8_kv_cache_composes_with_any_method_and_makes_a_candidate_of_the_baseline() -> None:
    engine = EngineConfig(kv_cache_dtype="fp8")
    alone, beside = planned("none", H100, LLAMA, engine=engine), planned("awq", H100, LLAMA, engine=engine)
    assert alone.candidate is not None
    assert alone.candidate.label == "none+fp8-kv-cache"
    assert beside.candidate is not None
    assert beside.candidate.label == "awq+fp8-kv-cache"
    assert "8.0" in problems_of(a_config(engine=engine), machine=A100)["engine.kv_cache_dtype"]
    assert "auto, fp8" in problems_of(a_config(engine=EngineConfig(kv_cache_dtype="int3")))["engine.kv_cache_dtype"]
    without = replace(MACHINE, has_fp8_cache=False)
    assert "AVX-512 or AMX" in problems_of(a_config(engine=engine), machine=without)["engine.kv_cache_dtype"]


def test_bitsandbytes_checkpoints_are_not_split_over_gpus() -> None:
    engine = EngineConfig(tensor_parallel_size=2)
    found = problems_of(a_config(quant={"method": "nf4"}, engine=engine), machine=H100, facts=LLAMA)
    assert "nf4" in found["engine.tensor_parallel_size"]
    assert planned("gptq", H100, LLAMA, engine=engine).candidate is not None


def test_too_much_calibration_text_names_the_amount_that_fits() -> None:
    calib = CalibConfig(sources=["squad"], num_samples=20_000, length=2048)
    small = replace(H100, host_memory_bytes=40 * 2**30)
    with pytest.raises(PlanError) as raised:
        planned("gptq", small, LLAMA, calib=calib)
    ways = [way for problem in raised.value.problems for way in problem.ways_out]
    named = next(way for way in ways if way.startswith("calib.num_samples="))
    fitting = replace(calib, num_samples=int(named.partition("=")[2]))
    assert planned("gptq", small, LLAMA, calib=fitting).candidate is not None


def test_device_memory_is_about_one_block_not_the_model() -> None:
    size = CalibrationSize(128, 2048)
    need = sequential_memory(LLAMA, H100, size)
    assert need.device_bytes < 0.5 * LLAMA.num_bytes
    assert need.host_bytes > LLAMA.num_bytes
    on_cpu = sequential_memory(LLAMA, MACHINE, size)
    assert on_cpu.device_bytes == 0


@given(samples=st.integers(0, 1000), length=st.sampled_from([128, 512, 2048]))
def test_more_text_never_needs_less_memory(samples: int, length: int) -> None:
    less = sequential_memory(FACTS, MACHINE, CalibrationSize(samples, length))
    more = sequential_memory(FACTS, MACHINE, CalibrationSize(samples + 1, length))
    assert more.host_bytes >= less.host_bytes


def test_a_plan_for_another_machine_does_not_guess_its_host_memory() -> None:
    elsewhere = replace(H100, host_memory_bytes=None)
    assert planned("gptq", elsewhere, LLAMA).candidate is not None


@pytest.mark.parametrize("name", ["external", "as-is"])
def test_an_external_checkpoint_needs_its_baselines_shape(name: str) -> None:
    config = a_config(quant={"method": name})
    made = replace(FACTS, quant_format="gptq")
    plan = make_plan(config, FACTS, MACHINE, PRICE, FREE, made)
    assert plan.candidate is not None
    assert plan.candidate.label == "external:gptq"
    assert plan == make_plan(a_config(quant={"method": "external"}), FACTS, MACHINE, PRICE, FREE, made)
    with pytest.raises(PlanError, match="num_layers 12 against 30"):
        make_plan(config, FACTS, MACHINE, PRICE, FREE, replace(made, num_layers=12))
    with pytest.raises(PlanError, match=r"model\.path=FOLDER"):
        make_plan(config, FACTS, MACHINE, PRICE, FREE, None)


def test_settings_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"quant\.symmetric='yes'"):
        registry.method_args("gptq", {"symmetric": "yes"})
    with pytest.raises(ConfigError, match="did you mean 'group_size'"):
        registry.method_args("awq", {"groupsize": 64})
