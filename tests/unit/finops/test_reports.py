"""What the ledger tells: showback, metrics, estimates, savings, pages and exposition."""

from __future__ import annotations

import threading
import urllib.request
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser

import pytest
from every_kind import GPU, HOUR, START, TAGS, fill
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ConfigError, UserError
from core.svg import bars, gauge, scatter, stacked_bars
from finops.cli import approvals, budgets, report
from finops.controls.budgets import Budgets
from finops.ledger.charges import Rate, device_charge
from finops.ledger.ledger import Ledger
from finops.reports.estimates import (
    estimate_errors,
    estimate_run,
    mean_absolute_relative_error,
    record_stage,
    save_estimate,
)
from finops.reports.html import as_html
from finops.reports.kpis import kpis
from finops.reports.prometheus import collect, exposition, render, server
from finops.reports.report import as_csv, as_text, gather
from finops.reports.savings import record_promotion, right_size, savings
from finops.reports.showback import cube, showback
from finops.reports.work import StageWork, rough_seconds, two_digits_up

ONE = Rate(Decimal(1), "v1")


def use(ledger, *, name, start=START, hours=1.0, team="research", rate=ONE, usage=None, **tags):
    charge = device_charge(
        run_id=f"run-{name}", stage="serve", resource=replace(GPU, id=name), rate=rate, start=start,
        tags=TAGS | {"team": team} | tags, end=start + timedelta(hours=hours),
    ).with_usage(**(usage or {}))  # fmt: skip
    ledger.record(charge)
    return charge


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400), st.integers(0, 10**7)), max_size=20))
def test_shares_add_up_to_the_ledger(make_ledger, spends):
    ledger = make_ledger()
    for index, (team, day, micro) in enumerate(spends):
        rate = Rate(Decimal(micro).scaleb(-6), "v1")
        use(ledger, name=str(index), team=team, start=START + timedelta(days=day), rate=rate)
    found = showback(ledger)
    assert sum((share.usd for share in found), Decimal(0)) == ledger.total_usd()
    for share in found:
        assert sum(share.by_month.values()) == share.usd
        assert share.num_charges == sum(team == share.team for team, _, _ in spends)


def test_showback_has_trend_drivers_and_lost_work(ledger):
    use(ledger, name="a", hours=4)
    use(ledger, name="b", hours=6, start=START + timedelta(days=31))
    use(ledger, name="c", hours=1, workload_type="training", start=START + timedelta(days=31))
    (share,) = showback(ledger)
    assert share.trend == pytest.approx(7 / 4 - 1)
    assert share.drivers[0] == ("evaluation of smollm2 on NVIDIA L4", Decimal(10))
    assert len(cube(ledger, start=START.replace(day=1), end=START.replace(month=11, day=1))) == 1
    with pytest.raises(UserError, match="'reserch' has no charge; did you mean 'research'"):
        cube(ledger, team="reserch")
    with pytest.raises(UserError, match="--to"):
        cube(ledger, start=START, end=START)


def test_metrics_say_what_was_not_measured(ledger):
    values = {kpi.name: kpi for kpi in kpis(ledger)}
    assert all(kpi.value is None and kpi.reason for kpi in values.values() if kpi.name != "idle_hours")
    assert values["cache_hit_rate"].text == "not measured: there is no cache"
    fleet = {"input_tokens": 900_000, "output_tokens": 100_000, "num_requests": 2000, "busy_micro": 7_500_000}
    use(ledger, name="fleet", hours=10, usage=fleet, workload_type="inference")
    use(ledger, name="quiet", hours=10, workload_type="inference")
    spot = Rate(Decimal("0.5"), "v1", "spot")
    use(ledger, name="t1", hours=9, workload_type="training", rate=spot)
    use(ledger, name="t2", hours=1, workload_type="fine-tuning")
    use(ledger, name="e1", hours=2)
    use(ledger, name="e2", hours=1)
    values = {kpi.name: kpi for kpi in kpis(ledger, revenue_usd=Decimal(300))}
    assert values["usd_per_1k_tokens"].value == Decimal("0.01")
    assert values["usd_per_1k_inferences"].value == Decimal(5)
    assert values["usd_per_training_hour"].value == Decimal("0.55")
    assert values["usd_per_evaluation"].value == Decimal("1.5")
    assert values["gpu_utilization_inference"].value == pytest.approx(0.75)
    assert values["gpu_utilization_inference"].met is True
    assert values["gpu_utilization_training"].met is None, "not measured is neither met nor missed"
    assert (values["spot_coverage_training"].value, values["spot_coverage_training"].met) == (0.9, True)
    assert values["tokens_per_device_hour"].value == 100_000
    assert values["cost_share_of_revenue"].value == Decimal("28.5") / 300


def test_before_any_run_the_rough_rule_is_named(ledger):
    work = StageWork("quantize", "awq", "NVIDIA L4", "GPU", 135_000_000, 65_536)
    (stage,) = estimate_run(ledger, [work], ONE).stages
    assert "rough rule" in stage.basis
    assert stage.expected_s == rough_seconds(work) > 60
    assert stage.high_s / stage.expected_s == stage.expected_s / stage.low_s == 4


def test_estimates_scale_similar_runs_and_grow_sure(ledger, clock):
    work = StageWork("quantize", "awq", "NVIDIA L4", "GPU", 100, 1000, fixed_s=0.0)
    widths = []
    for index, seconds in enumerate([100.0, 110.0, 90.0, 100.0, 105.0]):
        record_stage(ledger, f"r{index}", work, seconds)
        record_stage(ledger, f"r{index}", work, 9999.0, status="failed")
        clock.advance(60)
        (stage,) = estimate_run(ledger, [work], ONE).stages
        widths.append(stage.high_s / stage.low_s)
    assert widths == sorted(widths, reverse=True)
    assert stage.expected_s == pytest.approx(100.8, abs=0.5)
    assert stage.low_s < 90 < 110 < stage.high_s
    assert "5 recorded runs of quantize by awq" in stage.basis
    (double,) = estimate_run(ledger, [replace(work, num_parameters=200, num_devices=2)], ONE).stages
    assert double.expected_s == pytest.approx(2 * stage.expected_s)
    assert double.high_s / double.low_s > stage.high_s / stage.low_s, "further away is less certain"
    assert double.expected_usd == pytest.approx(4 * stage.expected_usd, rel=Decimal("0.001"))
    (other,) = estimate_run(ledger, [replace(work, method="gptq")], ONE).stages
    assert "other methods" in other.basis


def test_what_a_stage_takes_whatever_its_size_does_not_scale(ledger):
    small = StageWork("quality", "none", "NVIDIA L4", "GPU", 100, 1000, fixed_s=30.0)
    record_stage(ledger, "r", small, 40.0)
    (large,) = estimate_run(ledger, [replace(small, num_tokens=10_000)], ONE).stages
    assert large.expected_s == pytest.approx(30 + 10 * 10)


@given(seconds=st.floats(0.1, 1e5), scale=st.floats(1e-3, 1e3), runs=st.integers(1, 4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_range_is_wider_than_the_rough_rules_and_one_similar_run_narrows_it(make_ledger, seconds, scale, runs):
    ledger, work = make_ledger(), StageWork("load", "none", "NVIDIA L4", "GPU", 100, 1_000_000, fixed_s=15.0)
    for index in range(runs):
        record_stage(ledger, f"r{index}", work, seconds * (1 + index))
    (similar,) = estimate_run(ledger, [work], ONE).stages
    (far,) = estimate_run(ledger, [replace(work, num_tokens=round(1_000_000 * scale))], ONE).stages
    assert similar.high_s <= 4 * similar.expected_s * (1 + 1e-9)
    assert far.high_s <= 4 * far.expected_s * (1 + 1e-9)
    ledger.close()


def test_an_approval_binds_to_two_digits_rounded_up(ledger):
    work = StageWork("serve", "bf16", "NVIDIA L4", "GPU")
    record_stage(ledger, "r", work, 1000.0)
    run = estimate_run(ledger, [work], ONE)
    terms = two_digits_up(run.high_usd)
    assert run.high_usd <= terms <= run.high_usd * Decimal("1.1")
    assert len(terms.as_tuple().digits) == 2
    assert two_digits_up(estimate_run(ledger, [work], Rate(Decimal(0), "free")).high_usd) == 0


def test_estimate_is_held_against_actual(ledger):
    work = StageWork("serve", "bf16", "NVIDIA L4", "GPU")
    run = estimate_run(ledger, [work], ONE)
    save_estimate(ledger, "run-x", run)
    record_stage(ledger, "run-x", work, 120.0)
    use(ledger, name="x", hours=1 / 30)
    (error,) = estimate_errors(ledger)
    assert (error.expected_s, error.actual_s, error.within_range) == (60, 120, True)
    assert error.relative_error == pytest.approx(0.5)
    assert error.actual_usd == pytest.approx(Decimal(1) / 30, abs=Decimal("1e-5"))
    assert mean_absolute_relative_error([error]) == pytest.approx(0.5)
    assert mean_absolute_relative_error([]) is None


def test_a_promotions_saving_ends_with_the_next(ledger, clock):
    clock.now = START
    common = {"model_name": "chat", "team": "research", "decision_usd": Decimal("0.5")}
    record_promotion(ledger, run_id="run-p", model_id="v2", replaced_model_id="v1", usd_per_1k_tokens=Decimal("0.002"),
                     replaced_usd_per_1k_tokens=Decimal("0.003"), **common)  # fmt: skip
    for day in (1, 2, 8):
        served = {"model_id": "v2", "output_tokens": 1_000_000}
        use(ledger, name=f"s{day}", start=START + timedelta(days=day), usage=served, workload_type="inference")
    clock.advance(5 * 86400)
    record_promotion(ledger, run_id="run-q", model_id="v3", usd_per_1k_tokens=Decimal("0.001"), **common)
    first, second = savings(ledger)
    assert (first.num_tokens, first.usd) == (2_000_000, Decimal(2))
    assert (second.usd, second.reason) == (None, "it replaced no model with a known price")


def test_right_sizing_finds_the_number_that_saves_most(ledger):
    for index in range(3):  # two devices all day, a third for an hour
        use(ledger, name=f"d{index}", hours=24 if index < 2 else 1)
    (found,) = right_size(ledger, {"NVIDIA L4": Decimal("0.6"), "NVIDIA T4": Decimal("0.1")})
    assert (found.best_num, found.period_hours, found.break_even) == (2, 24, pytest.approx(0.6))
    assert found.saving_by_num == (Decimal("9.60"), Decimal("19.20"), Decimal("5.80"))


def test_reserving_pays_for_nobody_below_break_even(ledger):
    use(ledger, name="a", hours=1)
    use(ledger, name="b", hours=1, start=START + 23 * HOUR)
    (found,) = right_size(ledger, {"NVIDIA L4": Decimal("0.6")})
    assert (found.best_num, found.best_saving_usd) == (0, 0)


class Page(HTMLParser):
    """Collects what a page would fetch, and its texts."""

    def __init__(self):
        super().__init__()
        self.fetched, self.texts, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def full(ledger) -> Ledger:
    fill(ledger)
    Budgets(ledger).define("<b>team & co</b>", limit_usd=Decimal(1000))
    work = StageWork("serve", "bf16", "NVIDIA L4", "GPU")
    save_estimate(ledger, "run-x", estimate_run(ledger, [work], ONE))
    record_stage(ledger, "run-x", work, 120.0)
    return ledger


def test_the_three_renderings_show_the_same_figures(full):
    found = gather(full, reserved_usd_per_hour={"NVIDIA L4": Decimal("0.495")})
    text, page, table = as_text(found), as_html(found), as_csv(found)
    total = f"{found.total_usd:.2f}"
    for rendering in (text, page.replace(",", ""), table):
        assert total in rendering
        assert "not measured: there is no cache" in rendering
    assert "nothing recorded" in text


def test_the_page_stands_alone_and_escapes(full):
    page = Page()
    page.feed(as_html(gather(full, reserved_usd_per_hour={"NVIDIA L4": Decimal("0.495")})))
    assert page.fetched == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert any("<b>team & co</b>" in text for text in page.texts)
    assert page.tags.count("svg") >= 5


def test_an_empty_ledger_gives_an_empty_report(ledger):
    found = gather(ledger)
    assert ">0 USD<" in as_html(found)
    assert "nothing recorded" in as_text(found)


def test_csv_cells_are_no_formulas(ledger):
    use(ledger, name="x", team="=HYPERLINK(1)")
    assert ",'=HYPERLINK(1)," in as_csv(gather(ledger))


@pytest.mark.parametrize(
    "svg",
    [
        stacked_bars(["2026-01", "2026-02"], {f"t{n}": [n, -n] for n in range(9)}, "USD"),
        stacked_bars([], {}, "USD"),
        stacked_bars(["a"], {"t": [0.0]}, "USD"),
        bars([("a & b", 3.0), ("c", -2.0), ("d", 0.0)], "USD"),
        gauge("over", [("spent", 120.0), ("reserved", 5.0)], 100.0, "USD"),
        gauge("zero", [("spent", 0.0)], 0.0, "USD"),
        scatter([(1.0, 1.0, "x"), (1000.0, 0.02, "y")], "a", "b"),
        scatter([(1.0, 1.0, "one")], "a", "b"),
    ],
)
def test_charts_are_well_formed_and_inside_their_frame(svg):
    root = ET.fromstring(svg)
    _, _, width, height = (float(value) for value in root.attrib["viewBox"].split())
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0 <= y
        assert w >= 0 <= h
        assert x + w <= width + 1
        assert y + h <= height + 1


@pytest.mark.parametrize(
    ("largest", "labels"),
    [(4_000_000.0, [">0<", ">1,000,000<", ">4,000,000<"]), (100.0, [">50<", ">100<"]), (0.04, [">0.01<", ">0.04<"])],
)
def test_an_axis_is_labelled_in_plain_numbers(largest, labels):
    svg = stacked_bars(["2026-01"], {"team": [largest]}, "USD")
    assert all(label in svg for label in labels), svg


def test_a_large_total_is_legible(ledger):
    use(ledger, name="big", hours=1_000, rate=Rate(Decimal("1234.5"), "v1"))
    assert ">1,234,500.00 USD<" in as_html(gather(ledger))


def test_metrics_are_exposed_without_missing_ones(full):
    text = render(collect(full))
    assert "parsimony_ledger_up 1.0" in text
    assert 'parsimony_budget_limit_usd{budget="<b>team & co</b>",period="month"} 1000.0' in text
    assert "cache" not in text
    assert "parsimony_inference_utilization_ratio" not in text, "not measured is absent, never 0"
    spent = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("parsimony_spend_usd{"))
    assert spent == pytest.approx(float(full.total_usd()))


def test_labels_are_escaped(ledger):
    use(ledger, name="x", team='a"b\\c\nd')
    assert 'team="a\\"b\\\\c\\nd"' in render(collect(ledger))


def test_an_unreadable_ledger_is_down_not_free(tmp_path):
    text = exposition(lambda: Ledger(str(tmp_path / "none.db"), create=False))
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["parsimony_ledger_up 0.0"]


def test_the_server_answers(full):
    listening = server(lambda: Ledger(full.database.url, create=False, clock=full.clock), "127.0.0.1", 0)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{listening.server_address[1]}"
    try:
        with urllib.request.urlopen(f"{base}/metrics", timeout=10) as answer:
            assert "version=0.0.4" in answer.headers["Content-Type"]
            assert b"parsimony_ledger_up 1.0" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/", timeout=10)
        with pytest.raises(UserError, match="cannot listen"):
            server(lambda: full, "127.0.0.1", listening.server_address[1])
    finally:
        listening.shutdown()
        listening.server_close()


def test_the_commands_answer(full, tmp_path, capsys):
    url = ["--ledger", full.database.url]
    assert report.main([*url, "--team", "research"]) == 0
    assert report.main([*url, "--format", "html", "--output", str(tmp_path / "r.html")]) == 0
    assert budgets.main([*url, "set", "small", "--limit-usd", "5", "--team", "research"]) == 0
    assert budgets.main([*url, "list"]) == 0
    assert approvals.main([*url, "list"]) == 0
    text = capsys.readouterr().out
    assert "SHOWBACK" in text
    assert "small: team=research" in text
    for bad, message in (
        (["--team", "nobody"], "--team"), (["--from", "soon"], "--from"), (["--format", "pdf"], "--format"),
        (["--reserved", "L4"], "--reserved"), (["--revenue-usd", "much"], "--revenue-usd"),
    ):  # fmt: skip
        with pytest.raises((UserError, ConfigError), match=message):
            report.main([*url, *bad])
    assert datetime.now(UTC) > START
