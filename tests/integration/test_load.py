"""The load stage against a real vLLM server: a tiny model with random weights, every kind of scenario, and a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.environments import serving_python
from evals.cost.token_cost import cost_report
from evals.load.run import run_load
from evals.load.scenario import from_config
from evals.load.summary import Slo, figure
from finops.pricing.prices import lookup
from pipeline.config import EngineConfig
from pipeline.plan.machine import find_machine
from pipeline.serve.engine import server_environment
from pipeline.serve.server import ServedModel
from pipeline.types import Artifact

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "evals" / "load" / "data" / "azure_llm_2023_conv_600.csv"
MIX = {"input_tokens": 32, "output_tokens": 8}
NUM_WORDS = 999


def make_model(folder):
    """A two-layer Llama and a tokenizer of few words, made here: nothing is fetched."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0} | {f"word{index}": index + 1 for index in range(NUM_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUM_WORDS + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder)
    engine = EngineConfig(dtype="float32", max_model_len=1024, max_num_seqs=16, cpu_kvcache_gib=1)
    artifact = Artifact(folder, "tiny", 1, "random", None)
    with ServedModel(artifact, engine, find_machine(), serving_python(), folder / "vllm.log") as model:
        yield model.target()


@pytest.fixture
def measure(served, tmp_path):
    env = server_environment(EngineConfig(), find_machine())

    def run(config, workdir=tmp_path, target=served, **options):
        scenario = from_config(config)
        return run_load(target, scenario, serving_python(), workdir, 0, env=env, **options)

    return run


def test_points_counters_and_prices_are_real(measure):
    points = [
        {"concurrency": 4, "num_requests": 8, **MIX},
        {"concurrency": 4, "num_requests": 8, "input_tokens": 256, "output_tokens": 2},
        {"concurrency": 4, "num_requests": 8, "input_tokens": 16, "output_tokens": 32},
    ]
    report = measure({"name": "x", "num_repeats": 2, "points": points}, slo=Slo(ttft_s=60.0))
    for point in report.points:
        for repeat in point.repeats:
            assert repeat["num_completed"] == 8
            assert repeat["goodput_req_per_s"] == pytest.approx(repeat["req_per_s"])
            tokens = 8 * (point.input_tokens + point.output_tokens)
            assert repeat["total_tok_per_s"] * repeat["duration_s"] == pytest.approx(tokens, rel=0.05)
    first = report.points[0].counters[0]
    assert first["prefix_cache_hit_share"] == 0.0, "prompts are new in every run"
    assert first["num_preemptions"] == 0.0
    assert 0 < first["cpu_utilisation"] <= 1
    assert "gpu_energy_j" in report.points[0].missing or first["gpu_energy_j"] > 0
    cost = cost_report(report, lookup("cpu", num_devices=2))
    assert cost.usd_per_1k_tokens.value > 0


def test_a_shared_prefix_is_hit(measure):
    point = {"concurrency": 2, "num_requests": 8, "input_tokens": 320, "output_tokens": 2, "prefix_share": 0.9}
    report = measure({"name": "x", "num_repeats": 1, "points": [point]})
    assert report.points[0].counters[0]["prefix_cache_hit_share"] > 0.5


def test_sweep_search_and_trace_run_to_their_end(measure):
    config = {
        "name": "x",
        "num_repeats": 1,
        "sweep": {**MIX, "max_concurrency": 4},
        "search": {
            **MIX,
            "slo_ttft_p99_s": 30.0,
            "capacity_concurrency": 4,
            "point_duration_s": 0.5,
            "min_requests": 5,
            "max_requests": 20,
            "max_points": 3,
        },
        "trace": {"path": str(TRACE), "num_requests": 3, "speed": 20.0, "max_tokens": 600},
    }
    report = measure(config)
    assert report.points[0].name == "c1-32x8"
    assert report.theta_slo.num_points <= 3
    assert report.theta_slo.held_req_per_s is not None
    trace = report.points[-1]
    assert trace.trace is not None
    assert trace.repeats[0]["num_completed"] == 3
    again = measure(config)
    assert again.points == report.points, "everything is on disk: nothing is measured again"


def test_timeouts_and_errors_are_counted(measure, served):
    point = {"concurrency": 2, "num_requests": 4, "input_tokens": 32, "output_tokens": 512}
    slow = measure({"name": "x", "num_repeats": 1, "points": [point], "request_timeout_s": 0.05})
    assert slow.points[0].num_timeouts == slow.points[0].num_errors == 4
    assert "timeout" in slow.points[0].missing["output_tok_per_s"]
    gone = dataclasses.replace(served, url="http://127.0.0.1:9", digest="gone")
    dead = measure(
        {"name": "x", "num_repeats": 1, "points": [{"concurrency": 1, "num_requests": 2, **MIX}]}, target=gone
    )
    assert dead.points[0].num_errors == 2
    assert figure(dead.points[0], "req_per_s") is None


KILLED = """
import json, sys
from pathlib import Path
from evals.load.run import run_load
from evals.load.scenario import from_config
from evals.types import Target
url, tokenizer, python, work = sys.argv[1:]
target = Target(url, "model", Path(tokenizer), {}, "kill")
config = json.loads(Path(work, "config.json").read_text())
run_load(target, from_config(config), Path(python), Path(work), 0)
"""


def test_a_killed_scenario_leaves_no_client_and_goes_on(measure, served, tmp_path):
    config = {"name": "x", "num_repeats": 6, "points": [{"concurrency": 2, "num_requests": 16, **MIX}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", KILLED, served.url, str(served.tokenizer), str(serving_python()), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=env)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "raw").glob("*-r*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    clients = f"client.py\0{tmp_path}"
    while time.monotonic() < deadline and any(clients in line for line in command_lines()):
        time.sleep(0.1)
    assert not any(clients in line for line in command_lines())
    measured = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").glob("*-r*.json")}
    assert measured
    report = measure(config, target=dataclasses.replace(served, digest="kill"))
    assert len(report.points[0].repeats) == 6
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in measured.items())


def command_lines():
    """The command lines of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:
            continue
