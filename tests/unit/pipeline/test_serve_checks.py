from dataclasses import replace
from typing import Any

import pytest
import yaml

from pipeline.cli.compose import CONF, command_config
from pipeline.config import EngineConfig
from pipeline.plan.plan import make_plan
from pipeline.serve.checks import check_engine, engine_suffix
from tests.unit.pipeline.shapes import FACTS, MACHINE
from tests.unit.pipeline.test_plan import FREE, PRICE, a_config


def fields(**settings: Any) -> list[str]:
    return [problem.field for problem in check_engine(EngineConfig(**settings), FACTS)]


def test_the_default_engine_is_fine() -> None:
    assert fields() == []
    assert fields(speculative="ngram") == []
    assert fields(speculative="draft_model", draft_model="/models/tiny") == []


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"speculative": "ngrams"}, "engine.speculative"),
        ({"speculative": "draft_model"}, "engine.draft_model"),
        ({"speculative": "ngram", "num_speculative_tokens": 0}, "engine.num_speculative_tokens"),
        ({"speculative": "ngram", "prompt_lookup_max": 1}, "engine.prompt_lookup_max"),
        ({"speculative": "ngram", "prompt_lookup_min": 0}, "engine.prompt_lookup_max"),
        ({"max_num_batched_tokens": 128}, "engine.max_num_batched_tokens"),
        ({"max_num_batched_tokens": 1024, "enable_chunked_prefill": False}, "engine.max_num_batched_tokens"),
    ],
)
def test_what_vllm_would_refuse_is_a_problem_of_the_plan(settings: dict[str, Any], field: str) -> None:
    assert fields(**settings) == [field]


def test_a_misspelt_proposer_is_told_the_closest_one() -> None:
    (problem,) = check_engine(EngineConfig(speculative="draft-model"), FACTS)
    assert "did you mean 'draft_model'?" in problem.message


def test_settings_of_a_speculation_that_is_off_are_not_looked_at() -> None:
    assert fields(num_speculative_tokens=0, prompt_lookup_max=0) == []


def test_speculation_makes_a_candidate_of_the_plain_weights() -> None:
    config = a_config(quant={"method": "none"}, engine=EngineConfig(speculative="ngram"))
    plan = make_plan(config, FACTS, MACHINE, PRICE, FREE)
    assert plan.candidate is not None
    assert plan.candidate.label == "none+ngram"
    both = replace(config.engine, kv_cache_dtype="fp8")
    assert engine_suffix(both) == "+fp8-kv-cache+ngram"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "engine").glob("*.yaml")))
def test_every_preset_is_an_engine_that_can_be_planned(name: str) -> None:
    engine = command_config([f"engine={name}", "home=/nowhere"]).engine
    assert engine.name == name
    assert check_engine(engine, FACTS) == []


def test_the_playbook_preset_has_the_playbooks_figures() -> None:
    preset = yaml.safe_load((CONF / "engine" / "playbook.yaml").read_text())
    wanted = {"max_num_batched_tokens": 8192, "max_num_seqs": 256, "gpu_memory_utilization": 0.9}
    assert {key: preset[key] for key in wanted} == wanted
    assert preset["enable_prefix_caching"] is True
