"""Evaluation items must not stand in the calibration text: word 13-grams that both share are looked for, and found
texts are left out.

A word is a run of letters or digits in lower case; punctuation separates words. Two texts overlap when they share 13
words in a row, the rule of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C). Of an item everything is compared
that a model is shown: passage, question, and the question continued by each choice. A piece of 8 to 12 words is
compared whole; a piece of fewer words says too little on its own ("what is the capital of france"), and an item that
has only such pieces is counted in `num_items_too_short`.

The texts' n-grams are hashed (64 bit) and the items stream past them; every match is compared word by word, so that a
collision changes nothing.

    >>> fox = Item("demo/0", ("The quick brown fox jumps over the lazy dog.",), ())
    >>> find_overlaps(["She wrote: the QUICK brown fox jumps over the lazy dog"], [fox]).matches[0].item
    'demo/0'
    >>> find_overlaps(["the quick brown fox jumps over the dog"], [fox]).matches
    {}
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from core.errors import AssetError
from core.files import digest_file
from evals.quality.embedded import EMBEDDED_TASKS

NUM_WORDS = 13
MIN_WORDS = 8
METHOD = f"word {NUM_WORDS}-grams (arXiv 2005.14165, appendix C); pieces of {MIN_WORDS} to {NUM_WORDS - 1} words whole"
WORD = re.compile(r"[^\W_]+")
MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Constants of splitmix64 (Steele, Lea, Flood 2014), which spreads a word's number over 64 bits."""
END = "\x00"
"""Stands between two fields while they are split into words."""
FOREIGN, LAST = -1, -2
"""Word numbers: a word that no text contains; the end of a field."""


@dataclass(frozen=True)
class Item:
    """One evaluation item as text."""

    item_id: str
    """`task/index`, the index in the task's evaluation split."""
    parts: tuple[str, ...]
    """What stands before the answer, in the prompt's order: passage, question."""
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """Where a text and an item share words."""

    item: str
    num_words: int


class ContaminationRecord(TypedDict):
    """What the check for evaluation items did, as an artifact's manifest says it."""

    status: str
    """`checked`, `partly checked` or `not checked`."""
    method: str
    num_texts_checked: int | None
    """None, as all counts, where nothing was compared."""
    num_texts_left_out: int | None
    not_checked: dict[str, str]
    """Task -> why its items were not compared."""
    num_items: NotRequired[dict[str, int]]
    num_items_too_short: NotRequired[dict[str, int]]
    left_out_by_task: NotRequired[dict[str, int]]


@dataclass(frozen=True)
class EvaluationSet:
    """The items that calibration text must not contain, and the tasks whose items are not here to be compared."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """Task -> Arrow file of its evaluation split."""
    not_checked: Mapping[str, str] = field(default_factory=dict)
    """Task -> why its items are not compared."""

    def key(self) -> dict[str, object]:
        """What the check depends on: the method and the items' digests, without paths."""
        digests = {task: digest_file(path) for task, path in self.files.items()}
        return {"method": METHOD, "items": digests, "not_checked": dict(self.not_checked)}


NOT_COMPARED = {
    "hub": "the hub's items are not on this machine before the evaluation",
    "files": "how the items of a task file of your own are shown to a model is not known here",
}
"""A suite's source -> why its items are not compared with calibration text."""


def evaluation_set(source: str, tasks: Sequence[str], data: Path | None) -> EvaluationSet:
    """The items of a suite's tasks.

    Args:
        source: `embedded` or `hub`, as in SuiteConfig.
        tasks: the suite's task names.
        data: the unpacked `hf_datasets/` folder; None where there is none.

    """
    if source != "embedded" or data is None:
        why = NOT_COMPARED.get(source, "no item data")
        return EvaluationSet({}, dict.fromkeys(tasks, why))
    files, not_checked = {}, {}
    for task in tasks:
        if task in EMBEDDED_TASKS and task in PARTS:
            folder = data / EMBEDDED_TASKS[task].folder
            files[task] = folder / "validation" / "data-00000-of-00001.arrow"
        else:
            not_checked[task] = "how its items are shown to a model is not known here"
    return EvaluationSet(files, not_checked)


Row = dict[str, Any]
"""An item of an evaluation set: the columns and their types are its own."""
Texts = tuple[tuple[str, ...], tuple[str, ...]]
"""What an item shows a model: the parts of its question, and the choices."""


def _of(*parts: str, choices: Callable[[Row], Sequence[str]]) -> Callable[[Row], Texts]:
    return lambda row: (tuple(str(row[name]) for name in parts), tuple(choices(row)))


def _columns(*names: str) -> Callable[[Row], Sequence[str]]:
    return lambda row: [str(row[name]) for name in names]


def _listed(row: Row) -> Sequence[str]:
    return [str(text) for text in row["choices"]["text"]]


def _winogrande(row: Row) -> Texts:
    return (), tuple(str(row["sentence"]).replace("_", str(row[name])) for name in ("option1", "option2"))


def _hellaswag(row: Row) -> Texts:
    return (_no_brackets(row["ctx"]),), tuple(_no_brackets(text) for text in row["endings"])


def _no_brackets(text: str) -> str:
    """Without WikiHow's `[title]`, `[step]`: lm-eval removes them before a model sees the text."""
    return re.sub(r"\[.*?\]", " ", text)


PARTS: dict[str, Callable[[Row], Texts]] = {
    "arc_easy": _of("question", choices=_listed),
    "arc_challenge": _of("question", choices=_listed),
    "piqa": _of("goal", choices=_columns("sol1", "sol2")),
    "openbookqa": _of("question_stem", choices=_listed),
    "sciq": _of("support", "question", choices=_columns("correct_answer", "distractor1", "distractor2", "distractor3")),
    "boolq": _of("passage", "question", choices=_columns()),
    "commonsense_qa": _of("question", choices=_listed),
    "social_iqa": _of("context", "question", choices=_columns("answerA", "answerB", "answerC")),
    "winogrande": _winogrande,
    "hellaswag": _hellaswag,
}
"""Task -> an item's row to what a model is shown: the parts before the answer, and the choices."""


def read_items(evaluation: EvaluationSet) -> Iterator[Item]:
    """Stream the items of all tasks, task after task.

    Raises:
        AssetError: an Arrow file cannot be read.

    """
    import pyarrow as pa  # type: ignore[import-untyped]

    for task, path in evaluation.files.items():
        index = 0
        try:
            with pa.memory_map(str(path)) as source:
                for batch in pa.ipc.open_stream(source):
                    for row in batch.to_pylist():
                        parts, choices = PARTS[task](row)
                        yield Item(f"{task}/{index}", parts, choices)
                        index += 1
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            unpacked = next((folder for folder in path.parents if (folder / "stage.json").is_file()), path.parent)
            raise AssetError(
                f"the items of '{task}' cannot be read from {path} ({type(error).__name__}: {error}): "
                f"remove the folder {unpacked} and run again, it is unpacked anew"
            ) from error


def words_of(text: str) -> list[str]:
    """Lower-case runs of letters and digits.

    >>> words_of("It's 3.5 km -- Don't!")
    ['it', 's', '3', '5', 'km', 'don', 't']
    """
    return WORD.findall(text.lower())


@dataclass
class Findings:
    """Which texts share words with which item, and what they were compared with."""

    matches: dict[int, Match] = field(default_factory=dict)
    """Number of a text -> the first item that it shares words with."""
    num_items: Counter[str] = field(default_factory=Counter)
    """Items of each task."""
    num_items_too_short: Counter[str] = field(default_factory=Counter)
    """Items of each task that have no piece long enough to compare."""


def find_overlaps(texts: Sequence[str], items: Iterable[Item], *, block: int = 2048) -> Findings:
    """Compare texts with a stream of items. Memory: about 70 bytes per word of the texts, and one block of items."""
    index = TextIndex.of(texts)
    findings = Findings()
    stream = iter(items)
    while batch := list(itertools.islice(stream, block)):
        _compare(index, batch, findings)
    return findings


@dataclass(frozen=True)
class TextIndex:
    """The n-grams of the calibration texts."""

    vocabulary: Mapping[str, int]
    stream: NDArray[np.int32]
    """Word numbers of all texts, one after another: shape (num_words,)."""
    owner: NDArray[np.int32]
    """For each position of the stream, the number of its text: shape (num_words,)."""
    grams: Mapping[int, tuple[NDArray[np.uint64], NDArray[np.int32]]]
    """n -> sorted hashes, and where in the stream each one stands: shapes (num_grams,)."""

    @staticmethod
    def of(texts: Sequence[str]) -> TextIndex:
        """Number the words of all texts and hash their runs of 8 to 13 words; no run goes over a text's end."""
        vocabulary: dict[str, int] = {}
        split = [words_of(text) for text in texts]
        stream = np.array([vocabulary.setdefault(word, len(vocabulary)) for words in split for word in words], np.int32)
        size_of = np.array([len(words) for words in split], dtype=np.int32)
        owner = np.repeat(np.arange(len(split), dtype=np.int32), size_of)
        mixed = mix(stream)
        grams = {}
        for size in range(MIN_WORDS, NUM_WORDS + 1):
            places = np.flatnonzero(owner[: max(0, len(owner) - size + 1)] == owner[size - 1 :]).astype(np.int32)
            hashes = hash_grams(mixed, places, size)
            order = np.argsort(hashes, kind="stable")
            grams[size] = (hashes[order], places[order])
        return TextIndex(vocabulary, stream, owner, grams)


def _compare(index: TextIndex, batch: Sequence[Item], findings: Findings) -> None:
    """Add what a batch of items shares with the texts to the findings."""
    kept = [[run for run in runs if len(run) >= MIN_WORDS] for runs in numbered_pieces(batch, index.vocabulary)]
    for item, runs in zip(batch, kept, strict=True):
        task = item.item_id.split("/")[0]
        findings.num_items[task] += 1
        if not runs:
            findings.num_items_too_short[task] += 1
    stream = np.array([number for runs in kept for run in runs for number in run], dtype=np.int32)
    size_of = np.array([len(run) for runs in kept for run in runs], dtype=np.int32)
    owner = np.repeat(np.arange(len(batch)), [sum(map(len, runs)) for runs in kept])
    mixed = mix(stream)
    num_foreign = np.concatenate([[0], np.cumsum(stream == FOREIGN)])
    for size, (hashes, places) in index.grams.items():
        starts = _starts(size_of, size)
        starts = starts[num_foreign[starts + size] == num_foreign[starts]]
        found = hash_grams(mixed, starts, size)
        left, right = np.searchsorted(hashes, found, "left"), np.searchsorted(hashes, found, "right")
        for hit in np.flatnonzero(left < right):
            start = int(starts[hit])
            for place in places[left[hit] : right[hit]].tolist():
                same = np.array_equal(index.stream[place : place + size], stream[start : start + size])
                if same and int(index.owner[place]) not in findings.matches:
                    findings.matches[int(index.owner[place])] = Match(batch[owner[start]].item_id, size)


def _starts(size_of: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Where n-grams of this size begin in a stream of pieces: 13 at every position of a long piece, else whole."""
    begin: NDArray[np.int64] = np.cumsum(size_of, dtype=np.int64) - size_of
    if size < NUM_WORDS:
        whole: NDArray[np.int64] = begin[size_of == size]
        return whole
    everywhere = np.arange(int(size_of.sum()), dtype=np.int64)
    inside: NDArray[np.int64] = everywhere[everywhere + size <= np.repeat(begin + size_of, size_of)]
    return inside


def numbered_pieces(batch: Sequence[Item], vocabulary: Mapping[str, int]) -> list[list[list[int]]]:
    """For each item the runs of words that no text may contain, as word numbers; every 13-gram of it in few words.

    All fields are split at once: a call per field costs more than the words.
    """
    fields = [text.replace(END, " ") for item in batch for text in (*item.parts, *item.choices)]
    words = re.findall(rf"[^\W_]+|{END}", "".join(f"{text} {END} " for text in fields).lower())
    number = {**vocabulary, END: LAST}.get
    numbers = list(map(number, words, itertools.repeat(FOREIGN)))
    ends: list[int] = np.flatnonzero(np.array(numbers) == LAST).tolist()
    runs = iter([numbers[begin:end] for begin, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)])
    return [
        _pieces(list(itertools.islice(runs, len(item.parts))), list(itertools.islice(runs, len(item.choices))))
        for item in batch
    ]


def _pieces(parts: list[list[int]], choices: list[list[int]]) -> list[list[int]]:
    """All parts in a row; each short part; the end of the parts continued by each choice; each short choice."""
    stem = list(itertools.chain.from_iterable(parts))
    tail = stem[-(NUM_WORDS - 1) :]
    found = [stem, *(tail + choice for choice in choices)]
    if len(parts) > 1:
        found += [part for part in parts if len(part) < NUM_WORDS]
    if stem:
        found += [choice for choice in choices if len(choice) < NUM_WORDS]
    return found


def hash_grams(
    mixed: NDArray[np.uint64], starts: NDArray[np.int32] | NDArray[np.int64], size: int
) -> NDArray[np.uint64]:
    """A 64-bit polynomial hash of the `size` values from each start on: shape (len(starts),)."""
    total: NDArray[np.uint64] = np.zeros(len(starts), dtype=np.uint64)
    for offset in range(size):
        total = (total * np.uint64(MIX[1]) + mixed[starts + offset]).astype(np.uint64, copy=False)
    return total


def mix(numbers: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Spread word numbers over 64 bits."""
    values = numbers.astype(np.int64).astype(np.uint64) + np.uint64(MIX[0])
    values = (values ^ (values >> np.uint64(30))) * np.uint64(MIX[1])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(MIX[2])
    return values ^ (values >> np.uint64(31))


def summary(evaluation: EvaluationSet, findings: Findings | None, num_checked: int) -> ContaminationRecord:
    """What the check did, for a stage's result: a task that was not compared never looks clean.

    `status` is `checked`, `partly checked` or `not checked`; counts are None where nothing was compared.
    """
    if findings is None or not evaluation.files:
        return {
            "status": "not checked",
            "method": METHOD,
            "num_texts_checked": None,
            "num_texts_left_out": None,
            "not_checked": dict(evaluation.not_checked) or {"*": "no evaluation items were given"},
        }
    by_task = Counter(match.item.split("/")[0] for match in findings.matches.values())
    return {
        "status": "partly checked" if evaluation.not_checked else "checked",
        "method": METHOD,
        "num_items": dict(findings.num_items),
        "num_items_too_short": dict(findings.num_items_too_short),
        "num_texts_checked": num_checked,
        "num_texts_left_out": len(findings.matches),
        "left_out_by_task": dict(by_task),
        "not_checked": dict(evaluation.not_checked),
    }
