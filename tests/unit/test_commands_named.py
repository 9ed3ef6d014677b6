"""Every command that a document, a help text, a comment or a message names is one that the command line takes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from core import command as command_module
from core.environments import set_defaults
from core.errors import ConfigError
from pipeline.cli.app import VERBS, dispatch
from pipeline.cli.compose import command_config
from tests.commands import MADE_FIRST, ROOT, Named, commands, of_text, verb_of

set_defaults()
COMMANDS = commands()
ONCE = {tuple(one.arguments): one for one in COMMANDS}
CONFIGURED = {verb for verb, one in VERBS.items() if one.place.startswith("pipeline.") and verb != "inspect"}


class ParsedError(Exception):
    """Raised in place of doing what a command says: its options are right."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__("parsed")
        self.options = options


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = command_module.Parser.parse

    def stop(self: Any, arguments: Sequence[str]) -> NoReturn:
        raise ParsedError(parse(self, arguments))

    monkeypatch.setattr(command_module.Parser, "parse", stop)


def check(arguments: list[str]) -> None:
    """Parse a command's options and compose its configuration. Raises `ConfigError` where it would not work."""
    if arguments[:1] == ["-sc"]:
        assert arguments[1].partition("=")[0] in ("install", "uninstall")
        return
    if arguments in (["--help"], ["--version"]):
        assert dispatch(arguments) == 0
        return
    if arguments[-1:] == ["--help"]:
        with pytest.raises(SystemExit) as ended:
            dispatch(arguments)
        assert ended.value.code == 0
        return
    with pytest.raises(ParsedError) as parsed:
        dispatch(arguments)
    options = parsed.value.options
    if verb_of(arguments)[0] in CONFIGURED:
        first = [one.partition(",")[0] if getattr(options, "multirun", False) else one for one in options.overrides]
        command_config([one for one in first if not one.startswith(MADE_FIRST)], options.config_dir)


@pytest.mark.parametrize("named", ONCE.values(), ids=[f"{one.place} {one.text}" for one in ONCE.values()])
def test_a_named_command_works(named: Named, parse_only: None, capsys: pytest.CaptureFixture[str]) -> None:
    check(named.arguments)


def test_they_are_found_everywhere() -> None:
    places = {one.place.split(":")[0] for one in COMMANDS}
    for place in ("README.md", "docs/finops.md", "pipeline/cli/app.py", "finops/cli/budgets.py", "conf/config.yaml",
                  "finops/controls/approvals.py", "finops/controls/budgets.py", "pipeline/promote.py"):  # fmt: skip
        assert place in places
    assert {verb_of(one.arguments)[0] for one in COMMANDS} == set(VERBS), "a verb that nothing names"


@pytest.mark.parametrize(
    "text",
    [
        "promte",
        "promote --rolback",
        "quant=int9",
        "budgets set x --period month",
        "frontier +out=x",
        "report --fromat csv",
        "ui --port x",
    ],
)
def test_one_that_does_not_work_is_found(text: str, parse_only: None) -> None:
    with pytest.raises(ConfigError):
        check(Named("here", text).arguments)


def test_a_command_ends_where_its_explanation_begins() -> None:
    text = (
        "    parsimony plan model=llama3-8b      the plan\nHF_TOKEN=x parsimony quant=int8 # comment\n"
        'Write `scripts/pipeline ui --port 8080`, or\n$ python -m pipeline report --reserved "NVIDIA  L4=0.4" > x\n'
        "parsimony quant=awq \\\n  suite=hub\nthe parsimony of it\n"
    )
    assert [one.arguments for one in of_text(text, "x")] == [
        ["plan", "model=llama3-8b"], ["quant=int8"], ["ui", "--port", "8080"],
        ["report", "--reserved", "NVIDIA  L4=0.4"], ["quant=awq", "suite=hub"],
    ]  # fmt: skip


def test_no_text_names_an_inner_module_as_a_command() -> None:
    wrong = re.compile(r"(?:python -m )(?:finops|pipeline)\.cli|\+(?:out|plane|port|num_trials|catalog|api)=")
    files = [
        path
        for pattern in ("README.md", "docs/**/*.md", "conf/**/*.yaml", "CHANGELOG.md")
        for path in ROOT.glob(pattern)
    ]
    files += [
        path for room in ("core", "finops", "evals", "pipeline", "benchmarks") for path in (ROOT / room).rglob("*.py")
    ]
    assert [str(path) for path in files if path.name != "log.md" and wrong.search(path.read_text())] == []
