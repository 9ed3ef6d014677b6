"""The student with its loss inside, as one torch module: what the Trainer wraps, shards and steps.

The logits never leave it: the loss is computed chunk by chunk from the last hidden states (see `losses`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from core.errors import UserError
from pipeline.config import ObjectiveConfig
from pipeline.distill.losses import CachedTeacher, LiveTeacher, Objective, chunked_loss, hidden_mse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Configuration keys of models whose logits are more than hidden states times the output embedding."""


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model whose logits are its last hidden states times its output embedding.

    Raises:
        UserError: its logits are made in another way.

    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    changed = [key for key in LOGIT_CHANGES if getattr(model.config, key, None) not in (None, 1, 1.0)]
    head = model.get_output_embeddings()
    if changed or head is None or getattr(head, "bias", None) is not None:
        what = ", ".join(changed) or "a bias, or no output embedding"
        raise UserError(f"distill: the logits of {type(model).__name__} are made in a way that is not known: {what}")
    model.config.use_cache = False
    return model


class Teacher:
    """The frozen base. Not a module, so that nothing wraps, shards or saves it."""

    def __init__(self, model: PreTrainedModel, *, with_states: bool) -> None:
        self.model = model.eval().requires_grad_(False)
        self.head: Tensor = model.get_output_embeddings().weight
        self._with_states = with_states

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def __call__(self, input_ids: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Its side of a batch (B, L): `teacher_hidden` and, if asked for, `teacher_states`; each (B, L, E)."""
        found = self.model.base_model(input_ids=input_ids, use_cache=False, output_hidden_states=self._with_states)
        side: dict[str, Tensor | tuple[Tensor, ...]] = {"teacher_hidden": found.last_hidden_state}
        if self._with_states:
            side["teacher_states"] = found.hidden_states
        return side


class DistillModule(nn.Module):  # type: ignore[misc]
    """A student and what it minimizes.

    `forward` returns the sum over learnt tokens, in nats (plus the weighted hidden-state error, per token).
    """

    accepts_loss_kwargs = True

    def __init__(
        self,
        student: PreTrainedModel,
        objective: ObjectiveConfig,
        chunk_tokens: int,
        *,
        teacher_head: Tensor | None = None,
        matches: list[tuple[int, int]] | None = None,
    ) -> None:
        """`matches`: pairs of a student's and the teacher's hidden state that are compared; 0 is the embedding."""
        super().__init__()
        self.student = student
        self._no_split_modules = getattr(student, "_no_split_modules", None)
        self._objective = Objective(
            objective.divergence,
            objective.divergence_weight,
            objective.temperature,
            objective.beta,
            objective.cross_entropy_weight,
        )
        self._hidden_weight = objective.hidden_weight
        self._chunk_tokens = chunk_tokens
        self._teacher_head = [teacher_head]  # in a list: a frozen tensor that is no part of this module
        self._matches = matches or []
        self.projection: nn.Module | None = None
        if self._matches and teacher_head is not None and teacher_head.shape[1] != student.config.hidden_size:
            self.projection = nn.Linear(student.config.hidden_size, teacher_head.shape[1], bias=False)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        teacher_hidden: Tensor | None = None,
        teacher_states: tuple[Tensor, ...] | None = None,
        teacher_index: Tensor | None = None,
        teacher_values: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            input_ids: (B, L).
            labels: the tokens that follow, (B, L).
            teacher_hidden: a live teacher's last hidden states, (B, L, E).
            teacher_states: its hidden states, each (B, L, E).
            teacher_index: a cached teacher's token ids, (B, L, K).
            teacher_values: its log-probabilities, (B, L, K + 1).

        """
        found = self.student.base_model(
            input_ids=input_ids,
            use_cache=False,
            output_hidden_states=bool(self._matches) and teacher_states is not None,
        )
        hidden = found.last_hidden_state.flatten(0, 1)
        head = self.student.get_output_embeddings().weight
        teacher: LiveTeacher | CachedTeacher | None = None
        if teacher_hidden is not None and self._objective.uses_teacher:
            teacher_head = self._teacher_head[0]
            assert teacher_head is not None
            # Families pad their output embeddings differently: the shared vocabulary comes first in both.
            vocab_size = min(len(head), len(teacher_head))
            head = head[:vocab_size]
            teacher = LiveTeacher(teacher_hidden.flatten(0, 1), teacher_head, vocab_size, self._objective.temperature)
        elif teacher_index is not None and teacher_values is not None:
            teacher = CachedTeacher(teacher_index.flatten(0, 1), teacher_values.flatten(0, 1))
        flat_labels = labels.flatten()
        loss = hidden.new_zeros((), dtype=torch.float32)
        if self._objective.uses_logits:
            loss = chunked_loss(hidden, head, flat_labels, self._objective, teacher, self._chunk_tokens)
        if self._matches and teacher_states is not None:
            loss = loss + self._hidden_weight * self._hidden_loss(found.hidden_states, teacher_states, flat_labels)
        return {"loss": loss}

    def _hidden_loss(self, states: tuple[Tensor, ...], teacher: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        kept = labels >= 0
        total = states[0].new_zeros((), dtype=torch.float32)
        for mine, theirs in self._matches:
            state = states[mine] if self.projection is None else self.projection(states[mine])
            total = total + (hidden_mse(state.flatten(0, 1), teacher[theirs].flatten(0, 1)) * kept).sum()
        return total / len(self._matches)


def hidden_matches(num_student: int, num_teacher: int, dropped: list[int] | None) -> list[tuple[int, int]]:
    """Which hidden states are compared: a kept layer with itself, else layers at equal relative depth; the last pair
    is always the two outputs.

    >>> hidden_matches(2, 4, [1, 2])
    [(1, 1), (2, 4)]
    >>> hidden_matches(2, 6, None)
    [(1, 3), (2, 6)]
    """
    if dropped is None:
        inner = [round(layer * num_teacher / num_student) for layer in range(1, num_student)]
    else:
        inner = [layer + 1 for layer in range(num_teacher) if layer not in dropped][: num_student - 1]
    return [*enumerate(inner, 1), (num_student, num_teacher)]
