import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from pipeline.checkpoints.facts import facts_from_shape
from pipeline.compress.allocate import FusedGroup, Level, Option, allocate, fused_groups, levels, lowest_bits_per_weight
from tests.unit.pipeline.shapes import SHAPE

kl = st.one_of(st.just(0.0), st.floats(1e-6, 2.0))
option = st.tuples(st.integers(1, 40), kl)
problem = st.lists(st.lists(option, min_size=1, max_size=3), min_size=1, max_size=6)


def as_options(groups: list[list[tuple[int, float]]], unit: int = 1) -> dict[str, list[Option]]:
    return {
        f"g{index}": [Option(f"l{level}", unit * bits, kl) for level, (bits, kl) in enumerate(found)]
        for index, found in enumerate(groups)
    }


def cost_of(options: dict[str, list[Option]], chosen: dict[str, str]) -> tuple[int, float]:
    taken = [
        next(option for option in found if option.level == chosen[name]) for name, found in sorted(options.items())
    ]
    return sum(option.num_bits for option in taken), sum(option.kl for option in taken)


def by_brute_force(options: dict[str, list[Option]], max_bits: int) -> float | None:
    fitting = [
        sum(option.kl for option in taken)
        for taken in itertools.product(*options.values())
        if sum(option.num_bits for option in taken) <= max_bits
    ]
    return min(fitting, default=None)


@settings(deadline=None, max_examples=60)
@given(problem, st.integers(0, 240), st.sampled_from([1, 64, 10_000_019]))
def test_no_choice_is_better_and_the_budget_holds(
    groups: list[list[tuple[int, float]]], budget: int, unit: int
) -> None:
    options = as_options(groups, unit)
    best = by_brute_force(options, unit * budget)
    if best is None:
        with pytest.raises(ConfigError, match="the smallest levels together need"):
            allocate(options, unit * budget)
        return
    chosen = allocate(options, unit * budget)
    bits, cost = cost_of(options, chosen)
    assert set(chosen) == set(options)
    assert bits <= unit * budget
    assert cost == pytest.approx(best, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(problem, st.integers(40, 240))
def test_the_same_input_gives_the_same_choice(groups: list[list[tuple[int, float]]], budget: int) -> None:
    options = as_options(groups)
    budget = max(budget, sum(min(option.num_bits for option in found) for found in options.values()))
    assert allocate(options, budget) == allocate(options, budget)


@settings(deadline=None, max_examples=60)
@given(problem)
def test_a_larger_budget_never_harms_more(groups: list[list[tuple[int, float]]]) -> None:
    options = as_options(groups)
    lowest = sum(min(option.num_bits for option in found) for found in options.values())
    costs = [cost_of(options, allocate(options, lowest + more))[1] for more in (0, 5, 20, 300)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(costs))
    assert costs[-1] == pytest.approx(sum(min(option.kl for option in found) for found in options.values()))


def test_one_bit_too_few_is_seen_among_billions() -> None:
    """Sizes of an 8B model: the budget is held to the bit, not to the solver's tolerance."""
    size = 4096 * 14336
    options = {f"g{index}": [Option("4", 4 * size + 1, 1.0), Option("8", 8 * size, 0.0)] for index in range(64)}
    limit = 32 * (4 * size + 1) + 32 * 8 * size
    assert sorted(allocate(options, limit).values()).count("8") == 32
    assert sorted(allocate(options, limit - 1).values()).count("8") == 31


def test_320_groups_of_three_levels_are_solved_within_seconds() -> None:
    """The groups of a 70B model, with costs that fall with size as measured ones do."""
    import numpy as np

    rng = np.random.default_rng(0)
    facts = facts_from_shape("x", {**SHAPE, "num_hidden_layers": 80})
    groups, known = fused_groups(facts), levels(64)
    options = {}
    for group in groups:
        low = float(rng.lognormal(-7, 1.5))
        costs = (low, low * float(rng.uniform(0.001, 0.5)), 0.0)
        options[group.name] = [
            Option(level.name, level.num_bits(group), cost) for level, cost in zip(known, costs, strict=True)
        ]
    budget = 5 * sum(group.num_weights for group in groups)
    bits, cost = cost_of(options, allocate(options, budget))
    assert 0.999 * budget < bits <= budget
    assert cost < sum(found[0].kl for found in options.values())


def test_groups_are_those_that_vllm_fuses() -> None:
    groups = fused_groups(facts_from_shape("x", SHAPE))
    assert len(groups) == 120
    assert [(group.name, list(group.shapes)) for group in groups[4:8]] == [
        ("layers.1.qkv", ["q_proj", "k_proj", "v_proj"]),
        ("layers.1.o", ["o_proj"]),
        ("layers.1.gate_up", ["gate_proj", "up_proj"]),
        ("layers.1.down", ["down_proj"]),
    ]
    assert sum(group.num_weights for group in groups) == 30 * 576 * (576 + 2 * 192 + 576 + 3 * 1536)


def test_bits_count_scales_and_shapes() -> None:
    group = FusedGroup(0, "o", "self_attn", {"o_proj": (10, 128)})
    four, eight, full = levels(64)
    assert four.num_bits(group) == 1280 * 4 + 20 * 16 + 128
    assert eight.num_bits(group) == 1280 * 8 + 10 * 16
    assert full.num_bits(group) == 1280 * 16


def test_the_lowest_bits_are_those_of_the_smallest_levels() -> None:
    groups = fused_groups(facts_from_shape("x", SHAPE))
    assert lowest_bits_per_weight(groups, levels(64)) == pytest.approx(4.25, abs=0.001)
    assert lowest_bits_per_weight(groups, levels(32)) == pytest.approx(4.5, abs=0.001)
    assert lowest_bits_per_weight(groups, [Level("16bit", 16)]) == 16
