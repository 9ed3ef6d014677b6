"""`suite.source=files` from the command line: a task file of the user's own, through the plan and lm-eval itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: !function utils.question
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [{"of": of, "choices": ["Paris", "Rome"], "answer": answer} for of, answer in (("France", 0), ("Italy", 1))]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "utils.py").write_text("def question(row):\n    return f\"The capital of {row['of']} is\"\n")
    path = tmp_path / "capitals.yaml"
    path.write_text(TASK.format(data=tmp_path / "data.jsonl"))
    return path


def test_the_plan_takes_it_and_names_what_is_wrong(task: Path, tmp_path: Path) -> None:
    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        settings = ["suite.source=files", "suite.tasks=[capitals]", f"home={tmp_path}/home"]
        return subprocess.run(
            [sys.executable, "-m", "pipeline", "plan", *settings, *arguments],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    good = plan(f"suite.files={{capitals: {task}}}")
    assert good.returncode == 0, good.stderr
    assert "Quality  capitals" in good.stdout
    wrong = plan(f"suite.files={{capitals: {tmp_path}/none.yaml}}")
    assert wrong.returncode == 2
    assert f"suite.files.capitals: there is no file {tmp_path}/none.yaml" in wrong.stderr


def test_lm_evals_task_manager_finds_the_task_with_its_items(task: Path) -> None:
    program = (
        "import json, sys; from evals.quality.worker import load_task; "
        "found = load_task({'name': 'capitals', 'path': sys.argv[1]}); "
        "leaf, = found.leaves; docs = list(leaf.eval_docs); "
        "print(json.dumps([found.name, found.sizes, leaf.doc_to_text(docs[0]), leaf.doc_to_choice(docs[0])]))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(task.parent / "c"),
    }
    ended = subprocess.run(
        [sys.executable, "-c", program, str(task)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == [
        "capitals", [2], "The capital of France is", ["Paris", "Rome"],
    ]  # fmt: skip
