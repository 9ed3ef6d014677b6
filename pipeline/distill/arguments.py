"""A training's settings as transformers' Trainer takes them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from pipeline.config import DistillConfig


def training_arguments(config: DistillConfig, seed: int, work: Path) -> TrainingArguments:
    """The Trainer's own settings."""
    train = config.train
    on_gpu = torch.cuda.is_available()
    bf16 = train.bf16 if train.bf16 is not None else on_gpu and torch.cuda.is_bf16_supported()
    per_pass = train.micro_batch_size * train.num_processes
    settings: dict[str, object] = {
        "output_dir": str(work),
        "max_steps": train.num_steps,
        "per_device_train_batch_size": train.micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // per_pass,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(train.warmup_fraction * train.num_steps),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": "adamw_torch_fused" if on_gpu else "adamw_torch",
        "bf16": bf16,
        "use_cpu": not on_gpu,
        "seed": seed,
        "save_strategy": "steps",
        "save_steps": config.spot.every_steps,
        # `DistillTrainer` logs, in the run's own words.
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        # The order is drawn in `Samples`, as a function of the step alone: a resume finds its place in it.
        "train_sampling_strategy": "sequential",
        "dataloader_drop_last": True,
        "dataloader_pin_memory": on_gpu,
        "fsdp": train.fsdp or None,
        "fsdp_config": dict(train.fsdp_config) if train.fsdp else None,
        "ddp_find_unused_parameters": False,
        "ddp_backend": None if on_gpu else "gloo",
    }
    if train.num_processes == 1:
        del settings["ddp_backend"]
    return TrainingArguments(**settings)
