"""Which recorded runs the frontier shows."""

import pytest

from core.errors import ConfigError
from pipeline.record.frontier_runs import RecordedRun, RunData, RunInfo
from pipeline.report.frontier import group_text, in_one_group

NOON = 1_795_694_400_000
"""2026-11-26, 12:00 UTC, in milliseconds."""


def a_run(label: str, group: str, load: str = "quick", tag: str = "frontier_group") -> RecordedRun:
    metrics = {f"load/{load}/output_tok_per_s": 9.0, f"load/{load}/c8-128x32/output_tok_per_s": 9.0}
    return RecordedRun(RunInfo(label, NOON), RunData(metrics, {"label": label, tag: group}))


NEW = [a_run("none", "82d18dd0c91130d2"), a_run("int8", "82d18dd0c91130d2")]
OLD = [a_run("awq", "5eeb03fa311112ff", "sweep")]
TWIN = [a_run("gptq", "5ee000000000")]


def test_the_newest_group_is_shown_and_another_one_by_the_start_of_its_name() -> None:
    runs = [NEW[0], *OLD, NEW[1]]
    assert in_one_group(runs) == NEW
    assert in_one_group(runs, "5eeb") == OLD
    assert in_one_group([]) == []


def test_older_records_under_the_tags_former_name_are_in_the_same_group() -> None:
    older = a_run("awq", "82d18dd0c91130d2", tag="plane")
    assert in_one_group([*NEW, older]) == [*NEW, older]


@pytest.mark.parametrize(("name", "told"), [("x", "there is no such group"), ("5ee", "several groups start with it")])
def test_a_name_that_is_not_one_group_is_refused_with_those_there_are(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        in_one_group([*NEW, *OLD, *TWIN], name)
    assert f"--group {name}: {told}" in str(caught.value)
    assert "1 variant under load=sweep, the newest of 2026-11-26: --group 5eeb03fa" in str(caught.value)


def test_a_group_names_its_variants_and_its_option() -> None:
    assert group_text(NEW) == "2 variants under load=quick, the newest of 2026-11-26: --group 82d18dd0"
