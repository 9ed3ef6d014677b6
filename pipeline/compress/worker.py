"""The process that compresses: `python -m pipeline.compress.worker JOB.json RESULT.json`.

A process of its own per variant: the libraries keep memory, and vLLM must not share a process with them.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from core.files import read_json, write_json
from pipeline.compress import registry


def main(job_path: Path, result_path: Path) -> None:
    """Run the method that the job names and report its time and peak memory."""
    raw = read_json(job_path)
    job = registry.CompressJob(
        base=Path(raw["base"]),
        output=Path(raw["output"]),
        args=raw["args"],
        calibration=Path(raw["calibration"]) if raw["calibration"] else None,
        seed=raw["seed"],
        scratch=Path(raw["scratch"]) if raw.get("scratch") else None,
    )
    method = registry.method(raw["method"])
    assert method.compress is not None, f"method '{method.name}' makes nothing"
    started = time.monotonic()
    method.compress(job)
    write_json(
        result_path,
        {
            "wall_s": time.monotonic() - started,
            "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_device_bytes": peak_device_bytes(),
        },
    )


def peak_device_bytes() -> Any:
    """Peak GPU memory that torch allocated in this process; None without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
