"""Look at the machine once a second while a load runs, and at its server; what cannot be read is None.

    with Monitor("http://127.0.0.1:8123/metrics") as monitor:
        ...
    monitor.samples

Processor time and memory come from /proc, the GPU's from NVML (package nvidia-ml-py), energy from NVML or, on a CPU
whose counters are readable, from RAPL. That costs less than a millisecond. Our own processes' time is found by walking
all processes, some milliseconds where they are hundreds: less often where they are thousands. The server's metrics
cost the server's own process more than 10 ms on a slow processor, in which it answers nobody: they are read less often
the longer that takes.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.load.counters import parse_metrics

INTERVAL_S = 1.0
SERVER_SHARE = 0.005
"""At most this share of the time is spent on the server's metrics, ..."""
MAX_SERVER_INTERVAL_S = 3.0
"""... but a run of some seconds has to hold one look at its keys and values."""
OWN_SHARE = 0.01
"""At most about this share of one processor is spent on walking all processes."""
RAPL = Path("/sys/class/powercap")
PROC = Path("/proc")


class Monitor:
    """Takes samples in a thread of its own between `__enter__` and `__exit__`."""

    def __init__(self, metrics_url: str | None, interval_s: float = INTERVAL_S) -> None:
        """Watch this machine and the server behind `metrics_url` (None: no server)."""
        self.samples: list[dict[str, float | None]] = []
        self._metrics_url = metrics_url
        self._interval_s = interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="load-monitor", daemon=True)
        self._gpus = Gpus()
        self._server_due_s = self._own_due_s = 0.0

    def look(self, *, is_regular: bool = False) -> dict[str, float | None]:
        """One sample; a regular one leaves out our own processes where walking all of them takes long."""
        sample: dict[str, float | None] = {"monotonic_s": time.monotonic()}
        return (
            sample
            | processor_time()
            | self._own(is_regular=is_regular)
            | {"load_average": load_average(), "memory_used_bytes": memory_used_bytes()}
            | self._gpus.look()
            | {"cpu_energy_j": rapl_energy_j()}
            | self._server()
        )

    def gpu_names(self) -> list[str]:
        """The GPUs that are watched, as their driver names them."""
        return self._gpus.names()

    def _own(self, *, is_regular: bool) -> dict[str, float | None]:
        started = time.monotonic()
        if is_regular and started < self._own_due_s:
            return {}
        found = own_processor_time_s()
        now = time.monotonic()
        self._own_due_s = now + min((now - started) / OWN_SHARE, MAX_SERVER_INTERVAL_S) - self._interval_s
        return {"own_cpu_s": found}

    def _server(self) -> dict[str, float | None]:
        started = time.monotonic()
        if self._metrics_url is None or started < self._server_due_s:
            return {}
        try:
            with urllib.request.urlopen(self._metrics_url, timeout=5) as answer:
                metrics = parse_metrics(answer.read().decode().splitlines())
        except OSError:
            return {}
        now = time.monotonic()
        self._server_due_s = now + min((now - started) / SERVER_SHARE, MAX_SERVER_INTERVAL_S)
        return {
            "kv_cache_use": metrics.get("vllm:kv_cache_usage_perc"),
            "num_waiting": metrics.get("vllm:num_requests_waiting"),
        }

    def _watch(self) -> None:
        while True:
            self.samples.append(self.look(is_regular=True))
            if self._end.wait(self._interval_s):
                return

    def __enter__(self) -> Monitor:
        """Start to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take one last sample and stop."""
        self._end.set()
        self._thread.join(timeout=10)
        self.samples.append(self.look())
        self._gpus.close()


def processor_time(proc: Path = PROC) -> dict[str, float | None]:
    """Seconds that all processors together have been busy, were taken by the host (part of busy), and in all, since the
    start of the machine.
    """
    try:
        line = (proc / "stat").read_text().split("\n", 1)[0]
    except OSError:
        return {"cpu_busy_s": None, "cpu_steal_s": None, "cpu_total_s": None}
    ticks = [int(field) for field in line.split()[1:9]]  # guest time is part of user time
    idle, steal = ticks[3] + ticks[4], ticks[7] if len(ticks) > 7 else 0
    per_second = os.sysconf("SC_CLK_TCK")
    seconds = {"cpu_busy_s": sum(ticks) - idle, "cpu_steal_s": steal, "cpu_total_s": sum(ticks)}
    return {name: value / per_second for name, value in seconds.items()}


def own_processor_time_s(root: int | None = None, proc: Path = PROC) -> float | None:
    """Processor seconds of this process and of all that it has started, those that have ended included.

    Servers and clients run below a supervisor in sessions of their own: they are found by their parents. None where
    /proc does not list processes.

    Args:
        root: the process; None: this one.
        proc: where the kernel lists processes.

    """
    root = os.getpid() if root is None else root
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    try:
        names = [name for name in os.listdir(proc) if name.isdigit()]
    except OSError:
        return None
    for name in names:
        try:
            # The command's name may hold spaces and brackets: fields are counted behind its last bracket.
            fields = (proc / name / "stat").read_bytes().rpartition(b")")[2].split()
            parents[int(name)] = int(fields[1])
            ticks[int(name)] = sum(int(field) for field in fields[11:15])  # of children that were waited for as well
        except (OSError, IndexError, ValueError):
            continue  # it has ended meanwhile
    if root not in ticks:
        return None
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += ticks[pid]
        waiting += children.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


def load_average(proc: Path = PROC) -> float | None:
    """The kernel's load average over the last minute; None where it tells none."""
    try:
        return float((proc / "loadavg").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return None


def memory_used_bytes() -> float | None:
    """Memory in use on the whole machine, without what could be given up at once."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return (int(lines["MemTotal"].split()[0]) - int(lines["MemAvailable"].split()[0])) * 1024.0
    except (OSError, KeyError, ValueError):
        return None


def rapl_energy_j(root: Path = RAPL) -> float | None:
    """Energy of all processor packages so far, in joules; None where the kernel does not show it or not to us."""
    try:
        packages = [path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1]
        microjoules = [int((path / "energy_uj").read_text()) for path in packages]
    except (OSError, ValueError):
        return None
    return sum(microjoules) / 1e6 if microjoules else None


class Gpus:
    """The NVIDIA GPUs that this process may use, through NVML; silent where there is none."""

    def __init__(self) -> None:
        """Open NVML if it is there."""
        self._nvml: Any = None
        self._handles: list[object] = []
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
        except Exception:  # no package, no driver, no GPU: each has an exception of its own
            return
        self._nvml = nvml
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        chosen = [int(index) for index in visible.split(",")] if re.fullmatch(r"\d+(,\d+)*", visible) else None
        indices = range(nvml.nvmlDeviceGetCount()) if chosen is None else chosen
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in indices]

    def names(self) -> list[str]:
        """As the driver names them."""
        return [str(self._nvml.nvmlDeviceGetName(handle)) for handle in self._handles]

    def look(self) -> dict[str, float | None]:
        """Mean utilization, memory in use and energy so far, over all GPUs."""
        empty: dict[str, float | None] = {
            "gpu_utilisation": None,
            "gpu_memory_used_bytes": None,
            "gpu_energy_j": None,
        }
        if not self._handles:
            return empty
        nvml = self._nvml
        shares = [self._try(lambda h: nvml.nvmlDeviceGetUtilizationRates(h).gpu / 100, h) for h in self._handles]
        memory = [self._try(lambda h: float(nvml.nvmlDeviceGetMemoryInfo(h).used), h) for h in self._handles]
        energy = [self._try(lambda h: nvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1000, h) for h in self._handles]
        return {
            "gpu_utilisation": _total(shares, len(shares)),
            "gpu_memory_used_bytes": _total(memory),
            "gpu_energy_j": _total(energy),
        }

    def _try(self, read: Callable[[object], float], handle: object) -> float | None:
        try:
            return float(read(handle))
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()


def _total(values: list[float | None], divisor: int = 1) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / divisor if len(known) == len(values) else None
