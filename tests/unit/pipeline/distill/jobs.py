"""Training jobs on the tiny model, and processes that run them."""

from pathlib import Path
from typing import Any

import numpy as np

from core.files import digest_json, plain, write_json
from pipeline.config import DistillConfig
from tests.unit.pipeline.distill.tiny_model import VOCAB

LENGTH = 16


def a_config(**changes: Any) -> DistillConfig:
    """Twelve steps of four sequences, in two micro-batches each; `a__b=value` sets `a.b`."""
    config = DistillConfig(name="tiny")
    values = {
        "data__length": LENGTH,
        "train__num_steps": 12,
        "train__batch_size": 4,
        "train__micro_batch_size": 2,
        "train__learning_rate": 1e-2,
        "train__log_every_steps": 3,
        "train__chunk_tokens": 8,
        "train__diverge_factor": 100.0,
        "student__drop_fraction": 0.5,
        "spot__every_steps": 4,
        "spot__heartbeat_s": 0.0,
    } | changes
    for key, value in values.items():
        group, name = key.split("__")
        assert hasattr(getattr(config, group), name)
        setattr(getattr(config, group), name, value)
    return config


def write_rows(folder: Path, num_rows: int = 10) -> Path:
    """Packed sequences with a pattern to learn: each token decides the next."""
    rng = np.random.default_rng(0)
    rows = np.cumsum(rng.integers(1, 4, size=(num_rows, LENGTH + 1)), axis=1) % (VOCAB - 3) + 3
    np.save(folder / "rows.npy", rows.astype(np.int32), allow_pickle=False)
    return folder / "rows.npy"


def write_job(
    folder: Path, teacher: Path, student: Path, config: DistillConfig, *, url: str | None = None, **changes: Any
) -> Path:
    """A training job in a folder of its own; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"distill": {key: value for key, value in plain(config).items() if key != "spot"}}
    job = {
        "teacher": teacher,
        "student": student,
        "dropped_layers": [1, 2],
        "rows": write_rows(folder),
        "cache": None,
        "output": folder / "model",
        "work": folder,
        "url": url or folder / "checkpoints",
        "config": config,
        "seed": 5,
        "end_token": 2,
        "plan_hash": digest_json(plan),
        "plan": plan,
        "purchase_option": "spot",
        "usd_per_hour": "3.60",
    }
    write_json(folder / "job.json", job | changes)
    return folder / "job.json"


def run_job(job: Path, task: str = "train", num_threads: int = 1) -> None:
    """Run a worker's task in this process, its output in `worker.log`; the exit code is the worker's."""
    import os
    import sys
    import time

    import torch

    from core.jobs import main
    from pipeline.distill import worker
    from pipeline.distill.process import PROGRAMS

    torch.set_num_threads(num_threads)
    log = os.open(job.parent / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    worker.STARTED = time.monotonic()
    sys.exit(main([PROGRAMS[task], str(job), str(job.parent / "measured.json")]))
