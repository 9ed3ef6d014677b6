"""What a run's record says: its time, its settings, its tags under present and former names, and its view."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from evals.decide.evidence import Evidence
from evals.types import Decision, QualityReport
from pipeline.config import DistillConfig, ModelConfig, RunConfig
from pipeline.record import source
from pipeline.record.frontier_runs import RecordedRun, RunData, RunInfo, newest_of_each
from pipeline.record.metrics import short_metrics
from pipeline.record.run_record import decision_tags, used_settings
from pipeline.record.store import RunRecord, flat_params, run_span_ms
from pipeline.record.tags import CANDIDATE_KEY, DECISION_KEY, FORMER, PREFIX, short_tags, tag_of
from pipeline.record.view import CHART, COLUMNS, view_key, view_tag, view_url
from pipeline.types import Candidate
from tests.unit.pipeline.test_decide import GATE, cost, load

NOW = 1_795_200_000_000
BEGAN = {"compress": "2026-11-20T10:00:00+00:00", "quality": "2026-11-20T10:05:00+00:00"}
FIRST = 1_795_168_800_000
"""10:00 on that day, in milliseconds since 1970."""


def a_record(*made_now: str) -> RunRecord:
    evidence = Evidence("int8", QualityReport({}), load(), cost("1"))
    wall_s = {"compress": 60.0, "quality": 90.0}
    return RunRecord(
        "k", "n", {}, {}, {}, {}, {}, wall_s, evidence, stage_started_at=BEGAN, made_now=made_now
    )  # fmt: skip


def test_a_run_lasts_from_its_first_to_its_last_stage() -> None:
    assert run_span_ms(a_record("compress", "quality"), NOW) == (FIRST, FIRST + 390_000)


def test_a_stage_that_was_reused_does_not_lengthen_the_run() -> None:
    assert run_span_ms(a_record("quality"), NOW) == (FIRST + 300_000, FIRST + 390_000)


def test_a_run_that_reused_everything_lasts_as_long_as_that_took_to_make() -> None:
    assert run_span_ms(a_record(), NOW) == (NOW - 150_000, NOW)


def test_a_run_does_not_end_in_the_future() -> None:
    assert run_span_ms(a_record("quality"), FIRST + 310_000) == (FIRST + 300_000, FIRST + 310_000)


def params(role: str, method: str, **config: Any) -> dict[str, str]:
    plan: Any = SimpleNamespace(config=RunConfig(model=ModelConfig(name="tiny"), quant={"method": method}, **config))
    return flat_params(used_settings(plan, Candidate(role, method, {}, method)))


def groups(found: dict[str, str]) -> set[str]:
    return {name.partition(".")[0] for name in found}


def test_parameters_are_those_that_were_used() -> None:
    assert {"model", "quant", "gate", "engine"} <= groups(params("candidate", "rtn-int8"))
    assert not groups(params("candidate", "rtn-int8")) & {"distill", "calib", "publish"}
    assert "calib" in groups(params("candidate", "gptq")), "GPTQ reads calibration text"
    assert "distill" in groups(params("candidate", "rtn-int8", distill=DistillConfig(name="half")))
    assert not groups(params("baseline", "gptq", distill=DistillConfig(name="half"))) & {"quant", "distill", "calib"}


@pytest.mark.parametrize("name", FORMER)
def test_every_tag_is_read_under_its_former_names(name: str) -> None:
    for former in FORMER[name]:
        assert tag_of({former: "text"}, name) == "text"
    assert tag_of({name: "new", **dict.fromkeys(FORMER[name], "old")}, name) == "new"
    assert tag_of({}, name) == ""


def test_digests_have_one_prefix_and_no_former_name_has_two_meanings() -> None:
    formers = [former for name in FORMER for former in FORMER[name]]
    assert len(formers) == len(set(formers))
    assert {name for name in FORMER if not name.startswith(PREFIX)} == {"quality_invalid_reason"}


def test_a_candidates_record_replaces_one_with_the_tags_former_name() -> None:
    new, old = ({CANDIDATE_KEY: "c"}, {"candidate_key": "c"})
    runs = [RecordedRun(RunInfo(str(number), number), RunData({}, tags)) for number, tags in ((2, new), (1, old))]
    assert [run.info.run_id for run in newest_of_each(runs)] == ["2"]


def test_the_verdict_is_in_words() -> None:
    reasons = ("because",)
    assert decision_tags(Decision("promote", "int8", reasons, GATE))["verdict"] == "promoted"
    assert decision_tags(Decision("hold", "int8", reasons, GATE))["verdict"] == "not promoted"
    assert decision_tags(Decision("hold", "none", reasons), "key") == {
        "decision": "hold", "verdict": "baseline", "reasons": "because", DECISION_KEY: "key",
    }  # fmt: skip
    assert short_tags({"label": "awq", "role": "candidate"}) == {"variant": "awq"}, "not decided: no verdict"
    assert short_tags({"label": "none", "role": "baseline"}) == {"variant": "none", "verdict": "baseline"}


def test_short_columns_are_rounded_and_what_is_missing_is_not_there() -> None:
    exact = {"quality/mean": 0.612345, "cost/usd_per_1k_tokens": 0.00041239, "load/quick/c8/output_tok_per_s": 5.0}
    assert short_metrics(exact) == {"quality": 0.6123, "usd_per_1m_tokens": 0.4124}
    more = {"load/quick/output_tok_per_s": 446.96, "size/bytes": 167_772_160.0}
    assert short_metrics(more) == {"tok_per_s": 447.0, "size_mib": 160.0}


def test_the_view_is_what_mlflow_reads() -> None:
    name, text = view_tag("o'neill", 'tags.model = "o\'neill"', 5)
    assert name == f"mlflow.sharedViewState.{view_key('o' + chr(39) + 'neill')}"
    assert len(text) < 20_000, "MLflow's limit of an experiment's tag"
    saved = json.loads(text)
    assert set(saved) == {"name", "createdAt", "updatedAt", "state"}
    state = json.loads(saved["state"])
    assert state["searchFilter"] == 'tags.model = "o\'neill"'
    assert len(state["selectedColumns"]) == len(COLUMNS)
    assert state["columnOrder"][2:] == state["selectedColumns"]
    (chart,), (section,) = state["compareRunCharts"], state["compareRunSections"]
    assert chart["metricSectionId"] == section["uuid"]
    assert (chart["xaxis"]["key"], chart["yaxis"]["key"]) == ("usd_per_1m_tokens", "quality")


def test_a_link_names_the_view() -> None:
    place, _, options = view_url("http://host:5000/", "7", "tiny", CHART).partition("#")[2].partition("?")
    assert place == "/experiments/7/runs"
    assert parse_qs(options) == {
        "workflowType": ["machine_learning"], "viewStateShareKey": [view_key("tiny")], "compareRunsMode": ["CHART"],
    }  # fmt: skip
    assert urlparse(view_url("http://host:5000/", "7", "tiny")).netloc == "host:5000"
    assert view_key("tiny") != view_key("tiny2")


def test_what_cannot_be_told_of_a_runs_source_has_no_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(source, "current_user", nobody)
    monkeypatch.setattr(source, "git_commit", lambda: "")
    assert set(source.source_tags()) == {"mlflow.source.name", "mlflow.source.type"}
