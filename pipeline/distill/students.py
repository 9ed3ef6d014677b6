"""Cutting a student from a model: whole layers by block influence, neurons and heads by activation.

Depth: ShortGPT (arXiv 2403.03853). A layer's block influence is 1 - cos(its input, its output), averaged over the
tokens of a calibration text: a layer that hardly turns its input does little. The least influential layers go.

Width: Minitron (arXiv 2407.14679, section 2.2). A neuron's importance is the size of its activation, a head's the norm
of its output: mean over sequences of the L2 norm over positions. Query heads go with their key-value head, so that
grouped attention stays whole. Each layer ranks its own; all layers keep equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from core.errors import UserError, closest
from core.files import read_json
from pipeline.config import StudentConfig
from pipeline.distill.student_size import num_dropped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

PROBE = "The cat's 12 naïve friends   paid $3.50 for tea;\n\tdef f(x):\n    return x**2  # 你好, мир 🙂\n"
"""Text that shows how a tokenizer splits words, spaces, digits, code and other scripts."""
MAX_EXAMPLES = 3


class StudentReport(TypedDict):
    """What cutting a student measured and cut."""

    block_influence: list[float] | None
    """Of each of the teacher's layers; None where the layers to drop were given, or none are."""
    dropped_layers: list[int]
    num_layers: int
    num_parameters: int


class StudentError(UserError):
    """A student that cannot be made, or cannot learn from this teacher."""


def make_student(
    teacher: Path, tokens: NDArray[np.int64] | None, config: StudentConfig, output: Path, batch_size: int = 4
) -> StudentReport:
    """Cut the student from the teacher's checkpoint and save it in the teacher's own type.

    Args:
        teacher: checkpoint folder in Hugging Face form.
        tokens: calibration text, int64, (num_sequences, length); None where nothing needs to be measured.
        config: what to cut.
        output: the folder to write.
        batch_size: sequences measured at once.

    Returns:
        What was measured and cut: `block_influence`, `dropped_layers`, `num_parameters` and sizes.

    Raises:
        StudentError: the architecture has no part that these cuts know.

    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Measured in float32 on a CPU, where 16-bit arithmetic is slow; saved in the type it came in.
    stored = AutoModelForCausalLM.from_pretrained(teacher, dtype="auto", device_map="meta").dtype
    working = "auto" if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=working)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    layers = find_layers(model)
    influence: list[float] | None = None
    dropped: Sequence[int] = []
    if num_dropped(config, len(layers)):
        if config.drop_layers is not None:
            dropped = config.drop_layers
        else:
            assert tokens is not None, "block influence needs a text"
            influence = block_influence(model, tokens, batch_size)
            dropped = least_influential(influence, num_dropped(config, len(layers)))
        drop_layers(model, dropped)
    if config.intermediate_size is not None or config.num_kv_heads is not None:
        assert tokens is not None, "activations need a text"
        neurons, heads = activation_importance(model, tokens, batch_size)
        if config.intermediate_size is not None:
            prune_neurons(model, neurons, config.intermediate_size)
        if config.num_kv_heads is not None:
            prune_heads(model, heads, config.num_kv_heads)
    model.to("cpu", dtype=stored)
    # `save_pretrained` writes the configuration's type, whatever the weights have.
    model.config.dtype = stored
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(output)
    return {
        "block_influence": influence,
        "dropped_layers": sorted(dropped),
        "num_layers": model.config.num_hidden_layers,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of transformer blocks, a `torch.nn.ModuleList`.

    Raises:
        StudentError: it has none where decoder models keep it.

    """
    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise StudentError(
            f"distill.student: {type(model).__name__} keeps its layers in a form that cannot be cut\n"
            "  -> distill.student.path=/a/smaller/checkpoint"
        )
    return layers


def block_influence(model: PreTrainedModel, tokens: NDArray[np.int64], batch_size: int) -> list[float]:
    """1 - cos(input, output) of each layer, averaged over all tokens; 0 to 2 per layer.

    Args:
        model: a causal language model.
        tokens: (num_sequences, length) token ids.
        batch_size: sequences at once.

    """
    import torch

    layers = find_layers(model)
    sums = [0.0] * len(layers)

    def watch(index: int) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor | tuple[Tensor, ...]
        ) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[index] += float((1 - cosine).sum(dtype=torch.float64))

        return hook

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(watch(index), with_kwargs=True).remove)
        _run(model, tokens, batch_size)
    return [total / tokens.size for total in sums]


def least_influential(influence: Sequence[float], num: int) -> list[int]:
    """The `num` layers of least influence, in the model's order; the earlier one at a tie."""
    return sorted(sorted(range(len(influence)), key=lambda layer: (influence[layer], layer))[:num])


def drop_layers(model: PreTrainedModel, dropped: Sequence[int]) -> None:
    """Remove layers in place; configuration and cache positions follow."""
    import torch

    layers = find_layers(model)
    kept = [index for index in range(len(layers)) if index not in set(dropped)]
    model.base_model.layers = torch.nn.ModuleList(layers[index] for index in kept)
    for position, layer in enumerate(model.base_model.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                # The key-value cache is indexed by it.
                module.layer_idx = position
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    model.config.num_hidden_layers = len(kept)


def activation_importance(
    model: PreTrainedModel, tokens: NDArray[np.int64], batch_size: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Importance of each neuron and each query head: mean over sequences of the L2 norm over positions.

    Returns:
        Per layer, the neurons' (intermediate_size,) and the heads' (num_heads,).

    Raises:
        StudentError: the layers are not built of `self_attn.o_proj` and `mlp.down_proj`.

    """
    import torch

    layers = find_layers(model)
    check_prunable(model)
    head_dim = _head_dim(model.config)
    neurons = [torch.zeros(layer.mlp.down_proj.in_features, dtype=torch.float64) for layer in layers]
    heads = [torch.zeros(layer.self_attn.o_proj.in_features // head_dim, dtype=torch.float64) for layer in layers]

    def watch_mlp(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:  # args[0]: (B, S, neurons)
            neurons[index] += args[0].double().norm(dim=1).sum(dim=0).cpu()

        return hook

    def watch_attention(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:  # args[0]: (B, S, heads x head_dim)
            by_head = args[0].double().unflatten(-1, (-1, head_dim)).norm(dim=-1)
            heads[index] += by_head.norm(dim=1).sum(dim=0).cpu()

        return hook

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.mlp.down_proj.register_forward_pre_hook(watch_mlp(index)).remove)
            stack.callback(layer.self_attn.o_proj.register_forward_pre_hook(watch_attention(index)).remove)
        _run(model, tokens, batch_size)
    return [one / len(tokens) for one in neurons], [one / len(tokens) for one in heads]


def check_prunable(model: PreTrainedModel) -> None:
    """Check that the layers have the parts that width pruning cuts.

    Raises:
        StudentError: they have not.

    """
    for layer in find_layers(model):
        parts = [("self_attn", name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
        parts += [("mlp", name) for name in ("gate_proj", "up_proj", "down_proj")]
        missing = [f"{block}.{name}" for block, name in parts if not hasattr(getattr(layer, block, None), name)]
        if missing:
            raise StudentError(
                f"distill.student: width pruning does not know {type(layer).__name__} (it lacks {', '.join(missing)})\n"
                "  -> distill.student.drop_fraction=0.33 removes whole layers"
            )


def prune_neurons(model: PreTrainedModel, importance: Sequence[Tensor], num: int) -> None:
    """Keep the `num` most important neurons of each MLP, in their order."""
    for layer, scores in zip(find_layers(model), importance, strict=True):
        kept = strongest(scores, num)
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            _keep_rows(projection, kept)
        _keep_columns(layer.mlp.down_proj, kept)
        if hasattr(layer.mlp, "intermediate_size"):
            layer.mlp.intermediate_size = num
    model.config.intermediate_size = num


def prune_heads(model: PreTrainedModel, importance: Sequence[Tensor], num_kv_heads: int) -> None:
    """Keep the `num_kv_heads` most important key-value heads of each layer, with all of their query heads."""
    config = model.config
    head_dim = _head_dim(config)
    group = config.num_attention_heads // config.num_key_value_heads
    for layer, scores in zip(find_layers(model), importance, strict=True):
        # A key-value head is worth what its query heads are together.
        kept_kv = strongest(scores.reshape(-1, group).norm(dim=-1), num_kv_heads)
        kept_q = [kv * group + query for kv in kept_kv for query in range(group)]
        attention = layer.self_attn
        _keep_rows(attention.q_proj, _spread(kept_q, head_dim))
        for projection in (attention.k_proj, attention.v_proj):
            _keep_rows(projection, _spread(kept_kv, head_dim))
        _keep_columns(attention.o_proj, _spread(kept_q, head_dim))
    config.num_key_value_heads = num_kv_heads
    config.num_attention_heads = num_kv_heads * group
    config.head_dim = head_dim


def strongest(scores: Tensor, num: int) -> list[int]:
    """Indices of the `num` largest scores, ascending; the earlier one at a tie."""
    return sorted(scores.argsort(descending=True, stable=True)[:num].tolist())


def check_tokenizers(teacher: Path, student: Path) -> None:
    """Check that two checkpoints mean the same text by the same token ids.

    Raises:
        StudentError: they do not; says where they differ.

    """
    from tokenizers import Tokenizer

    for folder in (teacher, student):
        if not (folder / "tokenizer.json").is_file():
            raise StudentError(f"distill.student.path: no tokenizer.json in {folder}, so the two cannot be compared")
    one, other = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (teacher, student))
    mine, theirs = one.get_vocab(with_added_tokens=True), other.get_vocab(with_added_tokens=True)
    way = "\n  -> a student of the same family, or one cut from the base: distill.student.drop_fraction=0.33"
    if mine != theirs:
        differing = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
        shown = "; ".join(
            f"{token!r} is {mine.get(token, 'absent')} and {theirs.get(token, 'absent')}"
            for token in differing[:MAX_EXAMPLES]
        )
        raise StudentError(
            f"distill.student.path={student}: its tokenizer differs from the teacher's in {len(differing)} of "
            f"{len(mine)} tokens ({shown}), so their predictions cannot be compared token by token{way}"
        )
    if one.encode(PROBE).ids != other.encode(PROBE).ids:
        raise StudentError(
            f"distill.student.path={student}: same vocabulary as the teacher, but it splits text differently{way}"
        )


def check_given_student(teacher: Path, student: Path) -> None:
    """Check a given checkpoint: a folder in Hugging Face form, with the teacher's tokenizer, not quantized.

    Raises:
        StudentError: it is not.

    """
    if not (student / "config.json").is_file() or not list(student.glob("*.safetensors")):
        near = [path.name for path in student.parent.glob("*") if path.is_dir()] if student.parent.is_dir() else []
        raise StudentError(
            f"distill.student.path={student}: no config.json with *.safetensors there{closest(student.name, near)}"
        )
    if read_json(student / "config.json").get("quantization_config"):
        raise StudentError(f"distill.student.path={student}: it is quantized, and quantized weights cannot be trained")
    check_tokenizers(teacher, student)


def _run(model: PreTrainedModel, tokens: NDArray[np.int64], batch_size: int) -> None:
    import torch

    with torch.inference_mode():
        for start in range(0, len(tokens), batch_size):
            batch = torch.as_tensor(tokens[start : start + batch_size].astype("int64")).to(model.device)
            model.base_model(input_ids=batch, use_cache=False)


def _head_dim(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _spread(heads: Sequence[int], head_dim: int) -> list[int]:
    return [head * head_dim + offset for head in heads for offset in range(head_dim)]


def _keep_rows(linear: nn.Linear, kept: Sequence[int]) -> None:
    import torch

    index = torch.tensor(kept, device=linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.detach()[index].clone())
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features = len(kept)


def _keep_columns(linear: nn.Linear, kept: Sequence[int]) -> None:
    import torch

    index = torch.tensor(kept, device=linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.detach()[:, index].clone())
    linear.in_features = len(kept)
