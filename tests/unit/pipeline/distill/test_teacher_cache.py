from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import StoreError
from core.files import read_json
from pipeline.distill import teacher_cache
from pipeline.distill.teacher_cache import TeacherCache, cache_error, decode_row, encode_row, top_and_tail, write_cache


def language_logits(rng: np.random.Generator, num_tokens: int, vocab_size: int):
    """Logits like a language model's: a few likely tokens, a long tail."""
    import torch

    ranks = np.argsort(np.argsort(rng.normal(size=(num_tokens, vocab_size))))
    return torch.from_numpy(-1.2 * np.log1p(ranks) + 0.3 * rng.normal(size=ranks.shape)).float()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([50, 300, 70_000, 200_000]), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_ids_come_back_exactly_and_the_mass_is_one(seed: int, length: int, vocab_size: int, top_k: int) -> None:
    import torch

    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(length, vocab_size)) * rng.uniform(0.1, 8)).float()
    index, values = (one.numpy() for one in top_and_tail(logits, top_k, 1.0))
    ids, stored = decode_row(encode_row(index.astype(np.int32), values), length, top_k)
    assert (ids == np.sort(index, axis=1)).all()
    np.testing.assert_allclose(np.exp(stored.astype(np.float64)).sum(axis=1), 1, atol=2e-3)
    order = np.argsort(index, axis=1)
    exact = np.take_along_axis(values[:, :-1], order, axis=1)
    likely = exact > -3
    assert np.abs(stored[:, :-1] - exact)[likely].max(initial=0) < 0.06


def test_a_token_takes_under_300_bytes_and_little_is_lost() -> None:
    rng = np.random.default_rng(0)
    logits = language_logits(rng, 256, 49152)
    index, values = (one.numpy() for one in top_and_tail(logits, 128, 1.0))
    data = encode_row(index.astype(np.int32), values)
    assert len(data) / 256 < 300
    error = cache_error(logits, decode_row(data, 256, 128), 1.0)
    assert 0 <= error.kl_rounding < 2e-3
    assert error.kl_rounding <= error.kl_total


def test_the_error_is_the_divergence_from_the_full_distribution() -> None:
    import torch

    logits = language_logits(np.random.default_rng(1), 8, 60)
    index, values = (one.numpy() for one in top_and_tail(logits, 59, 2.0))
    error = cache_error(logits, (index.astype(np.int64), values), 2.0)
    assert error.kl_total == pytest.approx(0, abs=1e-6)  # one token is in the tail: nothing is lost
    mass = (logits.double() / 2).softmax(-1).min(-1).values
    assert error.tail_mass == pytest.approx(float(mass.mean()), rel=1e-3)
    assert error.num_tokens == 8
    uniform = torch.zeros(3, 60)
    index, values = (one.numpy() for one in top_and_tail(uniform, 6, 1.0))
    assert cache_error(uniform, (index, values), 1.0).tail_mass == pytest.approx(0.9)


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 90, size=(5, 9)).astype(np.int32)


def predict(tokens: np.ndarray):
    import torch

    table = torch.from_numpy(np.random.default_rng(7).normal(size=(90, 90)) * 3)
    return table[torch.from_numpy(tokens)].float()


def test_a_cache_gives_what_the_teacher_said(rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "SHARD_ROWS", 2)
    result = write_cache(rows, predict, tmp_path, top_k=8, temperature=1.5, batch_size=2)
    assert result["num_bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert result["bytes_per_token"] == result["num_bytes"] / 40
    cache = TeacherCache(tmp_path)
    for number in range(5):
        index, values = cache.row(number)
        exact_index, exact = top_and_tail(predict(rows[number, :-1].astype(np.int64)), 8, 1.5)
        assert (index == exact_index.sort(-1).values.numpy()).all()
        np.testing.assert_allclose(values[:, -1], exact[:, -1].numpy(), atol=2e-2)


def test_a_killed_writer_goes_on_with_the_next_shard(
    rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "SHARD_ROWS", 2)
    whole = write_cache(rows, predict, tmp_path / "whole", top_k=8, temperature=1.0)

    class KilledError(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 4:
            raise KilledError

    with pytest.raises(KilledError):
        write_cache(rows, predict, tmp_path / "cut", top_k=8, temperature=1.0, on_row=kill)
    asked: list[int] = []

    def spied(tokens: np.ndarray):
        asked.append(len(tokens))
        return predict(tokens)

    assert write_cache(rows, spied, tmp_path / "cut", top_k=8, temperature=1.0) == whole
    assert asked == [1]
    assert read_json(tmp_path / "cut" / "index.json") == read_json(tmp_path / "whole" / "index.json")


def test_a_changed_cache_is_refused(rows: np.ndarray, tmp_path: Path) -> None:
    write_cache(rows, predict, tmp_path, top_k=8, temperature=1.0)
    path = tmp_path / "shard-00000.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="SHA-256"):
        TeacherCache(tmp_path)
