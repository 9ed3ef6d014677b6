from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from pipeline.config import ObjectiveConfig
from pipeline.distill.progress import flops_per_token, peak_flops
from tests.unit.pipeline.distill.tiny_model import VOCAB, write_model

TOKENS = np.random.default_rng(0).integers(3, VOCAB, size=(3, 13))


def parts(tiny: Path, folder: Path, **shape: object):
    import torch

    from pipeline.distill.module import Teacher, load_model

    student = load_model(write_model(folder / "student", num_layers=2, seed=4, **shape), torch.float32)
    teacher = Teacher(load_model(tiny, torch.float32), with_states=True)
    ids = torch.as_tensor(TOKENS)
    return student, teacher, ids[:, :-1], ids[:, 1:]


def test_the_loss_is_that_of_the_models_own_logits(tiny: Path, tmp_path: Path) -> None:
    import torch

    from pipeline.distill.losses import forward_kl, log_probs
    from pipeline.distill.module import DistillModule

    student, teacher, inputs, labels = parts(tiny, tmp_path)
    objective = ObjectiveConfig(cross_entropy_weight=0.5, temperature=2.0)
    module = DistillModule(student, objective, 5, teacher_head=teacher.head)
    found = module(inputs, labels, **{"teacher_hidden": teacher(inputs)["teacher_hidden"]})["loss"]
    mine, theirs = student(input_ids=inputs).logits, teacher.model(input_ids=inputs).logits
    kl = forward_kl(log_probs(mine, 2.0), log_probs(theirs, 2.0)).sum() * 4
    cross_entropy = torch.nn.functional.cross_entropy(mine.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(found, kl + 0.5 * cross_entropy, rtol=1e-5, atol=1e-4)
    expected = torch.autograd.grad(kl + 0.5 * cross_entropy, list(student.parameters()))
    actual = torch.autograd.grad(found, list(student.parameters()))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_vocabularies_that_are_padded_differently_share_their_beginning(tiny: Path, tmp_path: Path) -> None:
    from pipeline.distill.module import DistillModule

    student, teacher, inputs, labels = parts(tiny, tmp_path, vocab_size=VOCAB + 8)
    module = DistillModule(student, ObjectiveConfig(), 5, teacher_head=teacher.head)
    module(inputs, labels, teacher_hidden=teacher(inputs)["teacher_hidden"])["loss"].backward()
    gradient = student.get_output_embeddings().weight.grad
    assert gradient.shape[0] == VOCAB + 8
    assert (gradient[VOCAB:] == 0).all()


def test_hidden_states_of_another_width_are_projected(tiny: Path, tmp_path: Path) -> None:
    from pipeline.distill.module import DistillModule, hidden_matches

    student, teacher, inputs, labels = parts(tiny, tmp_path, hidden_size=32)
    objective = ObjectiveConfig(divergence="none", hidden_weight=2.0)
    module = DistillModule(student, objective, 5, teacher_head=teacher.head, matches=hidden_matches(2, 4, None))
    assert module.projection is not None
    loss = module(inputs, labels, **teacher(inputs))["loss"]
    loss.backward()
    assert module.projection.weight.grad.abs().sum() > 0
    assert float(loss) > 0


def test_the_teacher_learns_nothing(tiny: Path, tmp_path: Path) -> None:
    from pipeline.distill.module import DistillModule

    student, teacher, inputs, labels = parts(tiny, tmp_path)
    module = DistillModule(student, ObjectiveConfig(), 5, teacher_head=teacher.head)
    module(inputs, labels, teacher_hidden=teacher(inputs)["teacher_hidden"])["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert not any("teacher" in name for name in module.state_dict())


def test_models_that_change_their_logits_are_refused(tmp_path: Path) -> None:
    import json

    import torch

    from pipeline.distill.module import load_model

    folder = write_model(tmp_path / "capped", num_layers=1)
    shape = json.loads((folder / "config.json").read_text()) | {"final_logit_softcapping": 30.0}
    (folder / "config.json").write_text(json.dumps(shape))
    with pytest.raises(UserError, match="final_logit_softcapping"):
        load_model(folder, torch.float32)


def test_flops_count_weights_and_attention(tiny: Path) -> None:
    import torch

    from pipeline.distill.module import load_model

    model = load_model(tiny, torch.float32)
    weights = sum(parameter.numel() for parameter in model.parameters())
    attention = 4 * 16 * 4 * 16
    assert flops_per_token(model, 16, backward=True) == 6 * weights + 12 * attention
    assert flops_per_token(model, 16, backward=False) == 2 * weights + 4 * attention
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert peak > 1e8
    assert source == "measured"


def test_state_is_put_back_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    import torch

    from pipeline.distill import train_state
    from pipeline.distill.checkpoint import CheckpointStore
    from pipeline.distill.module import load_model

    def fresh():
        model = load_model(tiny, torch.float32)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

    def step(model, optimizer) -> None:
        ids = torch.randint(3, VOCAB, (2, 9))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    model, optimizer = fresh()
    for _ in range(3):
        step(model, optimizer)
    buffers = train_state.Buffers()
    moments, groups = train_state.moments_of(model, optimizer)
    weights = train_state.weights_of(model)
    assert "lm_head.weight" not in weights  # tied: its embedding is there
    files = {
        train_state.MODEL_FILE: buffers.copy({f"w/{key}": value for key, value in weights.items()}),
        train_state.OPTIMIZER_FILE: buffers.copy(moments),
        train_state.STATE_FILE: train_state.state_bytes(
            {"optimizer_groups": groups, "random": train_state.random_states()}
        ),
    }
    files[train_state.MODEL_FILE] = {
        key.removeprefix("w/"): value for key, value in files[train_state.MODEL_FILE].items()
    }
    store = CheckpointStore(str(tmp_path / "there"))
    store.write(3, files, {})
    for _ in range(2):
        step(model, optimizer)  # the buffers are copies: what follows does not reach them
    found, _ = store.newest(tmp_path / "scratch")
    assert found is not None
    other, other_optimizer = fresh()
    train_state.put_back(other, other_optimizer, found.folder)
    from core.files import read_json

    train_state.set_random_states(read_json(found.folder / train_state.STATE_FILE)["random"])
    for _ in range(2):
        step(other, other_optimizer)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_random_states_survive_json() -> None:
    import json
    import random

    import torch

    from pipeline.distill.train_state import random_states, set_random_states

    states = json.loads(json.dumps(random_states()))
    drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    set_random_states(states)
    assert [random.random(), float(np.random.rand()), float(torch.rand(()))] == drawn
