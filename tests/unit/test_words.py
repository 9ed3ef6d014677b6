"""The words of the documents: none of the old ones, one spelling, no chains of semicolons, at most 100 columns."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD_WORDS = {
    r"\bconclud\w*|\bstanding\b|\bcontests?\b": "record and decide, recorded candidates, ranking",
    r"\brevived?\b": "from_json",
    r"\belsewhere\b": "external checkpoint",
    r"\bamounts\b": "cost rows",
    r"\bdear(er|est)?\b": "expensive",
    r"\btold apart\b|\btells? apart\b": "significantly different",
    r"\bmend(s|ed)?\b": "fix",
    r"\bforecasts?\b": "flip model (evals), estimate (pipeline)",
    r"\bfocus_blind\b": "extra_rules",
    r"\bThe money\b": "spend",
    r"\bby the means\b": "on average",
    r"repeats' noise|\bnoise of (a|the) (price|repeats)": "run-to-run variation",
    r"\binterviews?\b|\bdrawings?\b|\bcourse\b": "item selection, sampling order, trajectory",
    r"\b(a|the|its|one) Place\b|\ba Bill\b|\bplanned works\b": "StageRef, MachinePrice, stages",
    r"\bplanes?\b|\bcomparable\b": "comparison group",
    r"\bmeaningless\b": "quality_invalid_reason",
    r"\bBench\b|\bfirst_look\b": "EngineTrial, probe",
    r"\b(is|are|was|or) held\b|: hold\b|\bor hold\b|\bpromotes or holds\b": "not promoted",
    r"\b(a|an|the|its|live|every) holds?\b": "reservation",
    r"\bbeaten by\b": "is dominated by, lost to",
}
"""Pattern -> what to say instead."""
BRITISH = (
    r"\b(licen[c]es?|colours?|behaviours?|favou?red|labelled|learnt|judgement|centres?|misspelt|amortised|"
    r"(util|quant|optim|normal|organ|initial|recogn|summar|serial|general|analy)is(e|es|ed|ing|ation))\b"
)
"""Spellings of British English; the documents are in US English."""
FOLDERS: dict[str, Callable[[], Iterator[Path]]] = {
    "root": lambda: iter(sorted(ROOT.glob("*.md"))),
    "docs": lambda: (path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "log.md"),
    "examples": lambda: iter(sorted((ROOT / "examples").glob("*"))),
    "pages": lambda: iter(sorted((ROOT / "pipeline").rglob("*.html"))),
}
"""What is searched. docs/log.md keeps the words of its dates."""


def without_code(text: str) -> str:
    """Without code blocks and inline code: names of keys and files are what they are."""
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def found(pattern: str, text: str) -> list[str]:
    """Every place where a pattern matches, with its line."""
    lines = text.splitlines()
    return [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if re.search(pattern, line)]


def long_sentences(text: str) -> list[str]:
    """Sentences with two semicolons or more, outside of code and tables."""
    prose = "\n".join(line for line in without_code(text).splitlines() if not line.startswith("|"))
    sentences = re.split(r"(?<=[.!?:])\s+|\n\s*\n|\n\s*[-*\d]", prose)
    return [sentence for sentence in sentences if sentence.count(";") >= 2]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_old_words(folder: str) -> None:
    paths = list(FOLDERS[folder]())
    assert paths, f"{folder}: nothing to search"
    wrong = []
    for path in paths:
        text = re.sub(r"`[^`\n]+`", "``", path.read_text())
        for pattern, instead in OLD_WORDS.items():
            wrong += [f"{path.name}:{line} -> say: {instead}" for line in found(pattern, text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["root", "docs"])
def test_prose_is_us_english_in_short_sentences(folder: str) -> None:
    wrong = []
    for path in FOLDERS[folder]():
        text = re.sub(r"\]\([^)]*\)", "]", without_code(path.read_text()))
        wrong += [f"{path.name}:{line}" for line in found(BRITISH, text)]
        wrong += [f"{path.name}: a chain of semicolons: {sentence}" for sentence in long_sentences(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["root", "docs"])
def test_lines_have_at_most_100_columns(folder: str) -> None:
    """Code blocks and tables may be wider: they show what a program prints, or cannot be broken."""
    wrong = []
    for path in FOLDERS[folder]():
        if path.name == "claims.md":  # made by benchmarks/claims.py
            continue
        prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        wrong += [f"{path.name}: {line}" for line in prose.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert not wrong, "\n".join(wrong)


def test_the_search_finds_what_it_looks_for() -> None:
    text = "A dearer variant is held.\nThe licence; the plane; it is told apart."
    assert sum(bool(found(pattern, text)) for pattern in OLD_WORDS) == 4
    assert found(BRITISH, text)
    assert long_sentences(text)
    assert not found(BRITISH, without_code("`gate.utilisation`"))
