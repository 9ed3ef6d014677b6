from dataclasses import replace
from typing import Any

import pytest
import yaml

from core.environments import ROOT
from core.files import plain
from pipeline.checkpoints.facts import count_parameters, facts_from_shape
from pipeline.config import DistillConfig
from pipeline.distill.checks import check
from pipeline.distill.student_size import config_from, student_facts, student_parameters
from pipeline.types import Machine
from tests.unit.pipeline.distill.jobs import a_config
from tests.unit.pipeline.shapes import FACTS, MACHINE, SHAPE

GPU = Machine("cuda", "test GPU", 2, 8, 64 * 2**30, 24 * 2**30, 8.0)


def problems(machine: Machine = MACHINE, **changes: Any) -> dict[str, str]:
    config = a_config(**({"data__sources": ["squad"]} | changes))
    return {problem.field.removeprefix("distill."): problem.message for problem in check(config, FACTS, machine)}


def test_a_good_configuration_has_no_problem() -> None:
    assert problems() == {}


def test_switched_off_it_is_not_looked_at() -> None:
    assert check(DistillConfig(), FACTS, MACHINE) == []


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"student__drop_fraction": None}, "student", "nothing says how"),
    ({"student__path": "/a"}, "student.path", "not cut"),
    (
        {"student__drop_fraction": None, "student__drop_layers": [3, 30]},
        "student.drop_layers",
        "layer 30 does not exist",
    ),
    ({"student__drop_fraction": None, "student__drop_layers": [-1]}, "student.drop_layers", "layer -1 does not exist"),
    ({"student__drop_fraction": None, "student__drop_layers": [3, 3]}, "student.drop_layers", "twice"),
    ({"student__drop_layers": [3]}, "student.drop_layers", "not both"),
    ({"student__drop_fraction": 0.01}, "student.drop_fraction", "less than one layer"),
    ({"student__drop_fraction": 1.5}, "student.drop_fraction", "between 0 and 1"),
    ({"student__intermediate_size": 2000}, "student.intermediate_size", "1536 neurons"),
    ({"student__num_kv_heads": 4}, "student.num_kv_heads", "3 key-value heads"),
    ({"objective__divergence": "forward_lk"}, "objective.divergence", "did you mean 'forward_kl'"),
    ({"objective__divergence": "none"}, "objective", "nothing to minimize"),
    ({"objective__temperature": 0.0}, "objective.temperature", "above 0"),
    ({"teacher__mode": "cached", "objective__hidden_weight": 1.0}, "objective.hidden_weight", "not in the teacher's"),
    ({"teacher__mode": "cached", "data__mode": "on_policy", "data__prompt_tokens": 4}, "data.mode", "yet to write"),
    ({"data__mode": "on_policy", "data__prompt_tokens": 16}, "data.prompt_tokens", "nothing to write"),
    ({"data__sources": []}, "data.sources", "no text"),
    ({"data__length": 9000}, "data.length", "8192 positions"),
    ({"train__batch_size": 5}, "train.batch_size", "no multiple"),
    ({"train__fsdp": True}, "train.fsdp", "nothing to shard"),
    ({"train__bf16": True}, "train.bf16", "no bfloat16"),
    ({"spot__grace_s": 0.0}, "spot.grace_s", "above 0"),
]


@pytest.mark.parametrize(("changes", "field", "words"), BAD, ids=[f"{field}-{words}" for _, field, words in BAD])
def test_each_bad_value_is_named(changes: dict[str, Any], field: str, words: str) -> None:
    machine = replace(MACHINE, has_bf16=False)
    assert words in problems(machine, **changes)[field]


def test_more_processes_than_gpus_are_refused() -> None:
    found = problems(GPU, train__num_processes=4, train__batch_size=8)
    assert "this machine has 2" in found["train.num_processes"]


def test_a_teacher_that_does_not_fit_beside_its_student_is_refused() -> None:
    large = facts_from_shape("8b", SHAPE | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32})
    config = a_config(data__sources=["squad"])
    (problem,) = check(config, large, GPU)
    assert "24.0 GiB" in problem.message


@pytest.mark.parametrize(
    ("cut", "smaller"),
    [
        ({"student__drop_fraction": 1 / 3}, {"num_hidden_layers": 20}),
        ({"student__drop_fraction": None, "student__intermediate_size": 768}, {"intermediate_size": 768}),
        (
            {"student__drop_fraction": None, "student__num_kv_heads": 2},
            {"num_key_value_heads": 2, "num_attention_heads": 6, "head_dim": 64},
        ),
    ],
)
def test_a_cut_students_size_is_known_beforehand(cut: dict[str, Any], smaller: dict[str, int]) -> None:
    expected = count_parameters(facts_from_shape("student", SHAPE | smaller))
    student = a_config(**cut).student
    assert student_parameters(student, FACTS) == expected
    facts = student_facts(student, FACTS)
    assert count_parameters(facts) == facts.num_parameters == expected


def test_a_configuration_survives_json() -> None:
    config = a_config(student__drop_layers=[1, 2])
    assert config_from(plain(config)) == config


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "distill").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_choice_is_whole_and_plausible(path: Any) -> None:
    from omegaconf import OmegaConf

    values = yaml.safe_load(path.read_text())
    values.pop("defaults", None)  # every choice starts from `none`, which holds the classes' own defaults
    merged = OmegaConf.merge(OmegaConf.structured(DistillConfig), OmegaConf.create(values))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, DistillConfig)
    assert config.name == path.stem
    assert path.read_text().startswith("#"), "a choice says what it is"
    expected = {"distill.student"} if path.stem == "student" else set()  # its path is the user's to give
    assert {problem.field for problem in check(config, FACTS, MACHINE)} == expected
