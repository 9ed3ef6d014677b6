"""The driver of interleaved rounds: the order of starts and repeats, resumption, shared rounds. Client and servers are
replaced by ones that note what they are told.
"""

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ToolError
from evals.load.interleaved import RoundDesign, point_spec, repeats_in_order, run_rounds, sides_in_order
from evals.load.scenario import PointSpec, from_config
from evals.load.tokens import headline_tokens
from evals.types import LoadPoint, Target
from tests.unit.evals.test_load_summary import bench

POINT = {"concurrency": 8, "input_tokens": 10, "output_tokens": 5, "num_requests": 2}
SCENARIO = from_config({"name": "one", "num_repeats": 2, "points": [POINT]})
SPEC = SCENARIO.points[0]
DESIGN = RoundDesign(SPEC, replace(SPEC, concurrency=16), 3, 2, True, SCENARIO, 0)
PYTHON = Path("/serve/python")


class Servers:
    """Notes which servers are up; `fail_at` is the number of the start that fails."""

    def __init__(self, fail_at=None):
        self.up, self.log, self.fail_at = set(), [], fail_at

    @contextmanager
    def start(self, sides):
        self.log.append(tuple(sides))
        if len(self.log) == self.fail_at:
            raise ToolError("no memory")
        assert not self.up, "the servers of the round before are still up"
        self.up = set(sides)
        try:
            yield {side: Target(f"http://{side}.{len(self.log)}", "m", Path("/m"), {}, side) for side in sides}
        finally:
            self.up = set()


class Client:
    """Writes a raw file for every run; is killed after `limit` of them. Speeds are those of `rate(side, number)`."""

    def __init__(self, servers, rate=lambda side, number: 100.0, limit=None, failed=0):
        self.servers, self.rate, self.limit, self.failed, self.ran = servers, rate, limit, failed, []

    def run(self, job, *, on_line=None, meanwhile=None):
        folder = Path(job.payload["folder"])
        assert job.payload["idle_limit_s"] > 60
        meanwhile()
        number = 1
        while (path := folder / "jobs" / f"{number:04d}.json").exists():
            told = json.loads(path.read_text())
            assert told["metrics_url"] == ""
            for run in told["runs"]:
                url = run["arguments"][run["arguments"].index("--base-url") + 1]
                side = url.removeprefix("http://").partition(".")[0]
                assert side in self.servers.up, f"{side} is asked, {self.servers.up} are up"
                if run["result"] is not None:
                    if self.limit is not None and len(self.ran) >= self.limit:
                        raise ToolError("the client was killed")
                    self.write(folder / "raw" / run["result"], side)
                self.ran.append((side, url, run["result"], run["arguments"]))
            on_line(f"load-client: finished job {number:04d}")
            number += 1
        return {"num_jobs": number - 1}

    def write(self, path, side):
        path.parent.mkdir(exist_ok=True)
        now = time.monotonic()
        figures = bench() | {"total_token_throughput": self.rate(side, len(self.ran)), "failed": self.failed}
        path.write_text(json.dumps({"bench": figures, "started_monotonic_s": now - 1, "ended_monotonic_s": now}))


def measure(folder, design=DESIGN, servers=None, client=None, **options):
    servers = servers or Servers()
    client = client or Client(servers)
    return run_rounds(design, servers.start, PYTHON, folder, launcher=client, env={}, **options), servers, client


def test_every_round_starts_both_anew_and_alternates(tmp_path):
    seen = []
    rounds, servers, client = measure(tmp_path, on_round=lambda done, total: seen.append((done, total)))
    assert servers.log == [("baseline", "candidate"), ("candidate", "baseline"), ("baseline", "candidate")]
    assert servers.up == set()
    first = [(side, result) for side, _, result, _ in client.ran[:6]]
    assert [result for _, result in first[:2]] == [None, None], "a discarded round of each"
    assert [side for side, _ in first] == ["baseline", "candidate", "baseline", "candidate", "candidate", "baseline"]
    assert [one.first for one in rounds] == ["baseline", "candidate", "baseline"]
    assert all(one.baseline_tok_per_s == (100.0, 100.0) for one in rounds)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (tmp_path / "jobs" / "end").exists()


def test_each_side_is_measured_at_its_own_point_with_the_same_prompts_of_new_seeds(tmp_path):
    _, _, client = measure(tmp_path)
    told = {}
    for side, _, result, arguments in client.ran:
        if result is not None:
            seed = arguments[arguments.index("--seed") + 1]
            told.setdefault(side, []).append((seed, arguments[arguments.index("--max-concurrency") + 1]))
    assert {parallel for _, parallel in told["baseline"]} == {"8"}
    assert {parallel for _, parallel in told["candidate"]} == {"16"}
    for pairs in told.values():
        assert len({seed for seed, _ in pairs}) == 6, "no prompt twice"
    same = measure(tmp_path / "same", replace(DESIGN, candidate=SPEC))[2]
    seeds = {
        side: {a[a.index("--seed") + 1] for one, _, result, a in same.ran if one == side and result}
        for side in ("baseline", "candidate")
    }
    assert seeds["baseline"] == seeds["candidate"]


def test_one_after_the_other_where_both_do_not_fit(tmp_path):
    rounds, servers, client = measure(tmp_path, replace(DESIGN, is_together=False, num_rounds=2))
    assert servers.log == [("baseline",), ("candidate",), ("candidate",), ("baseline",)]
    assert len(rounds) == 2
    assert [side for side, _, result, _ in client.ran if result] == 2 * ["baseline"] + 4 * ["candidate"] + 2 * [
        "baseline"
    ]


def test_a_killed_round_begins_anew_and_finished_ones_stay(tmp_path):
    servers = Servers()
    with pytest.raises(ToolError, match="killed"):
        # 6 runs a round, two of them discarded: it dies in the second round, after one of its repeats
        measure(tmp_path, servers=servers, client=Client(servers, rate=lambda side, n: 1.0, limit=9))
    assert servers.up == set(), "the servers end with the client"
    assert len(list((tmp_path / "raw").glob("round-0002-*"))) == 1
    first = (tmp_path / "rounds" / "round-0001.json").stat().st_mtime_ns
    rounds, servers, _ = measure(tmp_path)
    assert servers.log == [("candidate", "baseline"), ("baseline", "candidate")]
    assert rounds[0].baseline_tok_per_s == (1.0, 1.0)
    assert rounds[1].baseline_tok_per_s == (100.0, 100.0), "repeats of servers that are gone are not mixed in"
    assert (tmp_path / "rounds" / "round-0001.json").stat().st_mtime_ns == first


def test_a_server_that_does_not_start_ends_the_stage_and_all_else(tmp_path):
    servers = Servers(fail_at=2)
    with pytest.raises(ToolError, match="no memory"):
        measure(tmp_path, servers=servers)
    assert servers.up == set()
    assert measure(tmp_path)[1].log == [("candidate", "baseline"), ("baseline", "candidate")]


def test_more_rounds_add_to_those_there_are(tmp_path):
    known = tmp_path / "known"
    two, _, _ = measure(tmp_path / "two", replace(DESIGN, num_rounds=2), known=known)
    four, servers, _ = measure(tmp_path / "four", replace(DESIGN, num_rounds=4), known=known)
    assert len(servers.log) == 2
    assert four[:2] == two
    again, servers, client = measure(tmp_path / "again", replace(DESIGN, num_rounds=4), known=known)
    assert again == four
    assert servers.log == client.ran == [], "everything is there: nothing is started"


def test_a_client_that_ends_early_is_told(tmp_path):
    class Idle:
        def run(self, job, **_):
            return {"num_jobs": 0}

    with pytest.raises(ToolError, match="before all rounds were complete"):
        run_rounds(DESIGN, Servers().start, PYTHON, tmp_path, launcher=Idle(), env={})


def test_failures_and_the_machines_use_are_kept_with_the_round(tmp_path):
    servers = Servers()
    rounds, _, _ = measure(tmp_path, servers=servers, client=Client(servers, failed=1))
    assert [one.num_failed for one in rounds] == [4, 4, 4]
    assert set(rounds[0].counters) == {"load_average", "cpu_steal_share", "cpu_own_share", "cpu_other_share"}


def test_only_what_makes_rounds_comparable_is_in_their_digest():
    targets = {"baseline": "a", "candidate": "b"}
    digest = DESIGN.digest(targets)
    assert replace(DESIGN, num_rounds=9).digest(targets) == digest
    others = [
        replace(DESIGN, num_repeats=3),
        replace(DESIGN, is_together=False),
        replace(DESIGN, seed=1),
        replace(DESIGN, candidate=SPEC),
        replace(DESIGN, scenario=replace(SCENARIO, request_timeout_s=1.0)),
    ]
    digests = {one.digest(targets) for one in others} | {DESIGN.digest(targets | {"candidate": "c"})}
    assert len(digests | {digest}) == 7


def test_a_steady_drift_within_a_round_cancels():
    order = repeats_in_order(sides_in_order(0), 4)
    place = {side: sum(i for i, (one, _) in enumerate(order) if one == side) for side in ("baseline", "candidate")}
    assert place["baseline"] == place["candidate"]


def test_a_load_point_is_measured_again_as_it_was():
    point = LoadPoint("c8-10x5", 8, 10, 5, (), 0, num_requests=2)
    assert point_spec(point, SCENARIO) == SPEC
    rate = LoadPoint("rps2-10x5", None, 10, 5, (), 0, num_requests=7, request_rate=2.0, prefix_share=0.5)
    assert point_spec(rate, SCENARIO) == PointSpec(10, 5, 7, request_rate=2.0, prefix_share=0.5)
    replayed = from_config({"name": "t", "trace": {"path": "evals/load/data/azure_llm_2023_conv_600.csv"}})
    spec = point_spec(LoadPoint("trace", None, 1, 1, (), 0, trace="x"), replayed)
    assert (spec.trace_speed, spec.num_requests, spec.is_open_loop) == (1.0, 100, True)


def test_the_tokens_of_the_headline_are_known_before_anything_runs():
    assert headline_tokens(SCENARIO) == 2 * 15
    sweep = {"input_tokens": 128, "output_tokens": 64, "max_concurrency": 32}
    assert headline_tokens(from_config({"name": "s", "sweep": sweep})) == 64 * 192
    replay = from_config({"name": "t", "trace": {"path": "evals/load/data/azure_llm_2023_conv_600.csv"}})
    assert headline_tokens(replay) > 0
