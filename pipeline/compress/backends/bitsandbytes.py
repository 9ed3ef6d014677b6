"""What the bitsandbytes methods share: transformers loads the model quantized, and saves it so.

vLLM 0.32 reads such checkpoints through its plug-in package `vllm-bnb-plugin`, which needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.compress.registry import CompressJob

TOOLS = ("bitsandbytes", "transformers", "torch")
NO_CPU = {"cpu": "vLLM serves bitsandbytes checkpoints on GPUs only"}


def load_and_save(job: CompressJob, settings: Mapping[str, object]) -> None:
    """Load the base under a bitsandbytes configuration and save it in the quantized form.

    Args:
        job: what to compress.
        settings: arguments of transformers' `BitsAndBytesConfig`.

    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

    set_seed(job.seed)
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        dtype="auto",
        quantization_config=BitsAndBytesConfig(**settings),
        device_map="cuda" if torch.cuda.is_available() else "cpu",
    )
    model.save_pretrained(job.output)
    AutoTokenizer.from_pretrained(job.base).save_pretrained(job.output)
