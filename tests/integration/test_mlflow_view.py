"""MLflow at first sight: what a person sees who opens the links that `parsimony ui` prints, in a real browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from evals.config import GateConfig
from evals.decide.declared import level_of_one
from evals.types import LoadPoint, LoadReport, Money, QualityReport
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.config import ModelConfig, RunConfig, TrackingConfig
from pipeline.promote import apply, decide_on_run, nobody
from pipeline.record.metrics import run_metrics
from pipeline.record.run_record import evidence_of
from pipeline.record.store import Recorder, RunRecord
from pipeline.record.tags import ARTIFACT_DIGEST, CANDIDATE_KEY, COMPARISON_GROUP, FRONTIER_GROUP, short_tags
from pipeline.serve.server import free_port
from pipeline.types import Artifact, Candidate, Measured
from tests.integration.chromium import CHROMIUM, Page
from tests.unit.pipeline.test_decide import GOOD, WORSE, cost, rounds, task

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m"
VARIANTS = (
    ("none", GOOD, "0.00042", 327.0, 257),
    ("int8", GOOD, "0.00031", 447.0, 160),
    ("gptq", GOOD, "0.00061", 210.0, 112),
    ("rtn-int4", WORSE, "0.00028", 460.0, 113),
)
"""Label, scores, USD per 1k tokens, output tokens per second, MiB."""
COLUMNS = ("variant", "verdict", "quality", "usd_per_1m_tokens", "difference_points", "tok_per_s", "size_mib")
WALL_S = {"compress": 60.0, "quality": 100.0, "load": 80.0}
BEGAN = {
    "compress": "2026-11-20T10:00:00+00:00",
    "quality": "2026-11-20T10:01:00+00:00",
    "load": "2026-11-20T10:03:00+00:00",
}


def measured(folder: Path, label: str, scores: list[float], usd: str, tok_per_s: float, mib: int) -> Measured:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(label))
    repeats = [{"output_tok_per_s": tok_per_s + one, "total_tok_per_s": 3 * tok_per_s + one} for one in (-1.0, 0, 1)]
    amount = Decimal(usd)
    money = Money(amount, amount * Decimal("0.99"), amount * Decimal("1.01"))
    return Measured(
        candidate=Candidate("baseline" if label == "none" else "candidate", label, {}, label),
        artifact=Artifact(folder, checkpoint_digest(folder), mib * 2**20, label, None),
        quality=QualityReport({"arc_easy": task(scores)}),
        load=LoadReport("quick", (LoadPoint("c8", 8, 128, 64, tuple(repeats), 0),)),
        cost=replace(cost(usd), usd_per_1k_tokens=money),
        server_log=folder / "vllm.log",
        stage_keys={},
        stage_wall_s=WALL_S,
        stage_started_at=BEGAN,
        made_now=tuple(BEGAN),
        reused=(),
        measured_at=BEGAN["quality"],
        price_rounds=None if label == "none" else rounds(float(usd) / float(VARIANTS[0][2])),
    )


def record(recorder: Recorder, one: Measured, baseline: Measured | None, config: RunConfig) -> str:
    """Record a variant and decide on it, as a run does."""
    label = one.candidate.label
    tags: dict[str, str] = {
        "model": MODEL, "label": label, "role": one.candidate.role, COMPARISON_GROUP: "g", FRONTIER_GROUP: "f",
        CANDIDATE_KEY: label, ARTIFACT_DIGEST: one.artifact.digest, "artifact_path": str(one.artifact.path),
    }  # fmt: skip
    metrics = run_metrics(one, (baseline or one).artifact.num_bytes, baseline)
    run = RunRecord(label, f"{MODEL}/{label}", tags | short_tags(tags), {}, metrics, {}, {}, WALL_S, evidence_of(one),
                    stage_started_at=BEGAN, made_now=one.made_now)  # fmt: skip
    run_id, _ = recorder.record(run)
    if baseline is not None:
        apply(
            decide_on_run(run_id, one.artifact, config, recorder, level_of_one),
            config,
            recorder,
            nobody,
            lambda *_: None,
        )
    return run_id


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """A store with a baseline, a promoted variant and two that were not."""
    folder = tmp_path_factory.mktemp("view")
    found = TrackingConfig(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts")
    recorder = Recorder(found)
    config = RunConfig(model=ModelConfig(name=MODEL), gate=GateConfig(num_resamples=500), tracking=found)
    baseline, *others = [measured(folder / one[0], *one) for one in VARIANTS]
    record(recorder, baseline, None, config)
    for one in others:
        record(recorder, one, baseline, config)
    return found


def start_ui(tracking: TrackingConfig) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """`parsimony ui` on a free port, and the links that it prints: what they show -> address."""
    line = [sys.executable, "-m", "pipeline", "ui", "--port", str(free_port()), f"tracking.uri={tracking.uri}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    links: dict[str, str] = {}
    assert process.stdout is not None
    for text in process.stdout:
        words = text.split()
        if len(words) == 2 and words[1].startswith("http"):
            links[words[0]] = words[1]
        if len(links) == 2:
            break
    assert len(links) == 2, f"two links were expected: {links}"
    return process, links


@pytest.fixture(scope="module")
def links(tracking: TrackingConfig) -> Iterator[dict[str, str]]:
    process, found = start_ui(tracking)
    yield found
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with Page(tmp_path_factory.mktemp("profile")) as found:
        yield found


CELLS = """
Object.fromEntries([...document.querySelectorAll('[role=gridcell]')].map(cell => {
  const box = cell.getBoundingClientRect();
  const row = cell.closest('[role=row]').getAttribute('row-index');
  const isWhole = cell.scrollWidth <= cell.clientWidth;
  return [row + ' ' + cell.getAttribute('col-id'),
          [cell.innerText.trim(), box.left, box.right, box.top, box.bottom, isWhole]];
}))
"""


def table_of(page: Page) -> list[dict[str, Any]]:
    """The rows from top to bottom: column -> text, left, right, top, bottom, and whether no text is cut off."""
    rows: dict[int, dict[str, Any]] = {}
    for key, cell in page.value(CELLS).items():
        row, _, column = key.partition(" ")
        rows.setdefault(int(row), {})[column.split("`")[1] if "`" in column else column] = cell
    return [rows[number] for number in sorted(rows)]


def is_seen(cell: list[Any]) -> bool:
    """Whether a cell lies in the window (1440 x 900), with its whole text."""
    _, left, right, top, bottom, is_whole = cell
    return 0 <= left < right <= 1440 and 0 <= top < bottom <= 900 and is_whole


def test_the_link_shows_cost_beside_quality_and_the_verdict(page: Page, links: dict[str, str]) -> None:
    page.open(links["runs"])
    page.wait_for("document.querySelectorAll('[col-id=\"metrics.`usd_per_1m_tokens`\"][role=gridcell]').length == 4")
    rows = table_of(page)
    assert [row["variant"][0] for row in rows] == ["rtn-int4", "int8", "none", "gptq"]
    texts = [[row[name][0] for name in ("verdict", "quality", "usd_per_1m_tokens")] for row in rows]
    assert texts == [
        ["rejected", "0.6", "0.28"],
        ["promoted", "0.75", "0.31"],
        ["baseline", "0.75", "0.42"],
        ["rejected", "0.75", "0.61"],
    ]
    for row in rows:
        shown = [row[name] for name in ("variant", "verdict", "quality", "usd_per_1m_tokens")]
        assert all(is_seen(cell) for cell in shown), "without scrolling"
        assert len({round(cell[3]) for cell in shown}) == 1, "side by side"
        assert [cell[1] for cell in shown] == sorted(cell[1] for cell in shown)
        assert row["usd_per_1m_tokens"][1] - row["quality"][2] < 2, "cost stands beside quality"
    assert "Model training" in page.text()
    if picture := os.environ.get("PARSIMONY_PICTURE"):  # docs/mlflow.png
        page.value("document.querySelector('[data-component-id$=\"assistant.chat_panel.close\"]')?.click()")
        page.wait_for("document.querySelector('[col-id=\"metrics.`size_mib`\"][role=gridcell]') !== null")
        page.picture(Path(picture))


def test_the_other_columns_follow(page: Page, links: dict[str, str]) -> None:
    page.open("about:blank")
    page.open(links["runs"])
    heads = "[...document.querySelectorAll('[role=columnheader]')].map(one => one.innerText.trim())"
    page.wait_for(f"{heads}.includes('size_mib') || {heads}.includes('tok_per_s')")
    texts = page.value(heads)
    assert [one for one in dict.fromkeys(texts) if one in COLUMNS][:4] == list(COLUMNS[:4])


def test_the_chart_has_every_variant_at_its_cost_and_quality(page: Page, links: dict[str, str]) -> None:
    page.open("about:blank")
    page.open(links["chart"])
    page.wait_for("document.querySelectorAll('.scatterlayer .point').length >= 4")
    boxes = page.value(
        "[...document.querySelectorAll('.scatterlayer .point')].map(one => one.getBoundingClientRect())"
        ".map(box => [(box.left + box.right) / 2, (box.top + box.bottom) / 2])"
    )
    assert all(0 < x < 1440 and 0 < y < 900 for x, y in boxes), "without scrolling"
    from_left = sorted(boxes)
    assert len(from_left) == 4
    worst, *good = from_left
    assert all(y < worst[1] for _, y in good), "the cheapest variant is the worst one: farthest left, lowest"
    text = page.text()
    assert "Cost against quality" in text
    assert "usd_per_1m_tokens vs. quality" in text


def test_runs_say_who_what_and_when(tracking: TrackingConfig) -> None:
    recorder = Recorder(tracking)
    (run,) = [one for one in recorder.runs(MODEL) if one.data.tags["label"] == "int8"]
    assert run.info.end_time - run.info.start_time == 260_000, "from the first stage's start to the last one's end"
    assert datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat() == BEGAN["compress"]
    tags = run.data.tags
    assert tags["mlflow.user"]
    assert tags["mlflow.source.name"]
    if (ROOT / ".git").exists():
        commit = subprocess.check_output(["git", "-C", str(ROOT), "rev-parse", "HEAD"], text=True)
        assert tags["mlflow.source.git.commit"] == commit.strip()
    (load,) = recorder.client.search_runs(
        [recorder.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.stage = 'load'"
    )
    assert load.info.end_time - load.info.start_time == 80_000
    experiment = recorder.client.get_experiment(recorder.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "promoted" in experiment.tags["mlflow.note.content"]


def test_runs_of_an_older_version_get_the_columns(tmp_path: Path) -> None:
    recorder = Recorder(TrackingConfig(f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/artifacts"))
    tags = {"model": "o'neill", "label": "int8", "role": "candidate", "decision": "hold", "candidate_key": "k"}
    old = recorder.client.create_run(recorder.experiment_id, tags=tags).info.run_id
    recorder.client.log_metric(old, "cost/usd_per_1k_tokens", 0.00031)
    recorder.client.set_terminated(old)
    stage = recorder.client.create_run(recorder.experiment_id, tags={"model": "o'neill", "role": "stage"}).info.run_id
    recorder.complete_columns("o'neill")
    data = recorder.client.get_run(old).data
    assert (data.tags["variant"], data.tags["verdict"]) == ("int8", "not promoted")
    assert data.metrics["usd_per_1m_tokens"] == 0.31
    assert "quality" not in data.metrics, "what was not measured stays missing"
    assert "variant" not in recorder.client.get_run(stage).data.tags
    recorder.client.set_tag(old, "verdict", "mine")
    recorder.complete_columns("o'neill")
    assert recorder.client.get_run(old).data.tags["verdict"] == "mine", "only once"


def test_a_record_is_found_by_its_keys_former_name(tmp_path: Path) -> None:
    recorder = Recorder(TrackingConfig(f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/artifacts"))
    old = recorder.client.create_run(recorder.experiment_id, tags={"run_key": "abc"}).info.run_id
    recorder.client.set_terminated(old)
    one = measured(tmp_path / "none", *VARIANTS[0])
    assert recorder.record(RunRecord("abc", "none", {}, {}, {}, {}, {}, {}, evidence_of(one))) == (old, True)


def test_sigterm_ends_every_process(tracking: TrackingConfig) -> None:
    process, links = start_ui(tracking)
    port = links["runs"].split(":")[2].partition("/")[0]
    started = descendants(process.pid)
    assert len(started) >= 3, "supervisor, server and worker"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert [pid for pid in started if is_alive(pid)] == []
    mine = [path for path in Path("/proc").glob("[0-9]*/cmdline") if port.encode() in read(path).split(b"\0")]
    assert mine == []


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and waits for somebody to take its exit code does not."""
    return read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()[:1] not in ([], [b"Z"])


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = read(path).rpartition(b")")[2].split()
        if fields:
            below.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = [], [pid]
    while todo:
        children = below.get(todo.pop(), [])
        found += children
        todo += children
    return found


def test_a_server_without_an_address_is_refused() -> None:
    line = [sys.executable, "-m", "pipeline", "ui", "tracking=server"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: tracking.uri: the server's address is missing; tracking=server needs tracking.uri=http://HOST:5000"
    )
