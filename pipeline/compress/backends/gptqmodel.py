"""What the native formats share: GPTQModel loads, quantizes block by block, and saves in the format of its ancestors.

GPTQModel keeps its own checkpoint after every fourth decoder block of a Llama-like model: a killed attempt goes on from
the job's scratch folder. After every block it cost 5% of the time (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.compress.registry import CompressJob

TOOLS = ("gptqmodel", "transformers", "torch", "optimum")
RESUMES = ("llama",)
"""Model types for which GPTQModel can go on after a kill."""
BLOCKS_BETWEEN_CHECKPOINTS = 4
THREADS = "GPTQMODEL_CPU_WORKERS"


def quantize(job: CompressJob, settings: Mapping[str, object]) -> None:
    """Quantize with GPTQModel.

    Args:
        job: what to compress; its calibration token ids have the shape (num_samples, length).
        settings: arguments of GPTQModel's `QuantizeConfig`.

    """
    import os

    # On a small machine GPTQModel's thread pool fails with its default number of workers.
    os.environ.setdefault(THREADS, str(max(2, (os.cpu_count() or 2) // 2)))
    import numpy as np
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.looper.checkpoint_store import CheckpointConfig
    from transformers import AutoConfig, set_seed

    set_seed(job.seed)
    if job.calibration is None:
        raise ValueError("GPTQModel needs calibration text")
    token_ids = np.load(job.calibration, allow_pickle=False)
    texts = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in torch.from_numpy(token_ids)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(str(job.base), QuantizeConfig(**settings, device=device))
    resume = None
    if job.scratch is not None and AutoConfig.from_pretrained(job.base).model_type in RESUMES:
        every = f"layer:{BLOCKS_BETWEEN_CHECKPOINTS}"
        resume = CheckpointConfig(path=str(job.scratch / "gptqmodel"), resume="auto", interval=every)
    model.quantize(texts, batch_size=1, checkpoint=resume)
    model.save(str(job.output))
