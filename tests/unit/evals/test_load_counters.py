"""Counters of the server and the machine: differences, peaks, and what is unavailable."""

import io
import os
import subprocess
import sys
import time

import pytest

from evals.load.counters import (
    COUNTERS,
    MACHINE_USE,
    UNAVAILABLE,
    busy_reason,
    interpolate,
    machine_counters,
    machine_use,
    parse_metrics,
    server_counters,
    server_facts,
)
from evals.load.monitor import (
    Monitor,
    load_average,
    memory_used_bytes,
    own_processor_time_s,
    processor_time,
    rapl_energy_j,
)

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


def test_who_used_the_processors_adds_up(tmp_path):
    """A process of ours that computes is ours, also after it has ended; nothing of it is another's."""
    code = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    with Monitor(None, interval_s=0.05) as monitor:
        before = own_processor_time_s()
        subprocess.run([sys.executable, "-c", code], check=True)
        assert own_processor_time_s() - before > 0.35
    use = machine_use(monitor.samples, monitor.samples[0]["monotonic_s"], monitor.samples[-1]["monotonic_s"])
    assert set(use) == set(MACHINE_USE)
    assert use["cpu_own_share"] > 0.5 / (os.cpu_count() or 1) / 2
    assert 0 <= use["cpu_steal_share"] <= 1
    assert 0 <= use["cpu_other_share"] <= 1
    assert use["load_average"] >= 0


def test_another_process_is_not_ours(tmp_path):
    """The tree is found by parents, whatever a command's name holds."""
    for pid, parent, name, ticks in (
        (10, 1, "we", 100),
        (11, 10, "a) b (c", 50),
        (12, 11, "server", 25),
        (13, 1, "x", 9),
    ):
        (tmp_path / str(pid)).mkdir()
        fields = f"S {parent} 0 0 0 0 0 0 0 0 0 {ticks} 0 0 0 20"
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {fields}")
    per_second = os.sysconf("SC_CLK_TCK")
    assert own_processor_time_s(10, tmp_path) == 175 / per_second
    assert own_processor_time_s(12, tmp_path) == 25 / per_second
    assert own_processor_time_s(99, tmp_path) is None, "no such process"
    (tmp_path / "14").mkdir()  # it has ended while we looked
    assert own_processor_time_s(10, tmp_path) == 175 / per_second


def test_a_system_without_proc_tells_nothing_and_says_why(tmp_path):
    nowhere = tmp_path / "no-proc"
    assert own_processor_time_s(proc=nowhere) is None
    assert load_average(nowhere) is None
    assert set(processor_time(nowhere).values()) == {None}
    looks = samples(cpu_busy_s=[None, None], own_cpu_s=[None, None])
    assert set(machine_use(looks, 0.0, 1.0).values()) == {None}
    assert all(UNAVAILABLE[name].startswith("unavailable: /proc") for name in MACHINE_USE)
    assert busy_reason([machine_use(looks, 0.0, 1.0)]) == ""


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
