"""The commands that documents, help texts and comments name, run for real: a run as its plan, servers by their help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finops.ledger.ledger import Ledger
from pipeline.cli.app import VERBS
from tests.commands import MADE_FIRST, ROOT, commands, verb_of
from tests.unit.finops.every_kind import NOW, fill

pytestmark = pytest.mark.integration
LONG = ("ui", "tune", "noise", "metrics")
"""They serve until they are stopped, or measure for minutes or hours."""


def first_of_each_verb() -> dict[str, list[str]]:
    """Each verb's first command, in the form in which it ends soon."""
    found: dict[str, list[str]] = {}
    for named in commands():
        verb, rest = verb_of(named.arguments)
        if rest[-1:] != ["--help"] and not any(one.startswith(MADE_FIRST) for one in rest):
            found.setdefault(verb, [verb, "--help"] if verb in LONG else [verb, *rest])
    found["run"] = [*found["run"], "dry_run=true"]
    return found


COMMANDS = first_of_each_verb()


def run(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PARSIMONY_LEDGER_URL": f"sqlite:///{folder}/finops.db"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120, env=environment | variables,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a ledger of its own."""
    place = tmp_path_factory.mktemp("commands")
    ledger = Ledger(str(place / "finops.db"), clock=lambda: NOW)
    fill(ledger)
    ledger.close()
    return place


@pytest.mark.parametrize("verb", VERBS)
def test_a_named_command_of_each_verb_does_its_work_or_says_in_a_sentence_why_not(verb: str, folder: Path) -> None:
    configured = VERBS[verb].place.startswith("pipeline.") and verb != "inspect"  # which takes folders alone
    store = [f"tracking.uri=sqlite:///{folder}/mlflow.db", f"home={folder}/home"]
    arguments = [one for one in COMMANDS[verb] if not one.startswith("tracking.uri=")]
    ended = run([*arguments, *store] if configured else arguments, folder)
    assert "Traceback" not in ended.stderr, ended.stderr
    nothing_there = {
        "inspect",
        "verify",
        "frontier",
        "reprice",
        "promote",
        "rollback",
        "focus",
        "ingest",
        "prices",
        "approvals",
    }
    assert ended.returncode in ((0, 2) if verb in nothing_there else (0,)), ended.stderr
    assert ended.stdout if ended.returncode == 0 else ended.stderr.startswith("error: ")


def test_a_program_reads_an_error_and_no_decision(folder: Path) -> None:
    ended = run(["promote", "--json", f"tracking.uri=sqlite:///{folder}/mlflow.db", f"home={folder}/home"], folder)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "no run is recorded" in ended.stderr


def test_a_budget_and_an_approval_are_found_by_the_commands_that_errors_name(folder: Path, tmp_path: Path) -> None:
    place = [f"home={tmp_path}/home", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "quant=int8"]
    ledger = f"sqlite:///{tmp_path}/own finops.db"
    settings = [f"finops.ledger.uri='{ledger}'", "finops.approval.threshold_usd=0.0000001"]
    waiting = run([*place, *settings], folder, PARSIMONY_USER="ann")
    assert waiting.returncode == 3, waiting.stderr
    line = next(one for one in waiting.stderr.splitlines() if "approvals approve" in one)
    typed = line.partition("runs: ")[2]
    assert typed == f"python -m pipeline approvals approve 1 --ledger '{ledger}'"
    shell = typed.replace("python", sys.executable, 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PARSIMONY_USER": "bob"}
    done = subprocess.run(shell, shell=True, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert "approval 1: approved by bob" in done.stdout, done.stderr


def test_status_of_nothing_and_of_a_ledger(folder: Path, tmp_path: Path) -> None:
    ended = run(["status", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "--ledger", f"{folder}/finops.db"], folder)
    assert ended.returncode == 0, ended.stderr
    assert f"Models in sqlite:///{tmp_path}/mlflow.db: none is recorded yet" in ended.stdout
    assert "open charges" in ended.stdout
    assert not list(tmp_path.iterdir())


def test_configuration_is_shown_as_text_that_a_program_reads(folder: Path) -> None:
    ended = run(["quant=awq", "--cfg", "job", "--package", "quant"], folder)
    assert ended.returncode == 0, ended.stderr
    assert yaml.safe_load(ended.stdout)["method"] == "awq"
