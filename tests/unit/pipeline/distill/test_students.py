from pathlib import Path

import numpy as np
import pytest

from core.files import read_json
from pipeline.config import StudentConfig
from pipeline.distill import students
from tests.unit.pipeline.distill.tiny_model import VOCAB, WORDS, write_model, write_tokenizer

TOKENS = np.random.default_rng(0).integers(3, VOCAB, size=(6, 32))


def load(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model, tokens=TOKENS):
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.as_tensor(tokens)).logits


def test_block_influence_is_one_minus_the_mean_cosine(tiny: Path) -> None:
    import torch

    model = load(tiny)
    found = students.block_influence(model, TOKENS, batch_size=4)
    with torch.inference_mode():
        # the last of output_hidden_states is normed, so the last layer is left out here
        states = model(input_ids=torch.as_tensor(TOKENS), output_hidden_states=True).hidden_states
    for layer in range(3):
        before, after = states[layer].double(), states[layer + 1].double()
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        assert found[layer] == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


def test_a_layer_that_does_nothing_goes_first_and_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    import torch

    model = load(tiny)
    layer = model.model.layers[2]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    idle = tmp_path / "idle"
    model.save_pretrained(idle)
    write_tokenizer(idle, WORDS)
    report = students.make_student(idle, TOKENS, StudentConfig(drop_fraction=0.25), tmp_path / "student")
    assert report["dropped_layers"] == [2]
    assert report["block_influence"][2] == pytest.approx(0, abs=1e-6)
    assert torch.equal(logits(load(tmp_path / "student")), logits(model))


def test_given_layers_are_removed_without_a_text(tiny: Path, tmp_path: Path) -> None:
    import torch

    report = students.make_student(tiny, None, StudentConfig(drop_layers=[3, 1]), tmp_path / "student")
    assert (report["dropped_layers"], report["num_layers"], report["block_influence"]) == ([1, 3], 2, None)
    teacher, student = load(tiny), load(tmp_path / "student")
    assert torch.equal(student.model.layers[1].mlp.up_proj.weight, teacher.model.layers[2].mlp.up_proj.weight)
    teacher.model.layers = torch.nn.ModuleList([teacher.model.layers[0], teacher.model.layers[2]])
    assert torch.equal(logits(student), logits(teacher))
    out = student.generate(torch.as_tensor(TOKENS[:1, :4]), max_new_tokens=3, do_sample=False)  # the cache's positions
    assert out.shape[1] <= 7


def test_ties_in_influence_go_to_the_earlier_layer() -> None:
    assert students.least_influential([0.2, 0.1, 0.1, 0.1], 2) == [1, 2]


def test_width_pruning_removes_dead_neurons_and_heads_without_a_change(tiny: Path, tmp_path: Path) -> None:
    import torch

    model = load(tiny)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[::3].zero_()  # 32 of 96 neurons are silent
            layer.self_attn.v_proj.weight[:16].zero_()  # the first key-value head says nothing
    dead = tmp_path / "dead"
    model.save_pretrained(dead)
    write_tokenizer(dead, WORDS)
    cut = StudentConfig(intermediate_size=64, num_kv_heads=1)
    students.make_student(dead, TOKENS, cut, tmp_path / "student")
    shape = read_json(tmp_path / "student" / "config.json")
    sizes = ("intermediate_size", "num_key_value_heads", "num_attention_heads", "head_dim")
    assert [shape[size] for size in sizes] == [64, 1, 2, 16]
    torch.testing.assert_close(logits(load(tmp_path / "student")), logits(model), rtol=1e-4, atol=1e-5)


def test_neuron_importance_is_the_mean_norm_over_positions(tiny: Path) -> None:
    import torch

    model = load(tiny)
    neurons, heads = students.activation_importance(model, TOKENS, batch_size=4)
    seen = {}
    layer = model.model.layers[1]
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.__setitem__("mlp", args[0].double())),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.__setitem__("att", args[0].double())),
    ]
    logits(model)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(neurons[1], seen["mlp"].square().sum(1).sqrt().mean(0))
    by_head = seen["att"].reshape(6, 32, 4, 16).square().sum(-1)
    torch.testing.assert_close(heads[1], by_head.sum(1).sqrt().mean(0))


def test_biases_are_cut_with_their_rows(tmp_path: Path) -> None:
    import torch

    teacher = write_model(tmp_path / "biased", attention_bias=True, mlp_bias=True)
    students.make_student(teacher, TOKENS, StudentConfig(intermediate_size=32, num_kv_heads=1), tmp_path / "student")
    assert torch.isfinite(logits(load(tmp_path / "student"))).all()


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    with pytest.raises(students.StudentError, match="GPT2LMHeadModel"):
        students.find_layers(model)


def test_the_same_tokenizer_is_accepted_and_another_one_refused_with_the_reason(tiny: Path, tmp_path: Path) -> None:
    students.check_given_student(tiny, write_model(tmp_path / "same", num_layers=1))
    other = write_model(tmp_path / "other", num_layers=1)
    write_tokenizer(other, ["zebra", *WORDS[1:]])
    with pytest.raises(students.StudentError, match=r"differs from the teacher's in 2 of 128 tokens \('the' is 3"):
        students.check_given_student(tiny, other)


def test_the_same_vocabulary_split_differently_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", num_layers=1)
    settings = read_json(other / "tokenizer.json")
    settings["pre_tokenizer"] = None
    import json

    (other / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(students.StudentError, match="splits text differently"):
        students.check_given_student(tiny, other)


def test_a_folder_without_weights_and_a_quantized_one_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(students.StudentError, match=r"no config\.json"):
        students.check_given_student(tiny, tmp_path / "nothing")
    quantized = write_model(tmp_path / "quantized", num_layers=1)
    import json

    shape = read_json(quantized / "config.json") | {"quantization_config": {"format": "int-quantized"}}
    (quantized / "config.json").write_text(json.dumps(shape))
    with pytest.raises(students.StudentError, match="quantized"):
        students.check_given_student(tiny, quantized)
