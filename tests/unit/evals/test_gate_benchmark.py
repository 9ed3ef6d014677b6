"""The real-answer table of benchmarks/gate.py, from both kinds of recorded files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gate import answers_tables, mcnemar_p_value, read_answers
from core.files import write_json
from evals.stats import mean_estimate
from evals.types import ItemOutcome, QualityReport, SamplingOrder, TaskResult


def evidence(label: str, scores: list[float], order: SamplingOrder | None = None) -> dict:
    items = tuple(ItemOutcome(i, score, (-1.0, -1.5 - i % 7), 0, num_tokens=20 + i) for i, score in enumerate(scores))
    task = TaskResult("piqa", "acc", mean_estimate(scores), items, 400, "d", order)
    return {"label": label, "quality": QualityReport({"piqa": task})}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    good = [1.0, 0.0, 1.0] * 100
    write_json(tmp_path / "none.json", evidence("none", good))
    write_json(tmp_path / "int8.json", evidence("int8", [1 - s if i % 60 == 0 else s for i, s in enumerate(good)]))
    stopped = SamplingOrder("uniform", tuple(range(300)))
    write_json(tmp_path / "awq.json", evidence("awq", good[:60], stopped))
    items = [{"item_id": i, "score": 0.0 if i % 3 == 0 else s} for i, s in enumerate(good)]
    (tmp_path / "rtn.json").write_text(json.dumps({"variant": "rtn", "task": "piqa", "items": items}))
    return tmp_path


def test_recorded_runs_and_plain_files_are_read_and_stopped_runs_left_out(folder: Path, capsys) -> None:
    assert set(read_answers(folder)) == {("none", "piqa"), ("int8", "piqa"), ("rtn", "piqa")}
    assert "left out: awq on piqa was stopped early" in capsys.readouterr().err


def test_the_table_has_a_row_per_variant_and_margin(folder: Path) -> None:
    lines = list(answers_tables(folder, "none", np.random.default_rng(0), 10))
    rows = [line.split(" | ") for line in lines if line.startswith(("| int8", "| rtn"))]
    assert len(rows) == 6
    assert [row[6] for row in rows] == ["pass"] * 3 + ["fail"] * 3
    assert all(row[2] == "300" for row in rows)
    assert float(rows[3][3]) < -30


def test_a_missing_baseline_is_named(folder: Path) -> None:
    with pytest.raises(SystemExit, match="no answers of the variant 'baseline' on piqa"):
        list(answers_tables(folder, "baseline", np.random.default_rng(0), 1))


@given(st.integers(0, 25), st.integers(0, 25))
def test_mcnemar_is_the_binomial_tail(gained, lost):
    n, k = gained + lost, min(gained, lost)
    two_sided = sum(math.comb(n, i) * 0.5**n for i in range(n + 1) if i <= k or i >= n - k)
    assert mcnemar_p_value(gained, lost) == pytest.approx(min(1.0, two_sided))
