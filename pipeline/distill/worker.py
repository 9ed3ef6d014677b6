"""The processes before a training: `core.jobs` calls one of these tasks.

cut_student   cut the student from the teacher          fill_cache   let the teacher read the text, keep what it says
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from core.jobs import STARTED, usage
from pipeline.config import StudentConfig
from pipeline.distill.module import load_model
from pipeline.distill.process import CacheJob, StudentJob
from pipeline.distill.progress import print_line
from pipeline.distill.students import make_student
from pipeline.distill.teacher_cache import write_cache

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LOGITS_BYTES = 2**29
"""Most bytes of a teacher's logits at once while the cache is written."""


def cut_student(job: StudentJob) -> dict[str, object]:
    """The `student` task."""
    tokens = None if job["tokens"] is None else np.load(job["tokens"], allow_pickle=False)
    return measured(make_student(Path(job["teacher"]), tokens, StudentConfig(**job["student"]), Path(job["output"])))


def fill_cache(job: CacheJob) -> dict[str, object]:
    """The `cache` task."""
    rows = np.load(job["rows"], allow_pickle=False)
    device, dtype = teacher_placement()
    model = load_model(Path(job["teacher"]), dtype).to(device).eval()

    def predict(tokens: NDArray[np.int64]) -> Tensor:
        with torch.inference_mode():
            return model(input_ids=torch.from_numpy(tokens).to(device), use_cache=False).logits.float()

    row_bytes = 4 * (rows.shape[1] - 1) * model.config.vocab_size
    written = write_cache(
        rows,
        predict,
        Path(job["output"]),
        top_k=job["top_k"],
        temperature=job["temperature"],
        batch_size=max(1, LOGITS_BYTES // row_bytes),
        on_row=lambda done, total: print_line(f"sequence {done}/{total}"),
    )
    return measured(written)


def measured(result: Mapping[str, object]) -> dict[str, object]:
    """A task's result with its time, from the start of the process on, and its peak memory."""
    return {**usage(STARTED), **result}


def teacher_placement() -> tuple[str, torch.dtype]:
    """Where a frozen teacher computes, and in which type: most processors compute bfloat16 slowly."""
    if torch.cuda.is_available():
        return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return "cpu", torch.float32
