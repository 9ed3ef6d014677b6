"""Two equivalent ways to compute the same answer: what the noise floor compares. Pure.

On a GPU kernels are chosen by the size of a step, so the same server with another number of requests in flight adds the
same numbers in another order. On a CPU it does not: there the second path is another instruction set of oneDNN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.config import EngineConfig
from pipeline.types import Machine

OTHER_IN_FLIGHT = 8
"""Requests in flight on the second path of a GPU, where the first one has a single one."""


@dataclass(frozen=True)
class ScoringPath:
    """How an answer is computed: by which server, and how many requests beside it."""

    engine: EngineConfig
    num_concurrent: int
    text: str
    """For people."""
    must_differ: bool = False
    """Whether equal answers show that this is no other path at all, and not that there is no noise."""

    @property
    def inputs(self) -> dict[str, object]:
        """What it has otherwise than another path of the same server: a stage's key has the rest already."""
        return {"environment": self.engine.environment, "num_concurrent": self.num_concurrent}


def first_path(engine: EngineConfig, num_concurrent: int) -> ScoringPath:
    """The path that quality is measured by."""
    return ScoringPath(engine, num_concurrent, f"vLLM with {num_concurrent} in flight")


def second_path(first: ScoringPath, machine: Machine) -> ScoringPath:
    """An equivalent path whose sums are rounded otherwise."""
    if machine.device == "cuda":
        other = 1 if first.num_concurrent > 1 else OTHER_IN_FLIGHT
        return ScoringPath(first.engine, other, f"the same server with {other} in flight")
    engine = replace(first.engine, environment={**first.engine.environment, "ONEDNN_MAX_CPU_ISA": "AVX"})
    return ScoringPath(engine, first.num_concurrent, "vLLM with oneDNN held to AVX", must_differ=True)
