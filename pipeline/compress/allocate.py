"""Which precision each fused group of layers gets under a budget of bits. Pure: facts and figures in, a choice out.

vLLM computes query, key and value as one product, and gate and up as another, so the projections of such a *fused
group* must share a scheme. Each group takes one level; the choice minimizes the sum of the groups' sensitivities while
the stored bits, scales included, stay within the budget. That is a multiple-choice knapsack problem, solved exactly by
integer linear programming, as HAWQ-V3 does (Yao et al., arXiv 2011.10680).

Assumption: the harm of rounding several groups is the sum of the harms of rounding each alone (HAWQ-V2, Dong et al.,
arXiv 1911.03852, sums per-layer sensitivities in the same way). It is valid for small perturbations and no bound: the
finished checkpoint is measured as a whole.

>>> options = {"a": [Option("4", 4, 0.5), Option("8", 8, 0.1)], "b": [Option("4", 4, 0.3), Option("8", 8, 0.1)]}
>>> allocate(options, max_bits=12)
{'a': '8', 'b': '4'}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

from core.errors import ConfigError
from pipeline.types import ModelFacts

SCALE_BITS = 16
"""Bits of a stored scale."""
SHAPE_BITS = 2 * 64
"""Bits of `weight_shape`, two INT64 that the pack-quantized format keeps beside each packed weight."""
COST_RANGE = 1e4
"""The costs are scaled to this range: the solver's own absolute tolerance, 1e-6, then is 1e-10 of the largest."""


@dataclass(frozen=True)
class FusedGroup:
    """Projections of one decoder layer that vLLM computes as one."""

    layer: int
    kind: str
    """`qkv`, `o`, `gate_up` or `down`."""
    parent: str
    """The module inside the decoder layer that has them: `self_attn` or `mlp`."""
    shapes: Mapping[str, tuple[int, int]]
    """Name of each projection -> (rows, columns) of its weight: (output size, input size)."""

    @property
    def name(self) -> str:
        """`layers.3.qkv`."""
        return f"layers.{self.layer}.{self.kind}"

    @property
    def num_weights(self) -> int:
        """Weights of all its projections, biases left out."""
        return sum(rows * columns for rows, columns in self.shapes.values())


@dataclass(frozen=True)
class Level:
    """One precision, and what it stores."""

    name: str
    weight_bits: int
    group_size: int | None = None
    """Columns that share a scale; None for one scale a row."""
    packed: bool = False
    """Whether the format packs weights and keeps their shape."""

    def num_bits(self, group: FusedGroup) -> int:
        """Bits of the group's weights as they are stored, with their scales."""
        if self.weight_bits == 16:
            return 16 * group.num_weights
        total = 0
        for rows, columns in group.shapes.values():
            num_scales = rows * (1 if self.group_size is None else columns // self.group_size)
            total += rows * columns * self.weight_bits + num_scales * SCALE_BITS + (SHAPE_BITS if self.packed else 0)
        return total


@dataclass(frozen=True)
class Option:
    """What one level costs one group."""

    level: str
    num_bits: int
    kl: float
    """The group's sensitivity at this level: mean KL divergence from the base, in nats per token."""


def levels(group_size: int) -> tuple[Level, ...]:
    """The levels that vLLM serves on a CPU and on a GPU: W4A16, W8A8, and 16 bit."""
    return (Level("w4a16", 4, group_size, packed=True), Level("w8a8", 8), Level("16bit", 16))


def fused_groups(facts: ModelFacts) -> tuple[FusedGroup, ...]:
    """The fused groups of a model of the Llama family, layer by layer, in the order of computation."""
    hidden, inner = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    shapes: tuple[tuple[str, str, dict[str, tuple[int, int]]], ...] = (
        ("qkv", "self_attn", {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}),
        ("o", "self_attn", {"o_proj": (hidden, queries)}),
        ("gate_up", "mlp", {"gate_proj": (inner, hidden), "up_proj": (inner, hidden)}),
        ("down", "mlp", {"down_proj": (hidden, inner)}),
    )
    return tuple(
        FusedGroup(layer, kind, parent, shape) for layer in range(facts.num_layers) for kind, parent, shape in shapes
    )


def lowest_bits_per_weight(groups: Sequence[FusedGroup], known: Sequence[Level]) -> float:
    """Stored bits per weight with every group at its smallest level."""
    lowest = sum(min(level.num_bits(group) for level in known) for group in groups)
    return lowest / sum(group.num_weights for group in groups)


def allocate(options: Mapping[str, Sequence[Option]], max_bits: int) -> dict[str, str]:
    """Choose one level for each group: the least sum of KL whose stored bits are at most `max_bits`.

    The same input always gives the same choice.

    Returns:
        Name of each group -> name of its level.

    Raises:
        ConfigError: even the smallest levels together need more.

    """
    lowest = sum(min(option.num_bits for option in found) for found in options.values())
    if lowest > max_bits:
        raise ConfigError(f"the smallest levels together need {lowest} bits, the budget is {max_bits}")
    rows = [(group, option) for group, found in options.items() for option in found]
    taken = _solve(options, rows, max_bits)
    spent = sum(option.num_bits for (_, option), used in zip(rows, taken, strict=True) if used)
    assert sum(taken) == len(options), "the solver must take one level for each group"
    assert spent <= max_bits, "the solver must keep within the budget"
    return {group: option.level for (group, option), used in zip(rows, taken, strict=True) if used}


def _solve(options: Mapping[str, Sequence[Option]], rows: list[tuple[str, Option]], max_bits: int) -> list[bool]:
    """Solve the knapsack: for each row, whether it is taken."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    costs = np.array([option.kl for _, option in rows], dtype=np.float64)
    largest = float(np.abs(costs).max(initial=0.0))
    # Bits are counted above each group's smallest level and in their common unit: small whole numbers, exact in floats.
    smallest = {group: min(option.num_bits for option in found) for group, found in options.items()}
    extra = [option.num_bits - smallest[group] for group, option in rows]
    unit = gcd(*extra) or 1
    room = (max_bits - sum(smallest.values())) // unit
    positions = {group: index for index, group in enumerate(options)}
    one_each = csr_array(
        (np.ones(len(rows)), ([positions[group] for group, _ in rows], range(len(rows)))),
        shape=(len(options), len(rows)),
    )
    budget = np.array([[bits // unit for bits in extra]], dtype=np.float64)
    found = milp(
        costs * (COST_RANGE / largest if largest else 1.0),
        integrality=np.ones(len(rows)),
        bounds=Bounds(0, 1),
        # Between two whole numbers nothing is lost: half a unit keeps the solver's tolerance away from the limit.
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(budget, -np.inf, room + 0.5)],
        options={"mip_rel_gap": 0.0},
    )
    assert found.x is not None, f"the allocation was not solved: {found.message}"
    return [bool(value > 0.5) for value in found.x]
