"""What the teacher says of every token, written once for many students: its top log-probabilities and the tail's mass.

A token's record: the K likeliest token ids, sorted by id and stored as gaps in byte planes (the low bytes are noise,
the high ones nearly constant, and each plane is Huffman-coded by zlib); K log-probabilities in 8 bit, companded by a
square root so that likely tokens are the most exact; and the tail's log-mass in 16 bit: under 300 bytes at K = 128 of
49,152 tokens. Reading rescales the top so that top and tail sum to one.

    shard-00000.bin     the records of SHARD_ROWS packed sequences, one compressed block per sequence
    shard-00000.json    where each block starts, and the shard's SHA-256: written last
    index.json          K, temperature, row length, and the error against full logits

The teacher writes shard after shard: a killed run goes on with the next one.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import StoreError
from core.files import digest_file, read_json, write_atomic, write_json
from pipeline.distill.losses import bucket_log_probs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SHARD_ROWS = 64
LOWEST = -36.0
"""Log-probabilities below this are stored as this: a mass of 2e-16."""
LEVELS = 255


@dataclass(frozen=True)
class CacheError:
    """How far the cache is from the teacher's full distribution p: nats per token, means over the tokens looked at."""

    kl_rounding: float
    """KL of the exact top and tail from the stored ones: what 8 bits cost."""
    kl_total: float
    """KL of p from the stored top with the tail spread evenly over the rest: what a student could miss at most."""
    tail_mass: float
    """Probability outside the top."""
    num_tokens: int


def encode_row(index: NDArray[np.int32], values: NDArray[np.float32]) -> bytes:
    """One sequence's records, compressed.

    Args:
        index: (length, K) distinct token ids in each row.
        values: (length, K + 1) log-probabilities in the same order, the tail last.

    """
    order = np.argsort(index, axis=1)
    ids = np.take_along_axis(index, order, axis=1).astype(np.uint32)
    gaps = np.diff(ids, axis=1, prepend=np.uint32(0))
    planes = [((gaps >> (8 * byte)) & 0xFF).astype(np.uint8) for byte in range(_num_planes(int(gaps.max())))]
    top = np.take_along_axis(values[:, :-1], order, axis=1)
    planes.append(_compand(top))
    tail = np.maximum(values[:, -1], LOWEST).astype("<f2")
    blocks = [_squeeze(plane.T.tobytes()) for plane in planes]
    sizes = np.array([len(planes), *(len(block) for block in blocks)], dtype="<u4")
    return b"".join([sizes[:1].tobytes(), sizes[1:].tobytes(), *blocks, tail.tobytes()])


def decode_row(data: bytes, length: int, top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The inverse of `encode_row`: ids int32 (length, K) ascending, log-probabilities float32 (length, K + 1)."""
    num_planes = int(np.frombuffer(data, "<u4", 1)[0])
    sizes = np.frombuffer(data, "<u4", num_planes, offset=4)
    offset = 4 * (1 + num_planes)
    planes = []
    for size in sizes:
        flat = np.frombuffer(zlib.decompress(data[offset : offset + int(size)], wbits=-15), np.uint8)
        planes.append(flat.reshape(top_k, length).T)
        offset += int(size)
    gaps = np.zeros((length, top_k), dtype=np.int32)
    for byte, plane in enumerate(planes[:-1]):
        gaps += plane.astype(np.int32) << (8 * byte)
    index = np.cumsum(gaps, axis=1, dtype=np.int32)
    top = _expand(planes[-1]).astype(np.float64)
    tail = np.frombuffer(data, "<f2", length, offset=offset).astype(np.float64)[:, None]
    room = np.log(-np.expm1(np.minimum(tail, -1e-6)))
    top += room - np.log(np.exp(top).sum(axis=1, keepdims=True))
    return index, np.concatenate([top, np.minimum(tail, -1e-6)], axis=1).astype(np.float32)


def top_and_tail(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The K likeliest tokens, and their log-probabilities with the tail's.

    Args:
        logits: (N, V), a tensor.
        top_k: K.
        temperature: softens the distribution.

    Returns:
        ids int64 (N, K) and log-probabilities float32 (N, K + 1).

    """
    index = logits.topk(top_k, dim=-1).indices
    return index, bucket_log_probs(logits, index, temperature)


def write_cache(
    rows: NDArray[np.int32],
    predict: Callable[[NDArray[np.int64]], Tensor],
    folder: Path,
    *,
    top_k: int,
    temperature: float,
    batch_size: int = 4,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, object]:
    """Let the teacher read all rows and keep what it says. Shards that are there already are kept.

    Args:
        rows: packed sequences, (num_rows, length + 1).
        predict: token ids (B, length) -> logits, a tensor (B, length, V).
        folder: where the cache lies.
        top_k: log-probabilities kept per token.
        temperature: of the distribution that is kept.
        batch_size: sequences at once.
        on_row: told of progress.

    Returns:
        What `index.json` contains: sizes and the error against full logits.

    """
    errors: list[CacheError] = []
    num_bytes = 0
    for number, start in enumerate(range(0, len(rows), SHARD_ROWS)):
        shard = rows[start : start + SHARD_ROWS]
        record = folder / f"shard-{number:05d}.json"
        if not record.exists():
            blocks, error = _shard(shard, predict, top_k, temperature, batch_size)
            data = b"".join(blocks)
            write_atomic(record.with_suffix(".bin"), data)
            ends = np.cumsum([len(block) for block in blocks]).tolist()
            found = {"ends": ends, "sha256": hashlib.sha256(data).hexdigest(), "error": vars(error)}
            write_json(record, found)
        stored = read_json(record)
        errors.append(CacheError(**stored["error"]))
        num_bytes += int(stored["ends"][-1])
        on_row(min(start + SHARD_ROWS, len(rows)), len(rows))
    num_tokens = rows.shape[0] * (rows.shape[1] - 1)
    result = {
        "top_k": top_k,
        "temperature": temperature,
        "length": rows.shape[1] - 1,
        "num_rows": len(rows),
        "num_bytes": num_bytes,
        "bytes_per_token": num_bytes / num_tokens,
        "error": vars(mean_error(errors)),
    }
    write_json(folder / "index.json", result)
    return result


def _shard(
    rows: NDArray[np.int32], predict: Callable[[NDArray[np.int64]], Tensor], top_k: int, temperature: float, size: int
) -> tuple[list[bytes], CacheError]:
    blocks: list[bytes] = []
    errors: list[CacheError] = []
    for start in range(0, len(rows), size):
        logits = predict(rows[start : start + size, :-1].astype(np.int64))
        for one in logits:
            index, values = top_and_tail(one, top_k, temperature)
            ids, exact = index.cpu().numpy().astype(np.int32), values.cpu().numpy().astype(np.float32)
            blocks.append(encode_row(ids, exact))
            if len(errors) == 0 or start == 0:  # the first batch of each shard is compared with its full logits
                stored = decode_row(blocks[-1], len(ids), top_k)
                errors.append(cache_error(one, stored, temperature))
    return blocks, mean_error(errors)


def cache_error(
    logits: Tensor, stored: tuple[NDArray[np.int32], NDArray[np.float32]], temperature: float
) -> CacheError:
    """The stored distribution against the full one, in float64.

    Args:
        logits: (N, V), a tensor.
        stored: ids (N, K) and log-probabilities (N, K + 1).
        temperature: of the stored distribution.

    """
    import torch

    full = (logits.cpu().double() / temperature).log_softmax(dim=-1)
    index, values = torch.from_numpy(stored[0]).long(), torch.from_numpy(stored[1]).double()
    exact_top = full.gather(-1, index)
    tail_mass = (1 - exact_top.exp().sum(dim=-1)).clamp_min(0)
    rest = full.shape[-1] - index.shape[-1]
    spread = (values[:, -1:] - np.log(rest)).expand(-1, full.shape[-1])
    approximate = spread.scatter(-1, index, values[:, :-1])
    kl_total = (full.exp() * (full - approximate)).sum(dim=-1)
    kl_top = (exact_top.exp() * (exact_top - values[:, :-1])).sum(dim=-1)
    kl_tail = torch.xlogy(tail_mass, tail_mass) - tail_mass * values[:, -1]
    return CacheError(
        kl_rounding=float((kl_top + kl_tail).mean()),
        kl_total=float(kl_total.mean()),
        tail_mass=float(tail_mass.mean()),
        num_tokens=len(full),
    )


def mean_error(errors: Sequence[CacheError]) -> CacheError:
    """Means weighted by tokens."""
    weights = [error.num_tokens for error in errors]
    means = {
        name: float(np.average([getattr(error, name) for error in errors], weights=weights))
        for name in ("kl_rounding", "kl_total", "tail_mass")
    }
    return CacheError(**means, num_tokens=sum(weights))


class TeacherCache:
    """A cache on disk, row by row."""

    def __init__(self, folder: Path) -> None:
        """Open it and check every shard against its digest.

        Raises:
            StoreError: a shard was changed.

        """
        described = read_json(folder / "index.json")
        self.top_k, self.length = int(described["top_k"]), int(described["length"])
        self._shards: list[tuple[NDArray[np.uint8], list[int]]] = []
        for number in range(-(-int(described["num_rows"]) // SHARD_ROWS)):
            path = folder / f"shard-{number:05d}.bin"
            record = read_json(path.with_suffix(".json"))
            if digest_file(path) != record["sha256"]:
                raise StoreError(f"{path} does not match its SHA-256: remove the folder {folder} and run again")
            self._shards.append((np.memmap(path, np.uint8, mode="r"), [0, *record["ends"]]))

    def row(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """One row's ids (length, K) and log-probabilities (length, K + 1), the tail last."""
        shard, place = divmod(number, SHARD_ROWS)
        data, ends = self._shards[shard]
        return decode_row(data[ends[place] : ends[place + 1]].tobytes(), self.length, self.top_k)


def _num_planes(largest: int) -> int:
    return max(1, (largest.bit_length() + 7) // 8)


def _squeeze(data: bytes) -> bytes:
    """Huffman coding alone: the planes hold no repeats worth searching for."""
    packer = zlib.compressobj(level=6, wbits=-15, strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def _compand(log_probs: NDArray[np.float32]) -> NDArray[np.uint8]:
    share = np.sqrt(np.clip(log_probs, LOWEST, 0.0) / LOWEST)
    levels: NDArray[np.uint8] = np.rint(share * LEVELS).astype(np.uint8)
    return levels


def _expand(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (LOWEST * (levels.astype(np.float32) / LEVELS) ** 2).astype(np.float32)
