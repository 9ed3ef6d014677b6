"""What all llm-compressor methods share: load, apply a recipe block by block, save in compressed-tensors form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.compress.registry import CompressJob

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor.modifiers import Modifier
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOOLS = ("llmcompressor", "compressed-tensors", "transformers", "torch")
OBSERVER_NAMES = {"mse": "memoryless_mse", "minmax": None}
"""`quant.observer` as compressed-tensors calls it; None is its own default."""
SHARD_SIZE = "1GB"
"""A larger checkpoint is several files: their SHA-256 are computed side by side, one file's is as fast as one core."""


def one_shot(job: CompressJob, recipe: Callable[[], list[Modifier]]) -> None:
    """Load the base, apply the recipe over the calibration text, and save.

    Args:
        job: what to compress, with calibration token ids of shape (num_samples, length), if the method needs them.
        recipe: makes the modifiers; called after the libraries are imported.

    """
    from transformers import AutoConfig

    model, tokenizer = load_base(job)
    apply(recipe(), model, tokenizer, job.calibration)
    keep_16_bit(model, AutoConfig.from_pretrained(job.base).dtype)
    save(model, tokenizer, job.output)


def round_to_preset(job: CompressJob, scheme: str) -> None:
    """Round every linear layer but the head by a scheme that compressed-tensors names, and save."""

    def recipe() -> list[Modifier]:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return [QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])]

    one_shot(job, recipe)


def load_base(job: CompressJob) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base and its tokenizer, with every random generator seeded."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(job.seed)
    # Most processors compute bfloat16 slowly or by emulation: on a CPU the work is done in float32.
    working = "auto" if torch.cuda.is_available() else torch.float32
    return AutoModelForCausalLM.from_pretrained(job.base, dtype=working), AutoTokenizer.from_pretrained(job.base)


def apply(
    modifiers: list[Modifier], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Path | None
) -> None:
    """Change the model by llm-compressor's modifiers, block by block over the calibration text's token ids, if any."""
    import numpy as np
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot

    data: dict[str, object] = {}
    if calibration is not None:
        token_ids = np.load(calibration, allow_pickle=False)
        rows = {"input_ids": token_ids.tolist(), "attention_mask": np.ones_like(token_ids).tolist()}
        data = {
            "dataset": Dataset.from_dict(rows),
            "max_seq_length": token_ids.shape[1],
            "num_calibration_samples": token_ids.shape[0],
            "shuffle_calibration_samples": False,
        }
    with torch.random.fork_rng(devices=[]):
        oneshot(model=model, processor=tokenizer, recipe=modifiers, **data)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the checkpoint in compressed-tensors form."""
    model.save_pretrained(folder, save_compressed=True, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)


def weight_only_groups(
    *, num_bits: int, group_size: int | None, symmetric: bool, observer: str = "minmax"
) -> dict[str, QuantizationScheme]:
    """One scheme for all linear layers: INT weights with a scale for each group of columns, or each row (None)."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(
        num_bits=num_bits,
        type="int",
        symmetric=symmetric,
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
        observer=OBSERVER_NAMES[observer],
    )
    return {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}


def allow_unpinned_memory() -> None:
    """Let AWQ run without an accelerator: llm-compressor 0.14 pins host memory, and fails where there is none."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache._pin_intermediate = classmethod(lambda cls, intermediate: None)


def keep_16_bit(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give every part that was not quantized the base's own type again.

    So do the scales of weight-only layers, as servers keep them: one for each group is much in float32. Layers whose
    activations are quantized too have one scale a row, and keep it in float32.
    """
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)
        elif scheme.input_activations is None and getattr(module, "weight_scale", None) is not None:
            module.weight_scale.data = module.weight_scale.data.to(dtype)
    model.config.dtype = dtype
