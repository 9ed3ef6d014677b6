"""Messages name commands that work as typed."""

import sys

import pytest

from core.command import Parser, as_typed, command
from core.errors import ConfigError


def test_a_command_is_worded_as_the_program_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARSIMONY_COMMAND", raising=False)
    monkeypatch.setattr(sys, "argv", ["/somewhere/pipeline/__main__.py"])
    assert command("approvals approve 3") == "python -m pipeline approvals approve 3"
    monkeypatch.setattr(sys, "argv", ["/env/bin/parsimony", "plan"])
    assert command("approvals approve 3") == "parsimony approvals approve 3"
    monkeypatch.setenv("PARSIMONY_COMMAND", "scripts/pipeline")
    assert command("approvals approve 3") == "scripts/pipeline approvals approve 3"
    assert command() == "scripts/pipeline"


def test_examples_of_a_help_text_are_worded_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSIMONY_COMMAND", "scripts/pipeline")
    text = "parsimony plan\n    HF_TOKEN=x parsimony run a=b\nthe package parsimony is `parsimony ui`: $(parsimony ui)"
    assert as_typed(text) == (
        "scripts/pipeline plan\n    HF_TOKEN=x scripts/pipeline run a=b\n"
        "the package parsimony is `scripts/pipeline ui`: $(scripts/pipeline ui)"
    )


def test_options_may_stand_anywhere_and_are_never_abbreviated() -> None:
    commands = Parser(prog="x")
    commands.add_argument("overrides", nargs="*")
    commands.add_argument("--out")
    options = commands.parse(["a=1", "--out", "folder", "b=2"])
    assert (options.overrides, options.out) == (["a=1", "b=2"], "folder")
    with pytest.raises(ConfigError, match="x --ou: unknown option; did you mean '--out'"):
        commands.parse(["--ou", "folder"])
    with pytest.raises(ConfigError, match="expected one argument"):
        commands.parse(["--out"])
