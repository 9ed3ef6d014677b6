"""Counters of the server and the machine: differences, peaks, and what is unavailable."""

import io
import time

import pytest

from evals.load.counters import (
    COUNTERS,
    UNAVAILABLE,
    interpolate,
    machine_counters,
    parse_metrics,
    server_counters,
    server_facts,
)
from evals.load.monitor import Monitor, memory_used_bytes, processor_time, rapl_energy_j

BEFORE = [
    'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0',
    'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 50.0',
    'vllm:num_preemptions_total{engine="0",model_name="m"} 1.0',
    'vllm:kv_cache_usage_perc{engine="0"} 0.5',
    'vllm:request_success_created{finished_reason="stop"} 1.7e+09',
    "# HELP vllm:num_preemptions_total Preemptions",
]
AFTER = [
    'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 500.0',
    'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 350.0',
    'vllm:num_preemptions_total{engine="0",model_name="m"} 4.0',
    'vllm:spec_decode_num_drafts_total{engine="0"} 10.0',
    'vllm:spec_decode_num_draft_tokens_total{engine="0"} 40.0',
    'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 10.0',
]


def samples(**columns):
    num = len(next(iter(columns.values())))
    return [{"monotonic_s": float(i)} | {name: values[i] for name, values in columns.items()} for i in range(num)]


def test_counters_are_differences_over_the_run():
    figures = server_counters(BEFORE, AFTER)
    assert figures["prefix_cache_hit_share"] == 0.75
    assert figures["num_preemptions"] == 3.0
    assert figures["spec_acceptance_share"] == 0.25
    assert figures["spec_tokens_per_draft"] == 1.0


def test_what_the_server_does_not_tell_is_none():
    assert set(server_counters([], []).values()) == {None}


def test_counters_and_reasons_are_complete():
    names = set(server_counters([], [])) | set(machine_counters([], 0.0, 1.0))
    assert names == set(COUNTERS) == set(UNAVAILABLE)


def test_labels_are_summed():
    assert parse_metrics(['a{x="1"} 1', 'a{x="2"} 2.5', "b 3", "# a 9", "nonsense"]) == {"a": 3.5, "b": 3.0}


def test_peaks_and_means_are_of_the_run_alone():
    looks = samples(kv_cache_use=[0.9, 0.2, 0.4, 0.3, 0.9], gpu_utilisation=[0.0, 0.5, 1.0, 0.0, 0.0])
    figures = machine_counters(looks, 1.0, 3.0)
    assert figures["kv_cache_use_peak"] == 0.4
    assert figures["gpu_utilisation"] == 0.5
    assert figures["gpu_energy_j"] is None


def test_energy_and_processor_time_are_cut_at_the_runs_ends():
    looks = samples(gpu_energy_j=[0.0, 100.0, 200.0], cpu_busy_s=[0.0, 1.0, 3.0], cpu_total_s=[0.0, 2.0, 4.0])
    figures = machine_counters(looks, 0.5, 1.5)
    assert figures["gpu_energy_j"] == pytest.approx(100.0)
    assert figures["cpu_utilisation"] == pytest.approx(1.5 / 2.0)


def test_outside_the_samples_nothing_is_known():
    looks = samples(j=[1.0, 2.0])
    assert interpolate(looks, "j", -0.1) is None
    assert interpolate(looks, "j", 1.1) is None
    assert interpolate(samples(j=[None, None]), "j", 0.5) is None


def test_the_servers_log_names_its_kernels():
    log = (
        "(EngineCore pid=1) INFO 11-23 20:01:30 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: x\n"
        "(Worker pid=2) INFO [cuda.py:410] Using FLASH_ATTN attention backend out of potential backends: [...]\n"
        "(Worker pid=2) INFO [marlin.py:1] Using MarlinLinearKernel for CompressedTensorsWNA16\n"
        "(Worker pid=2) INFO [marlin.py:1] Using MarlinLinearKernel for CompressedTensorsWNA16\n"
        "(Worker pid=2) INFO [x.py:1] Selected CutlassFP8ScaledMMLinearKernel for Fp8LinearMethod\n"
        "(Worker pid=2) INFO [x.py:1] Using backend AttentionBackendEnum.TORCH_SDPA for vit attention\n"
        "(EngineCore pid=1) INFO [kv.py:1] GPU KV cache size: 46,592 tokens, Maximum concurrency for 2,048 tokens: 9x\n"
    )
    facts = server_facts(log)
    assert facts["kernels"] == [
        "MarlinLinearKernel for CompressedTensorsWNA16",
        "CutlassFP8ScaledMMLinearKernel for Fp8LinearMethod",
    ]
    assert facts["attention_backend"] == "FLASH_ATTN"
    assert facts["kv_cache_tokens"] == 46592
    assert facts["vllm_version"] == "0.32.0"


def test_a_silent_log_tells_nothing():
    assert server_facts("hello") == {
        "vllm_version": None,
        "kernels": [],
        "attention_backend": None,
        "kv_cache_tokens": None,
    }


def test_this_machine_can_be_watched():
    with Monitor(None, interval_s=0.05) as monitor:
        busy_until = time.monotonic() + 0.3
        while time.monotonic() < busy_until:
            pass
    assert len(monitor.samples) >= 3
    first, last = (sample["monotonic_s"] for sample in (monitor.samples[0], monitor.samples[-1]))
    figures = machine_counters(monitor.samples, first, last)
    assert 0 < figures["cpu_utilisation"] <= 1
    assert figures["memory_used_peak_bytes"] > 1e8


def test_a_server_that_is_gone_leaves_its_gauges_unread():
    assert "kv_cache_use" not in Monitor("http://127.0.0.1:9/metrics").look()


def test_a_server_whose_metrics_are_slow_is_asked_less_often(monkeypatch):
    asked = []

    class SlowAnswer(io.BytesIO):
        def read(self):
            time.sleep(0.01)
            return b"vllm:kv_cache_usage_perc 0.5"

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: asked.append(url) or SlowAnswer())
    with Monitor("http://server/metrics", interval_s=0.02) as monitor:
        time.sleep(0.4)
    assert len(monitor.samples) > 5
    assert len(asked) == 1
    assert [sample.get("kv_cache_use") for sample in monitor.samples[:2]] == [0.5, None]


def test_processor_time_only_rises():
    first, second = processor_time(), processor_time()
    assert first["cpu_busy_s"] <= second["cpu_busy_s"] <= second["cpu_total_s"]
    assert memory_used_bytes() > 0


def test_rapl_sums_packages_and_leaves_their_parts_out(tmp_path):
    for name, energy in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 1_000_000), ("intel-rapl:0:0", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")
    assert rapl_energy_j(tmp_path) == 4.0
    assert rapl_energy_j(tmp_path / "none") is None
