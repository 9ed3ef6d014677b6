"""Recorded traffic: what can be replayed, and what is refused by line and reason."""

import json
from pathlib import Path

import pytest

import evals.load
from core.errors import ConfigError
from evals.load.run import run_load
from evals.load.scenario import from_config
from evals.load.trace import CHUNK_TOKENS, Arrival, choose, read_trace, trace_lines
from evals.types import Target
from tests.unit.evals.test_load_run import FakeClient

AZURE = Path(evals.load.__file__).parent / "data" / "azure_llm_2023_conv_600.csv"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
TARGET = Target("http://127.0.0.1:1", "m", Path("/models/m"), {}, "digest")


def write(tmp_path, *rows, header=HEADER):
    path = tmp_path / "trace.csv"
    path.write_text(header + "\n".join(rows))
    return path


def test_the_azure_trace_is_read_whole():
    arrivals = read_trace(AZURE)
    assert len(arrivals) == 600
    assert arrivals[0] == Arrival(0.0, 374, 44)
    assert arrivals[1].arrival_s == pytest.approx(4.314579, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["2023-11-16 18:15:46.68,374,44", "yesterday,10,5"], "line 3: Invalid isoformat"),
        (["2023-11-16 18:15:46.68,374,forty"], "line 2: invalid literal"),
        (["2023-11-16 18:15:46.68,374,44", "2023-11-16 18:15:47,0,5"], "line 3: 0 input and 5 output tokens"),
        (["2023-11-16 18:15:46,1,1", "2023-11-16 18:15:45,1,1"], "line 3: arrives before the line above it"),
        (["2023-11-16 18:15:46,1"], "line 2"),
        ([], "has no request"),
    ],
)
def test_a_row_that_cannot_be_replayed_is_named_with_its_reason(tmp_path, rows, reason):
    with pytest.raises(ConfigError, match=reason):
        read_trace(write(tmp_path, *rows))


def test_other_columns_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="no column TIMESTAMP, GeneratedTokens"):
        read_trace(write(tmp_path, "1,2", header="time,ContextTokens\n"))


def test_a_missing_file_is_the_users_error(tmp_path):
    with pytest.raises(ConfigError, match=r"load\.trace\.path"):
        read_trace(tmp_path / "none.csv")


def test_long_requests_are_passed_over_and_counted():
    chosen, num_passed = choose(read_trace(AZURE), 100, 2048)
    assert len(chosen) == 100
    assert chosen[0].arrival_s == 0.0
    assert all(arrival.input_tokens + arrival.output_tokens <= 2048 for arrival in chosen)
    assert num_passed > 0
    assert choose(read_trace(AZURE), 100, 1) == ([], 600)


def test_lines_keep_times_and_lengths_and_share_no_prefix():
    lines = [json.loads(line) for line in trace_lines([Arrival(0.0, 20, 5), Arrival(3.0, 32, 7)], 2.0, 9).splitlines()]
    assert [line["timestamp"] for line in lines] == [0.0, 1.5]
    assert [(line["input_length"], line["output_length"]) for line in lines] == [(20, 5), (32, 7)]
    assert all(len(line["hash_ids"]) * CHUNK_TOKENS >= line["input_length"] for line in lines)
    hashes = [name for line in lines for name in line["hash_ids"]]
    assert len(set(hashes)) == len(hashes)
    assert trace_lines([Arrival(0.0, 20, 5)], 1.0, 9) != trace_lines([Arrival(0.0, 20, 5)], 1.0, 10)


def test_a_replay_hands_the_trace_to_the_client(tmp_path):
    scenario = from_config({"name": "t", "trace": {"path": str(AZURE), "num_requests": 20, "speed": 0.5}})
    client = FakeClient()
    report = run_load(TARGET, scenario, Path("p"), tmp_path, 0, launcher=client)
    point = report.points[0]
    assert point.name.startswith("trace-x0.5-")
    assert point.num_requests == 20
    assert point.trace is not None
    job = json.loads((tmp_path / "jobs" / "0001.json").read_text())
    files = [run["arguments"][run["arguments"].index("--dataset-path") + 1] for run in job["runs"] if run["result"]]
    assert len(set(files)) == 3
    assert all(len(Path(file).read_text().splitlines()) == 20 for file in files)
    assert report.machine.trace_requests_passed_over is not None


def test_a_trace_without_a_request_that_fits_is_refused(tmp_path):
    scenario = from_config({"name": "t", "trace": {"path": str(AZURE), "max_tokens": 3}})
    with pytest.raises(ConfigError, match="no request"):
        run_load(TARGET, scenario, Path("p"), tmp_path, 0, launcher=FakeClient())
