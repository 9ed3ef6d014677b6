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

import pytest

from core.environments import set_defaults
from core.errors import ToolError
from core.files import plain, read_json
from evals.types import LoadPoint, LoadReport, QualityReport
from finops.controls.approvals import Approvals
from finops.controls.budgets import Budgets
from finops.ledger.ledger import Ledger
from finops.reports.kpis import kpis
from finops.reports.savings import savings
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.cli.compose import command_config
from pipeline.health.report import HealthReport
from pipeline.plan.resolve import resolve
from pipeline.record.store import Recorder
from pipeline.record.tags import LEDGER_RUN_ID
from pipeline.run import run
from pipeline.stages.base import DequantizedBase
from pipeline.stages.compress import Compress
from pipeline.stages.data import Calibration, Datasets, Fetch
from pipeline.stages.graph import Effects
from pipeline.stages.health import Health
from pipeline.stages.load import Load
from pipeline.stages.price import InterleavedPrice
from pipeline.stages.quality import Quality
from tests.integration.conftest import ROOT
from tests.unit.pipeline.test_decide import GOOD, WORSE, rounds, task

pytestmark = pytest.mark.integration
set_defaults()
STAGE_S = 0.3
STAGES = """
import sys, time
from core.environments import set_defaults
from core.store import StageRef, StageStore, stage_key
from pipeline.billing.account import Billing
from pipeline.cli.app import run_command
from pipeline.cli.compose import command_config
from pipeline.plan.resolve import resolve

def main(arguments):
    set_defaults()
    plan = resolve(command_config(arguments[1:]))
    billing = Billing(plan)
    billing.estimate()
    with billing:
        store, inputs = StageStore(plan.store.root, hooks=(billing,)), {"who": str(time.time())}
        ref = StageRef("quality", stage_key("quality", inputs))

        def make(folder):
            print(billing.run_id, flush=True)
            for _ in range(int(float(arguments[0]) / 0.05)):
                time.sleep(0.05)
                store.progressed(ref)
            return {"done": True}

        store.run("quality", inputs, make)
    return 0

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


def a_load(speed: float) -> LoadReport:
    repeat = {
        "output_tok_per_s": speed, "total_tok_per_s": 5 * speed, "req_per_s": speed / 32, "ttft_p50_s": 0.1,
        "num_completed": 8.0, "duration_s": 1.0,
    }  # fmt: skip
    point = LoadPoint("c8-128x32", 8, 128, 32, (repeat,) * 3, 0, num_requests=8)
    return LoadReport("quick", (point,), {}, (128, 32))


def fake_base(self: DequantizedBase, folder: Path, effects: Effects) -> dict[str, object]:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("none")
    (folder / "model" / "model.safetensors").write_bytes(bytes(1000))
    return {"digest": checkpoint_digest(folder / "model")}


def fake_compress(self: Compress, folder: Path, effects: Effects) -> dict[str, object]:
    time.sleep(STAGE_S)
    model, base = folder / "model", effects.result(self.base)
    model.mkdir()
    (model / "config.json").write_text(self.label)
    (model / "model.safetensors").write_bytes(bytes(500))
    measured = dict.fromkeys(("wall_s", "peak_host_bytes", "peak_device_bytes", "calibration"))
    sizes = {"digest": checkpoint_digest(model), "num_bytes": 500, "size_metrics": {}}
    return {**measured, **sizes, "base": {"digest": base.digest}}


def fake_health(self: Health, folder: Path, effects: Effects) -> dict[str, object]:
    time.sleep(STAGE_S)
    return dict(plain(HealthReport("not checked", "no tool")))


def fake_quality(self: Quality, folder: Path, effects: Effects) -> dict[str, object]:
    time.sleep(STAGE_S)
    return dict(plain(QualityReport({"arc_easy": task(GOOD)})))


def fake_load(self: Load, folder: Path, effects: Effects) -> dict[str, object]:
    time.sleep(STAGE_S)
    effects.progress(self)(1, 1)
    (folder / "vllm.log").write_text("started")
    return dict(plain(a_load(200.0 if self.label == "int8" else 100.0)))


def fake_price(self: InterleavedPrice, folder: Path, effects: Effects) -> dict[str, object]:
    time.sleep(STAGE_S)
    return dict(plain(rounds(0.5)))


@pytest.fixture
def fast_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """`pipeline.run.run` with the stages' own work replaced by waiting; the arguments of the run."""
    fakes = {
        Fetch: lambda self, folder, effects: {"file": "wheel"},
        Datasets: lambda self, folder, effects: {},
        Calibration: lambda self, folder, effects: {"digest": "d"},
        DequantizedBase: fake_base,
        Compress: fake_compress,
        Health: fake_health,
        Quality: fake_quality,
        Load: fake_load,
        InterleavedPrice: fake_price,
    }
    for stage, fake in fakes.items():
        monkeypatch.setattr(stage, "run", fake)
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
    foreseen = [(stage.label, stage.name) for stage in resolve(config).pending]
    assert run(config) == 0
    out = capsys.readouterr().out
    assert "waits for approval, request 1" in out
    charges = ledger.charges()
    charged = [(json.loads(one.tags).get("variant", ""), one.stage) for one in charges]
    assert charged == foreseen, "what is planned is what is charged, in the same order"
    measured = [(label, name) for label, name in charged if label]
    assert measured == [("none", "quality"), ("none", "load"),
                        *(("int8", name) for name in ("compress", "health", "quality", "load", "price"))]  # fmt: skip
    walls = {path.parent.name: read_json(path)["wall_s"] for path in tmp_path.glob("home/store/*/*/stage.json")}
    assert abs(ledger.total_usd() - Decimal(repr(sum(walls.values()))) / 100) < Decimal("0.01")
    for charge in charges:  # a charge ends when the result is stored, a moment after the work
        wall_s = walls[json.loads(charge.tags)["stage_key"]]
        assert wall_s - 0.01 <= (charge.end_us - charge.start_us) / 1e6 <= wall_s + 1

    book = Recorder(config.tracking)
    runs = {found.data.tags["label"]: found for found in book.runs(config.model.name)}
    for key in ("team", "environment", "model_family", "workload_type"):
        assert {one.data.tags[key] for one in runs.values()} == {getattr(charge, key) for charge in charges}
    assert {one.data.tags[LEDGER_RUN_ID] for one in runs.values()} == {charges[0].run_id}
    metrics = runs["int8"].data.metrics
    assert metrics["estimate/quality/actual_s"] >= STAGE_S
    assert metrics["estimate/quality/relative_error"] < 0  # the rough rule expects a minute and more
    assert metrics["cost/charged_usd"] == pytest.approx(
        float(sum(one.effective_usd for one in charges if '"variant": "int8"' in one.tags))
    )

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
    assert (budget.reserved_usd, budget.spent_usd) == (0, ledger.total_usd())


def test_a_tool_that_fails_leaves_a_charge_and_no_hold(fast_path, tmp_path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        time.sleep(STAGE_S)
        raise ToolError("the load client ended")

    monkeypatch.setattr(Load, "run", fail)
    ledger = Ledger(str(tmp_path / "finops.db"))
    Budgets(ledger).define("research", limit_usd=Decimal(10_000), team="research")
    with pytest.raises(ToolError):
        run(command_config(fast_path))
    charges = [(one.stage, one.status, one.work) for one in ledger.charges()]
    assert charges[-2:] == [("quality", "completed", "useful"), ("load", "failed", "lost")]
    assert {status for _, status, _ in charges[:-1]} == {"completed"}
    (budget,) = Budgets(ledger).status()
    assert (budget.reserved_usd, budget.spent_usd) == (0, ledger.total_usd())


def test_the_same_weights_under_a_second_name_are_recorded_and_decided_under_it(fast_path, capsys) -> None:
    settings = [one for one in fast_path if not one.startswith("promote.")] + ["promote.enabled=false"]
    first = command_config(settings)
    assert run(first) == 0
    second = command_config([*settings, "model.name=renamed"])
    assert resolve(second).pending == (), "bytes in common share their stages"
    assert run(second) == 0
    assert "Decision on int8" in capsys.readouterr().out
    book = Recorder(second.tracking)
    for name in (first.model.name, "renamed"):
        assert {one.data.tags["label"] for one in book.runs(name)} == {"none", "int8"}
    assert run(command_config([*settings, "model.revision=0123abc"])) == 0
    revisions = {one.data.tags.get("model_revision") for one in book.runs(first.model.name)}
    assert revisions == {None, "0123abc"}, "another revision is another record"


def test_a_candidate_that_fails_its_first_task_is_decided_although_it_was_not_asked_the_second(
    fast_path, monkeypatch, capsys
) -> None:
    def quality(self: Quality, folder: Path, effects: Effects) -> dict[str, object]:
        if self.gated is None:
            return dict(plain(QualityReport({"arc_easy": task(GOOD), "piqa": task(GOOD)})))
        failed = "not evaluated: arc_easy had ended the evaluation (fail)"
        return dict(plain(QualityReport({"arc_easy": task(WORSE)}, "", {"piqa": failed})))

    monkeypatch.setattr(Quality, "run", quality)
    settings = [one for one in fast_path if not one.startswith("suite.tasks")] + ["suite.tasks=[arc_easy,piqa]"]
    assert run(command_config(settings)) == 0
    assert "Decision on int8: reject" in capsys.readouterr().out
