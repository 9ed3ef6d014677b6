"""How much of the code is typed as Any: a bar per package, counted over the names of the code, not over its words."""

import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_PER_1000_LINES = {"core": 8, "finops": 4, "evals": 5, "pipeline": 6}


def num_any(source: str) -> int:
    """Occurrences of the name Any; comments and texts do not count."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.NAME and token.string == "Any" for token in tokens)


def test_names_are_counted_and_words_are_not() -> None:
    source = '"""Any number."""\nfrom typing import Any\n# Any\nx: dict[str, Any] = {"Any": 1}\n'
    assert num_any(source) == 2


@pytest.mark.parametrize("package", MOST_PER_1000_LINES)
def test_any_is_rare(package: str) -> None:
    sources = {path: path.read_text() for path in (ROOT / package).rglob("*.py")}
    num_lines = sum(len(source.splitlines()) for source in sources.values())
    counts = {str(path.relative_to(ROOT)): found for path, source in sources.items() if (found := num_any(source))}
    assert num_lines > 500
    rate = 1000 * sum(counts.values()) / num_lines
    most = dict(sorted(counts.items(), key=lambda item: -item[1])[:5])
    assert rate <= MOST_PER_1000_LINES[package], f"{rate:.1f} per 1,000 lines of {package}, most in {most}"
