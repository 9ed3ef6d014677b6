import os
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.files import canonical_json, digest_json, plain, write_atomic

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=5))
def test_the_digest_does_not_depend_on_the_order_of_keys(value: dict) -> None:
    assert digest_json(value) == digest_json(dict(reversed(value.items())))


def typed(value: object) -> object:
    """A value whose equality tells False from 0 and 0 from 0.0, and does not see the order of keys."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return [typed(item) for item in value] if isinstance(value, list) else repr(value)


@given(values, values)
@example([False, False], [False, 0])
@example({"a": 1, "b": 2}, {"b": 2, "a": 1})
def test_equal_text_means_equal_value(one: object, other: object) -> None:
    assert (canonical_json(one) == canonical_json(other)) == (typed(plain(one)) == typed(plain(other)))


def test_money_stays_exact() -> None:
    assert plain({"usd": Decimal("0.10")}) == {"usd": "0.10"}


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def crash(_: int) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="gone"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
