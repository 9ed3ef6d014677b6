"""The frontier's page in a real browser: it re-prices, sorts, and needs no network."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.report.frontier_figure import draw

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.integration, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


def a_run(label: str, quality: float | None, usd: float | None, hardware: str = "l4-24gb", role: str = "candidate"):
    """A recorded run, as MLflow hands it out."""
    lo, hi = {"l4-24gb": (0.7, 0.95), "h100-80gb": (8.5, 12.0)}[hardware]
    metrics = {"cost/usd_per_hour": (lo + hi) / 2, "cost/usd_per_hour.lo": lo, "cost/usd_per_hour.hi": hi}
    metrics |= {"cost/utilisation": 0.4, "cost/num_devices": 1.0, "size/bytes": 1e8, "load/quick/output_tok_per_s": 9.0}
    if quality is not None:
        metrics |= {"quality/mean": quality, "quality/mean.lo": quality - 0.02, "quality/mean.hi": quality + 0.02}
    if usd is not None:
        names = ("", ".lo", ".hi")
        metrics |= {f"cost/usd_per_1k_tokens{name}": usd * f for name, f in zip(names, (1, 0.9, 1.1), strict=True)}
    tags = {"label": label, "role": role, "hardware": hardware, "purchase_option": "on_demand", "frontier_group": "one"}
    return SimpleNamespace(info=SimpleNamespace(run_id=label * 6), data=SimpleNamespace(metrics=metrics, tags=tags))


RUNS = [
    a_run("none", 0.60, 0.0004, role="baseline"),
    a_run("int8", 0.59, 0.0003),
    a_run("<b>4bit", 0.55, 0.0005),
    a_run("far", 0.62, 0.0041, "h100-80gb"),
    a_run("unpriced", 0.61, None),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    draw("tiny", RUNS, folder)
    assert (folder / "frontier.png").stat().st_size > 10_000
    return folder / "frontier.html"


def rows_after(page: Path, script: str) -> list[list[str]]:
    """The table's cells after a script ran in the page, the network being out of reach."""
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9", "--dump-dom"]
    ended = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    assert 'data-ready="yes"' in ended.stdout, "the page's script failed"
    body = re.search(r'<tbody id="body">(.*?)</tbody>', ended.stdout, re.S).group(1)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


def press(option: str) -> str:
    return f"document.querySelector('[data-option={option}]').click();"


def slide(percent: int) -> str:
    return f"const u=document.getElementById('use'); u.value={percent}; u.dispatchEvent(new Event('input'));"


def test_the_page_holds_no_address(page: Path) -> None:
    assert not re.findall(r"(?:src|href)=|https?://", page.read_text())


def test_variants_are_listed_cheapest_first_and_text_is_text(page: Path) -> None:
    rows = rows_after(page, "")
    assert [row[0] for row in rows] == ["int8", "none", "&lt;b&gt;4bit", "far", "unpriced"]
    assert [row[3].split(",")[0] for row in rows] == ["yes", "yes", "no", "yes", "no"]
    assert rows[0][2] == "0.3 [0.27, 0.33]"
    assert rows[4][2] == "not measured"


def test_purchase_option_and_utilisation_reprice(page: Path) -> None:
    spot = {row[0]: row[2] for row in rows_after(page, press("spot"))}
    # L4: 0.21 to 0.38 USD/h instead of 0.70 to 0.95, middle 0.295 instead of 0.825.
    assert spot["int8"] == f"{0.3 * 0.295 / 0.825:.3g} [{0.27 * 0.21 / 0.7:.2g}, {0.33 * 0.38 / 0.95:.2g}]"
    busy = {row[0]: row[2] for row in rows_after(page, slide(80))}
    assert busy["int8"] == "0.15 [0.14, 0.17]"
    both = {row[0]: row[2] for row in rows_after(page, press("spot") + slide(80))}
    assert both["int8"].startswith(f"{0.5 * 0.3 * 0.295 / 0.825:.3g} ")


def test_a_click_on_a_column_sorts_and_a_second_one_turns_it(page: Path) -> None:
    click = "document.querySelector('[data-key=quality] button').click();"
    up, down = ([row[0] for row in rows_after(page, click * count)] for count in (1, 2))
    assert up == ["&lt;b&gt;4bit", "int8", "none", "unpriced", "far"]
    assert down == up[::-1]


def test_runs_on_other_questions_are_left_out(tmp_path: Path) -> None:
    other = a_run("old", 0.9, 0.0001)
    other.data.tags["frontier_group"] = "another"
    twin = a_run("int8", 0.58, 0.0031, "h100-80gb")
    shown = draw("tiny", [*RUNS, other, twin], tmp_path)
    names = {one.point.name for one in shown}
    assert "old" not in names
    assert {"int8@l4-24gb", "int8@h100-80gb"} <= names


def test_no_run_with_both_figures_still_gives_a_page(tmp_path: Path) -> None:
    draw("tiny", [a_run("none", None, None, role="baseline")], tmp_path)
    assert [row[0] for row in rows_after(tmp_path / "frontier.html", "")] == ["none"]
