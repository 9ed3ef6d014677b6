"""The price stage against real vLLM servers: two tiny models in turn, a kill in between, and more rounds added."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.environments import serving_python
from core.files import read_json
from evals.cost.price_ratio import price_ratio, rounds_without_ratio
from evals.json_form import from_json
from evals.types import PriceRound
from tests.integration.test_load import command_lines, make_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
ROUNDS = """
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from core.environments import serving_python
from evals.load.interleaved import RoundDesign, run_rounds
from evals.load.scenario import from_config
from pipeline.config import EngineConfig
from pipeline.plan.machine import find_machine
from pipeline.serve.engine import server_environment
from pipeline.serve.server import ServedModel
from pipeline.types import Artifact

model, home, num_rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
machine, python = find_machine(), serving_python()
engine = EngineConfig(dtype="float32", max_model_len=1024, max_num_seqs=16, cpu_kvcache_gib=1)
points = [{"concurrency": 4, "num_requests": 8, "input_tokens": 32, "output_tokens": 8}]
scenario = from_config({"name": "x", "points": points})
spec = scenario.points[0]

@contextmanager
def start(sides):
    with ExitStack() as stack:
        servers = {}
        for side in sides:
            log = home / f"{side}.log"
            served = ServedModel(Artifact(model, side, 1, "random", None), engine, machine, python, log)
            servers[side] = stack.enter_context(served)
        for one in servers.values():
            one.launch()
        targets = {side: one.target() for side, one in servers.items()}
        print("servers are up:", *sorted(targets), flush=True)
        yield targets

design = RoundDesign(spec, spec, num_rounds, 1, True, scenario, 0)
rounds = run_rounds(design, start, python, home / f"rounds-{num_rounds}", known=home / "known",
                    env=server_environment(engine, machine))
print("rounds:", len(rounds), flush=True)
"""


def start(model: Path, home: Path, num_rounds: int) -> subprocess.Popen[str]:
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", ROUNDS, str(model), str(home), str(num_rounds)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_rounds_of_real_servers_survive_a_kill_and_more_of_them_add_up(tmp_path):
    model, home = tmp_path / "model", tmp_path / "home"
    make_model(model)
    assert serving_python().exists()
    first = start(model, home, 2)
    done = home / "known" / "round-0001.json"
    deadline = time.monotonic() + 240
    while not done.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert done.exists(), first.communicate()[0]
    first.send_signal(signal.SIGKILL)
    first.wait()
    written = done.stat().st_mtime_ns
    ours = str(tmp_path)
    while time.monotonic() < deadline and any(ours in line for line in command_lines()):
        time.sleep(0.1)
    assert not any(ours in line for line in command_lines()), "no server and no client is left"
    second = start(model, home, 2)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert "rounds: 2" in said
    assert said.count("servers are up: baseline candidate") == 1, "the first round is not measured again"
    assert done.stat().st_mtime_ns == written
    rounds = [from_json(PriceRound, read_json(path)) for path in sorted((home / "known").glob("*.json"))]
    assert [one.first for one in rounds] == ["baseline", "candidate"]
    assert rounds_without_ratio(rounds) == 0
    assert [one.num_failed for one in rounds] == [0, 0]
    for one in rounds:
        assert 0 < one.counters["cpu_own_share"] <= 1
        assert one.counters["cpu_other_share"] is not None
        assert one.counters["load_average"] > 0
    found = price_ratio(rounds)
    assert 0.3 < found.ratio < 3, "the same model twice"
    assert found.lo <= found.ratio <= found.hi
