import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.files import read_json
from core.store import StageStore
from pipeline.config import CalibConfig
from pipeline.data.calibration import end_token, pack, sha256
from pipeline.data.contamination import EvaluationSet, evaluation_set
from pipeline.types import Artifact
from tests.unit.pipeline.data_tools import calibration_tokens

END = 1


def encode(text: str) -> list[int]:
    return [*(int(word) for word in text.split()), END]


def calib(num_samples: int, length: int, seed: int = 0) -> CalibConfig:
    return CalibConfig(name="test", sources=[], num_samples=num_samples, length=length, seed=seed)


TEXTS = st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=12).map(lambda ids: " ".join(map(str, ids))))


@given(TEXTS, st.integers(1, 4), st.integers(1, 8), st.integers(0, 3))
def test_packing_cuts_the_drawn_texts_and_pads_nothing(texts: list[str], samples: int, length: int, seed: int) -> None:
    available = sum(len(encode(text)) for text in texts)
    if available < samples * length:
        with pytest.raises(ConfigError, match=f"the sources have {available}"):
            pack(texts, encode, calib(samples, length, seed), EvaluationSet())
        return
    packed = pack(texts, encode, calib(samples, length, seed), EvaluationSet())
    assert packed.tokens.shape == (samples, length)
    assert packed.tokens.dtype == np.int64
    stream = [token for index in packed.used for token in encode(texts[index])]
    assert packed.tokens.ravel().tolist() == stream[: samples * length]
    assert len(set(packed.used)) == len(packed.used)
    without_last = sum(len(encode(texts[index])) for index in packed.used[:-1])
    assert without_last < samples * length  # no more texts than are needed
    again = pack(texts, encode, calib(samples, length, seed), EvaluationSet())
    assert again.used == packed.used
    assert packed.left_out == {}
    assert packed.findings is None


def numbers(start: int, count: int = 16) -> str:
    return " ".join(str(number) for number in range(start, start + count))


@pytest.fixture
def boolq(tmp_path: Path):
    """Makes a BoolQ file with these passages and returns it as an evaluation set."""
    import pyarrow as pa

    def make(*passages: str) -> EvaluationSet:
        evaluation = evaluation_set("embedded", ["boolq"], tmp_path / "data")
        path = evaluation.files["boolq"]
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([{"passage": one, "question": "is it", "answer": True} for one in passages])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return evaluation

    return make


def test_a_shared_text_is_left_out_and_the_next_one_drawn(boolq) -> None:
    texts = [numbers(100 * number + 2) for number in range(8)]
    first = pack(texts, encode, calib(2, 17), EvaluationSet())
    evaluation = boolq(numbers(9000), texts[first.used[0]])
    packed = pack(texts, encode, calib(2, 17), evaluation)
    assert packed.left_out[first.used[0]].item == "boolq/1"
    assert packed.used[0] == first.used[1]
    assert first.used[0] not in packed.used
    assert packed.tokens.shape == (2, 17)
    assert packed.findings is not None
    assert packed.findings.num_items == {"boolq": 2}


def test_a_replacement_is_compared_as_well(boolq) -> None:
    texts = [numbers(100 * number + 2) for number in range(6)]
    packed = pack(texts, encode, calib(1, 17), boolq(*texts[1:]))
    assert packed.used == (0,)
    assert set(packed.left_out) <= {1, 2, 3, 4, 5}
    with pytest.raises(ConfigError, match=r"without the 6 texts that share words .* \(boolq/0, boolq/1, .*, \.\.\.\)"):
        pack(texts, encode, calib(1, 17), boolq(*texts))


@pytest.fixture
def base(tmp_path: Path) -> Artifact:
    """A folder with a tokenizer that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[unk]", "</s>", "<user>", *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "base"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "[unk]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [END], "model_type": "llama"}))
    return Artifact(folder, "digest-of-base", 1, "none", None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    paragraphs = [" ".join(f"w{(number + step) % 60}" for step in range(15)) for number in range(20)]
    path.write_text("\n\n".join(paragraphs))
    return path


def test_the_stage_keeps_texts_licences_and_what_was_compared(base, source, tmp_path, boolq) -> None:
    config = CalibConfig("own", [str(source)], num_samples=4, length=16)
    store = StageStore(tmp_path / "store")
    paragraphs = source.read_text().split("\n\n")
    found = calibration_tokens(config, base, store, boolq(paragraphs[3], paragraphs[4]))
    result = found.result
    texts = read_json(found.folder / "texts.json")
    assert np.load(found.folder / "tokens.npy").shape == (4, 16)
    assert result["licenses"] == {"own.txt": "unknown (the user's own file)"}
    assert result["num_texts_by_source"] == {"own.txt": result["num_texts"]} == {"own.txt": len(texts["sha256"])}
    assert set(texts["sha256"]) <= {sha256(paragraph) for paragraph in paragraphs}
    assert result["contamination"]["status"] == "checked"
    assert result["contamination"]["num_texts_left_out"] == len(texts["left_out"])
    left_out = {entry["sha256"] for entry in texts["left_out"]}
    assert not left_out & set(texts["sha256"])
    # Paragraphs overlap each other: those that share 13 words with the two passages may not be used either.
    near = {sha256(paragraphs[number]) for number in range(1, 7)}
    assert left_out <= near
    assert not near & set(texts["sha256"])
    assert str(tmp_path) not in json.dumps(result)


def test_the_key_follows_the_evaluation_items(base, source, tmp_path, boolq) -> None:
    config = CalibConfig("own", [str(source)], num_samples=2, length=16)
    store = StageStore(tmp_path / "store")
    unchecked = calibration_tokens(config, base, store)
    assert unchecked.result["contamination"]["status"] == "not checked"
    checked = calibration_tokens(config, base, store, boolq("nothing of it " * 5))
    assert checked.key != unchecked.key
    assert checked.result["digest"] == unchecked.result["digest"]
    assert calibration_tokens(config, base, store, boolq("nothing of it " * 5)).reused
    hub = calibration_tokens(config, base, store, evaluation_set("hub", ["mmlu"], None))
    assert hub.result["contamination"]["status"] == "not checked"
    assert "mmlu" in hub.result["contamination"]["not_checked"]


def test_a_chat_template_wraps_every_text(base, source, tmp_path) -> None:
    config = CalibConfig("own", [str(source)], num_samples=2, length=17, chat_template=True)
    store = StageStore(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"(?s)no chat template.*calib\.chat_template=false"):
        calibration_tokens(config, base, store)
    template = "{% for m in messages %}{{ '<user> ' + m['content'] + ' </s>' }}{% endfor %}"
    (base.path / "chat_template.jinja").write_text(template)
    found = calibration_tokens(config, base, store)
    tokens = np.load(found.folder / "tokens.npy")
    assert found.result["chat_template"] is True
    assert tokens[:, 0].tolist() == [2, 2]
    assert tokens[:, -1].tolist() == [END, END]
    assert not np.isin(tokens[:, 1:-1], [0, 1, 2]).any()
    plain = calibration_tokens(CalibConfig("own", [str(source)], num_samples=2, length=17), base, store)
    assert plain.key != found.key
    assert plain.result["chat_template"] is False
    assert not (np.load(plain.folder / "tokens.npy") == 2).any()


def test_an_unknown_source_names_the_known_ones(base, tmp_path) -> None:
    config = CalibConfig("x", ["sqad"], num_samples=1, length=8)
    with pytest.raises(ConfigError, match=r"squad, coqa, drop, lambada; did you mean 'squad'\?"):
        calibration_tokens(config, base, StageStore(tmp_path))


def test_the_end_token_is_the_checkpoints_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="eos_token_id"):
        end_token(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert end_token(tmp_path) == 0
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert end_token(tmp_path) == 7
