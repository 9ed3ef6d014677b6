from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.perplexity import Score, compare, read, spans, table


@given(st.integers(0, 300), st.integers(1, 50), st.data())
def test_every_token_but_the_first_is_scored_once(num_tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    found = list(spans(num_tokens, window, stride))
    scored = [token for _, first, end in found for token in range(first, end)]
    assert scored == list(range(1, num_tokens))
    assert all(end - start <= window for start, _, end in found)
    assert all(first - start >= min(window - stride, start + 1) for start, first, _ in found)


def test_the_sums_equal_a_plain_computation_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    base, ours = (torch.randn(150, 97, generator=generator).log_softmax(-1) for _ in range(2))
    targets = torch.randint(97, (150,), generator=generator)
    p, q = base.double().log_softmax(-1), ours.double().log_softmax(-1)
    nll, kl, flips = compare(base, ours, targets)
    assert nll == pytest.approx(-q[range(150), targets].sum().item(), rel=1e-6)
    assert kl == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5)
    assert flips == int((p.argmax(-1) != q.argmax(-1)).sum())
    assert compare(base, base, targets)[1:] == (0, 0)


def test_a_line_cut_by_a_kill_is_taken_out(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    whole = (
        '{"variant": "none", "digest": "ab/ab", "start": 0, "end": 9, "tokens": 8, "nll": 8.0, "kl": 0.0, "flips": 0}'
    )
    record.write_text(f'{whole}\n{{"variant')
    assert read(record) == [Score("none", "ab/ab", 0, 9, 8, 8.0, 0.0, 0)]
    assert record.read_text().endswith("}\n")


def test_the_table_takes_the_windows_that_all_variants_have() -> None:
    base = [
        Score("none", "a/a", start, start + 9, 8, 8 * nll, 0.0, 0) for start, nll in ((0, 1.0), (9, 2.0), (18, 9.0))
    ]
    ours = [Score("gptq", "b/a", start, start + 9, 8, 8 * nll, 0.8, 2) for start, nll in ((9, 2.5), (0, 1.5))]
    row = table(base + ours).splitlines()[-1]
    assert "| gptq | 7.39 [" in row
    assert "| 1.6487 [1.6487, 1.6487] | 0.1000 [0.1000, 0.1000] | 25.00% [25.00%, 25.00%] |" in row
