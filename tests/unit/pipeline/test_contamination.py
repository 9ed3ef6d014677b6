from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import AssetError
from evals.quality.embedded import EMBEDDED_TASKS
from pipeline.data.contamination import (
    MIN_WORDS,
    NUM_WORDS,
    PARTS,
    EvaluationSet,
    Findings,
    Item,
    evaluation_set,
    find_overlaps,
    read_items,
    summary,
    words_of,
)

WORDS = [f"w{number}" for number in range(40)]
LONG = " ".join(WORDS[:20])


def matches(texts: list[str], *items: Item) -> dict[int, str]:
    return {number: match.item for number, match in find_overlaps(texts, items).matches.items()}


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not() -> None:
    item = Item("t/0", (LONG,), ())
    assert matches(["a " + " ".join(WORDS[3:16]) + " b"], item) == {0: "t/0"}
    assert matches(["a " + " ".join(WORDS[3:15]) + " b"], item) == {}


def test_case_and_punctuation_do_not_hide_an_overlap() -> None:
    text = "It's 3.5 km, said the OLD man; nobody -- not even he -- believed it!"
    item = Item("t/0", (text,), ())
    assert matches(["so: it ' s 3 . 5 km said the old man nobody not even he believed it"], item) == {0: "t/0"}


def test_short_pieces_are_compared_whole_and_shorter_ones_are_counted() -> None:
    eight, seven = " ".join(WORDS[:8]), " ".join(WORDS[:7])
    assert matches([f"x {eight} y"], Item("t/0", (eight,), ())) == {0: "t/0"}
    found = find_overlaps([f"x {seven} y"], [Item("t/0", (seven,), ())])
    assert found.matches == {}
    assert found.num_items == {"t": 1}
    assert found.num_items_too_short == {"t": 1}
    assert matches([" ".join(WORDS[:9])], Item("t/0", (" ".join(WORDS[:10]),), ())) == {}


def test_the_question_is_continued_by_every_choice() -> None:
    question, first, second = " ".join(WORDS[:10]), " ".join(WORDS[20:24]), " ".join(WORDS[30:34])
    item = Item("t/7", (question,), (first, second))
    assert matches([f"{' '.join(WORDS[2:10])} {second} {'z ' * 5}"], item) == {}  # 12 words of the 14
    assert matches([f"{' '.join(WORDS[1:10])} {second}"], item) == {0: "t/7"}
    assert matches([f"{first} {second} " + " ".join(WORDS[10:20])], item) == {}


def test_a_short_question_after_a_long_passage_is_compared_alone() -> None:
    question = " ".join(f"q{number}" for number in range(9))
    assert matches([f"and {question} then"], Item("boolq/1", (LONG, question), ())) == {0: "boolq/1"}


def test_no_run_goes_over_the_end_of_a_text_or_an_item() -> None:
    half = " ".join(WORDS[:10]), " ".join(WORDS[10:20])
    assert matches(list(half), Item("t/0", (LONG,), ())) == {}
    assert matches([LONG], Item("t/0", (half[0] + " other",), ()), Item("t/1", ("other " + half[1],), ())) == {}


def test_every_copy_of_a_text_is_found() -> None:
    assert matches([LONG, "nothing here", LONG + " end"], Item("t/0", (LONG,), ())) == {0: "t/0", 2: "t/0"}


def brute_force(text: str, item: Item) -> bool:
    """The rule, directly: runs of 13 words of a long piece, short pieces whole."""
    words = words_of(text)
    runs = {tuple(words[a : a + n]) for n in range(MIN_WORDS, NUM_WORDS + 1) for a in range(len(words) - n + 1)}
    stem = words_of(" ".join(item.parts))
    found = [stem, *(words_of(part) for part in item.parts), *(stem + words_of(choice) for choice in item.choices)]
    if stem:
        found += [words_of(choice) for choice in item.choices]
    for piece in found:
        if len(piece) >= NUM_WORDS:
            if any(tuple(piece[a : a + NUM_WORDS]) in runs for a in range(len(piece) - NUM_WORDS + 1)):
                return True
        elif len(piece) >= MIN_WORDS and tuple(piece) in runs:
            return True
    return False


SENTENCES = st.lists(st.sampled_from(["a", "b"]), max_size=30).map(" ".join)


@given(st.lists(SENTENCES, max_size=4), st.lists(SENTENCES, min_size=1, max_size=3), st.lists(SENTENCES, max_size=3))
def test_the_index_agrees_with_the_rule(texts: list[str], parts: list[str], choices: list[str]) -> None:
    # Two words only, so that overlaps, repeats and many matches of one run are common.
    items = [Item("t/0", tuple(parts), tuple(choices)), Item("t/1", tuple(choices), tuple(parts))]
    found = find_overlaps(texts, items, block=1).matches
    for number, text in enumerate(texts):
        expected = [item.item_id for item in items if brute_force(text, item)]
        assert (number in found) == bool(expected)
        if expected:
            assert found[number].item in expected


def test_nul_characters_in_an_item_do_no_harm() -> None:
    assert matches([LONG], Item("t/0", (LONG.replace(" ", " \x00 "),), ("\x00",))) == {0: "t/0"}


def test_every_embedded_task_has_its_columns() -> None:
    assert set(PARTS) == set(EMBEDDED_TASKS)


ROWS = {
    "arc_easy": {"id": "x", "question": "q", "choices": {"text": ["c1", "c2"], "label": ["A", "B"]}, "answerKey": "A"},
    "piqa": {"goal": "q", "sol1": "c1", "sol2": "c2", "label": 0},
    "openbookqa": {"question_stem": "q", "choices": {"text": ["c1", "c2"], "label": ["A", "B"]}, "answerKey": "A"},
    "boolq": {"question": "q", "answer": True, "passage": "p"},
    "winogrande": {"sentence": "the _ s", "option1": "c1", "option2": "c2", "answer": "1"},
    "hellaswag": {"ctx": "q [title] r", "endings": ["c1 [step] d", "c2"], "label": "0"},
    "social_iqa": {"context": "p", "question": "q", "answerA": "c1", "answerB": "c2", "answerC": "c3", "label": "1"},
    "sciq": {
        "question": "q",
        "distractor3": "d3",
        "distractor1": "d1",
        "distractor2": "d2",
        "correct_answer": "c",
        "support": "p",
    },
}
EXPECTED = {
    "arc_easy": (("q",), ("c1", "c2")),
    "piqa": (("q",), ("c1", "c2")),
    "openbookqa": (("q",), ("c1", "c2")),
    "boolq": (("p", "q"), ()),
    "winogrande": ((), ("the c1 s", "the c2 s")),
    "hellaswag": (("q   r",), ("c1   d", "c2")),
    "social_iqa": (("p", "q"), ("c1", "c2", "c3")),
    "sciq": (("p", "q"), ("c", "d1", "d2", "d3")),
}


def write_items(path: Path, rows: list[dict]) -> None:
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("task", ROWS)
def test_items_are_read_as_a_model_sees_them(task: str, tmp_path: Path) -> None:
    evaluation = evaluation_set("embedded", [task], tmp_path)
    write_items(evaluation.files[task], [ROWS[task]] * 3)
    parts, choices = EXPECTED[task]
    assert list(read_items(evaluation)) == [Item(f"{task}/{index}", parts, choices) for index in range(3)]


def test_a_damaged_item_file_names_itself(tmp_path: Path) -> None:
    evaluation = evaluation_set("embedded", ["boolq"], tmp_path)
    with pytest.raises(AssetError, match="'boolq' cannot be read"):
        list(read_items(evaluation))
    write_items(evaluation.files["boolq"], [{"question": "q"}])
    with pytest.raises(AssetError, match="'boolq' cannot be read"):
        list(read_items(evaluation))
    evaluation.files["boolq"].write_bytes(b"no arrow")
    with pytest.raises(AssetError, match="'boolq' cannot be read"):
        list(read_items(evaluation))


def test_what_was_not_compared_is_never_clean(tmp_path: Path) -> None:
    hub = evaluation_set("hub", ["mmlu", "arc_easy"], tmp_path)
    said = summary(hub, None, 0)
    assert said["status"] == "not checked"
    assert set(said["not_checked"]) == {"mmlu", "arc_easy"}
    assert said["num_texts_left_out"] is None
    assert summary(EvaluationSet(), None, 0)["not_checked"] == {"*": "no evaluation items were given"}
    half = evaluation_set("embedded", ["boolq", "novel_task"], tmp_path)
    said = summary(half, Findings(), 3)
    assert said["status"] == "partly checked"
    assert list(said["not_checked"]) == ["novel_task"]
    assert summary(evaluation_set("embedded", ["boolq"], tmp_path), Findings(), 3)["status"] == "checked"


def test_the_key_changes_with_the_items_and_holds_no_path(tmp_path: Path) -> None:
    keys = []
    for name, question in (("one", "q"), ("two", "q"), ("three", "other")):
        evaluation = evaluation_set("embedded", ["boolq"], tmp_path / name)
        write_items(evaluation.files["boolq"], [{**ROWS["boolq"], "question": question}])
        keys.append(evaluation.key())
    assert keys[0] == keys[1] != keys[2]
    assert EvaluationSet().key() != keys[0]
