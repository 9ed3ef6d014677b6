"""What the pipeline says to the ledger: a real SQLite ledger in a temporary folder, stages that are plain functions."""

import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, PlanError, ToolError
from core.store import StageRef, StageStore, stage_key
from evals.config import GateConfig, SuiteConfig
from evals.types import Price
from finops.controls.approvals import Approvals
from finops.controls.budgets import Budgets
from finops.errors import ApprovalRequiredError, BudgetExceededError, LedgerUnavailableError, ReservationError
from finops.ledger.charges import device_charge
from finops.ledger.ledger import Ledger
from finops.ledger.rates import price_version, priced_rate, rate_of
from finops.money import from_us, usd_text
from finops.reports.estimates import estimate_errors
from pipeline.billing import account as account_module
from pipeline.billing.account import Billing
from pipeline.billing.terms import ledger_url, load_usage, resource_of
from pipeline.config import (
    ApprovalConfig,
    CalibConfig,
    FinopsConfig,
    LedgerConfig,
    ModelConfig,
    RunConfig,
    TagsConfig,
    TrackingConfig,
)
from pipeline.plan.plan import make_plan
from pipeline.plan.tags import charge_tags, with_tags
from pipeline.promote import PromotionRefusedError, Subject
from pipeline.record.metrics import estimate_metrics
from pipeline.types import Machine, Plan
from tests.unit.pipeline.plans import run_plan, stored
from tests.unit.pipeline.shapes import FACTS, MACHINE

ROOT = Path(__file__).resolve().parents[3]
GPU = Machine("cuda", "NVIDIA A100", 1, 8, 64 * 2**30, 10 * 2**30, 8.0)
PRICE = Price("cpu", Decimal(3600), Decimal(3600), "on_demand", "given by the user", "", 2)
"""A machine at one dollar a second, so that a tenth of a second is many cents."""


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated ledger to copy."""
    path = tmp_path_factory.mktemp("ledger") / "finops.db"
    ledger = Ledger(str(path))
    ledger.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def config(tmp_path: Path, empty_ledger: Path) -> RunConfig:
    shutil.copy(empty_ledger, tmp_path / "finops.db")
    made = with_tags(
        RunConfig(
            model=ModelConfig(name="tiny", source="embedded", family="smollm2"),
            quant={"method": "int8"},
            calib=CalibConfig(sources=["squad"], num_samples=4, length=64),
            suite=SuiteConfig(name="small", tasks=["arc_easy", "piqa"]),
            tracking=TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"),
            tags={"team": "research", "environment": None, "workload_type": None},
            home=str(tmp_path / "home"),
        )
    )
    fill_shared(made)
    return made


@pytest.fixture
def ledger(config: RunConfig, tmp_path: Path):
    opened = Ledger(str(tmp_path / "finops.db"))
    yield opened
    opened.close()


def plan_of(config: RunConfig, price: Price = PRICE) -> Plan:
    return make_plan(config, FACTS, MACHINE, price, 100 * 2**30)


def account_of(config: RunConfig, price: Price = PRICE) -> Billing:
    account = Billing(run_plan(config, price))
    account.estimate()
    return account


def store_of(account: Billing, config: RunConfig) -> StageStore:
    return StageStore(Path(config.home) / "store", hooks=(account,))


def work_for(seconds: float):
    def make(folder: Path) -> dict[str, object]:
        time.sleep(seconds)
        return {"points": [{"input_tokens": 32, "output_tokens": 8, "repeats": [{"num_completed": 4}]}]}

    return make


def run_stages(account: Billing, config: RunConfig, seconds: float = 0.02, price: Price = PRICE) -> dict[str, float]:
    """The variants' own stages in their order, through the real store; returns what each one took."""
    store, took = store_of(account, config), {}
    for stage in run_plan(config, price).stages:
        if stage.label:
            found = stored(stage, store, work_for(seconds))
            if not found.reused:
                took[f"{stage.label}/{stage.name}"] = found.wall_s
    return took


def fill_shared(config: RunConfig) -> None:
    """What no variant owns is in the store: wheels, the base, texts."""
    plan = run_plan(config, PRICE)
    for stage in plan.stages:
        if not stage.label:
            stored(stage, plan.store)


# Charges --------------------------------------------------------------------------------------------------------------


def test_the_charges_of_a_run_are_its_stages_wall_time_at_the_price_to_the_cent(config, ledger) -> None:
    account = account_of(config)
    with account:
        began = time.monotonic()
        took = run_stages(account, config, seconds=0.2)
        around_s = time.monotonic() - began
    charges = ledger.charges(run_id=account.run_id)
    assert [(one.stage, one.status, one.work) for one in charges] == [
        (name.split("/")[1], "completed", "useful") for name in took
    ]
    micro_hours = sum((one.end_us - one.start_us) // 3600 for one in charges)
    assert ledger.total_usd(run_id=account.run_id) == Decimal(micro_hours) * 3600 / 1_000_000
    # One dollar a second: a charge covers the work and the writing of its result, and no second twice.
    assert sum(took.values()) - 0.01 <= float(ledger.total_usd(run_id=account.run_id)) <= around_s + 0.01
    assert {one.price_version for one in charges} == {price_version(PRICE)}
    assert {one.team for one in charges} == {"research"}


def test_at_a_real_price_the_sum_agrees_to_the_cent(config, ledger) -> None:
    price = replace(PRICE, usd_per_hour_lo=Decimal("3.05"), usd_per_hour_hi=Decimal("3.05"))
    account = account_of(config, price)
    with account:
        began = time.monotonic()
        took = run_stages(account, config, seconds=0.05)
        around_s = time.monotonic() - began
    least, most = (Decimal(repr(s)) / 3600 * price.usd_per_hour for s in (sum(took.values()), around_s))
    cent = Decimal("0.01")
    assert least - cent <= ledger.total_usd(run_id=account.run_id) <= most + cent


def test_a_stage_that_ran_for_several_engines_took_all_of_their_time(config) -> None:
    account = account_of(config)
    with account:
        store = store_of(account, config)
        took = [store.run("load", {"engine": number}, work_for(0.05)).wall_s for number in range(3)]
        (outcome,) = account.outcomes()
    assert outcome.actual_s == pytest.approx(sum(took))
    assert outcome.expected_s is None, "no plan foresaw them"


def test_a_charge_names_variant_stage_key_tags_and_what_it_yielded(config, ledger) -> None:
    account = account_of(config)
    with account:
        run_stages(account, config)
    loads = [one for one in ledger.charges(run_id=account.run_id) if one.stage == "load"]
    assert [(one.num_requests, one.input_tokens, one.output_tokens) for one in loads] == [(4, 128, 32)] * 2
    key = run_plan(config, PRICE).variants.all[-1].load.key
    assert f'"stage_key": "{key}"' in loads[1].tags
    assert '"variant": "int8"' in loads[1].tags
    assert '"environment": "development"' in loads[1].tags


@pytest.mark.parametrize(
    ("tag", "allowed", "charged_as"),
    [
        ("evaluation", ["training", "evaluation"], "training"),
        ("evaluation", [], "training"),
        ("evaluation", ["evaluation"], "evaluation"),
        ("fine-tuning", [], "fine-tuning"),
    ],
)
def test_training_a_student_is_charged_as_training(
    config, ledger, tag: str, allowed: list[str], charged_as: str
) -> None:
    config.tags["workload_type"] = tag
    config.finops.tags.allowed["workload_type"] = allowed
    with account_of(config) as account:
        for stage in ("distill", "quality"):
            store_of(account, config).run(stage, {}, work_for(0), label="int8")
        found = {one.stage: one.workload_type for one in ledger.charges(run_id=account.run_id)}
    assert found == {"distill": charged_as, "quality": tag}


def test_reused_stages_are_not_charged_and_the_next_plan_knows_it(config, ledger, capsys) -> None:
    with account_of(config) as first:
        run_stages(first, config)
    second = account_of(config)
    assert "every stage is in the store" in capsys.readouterr().out
    assert second.estimates.high_usd == 0
    with second:
        assert run_stages(second, config) == {}
    assert ledger.charges(run_id=second.run_id) == []


@pytest.mark.parametrize(
    ("error", "status"), [(ToolError("vLLM died"), "failed"), (KeyboardInterrupt(), "preempted"), (OSError(), "failed")]
)
def test_a_stage_that_fails_is_charged_and_its_work_is_lost(config, ledger, error, status) -> None:
    def fail(folder: Path) -> dict[str, object]:
        time.sleep(0.02)
        raise error

    account = account_of(config)
    with pytest.raises(type(error)), account:
        store_of(account, config).run("compress", {}, fail)
    (charge,) = ledger.charges(run_id=account.run_id)
    assert (charge.status, charge.work, charge.stage) == (status, "lost", "compress")
    assert charge.effective_usd > 0


def test_work_before_the_last_progress_is_not_lost(config, ledger, monkeypatch) -> None:
    monkeypatch.setattr(account_module, "KEEP_EVERY_S", 0.0)
    account = account_of(config)
    store = store_of(account, config)

    def half(folder: Path) -> dict[str, object]:
        time.sleep(0.05)
        store.progressed(StageRef("load", stage_key("load", {}), "none"), 1, 2)
        time.sleep(0.02)
        raise ToolError("then it died")

    with pytest.raises(ToolError), account:
        store.run("load", {}, half, label="none")
    charges = ledger.charges(run_id=account.run_id)
    assert [one.work for one in charges] == ["useful", "lost"]
    assert charges[0].end_us == charges[1].start_us


def test_the_same_charge_again_changes_nothing(config, ledger) -> None:
    with account_of(config) as account:
        run_stages(account, config)
    charges = ledger.charges(run_id=account.run_id)
    total = ledger.total_usd()
    assert ledger.record(*charges) == 0
    again = device_charge(
        run_id=account.run_id, stage=charges[0].stage, resource=account.resource, rate=account.rate, tags=account.tags,
        start=from_us(charges[0].start_us), end=from_us(charges[0].end_us),
    )  # fmt: skip
    assert again.key == charges[0].key
    assert ledger.total_usd() == total


def test_a_ledger_that_cannot_be_used_stops_the_run_before_it_starts(config, tmp_path) -> None:
    (tmp_path / "broken.db").write_text("this is no database, and long enough to be looked at as one" * 20)
    broken = replace(config, finops=FinopsConfig(ledger=LedgerConfig(f"sqlite:///{tmp_path}/broken.db")))
    with pytest.raises(LedgerUnavailableError, match=r"broken\.db"):
        account_of(broken)


def test_what_a_killed_run_left_open_is_charged_at_the_next_start(config, ledger, capsys) -> None:
    killed = account_of(config)
    opened = ledger.open_charge(
        run_id="killed-run", stage="quality", resource=killed.resource, rate=killed.rate, tags=killed.tags
    )
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with sqlite3.connect(ledger.database.url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE finops_open_charges SET pid = ? WHERE id = ?", (gone.pid, opened.id))
    account_of(config)
    assert "Charged  quality of run killed-run, which was killed" in capsys.readouterr().out
    (charge,) = ledger.charges(run_id="killed-run")
    assert (charge.status, charge.work) == ("killed", "lost")
    account_of(config)
    assert len(ledger.charges(run_id="killed-run")) == 1


# Tags -----------------------------------------------------------------------------------------------------------------


def test_missing_tags_are_problems_of_the_plan_beside_the_others() -> None:
    strict = FinopsConfig(tags=TagsConfig(policy="require", allowed={"team": ["research", "search"]}))
    bad = RunConfig(
        model=ModelConfig(name="tiny"),
        quant={"method": "none"},
        suite=SuiteConfig(tasks=["arc_easy"]),
        gate=GateConfig(max_items=0),
        tags={"team": "reserch", "environment": None},
        finops=strict,
    )
    with pytest.raises(PlanError) as raised:
        plan_of(bad)
    found = {problem.field: str(problem) for problem in raised.value.problems}
    assert set(found) == {"tags.team", "tags.environment", "tags.workload_type", "model.family", "gate.max_items"}
    assert "did you mean 'research'" in found["tags.team"]
    assert "-> tags.team=search" in found["tags.team"]
    assert "-> +tags.workload_type=" in found["tags.workload_type"]
    assert "-> tags.environment=" in found["tags.environment"]
    assert "-> model.family=" in found["model.family"]


@pytest.mark.parametrize(
    ("finops", "key"),
    [
        (FinopsConfig(tags=TagsConfig(policy="strict")), "finops.tags.policy"),
        (FinopsConfig(approval=ApprovalConfig(-1.0)), "finops.approval.threshold_usd"),
        (FinopsConfig(approval=ApprovalConfig(float("nan"))), "finops.approval.threshold_usd"),
        (FinopsConfig(ledger=LedgerConfig("postgresql://me:hunter2@db/x")), "finops.ledger.uri"),
    ],
)
def test_bad_settings_are_named_and_a_password_is_not_shown(config, finops, key) -> None:
    with pytest.raises(PlanError) as raised:
        plan_of(replace(config, finops=finops))
    assert [problem.field for problem in raised.value.problems] == [key]
    assert "hunter2" not in str(raised.value)


def test_the_same_complete_tags_stand_on_runs_and_charges(config) -> None:
    assert charge_tags(config) == {
        "team": "research",
        "environment": "development",
        "workload_type": "evaluation",
        "model_family": "smollm2",
    }
    own = with_tags(replace(config, tags={"model_family": "llama", "cost_center": "42"}))
    assert own.model.family == charge_tags(own)["model_family"] == "llama"
    assert own.tags["cost_center"] == "42"


# Where, how much ------------------------------------------------------------------------------------------------------


def test_the_ledger_lies_beside_the_tracking_store(config, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PARSIMONY_LEDGER_URL", raising=False)
    assert ledger_url(config.finops.ledger, config.tracking) == f"sqlite:///{tmp_path}/finops.db"
    server = replace(config, tracking=TrackingConfig(uri="http://mlflow:5000"))
    assert ledger_url(server.finops.ledger, server.tracking) == f"sqlite:///{ROOT}/mlruns/finops.db"
    monkeypatch.setenv("PARSIMONY_LEDGER_URL", "postgresql://db/ledger")
    assert ledger_url(server.finops.ledger, server.tracking) == "postgresql://db/ledger"
    given = replace(config, finops=FinopsConfig(ledger=LedgerConfig(str(tmp_path / "own.db"))))
    assert ledger_url(given.finops.ledger, given.tracking) == f"sqlite:///{tmp_path}/own.db"


@given(
    st.sampled_from(["cpu", "l4-24gb", "a100-80gb", "a100-80gb-mig-1g.10gb", "a100-80gb-mig-3g.40gb", "my-machine"]),
    st.integers(1, 10**9),
    st.integers(1, 8),
    st.integers(1, 7 * 24 * 3600),
)
def test_a_charge_costs_the_machines_price_times_its_time_on_every_hardware(
    hardware: str, micro_usd: int, num_devices: int, seconds: int
) -> None:
    per_hour = Decimal(micro_usd) / 10_000
    price = Price(hardware, per_hour, per_hour, "on_demand", "test", "2026-01-01", num_devices)
    machine = MACHINE if hardware == "cpu" else GPU
    rate, resource = rate_of(price), resource_of(price, machine, "host")
    start = from_us(1_764_000_000_000_000)
    charge = device_charge(
        run_id="r", stage="s", resource=resource, rate=rate, tags={}, start=start,
        end=from_us(1_764_000_000_000_000 + seconds * 1_000_000),
    )  # fmt: skip
    expected = per_hour * seconds / 3600
    # A price per device has six decimals, a share of a machine whole micro-hours: each is off by half at most.
    most = Decimal(seconds) / 3600 * num_devices / 1_000_000 + rate.usd_per_hour * num_devices * 8 / 1_000_000
    assert abs(charge.effective_usd - expected) <= most
    assert abs(priced_rate(price).usd_per_hour * resource.num_devices - per_hour) <= Decimal(num_devices) / 1_000_000
    assert (resource.mig_profile is not None) == ("-mig-" in hardware)


def test_a_spot_machine_is_listed_at_its_on_demand_price() -> None:
    rate = rate_of(Price("l4-24gb", Decimal("0.3"), Decimal("0.3"), "spot", "test", "2026-01-01", 2))
    assert rate.usd_per_hour == Decimal("0.15")
    assert rate.list_usd_per_hour is not None
    assert rate.list_usd_per_hour > rate.usd_per_hour
    with pytest.raises(ConfigError, match="lease"):
        rate_of(replace(PRICE, purchase_option="lease"))


def test_another_price_is_another_version_and_a_warning_is_not() -> None:
    assert price_version(PRICE) != price_version(replace(PRICE, usd_per_hour_hi=Decimal(3601)))
    assert price_version(PRICE) == price_version(replace(PRICE, warnings=("old",)))


def test_usage_of_a_load_counts_completed_requests() -> None:
    repeats = [{"num_completed": 3.0}, {"num_completed": None}, {"num_completed": 1}]
    found = load_usage({"points": [{"input_tokens": 10, "output_tokens": 5, "repeats": repeats}]})
    assert found == {"num_requests": 4, "input_tokens": 40, "output_tokens": 20}


def test_amounts_are_legible() -> None:
    texts = {"0": "0", "0.0000123": "0.000012", "0.0994": "0.099", "12.345": "12.34", "7200": "7200.00"}
    assert {text: usd_text(Decimal(text)) for text in texts} == texts


# Estimates ------------------------------------------------------------------------------------------------------------


def test_before_anything_is_recorded_the_plan_follows_a_rough_rule(config, capsys) -> None:
    account_of(config)
    out = capsys.readouterr().out
    assert out.count("rough rule for CPU") == 7
    for name in ("none", "int8", "compress", "health", "quality", "load", "price"):
        assert name in out


def test_recorded_stages_make_the_next_estimate_and_the_error_is_a_metric(config, ledger, capsys) -> None:
    with account_of(config) as first:
        run_stages(first, config, seconds=0.1)
    later = replace(config, seed=1)  # another seed: every stage of a variant runs again
    second = account_of(later)
    assert "rough rule" not in capsys.readouterr().out.split("Estimate")[-1]
    with second:
        run_stages(second, later, seconds=0.2)
    (quality,) = [one for one in second.outcomes("int8") if one.stage == "quality"]
    assert quality.expected_s == pytest.approx(0.1, rel=0.5)
    assert quality.relative_error == pytest.approx(0.5, abs=0.3)
    metrics = estimate_metrics(second.outcomes("int8"))
    assert metrics["estimate/quality/relative_error"] == quality.relative_error
    assert 0 < metrics["estimate/mean_abs_relative_error"] < 1
    charged = sum(one.effective_usd for one in ledger.charges(run_id=second.run_id))
    both = [metrics["cost/charged_usd"], estimate_metrics(second.outcomes("none"))["cost/charged_usd"]]
    assert sum(both) == pytest.approx(float(charged))
    assert "Estimate against actual" in capsys.readouterr().out
    kept = [one for one in estimate_errors(ledger) if one.run_id == second.run_id]
    assert {one.stage for one in kept} == {"compress", "health", "quality", "load", "price"}
    stage = next(one for one in kept if one.stage == "quality")
    assert stage.actual_s == pytest.approx(0.4, rel=0.5)  # both variants' quality
    assert stage.actual_usd > 0
    assert estimate_metrics([]) == {}


def test_a_dry_run_writes_nothing(config, tmp_path, capsys) -> None:
    (tmp_path / "finops.db").unlink()
    account_of(replace(config, dry_run=True))
    assert "rough rule" in capsys.readouterr().out
    assert not (tmp_path / "finops.db").exists()


@pytest.mark.parametrize(("share", "num_recorded"), [(1.0, 1), (0.5, 0), (0.0, 0)])
def test_a_stage_that_found_part_of_its_work_done_is_no_basis_for_estimates(
    config, ledger, share, num_recorded
) -> None:
    with account_of(config) as account:
        stage = run_plan(config, PRICE).variants.all[0].load
        stored(stage, store_of(account, config), lambda folder: {"points": [], "work_share": share})
    with ledger.database.read() as connection:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM finops_stage_runs WHERE stage = 'load' AND status = 'completed'"
        ).scalar()
    assert found == num_recorded
    assert len(estimate_errors(ledger)) == 1, "it is held against its own estimate all the same"


# Budgets --------------------------------------------------------------------------------------------------------------


def state_of_holds(tmp_path: Path) -> list[tuple[str, int]]:
    with sqlite3.connect(tmp_path / "finops.db") as connection:
        return connection.execute("SELECT state, used_pico FROM finops_holds").fetchall()


def test_without_a_budget_nothing_is_held(config, ledger, tmp_path) -> None:
    Budgets(ledger).define("others", limit_usd=Decimal(1), team="search")
    with account_of(config) as account:
        run_stages(account, config)
    assert state_of_holds(tmp_path) == []


def test_the_upper_end_is_held_and_settled(config, ledger, tmp_path) -> None:
    Budgets(ledger).define("research", limit_usd=Decimal(100_000), team="research")
    account = account_of(config)
    with account:
        (budget,) = Budgets(ledger).status()
        assert budget.reserved_usd == pytest.approx(account.estimates.high_usd, abs=Decimal("0.000001"))
        run_stages(account, config)
    (budget,) = Budgets(ledger).status()
    assert budget.reserved_usd == 0
    assert budget.spent_usd == ledger.total_usd(run_id=account.run_id) > 0
    ((state, used),) = state_of_holds(tmp_path)
    assert (state, used) == ("settled", int(budget.spent_usd.scaleb(12)))


def test_a_failed_run_gives_its_hold_back(config, ledger, tmp_path) -> None:
    Budgets(ledger).define("research", limit_usd=Decimal(100_000), team="research")
    with pytest.raises(ToolError), account_of(config):
        raise ToolError("vLLM died")
    assert state_of_holds(tmp_path) == [("released", 0)]


def test_a_run_that_would_pass_its_budget_is_rejected_before_it_spends(config, ledger, tmp_path) -> None:
    Budgets(ledger).define("research", limit_usd=Decimal(1), team="research")
    with pytest.raises(BudgetExceededError, match=r"research \(month .*limit 1\.00 USD") as raised, account_of(config):
        pytest.fail("it must not start")
    assert raised.value.exit_code == 4
    assert (
        f"python -m pipeline budgets set research --limit-usd AMOUNT --period month --team research --ledger sqlite:///{tmp_path}/finops.db"
        in str(raised.value)
    )
    assert state_of_holds(tmp_path) == []
    assert ledger.charges() == []


def test_a_long_stage_asks_for_more_and_stops_on_a_no(config, ledger, monkeypatch) -> None:
    with account_of(config) as first:
        run_stages(first, config, seconds=0.01)
    later = replace(config, seed=1)
    account = account_of(later)
    Budgets(ledger).define("research", limit_usd=ledger.total_usd() + account.estimates.high_usd + 1, team="research")
    monkeypatch.setattr(account_module, "KEEP_EVERY_S", 0.05)

    store, ref = store_of(account, config), StageRef("quality", stage_key("quality", {}), "none")

    def endless(folder: Path) -> dict[str, object]:
        for _ in range(400):
            time.sleep(0.02)
            store.progressed(ref)
        return {}

    with pytest.raises(BudgetExceededError, match="would pass its budget"), account:
        store.run("quality", {}, endless, label="none")
    (charge,) = {one.status for one in ledger.charges(run_id=account.run_id)}
    assert charge == "failed"


def take_hold_away_and_go_on(account: Billing, config: RunConfig, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "finops.db") as connection:
        connection.execute("UPDATE finops_holds SET state = 'released'")
    time.sleep(0.2)
    run_stages(account, config)


def test_a_hold_that_is_gone_stops_the_next_stage(config, ledger, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(account_module, "KEEP_EVERY_S", 0.02)
    Budgets(ledger).define("research", limit_usd=Decimal(100_000), team="research")
    account = account_of(config)
    with pytest.raises(ReservationError), account:
        take_hold_away_and_go_on(account, config, tmp_path)
    assert ledger.charges(run_id=account.run_id) == []


def test_an_alert_reaches_the_mlflow_run_once(config, ledger) -> None:
    with account_of(config) as first:
        run_stages(first, config, seconds=0.05)
    later = replace(config, seed=1)
    account = account_of(later)
    Budgets(ledger).define("research", limit_usd=ledger.total_usd() + account.estimates.high_usd + 1, team="research")
    tags: list[tuple[str, str]] = []
    with account:
        run_stages(account, later, seconds=0.05)
        Budgets(ledger).define("research", limit_usd=ledger.total_usd() * Decimal("1.1"), team="research")
        account.deliver_alerts(lambda name, value: tags.append((name, value)))
        account.deliver_alerts(lambda name, value: tags.append((name, value)))
    ((name, text),) = tags
    assert name == "budget_alert"
    assert "80% reached" in text


# Approvals ------------------------------------------------------------------------------------------------------------


def with_threshold(config: RunConfig, usd: float) -> RunConfig:
    return replace(config, finops=replace(config.finops, approval=ApprovalConfig(usd)))


def test_a_dear_run_waits_until_somebody_else_approves_it(config, ledger, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PARSIMONY_USER", "ann")
    dear = with_threshold(config, 1.0)
    with pytest.raises(ApprovalRequiredError) as raised, account_of(dear):
        pytest.fail("it must not start")
    assert raised.value.exit_code == 3
    assert f"python -m pipeline approvals approve 1 --ledger sqlite:///{tmp_path}/finops.db" in str(raised.value)
    Approvals(ledger).decide(1, approve=True, who="bob")
    with account_of(dear) as account:
        run_stages(account, dear)
    assert ledger.charges(run_id=account.run_id)


@pytest.mark.parametrize("change", ["plan", "tags", "price"])
def test_another_plan_or_price_needs_another_approval(config, ledger, monkeypatch, change) -> None:
    monkeypatch.setenv("PARSIMONY_USER", "ann")
    dear, price = with_threshold(config, 1.0), PRICE
    with pytest.raises(ApprovalRequiredError), account_of(dear):
        pass
    Approvals(ledger).decide(1, approve=True, who="bob")
    if change == "plan":
        dear = replace(dear, seed=1)
    elif change == "tags":
        dear = replace(dear, tags={**dear.tags, "team": "search"})
    else:
        price = replace(PRICE, source="another invoice")
    with pytest.raises(ApprovalRequiredError, match="request 2"), account_of(dear, price):
        pass


def test_a_cheap_run_waits_for_nobody(config, ledger) -> None:
    with account_of(with_threshold(config, 999_999.0)) as account:
        run_stages(account, config)
    assert Approvals(ledger).all() == []


def test_a_promotion_waits_for_somebody_elses_approval(config, ledger, monkeypatch) -> None:
    monkeypatch.setenv("PARSIMONY_USER", "ann")
    subject = Subject("tiny", "int8", "d" * 64, "run-1")
    with account_of(config) as account:
        with pytest.raises(PromotionRefusedError, match="request 1") as raised:
            account.approver(subject)
        assert "someone other than ann" in str(raised.value)
        Approvals(ledger).decide(1, approve=True, who="bob")
        assert account.approver(subject) == "bob"
        with pytest.raises(PromotionRefusedError, match="request 2"):
            account.approver(replace(subject, digest="e" * 64))
        Approvals(ledger).decide(2, approve=False, reason="worse answers", who="bob")
        with pytest.raises(PromotionRefusedError, match="worse answers"):
            account.approver(replace(subject, digest="e" * 64))
