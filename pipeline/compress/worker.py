"""The process that compresses: `core.jobs` calls `work`.

A process of its own per variant: the libraries keep memory, and vLLM must not share a process with them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from core.jobs import Usage, usage
from pipeline.compress import registry

PROGRAM = "pipeline.compress.worker:work"


class Payload(TypedDict):
    """What the process is told: `registry.CompressJob` as JSON, and the method."""

    method: str
    base: str
    output: str
    args: Mapping[str, object]
    calibration: str | None
    seed: int
    scratch: str | None


def work(payload: Payload) -> Usage:
    """Run the method that the payload names and report its time and peak memory."""
    job = registry.CompressJob(
        base=Path(payload["base"]),
        output=Path(payload["output"]),
        args=payload["args"],
        calibration=Path(payload["calibration"]) if payload["calibration"] else None,
        seed=payload["seed"],
        scratch=Path(payload["scratch"]) if payload["scratch"] else None,
    )
    method = registry.method(payload["method"])
    assert method.compress is not None, f"method '{method.name}' makes nothing"
    started = time.monotonic()
    method.compress(job)
    return usage(started)
