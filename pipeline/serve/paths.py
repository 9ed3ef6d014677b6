"""Two equivalent ways to compute the same answer: what the noise floor compares. Pure.

On a GPU kernels are chosen by the size of a step, so the same server with another number of requests in flight adds the
same numbers in another order. On a CPU it does not, for texts that are short: there the second path is the same server
with oneDNN, which multiplies its matrices, limited to an older instruction set, whose kernels add in another order.
Products of INT8 codes are exact in any order, so our plug-in moves the last digits of every normalization besides.

Another library (transformers) would be no equivalent path: it quantizes activations by other formulas, and what it
differs by is not rounding alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.config import EngineConfig
from pipeline.types import Machine

LAST_DIGITS = "PARSIMONY_LAST_DIGITS"
"""Read by our vLLM plug-in."""
OTHER_IN_FLIGHT = 8
"""Requests in flight on the second path of a GPU, where the first one has a single one."""
INSTRUCTION_SET = "ONEDNN_MAX_CPU_ISA"
"""https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html"""


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
    name = older_instructions(first.engine, machine)
    engine = replace(first.engine, environment={**first.engine.environment, INSTRUCTION_SET: name, LAST_DIGITS: "1"})
    text = f"the same with other last digits (oneDNN limited to {name}, normalizations moved)"
    return ScoringPath(engine, first.num_concurrent, text, must_differ=True)


def older_instructions(engine: EngineConfig, machine: Machine) -> str:
    """The next older instruction set of oneDNN that multiplies matrices of the engine's type.

    With AVX-512 bfloat16 is computed without the instructions made for it, and float32 with AVX2; without AVX-512
    float32 is computed with AVX, which has no fused multiplication and addition.
    """
    if not machine.has_avx512:
        return "AVX"
    return "AVX2" if engine.dtype == "float32" else "AVX512_CORE"
