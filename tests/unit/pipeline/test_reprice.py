import json
import random
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from evals.config import GateConfig
from evals.cost.token_cost import cost_report, decimal, reprice
from evals.types import LoadPoint, LoadReport, Price
from finops.pricing.prices import default_catalog, lookup
from pipeline.cli.reprice import check_machine, main, pricing_of, rows
from pipeline.config import HardwareConfig, RunConfig, TrackingConfig
from pipeline.record import cost_rows as amounts
from pipeline.record.cost_rows import CostRun, cost_runs, write
from pipeline.record.metrics import cost_metrics, price_metrics
from pipeline.record.reprice import Pricing, amounts_to_write, reprice_all, reprice_metrics

NOW = datetime(2026, 11, 1, tzinfo=UTC)
L4 = lookup("l4-24gb")


def a_report(rates: tuple[float, ...]) -> LoadReport:
    repeats = tuple({"req_per_s": rate, "total_tok_per_s": 160 * rate, "output_tok_per_s": 32 * rate} for rate in rates)
    return LoadReport("quick", (LoadPoint("c8-128x32", 8, 128, 32, repeats, 0),))


def metrics_of(rates: tuple[float, ...], price: Price = L4, utilisation: str = "0.4") -> dict[str, float]:
    report = cost_report(a_report(rates), price, Decimal(utilisation))
    return cost_metrics(report) | price_metrics(report)


def test_where_it_may_run_removes_offers_and_is_part_of_the_name() -> None:
    pricing = Pricing(residency=("SG", "au"))
    assert pricing.name == "on_demand-au-sg"
    (one,) = reprice_all([a_run()], pricing)
    assert not one.metrics
    assert "it does not say in which country it stands" in one.reason


def a_run(label: str = "int8", hardware: str = "l4-24gb", **changes: Any) -> CostRun:
    tags = {"label": label, "hardware": hardware, "role": "candidate", "purchase_option": "on_demand"}
    return CostRun(label * 4, tags | {"candidate_key": label}, metrics_of((10.0, 11.0, 12.0)) | changes)


rates = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=4).map(tuple)
hourly = st.decimals("0.01", "100", places=4)


@given(rates, hourly, st.decimals("0", "20", places=4), st.decimals("0.05", "1", places=3))
def test_it_is_the_cost_of_the_same_measurement_under_the_new_price(
    found: tuple[float, ...], low: Decimal, width: Decimal, utilisation: Decimal
) -> None:
    price = Price("l4-24gb", low, low + width, "spot", "test", "2026")
    ours = reprice_metrics(metrics_of(found), price, utilisation)
    theirs = cost_metrics(reprice(cost_report(a_report(found), L4), price, utilisation))
    assert ours == pytest.approx(theirs, rel=1e-9)
    measured = cost_metrics(cost_report(a_report(found), price, utilisation))
    assert ours["cost/usd_per_1k_tokens"] == pytest.approx(measured["cost/usd_per_1k_tokens"], rel=1e-9)


def test_the_same_price_changes_nothing_and_spot_is_the_catalogs_ratio() -> None:
    run = a_run()
    (same,) = reprice_all([run], Pricing("on_demand"))
    assert same.metrics == pytest.approx({name: run.metrics[name] for name in same.metrics}, rel=1e-12)
    (spot,) = reprice_all([run], Pricing("spot"))
    ratio = lookup("l4-24gb", "spot").usd_per_hour / L4.usd_per_hour
    expected = run.metrics["cost/usd_per_1k_tokens"] * float(ratio)
    assert spot.metrics["cost/usd_per_1k_tokens"] == pytest.approx(expected, rel=1e-12)


def test_a_spot_price_holds_what_is_lost_when_the_machine_is_taken_back() -> None:
    ours = default_catalog()
    taken_back = [
        replace(offer, interruptions_per_hour=Decimal("0.1")) if offer.purchase_option == "spot" else offer
        for offer in ours.offers
    ]
    spot = Pricing("spot", catalog=replace(ours, offers=tuple(taken_back)))
    (plain,) = reprice_all([a_run()], Pricing("spot"))
    unmeasured, minutes = reprice_all([a_run(), a_run("b", **{"cost/startup_s": 360.0})], spot)
    name = "cost/usd_per_1k_tokens"
    assert unmeasured.metrics == plain.metrics
    assert minutes.metrics[name] == pytest.approx(plain.metrics[name] * 1.01)


def test_utilisation_moves_the_headline_and_not_the_peak() -> None:
    run = a_run()
    (one,) = reprice_all([run], Pricing(utilisation=Decimal("0.8")))
    assert one.metrics["cost/usd_per_1k_tokens"] == pytest.approx(run.metrics["cost/usd_per_1k_tokens"] / 2)
    name = "cost/peak/usd_per_1k_tokens"
    assert one.metrics[name] == pytest.approx(run.metrics[name])


def test_an_amount_that_was_not_measured_stays_missing() -> None:
    run = CostRun("r", {"hardware": "l4-24gb"}, {k: v for k, v in a_run().metrics.items() if "peak" not in k})
    (one,) = reprice_all([run], Pricing("spot"))
    assert not any("peak" in name or "input" in name for name in one.metrics)


def test_what_cannot_be_priced_says_why() -> None:
    old = CostRun("old", {"hardware": "cpu"}, {"cost/usd_per_1k_tokens": 1.0})
    no_spot = a_run("none", hardware="cpu")
    unrecorded, unpriced = reprice_all([old, no_spot], Pricing("spot"))
    assert "older version" in unrecorded.reason
    assert "no 'spot' offer for cpu" in unpriced.reason
    assert not amounts_to_write([unrecorded, unpriced], "spot", NOW)


def test_a_run_stays_on_the_hardware_that_it_was_measured_on() -> None:
    runs = [a_run("a"), a_run("b", hardware="h100-80gb")]
    assert [one.run.run_id for one in reprice_all(runs, Pricing("spot", hardware="l4-24gb"))] == ["aaaa"]
    with pytest.raises(ConfigError, match=r"no run of 'm' was measured on it; measured on: h100-80gb \(1 runs\)"):
        check_machine(runs, Pricing(hardware="t4-16gb"), "m")
    with pytest.raises(ConfigError, match="which machine costs this"):
        check_machine(runs, Pricing(usd_per_hour=Decimal(1)), "m")
    check_machine(runs, Pricing(usd_per_hour=Decimal(1), hardware="l4-24gb"), "m")


def test_the_provenance_holds_both_prices_source_and_date() -> None:
    (one,) = amounts_to_write(reprice_all([a_run()], Pricing("spot")), "spot", NOW)
    assert set(one.tags) == {"reprice.spot"}
    told = json.loads(one.tags["reprice.spot"])
    spot = lookup("l4-24gb", "spot")
    assert told["usd_per_hour"] == [str(spot.usd_per_hour_lo), str(spot.usd_per_hour_hi)]
    assert (told["source"], told["as_of"], told["repriced_at"]) == (spot.source, "2026", "2026-11-01T00:00:00+00:00")
    assert told["before"] == {"purchase_option": "on_demand", "usd_per_hour": [0.7, 0.95], "utilisation": 0.4}
    assert all(name.startswith("reprice/spot/cost/") for name in one.metrics)


def test_only_a_given_utilisation_counts() -> None:
    config = RunConfig(hardware=HardwareConfig(purchase_option="spot"), gate=GateConfig(utilisation=0.7))
    assert pricing_of(config, ["model=x"], None, NOW.date()).utilisation is None
    assert pricing_of(config, ["gate.utilisation=0.7"], None, NOW.date()).utilisation == Decimal("0.7")
    config.gate.utilisation = 1.5
    with pytest.raises(ConfigError, match=r"gate.utilisation: 1.5 is not allowed"):
        pricing_of(config, ["gate.utilisation=1.5"], None, NOW.date())


def test_the_table_shows_the_newest_of_each_candidate_cheapest_first() -> None:
    cheap, dear = a_run("cheap"), a_run("dear", **{"cost/usd_per_1k_tokens": 1.0, "cost/usd_per_1k_tokens.hi": 2.0})
    older = CostRun("older", cheap.tags, dear.metrics)
    shown = rows(reprice_all([dear, cheap, older], Pricing("spot")))
    assert [row[0] for row in shown] == ["cheap", "dear"]
    assert shown[0][-1] == f"{float(lookup('l4-24gb', 'spot').usd_per_hour / L4.usd_per_hour) - 1:+.1%}"


SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name VARCHAR(256));
CREATE TABLE runs (run_uuid VARCHAR(32) PRIMARY KEY, experiment_id INTEGER, status VARCHAR(9), start_time BIGINT,
    end_time BIGINT, lifecycle_stage VARCHAR(20));
CREATE TABLE tags (key VARCHAR(250) NOT NULL, value VARCHAR(8000), run_uuid VARCHAR(32) NOT NULL,
    PRIMARY KEY (key, run_uuid));
CREATE INDEX index_tags_run_uuid ON tags (run_uuid);
CREATE TABLE latest_metrics (key VARCHAR(250) NOT NULL, value FLOAT NOT NULL, timestamp BIGINT, step BIGINT NOT NULL,
    is_nan BOOLEAN NOT NULL, run_uuid VARCHAR(32) NOT NULL, PRIMARY KEY (key, run_uuid));
CREATE INDEX index_latest_metrics_run_uuid ON latest_metrics (run_uuid);
CREATE TABLE metrics (key VARCHAR(250) NOT NULL, value FLOAT NOT NULL, timestamp BIGINT NOT NULL,
    run_uuid VARCHAR(32) NOT NULL, step BIGINT DEFAULT '0' NOT NULL, is_nan BOOLEAN DEFAULT '0' NOT NULL,
    PRIMARY KEY (key, timestamp, step, run_uuid, value, is_nan));
CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid);
CREATE INDEX index_metrics_run_uuid_key_step ON metrics (run_uuid, key, step);
INSERT INTO experiments VALUES (1, 'parsimony'), (2, 'other');
"""
"""The tables of MLflow 3.17 that are read or written; tests/integration/test_reprice.py uses a store made by MLflow."""


def a_store(folder: Path, num_runs: int) -> TrackingConfig:
    rng = random.Random(0)
    runs, tags, metrics = [], [], []
    for number in range(num_runs):
        run_id = f"{number:032x}"
        runs.append((run_id, 1, "FINISHED", number, number, "active"))
        named = {"model": "many", "role": "candidate", "label": f"v{number}", "hardware": "l4-24gb"}
        named |= {"candidate_key": run_id, "purchase_option": "on_demand"}
        tags += [(key, value, run_id) for key, value in named.items()]
        values = metrics_of((rng.uniform(1, 9), rng.uniform(1, 9))) | {"quality/mean": 0.5}
        triple = {
            f"cost/usd_per_1k_{what}_tokens{end}": 0.01 for what in ("input", "output") for end in ("", ".lo", ".hi")
        }
        metrics += [(key, value, run_id) for key, value in (values | triple).items()]
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO runs VALUES (?,?,?,?,?,?)", runs)
        connection.executemany("INSERT INTO tags VALUES (?,?,?)", tags)
        connection.executemany("INSERT INTO latest_metrics VALUES (?,?,0,0,0,?)", metrics)
    return TrackingConfig(f"sqlite:///{folder}/mlflow.db")


@pytest.mark.slow
def test_ten_thousand_runs_are_priced_in_two_seconds(tmp_path: Path) -> None:
    """Processor time: a busy machine does not decide. Writing 150,000 metrics with their history comes on top."""
    tracking = a_store(tmp_path, 10_000)
    began = time.process_time()
    repriced = reprice_all(cost_runs(tracking, "many"), Pricing("spot"))
    added = amounts_to_write(repriced, "spot", NOW)
    priced_s = time.process_time() - began
    write(tracking, added)
    written_s = time.process_time() - began - priced_s
    assert len(repriced) == 10_000
    again = cost_runs(tracking, "many")
    assert again[0].run_id == f"{9999:032x}", "newest first"
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        (count,) = connection.execute("SELECT count(*) FROM latest_metrics WHERE key LIKE 'reprice/%'").fetchone()
    assert count == 10_000 * 15
    assert priced_s < 2, f"{priced_s:.2f} s"
    assert written_s < 6, f"{written_s:.2f} s"


def test_repricing_again_replaces_the_value_and_keeps_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = a_store(tmp_path, 1)
    for now_ns, option in ((1_000_000, "spot"), (2_000_000, "reserved_1y")):
        monkeypatch.setattr(amounts.time, "time_ns", lambda now_ns=now_ns: now_ns)
        repriced = reprice_all(cost_runs(tracking, "many"), Pricing(option))
        write(tracking, amounts_to_write(repriced, "mine", NOW))
    name = "reprice/mine/cost/usd_per_1k_tokens"
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        latest = connection.execute("SELECT value FROM latest_metrics WHERE key = ?", (name,)).fetchall()
        history = connection.execute("SELECT value FROM metrics WHERE key = ? ORDER BY timestamp", (name,)).fetchall()
        (tag,) = connection.execute("SELECT value FROM tags WHERE key = 'reprice.mine'").fetchone()
    assert len(history) == 2
    assert latest == history[1:]
    assert json.loads(tag)["purchase_option"] == "reserved_1y"


def test_all_runs_or_none_are_written(tmp_path: Path) -> None:
    tracking = a_store(tmp_path, 2)
    good, bad = amounts_to_write(reprice_all(cost_runs(tracking, "many"), Pricing("spot")), "spot", NOW)
    broken = amounts.Annotation(bad.run_id, bad.metrics, {"reprice.spot": object()})  # type: ignore[dict-item]
    with pytest.raises(sqlite3.Error):
        write(tracking, [good, broken])
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (0,)


def test_other_experiments_models_and_unfinished_runs_are_left_alone(tmp_path: Path) -> None:
    tracking = a_store(tmp_path, 4)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE runs SET experiment_id = 2 WHERE start_time = 0")
        connection.execute("UPDATE runs SET status = 'RUNNING' WHERE start_time = 1")
        connection.execute("UPDATE tags SET value = 'stage' WHERE key = 'role' AND run_uuid = ?", (f"{2:032x}",))
    assert [run.run_id for run in cost_runs(tracking, "many")] == [f"{3:032x}"]
    assert cost_runs(tracking, "another") == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = a_store(tmp_path, 3)
    model = tmp_path / "many"
    arguments = ["model=local", f"model.path={model}", f"tracking.uri={tracking.uri}", f"home={tmp_path}"]
    assert main([*arguments, "hardware.purchase_option=spot", "gate.utilisation=0.7"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 runs re-priced as 'spot-u0.7'" in shown
    utilisation = decimal(0.4) / decimal(0.7)
    change = lookup("l4-24gb", "spot").usd_per_hour / L4.usd_per_hour * utilisation - 1
    assert f"{float(change):+.1%}" in shown
    with pytest.raises(ConfigError, match="no run is recorded"):
        main(["model=local", "model.path=/nowhere/else", f"tracking.uri={tracking.uri}", f"home={tmp_path}"])
