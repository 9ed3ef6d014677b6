"""The plan's checks, the targets' patterns, and the sensitivities of a tiny model against plain whole passes."""

import re
from dataclasses import replace

import numpy as np
import pytest

from core.errors import ConfigError
from pipeline.checkpoints.facts import facts_from_shape
from pipeline.compress import registry
from pipeline.compress.allocate import fused_groups, levels
from pipeline.compress.methods import mixed
from pipeline.compress.methods.mixed import METHOD, Args, options_of, scheme_of, targets_of
from pipeline.compress.sensitivity import MAX_LENGTH, Sensitivity, draw, measure, rounded
from pipeline.types import Machine
from tests.unit.pipeline import shapes

SHAPE = {"architectures": ["LlamaForCausalLM"], **shapes.SHAPE}
TINY = {
    **SHAPE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
FACTS = facts_from_shape("x", SHAPE)
CPU = Machine("cpu", "test CPU", 1, 2, 24 * 2**30, None, None)
GPU = Machine("cuda", "test GPU", 1, 8, 64 * 2**30, 80 * 2**30, 9.0)


def problems_of(args: Args, facts=FACTS, machine: Machine = CPU) -> dict[str, str]:
    return {problem.field: str(problem) for problem in METHOD.check(args, facts, machine)}


@pytest.mark.parametrize("bits", [4.26, 5.0, 8.0, 12.0, 15.9])
def test_every_budget_in_the_range_is_taken(bits: float) -> None:
    assert problems_of(Args(target_bits=bits)) == {}


@pytest.mark.parametrize("bits", [0.0, 4.0, 4.25, 16.0, 32.0, float("nan")])
def test_a_budget_out_of_range_is_refused_with_the_range(bits: float) -> None:
    found = problems_of(Args(target_bits=bits))
    assert list(found) == ["quant.target_bits"]
    assert re.search(r"at least 4\.25\d\d .* and below 16", found["quant.target_bits"])


def test_the_range_follows_the_group_size() -> None:
    assert "at least 4.5" in problems_of(Args(target_bits=4.4, group_size=32))["quant.target_bits"]
    assert problems_of(Args(target_bits=4.4, group_size=64)) == {}


def test_a_group_size_that_does_not_divide_names_every_offender_and_the_ways_out() -> None:
    found = problems_of(Args(group_size=128))
    assert list(found) == ["quant.group_size"]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"):
        assert f"{name} (576)" in found["quant.group_size"]
    assert "1536" not in found["quant.group_size"]
    assert "-> quant.group_size=32" in found["quant.group_size"]
    assert "-> quant.group_size=64" in found["quant.group_size"]


def test_a_group_size_without_a_kernel_is_refused() -> None:
    assert "not one of 128, 64, 32" in problems_of(Args(group_size=48))["quant.group_size"]


def test_other_layers_and_numbers_out_of_range_are_refused_together() -> None:
    facts = replace(FACTS, architecture="Phi3ForCausalLM")
    found = problems_of(Args(dampening=0.0, sensitivity_tokens=8, observer="none"), facts)
    assert set(found) == {"quant.method", "quant.dampening", "quant.sensitivity_tokens", "quant.observer"}
    assert "Phi3ForCausalLM" in found["quant.method"]


def test_more_tokens_than_the_memory_holds_are_refused_with_the_most_it_does() -> None:
    small = replace(CPU, host_memory_bytes=2**30)
    most = 2**28 // (240 * 576 * 4)
    assert (
        f"at most {most} " in problems_of(Args(sensitivity_tokens=most + 1), machine=small)["quant.sensitivity_tokens"]
    )
    assert problems_of(Args(sensitivity_tokens=most), machine=small) == {}


def test_the_methods_keys_are_those_of_its_choice() -> None:
    from hydra import compose, initialize_config_dir

    from tests.conftest import ROOT

    with initialize_config_dir(str(ROOT / "conf" / "quant"), version_base=None):
        values = dict(compose("mixed"))
    assert values.pop("method") == METHOD.name
    assert Args(**values) == Args()


def test_targets_match_their_own_layers_alone() -> None:
    groups = fused_groups(FACTS)
    chosen = {group.name: "w8a8" if group.layer in (1, 3) and group.kind != "o" else "w4a16" for group in groups}
    found = [target.removeprefix("re:") for target in targets_of("w8a8", groups, chosen)]
    assert len(found) == 3
    for group in groups:
        for name in group.shapes:
            module = f"model.layers.{group.layer}.{group.parent}.{name}"
            matched = sum(re.match(pattern, module) is not None for pattern in found)
            assert matched == (chosen[group.name] == "w8a8"), module


def test_options_need_a_measurement_for_every_group_but_not_for_16_bit() -> None:
    groups, known = fused_groups(FACTS)[:1], levels(64)
    measured = [Sensitivity(groups[0].name, level, kl, 0.0, 8) for level, kl in (("w4a16", 0.5), ("w8a8", 0.1))]
    options = options_of(groups, known, measured)[groups[0].name]
    assert [(option.level, option.kl) for option in options] == [("w4a16", 0.5), ("w8a8", 0.1), ("16bit", 0.0)]
    with pytest.raises(KeyError):
        options_of(groups, known, measured[:1])


def test_the_draw_is_seeded_and_never_repeats_a_sample() -> None:
    tokens = np.arange(6 * 300).reshape(6, 300)
    drawn = draw(tokens, 256, seed=1)
    assert drawn.shape == (2, MAX_LENGTH)
    assert (drawn == draw(tokens, 256, seed=1)).all()
    assert len({tuple(map(tuple, draw(tokens, 256, seed=seed))) for seed in range(8)}) > 1
    everything = draw(tokens, 10**6, seed=0)
    assert (everything == tokens[:, :MAX_LENGTH]).all()
    assert draw(tokens, 40, seed=0).shape == (1, 40)


@pytest.fixture(scope="module")
def tiny():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {key: value for key, value in TINY.items() if key != "architectures"}
    model = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.3)).eval()
    return model, fused_groups(facts_from_shape("tiny", TINY))


@pytest.fixture(scope="module")
def schemes():
    import torch

    return {level.name: scheme_of(level, [], torch.bfloat16, "mse") for level in levels(32)[:2]}


def test_sensitivities_are_those_of_whole_passes(tiny, schemes) -> None:
    """Each figure against the model run whole, twice, with and without the rounding."""
    import torch

    model, groups = tiny
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = np.random.default_rng(0).integers(0, 128, (2, 16))
    measured = {(found.group, found.level): found for found in measure(model, groups, schemes, ids, "cpu")}
    assert set(measured) == {(group.name, level) for group in groups for level in schemes}
    with torch.no_grad():
        base = model(torch.from_numpy(ids)).logits.log_softmax(-1)
        for group in groups:
            parent = getattr(model.model.layers[group.layer], group.parent)
            for level, scheme in schemes.items():
                with rounded([getattr(parent, name) for name in group.shapes], scheme):
                    changed = model(torch.from_numpy(ids)).logits.log_softmax(-1)
                expected = torch.nn.functional.kl_div(changed, base, log_target=True, reduction="none").sum(-1)
                found = measured[group.name, level]
                assert found.kl == pytest.approx(float(expected.mean()), rel=1e-3, abs=1e-7)
                assert found.kl > 0
                assert found.standard_error == pytest.approx(float(expected.std()) / 32**0.5, rel=1e-3, abs=1e-7)
                assert found.num_tokens == 32
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_weights_are_rounded_to_the_levels_grid(tiny, schemes) -> None:
    import torch

    module = tiny[0].model.layers[0].mlp.down_proj
    for level, per_row, steps in (("w4a16", 3, 16), ("w8a8", 1, 256)):
        with rounded([module], schemes[level]):
            grid = module.weight.detach().reshape(64, per_row, -1)
            assert all(len(torch.unique(part)) <= steps for part in grid.flatten(0, 1))
        assert len(torch.unique(module.weight.detach().reshape(64, per_row, -1)[0, 0])) > 16


def test_w8a8_rounds_the_activations_too(tiny, schemes) -> None:
    import torch

    module = tiny[0].model.layers[0].mlp.down_proj
    rows = torch.randn(1, 4, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for level, rounds in (("w4a16", False), ("w8a8", True)):
            with rounded([module], schemes[level]):
                plain = torch.nn.functional.linear(rows, module.weight)
                assert torch.equal(module(rows), plain) != rounds


def test_a_model_with_other_layers_is_refused(tiny, schemes) -> None:
    model, _ = tiny
    groups = fused_groups(facts_from_shape("x", {**TINY, "intermediate_size": 64}))
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.gate_proj should be of shape \(64, 64\) and is \(96, 64\)"):
        measure(model, groups, schemes, np.zeros((1, 4), dtype=np.int64), "cpu")


def test_the_module_is_a_method_of_the_registry() -> None:
    assert isinstance(mixed.METHOD, registry.Method)
    assert mixed.METHOD.needs_calibration
