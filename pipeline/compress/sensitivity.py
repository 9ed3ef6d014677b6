"""How much each fused group of layers suffers from each precision: measured, not guessed.

A group's sensitivity at a level is the mean KL divergence of the next-token distribution, KL(base || the base with only
this group rounded to nearest), in nats per token over a few hundred calibration tokens. Weights are rounded by
llm-compressor's observer and compressed-tensors' own rounding, with the very scheme that the checkpoint will have;
where the scheme also rounds activations, they are rounded as they will be.

All variants go through the model together, one decoder layer after another: a variant starts at its own layer from the
base's hidden states, so nothing before that layer is computed again, and a device holds one layer at a time.
Cost: about half a forward pass for each group and level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from pipeline.compress.allocate import FusedGroup

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from torch import Tensor, nn
    from transformers import PreTrainedModel

MAX_LENGTH = 128
"""Longest sequence taken: many short sequences say more about the text than a few long ones."""


@dataclass(frozen=True)
class Sensitivity:
    """One group at one level."""

    group: str
    level: str
    kl: float
    """Mean KL divergence from the base, in nats per token."""
    standard_error: float
    """Of that mean, over tokens."""
    num_tokens: int


def draw(token_ids: NDArray[np.int64], num_tokens: int, seed: int) -> NDArray[np.int64]:
    """Pick the sequences to measure on: shape (num_sequences, length), at least `num_tokens` tokens if there are.

    Args:
        token_ids: calibration text, shape (num_samples, sample_length).
        num_tokens: how many to measure on.
        seed: of the draw; samples are drawn without replacement and cut at their first MAX_LENGTH tokens.

    """
    length = min(MAX_LENGTH, token_ids.shape[1], num_tokens)
    num_sequences = min(token_ids.shape[0], -(-num_tokens // length))
    rows = np.random.default_rng(seed).choice(token_ids.shape[0], num_sequences, replace=False)
    return token_ids[np.sort(rows), :length]


def measure(
    model: PreTrainedModel,
    groups: Sequence[FusedGroup],
    schemes: Mapping[str, QuantizationScheme],
    token_ids: NDArray[np.int64],
    device: str,
) -> list[Sensitivity]:
    """Measure every group at every level.

    Args:
        model: a causal language model of the Llama family, on the host. It is left as it was found.
        groups: its fused groups.
        schemes: level -> compressed-tensors QuantizationScheme.
        token_ids: shape (num_sequences, length).
        device: where to compute: `cpu` or `cuda`.

    Raises:
        ConfigError: the model's projections are not those that `groups` names.

    """
    import torch

    layers = model.base_model.layers
    modules = {group.name: projections(layers, group) for group in groups}
    ids = torch.from_numpy(np.ascontiguousarray(token_ids))
    # Embeddings, last norm and head: all that runs around the layers.
    outer = [part for part in (*model.base_model.children(), model.get_output_embeddings()) if part is not layers]
    variants: dict[tuple[str, str], Tensor] = {}
    with torch.no_grad(), placed(outer, device):
        base, arguments = before_layers(model, ids.to(device))
        base = base.cpu()
        for index, layer in enumerate(layers):
            with placed([layer], device):
                variants = {key: through(layer, hidden, arguments, device) for key, hidden in variants.items()}
                for group in (group for group in groups if group.layer == index):
                    for level, scheme in schemes.items():
                        with rounded(modules[group.name], scheme):
                            variants[group.name, level] = through(layer, base, arguments, device)
                base = through(layer, base, arguments, device)
        found = divergences_of(model, ids, base, variants, device)
    return [
        Sensitivity(group, level, *mean_and_error(divergences), divergences.size)
        for (group, level), divergences in found.items()
    ]


def through(layer: nn.Module, hidden: Tensor, arguments: Mapping[str, object], device: str) -> Tensor:
    """Hidden states after a decoder layer, kept on the host; some models return them in a tuple."""
    output = layer(hidden.to(device), **arguments)
    return (output[0] if isinstance(output, tuple) else output).cpu()


def divergences_of(
    model: PreTrainedModel, ids: Tensor, base: Tensor, variants: Mapping[tuple[str, str], Tensor], device: str
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """KL(base || variant) of each token, from the hidden states after the last layer, one sequence at a time."""
    found: dict[tuple[str, str], list[NDArray[np.float64]]] = {key: [] for key in variants}
    for row in range(ids.shape[0]):
        sequence = ids[row : row + 1].to(device)
        reference = log_probabilities(model, sequence, base[row : row + 1].to(device))
        weights = reference.exp()
        for key, hidden in variants.items():
            changed = log_probabilities(model, sequence, hidden[row : row + 1].to(device))
            divergence = (weights * (reference - changed)).sum(-1)
            found[key].append(divergence.flatten().double().cpu().numpy())
    return {key: np.concatenate(parts) for key, parts in found.items()}


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error; rounding may leave a mean just below zero, which no KL divergence is."""
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else 0.0
    return max(0.0, float(values.mean())), float(error)


def projections(layers: nn.ModuleList, group: FusedGroup) -> list[nn.Linear]:
    """The group's modules.

    Raises:
        ConfigError: one is missing, or has another shape.

    """
    parent = getattr(layers[group.layer], group.parent, None)
    found: list[nn.Linear] = [getattr(parent, name, None) for name in group.shapes]
    for module, (name, shape) in zip(found, group.shapes.items(), strict=True):
        actual = tuple(module.weight.shape) if hasattr(module, "weight") else None
        if actual != shape:
            raise ConfigError(
                f"quant=mixed knows the Llama family's layers: layers.{group.layer}.{group.parent}.{name} should be of "
                f"shape {shape} and is {actual or 'missing'}; take quant=gptq or quant=int8 for this model"
            )
    return found


@contextmanager
def rounded(modules: Sequence[nn.Linear], scheme: QuantizationScheme) -> Iterator[None]:
    """Inside, the modules compute with weights (and inputs, where the scheme says so) rounded to nearest."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    def round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        scale, zero_point = compute_dynamic_scales_and_zp(inputs[0], scheme.input_activations, module)
        return (fake_quantize(inputs[0], scale, zero_point, scheme.input_activations), *inputs[1:])

    kept = [module.weight.data for module in modules]
    hooks = []
    try:
        for module in modules:
            module.weight.data = nearest(module.weight.data, scheme.weights)
            if scheme.input_activations is not None:
                hooks.append(module.register_forward_pre_hook(round_input))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in zip(modules, kept, strict=True):
            module.weight.data = weight


def nearest(weight: Tensor, args: QuantizationArgs) -> Tensor:
    """Round a weight of shape (rows, columns) to nearest, as llm-compressor's default weight observer scales it."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from llmcompressor.observers import Observer

    observer = Observer.load_from_registry(args.observer or "memoryless_minmax", base_name="weight", args=args)
    observer(weight)
    found = observer.get_qparams()
    return fake_quantize(weight, found["scale"], found["zero_point"], args)


def before_layers(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, dict[str, object]]:
    """What the decoder layers are given: hidden states of shape (num_sequences, length, hidden), and the arguments."""
    seen: list[tuple[Tensor, dict[str, object]]] = []

    def record(hidden: Tensor, **arguments: object) -> Tensor:
        seen.append((hidden, arguments))
        return hidden

    with replaced(model.base_model.layers, record):
        model.base_model(input_ids=ids, use_cache=False)
    return seen[0]


def log_probabilities(model: PreTrainedModel, ids: Tensor, hidden: Tensor) -> Tensor:
    """Next-token log-probabilities in float32, shape (1, length, vocabulary), from the last layer's hidden states."""
    with replaced(model.base_model.layers, lambda *_, **__: hidden):
        return model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)


@contextmanager
def replaced(layers: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, every decoder layer computes `forward` instead: the model's own code runs around them."""
    try:
        for layer in layers:
            layer.forward = forward
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


@contextmanager
def placed(modules: Sequence[nn.Module], device: str) -> Iterator[None]:
    """Inside, the modules are on the device; afterwards on the host again."""
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to("cpu")
