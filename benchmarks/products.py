"""What changes the last digits of vLLM's matrix products on a CPU: rows in a step, threads, oneDNN's instructions.

    python -m benchmarks.products

Multiplies seeded float32 matrices of the 135M model's shapes by vLLM's own product (`onednn_mm`), in the serving
environment, once for each setting, and compares the results to the last digit. A minute. Why it matters: what changes a
digit of a product changes answers of W8A8 checkpoints, so that it must be part of what answers go by; and what changes
it is a second path for `parsimony noise`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.environments import serving_python, set_defaults, versions
from pipeline.plan.machine import find_machine

SHAPES = ((576, 960), (576, 3072), (1536, 576))
"""Input and output features of the attention's, the MLP's first and its second matrix."""
ROWS = (1, 7, 40, 300)
SETTINGS = {
    "as it is": {},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "ONEDNN_MAX_CPU_ISA=AVX": {"ONEDNN_MAX_CPU_ISA": "AVX"},
}
PROGRAM = """
import json, sys
import numpy, torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

current_platform.import_kernels()
generator, found = torch.Generator().manual_seed(0), {}
for inputs, outputs in json.loads(sys.argv[2]):
    weight = torch.randn(outputs, inputs, generator=generator)
    handler = ops.create_onednn_mm(weight.t(), 32)
    rows = torch.randn(max(json.loads(sys.argv[3])), inputs, generator=generator)
    for count in json.loads(sys.argv[3]):
        found[f"{inputs}x{outputs}/{count}"] = ops.onednn_mm(handler, rows[:count].contiguous(), None).numpy()
numpy.savez(sys.argv[1], **found)
"""
Products = dict[str, NDArray[np.float32]]


def products(python: Path, variables: dict[str, str]) -> Products:
    """The products under one setting, by shape and number of rows."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "products.npz"
        command = [str(python), "-c", PROGRAM, str(file), str([list(shape) for shape in SHAPES]), str(list(ROWS))]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
        subprocess.run(command, env=environment, check=True, capture_output=True)
        with np.load(file) as found:
            return dict(found)


def relative(one: Products, other: Products) -> float:
    """The largest difference between two settings' products, as a share of the largest product of its matrix."""
    return max(float(np.abs(one[name] - other[name]).max() / np.abs(one[name]).max()) for name in one)


def of_rows(found: Products) -> float:
    """The same between a row computed beside others and beside fewer."""
    worst = 0.0
    for name, value in found.items():
        shape = name.partition("/")[0]
        most = found[f"{shape}/{max(ROWS)}"]
        worst = max(worst, float(np.abs(value - most[: len(value)]).max() / np.abs(most).max()))
    return worst


def main() -> int:
    """Print the table."""
    set_defaults()
    python = serving_python()
    machine = find_machine()
    load = os.getloadavg()[0]
    found = {name: products(python, variables) for name, variables in SETTINGS.items()}
    tools = ", ".join(f"{name} {version}" for name, version in versions(python, "vllm", "torch").items())
    print(f"{machine.device_name}, {machine.num_cpus} CPUs, {tools}, load average {load:.1f}\n")
    print("| setting | largest difference from `as it is` | between 1, 7, 40 and 300 rows |")
    print("|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {relative(found['as it is'], value):.1e} | {of_rows(value):.1e} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
