"""What this machine is: processor, memory, GPUs. Asks the driver's own tool; loads no GPU library."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from pipeline.types import Machine

QUERY = "name,memory.total,compute_cap"
INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""x86 processors with one of them sum INT8 products in 32 bits."""


def find_machine() -> Machine:
    """The machine that this process runs on."""
    gpus = _gpus()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    num_cpus = len(os.sched_getaffinity(0))
    if not gpus:
        flags = _cpu_flags()
        return Machine(
            "cpu",
            _cpu_name(),
            1,
            num_cpus,
            memory,
            None,
            None,
            has_bf16=not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags),
            has_int4="avx512f" in flags,
            has_fp8_cache=not {"avx512f", "amx_tile"}.isdisjoint(flags),
            has_int8=platform.machine() != "x86_64" or not INT8_FLAGS.isdisjoint(flags),
        )
    name, mib, capability = gpus[0]
    return Machine(
        "cuda",
        name,
        len(gpus),
        num_cpus,
        memory,
        int(mib) * 2**20,
        float(capability),
        has_bf16=float(capability) >= 8.0,
    )


def _gpus() -> list[tuple[str, str, str]]:
    if os.environ.get("PARSIMONY_FLAVOUR") == "cpu" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    rows = [tuple(part.strip() for part in line.split(",")) for line in output.splitlines() if line.strip()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
