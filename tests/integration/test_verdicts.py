"""Three verdicts, one rule, counted candidates: the real ledger, MLflow and registry; only the answers are known."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import RunData

from evals.gate.levels import attempt_level
from finops.ledger import schema
from finops.ledger.ledger import Ledger
from pipeline.cli.app import dispatch, run_command
from pipeline.config import TrackingConfig
from pipeline.record.store import Recorder
from tests.integration.conftest import ROOT
from tests.integration.known_answers import FAKES

pytestmark = pytest.mark.integration
MODEL = "smollm2-135m-q4_1"


class Place:
    """A home, a tracking store and a ledger of the test's own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    @property
    def settings(self) -> list[str]:
        return [
            f"home={self.folder}/home", f"tracking.uri=sqlite:///{self.folder}/mlflow.db",
            f"tracking.artifacts={self.folder}/artifacts", "hardware.usd_per_hour=1",
        ]  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """The product's command line in this process: exit code, what it printed, what it printed as errors."""
        verb = arguments[:1] if arguments[0].isalpha() else ()
        code = run_command(dispatch, [*verb, *self.settings, *arguments[len(verb) :]])
        printed = self.capsys.readouterr()
        return code, printed.out, printed.err

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The same in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.known_answers", *self.settings, *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def data(self, label: str) -> RunData:
        """Tags and metrics of a variant's newest record."""
        recorder = Recorder(TrackingConfig(f"sqlite:///{self.folder}/mlflow.db", f"{self.folder}/artifacts"))
        return next(run for run in recorder.runs(MODEL) if run.data.tags["label"] == label).data

    def attempts(self) -> list[tuple[int, int]]:
        """Batch and batch size of every candidate that was counted."""
        ledger = Ledger(f"sqlite:///{self.folder}/finops.db")
        with ledger.database.read() as connection:
            rows = connection.execute(schema.attempts.select()).all()
        ledger.close()
        return sorted((row.batch, row.batch_size) for row in rows)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    for stage, fake in FAKES.items():
        monkeypatch.setattr(stage, "run", fake)
    monkeypatch.delenv("PARSIMONY_LEDGER_URL", raising=False)
    monkeypatch.chdir(tmp_path)  # a sweep's folder
    return Place(tmp_path, capsys)


def test_an_equal_variant_is_promoted_and_a_worse_one_rejected(place: Place) -> None:
    code, out, error = place.run("quant=int8", "fail_on_hold=true")
    assert code == 0, error
    assert "Decision on int8: promote" in out
    assert re.search(r"passed: quality: arc_easy: probability of the right choice [-+][\d.]+ points \[", out)
    assert "is now 'champion'" in out
    data = place.data("int8")
    assert (data.tags["decision"], data.tags["verdict"]) == ("promote", "promoted")
    assert data.metrics["gate/level"] == pytest.approx(attempt_level(0.05, 1))
    assert data.metrics["gate/piqa/num_items"] < data.metrics["gate/piqa/num_items_total"] == 1838
    code, out, error = place.run("quant=gptq", "fail_on_hold=true")
    assert code == 5, error
    assert "Decision on gptq: reject" in out
    assert place.data("gptq").tags["verdict"] == "rejected"
    assert place.data("gptq").metrics["gate/level"] == pytest.approx(attempt_level(0.05, 2))


def test_what_is_not_decided_says_what_it_takes_and_goes_on_to_a_verdict(place: Place) -> None:
    asked = ("quant=int8", "gate.order=uniform", "fail_on_hold=true")
    code, out, error = place.run(*asked, "gate.max_items=64")
    assert code == 6, error
    assert "Decision on int8: not decided" in out
    assert re.search(
        r"64 of 570 items\): a margin of 2 points is not decided; the smallest margin shown so far is \d", out
    )
    found = re.search(r"same command with gate\.max_items=(\d+) goes on .*: about \d+ more items, .* USD", out)
    assert found is not None, out
    before = place.data("int8")
    assert (before.tags["decision"], before.tags["verdict"]) == ("undecided", "not decided")
    assert before.metrics["gate/piqa/items_to_decide"] > 0
    for budget in (int(found.group(1)), 1838):  # a forecast is a median: the second one is sure
        code, out, error = place.run(*asked, f"gate.max_items={budget}")
        if code != 6:
            break
    assert code == 0, out + error
    assert place.data("int8").tags["verdict"] == "promoted"
    assert place.attempts() == [(1, 1)], "the same candidate, however large its budget"


def test_a_rule_that_changes_after_the_answers_is_refused(place: Place) -> None:
    assert place.run("quant=int8")[0] == 0
    code, out, error = place.run("quant=gptq", "gate.tasks=[piqa]")
    assert code == 2
    assert "error: gate.tasks: piqa would decide alone" in error
    assert "Traceback" not in error
    assert "compress" not in re.sub(r"(?s).*\n\n", "", out), "it was refused before anything was made"
    code, _, error = place.run("quant=gptq", "gate.alpha=0.2")
    assert code == 2
    assert "gate.alpha=0.2" in error
    assert place.attempts() == [(1, 1)]
    code, _, error = place.run("promote", f"model={MODEL}", "gate.delta_points=3")
    assert code == 0, error
    code, _, error = place.run("promote", f"model={MODEL}", "gate.tasks=[piqa]")
    assert code == 2
    assert "gate.tasks" in error


def test_four_runs_at_once_are_counted_once_each(place: Place) -> None:
    assert place.run("quant=none")[0] == 0
    labels = ("int8", "awq", "rtn-int8", "rtn-int4")
    processes = [place.start(f"quant={label}") for label in labels]
    ended = [(process.communicate(timeout=400), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0] * 4, [error for (_, error), _ in ended]
    assert place.attempts() == [(batch, 1) for batch in (1, 2, 3, 4)]
    levels = sorted((place.data(label).metrics["gate/level"] for label in labels), reverse=True)
    assert levels == pytest.approx([attempt_level(0.05, batch) for batch in (1, 2, 3, 4)])
    assert place.run("quant=awq")[0] == 0
    assert len(place.attempts()) == 4, "a candidate that is tried again is the same one"


def test_a_sweep_shares_one_level(place: Place) -> None:
    code, out, error = place.run("--multirun", "quant=none,int8,awq")
    assert code == 0, error
    assert out.count("Decision on") == 3
    assert place.attempts() == [(1, 2), (1, 2)]
    assert place.data("awq").metrics["gate/level"] == pytest.approx(attempt_level(0.05, 1, 2))
    assert place.run("quant=rtn-int8", "gate.num_candidates=2")[0] == 0
    assert place.attempts() == [(1, 2), (1, 2), (2, 2)], "of several that are started one by one, the user says it"
