"""Every objective against a direct float64 computation in NumPy, and its gradient against finite differences."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distill import losses

RNG = np.random.default_rng(0)
N, V, D = 13, 37, 8


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def reference(name: str, q: np.ndarray, p: np.ndarray, beta: float) -> np.ndarray:
    if name == "forward_kl":
        return (p * np.log(p / q)).sum(-1)
    if name == "reverse_kl":
        return (q * np.log(q / p)).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)


def call(name: str, q, p, beta: float):
    if name == "jensen_shannon":
        return losses.jensen_shannon(q, p, beta)
    return getattr(losses, name)(q, p)


NAMES = ("forward_kl", "reverse_kl", "jensen_shannon")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_divergences_match_the_reference(name: str, temperature: float, beta: float) -> None:
    import torch

    student, teacher = 4 * RNG.normal(size=(N, V)), 4 * RNG.normal(size=(N, V))
    expected = reference(name, softmax(student, temperature), softmax(teacher, temperature), beta)
    q, p = (losses.log_probs(torch.tensor(one), temperature) for one in (student, teacher))
    np.testing.assert_allclose(call(name, q, p, beta).numpy(), expected, rtol=1e-10)
    q, p = (losses.log_probs(torch.tensor(one).float(), temperature) for one in (student, teacher))
    found = call(name, q, p, beta)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from(NAMES), st.floats(0.1, 30), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_divergences_are_never_negative_and_zero_for_equals(seed: int, name: str, scale: float, beta: float) -> None:
    import torch

    rng = np.random.default_rng(seed)
    q, p = (losses.log_probs(torch.tensor(scale * rng.normal(size=(4, 11)))) for _ in range(2))
    assert (call(name, q, p, beta) >= -1e-9).all()
    assert call(name, p, p, beta).abs().max() < 1e-9
    if name == "jensen_shannon":  # bounded by the entropy of the mixing weights
        bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        assert (call(name, q, p, beta) <= bound + 1e-9).all()


def test_logits_in_16_bit_are_widened_before_the_softmax() -> None:
    import torch

    assert losses.log_probs(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert losses.hidden_mse(*torch.ones(2, 4, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_token_that_the_teacher_rules_out_adds_nothing() -> None:
    import torch

    p = torch.tensor([[0.0, float("-inf")]], dtype=torch.float64)
    q = torch.log(torch.tensor([[0.25, 0.75]], dtype=torch.float64)).requires_grad_()
    loss = losses.forward_kl(q, p)
    assert loss.item() == pytest.approx(math.log(4))
    loss.sum().backward()
    assert torch.isfinite(q.grad).all()


def test_cross_entropy_skips_ignored_labels() -> None:
    import torch

    logits = RNG.normal(size=(4, V))
    labels = torch.tensor([3, losses.IGNORED, 0, V - 1])
    expected = -np.log(softmax(logits)[np.arange(4), [3, 0, 0, V - 1]])
    expected[1] = 0
    found = losses.cross_entropy(losses.log_probs(torch.tensor(logits)), labels)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_hidden_mse_is_relative() -> None:
    import torch

    student, teacher = RNG.normal(size=(2, 5, D))
    expected = ((student - teacher) ** 2).mean(-1) / (teacher**2).mean(-1)
    np.testing.assert_allclose(losses.hidden_mse(torch.tensor(student), torch.tensor(teacher)).numpy(), expected)
    zero = losses.hidden_mse(torch.zeros(5, D), torch.tensor(teacher))
    np.testing.assert_allclose(zero.numpy(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_buckets_hold_the_top_and_the_mass_of_the_rest(temperature: float) -> None:
    import torch

    logits = 3 * RNG.normal(size=(N, V))
    index = np.stack([RNG.permutation(V)[:5] for _ in range(N)])
    probabilities = softmax(logits, temperature)
    top = np.take_along_axis(probabilities, index, -1)
    found = losses.bucket_log_probs(torch.tensor(logits), torch.tensor(index), temperature).exp().numpy()
    np.testing.assert_allclose(found[:, :-1], top, rtol=1e-10)
    np.testing.assert_allclose(found[:, -1], 1 - top.sum(-1), rtol=1e-8)


def test_a_bucketed_divergence_never_exceeds_the_full_one() -> None:
    import torch

    student, teacher = (torch.tensor(3 * RNG.normal(size=(N, V))) for _ in range(2))
    index = teacher.topk(6, dim=-1).indices
    p, q = (losses.bucket_log_probs(one, index) for one in (teacher, student))
    full = losses.forward_kl(losses.log_probs(student), losses.log_probs(teacher))
    assert (losses.forward_kl(q, p) <= full + 1e-12).all()


def direct(hidden, head, labels, teacher_logits, objective: losses.Objective):
    """The objective with all logits at once, by autograd."""
    logits = hidden @ head.T
    p = losses.TeacherChunk(losses.log_probs(teacher_logits, objective.temperature))
    return objective(logits, labels, p)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 4, N, 100])
def test_chunks_give_the_loss_and_gradients_of_the_whole(name: str, chunk: int) -> None:
    import torch

    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    hidden, head = torch.randn(N, D, **double), torch.randn(V, D, **double)
    teacher_hidden, teacher_head = torch.randn(N, 5, **double), torch.randn(V + 3, 5, **double)
    labels = torch.randint(0, V, (N,))
    labels[2] = losses.IGNORED
    objective = losses.Objective(name, 0.7, 2.0, 0.3, cross_entropy_weight=0.4)
    ones = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    expected = direct(*ones, labels, teacher_hidden @ teacher_head[:V].T, objective)
    (2.5 * expected).backward()
    others = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    teacher = losses.LiveTeacher(teacher_hidden, teacher_head, V, objective.temperature)
    found = losses.chunked_loss(*others, labels, objective, teacher, chunk)
    (2.5 * found).backward()
    torch.testing.assert_close(found, expected)
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_gradients_match_finite_differences() -> None:
    import torch

    torch.manual_seed(1)
    double = {"dtype": torch.float64}
    hidden = torch.randn(5, 4, **double, requires_grad=True)
    head = torch.randn(9, 4, **double, requires_grad=True)
    index = torch.stack([torch.randperm(9)[:3] for _ in range(5)])
    values = losses.bucket_log_probs(torch.randn(5, 9, **double), index)
    labels = torch.randint(0, 9, (5,))
    objective = losses.Objective("jensen_shannon", 1.0, 1.5, 0.2, 0.5)
    teacher = losses.CachedTeacher(index, values)
    assert torch.autograd.gradcheck(
        lambda h, w: losses.chunked_loss(h, w, labels, objective, teacher, 2), (hidden, head)
    )


def test_only_a_chunk_of_logits_exists_at_once() -> None:
    import torch

    seen = []

    class Spy(losses.Objective):
        def __call__(self, logits, labels, teacher):
            seen.append(tuple(logits.shape))
            return super().__call__(logits, labels, teacher)

    hidden = torch.randn(N, D, requires_grad=True)
    losses.chunked_loss(
        hidden, torch.randn(V, D), torch.zeros(N, dtype=torch.long), Spy("none", 0, 1, 0.5, 1.0), None, 4
    )
    assert seen == [(4, V), (4, V), (4, V), (1, V)]
