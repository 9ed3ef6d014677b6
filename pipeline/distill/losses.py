"""Distillation objectives: pure functions of log-probabilities, and one that applies them chunk by chunk.

Shapes: N tokens, V vocabulary entries (or K + 1 buckets of a cached teacher), D and E hidden sizes. `q` is the student,
`p` the teacher, as log-probabilities along the last axis. Everything is computed in float32 (float64 stays float64).

A hidden state of N tokens takes N x D numbers, its logits N x V: for V = 150,000 that is what fills the memory.
`chunked_loss` therefore holds the logits of `chunk_tokens` tokens at a time, of student and teacher, and computes the
gradient in the same pass, so that nothing is recomputed in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.autograd.function import FunctionCtx

LOWEST_LOG = -1e4
"""Stands for the logarithm of zero, whose product with zero is zero."""
IGNORED = -100
"""Label of a token that is not learnt."""


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-softmax of logits / temperature, shape (N, V), at least float32."""
    return wide(logits).div(temperature).log_softmax(dim=-1) if temperature != 1 else wide(logits).log_softmax(dim=-1)


def wide(values: Tensor) -> Tensor:
    """At least float32."""
    import torch

    return values if values.dtype == torch.float64 else values.float()


def forward_kl(q: Tensor, p: Tensor) -> Tensor:
    """KL(p || q): the student covers all that the teacher does (Hinton et al., arXiv 1503.02531).

    Args:
        q: student log-probabilities (N, V).
        p: teacher log-probabilities (N, V).

    Returns:
        Nats per token, shape (N,).

    """
    return _kl(p, q)


def reverse_kl(q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p): the student stays where the teacher is likely (MiniLLM, arXiv 2306.08543). Shapes as `forward_kl`."""
    return _kl(q, p)


def jensen_shannon(q: Tensor, p: Tensor, beta: float) -> Tensor:
    """Generalized Jensen-Shannon divergence (GKD, arXiv 2306.13649, equation 1). Shapes as `forward_kl`.

    beta KL(p || m) + (1 - beta) KL(q || m), with m = beta p + (1 - beta) q, for 0 < beta < 1.
    """
    import torch

    m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)


def cross_entropy(q: Tensor, labels: Tensor) -> Tensor:
    """Negative log-probability of the label; 0 where the label is IGNORED.

    Args:
        q: student log-probabilities at temperature 1, (N, V).
        labels: token ids (N,).

    Returns:
        Nats per token, shape (N,).

    """
    kept = labels != IGNORED
    picked = q.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return -picked * kept


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error between two hidden states, relative to the teacher's mean square (scale-free).

    Args:
        student: (N, D).
        teacher: (N, D).

    Returns:
        Per token, shape (N,): 1 where the student says nothing (zero), 0 where it agrees.

    """
    student, teacher = wide(student), wide(teacher)
    return (student - teacher).square().mean(dim=-1) / teacher.square().mean(dim=-1).clamp_min(1e-12)


def bucket_log_probs(logits: Tensor, index: Tensor, temperature: float = 1.0) -> Tensor:
    """The student's side of a cached teacher: K log-probabilities and the log of the mass of all other tokens.

    Args:
        logits: (N, V).
        index: token ids of the teacher's K likeliest tokens, (N, K), distinct in each row.
        temperature: softens the distribution.

    Returns:
        (N, K + 1); the last is the tail. A divergence over these buckets never exceeds the full one (data processing
        inequality).

    """
    import torch

    scaled = wide(logits) / temperature
    total = scaled.logsumexp(dim=-1, keepdim=True)
    top = scaled.gather(-1, index)
    tail = scaled.scatter(-1, index, float("-inf")).logsumexp(dim=-1, keepdim=True)
    return torch.cat([top, tail], dim=-1) - total


def _kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) in nats, (N,). A probability of exactly zero under `a` adds nothing."""
    return (a.exp() * (a.clamp_min(LOWEST_LOG) - b)).sum(dim=-1)


@dataclass(frozen=True)
class Objective:
    """A weighted sum of per-token losses."""

    divergence: str = "forward_kl"
    divergence_weight: float = 1.0
    temperature: float = 1.0
    beta: float = 0.5
    cross_entropy_weight: float = 0.0

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher's distribution is needed."""
        return self.divergence != "none" and self.divergence_weight > 0

    @property
    def uses_logits(self) -> bool:
        """Whether the student's distribution matters at all."""
        return self.uses_teacher or self.cross_entropy_weight > 0

    def __call__(self, logits: Tensor, labels: Tensor, teacher: TeacherChunk | None) -> Tensor:
        """The sum over the chunk's learnt tokens, in nats: a scalar.

        Args:
            logits: the student's, (N, V), float32 or float64.
            labels: next tokens, (N,); IGNORED ones count nothing.
            teacher: its side of the same tokens; None where the objective does without.

        """
        kept = labels != IGNORED
        total = logits.new_zeros(())
        if self.cross_entropy_weight > 0:
            total = total + self.cross_entropy_weight * cross_entropy(log_probs(logits), labels).sum()
        if self.uses_teacher and teacher is not None:
            p = teacher.log_probs
            if teacher.index is None:
                q = log_probs(logits, self.temperature)
            else:
                q = bucket_log_probs(logits, teacher.index, self.temperature)
            weight = self.divergence_weight * self.temperature**2
            total = total + weight * (self._divergence(q, p.to(q.dtype)) * kept).sum()
        return total

    def _divergence(self, q: Tensor, p: Tensor) -> Tensor:
        if self.divergence == "jensen_shannon":
            return jensen_shannon(q, p, self.beta)
        return {"forward_kl": forward_kl, "reverse_kl": reverse_kl}[self.divergence](q, p)


@dataclass(frozen=True)
class TeacherChunk:
    """The teacher's log-probabilities of some tokens."""

    log_probs: Tensor
    """(N, V); or (N, K + 1) with the tail last where `index` is given."""
    index: Tensor | None = None
    """(N, K) token ids of a cached teacher."""


class LiveTeacher:
    """Gives the teacher's log-probabilities of a range of tokens from its last hidden states.

    Args:
        hidden: last hidden states after the final norm, (N, E).
        head: output embedding, (V', E); its first `vocab_size` rows are used.
        temperature: softens the distribution.

    """

    def __init__(self, hidden: Tensor, head: Tensor, vocab_size: int, temperature: float) -> None:
        self._hidden, self._head, self._temperature = hidden, head[:vocab_size], temperature

    def __call__(self, start: int, stop: int) -> TeacherChunk:
        """Tokens `start` to `stop`."""
        return TeacherChunk(log_probs(self._hidden[start:stop] @ self._head.T, self._temperature))


class CachedTeacher:
    """Gives a cached teacher's log-probabilities of a range of tokens.

    Args:
        index: (N, K) token ids.
        values: (N, K + 1) log-probabilities at the cache's temperature, the tail last.

    """

    def __init__(self, index: Tensor, values: Tensor) -> None:
        self._index, self._values = index, values

    def __call__(self, start: int, stop: int) -> TeacherChunk:
        """Tokens `start` to `stop`."""
        return TeacherChunk(wide(self._values[start:stop]), self._index[start:stop].long())


def chunked_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    objective: Objective,
    teacher: Callable[[int, int], TeacherChunk] | None = None,
    chunk_tokens: int = 256,
) -> Tensor:
    """The objective summed over all learnt tokens, with at most `chunk_tokens` rows of logits in memory.

    Args:
        hidden: the student's last hidden states after the final norm, (N, D).
        head: the student's output embedding, (V, D).
        labels: next tokens, (N,).
        objective: what is summed.
        teacher: gives the teacher's side of a range of tokens; None where the objective does without.
        chunk_tokens: rows of logits that exist at once.

    Returns:
        A scalar in nats, with gradients for `hidden` and `head`.

    """
    return _function().apply(hidden, head, labels, objective, teacher, chunk_tokens)


def _function() -> type[torch.autograd.Function]:
    """The autograd function, made on first use so that importing this module loads no torch."""
    global _CHUNKED  # noqa: PLW0603
    if _CHUNKED is None:
        _CHUNKED = _make_function()
    return _CHUNKED


_CHUNKED: type[torch.autograd.Function] | None = None


def _make_function() -> type[torch.autograd.Function]:
    import torch

    class ChunkedLoss(torch.autograd.Function):  # type: ignore[misc]
        """Loss and gradients in one pass over the tokens."""

        @staticmethod
        def forward(
            ctx: FunctionCtx,
            hidden: Tensor,
            head: Tensor,
            labels: Tensor,
            objective: Objective,
            teacher: Callable[[int, int], TeacherChunk] | None,
            chunk_tokens: int,
        ) -> Tensor:
            device = hidden.device.type
            working = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
            weight = head.to(working)
            grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            grad_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
            total = hidden.new_zeros((), dtype=torch.float32)
            with torch.autocast(device, enabled=False):
                for start in range(0, hidden.shape[0], chunk_tokens):
                    stop = min(start + chunk_tokens, hidden.shape[0])
                    rows = hidden[start:stop].to(working)
                    logits = wide(rows @ weight.T).requires_grad_()
                    with torch.enable_grad():
                        loss = objective(logits, labels[start:stop], None if teacher is None else teacher(start, stop))
                    total = total + loss.detach()
                    if grad_hidden is None and grad_head is None:
                        continue
                    (gradient,) = torch.autograd.grad(loss, logits)
                    gradient = gradient.to(working)
                    if grad_hidden is not None:
                        grad_hidden[start:stop] = gradient @ weight
                    if grad_head is not None:
                        _accumulate(grad_head, gradient, rows)
            ctx.save_for_backward(grad_hidden, grad_head)
            return total

        @staticmethod
        def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
            (grad_output,) = grad_outputs
            grad_hidden, grad_head = ctx.saved_tensors
            scaled = [None if one is None else one * grad_output for one in (grad_hidden, grad_head)]
            return (*scaled, None, None, None, None)

    return ChunkedLoss


def _accumulate(total: Tensor, gradient: Tensor, rows: Tensor) -> None:
    """Total (V, D) += gradient (n, V)^T rows (n, D), in the total's type."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, rows)
    else:
        total += (gradient.T @ rows).to(total.dtype)
