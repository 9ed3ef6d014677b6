"""The run's money with real processes: the command line stops where it must, a killed run is charged, budgets hold."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.environments import set_defaults
from core.errors import ToolError
from core.files import read_json
from evals.load.scenario import LoadScenario
from evals.types import LoadPoint, LoadReport, QualityReport, Target
from finops.controls.approvals import Approvals
from finops.controls.budgets import Budgets
from finops.ledger.ledger import Ledger
from finops.reports.kpis import kpis
from finops.reports.savings import savings
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.cli.compose import command_config
from pipeline.health.health import HealthReport
from pipeline.record.store import Recorder
from pipeline.run import run
from pipeline.types import Artifact
from tests.integration.conftest import ROOT
from tests.unit.pipeline.test_decide import GOOD, task

pytestmark = pytest.mark.integration
set_defaults()
STAGE_S = 0.3
STAGES = """
import sys, time
from pathlib import Path
from pipeline.account import Account
from pipeline.cli.compose import command_config
from pipeline.environments import set_defaults
from pipeline.machine import find_machine
from pipeline.models.resolve import model_facts
from pipeline.money import with_tags
from pipeline.plan import make_plan
from pipeline.planned import find_price, planned_engine
from pipeline.schema import ModelConfig
from pipeline.stages import StageStore
from evals.load.scenario import from_config

def main(arguments):
    set_defaults()
    config = command_config(arguments[1:])
    machine = find_machine()
    plan = make_plan(config, model_facts(config.model), machine, find_price(config, machine), 2**40)
    config = with_tags(config)
    account = Account(config, plan, from_config(config.load))
    account.forecast.show()
    with account:
        store = account.store(StageStore(Path(config.home) / "store"))

        def make(folder):
            print(account.run_id, flush=True)
            for _ in range(int(float(arguments[0]) / 0.05)):
                time.sleep(0.05)
                account.tick()
            return {"done": True}

        store.run("quality", {"who": str(time.time())}, make)
    return 0

from pipeline.cli.app import run_command
sys.exit(run_command(main, sys.argv[1:]))
"""
"""A run whose stage only waits, through the real configuration, plan, store and account."""


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    """A home and a tracking store of the test's own, at 3600 USD an hour: a dollar a second."""
    return [
        f"home={tmp_path}/home",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        f"tracking.artifacts={tmp_path}/artifacts",
        "hardware.usd_per_hour=3600",
        "quant=int8",
    ]


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PARSIMONY_LEDGER_URL"}
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120, env=environment)


def start(seconds: float, arguments: list[str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PARSIMONY_LEDGER_URL"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", STAGES, str(seconds), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def run_id_of(process: subprocess.Popen[str]) -> str:
    """Wait for the stage's first line."""
    assert process.stdout is not None
    for line in process.stdout:
        if line[:2] == "20":
            return line.strip()
    raise AssertionError(process.stderr.read() if process.stderr else "")


def test_a_dry_run_prices_every_stage_and_writes_nothing(place: list[str], tmp_path: Path) -> None:
    ended = pipeline("dry_run=true", *place)
    assert ended.returncode == 0, ended.stderr
    for stage in ("compress", "health", "quality", "load"):
        assert stage in ended.stdout
    assert "rough rule for" in ended.stdout
    assert not list(tmp_path.rglob("*.db"))


def test_missing_tags_are_a_problem_of_the_plan(place: list[str], tmp_path: Path) -> None:
    ended = pipeline("finops=strict", "tags.team=research", "tags.workload_type=evalution", *place)
    assert ended.returncode == 2
    assert "tags.environment: is required and not given" in ended.stderr
    assert "did you mean 'evaluation'" in ended.stderr
    assert "tags.team" not in ended.stderr
    assert not list(tmp_path.rglob("*.db"))


def test_a_dear_run_waits_for_approval_with_exit_code_3(place: list[str], tmp_path: Path) -> None:
    for _ in range(2):  # the same command asks once
        ended = pipeline("finops.approval.threshold_usd=1", *place)
        assert ended.returncode == 3, ended.stderr
    command = f"python -m pipeline approvals approve 1 --ledger sqlite:///{tmp_path}/finops.db"
    assert command in ended.stderr
    assert "Traceback" not in ended.stderr
    ledger = Ledger(str(tmp_path / "finops.db"))
    assert [one.state for one in Approvals(ledger).all()] == ["pending"]
    assert ledger.charges() == []
    assert not (tmp_path / "mlflow.db").exists()
    approved = subprocess.run(
        [sys.executable, *command.split()[1:]], cwd=ROOT, env={**os.environ, "PARSIMONY_USER": "somebody-else"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "approved by somebody-else" in approved.stdout, approved.stderr


def test_a_run_past_its_budget_is_rejected_with_exit_code_4(place: list[str], tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "finops.db"))
    Budgets(ledger).define("everything", limit_usd=Decimal(1))
    ended = pipeline(*place)
    assert ended.returncode == 4, ended.stderr
    assert "everything (month from" in ended.stderr
    assert "limit 1.00 USD, spent 0 USD" in ended.stderr
    assert ledger.charges() == []


def test_a_killed_run_is_charged_by_the_next_one(place: list[str], tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "finops.db"))
    Budgets(ledger).define("everything", limit_usd=Decimal(100_000))
    process = start(60, place)
    killed = run_id_of(process)
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert ledger.charges() == []
    following = start(0.5, place)
    out, err = following.communicate(timeout=60)
    assert following.returncode == 0, err
    assert f"Charged  quality of run {killed}, which was killed" in out
    lost, done = ledger.charges()
    assert (lost.run_id, lost.status, lost.work) == (killed, "killed", "lost")
    assert 0.5 <= lost.effective_usd <= 12  # what it held, and at most one sign of life more
    assert (done.status, done.work) == ("completed", "useful")
    assert 0.5 <= done.effective_usd < 5
    with sqlite3.connect(tmp_path / "finops.db") as connection:
        states = connection.execute("SELECT state FROM finops_holds ORDER BY created_us").fetchall()
    assert states == [("live",), ("settled",)]  # the killed one's expires by itself


def test_an_interrupted_run_is_charged_at_once(place: list[str], tmp_path: Path) -> None:
    process = start(60, place)
    run_id = run_id_of(process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    (charge,) = Ledger(str(tmp_path / "finops.db")).charges(run_id=run_id)
    assert (charge.status, charge.work) == ("preempted", "lost")


def test_of_runs_that_start_together_only_those_start_that_the_budget_carries(place: list[str], tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "finops.db"))
    first = start(0.1, place)
    out, _ = first.communicate(timeout=60)
    high = Decimal(
        next(line for line in out.splitlines() if line.lstrip().startswith("all")).split("to ")[-1].rstrip(" )")
    )
    Budgets(ledger).define("everything", limit_usd=ledger.total_usd() + high * Decimal("1.5"))
    together = [start(3, place) for _ in range(4)]
    codes = [process.communicate(timeout=90) and process.returncode for process in together]
    assert sorted(codes) == [0, 4, 4, 4]


# The main path with fast stages: everything but the tools is real -----------------------------------------------------


class Served:
    """A served model that needs no server."""

    def __init__(self, artifact: Artifact, *_: object) -> None:
        self.digest, self.method, self.startup_s = f"served-{artifact.digest}", artifact.method, 0.1
        self.speed_digest = self.digest
        self.log = artifact.path / "vllm.md"
        self.log.write_text("started")
        self.wait = lambda: None

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def launch(self) -> Target:
        return Target("http://127.0.0.1:1", "model", Path(), {"of": self.method}, self.digest)

    target = launch


def a_load(target: Target, scenario: LoadScenario, *_: object, on_run, **__: object) -> LoadReport:
    time.sleep(STAGE_S)
    on_run(1, 1)
    speed = 200.0 if target.engine["of"] == "int8" else 100.0
    repeat = {
        "output_tok_per_s": speed, "total_tok_per_s": 5 * speed, "req_per_s": speed / 32, "ttft_p50_s": 0.1,
        "num_completed": 8.0, "duration_s": 1.0,
    }  # fmt: skip
    points = tuple(
        LoadPoint(spec.name, spec.concurrency, spec.input_tokens, spec.output_tokens, (repeat,) * 3, 0, num_requests=8)
        for spec in scenario.points
    )
    return LoadReport(scenario.name, points, {}, scenario.mix)


def a_quality(*_: object, **__: object) -> QualityReport:
    time.sleep(STAGE_S)
    return QualityReport({"arc_easy": task(GOOD)})


@pytest.fixture
def fast_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """`pipeline.run.run` with its tools replaced by waiting; the arguments of the run."""

    def checkpoint(label: str) -> Artifact:
        folder = tmp_path / f"checkpoint-{label}"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(label)
        return Artifact(folder, checkpoint_digest(folder), 1000 if label == "none" else 500, label, None)

    def compress(candidate, base, config, plan_hash, store, shown, elsewhere=None):
        if candidate.role == "baseline":
            return base, None
        found = store.run("compress", {"method": candidate.method}, lambda folder: time.sleep(STAGE_S) or {})
        return checkpoint(candidate.label), found

    def check_health(artifact, base, machine, store, home, shown, told):
        found = store.run("health", {"of": artifact.digest}, lambda folder: time.sleep(STAGE_S) or {})
        return HealthReport("not checked", "no tool"), found

    def a_base(model, seed, store) -> Artifact:
        store.run("base", {}, lambda _: {})
        return checkpoint("none")

    for name, fake in {
        "compress": compress,
        "check_health": check_health,
        "ServedModel": Served,
        "run_suite": a_quality,
        "run_gated_suite": lambda *_, **__: SimpleNamespace(candidate=a_quality()),
        "run_load": a_load,
        "base_model": a_base,
        "unpack_datasets": lambda _: tmp_path,
        "serving_python": lambda: Path(sys.executable),
    }.items():
        monkeypatch.setattr(f"pipeline.run.{name}", fake)
    monkeypatch.delenv("PARSIMONY_LEDGER_URL", raising=False)
    monkeypatch.setenv("PARSIMONY_USER", "ann")
    return [
        f"home={tmp_path}/home",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        f"tracking.artifacts={tmp_path}/artifacts",
        "hardware.usd_per_hour=36",  # a cent a second
        "suite.tasks=[arc_easy]",
        "quant=int8",
        "tags.team=research",
        "promote.require_approval=true",
    ]


def test_the_main_path_charges_records_and_waits_for_approval(fast_path, tmp_path, capsys) -> None:
    config = command_config(fast_path)
    ledger = Ledger(str(tmp_path / "finops.db"))
    Budgets(ledger).define("research", limit_usd=Decimal(10_000), team="research")
    run(config)
    out = capsys.readouterr().out
    assert "waits for approval, request 1" in out
    charges = ledger.charges()
    assert [one.stage for one in charges] == ["base", "quality", "load", "compress", "health", "quality", "load"]
    walls = {path.parent.name: read_json(path)["wall_s"] for path in tmp_path.glob("home/store/*/*/stage.json")}
    assert abs(ledger.total_usd() - Decimal(repr(sum(walls.values()))) / 100) < Decimal("0.01")
    for charge in charges:  # a charge ends when the result is stored, a moment after the work
        wall_s = walls[json.loads(charge.tags)["stage_key"]]
        assert wall_s - 0.01 <= (charge.end_us - charge.start_us) / 1e6 <= wall_s + 1

    book = Recorder(config.tracking)
    runs = {found.data.tags["label"]: found for found in book.runs(config.model.name)}
    for key in ("team", "environment", "model_family", "workload_type"):
        assert {one.data.tags[key] for one in runs.values()} == {getattr(charge, key) for charge in charges}
    assert {one.data.tags["ledger_run_id"] for one in runs.values()} == {charges[0].run_id}
    metrics = runs["int8"].data.metrics
    assert metrics["estimate/quality/actual_s"] >= STAGE_S
    assert metrics["estimate/quality/relative_error"] < 0  # the rough rule expects a minute and more
    assert metrics["cost/charged_usd"] == pytest.approx(float(sum(one.effective_usd for one in charges[3:])))

    Approvals(ledger).decide(1, approve=True, who="bob")
    run(config)
    out = capsys.readouterr().out
    assert "every stage is in the store" in out
    assert "version 1 is now 'champion'" in out
    assert len(ledger.charges()) == len(charges)
    assert book.client.get_model_version_by_alias(config.model.name, "champion").tags["approved_by"] == "bob"
    (saving,) = savings(ledger)
    assert (saving.model_id, saving.replaced_model_id) == (f"{config.model.name}:v1", None)
    decision = next(one for one in kpis(ledger) if one.name == "usd_per_promotion_decision")
    spent = [runs[label].data.metrics[f"cost/{what}_usd"] for label, what in
             (("none", "eval"), ("int8", "eval"), ("int8", "compress"))]  # fmt: skip
    assert float(decision.value) == pytest.approx(sum(spent)), "its evidence was paid for by the run before"
    (budget,) = Budgets(ledger).status()
    assert (budget.held_usd, budget.spent_usd) == (0, ledger.total_usd())


def test_a_tool_that_fails_leaves_a_charge_and_no_hold(fast_path, tmp_path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        time.sleep(STAGE_S)
        raise ToolError("the load client ended")

    monkeypatch.setattr("pipeline.run.run_load", fail)
    ledger = Ledger(str(tmp_path / "finops.db"))
    Budgets(ledger).define("research", limit_usd=Decimal(10_000), team="research")
    with pytest.raises(ToolError):
        run(command_config(fast_path))
    assert [(one.stage, one.status, one.work) for one in ledger.charges()] == [
        ("base", "completed", "useful"),
        ("quality", "completed", "useful"),
        ("load", "failed", "lost"),
    ]
    (budget,) = Budgets(ledger).status()
    assert (budget.held_usd, budget.spent_usd) == (0, ledger.total_usd())
