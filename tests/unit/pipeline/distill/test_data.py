import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import AssetError, ConfigError
from pipeline.config import DistillConfig, DistillDataConfig
from pipeline.distill import data
from pipeline.distill.losses import IGNORED
from pipeline.stages.base import LocalCheckpoint
from pipeline.stages.teacher import TrainingRows
from pipeline.types import Artifact


class Letters:
    """A tokenizer of single letters."""

    def encode(self, text: str, add_special_tokens: bool):
        assert not add_special_tokens
        return type("Encoding", (), {"ids": [ord(letter) for letter in text]})


def test_rows_overlap_by_one_and_hold_every_token_once() -> None:
    texts = ["abcde", "fghij", "klm"]
    rows, used = data.pack_rows(texts, Letters(), DistillDataConfig(length=4, seed=3), end=0)
    assert used == 3
    assert rows.shape == (3, 5)
    assert (rows[1:, 0] == rows[:-1, -1]).all()
    order = np.random.default_rng(3).permutation(3)
    stream = [token for index in order for token in [*map(ord, texts[index]), 0]]
    assert [*rows[:, :-1].flatten(), rows[-1, -1]] == stream[:13]


def test_a_limit_on_tokens_holds() -> None:
    rows, used = data.pack_rows(["abcdefgh"] * 9, Letters(), DistillDataConfig(length=4, max_tokens=16), end=0)
    assert (rows.shape, used) == ((4, 5), 2)


def test_too_little_text_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="one sequence of 16 tokens needs 17 tokens, there are 4"):
        data.pack_rows(["abc"], Letters(), DistillDataConfig(length=16), end=0)


@given(st.integers(1, 20), st.integers(0, 5), st.integers(1, 4))
def test_each_pass_takes_every_row_once_in_an_order_of_its_own(num_rows: int, seed: int, passes: int) -> None:
    rows = np.arange(num_rows * 3).reshape(num_rows, 3).astype(np.int32)
    samples = data.Samples(rows, passes * num_rows, seed)
    drawn = [int(samples[number]["input_ids"][0]) // 3 for number in range(len(samples))]
    for start in range(0, len(drawn), num_rows):
        assert sorted(drawn[start : start + num_rows]) == list(range(num_rows))
    jumping = data.Samples(rows, passes * num_rows, seed)  # a resumed run asks from the middle
    backwards = [int(jumping[number]["input_ids"][0]) // 3 for number in reversed(range(len(samples)))]
    assert backwards[::-1] == drawn
    assert drawn == [data.row_of(number, num_rows, seed) for number in range(len(samples))]


def test_labels_are_the_next_tokens_and_prompts_are_not_learnt() -> None:
    item = data.Samples(np.arange(10, 16, dtype=np.int32)[None], 1, 0, num_ignored=2)[0]
    assert item["input_ids"].tolist() == [10, 11, 12, 13, 14]
    assert item["labels"].tolist() == [IGNORED, IGNORED, 13, 14, 15]


@pytest.fixture
def base(tiny: Path) -> Artifact:
    return Artifact(tiny, "digest", 1, "none", None)


def test_files_of_every_kind_are_read(tmp_path: Path, base: Artifact) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["the cat sees a dog", "one red house", "two blue cat"]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text, "more": 1}) for text in texts))
    table = pa.table({"text": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    found = [data.source_texts(str(tmp_path / f"a{suffix}"), None) for suffix in data.SUFFIXES]
    assert found == [texts] * 4
    one = DistillDataConfig(sources=[str(tmp_path / "a.txt")], length=4)
    made = data.make_rows(one, base.path, None, tmp_path)
    rows = np.load(tmp_path / "rows.npy", allow_pickle=False)
    assert rows.shape == (made["num_rows"], 5)
    assert data.make_rows(one, base.path, None, tmp_path)["digest"] == made["digest"]
    given = LocalCheckpoint(base.path, base.digest)
    before = TrainingRows(given, DistillConfig(data=one)).key
    (tmp_path / "a.txt").write_text("the dog runs " * 5)
    assert data.make_rows(one, base.path, None, tmp_path)["digest"] != made["digest"]
    assert TrainingRows(given, DistillConfig(data=one)).key != before


def test_bad_sources_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'squat': there is no such file.*did you mean 'squad'"):
        data.check_sources(["squat"])
    (tmp_path / "a.doc").write_text("")
    with pytest.raises(ConfigError, match=r"files may be \.txt"):
        data.check_sources([str(tmp_path / "a.doc")])
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(AssetError, match="line 2 has no 'text'"):
        data.source_texts(str(tmp_path / "b.jsonl"), None)
