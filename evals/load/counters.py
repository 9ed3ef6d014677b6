"""What the server and the machine did during a run: from Prometheus lines and samples to figures. Pure.

Counters that only rise (tokens, preemptions, joules, processor time) are differences over the run; gauges (KV cache
use, memory) are peaks of the samples taken meanwhile. What was not there to read is None, with its reason.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

Sample = Mapping[str, float | None]
"""One look at the machine: `monotonic_s`, and what else could be read (see `evals.load.monitor`)."""

MACHINE_USE = ("load_average", "cpu_steal_share", "cpu_own_share", "cpu_other_share")
"""Who used the processors: the mean of the kernel's 1-minute load average, and shares of all processors' time: taken by
the host (steal), by our own processes (pipeline, servers, client), and by all others."""
COUNTERS = (
    "prefix_cache_hit_share",
    "num_preemptions",
    "spec_acceptance_share",
    "spec_tokens_per_draft",
    "kv_cache_use_peak",
    "num_waiting_peak",
    "cpu_utilisation",
    "memory_used_peak_bytes",
    "gpu_utilisation",
    "gpu_memory_used_peak_bytes",
    "gpu_energy_j",
    "cpu_energy_j",
    *MACHINE_USE,
)
"""Shares and utilizations are in [0, 1]. A hit or an acceptance is counted in tokens."""

UNAVAILABLE = {
    "prefix_cache_hit_share": "the server looked up no prefix (prefix caching is off, or it tells nothing)",
    "num_preemptions": "the server tells no preemptions",
    "spec_acceptance_share": "no speculative decoding",
    "spec_tokens_per_draft": "no speculative decoding",
    "kv_cache_use_peak": "no sample of the server's gauges during the run",
    "num_waiting_peak": "no sample of the server's gauges during the run",
    "cpu_utilisation": "unavailable: /proc/stat gave no two samples around the run",
    "memory_used_peak_bytes": "unavailable: /proc/meminfo gave no sample during the run",
    "gpu_utilisation": "unavailable: no NVIDIA GPU answered (NVML)",
    "gpu_memory_used_peak_bytes": "unavailable: no NVIDIA GPU answered (NVML)",
    "gpu_energy_j": "unavailable: no NVIDIA GPU told its energy (NVML)",
    "cpu_energy_j": "unavailable: no readable RAPL counter (/sys/class/powercap)",
    "load_average": "unavailable: /proc/loadavg gave no sample during the run",
    "cpu_steal_share": "unavailable: /proc/stat gave no two samples around the run",
    "cpu_own_share": "unavailable: /proc gave no two samples of our processes around the run",
    "cpu_other_share": "unavailable: /proc gave no two samples of our processes around the run",
}
"""Why each of them can be None."""
MAX_OTHER_SHARE = 0.05
"""Other processes that take more of the processors make a figure doubtful. A quiet machine is below 1%."""
MAX_STEAL_SHARE = 0.02
"""So does a host that gives more of the processors' time to others."""

_LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{.*\})? (?P<value>\S+)$")


def parse_metrics(lines: Iterable[str]) -> dict[str, float]:
    """Prometheus samples by name, summed over their labels.

    >>> parse_metrics(['vllm:num_preemptions_total{engine="0"} 2.0', 'vllm:num_preemptions_total{engine="1"} 1.0'])
    {'vllm:num_preemptions_total': 3.0}
    """
    sums: dict[str, float] = {}
    for line in lines:
        if match := _LINE.match(line.strip()):
            sums[match["name"]] = sums.get(match["name"], 0.0) + float(match["value"])
    return sums


def server_counters(before: Iterable[str], after: Iterable[str]) -> dict[str, float | None]:
    """The server's counters over one run, from its `/metrics` before and after it."""
    start, end = parse_metrics(before), parse_metrics(after)

    def rise(name: str) -> float | None:
        if f"vllm:{name}_total" not in end:
            return None
        return end[f"vllm:{name}_total"] - start.get(f"vllm:{name}_total", 0.0)

    accepted, drafts = rise("spec_decode_num_accepted_tokens"), rise("spec_decode_num_drafts")
    return {
        "prefix_cache_hit_share": _ratio(rise("prefix_cache_hits"), rise("prefix_cache_queries")),
        "num_preemptions": rise("num_preemptions"),
        "spec_acceptance_share": _ratio(accepted, rise("spec_decode_num_draft_tokens")),
        "spec_tokens_per_draft": None if accepted is None or not drafts else accepted / drafts,
    }


def machine_counters(samples: Sequence[Sample], start_s: float, end_s: float) -> dict[str, float | None]:
    """The machine's figures over [start_s, end_s] on the monotonic clock; `samples` are in the order of time."""
    inside = [sample for sample in samples if start_s <= (sample["monotonic_s"] or 0.0) <= end_s]

    def peak(name: str) -> float | None:
        return max((value for sample in inside if (value := sample.get(name)) is not None), default=None)

    def mean(name: str) -> float | None:
        values = [value for sample in inside if (value := sample.get(name)) is not None]
        return sum(values) / len(values) if values else None

    def rise(name: str) -> float | None:
        first, last = interpolate(samples, name, start_s), interpolate(samples, name, end_s)
        return None if first is None or last is None else last - first

    return {
        "kv_cache_use_peak": peak("kv_cache_use"),
        "num_waiting_peak": peak("num_waiting"),
        "cpu_utilisation": _ratio(rise("cpu_busy_s"), rise("cpu_total_s")),
        "memory_used_peak_bytes": peak("memory_used_bytes"),
        "gpu_utilisation": mean("gpu_utilisation"),
        "gpu_memory_used_peak_bytes": peak("gpu_memory_used_bytes"),
        "gpu_energy_j": rise("gpu_energy_j"),
        "cpu_energy_j": rise("cpu_energy_j"),
    } | machine_use(samples, start_s, end_s)


def machine_use(samples: Sequence[Sample], start_s: float, end_s: float) -> dict[str, float | None]:
    """Who used the processors over [start_s, end_s] on the monotonic clock, by the names of `MACHINE_USE`.

    >>> start = {"monotonic_s": 0.0, "cpu_busy_s": 0.0, "cpu_total_s": 0.0, "cpu_steal_s": 0.0, "own_cpu_s": 0.0}
    >>> end = {"monotonic_s": 5.0, "cpu_busy_s": 9.0, "cpu_total_s": 10.0, "cpu_steal_s": 1.0, "own_cpu_s": 6.0}
    >>> machine_use([start | {"load_average": 1.0}, end | {"load_average": 2.0}], 0.0, 5.0)
    {'load_average': 1.5, 'cpu_steal_share': 0.1, 'cpu_own_share': 0.6, 'cpu_other_share': 0.2}
    """
    ends = {
        name: (interpolate(samples, name, start_s), interpolate(samples, name, end_s))
        for name in ("load_average", "cpu_busy_s", "cpu_total_s", "cpu_steal_s", "own_cpu_s")
    }
    rise = {name: None if None in (a, b) else (b or 0.0) - (a or 0.0) for name, (a, b) in ends.items()}
    first, last = ends["load_average"]
    busy, steal = rise["cpu_busy_s"], rise["cpu_steal_s"]
    own = None if rise["own_cpu_s"] is None else max(rise["own_cpu_s"], 0.0)  # a process may end without a trace
    # Ticks and processes are read one after the other: a difference of almost nothing may come out below zero.
    other = None if busy is None or steal is None or own is None else max(busy - steal - own, 0.0)
    return {
        "load_average": None if first is None or last is None else (first + last) / 2,
        "cpu_steal_share": _ratio(steal, rise["cpu_total_s"]),
        "cpu_own_share": _ratio(own, rise["cpu_total_s"]),
        "cpu_other_share": _ratio(other, rise["cpu_total_s"]),
    }


def busy_reason(measured: Iterable[Mapping[str, float | None]]) -> str:
    """Why figures are doubtful that were taken while the machine was used so; empty where they are not.

    `measured` is the machine's use (`MACHINE_USE`), one mapping for each repeat or round. The largest shares count;
    what nobody could read counts for nothing.

    >>> busy_reason([{"cpu_other_share": 0.01}, {"cpu_other_share": 0.234, "cpu_steal_share": 0.03}])
    'other processes took up to 23% of the processors, the host up to 3% (steal)'
    >>> busy_reason([{"cpu_other_share": 0.01}, {"cpu_other_share": None}])
    ''
    """
    uses = list(measured)
    other, steal = (
        max((value for use in uses if (value := use.get(name)) is not None), default=0.0)
        for name in ("cpu_other_share", "cpu_steal_share")
    )
    parts = [f"other processes took up to {other:.0%} of the processors"] if other > MAX_OTHER_SHARE else []
    if steal > MAX_STEAL_SHARE:
        parts.append(f"the host {'' if parts else 'took '}up to {steal:.0%} (steal)")
    return ", ".join(parts)


def interpolate(samples: Sequence[Sample], name: str, at_s: float) -> float | None:
    """A rising counter at one moment, between the samples around it; None outside of them.

    >>> interpolate([{"monotonic_s": 0.0, "j": 10.0}, {"monotonic_s": 2.0, "j": 30.0}], "j", 0.5)
    15.0
    """
    known = [
        (time_s, value)
        for sample in samples
        if (value := sample.get(name)) is not None and (time_s := sample["monotonic_s"]) is not None
    ]
    for (time_0, value_0), (time_1, value_1) in itertools.pairwise(known):
        if time_0 <= at_s <= time_1:
            share = (at_s - time_0) / (time_1 - time_0) if time_1 > time_0 else 0.0
            return value_0 + share * (value_1 - value_0)
    return None


def _ratio(part: float | None, whole: float | None) -> float | None:
    """A share, at most 1; None where there is no whole."""
    return None if part is None or not whole else min(part / whole, 1.0)


_ATTENTION = re.compile(r"Using ([A-Z]\w*(?: Attention)?)(?: attention)? backend(?! for [vV]i[tT])")
_KERNEL = re.compile(r"(?:Using|Selected) (\w+) for ([\w-]+(?: [\w-]+)?)")
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_VERSION = re.compile(r"LLM engine \(v([\w.+]+)\)")


def server_facts(log: str) -> dict[str, str | int | list[str] | None]:
    r"""What vLLM's log tells of its choices: kernels, attention backend, KV cache. None where it tells nothing.

    >>> facts = server_facts("Using MarlinLinearKernel for AutoGPTQLinearMethod\nUsing FLASH_ATTN backend.\n")
    >>> facts["kernels"], facts["attention_backend"]
    (['MarlinLinearKernel for AutoGPTQLinearMethod'], 'FLASH_ATTN')
    """
    kernels = dict.fromkeys(f"{kernel} for {layer}" for kernel, layer in _KERNEL.findall(log) if _is_kernel(kernel))
    attention = _ATTENTION.search(log)
    kv_tokens = _KV_TOKENS.search(log)
    version = _VERSION.search(log)
    return {
        "vllm_version": version[1] if version else None,
        "kernels": list(kernels),
        "attention_backend": attention[1] if attention else None,
        "kv_cache_tokens": int(kv_tokens[1].replace(",", "")) if kv_tokens else None,
    }


def _is_kernel(name: str) -> bool:
    """Whether a name in the log is a kernel class, not a word of a sentence."""
    return name[:1].isupper() and any(letter.islower() for letter in name) and len(name) > 6
