"""A suite's chat template: who has one, what is refused before anything starts, and which digests it changes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import ConfigError, PlanError
from evals.config import SuiteConfig
from evals.quality.answers import AnswerCache, request_digest
from evals.quality.chat import has_chat_template
from evals.quality.run import Suite, report
from pipeline.plan.plan import make_plan
from pipeline.stages.quality import Quality
from tests.unit.pipeline.shapes import FACTS, MACHINE
from tests.unit.pipeline.test_plan import FREE, PRICE, a_config

SUITE = Suite("embedded", ("arc_easy",), None, 8, False)
PROMPT = "Question: a\nAnswer:"
CHOICE_DIGEST = "49327e6dd891ab5e628ec8974c36196d8195ee85f8c4e292dfec32b3277752ce"
TEXT_DIGEST = "acd036f566fe65c1bcd3a35f929c19214568b59f8863d597eaaa56de85f492a9"
SETTINGS_DIGEST = "73c4e0ae0aaf5172818cdd4366abb11a718e747a58d12f5925dbdfffaa1f9093"
"""As they were before there were chat templates: answers and reports are stored under them."""


def settings_digest(suite: Suite, template: str | None) -> str:
    item = {"loglikelihoods": [-1.0, -2.0], "target": 0, "answer": "0", "reason": "", "num_tokens": 3}
    raw: Any = {
        "metric": "acc",
        "filter": "none",
        "items": [{"item_id": index, "score": float(index), "all_metrics": {}, **item} for index in range(2)],
        "sampling_order": None,
        "num_items_total": 2,
        "lm_eval": {},
        "prompts_digest": "abc",
        "chat_template": template,
        "num_fewshot": 0,
        "version": 1.0,
    }
    return report({"arc_easy": raw}, suite).tasks["arc_easy"].settings_digest


def test_answers_to_plain_prompts_stay_usable(tmp_path: Path) -> None:
    assert request_digest("loglikelihood", (PROMPT, " b")) == CHOICE_DIGEST
    assert request_digest("generate_until", (PROMPT, {"until": ["\n"]})) == TEXT_DIGEST
    with AnswerCache(tmp_path / "answers.sqlite", "target") as cache:
        cache.put({CHOICE_DIGEST: [-1.5, True]})
        assert cache.get([request_digest("loglikelihood", (PROMPT, " b"))]) == {CHOICE_DIGEST: [-1.5, True]}
        # The same prompt as token ids reaches the model without a second begin token: another question.
        assert cache.get([request_digest("loglikelihood", (PROMPT, " b"), as_tokens=True)]) == {}


def test_the_settings_name_the_template_and_stay_as_they_were_without_one() -> None:
    assert settings_digest(SUITE, None) == SETTINGS_DIGEST
    chat = replace(SUITE, apply_chat_template=True)
    assert len({SETTINGS_DIGEST, settings_digest(chat, "one"), settings_digest(chat, "two")}) == 3


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("config.json", "{}", False),
    ],
)
def test_a_template_is_a_file_or_a_setting_of_the_tokenizer(
    tmp_path: Path, name: str, content: str, found: bool
) -> None:
    (tmp_path / name).write_text(content)
    assert has_chat_template(tmp_path) is found


def test_a_base_checkpoint_without_a_template_is_one_problem_of_the_plan() -> None:
    bare, chat = replace(FACTS, has_chat_template=False), SuiteConfig(tasks=["piqa"], apply_chat_template=True)
    with pytest.raises(PlanError) as raised:
        make_plan(a_config(suite=chat), bare, MACHINE, PRICE, FREE)
    (problem,) = raised.value.problems
    assert problem.field == "suite.apply_chat_template"
    assert "no chat template" in problem.message
    assert problem.ways_out[0].startswith("suite.apply_chat_template=false")
    make_plan(a_config(), bare, MACHINE, PRICE, FREE)
    for known in (True, None):
        make_plan(a_config(suite=chat), replace(FACTS, has_chat_template=known), MACHINE, PRICE, FREE)


def test_a_downloaded_checkpoint_without_a_template_is_refused_before_a_server_starts(tmp_path: Path) -> None:
    def start(_: object) -> None:
        raise AssertionError("a server was started")

    served: Any = SimpleNamespace(checkpoint=None, start=start)
    effects: Any = SimpleNamespace(result=lambda stage: SimpleNamespace(path=tmp_path))
    stage = Quality(served, replace(SUITE, apply_chat_template=True), None, {}, "", "none")
    with pytest.raises(ConfigError, match=r"(?s)suite\.apply_chat_template: true is not possible.*=false asks"):
        stage.run(tmp_path, effects)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(AssertionError, match="a server was started"):
        stage.run(tmp_path, effects)
