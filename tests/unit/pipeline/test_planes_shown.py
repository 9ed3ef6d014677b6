"""Which recorded runs the frontier shows."""

import pytest

from core.errors import ConfigError
from pipeline.record.comparable import RecordedRun, RunData, RunInfo
from pipeline.report.frontier import on_one_plane, plane_text

NOON = 1_795_694_400_000
"""2026-11-26, 12:00 UTC, in milliseconds."""


def a_run(label: str, plane: str, load: str = "quick") -> RecordedRun:
    metrics = {f"load/{load}/output_tok_per_s": 9.0, f"load/{load}/c8-128x32/output_tok_per_s": 9.0}
    return RecordedRun(RunInfo(label, NOON), RunData(metrics, {"label": label, "plane": plane}))


NEW = [a_run("none", "82d18dd0c91130d2"), a_run("int8", "82d18dd0c91130d2")]
OLD = [a_run("awq", "5eeb03fa311112ff", "sweep")]
TWIN = [a_run("gptq", "5ee000000000")]


def test_the_newest_plane_is_shown_and_another_one_by_the_start_of_its_name() -> None:
    runs = [NEW[0], *OLD, NEW[1]]
    assert on_one_plane(runs) == NEW
    assert on_one_plane(runs, "5eeb") == OLD
    assert on_one_plane([]) == []


@pytest.mark.parametrize(("name", "told"), [("x", "there is no such plane"), ("5ee", "several planes start with it")])
def test_a_name_that_is_not_one_plane_is_refused_with_those_there_are(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        on_one_plane([*NEW, *OLD, *TWIN], name)
    assert f"--plane {name}: {told}" in str(caught.value)
    assert "1 variant under load=sweep, the newest of 2026-11-26: --plane 5eeb03fa" in str(caught.value)


def test_a_plane_says_what_it_holds() -> None:
    assert plane_text(NEW) == "2 variants under load=quick, the newest of 2026-11-26: --plane 82d18dd0"
