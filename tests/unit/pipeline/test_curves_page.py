from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

from evals.cost.token_cost import cost_report
from evals.decide.evidence import Evidence
from evals.types import LoadPoint, LoadReport, Price, QualityReport
from finops.pricing.prices import lookup
from pipeline.report import curves as curves_page
from pipeline.report.curves import Variant, add_to_page, choose, draw, option_prices, section, sentences, variants_of
from tests.unit.pipeline.test_decide import rounds

LOADS = (1, 4, 16)
NONE = {1: (100.0, 101.0, 99.0), 4: (300.0, 302.0, 299.0), 16: (900.0, 905.0, 899.0)}
INT4 = {1: (250.0, 251.0, 249.0), 4: (400.0, 402.0, 399.0), 16: (600.0, 605.0, 599.0)}


def a_variant(
    name: str, rates: dict[int, tuple[float, ...]], price: Price | None = None, is_baseline: bool = False
) -> Variant:
    points = tuple(
        LoadPoint(
            f"c{load}-128x32", load, 128, 32,
            tuple(
                {"total_tok_per_s": 5 * r, "output_tok_per_s": r, "req_per_s": r / 32, "tpot_p50_s": load / r}
                for r in rates[load]
            ),
            0,
        )
        for load in rates
    )  # fmt: skip
    load = LoadReport("sweep", points, mix=(128, 32))
    cost = cost_report(load, price or lookup("l4-24gb"), Decimal("0.4"))
    return Variant(name, is_baseline, Evidence(name, QualityReport({}), load, cost))


BASE = a_variant("none", NONE, is_baseline=True)
VARIANT = a_variant("int4", INT4)


def test_it_says_which_variant_is_cheapest_where_and_what_is_told_apart() -> None:
    texts = sentences([BASE, VARIANT])
    assert texts[0].startswith("Cheapest from 1 to ")
    assert texts[0].endswith("requests in flight, on average: int4.")
    assert texts[1].endswith("to 16 requests in flight, on average: none.")
    assert "price of a token by one start of each: c1-128x32 -60% [-61%, -59%], " in texts[2]
    assert "c16-128x32 +50% [+48%, +52%]" in texts[2]
    assert "cheaper" not in texts[2], "one start of each shows nothing"


def test_rounds_that_measured_both_in_turn_say_which_is_cheaper() -> None:
    beside = replace(VARIANT, evidence=replace(VARIANT.evidence, price_rounds=rounds(0.9)))
    texts = sentences([BASE, beside])
    assert "measured in turn, 4 rounds: -10.0% [-10.3%, -9.7%]: cheaper than the baseline" in texts[2]


def test_a_more_expensive_machine_counts() -> None:
    expensive = lookup("h100-80gb")
    texts = sentences([BASE, a_variant("far", INT4, price=expensive)])
    assert texts[0] == "Cheapest from 1 to 16 requests in flight, on average: none."
    assert "c1-128x32 +" in texts[1]


def test_three_pictures_are_drawn_and_put_into_the_page(tmp_path: Path) -> None:
    (tmp_path / "frontier.html").write_text("<html><body>frontier</body></html>")
    drawn = draw([BASE, VARIANT], "tiny", tmp_path)
    assert [path.name for path in drawn.files] == [curves_page.COST, curves_page.SPEED, curves_page.OPTIONS]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn.files)
    add_to_page(tmp_path / "frontier.html", drawn)
    text = (tmp_path / "frontier.html").read_text()
    assert text.count("data:image/png;base64,") == 3
    assert text.endswith("</section></body></html>")
    assert "http" not in section(drawn)


def test_names_are_text_in_the_page(tmp_path: Path) -> None:
    drawn = draw([BASE, a_variant("<b>", INT4)], "tiny", tmp_path)
    assert "&lt;b&gt;" in section(drawn)
    assert "<b>" not in section(drawn)


def test_a_machine_without_offers_and_a_report_without_figures_draw_less(tmp_path: Path) -> None:
    own = Price("my machine", Decimal("0.5"), Decimal("0.5"), "on_demand", "given by the user", "")
    drawn = draw([a_variant("none", NONE, price=own, is_baseline=True)], "tiny", tmp_path)
    assert [path.name for path in drawn.files] == [curves_page.COST, curves_page.SPEED]
    assert draw([], "tiny", tmp_path).files == ()
    nothing = a_variant("none", {1: ()})
    assert choose([nothing]) == []


def test_the_prices_by_option_are_those_of_the_same_measurement() -> None:
    prices = option_prices(VARIANT)
    assert set(prices) == {"on_demand", "reserved_1y", "spot"}
    measured = VARIANT.evidence.cost.usd_per_1k_tokens
    assert measured is not None
    assert round(prices["on_demand"].value, 15) == round(measured.value, 15)
    spot = cost_report(VARIANT.evidence.load, lookup("l4-24gb", "spot"), Decimal("0.4")).usd_per_1k_tokens
    assert spot is not None
    assert round(prices["spot"].value, 15) == round(spot.value, 15)


def test_the_baseline_and_the_cheapest_are_read_and_no_more() -> None:
    read = []

    def evidence_of(run_id: str) -> Evidence:
        read.append(run_id)
        return replace(VARIANT.evidence, label=run_id)

    def a_run(number: int, usd: float | None, role: str = "candidate") -> SimpleNamespace:
        metrics = {} if usd is None else {"cost/usd_per_1k_tokens": usd}
        info = SimpleNamespace(run_id=f"r{number}")
        return SimpleNamespace(info=info, data=SimpleNamespace(metrics=metrics, tags={"role": role}))

    runs = [a_run(0, None), *(a_run(number, 1.0 + number) for number in range(1, 20)), a_run(20, 99.0, "baseline")]
    found = variants_of(runs, [f"name{number}" for number in range(21)], evidence_of)
    assert read == ["r20", *(f"r{number}" for number in range(1, curves_page.MAX_VARIANTS))]
    assert found[0].is_baseline
    assert found[1].name == "name1"
