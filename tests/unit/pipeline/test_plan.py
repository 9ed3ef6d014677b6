from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, PlanError
from evals.config import GateConfig, SuiteConfig
from evals.types import Price
from pipeline.checkpoints.facts import count_parameters, facts_from_shape
from pipeline.compress import registry
from pipeline.config import CalibConfig, EngineConfig, ModelConfig, PublishConfig, RunConfig
from pipeline.plan.plan import make_plan
from pipeline.types import Machine
from tests.unit.pipeline.shapes import FACTS, MACHINE, SHAPE

PRICE = Price("cpu", Decimal("0.1"), Decimal("0.2"), "on_demand", "test", "2026-01-01")
FREE = 100 * 2**30


def a_config(**changes: object) -> RunConfig:
    config = RunConfig(
        model=ModelConfig(name="tiny"),
        quant={"method": "int8"},
        calib=CalibConfig(sources=["squad"]),
        suite=SuiteConfig(name="small", tasks=["arc_easy", "piqa"]),
        engine=EngineConfig(),
        gate=GateConfig(),
    )
    return replace(config, **changes)


def problems_of(config: RunConfig, machine: Machine = MACHINE, facts=FACTS, free: int = FREE) -> dict[str, str]:
    with pytest.raises(PlanError) as raised:
        make_plan(config, facts, machine, PRICE, free)
    return {problem.field: problem.message for problem in raised.value.problems}


def test_a_bad_name_on_the_hub_is_one_of_the_problems() -> None:
    found = problems_of(a_config(publish=PublishConfig(hub="no owner"), seed=-1))
    assert list(found) == ["seed", "publish.hub"]
    assert "write owner/name" in found["publish.hub"]


def test_a_good_plan_has_baseline_and_candidate() -> None:
    plan = make_plan(a_config(), FACTS, MACHINE, PRICE, FREE)
    assert (plan.baseline.method, plan.candidate and plan.candidate.method) == ("none", "int8")
    assert plan.quality_invalid_reason == ""


def test_the_baseline_alone_is_a_plan() -> None:
    assert make_plan(a_config(quant={"method": "none"}), FACTS, MACHINE, PRICE, FREE).candidate is None


def test_all_problems_are_listed_together() -> None:
    config = a_config(
        gate=GateConfig(alpha=2.0, utilisation=0.0, max_items=0),
        suite=SuiteConfig(tasks=["arc_esy", "piqa"]),
        engine=EngineConfig(max_model_len=10_000),
    )
    found = problems_of(config)
    assert set(found) == {"gate.alpha", "gate.utilisation", "suite.tasks", "gate.max_items", "engine.max_model_len"}
    assert "did you mean 'arc_easy'" in found["suite.tasks"]


def test_too_little_disk_and_memory_are_seen_before_the_start() -> None:
    assert "free there" in problems_of(a_config(), free=2**20)["home"]
    small = replace(MACHINE, host_memory_bytes=2**28)
    found = problems_of(a_config(), machine=small)
    assert "host memory" in found["quant.method"]
    assert "to be served" in found["model"]


def test_a_gpu_too_small_for_the_baseline_is_refused_with_ways_out() -> None:
    gpu = Machine("cuda", "test GPU", 1, 8, 64 * 2**30, 2**27, 8.0)
    with pytest.raises(PlanError, match="tensor_parallel_size= over more GPUs"):
        make_plan(a_config(), FACTS, gpu, PRICE, FREE)


def test_random_weights_make_quality_meaningless() -> None:
    config = a_config(model=ModelConfig(name="tiny", weights="random"))
    plan = make_plan(config, FACTS, MACHINE, PRICE, FREE)
    assert "never promoted" in plan.quality_invalid_reason


def test_an_unknown_method_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        make_plan(a_config(quant={"method": "int9"}), FACTS, MACHINE, PRICE, FREE)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"dampenin": 0.1}, "did you mean 'dampening'"), ({"dampening": "much"}, "must be of kind float")],
)
def test_a_methods_own_keys_are_checked(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.method_args("int8", values)


@pytest.mark.parametrize("name", registry.COMPRESS)
def test_every_method_is_documented_and_named_alike(name: str) -> None:
    method = registry.method(name)
    assert method.name == name
    assert method.args.__doc__


@pytest.mark.parametrize(
    ("shape", "billions"),
    [
        (SHAPE, 0.134515),
        (
            {
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 8192,
            },
            8.030261,
        ),
        (
            {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "max_position_embeddings": 32768,
                "model_type": "qwen2",
            },
            7.615617,
        ),
    ],
)
def test_parameters_are_counted_as_published(shape: dict, billions: float) -> None:
    assert facts_from_shape("x", shape).num_parameters == pytest.approx(billions * 1e9, rel=1e-6)


@given(st.integers(1, 64), st.integers(1, 8))
def test_more_layers_mean_more_parameters(layers: int, more: int) -> None:
    small = facts_from_shape("x", {**SHAPE, "num_hidden_layers": layers})
    large = facts_from_shape("x", {**SHAPE, "num_hidden_layers": layers + more})
    assert count_parameters(large) - count_parameters(small) == more * 3540096


def test_a_shape_without_an_entry_names_it() -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        facts_from_shape("x", {key: value for key, value in SHAPE.items() if key != "vocab_size"})


def test_a_gate_that_names_what_is_not_there_is_refused() -> None:
    gate = GateConfig(
        delta_points=-1, order="sideways", tasks=["piqq"], task_delta_points={"arc_easy": 100}, num_candidates=0
    )
    found = problems_of(a_config(gate=gate))
    assert "'piqq' is not in the suite; did you mean 'piqa'?" in found["gate.tasks"]
    assert "not one of auto, guided, uniform" in found["gate.order"]
    assert set(found) == {
        "gate.delta_points",
        "gate.num_candidates",
        "gate.order",
        "gate.tasks",
        "gate.task_delta_points.arc_easy",
    }


def test_a_gate_without_a_task_is_refused() -> None:
    assert "nothing could be promoted" in problems_of(a_config(gate=GateConfig(tasks=[])))["gate.tasks"]


@pytest.mark.parametrize(
    ("method", "machine", "starts"),
    [
        ("gptq", {"has_int4": False}, ["INT4 weights"]),
        ("gptq", {}, []),
        ("int8-weight-only", {}, ["INT8 weights with 16-bit activations"]),
        ("int8", {"has_int8": False}, ["INT8 products that is right"]),
        ("rtn-int8", {"has_int8": False}, ["INT8 products that is right"]),
        ("int8", {}, []),
        ("mixed", {"has_int4": False, "has_int8": False}, ["INT4 weights", "INT8 products that is right"]),
        ("none", {"has_int4": False, "has_int8": False}, []),
        ("int8", {"has_int8": False, "device": "cuda", "device_memory_bytes": 80 * 2**30}, []),
    ],
)
def test_what_a_processor_cannot_multiply_is_notes(method: str, machine: dict, starts: list[str]) -> None:
    plan = make_plan(a_config(quant={"method": method}), FACTS, replace(MACHINE, **machine), PRICE, FREE)
    notes = [note for note in plan.notes if note.startswith("vLLM has no kernel")]
    assert all(note.startswith(f"vLLM has no kernel for {what}") for note, what in zip(notes, starts, strict=True))


def test_the_format_of_an_external_checkpoint_says_what_it_multiplies() -> None:
    config, machine = a_config(quant={"method": "external"}), replace(MACHINE, has_int4=False, has_int8=False)
    for made, bits, what in [
        ("gptq", 4, "INT4 weights"),
        ("gptq", None, "INT4 weights"),
        ("pack-quantized", 8, "INT8 weights with 16-bit activations"),
        ("int-quantized", 8, "INT8 products"),
        ("fp8", None, None),
    ]:
        facts = replace(FACTS, quant_format=made, quant_bits=bits)
        plan = make_plan(config, FACTS, machine, PRICE, FREE, external=facts)
        notes = [note for note in plan.notes if note.startswith("vLLM has no kernel")]
        assert [note.partition(" for ")[2].startswith(what or "") for note in notes] == ([True] if what else [])
