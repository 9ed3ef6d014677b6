"""Every example in a docstring is run: what a docstring shows is what the code does."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("benchmarks", "common", "evals", "finops", "pipeline")
    for path in (ROOT / package).rglob("*.py")
    if "    >>> " in path.read_text() and "plugin" not in path.parts
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
