"""The words of the product: an engineer who knows serving and evaluation understands every name and every sentence."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "finops", "evals", "pipeline")

NAMES = {
    "conclude": "record_and_decide",
    "standing": "recorded_candidates",
    "Standing": "RecordedCandidates",
    "contest": "ranking",
    "Contest": "Ranking",
    "Contestant": "RankedVariant",
    "revive": "from_json",
    "said": "text",
    "dear": "expensive",
    "dearer": "more expensive",
    "mend": "fix",
    "elsewhere": "external",
    "as_is": "external",
    "plane": "comparison group",
    "planes": "comparison groups",
    "comparable": "comparison group",
    "meaningless": "quality_invalid_reason",
    "meaningless_quality": "quality_invalid_reason",
    "Look": "Measurement",
    "first_look": "probe",
    "Bench": "EngineTrial",
    "interview": "selection",
    "Interview": "ItemSelection",
    "drawing": "sampling_order",
    "drawings": "orders",
    "Drawing": "SamplingOrder",
    "course": "trajectory",
    "Course": "Trajectory",
    "forecast": "flip_model, or estimate",
    "Forecast": "FlipModel, or an estimate",
    "Bill": "MachinePrice",
    "Place": "StageRef",
    "works": "stages",
    "focus_blind": "extra_rules",
    "hold": "reservation, or not promoted",
    "Hold": "Reservation",
    "HoldError": "ReservationError",
    "held_usd": "reserved_usd",
}
"""An identifier -> what to say."""
WORDS_FUNCTION = re.compile(r"^_?(?!num_)\w+_words$")
"""`fleet_words` and the like: describe_*."""

TEXTS = {
    r"told apart|tells? (\w+ ){0,2}apart": "significantly different",
    r"\bdear(er)?\b": "expensive, more expensive",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"by the means": "on average",
    r"beaten by": "is dominated by, is cheaper, is better",
    r"\bthe money\b": "spend",
    r"repeats' noise": "run-to-run variation",
    r"made elsewhere|\bas-is\b": "external checkpoint, quant=external",
    r"\binterview": "item selection",
    r"\bforecast": "flip model, estimate",
    r"\bplanes?\b": "comparison group, or: by cost and quality",
    r"\bcontest(s|ants?)?\b|\breviv": "ranking, from_json",
    r"\bmeaningless\b": "not valid",
    r"\bfirst look\b": "probe",
    r"\b(a|no|its|live|each|run's) holds?\b|\bheld by running|\bHold:": "reservation, not promoted",
    r"\b(analyse[ds]?|colours?|licences?|behaviour|minimis\w+|optimis\w+|normalis\w+|labelled|amortised)\b": (
        "US English"
    ),
}
"""Pattern in a string, docstring or comment -> what to say."""

RECORDED = {
    ("pipeline/record/tags.py", "plane"): "the tag's name in older MLflow records",
    ("pipeline/record/tags.py", "meaningless"): "the tag's name in older MLflow records",
    ("evals/json_form.py", "meaningless"): "the field's name in stored quality stages",
    ("evals/json_form.py", "drawing"): "the field's name in stored quality stages",
    ("pipeline/compress/registry.py", "as-is"): "the method's former name still works",
    ("pipeline/distill/teacher_cache.py", "plane"): "byte planes: the compression literature's word",
    ("pipeline/distill/teacher_cache.py", "planes"): "byte planes: the compression literature's word",
    ("pipeline/plan/plan.py", "meaningless"): "the text is an input of stored quality stages",
    ("pipeline/stages/quality.py", "meaningless"): "the input's name in stored quality stages",
}
"""(file, word) that stays, with the reason."""


def files() -> list[str]:
    found = [path.relative_to(ROOT).as_posix() for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if "/migrations/" not in path]


def names_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every identifier that a file defines or uses, with its line."""
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value, getattr(node, "lineno", 0)


def texts_in(source: str) -> Iterator[tuple[str, int]]:
    """Every line of a string, docstring or comment, with its number."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            for offset, line in enumerate(token.string.splitlines()):
                yield line, token.start[0] + offset


def old_words(path: str, source: str) -> list[str]:
    """What of a file is in the old words: `path:line: word: say ...`."""
    found = []
    for name, line in names_in(ast.parse(source)):
        instead = NAMES.get(name) or ("describe_*" if WORDS_FUNCTION.match(name) else None)
        if instead and (path, name) not in RECORDED:
            found.append(f"{path}:{line}: {name}: say {instead}")
    for text, line in texts_in(source):
        for pattern, instead in TEXTS.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                if (path, match[0].lower()) not in RECORDED:
                    found.append(f"{path}:{line}: {match[0]}: say {instead}")
    return found


@pytest.mark.parametrize("path", files())
def test_a_file_is_in_the_words_of_engineers(path: str) -> None:
    assert old_words(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("def revive(x): pass", "revive"),
        ("contested = 1", None),
        ("from a import standing", "standing"),
        ("x = f'{y} is dearer'", "dearer"),
        ('"""Not told apart."""', "told apart"),
        ("# the money", "the money"),
        ("num_words = 1", None),
        ("def fleet_words(): pass", "fleet_words"),
        ("x.course()", "course"),
    ],
)
def test_the_search_finds_what_it_must(source: str, word: str | None) -> None:
    found = old_words("pipeline/x.py", source)
    assert [line.split(": ")[1] for line in found] == ([word] if word else [])


def test_every_exception_is_still_needed() -> None:
    for (path, word), reason in RECORDED.items():
        assert word.lower() in (ROOT / path).read_text().lower(), f"{path} has no '{word}' any more ({reason})"
