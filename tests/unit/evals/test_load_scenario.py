"""Scenarios: what is accepted, what is refused and how, and the client's arguments made from them."""

from pathlib import Path

import pytest
import yaml

from core.errors import ConfigError
from evals.load.arguments import bench_arguments, client_runs, raw_name, run_seed
from evals.load.scenario import PointSpec, from_config
from evals.types import Target

CONF = Path(__file__).parents[3] / "conf" / "load"
POINT = {"concurrency": 8, "input_tokens": 128, "output_tokens": 64, "num_requests": 16}
TARGET = Target("http://127.0.0.1:1", "m", Path("/models/m"), {}, "digest")


def value_of(arguments, name):
    return arguments[arguments.index(name) + 1]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_scenario_of_ours_is_accepted(path):
    scenario = from_config(yaml.safe_load(path.read_text()))
    assert scenario.name == path.stem


def test_quick_separates_input_from_output_at_its_saturating_concurrency():
    scenario = from_config(yaml.safe_load((CONF / "quick.yaml").read_text()))
    assert len({(p.input_tokens, p.output_tokens) for p in scenario.points if p.concurrency == 8}) >= 3
    assert scenario.num_repeats == 1, "the rounds of the price stage repeat it"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "x", "points": []}, "load.points: nothing to measure"),
        ({"name": "x", "point": [POINT]}, "load.point: unknown key; did you mean 'points'"),
        ({"name": "x", "points": [POINT | {"concurency": 2}]}, r"load.points\[0\].concurency: unknown key"),
        ({"name": "x", "points": [POINT | {"num_requests": 0}]}, r"load.points\[0\].num_requests: 0"),
        (
            {"name": "x", "points": [{k: POINT[k] for k in POINT if k != "concurrency"}]},
            "neither concurrency nor request_rate",
        ),
        ({"name": "x", "search": {"input_tokens": 8, "output_tokens": 8}}, "load.search: no objective"),
        ({"name": "x", "search": {"input_tokens": 8, "output_tokens": 8, "slo_ttft_p99_s": 0}}, "slo_ttft_p99_s: 0"),
        ({"name": "x", "sweep": {"input_tokens": 8}}, "load.sweep.output_tokens: missing"),
        ({"name": "x", "trace": {"num_requests": 8}}, "load.trace.path: missing"),
        ({"name": "x", "trace": {"path": "t.csv", "speed": -1}}, "load.trace.speed: -1"),
        ({"name": "x", "points": [POINT | {"trace": "t.csv"}]}, "give load.trace.path"),
        ({"name": "x", "points": [POINT | {"request_rate": -1.0}]}, "request_rate: -1.0 is not a number above 0"),
        ({"name": "x", "points": [POINT | {"prefix_share": 1.0}]}, r"prefix_share: 1.0 is not in \[0, 1\)"),
        ({"name": "x", "points": [{"concurrency": 1}]}, r"load.points\[0\].input_tokens: missing"),
        ({"name": "x", "points": [POINT, POINT]}, "'c8-128x64' is listed 2 times"),
        ({"name": "x", "points": [POINT], "mix": [1, 2]}, r"load.mix: no point has \[1, 2\]"),
        ({"name": "x", "points": [POINT], "mix": "128"}, "load.mix: '128' is not"),
        ({"name": "x", "points": [POINT], "num_repeats": 0}, "load.num_repeats: 0"),
        ({"name": "x", "points": ["c8"]}, r"load.points\[0\]: 'c8' is no mapping"),
    ],
)
def test_what_cannot_be_measured_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        from_config(config)


def test_names_come_from_the_setting_alone():
    assert PointSpec(128, 64, 16, concurrency=8).name == "c8-128x64"
    assert PointSpec(128, 64, 16, request_rate=2.5).name == "rps2.5-128x64"
    assert PointSpec(512, 64, 16, concurrency=8, prefix_share=0.5).name == "c8-512x64-prefix0.5"


def test_arguments_fix_the_lengths_and_hold_the_whole_prompt():
    arguments = bench_arguments(TARGET, PointSpec(512, 64, 16, concurrency=8, prefix_share=0.75), 5)
    assert value_of(arguments, "--random-prefix-len") == "384"
    assert value_of(arguments, "--random-input-len") == "128"
    assert value_of(arguments, "--random-output-len") == "64"
    assert value_of(arguments, "--random-range-ratio") == "0"
    assert value_of(arguments, "--max-concurrency") == "8"
    assert "--ignore-eos" in arguments
    assert "--request-rate" not in arguments


def test_an_open_loop_has_a_rate_and_no_limit():
    arguments = bench_arguments(TARGET, PointSpec(128, 64, 16, request_rate=2.5), 5)
    assert value_of(arguments, "--request-rate") == "2.5"
    assert "--max-concurrency" not in arguments


def test_every_run_has_prompts_of_its_own():
    scenario = from_config({"name": "x", "points": [POINT, POINT | {"concurrency": 1}]})
    runs = [run for point in scenario.points for run in client_runs(TARGET, scenario, point, 0)]
    seeds = [value_of(run["arguments"], "--seed") for run in runs]
    assert len(set(seeds)) == len(seeds) == 2 * (1 + 3)
    assert [run["result"] is None for run in runs] == [True, False, False, False] * 2


def test_variants_get_the_same_prompts_and_files_of_their_own():
    other = Target("http://127.0.0.1:2", "n", Path("/models/n"), {}, "other digest")
    scenario = from_config({"name": "x", "points": [POINT]})
    ours, theirs = (client_runs(target, scenario, scenario.points[0], 0) for target in (TARGET, other))
    assert [value_of(run["arguments"], "--seed") for run in ours] == [
        value_of(run["arguments"], "--seed") for run in theirs
    ]
    assert {run["result"] for run in ours[1:]}.isdisjoint(run["result"] for run in theirs[1:])
    assert run_seed(0, scenario.points[0], 0) != run_seed(1, scenario.points[0], 0)


def test_what_is_there_is_not_measured_again():
    scenario = from_config({"name": "x", "points": [POINT]})
    names = [raw_name(TARGET, scenario, scenario.points[0], 0, repeat) for repeat in range(3)]
    runs = client_runs(TARGET, scenario, scenario.points[0], 0, have=names[:2])
    assert [run["result"] for run in runs] == [None, names[2]]
    assert client_runs(TARGET, scenario, scenario.points[0], 0, have=names) == []
