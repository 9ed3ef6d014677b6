"""What base and candidate compute on the same tokens, and how far apart it is: whole outputs, and layer by layer.

Works on any causal language model of transformers whose decoder layers stand in one module list and hand a residual
stream on. Shapes: N sequences of length L, V tokens in the vocabulary, H hidden features, D decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.health.health import NotCheckedError
from pipeline.health.report import LayerHealth

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    LayerOutput: TypeAlias = Tensor | tuple[Tensor, ...]
    """Hidden states of shape (1, L, H); some models return them in a tuple."""
    Given: TypeAlias = tuple[tuple[Tensor, ...], dict[str, Tensor]]
    """A layer's positional and named arguments."""

MAX_SUSPECTS = 8
"""Up to so many bad layers are tried in one another's place."""
CHUNK_TOKENS = 64
"""Positions whose distributions are held in float64 at a time."""


@dataclass(frozen=True)
class Outputs:
    """What the base computes."""

    logits: NDArray[np.float32]
    """Shape (N, L, V)."""
    hidden: NDArray[np.float32]
    """Shape (D + 1, N, L, H): the input of every decoder layer, and the output of the last."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the first module list as long as the configuration says."""
    import torch

    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise NotCheckedError(f"no list of {count} decoder layers in {type(model).__name__}")


def layer_names(model: PreTrainedModel) -> list[str]:
    """The decoder layers' names, as in the weight files: `model.layers.0`, ..."""
    layers = {id(layer): index for index, layer in enumerate(decoder_layers(model))}
    return [name for name, module in model.named_modules() if id(module) in layers]


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove the hooks again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hidden_of(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """A decoder layer's hidden states among its arguments, shape (1, L, H)."""
    return args[0] if args else kwargs["hidden_states"]


def forward(model: PreTrainedModel, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of one sequence of token ids (L,), shape (L, V)."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids)[None].to(model.device), use_cache=False).logits
    return np.asarray(logits[0].float().cpu().numpy())


def run(model: PreTrainedModel, token_ids: NDArray[np.int64]) -> Outputs:
    """An ordinary pass over all sequences, one at a time."""
    layers = decoder_layers(model)
    caught: list[NDArray[np.float32]] = []

    def before(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        caught.append(hidden_of(args, kwargs)[0].float().cpu().numpy())

    def after(module: nn.Module, args: tuple[Tensor, ...], output: LayerOutput) -> None:
        caught.append((output[0] if isinstance(output, tuple) else output)[0].float().cpu().numpy())

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    with hooked([*handles, layers[-1].register_forward_hook(after)]):
        logits = np.stack([forward(model, ids) for ids in token_ids])
    per_sequence = [caught[start : start + len(layers) + 1] for start in range(0, len(caught), len(layers) + 1)]
    hidden = np.stack([np.stack(states) for states in per_sequence], axis=1)
    return Outputs(logits, hidden)


def compare_logits(
    base: NDArray[np.float32], own: NDArray[np.float32], token_ids: NDArray[np.int64]
) -> dict[str, float]:
    """Divergence, agreement and likelihoods. Logits have shape (N, L, V), token ids (N, L).

    KL and agreement are means over all N * L positions; the likelihood of a token is that given all before it.
    """
    num_bad = int(own.size - np.count_nonzero(np.isfinite(own)))
    found: dict[str, float] = {"num_tokens": int(token_ids.size), "num_nonfinite_logits": num_bad}
    divergence, same, nll = 0.0, 0, {"base_nll_nats": 0.0, "nll_nats": 0.0}
    if num_bad or own.shape != base.shape:
        return found
    for sequence in range(len(token_ids)):
        for start in range(0, token_ids.shape[1], CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            p, q = log_softmax(base[sequence, rows]), log_softmax(own[sequence, rows])
            divergence += float((np.exp(p) * (p - q)).sum())
            same += int((base[sequence, rows].argmax(-1) == own[sequence, rows].argmax(-1)).sum())
            targets = token_ids[sequence, start + 1 : start + 1 + CHUNK_TOKENS]
            for name, logs in (("base_nll_nats", p), ("nll_nats", q)):
                nll[name] -= float(logs[np.arange(len(targets)), targets].sum())
    # A sequence's first token has none before it to be predicted from.
    num_scored = token_ids.size - len(token_ids)
    found |= {"mean_kl_nats": divergence / token_ids.size, "top1_agreement": same / token_ids.size}
    return found | {name: value / num_scored for name, value in nll.items()}


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities in float64, over the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def compare_layers(
    model: PreTrainedModel, token_ids: NDArray[np.int64], base: Outputs, own: Outputs, suspect_above: float
) -> dict[str, object]:
    """Every part of the candidate on the base's own hidden states."""
    if own.hidden.shape != base.hidden.shape:
        depth, width = (
            f"{outputs.hidden.shape[0] - 1} layers of {outputs.hidden.shape[-1]}" for outputs in (base, own)
        )
        return {"layers_reason": f"not comparable: the base has {depth} features, the candidate {width}"}
    names = layer_names(model)
    straight = list(range(len(names)))
    errors, logits = ForcedPass(base, straight).run(model, token_ids)
    swaps = find_swaps(model, token_ids, base, errors, suspect_above)
    layers = []
    for index, name in enumerate(names):
        other, error = swaps.get(index, (None, None))
        layers.append(LayerHealth(name, errors[index], None if other is None else names[other], error))
    centred = [values - values.mean(-1, keepdims=True) for values in (logits, base.logits)]
    return {
        "layers": layers,
        "embedding_error": typical(token_errors(own.hidden[0], base.hidden[0])),
        "head_error": typical(token_errors(*centred)) if logits.shape == base.logits.shape else None,
    }


class ForcedPass:
    """One pass in which layer i is given the base's hidden states before its layer `source[i]`.

    The model's own forward pass makes masks and positions; hooks put the base's hidden states before each layer, and
    the base's last ones before the head.
    """

    def __init__(self, base: Outputs, source: Sequence[int]) -> None:
        self.base, self.source = base, source
        self.errors: list[list[NDArray[np.float64]]] = [[] for _ in source]
        self.sequence = 0

    def run(
        self, model: PreTrainedModel, token_ids: NDArray[np.int64]
    ) -> tuple[list[float | None], NDArray[np.float32]]:
        """The errors of all layers and what the head makes of the base's last hidden states.

        Returns:
            Per layer the `typical` error of its update against the base's; and logits of shape (N, L, V).

        """
        handles = []
        for index, layer in enumerate(decoder_layers(model)):
            handles.append(layer.register_forward_pre_hook(partial(self._before, index), with_kwargs=True))
            handles.append(layer.register_forward_hook(partial(self._after, index)))
        logits = []
        with hooked(handles):
            for self.sequence, ids in enumerate(token_ids):
                logits.append(forward(model, ids))
        return [typical(np.concatenate(errors)) for errors in self.errors], np.stack(logits)

    def _before(self, index: int, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Given:
        given = self._states(self.source[index], hidden_of(args, kwargs))
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

    def _after(self, index: int, module: nn.Module, args: tuple[Tensor, ...], output: LayerOutput) -> LayerOutput:
        result = output[0] if isinstance(output, tuple) else output
        x, y = (self.base.hidden[self.source[index] + step, self.sequence] for step in (0, 1))
        self.errors[index].append(token_errors(result[0].float().cpu().numpy(), y, x))
        if index < len(self.source) - 1:
            return output
        last = self._states(index + 1, result)
        return (last, *output[1:]) if isinstance(output, tuple) else last

    def _states(self, index: int, like: Tensor) -> Tensor:
        import torch

        return torch.from_numpy(self.base.hidden[index, self.sequence])[None].to(like.device, like.dtype)


def find_swaps(
    model: PreTrainedModel,
    token_ids: NDArray[np.int64],
    base: Outputs,
    own: Sequence[float | None],
    suspect_above: float,
) -> dict[int, tuple[int, float]]:
    """For suspect layers the other suspect whose work they do well, and their error at that.

    Every pair of suspects is tried, in as many passes as there are suspects less one; more than `MAX_SUSPECTS` are no
    swap but general damage, and are not tried.
    """
    suspects = [index for index, error in enumerate(own) if error is not None and error > suspect_above]
    best: dict[int, tuple[int, float]] = {}
    for shift in range(1, len(suspects) if len(suspects) <= MAX_SUSPECTS else 0):
        source = list(range(len(own)))
        for place, index in enumerate(suspects):
            source[index] = suspects[(place + shift) % len(suspects)]
        errors, _ = ForcedPass(base, source).run(model, token_ids)
        for index in suspects:
            error, bound = errors[index], min(suspect_above, (own[index] or 0.0) / 2)
            if error is not None and error < best.get(index, (0, bound))[1]:
                best[index] = (source[index], error)
    return best


def token_errors(
    own: NDArray[np.float32], base: NDArray[np.float32], origin: NDArray[np.float32] | float = 0.0
) -> NDArray[np.float64]:
    """Norm of own minus base over norm of base minus origin, per token.

    Shapes (..., L, features) give (..., L). NaN where own is not finite.
    """
    base64 = base.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.linalg.norm(own.astype(np.float64) - base64, axis=-1)
    size = np.linalg.norm(base64 - origin, axis=-1)
    errors = np.where(difference > 0, np.inf, 0.0)
    np.divide(difference, size, out=errors, where=size > 0)
    return np.asarray(np.where(np.isfinite(difference), errors, np.nan))


def typical(errors: NDArray[np.float64]) -> float | None:
    """Median over all tokens; None where one is NaN.

    The median, because a few tokens (often the first) carry activations a thousand times larger than all others (Sun et
    al., arXiv 2402.17762) and would drown these in any sum.
    """
    return None if np.isnan(errors).any() else float(np.median(errors))
