"""Sequence-level distillation (Kim and Rush, arXiv 1606.07947): the teacher writes the text that the student learns on.

Each packed sequence keeps its opening; the served teacher writes the rest, with a seed of its own per sequence. It
goes on past an end-of-sequence token, as packed text does, so that every sequence is full. Parts are written as they
are done: a killed run goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import ConfigError, ToolError
from evals.types import Target
from pipeline.config import DistillDataConfig, EngineConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

PART_ROWS = 64
MAX_CONCURRENT = 64
TIMEOUT_S = 600.0


def check_length(data: DistillDataConfig, engine: EngineConfig) -> None:
    """Check that the engine's longest sequence holds a row.

    Raises:
        ConfigError: it is too short.

    """
    if engine.max_model_len < data.length + 1:
        raise ConfigError(
            f"engine.max_model_len={engine.max_model_len} is too short for distill.data.length={data.length}: "
            f"it must be at least {data.length + 1}"
        )


def write_continuations(
    rows: Path, target: Callable[[], Target], data: DistillDataConfig, folder: Path
) -> dict[str, object]:
    """Let the served teacher continue every sequence: writes `rows.npy`, of the same shape as before.

    Args:
        rows: the packed text: int32, shape (num_rows, length + 1).
        target: gives the served teacher, started on first use.
        data: how long the openings are, temperature and seed.
        folder: where the parts and the file go.

    Raises:
        ToolError: the server failed.

    """
    openings = np.load(rows, allow_pickle=False)

    def write(number: int) -> NDArray[np.int32]:
        return continued(target(), openings[number], data, data.seed * len(openings) + number)

    target()
    written = write_parts(len(openings), write, folder)
    np.save(folder / "rows.npy", written, allow_pickle=False)
    digest = hashlib.sha256(written.tobytes()).hexdigest()
    return {"digest": digest, "num_written_tokens": written[:, data.prompt_tokens :].size}


def write_parts(num_rows: int, write: Callable[[int], NDArray[np.int32]], folder: Path) -> NDArray[np.int32]:
    """Let `write` make every row, many at once; parts that are in the folder already are kept."""
    parts = []
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        for start in range(0, num_rows, PART_ROWS):
            path = folder / f"part-{start:08d}.npy"
            if not path.exists():
                made = np.stack(list(pool.map(write, range(start, min(start + PART_ROWS, num_rows)))))
                temporary = path.with_suffix(".tmp.npy")
                np.save(temporary, made, allow_pickle=False)
                temporary.rename(path)
            parts.append(np.load(path, allow_pickle=False))
    return np.concatenate(parts)


def continued(target: Target, row: NDArray[np.int32], data: DistillDataConfig, seed: int) -> NDArray[np.int32]:
    """One sequence: the row's opening and what the teacher writes after it, as many tokens as the row has.

    Raises:
        ToolError: the server gave another number of tokens.

    """
    opening = row[: data.prompt_tokens]
    wanted = len(row) - len(opening)
    body = {
        "model": target.model_name,
        "prompt": opening.tolist(),
        "max_tokens": wanted,
        "ignore_eos": True,
        "temperature": data.sampling_temperature,
        "top_p": 1.0,
        "top_k": -1,
        "seed": seed,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{target.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        ids = json.loads(response.read())["choices"][0]["token_ids"]
    if len(ids) != wanted:
        raise ToolError(f"the teacher wrote {len(ids)} tokens instead of {wanted} (seed {seed})")
    return np.concatenate([opening, np.array(ids, dtype=np.int32)])
